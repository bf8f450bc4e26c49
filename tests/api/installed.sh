#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Installs the build into an empty folder, compiles a program against what is there with pkg-config,
# and runs it. Also: only the documented names are exported. usage: installed.sh BUILD SOURCE.c
set -eu
build=$1 source=$2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
DESTDIR="$tmp/root" meson install -C "$build" --no-rebuild --quiet >"$tmp/log" 2>&1 || {
    sed 's/^/# /' "$tmp/log"
    echo "Bail out! meson install failed"
    exit 1
}
pc=$(find "$tmp/root" -name libchain.pc)
PKG_CONFIG_PATH=$(dirname "$pc")
PKG_CONFIG_SYSROOT_DIR="$tmp/root"
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR
lib=$(dirname "$(find "$tmp/root" -name libchain.so)")

# Both as C and as C++, with all warnings: the headers are other people's too.
# shellcheck disable=SC2046
cc -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -o "$tmp/example" "$source" \
    $(pkg-config --cflags libchain) -pthread $(pkg-config --libs libchain)
printf '#include <chain/image.h>\nint main() { return libchain_close(nullptr); }\n' >"$tmp/cxx.cc"
if command -v c++ >/dev/null; then
    # shellcheck disable=SC2046
    c++ -Wall -Wextra -Werror -o "$tmp/cxx" "$tmp/cxx.cc" $(pkg-config --cflags --libs libchain)
    LD_LIBRARY_PATH="$lib" "$tmp/cxx"
fi
other=$(nm -D --defined-only "$lib/libchain.so" | awk '$2 != "A" {print $3}' | grep -v '^libchain_' || :)
[ -z "$other" ] || {
    echo "Bail out! libchain.so exports $other"
    exit 1
}
mkdir "$tmp/images"
LD_LIBRARY_PATH="$lib" "$tmp/example" "$tmp/images"

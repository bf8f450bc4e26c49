#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# systemd's own opinion of the units, with a program and a manual page in their places that exist.
# usage: test-units.sh CHAIND SERVICE SOCKET
set -u
chaind=$(readlink -f "$1") service=$2 socket=$3
name="systemd accepts chaind@.service and chaind@.socket"
if ! command -v systemd-analyze >/dev/null; then
    echo "ok 1 - $name # SKIP systemd-analyze is not installed"
    exit 0
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
printf '[Service]\nExecStart=/bin/true\n' >"$tmp/plain.service"
if ! systemd-analyze verify "$tmp/plain.service" >/dev/null 2>&1; then
    echo "ok 1 - $name # SKIP systemd-analyze cannot verify units on this machine"
    exit 0
fi
sed -e "s|^ExecStart=[^ ]*|ExecStart=$chaind|" -e '/^Documentation=/d' "$service" >"$tmp/chaind@.service"
sed -e '/^Documentation=/d' "$socket" >"$tmp/chaind@.socket"
if ! said=$(systemd-analyze verify "$tmp/chaind@.socket" "$tmp/chaind@.service" 2>&1) || [[ $said ]]; then
    printf '%s\n' "$said" | sed 's/^/# /'
    echo "not ok 1 - $name"
    exit 1
fi
echo "ok 1 - $name"

#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# systemd's own opinion of the units, with a program in its place that exists.
# usage: test-units.sh CHAIND UNIT...
set -u
chaind=$(readlink -f "$1")
shift
n=0 failed=0

# outcome NAME STATUS OUTPUT: one line of TAP.
outcome() {
    ((++n))
    if (($2 == 0)); then
        echo "ok $n - $1"
    else
        printf '%s\n' "$3" | sed 's/^/# /'
        echo "not ok $n - $1"
        failed=1
    fi
}

skip() {
    echo "1..0 # SKIP $1"
    exit 0
}

command -v systemd-analyze >/dev/null || skip "systemd-analyze is not installed"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
printf '[Service]\nExecStart=/bin/true\n' >"$tmp/plain.service"
systemd-analyze verify "$tmp/plain.service" >/dev/null 2>&1 ||
    skip "systemd-analyze cannot verify units on this machine"
rm "$tmp/plain.service"
for unit in "$@"; do # manual pages are not installed yet
    sed -e "s|^ExecStart=[^ ]*|ExecStart=$chaind|" -e '/^Documentation=/d' "$unit" >"$tmp/${unit##*/}"
done

# An instance, since the template's own name says nothing.
said=$(cd "$tmp" && systemd-analyze verify ./*[a-z].service ./*[a-z].socket ./chaind@web.service 2>&1)
status=$?
[[ ! $said ]] || status=1
outcome "systemd accepts the units" $status "$said"

for service in "$tmp"/*.service; do
    said=$(systemd-analyze security --offline=yes --threshold=15 --no-pager "$service" 2>&1)
    outcome "systemd finds ${service##*/} hardened (an exposure of 1.5 at most)" $? "$said"
done
echo "1..$n"
exit $failed

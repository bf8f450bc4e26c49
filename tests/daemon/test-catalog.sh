#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Each number of a message is in the catalog, and none else; and systemd can read it.
# usage: test-catalog.sh MESSAGE-IDS.H CATALOG
set -u
in_code=$(grep -o '"[0-9a-f]\{32\}"' "$1" | tr -d '"' | sort)
in_catalog=$(sed -n 's/^-- \([0-9a-f]\{32\}\)$/\1/p' "$2" | sort)
failed=0
if [[ $in_code && $in_code == "$in_catalog" ]]; then
    echo "ok 1 - the catalog has what the daemon says"
else
    diff <(echo "$in_code") <(echo "$in_catalog") | sed 's/^/# /'
    echo "not ok 1 - the catalog has what the daemon says"
    failed=1
fi
name="systemd reads the catalog"
if ! command -v journalctl >/dev/null; then
    echo "ok 2 - $name # SKIP journalctl is not installed"
    echo 1..2
    exit $failed
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp"/{usr/lib/systemd/catalog,var/lib/systemd/catalog}
cp "$2" "$tmp/usr/lib/systemd/catalog/chaind.catalog"
said=$(journalctl --root="$tmp" --update-catalog 2>&1)
read_back=$(strings -n 8 "$tmp/var/lib/systemd/catalog/database" 2>&1)
n=$(grep -c '^Subject: ' <<<"$read_back")
if [[ ! $said && $n == $(wc -l <<<"$in_catalog") ]]; then
    echo "ok 2 - $name"
else
    printf '%s\n' "$said" "$n subjects" | sed 's/^/# /'
    echo "not ok 2 - $name"
    failed=1
fi
echo 1..2
exit $failed

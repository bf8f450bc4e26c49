#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Random load, kills and simulated power cuts with seeds that no run had before, for HOURS (1; fractions
# are fine). Goes on after a failure, and ends with the command that repeats each.
# usage: soak.sh BUILD-DIRECTORY [HOURS]
set -u
build=$1 hours=${2-1}
here=$(dirname "$(readlink -f "$0")")
export CHAIND=$build/daemon/chaind
end=$((SECONDS + $(awk -v h="$hours" 'BEGIN { printf "%d", h * 3600 }')))
failures=() n=0
places=('a shared cluster' 'a cluster that is not there' 'a border of clusters' 'a border of tables'
    'a cluster of its own' 'the end of the disk' 'a cluster that is committed'
    'a border that is committed' 'a cluster that is streamed' 'a border that is streamed'
    'a cluster that is mirrored' 'a border that is mirrored' 'a cluster that is backed up'
    'a border that is backed up' 'a bitmap that is backed up')

# one NAME COMMAND...: runs it; prints its TAP lines only when something failed.
one() {
    local name=$1 log
    shift
    log=$build/soak-$name.log
    if "$@" >"$log" 2>&1; then
        printf '%6d s  ok      %s\n' "$SECONDS" "$*"
        return
    fi
    printf '%6d s  FAILED  %s\n' "$SECONDS" "$*"
    grep -v '^ok ' "$log" | tail -n 40 | sed 's/^/    | /'
    failures+=("$*")
}

while ((SECONDS < end)); do
    seed=$(($(date +%s) * 1000 + n))
    one differential "$here/differential.py" --seed "$seed" --count 20 --ops 3000
    one chaos "$here/chaos.py" --seed "$seed" --rounds 10 --verbs 20
    one kill "$here/test-kill.py" --seed "$seed" --rounds 30
    for crash in "$build"/tests/crash/test-crash-*; do
        [[ -f $crash && -x $crash ]] && one crash "$crash" --seed "$seed" --time 300
    done
    one model "$build/tests/model/test-model" --seed "$seed" --runs 500 --random 1000 --deviations 3 \
        --place "${places[n % ${#places[@]}]}"
    ((++n))
done
echo "$n rounds, ${#failures[@]} failed"
((${#failures[@]} == 0)) || {
    printf 'again: %s\n' "${failures[@]}"
    exit 1
}

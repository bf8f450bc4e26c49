#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Runs one libFuzzer target for FUZZ_SECONDS (60), starting from its kept corpus. New inputs stay
# below the build directory; an input that breaks the target is printed and can be added to the
# corpus with the fix.
# usage: run-fuzzer.sh TARGET CORPUS-DIRECTORY
set -eu
target=$1 corpus=$2
name=$(basename "$target")
work=$(dirname "$target")/$name.work
mkdir -p "$work/found"
if "$target" -max_total_time="${FUZZ_SECONDS-60}" -timeout=60 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$work/" "$work/found" "$corpus" >"$work/log" 2>&1; then
    grep -E 'stat::number_of_executed_units|stat::average_exec_per_sec' "$work/log" | sed 's/^/# /'
    echo "ok 1 - $name finds nothing in ${FUZZ_SECONDS-60} s"
else
    tail -n 60 "$work/log" | sed 's/^/# /'
    echo "not ok 1 - $name (the input is in $work)"
    exit 1
fi

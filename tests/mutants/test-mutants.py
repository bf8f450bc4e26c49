#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leaves out one sync, wait, lock or check after the other (MUTANT() in the sources) and expects a test
to fail each time: what no test misses need not be there, or its test is missing.

usage: test-mutants.py --source ROOT --build DIRECTORY [NAME]...     a build with -Dmutants=true
       test-mutants.py --source ROOT --names-only                    is each in the list below?
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import time

LIMIT = 300  # seconds; what hangs has failed, too
N_AT_ONCE = 2

MODEL = ["tests/model/test-model", "--stop"]
COMMITTED = [*MODEL, "--place", "a cluster that is committed", "--random", "600"]
LATE = ["tests/model/test-late-guests"]
POINTS = ["tests/model/test-points"]
SNAPSHOTS = ["tests/crash/test-crash-snapshots"]


def crash(case):
    return ["tests/crash/test-crash-qcow2", "--points", "1500", "--case", case]


RESIZE = ["tests/qcow2/test-qcow2-resize-power"]
STREAM = ["tests/crash/test-crash-stream", "--points", "300"]
COMPRESSED = ["tests/qcow2/test-qcow2-compressed"]
FILL = ["tests/crash/test-crash-fill", "--points", "500"]
HEADER = ["tests/qcow2/test-qcow2-header-power"]
BAD_SECTORS = ["tests/qcow2/test-qcow2-bad-sectors"]
MODE = ["tests/qcow2/test-qcow2-mode"]
EXTERNAL = ["tests/chain/test-chain-external-snapshot"]
RACE = ["tests/crash/test-reuse-race"]
POWER = ["tests/qcow2/test-qcow2-power"]
WRITEBACK = ["tests/qcow2/test-qcow2-writeback"]
REMOTE = ["tests/remote/test-remote-nbd-loss"]

# Each with the program that is to fail.
MUTANTS = {
    # §1, §2: data and refcounts before what names them
    "data-before-entry": MODEL,
    "sync-of-early-group": MODEL,
    "sync-of-late-group": MODEL,
    "sync-of-data-file": crash("a data file of its own"),
    "refcounts-before-entries": MODEL,
    "packed-counts-each-stream": COMPRESSED,
    "packed-leaves-freed-cluster": COMPRESSED,
    "shared-pass-starts-later": MODEL,
    # §3
    "sync-of-entries": crash("growing refcount table"),
    # §4
    "freed-only-when-durable": MODEL,
    "freed-waits-for-pins": RACE,
    "reads-pin": RACE,
    "writes-pin": RACE,
    # §5
    "one-growth-at-a-time": crash("growing refcount table"),
    "write-back-before-new-refcount-table": crash("growing refcount table"),
    "sync-of-new-refcount-table": crash("growing refcount table"),
    # §6
    "new-table-before-l1": WRITEBACK,
    "one-new-table-at-a-time": MODEL,
    # §7
    "marks-before-change": crash("persistent bitmaps"),
    "sync-of-bitmap-marks": crash("persistent bitmaps"),
    "sync-of-raised-refcounts": crash("dirty, refcounts too low"),
    "sync-of-mended-entries": POWER,
    "sync-of-rebuilt-refcounts": POWER,
    # §8
    "sync-before-header-of-new-image": POWER,
    "sync-before-magic-of-new-image": POWER,
    "sync-of-new-image": EXTERNAL,
    # §9
    "failed-sync-sticks": ["tests/io/test-io-file-common"],
    "write-back-ends": WRITEBACK,
    "shared-sync-starts-later": crash("cluster 512, refcount 1"),
    # §10
    "space-before-the-answer": ["tests/qcow2/test-qcow2-full"],
    "uncounted-holds-back-entry": BAD_SECTORS,
    "failed-block-holds-back-entry": crash("growing refcount table"),
    "failed-table-holds-back-l1": BAD_SECTORS,
    "failed-piece-holds-back-freed": BAD_SECTORS,
    # §11
    "sync-of-header": HEADER,
    "header-goes-aside": HEADER,
    "failed-header-is-put-back": MODEL,
    "one-header-change-at-a-time": MODEL,
    "unknown-header-ends-write-back": HEADER,
    # §12
    "write-back-before-bitmaps": ["tests/qcow2/test-qcow2-bitmap-power"],
    "failed-refcounts-hold-back-header": ["tests/qcow2/test-qcow2-bitmap-power"],
    # §13
    "write-back-before-snapshot": MODEL,
    "failed-refcounts-hold-back-snapshot": ["tests/qcow2/test-qcow2-snapshot-power"],
    "sync-of-snapshot-tables": MODEL,
    "sync-of-shorter-snapshot-table": SNAPSHOTS,
    "shorter-list-before-references": SNAPSHOTS,
    "dirty-before-references": SNAPSHOTS,
    "write-back-before-clean": MODEL,
    "snapshots-take-turns": MODEL,
    "copied-table-has-no-copied": SNAPSHOTS,
    "marked-table-is-copied": SNAPSHOTS,
    "copied-returns-under-lock": [*SNAPSHOTS, "--seed", "5", "--points", "600"],
    "freed-held-for-snapshot": SNAPSHOTS,
    # §14
    "flush-debt": EXTERNAL,
    "flush-covers-what-ended-before": EXTERNAL,
    "raw-mode-change-flushes": MODE,
    # §15
    "write-back-before-longer-l1": RESIZE,
    "sync-of-longer-l1": RESIZE,
    "zeros-before-size": RESIZE,
    "smaller-size-before-freeing": RESIZE,
    # §16
    "fill-written-before-linked": FILL,
    "fill-goes-on-at-subclusters": ["tests/qcow2/test-qcow2-fill"],
    "fill-links-only-unallocated": FILL,
    "fill-looks-again-in-place": FILL,
    "fill-links-only-missing-compressed": COMPRESSED,
    "packed-written-before-linked": FILL,
    "fill-zeroes-only-unallocated": FILL,
    # §17
    "stream-flush": STREAM,
    # changes of the graph
    "drain-waits-for-requests": ["tests/node/test-node-port"],
    "drained-keeps-out": ["tests/node/test-node-drain"],
    "reads-that-write-are-drained": ["tests/node/test-node-drain"],
    "new-ports-inherit-drains": ["tests/node/test-node-port"],
    "maps-change-with-all-drained": ["tests/node/test-node-switch"],
    "maps-hear-of-changes": MODE,
    "written-is-another-content": MODE,
    # what a server lost
    "lost-connection-loses-writes": REMOTE,
    "lost-before-its-answer-counts": REMOTE,
    "each-flush-under-way-fails": REMOTE,
    "remote-flush-covers-what-came-before": REMOTE,
    # memory
    "cluster-locks": MODEL,
    "map-pins": ["tests/qcow2/test-qcow2-pinned-map"],
    "bits-after-the-write": MODEL,
    "copies-and-writes-take-turns": ["tests/node/test-node-copy-on-read"],
    "blocks-of-direct-files": ["tests/io/test-io-file-direct"],
    # §18
    "copy-target-durable-first": POINTS,
    "copy-work-since": LATE,
    "forward-flush": LATE,
    "forward-fua": LATE,
    "commit-names-old-backing": ["tests/jobs/test-jobs-commit"],
    "keep-points-fill": ["tests/jobs/test-jobs-commit"],
    "keep-points-beside-writes": ["tests/jobs/test-jobs-keep-points"],
    "keep-points-durable-first": ["tests/jobs/test-jobs-commit"],
    "keep-top-base-durable-first": POINTS,
    "keep-top-holds": COMMITTED,
    "keep-top-notes": ["tests/jobs/test-jobs-commit"],
    # §19
    "mirror-left-durable": ["tests/jobs/test-jobs-mirror"],
    # §20
    "copy-before-write": ["tests/jobs/test-jobs-filter-copy-before"],
    "copy-before-zero": ["tests/jobs/test-jobs-filter-copy-before"],
    "copy-before-discard": ["tests/jobs/test-jobs-filter-copy-before"],
    "copy-before-discards": ["tests/jobs/test-jobs-filter-copy-before"],
    "copy-before-read": ["tests/jobs/test-jobs-snapshot-access"],
    "copy-before-stale": ["tests/jobs/test-jobs-filter-copy-before"],
    "copy-before-broken": ["tests/jobs/test-jobs-moment-view"],
    "backup-durable": POINTS,
    "backup-union": ["tests/jobs/test-jobs-backup"],
    # jobs
    "verify-data": ["tests/jobs/test-jobs-copy-verify"],
    "verify-zeros": ["tests/jobs/test-jobs-copy-verify"],
    "range-lock": ["tests/jobs/test-jobs-range-lock"],
    "copy-stale": COMMITTED,
    "copy-stale-compressed": ["tests/jobs/test-jobs-filter-forward"],
    "forward-dirty-after-write": COMMITTED,
    "forward-work-of-others": LATE,
}


def names_in_sources(root):
    names = set()
    for folder, _, files in os.walk(root):
        for name in files:
            if name.endswith((".c", ".h")) and name != "mutant.h":
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    names |= set(re.findall(r'\bMUTANT\("([^"]*)"\)', f.read()))
    return names


def check_names(source):
    names = names_in_sources(os.path.join(source, "libchain")) | names_in_sources(os.path.join(source, "jobs"))
    wrong = [f"{name} is not in the list" for name in sorted(names - set(MUTANTS))]
    wrong += [f"{name} is in the list and nowhere else" for name in sorted(set(MUTANTS) - names)]
    for line in wrong:
        print(f"# {line}")
    return not wrong and len(names) > 0


def survives(build, name):
    """Its test succeeds."""
    program, *args = MUTANTS[name]
    try:
        done = subprocess.run([os.path.join(os.path.abspath(build), program), *args], timeout=LIMIT, cwd=build,
                              env={**os.environ, "CHAIND_MUTANT": name}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def try_one(build, name):
    """Whether its test fails, and the seconds that it took to."""
    start = time.monotonic()
    return not survives(build, name), time.monotonic() - start


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--source", required=True)
    ap.add_argument("--build")
    ap.add_argument("--names-only", action="store_true")
    ap.add_argument("names", nargs="*")
    args = ap.parse_args()
    is_good = check_names(args.source)
    print(f"{'' if is_good else 'not '}ok 1 - each name in the sources is in the list")
    wanted = [] if args.names_only else args.names or list(MUTANTS)
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(N_AT_ONCE) as pool:
        results = pool.map(lambda name: try_one(args.build, name), wanted)
        for i, (name, (is_missed, seconds)) in enumerate(zip(wanted, results), 2):
            is_good &= is_missed
            print(f"{'' if is_missed else 'not '}ok {i} - {name} is missed ({seconds:.0f} s)", flush=True)
    print(f"# {time.monotonic() - start:.0f} s")
    print(f"1..{len(wanted) + 1}")
    return 0 if is_good else 1


sys.exit(main())

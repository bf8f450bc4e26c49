#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts what meson's test logs say, test function by test function, and ends with one line:
"N passed, N failed", and "N skipped" with the reasons above it. Exit status 1 when anything failed.

Every test program of the project prints TAP lines ("ok 1 - name", "not ok 2 - name", "# SKIP why");
a program that prints none counts as one test. A program that died or ran out of time counts as one
failure more, so that the tests it never reached are not lost silently.

usage: tally.py [--passed N] [--failed N] STEP=STATUS=TESTLOG.json...
"""
import argparse
import json
import re

TAP = re.compile(r"^(not )?ok\b\s*\d*\s*(?:-\s*)?(.*)$", re.M)
SKIP = re.compile(r"#\s*skip\S*\s*(.*)$", re.I)


def show(entry):
    """What a failed program said: everything but the tests that passed."""
    lines = []
    for stream in ("stdout", "stderr"):
        lines += [line for line in (entry.get(stream) or "").splitlines()
                  if not re.match(r"ok\b|# [0-9.]+ s$", line)]
    print(f"---- {entry['name'].split(' / ')[-1]}")
    print("\n".join(lines[-60:]))


class Count:
    def __init__(self):
        self.passed, self.failed, self.skipped, self.broken = 0, 0, [], []

    def add_program(self, entry):
        """One test program of a meson log."""
        name, result = entry["name"].split(" / ")[-1], entry["result"]
        n_failed = self.failed
        n_seen = 0
        for bad, rest in TAP.findall(entry.get("stdout", "") or ""):
            n_seen += 1
            skip = SKIP.search(rest)
            if skip:
                self.skipped.append(f"{name}: {rest[:skip.start()].strip()}: {skip.group(1)}")
            elif bad:
                self.failed += 1
                self.broken.append(f"{name}: {rest}")
            else:
                self.passed += 1
        if result in ("OK", "EXPECTEDFAIL"):
            self.passed += not n_seen
        elif result == "SKIP":
            if not n_seen:
                self.skipped.append(f"{name}: the program skipped itself")
        elif self.failed == n_failed:
            self.failed += 1
            self.broken.append(f"{name}: {result.lower()}, exit status {entry.get('returncode')}")
        if self.failed > n_failed:
            show(entry)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--passed", type=int, default=0)
    ap.add_argument("--failed", type=int, default=0)
    ap.add_argument("logs", nargs="*")
    args = ap.parse_args()
    count = Count()
    count.passed, count.failed = args.passed, args.failed
    for log in args.logs:
        step, status, path = log.split("=", 2)
        n_failed, n_programs = count.failed, 0
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                for line in f:
                    count.add_program(json.loads(line))
                    n_programs += 1
        except FileNotFoundError:
            pass
        if not n_programs or (status != "0" and count.failed == n_failed):
            count.failed += 1
            count.broken.append(f"{step}: ended with status {status} after {n_programs} programs")
    for line in count.skipped:
        print(f"skipped: {line}")
    for line in count.broken:
        print(f"failed: {line}")
    tail = f", {len(count.skipped)} skipped" if count.skipped else ""
    print(f"{count.passed} passed, {count.failed} failed{tail}")
    return 1 if count.failed else 0


raise SystemExit(main())

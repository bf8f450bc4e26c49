#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts what meson's test logs say, test function by test function, and ends with one line:
"N passed, N failed", and "N skipped" with the reasons above it. Exit status 1 when anything failed.

Every test program of the project prints TAP lines: "ok 1 - name", "not ok 2 - name", "ok 3 - name #
SKIP why", or "1..0 # SKIP why" when nothing can run. A C test prints "# SKIP why" before it calls
cmocka's skip(), which knows no reasons ("not ok 4 # SKIP name"). A program that prints none of these
counts as one test. A program that died or ran out of time counts as one failure more, so that the
tests it never reached are not lost silently.

usage: tally.py [--passed N] [--failed N] STEP=STATUS=TESTLOG.json...
"""
import argparse
import json
import re

TAP = re.compile(r"(not )?ok\b\s*\d*\s*(?:-\s*)?(.*)$")
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

    def add_lines(self, name, text):
        """What one program printed. Returns how many tests it told of."""
        n_seen = 0
        why = None  # of the skip() that comes next
        for line in text.splitlines():
            test, skip = TAP.match(line), SKIP.search(line)
            if not test and skip and skip.start() == 0:
                why = skip.group(1)
            elif not test and skip and line.startswith("1..0"):
                n_seen += 1
                self.skipped.append(f"{name}: {skip.group(1)}")
            if not test:
                continue
            n_seen += 1
            bad, rest = test.groups()
            if skip and bad:  # cmocka's
                self.skipped.append(f"{name}: {skip.group(1)}: {why or 'it does not say why'}")
                why = None
            elif skip:
                self.skipped.append(f"{name}: {rest[:SKIP.search(rest).start()].strip()}: {skip.group(1)}")
            elif bad:
                self.failed += 1
                self.broken.append(f"{name}: {rest}")
            else:
                self.passed += 1
        return n_seen

    def add_program(self, entry):
        """One test program of a meson log."""
        name, result = entry["name"].split(" / ")[-1], entry["result"]
        n_failed = self.failed
        n_seen = self.add_lines(name, entry.get("stdout") or "")
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

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gdb commands of libchain/loop/chaind-gdb.py on a running daemon. Skipped without gdb.

usage: test-gdb.py [--chaind PATH]
"""
import argparse
import os
import re
import shutil
import sys
import tempfile

import harness
from harness import Daemon, run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = f"{ROOT}/libchain/loop/chaind-gdb.py"


def gdb(pid, command):
    return run("gdb", "-nx", "-batch", "-p", pid, "-x", SCRIPT, "-ex", command, check=False).stdout


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--chaind", default=harness.chaind_path)
    harness.chaind_path = ap.parse_args().chaind
    name = "gdb lists the fibers and shows the stack of a suspended one"
    if not shutil.which("gdb"):
        print(f"ok 1 - {name} # SKIP gdb is not installed\n1..1")
        return 0
    with tempfile.TemporaryDirectory(prefix="chaind-gdb-") as tmp:
        with open(f"{tmp}/disk.raw", "wb") as f:
            f.truncate(1 << 20)
        with Daemon("--format", "raw", "--nbd", f"{tmp}/s", f"{tmp}/disk.raw") as daemon:
            listed = gdb(daemon.process.pid, "fibers")
            found = re.search(r"(0x[0-9a-f]+)  nbd listener +suspended in accept", listed)
            stack = gdb(daemon.process.pid, f"fiber-bt {found[1]}") if found else ""
            alive = run("nbdinfo", "--size", daemon.uri(), check=False).stdout.strip()
    if found and "stream_accept" in stack and alive == str(1 << 20):
        print(f"ok 1 - {name}\n1..1")
        return 0
    for line in f"{listed}\n{stack}\n{alive}".splitlines():
        print(f"# {line}")
    print(f"not ok 1 - {name}\n1..1")
    return 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a daemon takes from its start until the exports of all disks that it remembers answer.

usage: many-disks.py [--chaind PATH] [--disks N] [--dir DIR]
"""
import argparse
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import harness
from harness import MIB
from state import Service

parser = argparse.ArgumentParser()
parser.add_argument("--chaind", default=harness.chaind_path)
parser.add_argument("--disks", type=int, default=1000)
parser.add_argument("--dir")
args = parser.parse_args()
harness.chaind_path = args.chaind

with tempfile.TemporaryDirectory(dir=args.dir) as tmp:
    tmp = pathlib.Path(tmp)
    begun = time.monotonic()
    with Service(tmp) as s:
        for i in range(args.disks):
            s.command("disk-create", name=f"disk{i}", size=64 * MIB)
    print(f"{args.disks} disks made in {time.monotonic() - begun:.1f} s", flush=True)
    for _ in range(3):
        begun = time.monotonic()
        s = Service(tmp)
        ready = time.monotonic() - begun
        import nbd
        for i in range(args.disks):
            h = nbd.NBD()
            h.connect_uri(s.uri_of(f"disk{i}"))
            assert h.pread(512, 0) == bytes(512)
            h.shutdown()
        answered = time.monotonic() - begun
        begun = time.monotonic()
        s.command("query-disks")
        print(f"ready after {ready:.2f} s, the last one read from after {answered:.2f} s; query-disks "
              f"{1000 * (time.monotonic() - begun):.0f} ms", flush=True)
        begun = time.monotonic()
        s.stop()
        print(f"stopped in {time.monotonic() - begun:.2f} s", flush=True)

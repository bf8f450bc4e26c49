#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What control costs while guests keep the disks busy: the latency of queries beside fio's nbd engine on
four disks, then a thousand nodes and exports added one by one.

usage: control.py [--chaind PATH] [--seconds N]      (a directory on tmpfs; about a minute)
"""
import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
import harness  # noqa: E402
from qmp_client import Qmp  # noqa: E402

N_DISKS, N_NODES = 4, 1000


def latencies(monitor, command, seconds):
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        monitor.command(command)
        took.append((time.perf_counter() - start) * 1e3)
        time.sleep(0.001)
    took.sort()
    print(f"{command:26} {len(took):6} times: median {took[len(took) // 2]:.2f} ms, "
          f"99 % {took[int(len(took) * 0.99)]:.2f} ms, slowest {took[-1]:.2f} ms")


def under_load(tmp, monitor, seconds):
    commands = ("query-jobs", "query-named-block-nodes", "query-block-exports", "query-blockstats")
    loads = [subprocess.Popen(
        ["fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///d{i}?socket={tmp}/n", "--rw=randrw",
         "--bs=4k", "--iodepth=32", "--time_based", f"--runtime={seconds * len(commands) + 3}",
         "--size=1G"], stdout=subprocess.DEVNULL, cwd=tmp) for i in range(N_DISKS)]
    time.sleep(2)
    for command in commands:
        latencies(monitor, command, seconds)
    for load in loads:
        load.wait()


def thousand(tmp, monitor):
    files = [tmp / f"{i}.raw" for i in range(N_NODES)]
    for path in files:
        path.touch()
        os.truncate(path, harness.MIB)
    start = time.perf_counter()
    for i, path in enumerate(files):
        monitor.command("blockdev-add", driver="file", node_name=f"n{i}", filename=str(path))
    added = time.perf_counter()
    for i in range(N_NODES):
        monitor.command("block-export-add", type="nbd", id=f"e{i}", node_name=f"n{i}")
    done = time.perf_counter()
    print(f"of {N_NODES}: blockdev-add {(added - start) * 1e3 / N_NODES:.2f} ms each, "
          f"block-export-add {(done - added) * 1e3 / N_NODES:.2f} ms each")
    latencies(monitor, "query-named-block-nodes", 2)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--chaind", default=harness.chaind_path)
    ap.add_argument("--seconds", type=int, default=5, help="for each query")
    args = ap.parse_args()
    harness.chaind_path = args.chaind
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as tmp:
        tmp = pathlib.Path(tmp)
        for i in range(N_DISKS):
            harness.qemu_img("create", "-q", "-f", "qcow2", tmp / f"{i}.qcow2", "1G")
        disks = [f"d{i}={tmp}/{i}.qcow2" for i in range(N_DISKS)]
        with harness.Daemon("--qmp", tmp / "q", "--nbd", tmp / "n", *disks):
            monitor = Qmp(tmp / "q")
            under_load(tmp, monitor, args.seconds)
            thousand(tmp, monitor)


main()

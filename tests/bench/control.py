#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What control costs while guests keep the disks busy: the latency of queries beside fio's nbd engine on
four disks, the same with a mirror of each, which guests give work all the time; then a thousand nodes and
exports added one by one, of files and of overlays of one base.

usage: control.py [--chaind PATH] [--seconds N]      (a directory on tmpfs; about a minute)
"""
import argparse
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
import harness  # noqa: E402
from qmp_client import Qmp  # noqa: E402

N_DISKS, N_NODES, DISK_MIB = 4, 1000, 256


def tell(what, took):
    took.sort()
    print(f"{what:26} {len(took):6} times: median {took[len(took) // 2]:.2f} ms, "
          f"99 % {took[int(len(took) * 0.99)]:.2f} ms, slowest {took[-1]:.2f} ms")


def timed(monitor, command, **arguments):
    start = time.perf_counter()
    monitor.command(command, **arguments)
    return (time.perf_counter() - start) * 1e3


def latencies(monitor, command, seconds):
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        took.append(timed(monitor, command))
        time.sleep(0.001)
    tell(command, took)


def start_mirrors(monitor):
    for i in range(N_DISKS):
        monitor.command("blockdev-add", driver="null-co", node_name=f"t{i}", size=DISK_MIB * harness.MIB)
        monitor.command("blockdev-mirror", job_id=f"j{i}", device=f"d{i}", target=f"t{i}", sync="full")


def under_load(tmp, monitor, seconds):
    commands = ("query-jobs", "query-named-block-nodes", "query-block-exports", "query-blockstats")
    loads = [subprocess.Popen(
        ["fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///d{i}?socket={tmp}/n", "--rw=randrw",
         "--bs=4k", "--iodepth=32", "--time_based", f"--runtime={seconds * len(commands) + 3}",
         f"--size={DISK_MIB}M"], stdout=subprocess.DEVNULL, cwd=tmp) for i in range(N_DISKS)]
    time.sleep(2)
    for command in commands:
        latencies(monitor, command, seconds)
    for load in loads:
        load.wait()


def add_and_export(monitor, what, name, options):
    tell(f"blockdev-add ({what})",
         [timed(monitor, "blockdev-add", node_name=f"{name}{i}", **options(i)) for i in range(N_NODES)])
    tell("block-export-add",
         [timed(monitor, "block-export-add", type="nbd", id=f"{name}{i}", node_name=f"{name}{i}")
          for i in range(N_NODES)])


def thousand(tmp, monitor):
    for i in range(N_NODES):
        (tmp / f"{i}.raw").touch()
        os.truncate(tmp / f"{i}.raw", harness.MIB)
    overlay = tmp / "overlay"
    harness.qemu_img("create", "-q", "-f", "raw", tmp / "base", f"{DISK_MIB}M")
    harness.qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "base", "-F", "raw", overlay)
    for i in range(N_NODES):
        shutil.copy(overlay, tmp / f"{i}.overlay")
    add_and_export(monitor, "file", "n",
                   lambda i: {"driver": "file", "filename": str(tmp / f"{i}.raw")})
    monitor.command("blockdev-add", driver="raw", node_name="base", read_only=True,
                    file={"driver": "file", "filename": str(tmp / "base")})
    add_and_export(monitor, "overlay", "o", lambda i: {
        "driver": "qcow2", "backing": "base", "file": {"driver": "file", "filename": str(tmp / f"{i}.overlay")}})
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
            harness.qemu_img("create", "-q", "-f", "qcow2", tmp / f"{i}.qcow2", f"{DISK_MIB}M")
        disks = [f"d{i}={tmp}/{i}.qcow2" for i in range(N_DISKS)]
        with harness.Daemon("--qmp", tmp / "q", "--nbd", tmp / "n", *disks):
            monitor = Qmp(tmp / "q")
            under_load(tmp, monitor, args.seconds)
            start_mirrors(monitor)
            print("with a mirror of each disk:")
            under_load(tmp, monitor, args.seconds)
            for i in range(N_DISKS):
                monitor.command("job-cancel", id=f"j{i}")
            thousand(tmp, monitor)


main()

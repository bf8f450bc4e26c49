#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long people wait for chainctl's queries while guests, jobs and commands keep all disks busy: each
query again and again, beside fio at four remembered disks with points in time, a backup of each that
begins anew when it ends, and snapshots that come and go. Those who run chainctl wait for its start, too,
so that is told apart (`help`).

usage: queries.py [--chaind PATH] [--chainctl PATH] [--rounds N]      (a directory on tmpfs; a minute)
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
import harness  # noqa: E402
from qmp_client import Qmp  # noqa: E402

N_DISKS, DISK_MIB = 4, 256
QUERIES = [["help"], ["status"], ["ls"], ["info", "d0"], ["tree"], ["map", "d0"], ["jobs"], ["limit"],
           ["log-level"], ["jobs", "--history"], ["doctor"]]


def start_guests(tmp):
    return [subprocess.Popen(
        ["fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///d{i}?socket={tmp}/n", "--rw=randrw",
         "--bs=4k", "--iodepth=32", "--time_based", "--runtime=3600", f"--size={DISK_MIB}M"],
        stdout=subprocess.DEVNULL, cwd=tmp) for i in range(N_DISKS)]


def keep_busy(tmp, stop):
    """Backups without end, and a snapshot a second."""
    q, n = Qmp(tmp / "q"), 0
    while not stop.wait(0.2):
        running = {j["id"] for j in q.command("query-jobs")}
        for i in range(N_DISKS):
            if f"b{i}" not in running:
                n += 1
                node = q.command("query-disks", name=f"d{i}")[0]["node-name"]
                q.send({"execute": "drive-backup", "arguments": {
                    "job-id": f"b{i}", "device": node, "target": str(tmp / f"t{i}"), "sync": "full",
                    "format": "qcow2", "mode": "existing" if (tmp / f"t{i}").exists() else "absolute-paths"}})
                q.reply()
        q.send({"execute": "disk-snapshot", "arguments": {"snapshots": [
            {"disk": f"d{n % N_DISKS}", "point": f"p{time.monotonic_ns()}"}]}})
        q.reply() # refused where a job is at work


def measure(args, tmp):
    env = {**os.environ, "CHAIND_SOCKET": str(tmp / "q")}
    took = {" ".join(query): [] for query in QUERIES}
    for _ in range(args.rounds):
        for query in QUERIES:
            start = time.perf_counter()
            subprocess.run([args.chainctl, *query], env=env, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, check=False)
            took[" ".join(query)].append((time.perf_counter() - start) * 1e3)
    for name, times in took.items():
        times.sort()
        print(f"{name:16} median {times[len(times) // 2]:6.1f} ms, slowest {times[-1]:6.1f} ms")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--chaind", default=str(ROOT / "build/daemon/chaind"))
    p.add_argument("--chainctl", default=str(ROOT / "build/daemon/ctl/chainctl"))
    p.add_argument("--rounds", type=int, default=20)
    args = p.parse_args()
    harness.chaind_path = args.chaind
    tmp = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        with harness.Daemon("--state", tmp / "s", "--qmp", tmp / "q", "--nbd", tmp / "n"):
            q, stop = Qmp(tmp / "q"), threading.Event()
            for i in range(N_DISKS):
                q.command("disk-create", name=f"d{i}", size=DISK_MIB * harness.MIB)
            guests, busy = start_guests(tmp), threading.Thread(target=keep_busy, args=(tmp, stop))
            time.sleep(2)
            busy.start()
            measure(args, tmp)
            stop.set()
            busy.join()
            for guest in guests:
                guest.terminate()
                guest.wait()
    finally:
        shutil.rmtree(tmp)


if __name__ == "__main__":
    main()

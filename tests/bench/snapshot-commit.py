#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest notices of many snapshots in a row, each committed at once: the slowest writes of fio's
nbd engine beside them and beside nothing, in turns; the daemon's memory and descriptors meanwhile.

usage: snapshot-commit.py [--chaind PATH] [--dir DIR] [--n N] [--rounds N]
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
import harness  # noqa: E402
from world import World  # noqa: E402

SIZE = "1G"


def guest(w, seconds):
    return subprocess.Popen(
        ["fio", "--name=x", "--ioengine=nbd", f"--uri={w.uri('disk')}", "--rw=randwrite", "--bs=4k",
         "--iodepth=4", "--rate_iops=4000", "--time_based", f"--runtime={seconds}", f"--size={SIZE}",
         "--percentile_list=99:99.9", "--output-format=json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=w.tmp)


def tell(what, fio):
    said = fio.communicate()[0]
    write = json.loads(said[said.index("{"):])["jobs"][0]["write"]  # after its notes
    clat = write["clat_ns"]
    p = clat["percentile"]
    print(f"{what:40} {write['iops']:7.0f} writes a second, 99 % {p['99.000000'] / 1e6:.2f} ms, "
          f"99.9 % {p['99.900000'] / 1e6:.2f} ms, slowest {clat['max'] / 1e6:.1f} ms", flush=True)


def one(w, head):
    """Its overlay takes writes until it is committed."""
    overlay = w.tmp / "overlay.qcow2"
    w.qmp.command("blockdev-snapshot-sync", node_name=head, snapshot_node_name="overlay",
                  snapshot_file=str(overlay))
    w.qmp.command("block-commit", job_id="j", device="overlay", base_node=head)
    w.qmp.event("BLOCK_JOB_READY")
    w.qmp.command("job-complete", id="j")
    end = w.qmp.event("BLOCK_JOB_COMPLETED")
    assert "error" not in end, end
    while w.qmp.command("query-jobs"):
        pass
    overlay.unlink()


def sizes(w):
    proc = pathlib.Path(f"/proc/{w.daemon.process.pid}")
    rss = next(int(line.split()[1]) for line in (proc / "status").read_text().splitlines()
               if line.startswith("VmRSS"))
    return f"{rss / 1024:.0f} MiB, {len(os.listdir(proc / 'fd'))} descriptors"


def round_of(tmp, n):
    disk = tmp / "disk.qcow2"
    harness.qemu_img("create", "-q", "-f", "qcow2", disk, SIZE)
    with World(tmp) as w:
        w.add("disk", disk)
        w.export("disk", name="disk")
        tell("alone", guest(w, 10))
        beside = guest(w, 3600)
        start, early = time.monotonic(), None
        for i in range(n):
            one(w, "disk")
            early = early or (sizes(w) if i >= n // 10 else None)
        took = time.monotonic() - start
        beside.send_signal(signal.SIGINT)  # it tells what it has
        tell(f"beside {n}, {took:.1f} s", beside)
        tell("alone, again", guest(w, 10))
        print(f"the daemon after a tenth: {early}; at the end: {sizes(w)}", flush=True)
    harness.check_image(disk)
    disk.unlink()


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--chaind", default=harness.chaind_path)
    ap.add_argument("--dir", default="/dev/shm")
    ap.add_argument("--n", type=int, default=1000)
    ap.add_argument("--rounds", type=int, default=1)
    args = ap.parse_args()
    harness.chaind_path = args.chaind
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=args.dir) as tmp:
            round_of(pathlib.Path(tmp), args.n)


if __name__ == "__main__":
    main()

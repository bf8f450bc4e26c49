#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server CPU of a request with two builds or more, so exactly that one or two per cent show on a busy
machine. A load that runs freely cannot tell that: how many requests a turn finds moves its CPU per
request by a quarter, and chance decides that. Here the client sends a batch of requests at once and
takes all answers before it sends the next, so that each build does the same work in the same turns;
all servers run at the same time on one processor, the client on another, and take turns batch by
batch of rounds. Name one build twice to see what chance does.

usage: compare-builds.py [--workload rr|fresh] [--rounds N] NAME=PROGRAM...

rr: 4 KiB random reads of a raw file; fresh: 4 KiB writes that each allocate a cluster of an empty
qcow2 image. Images are on tmpfs; ratios are taken within a round.
"""
import argparse
import os
import pathlib
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
import harness  # noqa: E402

BLOCK, CLUSTER, RAW_BYTES, FRESH_BYTES = 4096, 65536, 256 << 20, 64 << 30
N_BATCHES = 200  # in a round
REQUEST, CMD_READ, CMD_WRITE = 0x25609513, 0, 1
OPTION, EXPORT_NAME, STRUCTURED_REPLY = b"IHAVEOPT", 1, 8


class Server:
    """A build with one image and one connection. Reads are answered by structured replies, writes by simple
    ones."""

    def __init__(self, name, program, workload, depth, tmp):
        self.name, self.depth, self.costs = name, depth, []
        self.n_written = 0
        self.is_read = workload == "rr"
        self.answer_bytes = depth * (20 + 8 + BLOCK if self.is_read else 16)
        image = tmp / ("raw" if self.is_read else f"{name}.qcow2")
        if not self.is_read:
            harness.qemu_img("create", "-q", "-f", "qcow2", image, str(FRESH_BYTES))
        arguments = ["--read-only", "--format", "raw"] if self.is_read else ["--format", "qcow2"]
        path = tmp / f"{name}.sock"
        # It sleeps between batches: polling would be counted.
        self.process = subprocess.Popen(["taskset", "-c", "1", program, "--busy-poll", "0", "--nbd", path,
                                         *arguments, image], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        while not path.exists():
            if self.process.poll() is not None:
                sys.exit(f"{program} ends")
            time.sleep(0.02)
        self.client = socket.socket(socket.AF_UNIX)
        self.client.connect(str(path))
        self.handshake()

    def handshake(self):
        self.take(18)
        self.client.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        self.client.sendall(OPTION + struct.pack(">II", STRUCTURED_REPLY, 0))
        self.take(20)
        self.client.sendall(OPTION + struct.pack(">II", EXPORT_NAME, 0))
        self.take(10)

    def take(self, length):
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            n = self.client.recv_into(view)
            if not n:
                sys.exit(f"{self.name} hangs up")
            view = view[n:]

    def batch(self, rng):
        message = bytearray()
        for cookie in range(self.depth):
            if self.is_read:
                off = rng.randrange(RAW_BYTES // BLOCK) * BLOCK
                message += struct.pack(">IHHQQI", REQUEST, 0, CMD_READ, cookie, off, BLOCK)
            else:
                off = self.n_written * CLUSTER % FRESH_BYTES
                self.n_written += 1
                message += struct.pack(">IHHQQI", REQUEST, 0, CMD_WRITE, cookie, off, BLOCK)
                message += b"x" * BLOCK
        return message

    def cpu_ns(self):
        threads = pathlib.Path(f"/proc/{self.process.pid}/task")
        return sum(int((t / "schedstat").read_text().split()[0]) for t in threads.iterdir())

    def round(self):
        rng = random.Random(1)
        batches = [self.batch(rng) for _ in range(N_BATCHES)]
        before = self.cpu_ns()
        for batch in batches:
            self.client.sendall(batch)
            self.take(self.answer_bytes)
        self.costs.append((self.cpu_ns() - before) / N_BATCHES / self.depth)

    def stop(self):
        self.client.close()
        self.process.terminate()
        self.process.wait()


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("builds", nargs="+", metavar="NAME=PROGRAM")
    ap.add_argument("--workload", choices=("rr", "fresh"), default="rr")
    ap.add_argument("--rounds", type=int, default=40)
    ap.add_argument("--depth", type=int, default=32, help="requests in a batch")
    args = ap.parse_args()
    os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory(dir="/dev/shm") as tmp:
        tmp = pathlib.Path(tmp)
        (tmp / "raw").write_bytes(os.urandom(RAW_BYTES))
        servers = [Server(*build.split("=", 1), args.workload, args.depth, tmp) for build in args.builds]
        for server in servers:  # warms up
            server.round()
            server.costs.clear()
        for i in range(args.rounds):
            for server in servers if i % 2 else reversed(servers):
                server.round()
        for server in servers:
            server.stop()
    for server in servers:
        ratios = [cost / first for cost, first in zip(server.costs, servers[0].costs)]
        print(f"{server.name:12} {statistics.median(server.costs) / 1000:6.2f} µs each, "
              f"ratio {quartiles(ratios)}, best {min(server.costs) / 1000:.2f} µs")


main()

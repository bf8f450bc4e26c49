#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks on several loops: a layer that many chains share is open once on each loop that uses it."""
import os
import threading
import time

import nbd

import harness
from harness import Daemon, HANG, KIB, MIB, qemu_img, qemu_io
from qmp_client import Qmp


def n_open(daemon, path):
    """How many descriptors the daemon has of the file."""
    n = 0
    for fd in os.listdir(f"/proc/{daemon.process.pid}/fd"):
        try:
            n += os.readlink(f"/proc/{daemon.process.pid}/fd/{fd}") == str(path)
        except FileNotFoundError:
            pass
    return n


def await_open(daemon, path, wanted):
    deadline = time.monotonic() + HANG
    while n_open(daemon, path) != wanted:
        assert time.monotonic() < deadline, f"{path} is open {n_open(daemon, path)} times"
        time.sleep(0.01)


def make_images(tmp, n):
    """A base with 1s at 64 KiB, and overlays, each with its number at 0."""
    base = tmp / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "4M")
    qemu_io(base, "write -P 1 64k 64k")
    for i in range(n):
        overlay = tmp / f"o{i}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
        qemu_io(overlay, f"write -P {i + 10} 0 4k")
    return base


def connect(tmp, name):
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///{name}?socket={tmp}/n")
    return h


def add(qmp, tmp, i, backing="base"):
    qmp.command("blockdev-add", driver="qcow2", node_name=f"o{i}", backing=backing,
                file={"driver": "file", "filename": str(tmp / f"o{i}.qcow2")})
    qmp.command("block-export-add", type="nbd", id=f"e{i}", node_name=f"o{i}", name=f"o{i}",
                writable=True)


def remove(qmp, i):
    qmp.command("block-export-del", id=f"e{i}", mode="hard")
    deadline = time.monotonic() + HANG
    while any(e["id"] == f"e{i}" for e in qmp.command("query-block-exports")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    qmp.command("blockdev-del", node_name=f"o{i}")


def test_shared_base(tmp):
    """A read-only base is open once on each loop that uses it, and closed with its last user there."""
    n = 6
    base = make_images(tmp, n)
    with Daemon("--loops", "2", "--qmp", tmp / "q", "--nbd", tmp / "n") as d:
        qmp = Qmp(tmp / "q")
        qmp.command("blockdev-add", driver="qcow2", node_name="base", read_only=True,
            file={"driver": "file", "filename": str(base)})
        assert n_open(d, base) == 1
        for i in range(n):
            add(qmp, tmp, i)
        assert n_open(d, base) == 2
        for i in range(n):
            h = connect(tmp, f"o{i}")
            assert h.pread(4 * KIB, 0) == bytes([i + 10]) * 4 * KIB
            assert h.pread(4 * KIB, 64 * KIB) == b"\1" * 4 * KIB
            h.pwrite(b"\7" * 512, 64 * KIB)
            assert h.pread(1 * KIB, 64 * KIB) == b"\7" * 512 + b"\1" * 512
            h.shutdown()
        for i in range(n):
            remove(qmp, i)
        await_open(d, base, 1)
        add(qmp, tmp, 0)
        add(qmp, tmp, 1)
        await_open(d, base, 2)
        for i in range(2):
            assert connect(tmp, f"o{i}").pread(1 * KIB, 64 * KIB) == b"\7" * 512 + b"\1" * 512
            remove(qmp, i)
        qmp.command("blockdev-del", node_name="base")
        await_open(d, base, 0)


def test_shared_chain(tmp):
    """So is a chain of read-only layers that are named one by one."""
    n = 4
    base = make_images(tmp, n)
    middle = tmp / "middle.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", middle)
    qemu_io(middle, "write -P 2 128k 64k")
    with Daemon("--loops", "2", "--qmp", tmp / "q", "--nbd", tmp / "n") as d:
        qmp = Qmp(tmp / "q")
        for name, path, more in ("base", base, {}), ("middle", middle, {"backing": "base"}):
            qmp.command("blockdev-add", driver="qcow2", node_name=name, read_only=True,
                file={"driver": "file", "filename": str(path)}, **more)
        for i in range(n):
            add(qmp, tmp, i, "middle")
        assert n_open(d, base) == n_open(d, middle) == 2
        for i in range(n):
            h = connect(tmp, f"o{i}")
            for byte, off in (i + 10, 0), (1, 64 * KIB), (2, 128 * KIB), (0, MIB):
                assert h.pread(4 * KIB, off) == bytes([byte]) * 4 * KIB, (i, off)
            h.shutdown()
        for i in range(n):
            remove(qmp, i)
        await_open(d, middle, 1)
        await_open(d, base, 1)
        qmp.command("blockdev-del", node_name="middle")
        qmp.command("blockdev-del", node_name="base")
        await_open(d, base, 0)


def cpu_times(daemon):
    """How long each loop has run, in ns, by the name of its thread. Unlike the number of times that it
    slept, no load beside it changes that."""
    times = {}
    for task in os.listdir(f"/proc/{daemon.process.pid}/task"):
        try:
            with open(f"/proc/{daemon.process.pid}/task/{task}/comm", encoding="utf-8") as f:
                name = f.read().strip()
            with open(f"/proc/{daemon.process.pid}/task/{task}/schedstat", encoding="utf-8") as f:
                ran = int(f.read().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # a worker that ended
        if name.startswith(("loop-", "io")):
            times[name] = ran
    return times


def serving_loop(daemon, h):
    """The thread that answers this client: it runs with each request. Others may still have something
    to finish, such as closing what moved away; then requests go on until one loop runs alone."""
    deadline = time.monotonic() + HANG
    while True:
        before = cpu_times(daemon)
        for _ in range(500):
            h.pread(512, 0)
        more = {name: n - before.get(name, 0) for name, n in cpu_times(daemon).items()}
        first, second = sorted(more, key=more.get, reverse=True)[:2]
        if more[first] > 10 * more[second] + 500_000:
            return first
        assert time.monotonic() < deadline, more


class Writer(threading.Thread):
    """A client that writes and reads what it wrote until it is told to end."""

    def __init__(self, h):
        super().__init__()
        self.h, self.is_over, self.n = h, False, 0
        self.fault = None

    def run(self):
        try:
            while not self.is_over:
                self.n += 1
                block = self.n.to_bytes(8, "little") * 512
                off = self.n % 512 * 4 * KIB
                self.h.pwrite(block, off)
                assert self.h.pread(len(block), off) == block
        except Exception as e:  # told by the test
            self.fault = e

    def finish(self):
        self.is_over = True
        self.join()
        if self.fault:
            raise self.fault


def start(tmp, *args):
    return Daemon("--loops", "2", "--busy-poll", "0", "--qmp", tmp / "q", "--nbd", tmp / "n", *args)


def add_iothreads(qmp, *ids):
    for i in ids:
        qmp.command("object-add", qom_type="iothread", id=i)


def add_export(qmp, node, name, **more):
    qmp.command("block-export-add", type="nbd", id=name, node_name=node, name=name, **more)


def test_iothread(tmp):
    """An export with an iothread moves its node to that loop, with the clients that write meanwhile."""
    base = make_images(tmp, 1)
    with start(tmp) as d:
        qmp = Qmp(tmp / "q")
        add_iothreads(qmp, "first", "second")
        add_base = {"driver": "qcow2", "node-name": "base", "read-only": True,
                    "file": {"driver": "file", "filename": str(base)}}
        qmp.command("blockdev-add", driver="qcow2", node_name="o0", backing=add_base,
                    file={"driver": "file", "filename": str(tmp / "o0.qcow2")})
        add_export(qmp, "o0", "o0", writable=True)
        writer, probe = Writer(connect(tmp, "o0")), connect(tmp, "o0")
        assert serving_loop(d, probe).startswith("loop-")
        writer.start()
        for thread, loop in (("first", "io0-0"), ("second", "io1-0"), ("first", "io0-0")):
            n = writer.n
            add_export(qmp, "o0", loop, iothread=thread)
            qmp.command("block-export-del", id=loop)
            deadline = time.monotonic() + HANG
            while writer.n < n + 10 and writer.is_alive():
                assert time.monotonic() < deadline
                time.sleep(0.001)
        writer.finish()
        assert serving_loop(d, probe) == "io0-0"
        # The object's name is free, and the loop goes on.
        qmp.command("object-del", id="first")
        assert serving_loop(d, probe) == "io0-0"
        add_iothreads(qmp, "third")
        add_export(qmp, "o0", "third", iothread="third")
        assert serving_loop(d, connect(tmp, "third")) == "io0-0"
    harness.check_image(tmp / "o0.qcow2")


def test_fixed_iothread(tmp):
    """A node that an export keeps on its loop does not move: others come to it, or are refused."""
    for name in "a", "d":
        qemu_img("create", "-q", "-f", "raw", tmp / f"{name}.raw", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp}/d.raw", tmp / "a.qcow2", "1M")
    refusal = "Cannot change iothread of active block backend"
    with start(tmp) as d:
        qmp = Qmp(tmp / "q")
        add_iothreads(qmp, "first", "second")
        for name in "a.qcow2", "d.raw":
            qmp.command("blockdev-add", driver="file", node_name=name[0], read_only=True,
                        filename=str(tmp / name))
        add_export(qmp, "a", "a0", iothread="first", fixed_iothread=True)
        assert qmp.error("block-export-add", type="nbd", id="a1", node_name="a", name="a1",
                         iothread="second", fixed_iothread=True) == refusal
        add_export(qmp, "a", "a1", iothread="second")
        assert serving_loop(d, connect(tmp, "a1")) == "io0-0"
        # What is joined to it comes to its loop, although there is more of that.
        for name in "r1", "r2":
            qmp.command("blockdev-add", driver="raw", node_name=name, file="d", read_only=True)
        add_export(qmp, "r1", "r1")
        assert serving_loop(d, connect(tmp, "r1")).startswith("loop-")
        qmp.command("blockdev-add", driver="qcow2", node_name="q", read_only=True, file="a",
                    data_file="d")
        assert serving_loop(d, connect(tmp, "r1")) == "io0-0"
        qmp.command("blockdev-del", node_name="q")
        # Two that stay where they are cannot be joined.
        qmp.command("block-export-del", id="r1")
        add_export(qmp, "d", "d0", iothread="second", fixed_iothread=True)
        assert serving_loop(d, connect(tmp, "d0")) == "io1-0"
        assert qmp.error("blockdev-add", driver="qcow2", node_name="q", read_only=True, file="a",
                         data_file="d") == refusal
        qmp.command("block-export-del", id="d0", mode="hard")
        qmp.event("BLOCK_EXPORT_DELETED")
        qmp.command("blockdev-add", driver="qcow2", node_name="q", read_only=True, file="a",
                    data_file="d")


def test_end_beside_a_layer_that_stayed(tmp):
    """A disk that went to an iothread ends at once, though a layer of it stayed on another loop"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base", MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", tmp / "base", tmp / "top")
    for _ in range(5):
        with Daemon("--qmp", tmp / "qmp", "--loops", 2) as d:
            qmp = Qmp(tmp / "qmp")
            qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp / "nbd")}})
            qmp.command("object-add", qom_type="iothread", id="io")
            qmp.command("blockdev-add", driver="qcow2", node_name="top",
                        file={"driver": "file", "filename": str(tmp / "top")})
            add_export(qmp, "top", "disk", iothread="io", fixed_iothread=True)
            qmp.close()
            begun = time.monotonic()
            d.stop()
            assert time.monotonic() - begun < HANG / 2


if __name__ == "__main__":
    harness.main(globals())

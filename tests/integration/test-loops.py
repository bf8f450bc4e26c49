#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks on several loops: a layer that many chains share is open once on each loop that uses it."""
import json
import os
import socket
import time

import nbd

import harness
from harness import Daemon, HANG, KIB, MIB, qemu_img, qemu_io


class Qmp:
    """A client of the daemon's monitor."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        message = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            reply = json.loads(self.lines.readline())
            if "event" not in reply:
                break
        assert "return" in reply, (command, arguments, reply)
        return reply["return"]


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
    qmp("blockdev-add", driver="qcow2", node_name=f"o{i}", backing=backing,
        file={"driver": "file", "filename": str(tmp / f"o{i}.qcow2")})
    qmp("block-export-add", type="nbd", id=f"e{i}", node_name=f"o{i}", name=f"o{i}", writable=True)


def remove(qmp, i):
    qmp("block-export-del", id=f"e{i}", mode="hard")
    deadline = time.monotonic() + HANG
    while any(e["id"] == f"e{i}" for e in qmp("query-block-exports")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    qmp("blockdev-del", node_name=f"o{i}")


def test_shared_base(tmp):
    """A read-only base is open once on each loop that uses it, and closed with its last user there."""
    n = 6
    base = make_images(tmp, n)
    with Daemon("--loops", "2", "--qmp", tmp / "q", "--nbd", tmp / "n") as d:
        qmp = Qmp(tmp / "q")
        qmp("blockdev-add", driver="qcow2", node_name="base", read_only=True,
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
        qmp("blockdev-del", node_name="base")
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
            qmp("blockdev-add", driver="qcow2", node_name=name, read_only=True,
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
        qmp("blockdev-del", node_name="middle")
        qmp("blockdev-del", node_name="base")
        await_open(d, base, 0)


if __name__ == "__main__":
    harness.main(globals())

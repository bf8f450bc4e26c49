#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Layers that another program changes while they are served: it is told, and nothing is built on them;
what only looks like it is not.

usage: test-changed.py [--chaind PATH] [WORD]...
"""
import os
import time

from harness import HANG, Daemon, main, qemu_img, qemu_io, run, says
from qmp_client import Qmp

MIB = 1 << 20


class World:
    """base ← top, served, with a monitor."""

    def __init__(self, tmp, fmt, *args):
        self.tmp, self.fmt = tmp, fmt
        self.base = tmp / f"base.{fmt}"
        qemu_img("create", "-q", "-f", fmt, self.base, 4 * MIB)
        qemu_io(self.base, "write -P 1 0 4M", fmt=fmt)
        qemu_img("create", "-q", "-f", "qcow2", "-b", self.base, "-F", fmt, tmp / "top.qcow2")
        self.daemon = Daemon("--qmp", tmp / "qmp", *args)
        self.qmp = Qmp(tmp / "qmp")
        self.options = {"driver": fmt, "node-name": "base",
                        "file": {"driver": "file", "filename": str(self.base)}}
        self.qmp.command("blockdev-add", **self.options, read_only=True)
        self.qmp.command("blockdev-add", driver="qcow2", node_name="top", backing="base",
                         file={"driver": "file", "filename": str(tmp / "top.qcow2")})
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(tmp / "nbd")}})
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="top", name="e",
                         writable=True)
        self.n_overlays = 0

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *why):
        self.qmp.close()
        self.daemon.__exit__(*why)

    def snapshot(self, command):
        top = f"over{self.n_overlays}" if self.n_overlays else "top"
        self.n_overlays += 1
        arguments = {"node-name": top, "snapshot-node-name": f"over{self.n_overlays}",
                     "snapshot-file": str(self.tmp / f"over{self.n_overlays}.qcow2")}
        return command("blockdev-snapshot-sync", **arguments)

    def io(self, *commands):
        qemu_io(f"nbd+unix:///e?socket={self.tmp}/nbd", *commands, fmt="raw")

    def reopen(self, command, read_only):
        return command("blockdev-reopen", options=[{**self.options, "read-only": read_only}])

    def is_refused(self):
        why = "was changed by another program"
        says(self.snapshot(self.qmp.error), self.base, why)
        self.n_overlays -= 1
        says(self.qmp.error("blockdev-snapshot-internal-sync", device="top", name="s"), why)
        says(self.reopen(self.qmp.error, False), self.base, why)
        deadline = time.monotonic() + HANG  # the log may come after the reply
        while "was changed from outside" not in self.daemon.log() and time.monotonic() < deadline:
            time.sleep(0.01)
        says(self.daemon.log(), self.base.name, "was changed from outside")

    def is_allowed(self):
        top = f"over{self.n_overlays}" if self.n_overlays else "top"
        self.qmp.command("blockdev-snapshot-internal-sync", device=top, name="s")
        self.snapshot(self.qmp.command)
        self.reopen(self.qmp.command, False)
        self.reopen(self.qmp.command, True)
        self.snapshot(self.qmp.command)


def overwrite(path, off, data):
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)


def test_written(tmp):
    """A raw layer into which another program writes is not built on, even if it was reopened."""
    with World(tmp, "raw", "--loops", 1) as w:
        overwrite(w.base, 0, b"x")
        w.is_refused()
        says(w.reopen(w.qmp.error, True), "its first bytes")
        w.is_refused()
        w.io("write -P 2 0 64k", "read -P 2 0 64k")  # what goes on goes on
        text = w.daemon.log()
        assert text.count("was changed from outside") == 1, text


def test_written_in_the_middle(tmp):
    """The time of the last write tells of what is neither at the start nor longer."""
    with World(tmp, "qcow2") as w:
        overwrite(w.base, 3 * MIB, b"x")
        w.is_refused()


def test_longer(tmp):
    """A layer that became longer is not built on."""
    with World(tmp, "raw") as w:
        os.truncate(w.base, 5 * MIB)
        says(w.snapshot(w.qmp.error), "its size")


def test_told_at_once(tmp):
    """The log tells of it before anybody asks."""
    with World(tmp, "qcow2") as w:
        overwrite(w.base, 3 * MIB, b"x")
        end = time.monotonic() + HANG
        while "was changed from outside" not in w.daemon.log():
            assert time.monotonic() < end, w.daemon.log()
            time.sleep(0.01)


def test_touched(tmp):
    """Of a layer that was only touched the user can say so."""
    with World(tmp, "qcow2") as w:
        os.utime(w.base)
        w.is_refused()
        w.reopen(w.qmp.command, True)
        w.is_allowed()


def test_nothing_happened(tmp):
    """Reads, locks and what chaind writes itself are no changes by others."""
    for fmt in ("raw", "qcow2"):
        folder = tmp / fmt
        folder.mkdir()
        with World(folder, fmt) as w:
            os.utime(w.base, ns=(0, os.stat(w.base).st_mtime_ns))  # the time of the last read
            os.chmod(w.base, 0o600)
            run("qemu-io", "-r", "-f", fmt, "-c", "read 0 4M", w.base)
            run("qemu-io", "-f", fmt, "-c", "write 0 4k", w.base, check=False)  # it is locked
            for i in range(4):
                w.io(f"write -P {i} {i}M 1M", f"discard {i}M 64k", f"write -P {i} {i}M 32k")
                w.snapshot(w.qmp.command)
            w.is_allowed()
            assert "outside" not in w.daemon.log(), w.daemon.log()


main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes that are inactive, as at the two ends of a migration: a disk is handed from one daemon to
another and back while clients of both are connected, in nodes of every make; what was written on one
side is seen on the other, and nobody writes on both. Replies word by word are in ../qmp/active.qmp.

usage: test-active.py [--chaind PATH] [WORD]...
"""
import contextlib
import errno
import os

import nbd

from harness import Daemon, main, qemu_img, run, says
from qmp_client import Qmp

MIB = 1 << 20
SIZE = 4 * MIB


class End:
    """One of the two daemons."""

    def __init__(self, tmp, name):
        self.tmp, self.name = tmp, name
        self.daemon = Daemon("--qmp", tmp / f"{name}.qmp")
        self.qmp = Qmp(tmp / f"{name}.qmp")
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(tmp / f"{name}.nbd")}})
        self.qmp.command("object-add", qom_type="throttle-group", id="g")

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *why):
        self.qmp.close()
        self.daemon.__exit__(*why)

    def add(self, name, active, options):
        """Nodes that are named come first: {"file": ("n", {...})}"""
        options = {key: self.add(*value[:1], active, value[1]) if isinstance(value, tuple) else value
                   for key, value in options.items()}
        self.qmp.command("blockdev-add", **options, node_name=name,
                         **({} if active else {"active": False}))
        return name

    def export(self, name="n"):
        self.qmp.command("block-export-add", type="nbd", id="e", node_name=name, name="e",
                         writable=True, allow_inactive=True)
        return self.client()

    def client(self):
        return Client(f"nbd+unix:///e?socket={self.tmp / (self.name + '.nbd')}")

    def set_active(self, active, name="n"):
        self.qmp.command("blockdev-set-active", node_name=name, active=active)

    def node(self, name="n"):
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        return next(n for n in nodes if n["node-name"] == name)

    def bitmaps(self):
        return {b["name"]: b["count"] for b in self.node().get("dirty-bitmaps", [])}


class Client:
    """It stays connected."""

    def __init__(self, uri):
        self.nbd = nbd.NBD()
        self.nbd.connect_uri(uri)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.nbd.shutdown()

    def write(self, pattern, off=0, size=MIB):
        self.nbd.pwrite(bytes([pattern]) * size, off)

    def reads(self, pattern, off=0, size=MIB):
        assert self.nbd.pread(size, off) == bytes([pattern]) * size, f"not {pattern} at {off}"

    def is_refused(self):
        for name, do in (("write", lambda: self.write(9, 0, 65536)),
                         ("trim", lambda: self.nbd.trim(65536, 0)),
                         ("zero", lambda: self.nbd.zero(65536, 0))):
            try:
                do()
            except nbd.Error as error:
                assert error.errnum == errno.EPERM, f"{name}: {error}"
            else:
                raise AssertionError(f"an inactive node let a {name} in")


def locked_bytes(path):
    """Those in /proc/locks: 100 and more are held, 200 and more not shared."""
    inode, found = os.stat(path).st_ino, set()
    with open("/proc/locks", encoding="ascii") as f:
        for words in map(str.split, f):
            if words[1] == "OFDLCK" and int(words[5].split(":")[2]) == inode:
                found |= set(range(int(words[6]), int(words[7]) + 1))
    return found


def file(path):
    return {"driver": "file", "filename": str(path)}


def throttle(below):
    return {"driver": "throttle", "throttle-group": "g", "file": below}


# Of each make: its options, and the files that are written.
KINDS = {
    "qcow2": lambda t: ({"driver": "qcow2", "file": file(t / "q.qcow2")}, ["q.qcow2"]),
    "qcow2, a node's file": lambda t: (
        {"driver": "qcow2", "file": ("f", file(t / "q.qcow2"))}, ["q.qcow2"]),
    "qcow2 over another": lambda t: ({"driver": "qcow2", "file": file(t / "o.qcow2")}, ["o.qcow2"]),
    "qcow2 over a node": lambda t: (
        {"driver": "qcow2", "file": file(t / "o.qcow2"),
         "backing": ("b", {"driver": "qcow2", "file": file(t / "q.qcow2"), "read-only": True})},
        ["o.qcow2"]),
    "qcow2 and its data file": lambda t: ({"driver": "qcow2", "file": file(t / "d.qcow2")},
                                          ["d.qcow2", "d.raw"]),
    "raw": lambda t: ({"driver": "raw", "file": file(t / "r.raw")}, ["r.raw"]),
    "raw, a node's file": lambda t: ({"driver": "raw", "file": ("f", file(t / "r.raw"))}, ["r.raw"]),
    "file": lambda t: (file(t / "r.raw"), ["r.raw"]),
    "a filter": lambda t: (
        {**throttle(("q", {"driver": "qcow2", "file": file(t / "q.qcow2")}))}, ["q.qcow2"]),
    "qcow2 behind a filter": lambda t: ({"driver": "qcow2", "file": throttle(file(t / "q.qcow2"))},
                                        ["q.qcow2"]),
    "raw over qcow2": lambda t: (
        {"driver": "raw", "file": ("q", {"driver": "qcow2", "file": file(t / "q.qcow2")})},
        ["q.qcow2"]),
}


def images(tmp):
    qemu_img("create", "-q", "-f", "qcow2", tmp / "q.qcow2", SIZE)
    qemu_img("create", "-q", "-f", "raw", tmp / "r.raw", SIZE)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "q.qcow2", "-F", "qcow2", "o.qcow2", cwd=tmp)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "d.qcow2", SIZE, cwd=tmp)


@contextlib.contextmanager
def two_ends(tmp, options):
    """`a` is active, and `b` is not."""
    with End(tmp, "a") as a, End(tmp, "b") as b:
        a.add("n", True, options)
        b.add("n", False, options)
        yield a, b


def check_kind(tmp, kind):
    images(tmp)
    options, files = KINDS[kind](tmp)
    with two_ends(tmp, options) as (a, b), a.export() as of_a, b.export() as of_b:
        assert (a.node()["active"], b.node()["active"]) == (True, False)
        assert not b.node()["ro"]
        of_b.reads(0)  # and so remembers what there is now
        for byte in range(1, 4):
            of_a.write(byte)
            of_b.is_refused()
            a.set_active(False)
            for name in files:
                assert not locked_bytes(tmp / name) & {101, 103, 201, 203}, f"{name} is kept"
            of_a.is_refused()
            b.set_active(True)
            for name in files:
                assert {101, 201} <= locked_bytes(tmp / name), f"{name} is not locked"
            of_b.reads(byte)
            of_b.write(byte + 10, MIB)
            of_b.nbd.trim(MIB, 2 * MIB)
            b.set_active(False)
            a.set_active(True)
            of_a.reads(byte)
            of_a.reads(byte + 10, MIB)
            of_a.write(byte + 20, 2 * MIB)
    for name in files:
        if name.endswith(".qcow2"):
            qemu_img("check", "-q", name, cwd=tmp)


def add_tests():
    for kind in KINDS:
        def test(tmp, kind=kind):
            check_kind(tmp, kind)
        test.__doc__ = f"A disk is handed over and back while clients are connected: {kind}."
        globals()["test_" + "".join(c if c.isalnum() else "_" for c in kind)] = test


def test_new_size_and_content(tmp):
    """What another program made of an image meanwhile is there: its size, snapshots, and bitmaps."""
    images(tmp)
    with End(tmp, "a") as a:
        a.add("n", True, {"driver": "qcow2", "file": file(tmp / "q.qcow2")})
        for name, persistent in (("stored", True), ("own", False)):
            a.qmp.command("block-dirty-bitmap-add", node="n", name=name, persistent=persistent)
        with a.export() as client:
            client.write(1, 0, 65536)
            assert a.bitmaps() == {"stored": 65536, "own": 65536}
            a.set_active(False)
            assert a.bitmaps() == {"own": 65536}, "what the image stores may be another's now"
            qemu_img("snapshot", "-c", "s", tmp / "q.qcow2")
            qemu_img("bitmap", "--add", tmp / "q.qcow2", "new")
            a.set_active(True)
            client.reads(1, 0, 65536)
        image = a.node()["image"]
        assert [s["name"] for s in image["snapshots"]] == ["s"], image
        assert a.bitmaps() == {"stored": 65536, "new": 0, "own": SIZE}, a.bitmaps()
    with End(tmp, "b") as b:
        b.add("n", False, {"driver": "qcow2", "file": file(tmp / "d.qcow2")})
        qemu_img("resize", "-q", "-f", "qcow2", "d.qcow2", 2 * SIZE, cwd=tmp)
        with b.export():
            assert b.node()["image"]["virtual-size"] == SIZE
            b.set_active(True)
            assert b.node()["image"]["virtual-size"] == 2 * SIZE
        with b.client() as client:
            client.write(1, 2 * SIZE - MIB)
    with End(tmp, "c") as c:
        c.add("n", True, {"driver": "raw", "file": file(tmp / "r.raw")})
        c.qmp.command("block-dirty-bitmap-add", node="n", name="own")
        c.set_active(False)
        os.truncate(tmp / "r.raw", 2 * SIZE)
        c.set_active(True)
        assert c.bitmaps() == {"own": 2 * SIZE}, c.bitmaps()
        with c.export() as client:
            client.write(1, 2 * SIZE - MIB)


def test_refused(tmp):
    """A node stays inactive while another program has its image, or where that lies over another."""
    images(tmp)
    with two_ends(tmp, {"driver": "qcow2", "file": file(tmp / "o.qcow2")}) as (a, b):
        with b.export() as client:
            says(b.qmp.error("blockdev-set-active", node_name="n", active=True), "o.qcow2",
                 "in use by chaind")
            assert not b.node()["active"]
            client.reads(0)
            a.set_active(False)
            qemu_img("rebase", "-u", "-f", "qcow2", "-b", "", tmp / "o.qcow2")
            for _ in range(2):
                says(b.qmp.error("blockdev-set-active", node_name="n", active=True), "q.qcow2",
                     "backing file", "add it anew")
                client.reads(0)
            over = ("-b", "q.qcow2", "-F", "qcow2", tmp / "o.qcow2")
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", *over, cwd=tmp)
            says(b.qmp.error("blockdev-set-active", node_name="n", active=True), "other clusters",
                 "add it anew")
            client.reads(0)
            run("qemu-img", "create", "-q", "-f", "qcow2", *over, cwd=tmp)
            b.set_active(True)
            client.write(7)
            says(a.qmp.error("blockdev-set-active", node_name="n", active=True), "in use by chaind")


def test_shared_file(tmp):
    """Of two images in one file one is active: the file stays its own, and no other comes to write it"""
    images(tmp)
    file_node = file(tmp / "q.qcow2")
    with End(tmp, "a") as a:
        a.add("f", True, file_node)
        a.add("n", True, {"driver": "qcow2", "file": "f"})
        a.add("r", False, {"driver": "raw", "file": "f"})
        for active in (True, False):
            a.set_active(active, "r")
            assert {101, 201, 203} <= locked_bytes(tmp / "q.qcow2"), active
        a.qmp.command("blockdev-del", node_name="n")
        a.qmp.command("blockdev-del", node_name="r")
        a.add("n", False, {"driver": "qcow2", "file": "f"})
        a.add("m", True, {"driver": "qcow2", "file": "f"})
        says(a.qmp.error("blockdev-set-active", node_name="n", active=True), "'m'", "'f'")
        a.qmp.command("blockdev-del", node_name="m")
        a.set_active(True)


def test_odd_size(tmp):
    """A disk that ends inside a sector is written after it was made active."""
    (tmp / "r.raw").write_bytes(bytes(MIB + 100))
    with End(tmp, "a") as a:
        a.add("n", False, {"driver": "raw", "file": file(tmp / "r.raw")})
        with a.export() as client:
            client.is_refused()
            a.set_active(True)
            client.write(3, MIB, 100)
            a.set_active(False)
            client.is_refused()
    assert (tmp / "r.raw").read_bytes()[MIB:] == bytes([3]) * 100


add_tests()
main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes that become writable and read-only again at run time, of every make: what other programs may
do with the files meanwhile, who is named when they are in the way, and what the files hold then.
Replies word by word are in ../qmp.

usage: test-modes.py [--chaind PATH] [WORD]...
"""
import os
import subprocess
import sys

from harness import Daemon, main, qemu_img, qemu_io, run, says
from qmp_client import Qmp

MIB = 1 << 20


class Holder:
    """Another program that reads a file as a format does, which keeps others from writing it."""

    CODE = """if True:
        import fcntl, struct, sys
        f = open(sys.argv[1], "rb")
        for byte in (100, 201, 203):
            fcntl.fcntl(f, 37, struct.pack("hhqqi", fcntl.F_RDLCK, 0, byte, 1, 0))  # F_OFD_SETLK
        print(flush=True)
        sys.stdin.read()"""

    def __init__(self, path):
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE, path],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()

    def __enter__(self):
        return self.process

    def __exit__(self, *_):
        self.process.communicate()


class World:
    """chaind with a monitor and an NBD server."""

    def __init__(self, tmp, *args):
        self.tmp = tmp
        self.daemon = Daemon("--qmp", tmp / "qmp", *args)
        self.qmp = Qmp(tmp / "qmp")
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(tmp / "nbd")}})
        self.qmp.command("object-add", qom_type="throttle-group", id="g")

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *why):
        self.qmp.close()
        self.daemon.__exit__(*why)

    def set_mode(self, options, read_only):
        self.qmp.command("blockdev-reopen", options=[{**options, "read-only": read_only}])

    def refused(self, options, read_only):
        return self.qmp.error("blockdev-reopen", options=[{**options, "read-only": read_only}])


def locked_bytes(path):
    """Those in /proc/locks: 100 and more are held, 200 and more not shared."""
    inode, found = os.stat(path).st_ino, set()
    with open("/proc/locks", encoding="ascii") as f:
        for words in map(str.split, f):
            if words[1] == "OFDLCK" and int(words[5].split(":")[2]) == inode:
                found |= set(range(int(words[6]), int(words[7]) + 1))
    return found


def images(tmp):
    qemu_img("create", "-q", "-f", "qcow2", tmp / "q.qcow2", MIB)
    qemu_img("create", "-q", "-f", "raw", tmp / "r.raw", MIB)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "d.qcow2", MIB, cwd=tmp)


def file(path):
    return {"driver": "file", "filename": str(path)}


def throttle(below):
    return {"driver": "throttle", "throttle-group": "g", "file": below}


def named(qmp, name, options):
    qmp.command("blockdev-add", **options, node_name=name)
    return name


# Name of a kind: its options, and the files that lie below, where other programs are in the way.
KINDS = {
    "qcow2, its own file": lambda q, t: ("qcow2", {"file": file(t / "q.qcow2")}, ["q.qcow2"]),
    "qcow2, a node's file": lambda q, t: (
        "qcow2", {"file": named(q, "f", {**file(t / "q.qcow2"), "auto-read-only": True})},
        ["q.qcow2"]),
    "qcow2 and its data file": lambda q, t: ("qcow2", {"file": file(t / "d.qcow2")},
                                             ["d.qcow2", "d.raw"]),
    "qcow2 and a node's data file": lambda q, t: (
        "qcow2", {"file": file(t / "d.qcow2"), "data-file": named(q, "f", file(t / "d.raw"))},
        ["d.qcow2", "d.raw"]),
    "raw": lambda q, t: ("raw", {"file": file(t / "r.raw")}, ["r.raw"]),
    "raw, a node's file": lambda q, t: ("raw", {"file": named(q, "f", file(t / "r.raw"))},
                                        ["r.raw"]),
    "qcow2 behind a filter": lambda q, t: ("qcow2", {"file": throttle(file(t / "q.qcow2"))},
                                           ["q.qcow2"]),
    "raw behind a node that is a filter": lambda q, t: (
        "raw", {"file": named(q, "t", throttle(named(q, "f", file(t / "r.raw"))))}, ["r.raw"]),
}


def check_kind(tmp, kind):
    images(tmp)
    with World(tmp) as w:
        driver, children, files = KINDS[kind](w.qmp, tmp)
        options = {"driver": driver, "node-name": "n", **children}
        w.qmp.command("blockdev-add", **options, read_only=True)
        fmt = "qcow2" if driver == "qcow2" else "raw"
        image = files[0]

        def is_locked_for(writing):
            held = {100, 201, 203} | ({101, 103} if writing else set())
            for name in files:
                assert locked_bytes(tmp / name) == held, f"{name}: {locked_bytes(tmp / name)}"
                done = run("qemu-io", "-f", "raw", "-c", "read 0 512", tmp / name, check=False)
                says(done.stdout + done.stderr, "lock")

        for byte in (1, 2):
            is_locked_for(False)
            for name in files:  # a reader does not let others write
                with Holder(tmp / name) as other:
                    says(w.refused(options, False), name, "python3", other.pid)
            w.set_mode(options, False)
            is_locked_for(True)
            w.qmp.command("block-export-add", type="nbd", id="e", node_name="n", writable=True)
            qemu_io(f"nbd+unix:///n?socket={tmp}/nbd", f"write -P {byte} 64k 64k", fmt="raw")
            says(w.refused(options, True), "read-write users")
            w.qmp.command("block-export-del", id="e", mode="hard")
            w.qmp.event("BLOCK_EXPORT_DELETED")
            w.set_mode(options, True)
            is_locked_for(False)
            run("qemu-io", "-r", "-f", fmt, "-c", f"read -P {byte} 64k 64k", image, cwd=tmp)
    if fmt == "qcow2":
        run("qemu-img", "check", image, cwd=tmp)


def add_tests():
    for kind in KINDS:
        def test(tmp, kind=kind):
            check_kind(tmp, kind)
        test.__doc__ = f"{kind}: becomes writable and read-only again."
        globals()[f"test_{kind.replace(', ', '_').replace(' ', '_').replace(chr(39), '')}"] = test


def test_two_loops(tmp):
    """What chains on two loops read is not changed until one of them has let go."""
    images(tmp)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "q.qcow2", "-F", "qcow2", "b.qcow2", cwd=tmp)
    with World(tmp, "--loops", 2) as w:
        base = {"driver": "qcow2", "node-name": "base", "backing": None,
                "file": file(tmp / "q.qcow2")}
        below = {"driver": "qcow2", "node-name": "below", "backing": "base",
                 "file": file(tmp / "b.qcow2")}
        w.qmp.command("blockdev-add", **base, read_only=True)
        w.qmp.command("blockdev-add", **below, read_only=True)
        for name in ("o1", "o2"):
            qemu_img("create", "-q", "-f", "qcow2", tmp / name, MIB)
            w.qmp.command("blockdev-add", driver="qcow2", node_name=name, backing="below",
                          file=file(tmp / name))
        says(w.refused(below, False), "below", "2 loops", "'o1'", "'o2'")
        says(w.qmp.error("change-backing-file", device="o1", image_node_name="below",
                         backing_file="x"), "2 loops")
        says(w.qmp.error("block_resize", node_name="below", size=2 * MIB), "backing hd of 'o2'")
        w.qmp.command("blockdev-del", node_name="o2")
        w.set_mode(below, False)
        w.set_mode(below, True)
        w.qmp.command("change-backing-file", device="o1", image_node_name="below",
                      backing_file="q.qcow2")


READING, WRITING = {100, 201, 203}, {100, 101, 103, 201, 203}


def check_shared(w, path, name):
    """What holds `name`, a file or a filter over it, is what its users need, whoever came last."""
    def is_locked_for(wanted, when):
        assert locked_bytes(path) == wanted, f"{name}, {when}: {locked_bytes(path)}"

    image = {"driver": "qcow2", "node-name": "n", "file": name}
    raw = {"driver": "raw", "node-name": "r", "file": name}
    w.qmp.command("blockdev-add", **image)
    w.qmp.command("blockdev-add", **raw, read_only=True)
    is_locked_for(WRITING, "an image is written and its bytes are read")
    w.set_mode(image, True)
    is_locked_for(READING, "both read")
    w.set_mode(image, False)
    w.qmp.command("blockdev-del", node_name="r")
    is_locked_for(WRITING, "who only read has gone")
    w.qmp.command("blockdev-add", **raw, read_only=True)
    w.qmp.command("blockdev-del", node_name="n")
    is_locked_for(READING, "who wrote has gone")
    w.set_mode(raw, False)
    w.qmp.command("blockdev-add", **{**raw, "node-name": "r2"})
    w.set_mode(raw, True)
    is_locked_for(WRITING, "one of two does not write any more")
    w.qmp.command("blockdev-del", node_name="r")
    is_locked_for(WRITING, "the one that wrote stays")
    w.qmp.command("blockdev-del", node_name="r2")
    is_locked_for(set(), "all have gone")
    for export, writable in (("reads", False), ("writes", True)):
        w.qmp.command("block-export-add", type="nbd", id=export, node_name=name, name=export,
                      writable=writable)
    for export, left in (("writes", READING), ("reads", set())):
        w.qmp.command("block-export-del", id=export)
        w.qmp.event("BLOCK_EXPORT_DELETED")
        is_locked_for(left, f"the export that {export} has gone")


def test_users_of_one_file(tmp):
    """A file is locked for all who use it, and for those who are left when one goes."""
    images(tmp)
    with World(tmp) as w:
        w.qmp.command("blockdev-add", **file(tmp / "q.qcow2"), node_name="f")
        w.qmp.command("blockdev-add", **throttle("f"), node_name="t")
        check_shared(w, tmp / "q.qcow2", "f")
        check_shared(w, tmp / "q.qcow2", "t")


def test_refused_user(tmp):
    """An image that cannot be opened leaves its file as it was locked before."""
    images(tmp)
    (tmp / "bad.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(65528))
    with World(tmp) as w:
        w.qmp.command("blockdev-add", **file(tmp / "bad.qcow2"), node_name="f")
        for wanted in (set(), READING):
            w.qmp.error("blockdev-add", driver="qcow2", node_name="n", file="f")
            assert locked_bytes(tmp / "bad.qcow2") == wanted, locked_bytes(tmp / "bad.qcow2")
            if not wanted:
                w.qmp.command("blockdev-add", driver="raw", node_name="r", file="f", read_only=True)


add_tests()
main(globals())

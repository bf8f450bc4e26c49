#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Transactions that fail at one of their steps, over disks on several loops, while guests write: nothing
of them is left, and nothing that guests wrote is lost. That all of one takes effect at one moment is
test-snapshot.py's. The order of the steps is ../daemon/test-qmp-transaction.c's.

usage: test-transaction.py [--chaind PATH] [WORD]...
"""
import os
import random
import threading

from harness import Daemon, connect, main, qemu_img, qemu_io, run, says
from qmp_client import Qmp

BLOCK = 64 << 10
BLOCKS = 64
SIZE = BLOCK * BLOCKS


class Guest:
    """Writes a disk all the time, and knows what it has to hold, and which blocks it ever wrote."""

    def __init__(self, uri, seed):
        self.nbd = connect(uri)
        self.random = random.Random(seed)
        self.blocks = {}
        self.failure = None
        self.written = 0
        self.stop = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            while not self.stop:
                i, byte = self.random.randrange(BLOCKS), self.random.randrange(1, 256)
                self.nbd.pwrite(bytes([byte]) * BLOCK, i * BLOCK)
                self.blocks[i] = byte
                self.written += 1
                if self.random.random() < 0.1:
                    self.nbd.flush()
        except Exception as e:  # told by who waits
            self.failure = e

    def go_on(self, n=5):
        """Until it has written some more."""
        wanted = self.written + n
        while self.written < wanted:
            assert not self.failure, self.failure
            self.thread.join(0.001)

    def end(self):
        self.stop = True
        self.thread.join()
        assert not self.failure, self.failure

    def check(self):
        for i, byte in self.blocks.items():
            assert self.nbd.pread(BLOCK, i * BLOCK) == bytes([byte]) * BLOCK, f"block {i}"


class World:
    """Disks a, b and c, on two loops, each with a guest; a node for an overlay of b."""

    def __init__(self, tmp):
        self.tmp = tmp
        for name, size in ("a", SIZE), ("b", SIZE), ("c", SIZE + BLOCK):
            qemu_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=2", tmp / name, size)
        # Another one of c cannot be completed: the refcount of what no guest writes can get no higher.
        qemu_io(tmp / "c", f"write {SIZE} {BLOCK}")
        for name in ("old", "older"):
            qemu_img("snapshot", "-c", name, tmp / "c")
        qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "b", "-F", "qcow2", tmp / "over-b")
        self.daemon = Daemon("--qmp", tmp / "qmp", "--loops", 2)
        self.qmp = Qmp(tmp / "qmp")
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(tmp / "nbd")}})
        for name in ("a", "b", "c"):
            self.qmp.command("blockdev-add", driver="qcow2", node_name=name, file=self.file(name))
            self.qmp.command("block-export-add", type="nbd", id=name, node_name=name,
                             name=name, writable=True)
        self.qmp.command("blockdev-add", driver="qcow2", node_name="over-b", backing=None,
                         file=self.file("over-b"))
        for name in ("on", "off", "gone"):
            self.qmp.command("block-dirty-bitmap-add", node="a", name=name, granularity=BLOCK,
                             disabled=name == "off")
        self.guests = {name: Guest(f"nbd+unix:///{name}?socket={tmp}/nbd", name)
                       for name in ("a", "b", "c")}
        self.actions = [
            {"type": "block-dirty-bitmap-clear", "data": {"node": "a", "name": "on"}},
            {"type": "blockdev-snapshot-sync",
             "data": {"node-name": "a", "snapshot-file": str(tmp / "over-a"),
                      "snapshot-node-name": "over-a"}},
            {"type": "blockdev-snapshot", "data": {"node": "b", "overlay": "over-b"}},
            internal("c", "s"),
        ]

    def file(self, name):
        return {"driver": "file", "filename": str(self.tmp / name)}

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *why):
        for guest in self.guests.values():
            guest.stop = True
            guest.thread.join()
            guest.nbd.shutdown()
        self.qmp.close()
        self.daemon.__exit__(*why)

    def let_guests_go_on(self):
        for guest in self.guests.values():
            guest.go_on()

    def state(self):
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        return (sorted(os.listdir(self.tmp)),
                [(n["node-name"], n["ro"], n.get("backing_file"), "dirty-bitmaps" in n and sorted(
                    (b["name"], b["recording"], b["busy"]) for b in n["dirty-bitmaps"]))
                 for n in nodes if not n["node-name"].startswith("#")],
                [(e["id"], e["node-name"]) for e in self.qmp.command("query-block-exports")])

    def count(self, name):
        node, = (n for n in self.qmp.command("query-named-block-nodes") if n["node-name"] == "a")
        return next(b["count"] for b in node["dirty-bitmaps"] if b["name"] == name)

    def fails(self, actions, *words):
        """As if it had not been there."""
        self.let_guests_go_on()
        before = self.state()
        says(self.qmp.error("transaction", actions=actions), *words)
        assert self.state() == before, f"{self.state()}\nwas {before}"
        self.let_guests_go_on()

    def end_guests(self):
        for guest in self.guests.values():
            guest.end()
            guest.check()

    def check_images(self):
        for name in ("a", "b", "c", "over-a", "over-b"):
            if os.path.exists(self.tmp / name):
                run("qemu-img", "check", self.tmp / name)

    def check_whole(self):
        """After the end: the files hold what the guests wrote."""
        for name, guest in self.guests.items():
            top = next(t for t in (f"over-{name}", name) if os.path.exists(self.tmp / t))
            run("qemu-img", "convert", "-O", "raw", self.tmp / top, self.tmp / "raw")
            with open(self.tmp / "raw", "rb") as f:
                for i, byte in guest.blocks.items():
                    f.seek(i * BLOCK)
                    assert f.read(BLOCK) == bytes([byte]) * BLOCK, f"{name}, block {i}"


ABORT = {"type": "abort", "data": {}}


def internal(device, name):
    return {"type": "blockdev-snapshot-internal-sync", "data": {"device": device, "name": name}}


def test_prepare(tmp):
    """What fails before or between any two actions of a transaction undoes all before it."""
    with World(tmp) as w:
        for i in range(len(w.actions) + 1):
            w.fails(w.actions[:i] + [ABORT] + w.actions[i:], "Abort action")
        w.end_guests()
        # Nothing was cleared, and nothing got lost that was written beside.
        assert w.count("on") == len(w.guests["a"].blocks) * BLOCK
    os.remove(tmp / "over-b")  # it is no layer, and empty
    w.check_images()
    w.check_whole()


def test_each_fails(tmp):
    """Each action of a transaction fails by itself, in each place."""
    with World(tmp) as w:
        wrong = [
            ({"type": "block-dirty-bitmap-clear", "data": {"node": "a", "name": "none"}}, "not found"),
            ({"type": "blockdev-snapshot-sync",
              "data": {"node-name": "a", "snapshot-file": str(tmp / "no/dir"),
                       "snapshot-node-name": "over-a"}}, "no/dir"),
            ({"type": "blockdev-snapshot", "data": {"node": "b", "overlay": "b"}}, "already in use"),
            (internal("c", ""), "Name is empty"),
        ]
        for i, (action, words) in enumerate(wrong):
            actions = w.actions[:i] + w.actions[i + 1:]
            for at in range(len(actions) + 1):
                w.fails(actions[:at] + [action] + actions[at:], words)
        w.end_guests()
        assert w.count("on") == len(w.guests["a"].blocks) * BLOCK
    os.remove(tmp / "over-b")
    w.check_images()
    w.check_whole()


def test_finish(tmp):
    """An internal snapshot that cannot be completed undoes all actions, though guests have gone on."""
    with World(tmp) as w:
        bitmaps = [{"type": f"block-dirty-bitmap-{verb}", "data": {"node": "a", "name": name}}
                   for verb, name in (("clear", "on"), ("disable", "on"), ("enable", "off"),
                                      ("remove", "gone"))]
        merge = {"type": "block-dirty-bitmap-merge",
                 "data": {"node": "a", "target": "off", "bitmaps": ["gone"]}}
        add = {"type": "block-dirty-bitmap-add", "data": {"node": "a", "name": "new"}}
        w.let_guests_go_on()
        w.qmp.command("block-dirty-bitmap-clear", node="a", name="gone")
        w.fails([merge, add] + bitmaps[1:] + w.actions, "Failed to create snapshot 's'")
        w.end_guests()
        for name in ("on", "gone"):
            assert 0 < w.count(name) <= len(w.guests["a"].blocks) * BLOCK
        assert w.count("on") == len(w.guests["a"].blocks) * BLOCK
        assert w.count("off") == 0
        # The overlay that stays has nothing of what guests wrote meanwhile.
        out = qemu_img("map", "-U", "--output=json", tmp / "over-b")
        assert '"depth": 0' not in out, out

        guests = {name: Guest(f"nbd+unix:///{name}?socket={tmp}/nbd", f"{name} again")
                  for name in w.guests}
        for name, guest in guests.items():
            guest.blocks = {**w.guests[name].blocks, **guest.blocks}
            w.guests[name].nbd.shutdown()
        w.guests = guests
        w.let_guests_go_on()
        w.qmp.command("blockdev-snapshot-delete-internal-sync", device="c", name="old")
        # One more is possible now, but not two.
        w.fails(w.actions + [internal("c", "t")], "Failed to create snapshot 's'")
        w.qmp.command("transaction", actions=w.actions)  # nothing of the first is in its way
        w.let_guests_go_on()
        w.end_guests()
    w.check_images()
    w.check_whole()


def contents(path, name):
    raw = f"{path}.{name}.raw"
    qemu_img("convert", "-l", name, "-O", "raw", path, raw)
    with open(raw, "rb") as f:
        return f.read()


def test_several_of_a_node(tmp):
    """Internal snapshots of one node are of one moment, and none is left if something fails later."""
    with World(tmp) as w:
        qemu_img("create", "-q", "-f", "raw", tmp / "copy", SIZE)
        w.qmp.command("blockdev-add", driver="raw", node_name="copy", file=w.file("copy"))
        backup = {"type": "blockdev-backup",
                  "data": {"job-id": "j", "device": "b", "target": "copy", "sync": "full"}}
        bitmap = {"type": "block-dirty-bitmap-clear", "data": {"node": "a", "name": "on"}}
        several = [internal("a", "one"), bitmap, internal("b", "one"), internal("a", "two"),
                   internal("b", "two")]
        # What is last cannot be completed; by then the others are made.
        w.fails(several + [internal("c", "s")], "Failed to create snapshot 's'")
        for at in range(len(several) + 1):
            w.fails(several[:at] + [ABORT] + several[at:], "Abort action")
        w.let_guests_go_on()
        w.qmp.command("transaction", actions=several + [backup])
        w.let_guests_go_on()
        w.qmp.event("BLOCK_JOB_COMPLETED")
        w.end_guests()
    for name in ("a", "b"):
        assert contents(tmp / name, "one") == contents(tmp / name, "two")
    with open(tmp / "copy", "rb") as f:
        assert f.read() == contents(tmp / "b", "one")
    os.remove(tmp / "over-b")
    w.check_images()
    w.check_whole()


main(globals())

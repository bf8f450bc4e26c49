#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Internal snapshots over QMP while guests write: each shows one moment of every guest, beside the live
head and for qemu-img, and kill -9 at any time leaves those that were reported made. Each guest writes
one block after the other, so a moment of it is a number: how many of its writes there are."""
import itertools
import json
import random
import struct
import threading
import time

import nbd

from harness import HANG, KIB, MIB, Daemon, check_image, main, qemu_img, run
from qmp_client import Qmp

BLOCK = 4 * KIB
SIZE = 8 * MIB
N_GUESTS = 3
REGION = SIZE // N_GUESTS // BLOCK  # blocks of each


class Guest(threading.Thread):
    """Writes its number, its life, and the count of its writes into one of its blocks after the other.
    `base`: what the disk was when it began."""

    def __init__(self, uri, number, life, base):
        super().__init__()
        self.uri, self.number, self.life, self.base = uri, number, life, base
        self.blocks = []  # of all its writes, also one that nobody confirmed
        self.n_done = 0
        self.is_over = False

    def stamp(self, count):
        return struct.pack(">HHI", self.number + 1, self.life, count) * (BLOCK // 8)

    def run(self):
        rng = random.Random(f"{self.number}/{self.life}")
        try:
            h = nbd.NBD()
            h.connect_uri(self.uri)
            while not self.is_over:
                block = rng.randrange(REGION) if rng.random() < 0.5 else rng.randrange(16)
                self.blocks.append(block)
                h.pwrite(self.stamp(len(self.blocks)), (self.number * REGION + block) * BLOCK)
                self.n_done = len(self.blocks)
                if self.n_done % 50 == 0:
                    h.flush()
        except nbd.Error:
            pass  # the daemon was killed

    def moment_of(self, content):
        """How many of its writes `content`, a disk, shows: all up to one, and none of the later."""
        found = {}
        for block in range(REGION):
            at = (self.number * REGION + block) * BLOCK
            data = content[at:at + BLOCK]
            if data == self.base[at:at + BLOCK]:
                continue
            number, life, count = struct.unpack(">HHI", data[:8])
            assert (number, life) == (self.number + 1, self.life), f"block {block} is of {number}, {life}"
            assert data == self.stamp(count), f"block {block} is torn"
            found[block] = count
        moment = max(found.values(), default=0)
        shown = {}
        for count, block in enumerate(self.blocks[:moment], 1):
            shown[block] = count
        assert found == shown, f"guest {self.number}: not the state after {moment} writes"
        return moment


class Moment:
    """A snapshot that was made between two counts of each guest."""

    def __init__(self, name, guests):
        self.name, self.guests = name, guests
        self.first = [g.n_done for g in guests]
        self.last = None
        self.is_certain = False

    def made(self):
        self.last = [len(g.blocks) for g in self.guests]
        self.is_certain = True
        return self

    def check(self, content):
        last = self.last or [len(g.blocks) for g in self.guests]
        for guest, low, high in zip(self.guests, self.first, last):
            moment = guest.moment_of(content)
            assert low <= moment <= high, f"{self.name}: {moment} writes, not {low} to {high}"


def serve(tmp, image):
    daemon = Daemon("--qmp", tmp / "q")
    qmp = Qmp(tmp / "q")
    qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "disk",
                                   "file": {"driver": "file", "filename": str(image)}})
    qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp / "s")}})
    qmp.command("block-export-add", **{"type": "nbd", "id": "e", "node-name": "disk", "writable": True})
    return daemon, qmp


def uri(tmp, name):
    return f"nbd+unix:///{name}?socket={tmp}/s"


def read_all(tmp, name):
    h = nbd.NBD()
    h.connect_uri(uri(tmp, name))
    assert h.is_read_only()
    content = b"".join(h.pread(MIB, off) for off in range(0, SIZE, MIB))
    h.shutdown()
    return content


def show(qmp, snapshot, node):
    qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": node, "file": "disk", "snapshot": snapshot})
    qmp.command("block-export-add", **{"type": "nbd", "id": node, "node-name": node})


def hide(qmp, node):
    qmp.command("block-export-del", id=node)
    assert qmp.event("BLOCK_EXPORT_DELETED")["id"] == node
    qmp.command("blockdev-del", **{"node-name": node})


def make(qmp, name):
    qmp.command("blockdev-snapshot-internal-sync", device="disk", name=name)


def begin(tmp, life=0, base=bytes(SIZE)):
    guests = [Guest(uri(tmp, "disk"), i, life, base) for i in range(N_GUESTS)]
    for guest in guests:
        guest.start()
    return guests


def end(guests):
    for guest in guests:
        guest.is_over = True
    for guest in guests:
        guest.join()


def names_of(image):
    info = json.loads(qemu_img("info", "--output=json", image))
    return [s["name"] for s in info.get("snapshots", [])]


def content_of(tmp, image, snapshot=None):
    raw = tmp / "content.raw"
    of = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    qemu_img("convert", "-f", "qcow2", *of, "-O", "raw", image, raw)
    return raw.read_bytes()


def test_beside_the_live_head(tmp):
    """snapshots are read beside the live head, and stay while they are"""
    image = tmp / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", image, SIZE)
    daemon, qmp = serve(tmp, image)
    with daemon:
        guests = begin(tmp)
        moments = []
        for i in range(4):
            n_before = guests[0].n_done
            moment = Moment(f"s{i}", guests)
            make(qmp, moment.name)
            moments.append(moment.made())
            while guests[0].n_done < n_before + 100 and guests[0].is_alive():
                time.sleep(0.01)
        for i, moment in enumerate(moments):
            show(qmp, moment.name, f"n{i}")
            moment.check(read_all(tmp, f"n{i}"))
        text = qmp.error("blockdev-snapshot-delete-internal-sync", device="disk", name="s1")
        assert "is in use" in text and "node 'n1'" in text, text
        for i, moment in enumerate(moments):
            moment.check(read_all(tmp, f"n{i}"))
        infos = qmp.command("query-named-block-nodes")
        disk, = (n for n in infos if n["node-name"] == "disk")
        assert [s["name"] for s in disk["image"]["snapshots"]] == ["s0", "s1", "s2", "s3"], disk
        for i in (1, 2):
            hide(qmp, f"n{i}")
            qmp.command("blockdev-snapshot-delete-internal-sync", device="disk", name=f"s{i}")
        moments[3].check(read_all(tmp, "n3"))
        end(guests)
    check_image(image)
    assert names_of(image) == ["s0", "s3"]
    for moment in (moments[0], moments[3]):
        moment.check(content_of(tmp, image, moment.name))


def test_one_moment_of_two_disks(tmp):
    """a transaction takes snapshots of several disks together, or none"""
    images = [tmp / "a.qcow2", tmp / "b.qcow2"]
    for image in images:
        qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    daemon, qmp = serve(tmp, images[0])
    with daemon:
        qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "other",
                                       "file": {"driver": "file", "filename": str(images[1])}})
        guests = begin(tmp)

        def both(name):
            return [{"type": "blockdev-snapshot-internal-sync", "data": {"device": d, "name": name}}
                    for d in ("other", "disk")]

        moment = Moment("both", guests)
        qmp.command("transaction", actions=both("both"))
        moment.made()
        make(qmp, "taken")
        assert "already exists" in qmp.error("transaction", actions=both("taken"))
        end(guests)
    moment.check(content_of(tmp, images[0], "both"))
    assert names_of(images[0]) == ["both", "taken"] and names_of(images[1]) == ["both"]
    for image in images:
        check_image(image)


def test_with_an_external_snapshot(tmp):
    """an internal and an external snapshot of one disk are of one moment, and a shown one stays"""
    image, over = tmp / "a.qcow2", tmp / "over.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    daemon, qmp = serve(tmp, image)
    with daemon:
        guests = begin(tmp)
        make(qmp, "first")
        show(qmp, "first", "n")
        before = read_all(tmp, "n")
        moment = Moment("both", guests)
        qmp.command("transaction", actions=[
            {"type": "blockdev-snapshot-internal-sync", "data": {"device": "disk", "name": "both"}},
            {"type": "blockdev-snapshot-sync",
             "data": {"node-name": "disk", "snapshot-file": str(over), "snapshot-node-name": "over"}}])
        moment.made()
        n_then = guests[0].n_done
        while guests[0].n_done < n_then + 100 and guests[0].is_alive():
            time.sleep(0.01)
        assert read_all(tmp, "n") == before
        hide(qmp, "n")
        end(guests)
    check_image(image)
    content = content_of(tmp, image, "both")
    moment.check(content)
    assert content_of(tmp, image) == content
    Moment("the end", guests).made().check(content_of(tmp, over))


def test_nothing_waits_for_a_deletion(tmp):
    """while a snapshot is being deleted, changes that would wait for it are refused, and it is named"""
    image = tmp / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, SIZE)
    run("qemu-io", "-f", "qcow2", "-c", f"write -q 0 {SIZE}", image)
    qemu_img("snapshot", "-c", "s", image)
    file = {"driver": "file", "node-name": "f", "filename": str(image)}
    daemon = Daemon("--qmp", tmp / "qmp")
    with daemon:
        qmp, other = Qmp(tmp / "qmp"), Qmp(tmp / "qmp")
        qmp.command("object-add", qom_type="throttle-group", id="g")
        qmp.command("object-add", qom_type="iothread", id="io")
        qmp.command("blockdev-add", **file)
        qmp.command("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file="f")
        qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="t")
        qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp / "nbd")}})

        def refusals():
            direct = {**file, "cache": {"direct": True}}
            yield qmp.error("blockdev-reopen", options=[direct])
            yield qmp.error("blockdev-reopen", options=[
                {"driver": "qcow2", "node-name": "disk", "file": "f"}])
            yield qmp.error("blockdev-reopen", options=[
                {"driver": "qcow2", "node-name": "disk", "file": "t", "read-only": True}])
            yield qmp.error("block_resize", node_name="disk", size=2 * SIZE)
            yield qmp.error("block-export-add", type="nbd", id="e", node_name="disk",
                            iothread="io", fixed_iothread=True)
            yield qmp.error("blockdev-snapshot-sync", node_name="disk",
                            snapshot_file=str(tmp / "over"), snapshot_node_name="over")
            yield qmp.error("transaction", actions=[
                {"type": "blockdev-snapshot-internal-sync", "data": {"device": "disk", "name": "t"}}])

        # So few that it stands still, but for drains, which lift the limits.
        qmp.command("qom-set", path="g", property="limits", value={"iops-total": 1})
        other.send({"execute": "blockdev-snapshot-delete-internal-sync",
                    "arguments": {"device": "disk", "name": "s"}})
        for _ in range(1000):  # until it has begun
            qmp.send({"execute": "block_resize", "arguments": {"node-name": "disk", "size": SIZE}})
            if "error" in qmp.reply():
                break
        for text in refusals():
            assert "internal snapshot of it is being made or deleted" in text, text
        qmp.command("qom-set", path="g", property="limits", value={"iops-total": 0})
        assert other.reply()["return"]["name"] == "s"
        qmp.command("block_resize", node_name="disk", size=2 * SIZE)
        other.close()
        qmp.close()
    check_image(image)
    assert names_of(image) == []


numbers = itertools.count()  # guests may have written nothing between two snapshots


def one_life(tmp, image, guests_of, moments, rng):
    """Until a kill. `moments`: the snapshots that are there for sure, and that may be."""
    daemon, qmp = serve(tmp, image)
    guests = begin(tmp, *guests_of)
    killer = threading.Timer(rng.uniform(0.02, 1.2), daemon.kill)
    killer.start()
    try:
        while True:
            certain = [m for m in moments.values() if m.is_certain]
            if len(certain) < 4 and rng.random() < 0.7:
                moment = Moment(f"s{next(numbers)}", guests)
                moments[moment.name] = moment
                make(qmp, moment.name)
                moment.made()
            elif certain:
                moment = rng.choice(certain)
                moment.is_certain = False
                qmp.command("blockdev-snapshot-delete-internal-sync", device="disk", name=moment.name)
                del moments[moment.name]
    except OSError:
        assert daemon.process.wait(HANG) == -9, daemon.log()
    killer.join()
    end(guests)


def test_killed(tmp):
    """kill -9 while snapshots come and go loses none that was reported made"""
    image = tmp / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, SIZE)
    rng = random.Random(1)
    moments, base = {}, bytes(SIZE)
    for life in range(1, 16):
        one_life(tmp, image, (life, base), moments, rng)
        # What qemu-img shows of an image that nobody has repaired yet.
        there = names_of(image)
        for name in there:
            moments[name].check(content_of(tmp, image, name))
        for name in list(moments):
            assert name in there or not moments[name].is_certain, f"{name} is lost"
            if name in there:
                moments[name].is_certain = True
            else:
                del moments[name]
        base = content_of(tmp, image)
    daemon, _ = serve(tmp, image)  # repairs
    daemon.stop()
    if run("qemu-img", "check", image, check=False).returncode == 3:
        qemu_img("check", "-r", "leaks", image)
    check_image(image)


main(globals())

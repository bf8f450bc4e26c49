#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes take other options and other children (blockdev-reopen) while guests write, and verify what they
read."""
import os
import random
import threading

import nbd

from harness import MIB, Skip, check_image, main, qemu_img, run
from world import World

SIZE = 16 * MIB
PART = 64 << 10
GROUPS = "group0", "group1"


class Guest(threading.Thread):
    """Writes parts of the disk, and reads back what it wrote, until it is told to stop."""

    def __init__(self, uri):
        super().__init__()
        self.client = nbd.NBD()
        self.client.connect_uri(uri)
        self.shadow = bytearray(SIZE)
        self.n = 0
        self.is_ending = False
        self.fault = None

    def run(self):
        rng = random.Random(7)
        try:
            while not self.is_ending:
                off = rng.randrange(SIZE // 512) * 512
                length = min(rng.choice([512, 4096, PART]), SIZE - off)
                if rng.random() < 0.5:
                    data = rng.randbytes(length)
                    self.client.pwrite(data, off)
                    self.shadow[off:off + length] = data
                else:
                    assert self.client.pread(length, off) == self.shadow[off:off + length], off
                if rng.random() < 0.05:
                    self.client.flush()
                self.n += 1
            assert self.client.pread(SIZE, 0) == self.shadow
        except BaseException as e:  # told where it is waited for
            self.fault = e

    def go_on(self):
        n = self.n
        while self.n < n + 20 and self.is_alive():
            pass

    def end(self):
        self.is_ending = True
        self.join()
        if self.fault:
            raise self.fault


def file_options(name, path, direct):
    return {"driver": "file", "node-name": name, "filename": str(path),
            "cache": {"direct": direct}}


def throttle_options(group):
    return {"driver": "throttle", "node-name": "filter", "throttle-group": group, "file": "file"}


def begin(w, tmp):
    """A qcow2 image in a file, a filter beside it."""
    for group in GROUPS:
        w.qmp.command("object-add", qom_type="throttle-group", id=group)
    w.qmp.command("blockdev-add", **file_options("file", tmp / "disk", False))
    w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="file")
    w.qmp.command("blockdev-add", **throttle_options(GROUPS[0]))
    w.export("disk")


def test_under_load(tmp):
    """Filters come and go under an image, groups and the page cache change, and no byte is lost"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", SIZE)
    with World(tmp) as w:
        begin(w, tmp)
        guest = Guest(w.uri("disk"))
        guest.start()
        for i in range(40):
            guest.go_on()
            image = {"driver": "qcow2", "node-name": "disk", "file": ("filter", "file")[i % 2]}
            options = [[image], [throttle_options(GROUPS[i % 2])],
                       [file_options("file", tmp / "disk", i % 4 < 2)],
                       [image, throttle_options(GROUPS[i % 2])]][i % 4 if i % 3 else 3]
            w.qmp.command("blockdev-reopen", options=options)
        guest.end()
    check_image(tmp / "disk")
    qemu_img("convert", "-O", "raw", tmp / "disk", tmp / "raw")
    assert (tmp / "raw").read_bytes() == guest.shadow


def reopen_while_it_grows(tmp, make, options):
    """A guest writes clusters that are new, many at a time, and reads what it wrote last, while `options`
    are taken"""
    size, in_flight = 64 * MIB, 16
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", size)

    def content(off):
        return (off // PART + 1).to_bytes(8, "little") * (PART // 8)

    def ended(error):
        assert not error.value, error.value
        return 1

    class Writer(threading.Thread):
        fault = None

        def run(self):
            try:
                for off in range(0, size, in_flight * PART):
                    pieces = range(off, off + in_flight * PART, PART)
                    for piece in pieces:
                        client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content(piece))),
                                          piece, completion=ended)
                    while client.aio_in_flight():
                        client.poll(-1)
                    for piece in pieces:
                        assert client.pread(PART, piece) == content(piece), piece
            except BaseException as e:  # told where it is waited for
                self.fault = e
    with World(tmp) as w:
        make(w)
        w.export("disk")
        client = nbd.NBD()
        client.connect_uri(w.uri("disk"))
        writer = Writer()
        writer.start()
        n = 0
        while writer.is_alive():
            w.qmp.command("blockdev-reopen", options=options(n))
            n += 1
        if writer.fault:
            raise writer.fault
    check_image(tmp / "disk")


def test_filter_while_it_grows(tmp):
    """A filter below an image takes another group while the image's file grows, and grows with it"""
    def make(w):
        for group in GROUPS:
            w.qmp.command("object-add", qom_type="throttle-group", id=group)
        w.qmp.command("blockdev-add", **file_options("file", tmp / "disk", False))
        w.qmp.command("blockdev-add", **throttle_options(GROUPS[0]))
        w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="filter")
    reopen_while_it_grows(tmp, make, lambda n: [throttle_options(GROUPS[(n + 1) % 2])])


def test_raw_while_it_grows(tmp):
    """A raw node below an image gets another child, over the same file, while that grows"""
    def make(w):
        for group in GROUPS:
            w.qmp.command("object-add", qom_type="throttle-group", id=group)
        w.qmp.command("blockdev-add", **file_options("file", tmp / "disk", False))
        w.qmp.command("blockdev-add", **throttle_options(GROUPS[0]))
        w.qmp.command("blockdev-add", driver="raw", node_name="part", file="file")
        w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="part")
    reopen_while_it_grows(tmp, make, lambda n: [
        {"driver": "raw", "node-name": "part", "file": ("filter", "file")[n % 2]}])


def test_all_or_none(tmp):
    """Of several nodes none is changed when the last one cannot be"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", SIZE)
    (tmp / "part").write_bytes(b"p" * MIB)
    with World(tmp) as w:
        begin(w, tmp)
        w.qmp.command("blockdev-add", **file_options("part-file", tmp / "part", False))
        w.qmp.command("blockdev-add", driver="raw", node_name="part", file="part-file")
        before = w.nodes()
        fds = len(os.listdir(f"/proc/{w.daemon.process.pid}/fd"))
        w.qmp.error("blockdev-reopen", options=[
            {"driver": "qcow2", "node-name": "disk", "file": "filter"},
            throttle_options(GROUPS[1]),
            file_options("file", tmp / "disk", True),
            {"driver": "raw", "node-name": "part", "file": "part-file", "read-only": True,
             "offset": 2 * MIB}])
        assert w.nodes() == before
        assert len(os.listdir(f"/proc/{w.daemon.process.pid}/fd")) == fds
        # Nobody lies in it, or counts for the group.
        w.qmp.command("blockdev-del", node_name="filter")
        w.qmp.command("object-del", id=GROUPS[1])
        w.io("disk", "write -P 3 0 64k")
    run("qemu-io", "-c", "read -P 3 0 64k", tmp / "disk")


def test_beside_a_job(tmp):
    """What has to stand still does not change under a job, which works beside requests, too"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base", SIZE)
    for name, below in ("middle", "base"), ("top", "middle"):
        qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / below, "-F", "qcow2", tmp / name)
    run("qemu-io", "-c", "write -P 3 0 4M", tmp / "middle")
    with World(tmp) as w:
        w.qmp.command("blockdev-add", **file_options("file", tmp / "base", False))
        w.qmp.command("blockdev-add", driver="qcow2", node_name="base", file="file")
        w.add("middle", tmp / "middle", backing="base")
        w.add("top", tmp / "top", backing="middle")
        w.export("top")
        direct = {"options": [file_options("file", tmp / "base", True)]}
        w.qmp.command("block-commit", job_id="j", device="top", top_node="middle",
                      base_node="base", speed=1)
        assert "a job (commit) is at work" in w.qmp.error("blockdev-reopen", **direct)
        w.io("top", "read -P 3 0 4M", "write -P 4 4M 64k")
        w.qmp.command("job-cancel", id="j")
        w.qmp.event("BLOCK_JOB_CANCELLED")
        while w.qmp.command("query-jobs"):
            pass
        w.qmp.command("blockdev-reopen", **direct)
        w.io("top", "read -P 3 0 4M", "read -P 4 4M 64k")
    check_image(tmp / "base")


def test_page_cache(tmp):
    """What cache.direct says of a file's node, or of an image over it, is what its descriptor does"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", SIZE)

    def is_direct(w):
        folder = f"/proc/{w.daemon.process.pid}/fd"
        for fd in os.listdir(folder):
            if os.readlink(f"{folder}/{fd}") == str(tmp / "disk"):
                with open(f"/proc/{w.daemon.process.pid}/fdinfo/{fd}", encoding="ascii") as f:
                    flags = next(line for line in f if line.startswith("flags:"))
                return bool(int(flags.split()[1], 8) & os.O_DIRECT)
        raise AssertionError("the file is not open")
    if run("stat", "-f", "-c", "%T", tmp).stdout.strip() in ("tmpfs", "ramfs"):
        raise Skip("there is no page cache to go past")
    with World(tmp) as w:
        w.add("disk", tmp / "disk")
        w.export("disk")
        image = {"driver": "qcow2", "node-name": "disk"}
        file = {"driver": "file", "filename": str(tmp / "disk")}
        assert not is_direct(w)
        w.qmp.command("blockdev-reopen",
                      options=[{**image, "file": file, "cache": {"direct": True}}])
        assert is_direct(w)
        w.io("disk", "write -P 4 512 1000", "read -P 4 512 1000")
        w.qmp.command("blockdev-reopen", options=[
            {**image, "file": {**file, "cache": {"direct": False}}, "cache": {"direct": True}}])
        assert not is_direct(w)
        w.qmp.command("blockdev-reopen", options=[
            {**image, "file": {**file, "cache": {"direct": True}}}])
        assert is_direct(w)
        w.qmp.command("blockdev-reopen", options=[{**image, "file": file}])
        assert not is_direct(w)
        w.io("disk", "read -P 4 512 1000")
    check_image(tmp / "disk")


main(globals())

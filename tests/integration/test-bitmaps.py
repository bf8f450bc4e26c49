#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dirty bitmaps from outside: QEMU goes on with what chaind stores and the other way round, and for the
same requests both have the same bits."""
import contextlib
import json
import random
import shutil
import subprocess

import nbd

from harness import GIB, HANG, KIB, MIB, Daemon, check_image, connect, main, qemu_img, run


def image(tmp, size, options="cluster_size=64k", name="a.qcow2", bitmaps=()):
    """`bitmaps`: (name, granularity, enabled)."""
    disk = tmp / name
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, disk, size)
    for bitmap, granularity, enabled in bitmaps:
        qemu_img("bitmap", "--add", "-g", granularity, *([] if enabled else ["--disable"]), disk, bitmap)
    return disk


def flags(disk):
    """{name: flags} as qemu-img tells them."""
    info = json.loads(qemu_img("info", "--output=json", disk))
    return {b["name"]: b["flags"] for b in info["format-specific"]["data"].get("bitmaps", [])}


class Qemu:
    """qemu-storage-daemon with a QMP monitor on its standard streams."""

    def __init__(self, *args):
        self.process = subprocess.Popen(
            ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "m", *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert "QMP" in self.receive()
        self.command("qmp_capabilities")

    def receive(self):
        line = self.process.stdout.readline()
        assert line, "qemu-storage-daemon has ended"
        return json.loads(line)

    def command(self, execute, **arguments):
        message = {"execute": execute, "arguments": arguments}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        while True:
            reply = self.receive()
            if "error" in reply:
                raise AssertionError(f"{execute}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def close(self):
        self.command("quit")
        self.process.wait(HANG)


def blockdev(disk, read_only):
    return json.dumps({"driver": "qcow2", "node-name": "disk", "read-only": read_only,
                       "discard": "unmap", "file": {"driver": "file", "filename": str(disk),
                                                    "discard": "unmap", "read-only": read_only}})


def hashes(disk, names):
    """{name: QEMU's hash of its bits}"""
    with contextlib.closing(Qemu("--blockdev", blockdev(disk, True))) as q:
        return {name: q.command("x-debug-block-dirty-bitmap-sha256", node="disk", name=name)["sha256"]
                for name in names}


def random_requests(seed, size, n):
    """(what, offset, length, byte): sectors, and now and then the disk's odd end."""
    r = random.Random(seed)
    for _ in range(n):
        what = r.choice(("write", "write", "zero", "trim"))
        length = 512 * r.choice((1, 8, r.randrange(1, 64), r.randrange(1, 2048)))
        offset = r.randrange(0, size // 512) * 512
        yield what, offset, min(length, size - offset), r.randrange(1, 255)


def do_requests(h, requests):
    for what, offset, length, byte in requests:
        if what == "write":
            h.pwrite(bytes([byte]) * length, offset)
        elif what == "zero":
            h.zero(length, offset)
        else:
            h.trim(length, offset)
    h.flush()


def with_chaind(disk, requests):
    with Daemon(disk) as d:
        do_requests(connect(d.uri()), requests)


def with_qemu(tmp, disk, requests):
    with contextlib.closing(Qemu("--blockdev", blockdev(disk, False), "--nbd-server",
                                 f"addr.type=unix,addr.path={tmp}/q.sock", "--export",
                                 "type=nbd,id=e,node-name=disk,writable=on,name=e")):
        h = connect(f"nbd+unix:///e?socket={tmp}/q.sock")
        do_requests(h, requests)
        h.shutdown()


def contents(tmp, disk):
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, tmp / "raw")
    return (tmp / "raw").read_bytes()


GEOMETRIES = [
    (8 * MIB, "cluster_size=64k", 65536),
    (8 * MIB + 512, "cluster_size=4k", 512),
    (3 * MIB - 1024, "cluster_size=512", 4096),
    (8 * MIB, "cluster_size=64k,extended_l2=on", 32768),
    (40 * MIB, "cluster_size=2M", 1 * MIB),
]


def test_same_bits_as_qemu(tmp):
    """The same random requests dirty the same granules as with QEMU."""
    for seed, (size, options, granularity) in enumerate(GEOMETRIES):
        bitmaps = [("one", granularity, True), ("two", 65536, True), ("off", granularity, False),
                   ("wide", 16 * MIB, True)]
        ours = image(tmp, size, options, f"ours{seed}", bitmaps)
        theirs = tmp / f"theirs{seed}"
        shutil.copy(ours, theirs)
        requests = list(random_requests(seed, size, 60))
        before = contents(tmp, ours)
        with_chaind(ours, requests)
        with_qemu(tmp, theirs, requests)
        names = [b[0] for b in bitmaps]
        assert hashes(ours, names) == hashes(theirs, names), f"{options}: other bits"
        assert flags(ours) == flags(theirs) == {"one": ["auto"], "two": ["auto"], "off": [], "wide": ["auto"]}
        check_image(ours)
        after = contents(tmp, ours)
        assert after == contents(tmp, theirs)
        assert before != after


def test_taking_turns(tmp):
    """QEMU and chaind take turns on one image; its bitmaps end as if one of them had done it all."""
    size, names = 64 * MIB, ["one", "two"]
    bitmaps = [("one", 4 * KIB, True), ("two", MIB, True)]
    ours = image(tmp, size, "cluster_size=64k", "ours", bitmaps)
    theirs = tmp / "theirs"
    shutil.copy(ours, theirs)
    for turn in range(6):
        requests = list(random_requests(100 + turn, size, 25))
        if turn % 2:
            with_qemu(tmp, ours, requests)
        else:
            with_chaind(ours, requests)
        with_qemu(tmp, theirs, requests)
        assert hashes(ours, names) == hashes(theirs, names), f"turn {turn}"
        check_image(ours)


def test_large_disk(tmp):
    """Bitmaps of a large, sparse disk are stored sparsely; all dirty takes no clusters."""
    disk = image(tmp, "4T", bitmaps=[("b", 65536, True), ("all", 65536, True)])
    twin = tmp / "twin"
    shutil.copy(disk, twin)
    requests = [("write", i * 256 * GIB, 4096, 1) for i in range(16)] + [("trim", 0, 200 * GIB, 0)]
    requests = [r for r in requests if r[2] < 4 * GIB]
    with_chaind(disk, requests)
    with_qemu(tmp, twin, requests)
    assert hashes(disk, ["b", "all"]) == hashes(twin, ["b", "all"])
    assert disk.stat().st_size <= twin.stat().st_size + MIB
    check_image(disk)


def test_nothing_written(tmp):
    """While nothing is written bitmaps stay as they are, byte for byte."""
    disk = image(tmp, "8M", bitmaps=[("b", 65536, True), ("c", 512, False)])
    before = disk.read_bytes()
    with Daemon(disk) as d:
        h = connect(d.uri())
        h.pread(4096, 0)
        h.flush()
    assert disk.read_bytes() == before


def test_kill(tmp):
    """After a kill what was in use is inconsistent, and stays so; QEMU removes it."""
    disk = image(tmp, "8M", bitmaps=[("b", 65536, True)])
    for _ in range(2):
        d = Daemon(disk)
        connect(d.uri()).pwrite(b"x" * 4096, 0)
        d.kill()
        assert flags(disk) == {"b": ["in-use", "auto"]}
    with_chaind(disk, [("write", 0, 4096, 1)])
    assert flags(disk) == {"b": ["in-use", "auto"]}
    check_image(disk)
    qemu_img("bitmap", "--remove", disk, "b")
    with_chaind(disk, [("write", 0, 4096, 2)])
    check_image(disk)


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sizes that change while disks are served, and qcow2 images on block devices that grow with them."""
import json
import random
import time

import nbd

from disks import LoopDevice
from harness import HANG, KIB, MIB, Daemon, check_image, connect, main, qemu_img, run
from qmp_client import Qmp


def add_disk(q, tmp, name, **options):
    """A qcow2 disk, exported for writing."""
    q.command("blockdev-add", driver="qcow2", node_name=name, **options)
    q.command("block-export-add", type="nbd", id=f"e-{name}", node_name=name, name=name, writable=True)


def start(tmp):
    d = Daemon("--qmp", tmp / "q")
    q = Qmp(tmp / "q")
    q.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp / "s")}})
    return d, q


def uri(tmp, name):
    return f"nbd+unix:///{name}?socket={tmp / 's'}"


def refused(call, *args):
    """The name of the errno that the server answers."""
    try:
        call(*args)
    except nbd.Error as e:
        return e.errno
    raise AssertionError("not refused")


def test_served(tmp):
    """New clients see the new size, old ones keep theirs; what is new reads as zeros over a longer base."""
    (tmp / "base").write_bytes(b"\xbb" * (8 * MIB))
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "base", "-F", "raw", tmp / "a", 3 * MIB + 512)
    d, q = start(tmp)
    with d:
        add_disk(q, tmp, "a", file={"driver": "file", "filename": str(tmp / "a")},
                 backing={"driver": "raw", "file": {"driver": "file", "filename": str(tmp / "base")}})
        old = connect(uri(tmp, "a"))
        old.pwrite(b"old " * 1024, 3 * MIB - 4096)
        q.command("block_resize", node_name="a", size=6 * MIB)
        new = connect(uri(tmp, "a"))
        assert (old.get_size(), new.get_size()) == (3 * MIB + 512, 6 * MIB)
        assert new.pread(4096, 3 * MIB - 4096) == b"old " * 1024
        assert new.pread(512, 3 * MIB) == b"\xbb" * 512
        assert new.pread(3 * MIB - 512, 3 * MIB + 512) == bytes(3 * MIB - 512)
        new.pwrite(b"new!" * 1024, 5 * MIB)
        # Shrunk below what the old client was told: its requests past the end fail, the rest goes
        # on.
        q.command("block_resize", node_name="a", size=2 * MIB)
        assert refused(old.pread, 512, 3 * MIB) == "EINVAL"
        assert refused(old.pwrite, b"x" * 512, 3 * MIB) == "ENOSPC"
        old.pwrite(b"here" * 128, MIB)
        assert old.pread(512, MIB) == b"here" * 128
        q.command("block_resize", node_name="a", size=7 * MIB)
        last = connect(uri(tmp, "a"))
        assert last.pread(5 * MIB, 2 * MIB) == bytes(5 * MIB)
        assert last.pread(512, MIB) == b"here" * 128
        for client in old, new, last:
            client.shutdown()
    check_image(tmp / "a")


def test_grows_under_load(tmp):
    """An image grows far beyond its L1 table while it is written, and shrinks again."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", tmp / "a", 2 * MIB)
    shadow = bytearray(2 * MIB)
    chance = random.Random(1)
    d, q = start(tmp)
    with d:
        add_disk(q, tmp, "a", file={"driver": "file", "filename": str(tmp / "a")})
        for size in 64 * MIB, 3 * MIB + 512, 5 * MIB, 300 * MIB, 4 * MIB:
            kept = min(size, len(shadow))
            q.send({"execute": "block_resize", "arguments": {"node-name": "a", "size": size}})
            client = connect(uri(tmp, "a"))
            for _ in range(50):  # beside the resize
                off = chance.randrange(min(kept, client.get_size()) // 512) * 512
                data = chance.randbytes(512)
                shadow[off:off + 512] = data
                client.pwrite(data, off)
            client.shutdown()
            assert q.reply() == {"return": {}}
            shadow = shadow[:size] + bytes(size - kept)
            client = connect(uri(tmp, "a"))
            assert client.get_size() == size
            for _ in range(50):
                off = chance.randrange(size // 512) * 512
                data = chance.randbytes(512)
                shadow[off:off + 512] = data
                client.pwrite(data, off)
            for off in range(0, size, 32 * MIB):
                n = min(32 * MIB, size - off)
                assert client.pread(n, off) == shadow[off:off + n], f"at {off} of {size}"
            client.flush()
            client.shutdown()
    check_image(tmp / "a")
    (tmp / "raw").write_bytes(shadow)
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", tmp / "a", tmp / "raw")


# -- qcow2 on a block device ----------------------------------------------------------------------

def end_of(image):
    """Where what qemu-img finds in use ends."""
    return json.loads(qemu_img("check", "--output=json", image))["image-end-offset"]


def test_device(tmp):
    """A thin disk on a device: told before it is full, ENOSPC when it is, goes on when it has grown."""
    with LoopDevice(tmp / "lv", 8 * MIB) as lv:
        qemu_img("create", "-q", "-f", "qcow2", lv.device, 64 * MIB)
        d, q = start(tmp)
        with d:
            add_disk(q, tmp, "a", file={"driver": "host_device", "filename": lv.device, "node-name": "lv"})
            client = connect(uri(tmp, "a"))
            q.command("block-set-write-threshold", node_name="lv", write_threshold=4 * MIB)
            done = 0
            try:
                while done < 64 * MIB:
                    client.pwrite(bytes([1 + done // MIB]) * MIB, done)
                    done += MIB
            except nbd.Error as e:
                assert e.errno == "ENOSPC", e
            assert 5 * MIB <= done < 8 * MIB, done
            event = q.event("BLOCK_WRITE_THRESHOLD")
            assert event["node-name"] == "lv" and event["write-threshold"] == 4 * MIB, event
            assert 0 < event["amount-exceeded"] <= 2 * MIB, event
            client.flush()  # needs no space
            assert refused(client.pwrite, b"x" * MIB, done) == "ENOSPC"
            lv.grow(24 * MIB)
            for at in range(done, 16 * MIB, MIB):  # without any command
                client.pwrite(bytes([1 + at // MIB]) * MIB, at)
            client.flush()
            for at in range(0, 16 * MIB, MIB):
                assert client.pread(MIB, at) == bytes([1 + at // MIB]) * MIB, at
            client.shutdown()
        check_image(lv.device)
        # What is on it is what it would take anywhere.
        measured = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", lv.device))["required"]
        assert end_of(lv.device) <= measured, (end_of(lv.device), measured)


def test_device_is_reused(tmp):
    """Written, discarded and rewritten, an image on a device stays within what measure says."""
    chance = random.Random(2)
    with LoopDevice(tmp / "lv", 64 * MIB) as lv:
        qemu_img("create", "-q", "-f", "qcow2", lv.device, 48 * MIB)
        d, q = start(tmp)
        with d:
            add_disk(q, tmp, "a", file={"driver": "host_device", "filename": lv.device})
            client = connect(uri(tmp, "a"))
            for round_ in range(8):
                for _ in range(24):
                    off = chance.randrange(48 * 16) * 64 * KIB
                    client.pwrite(chance.randbytes(64 * KIB), off)
                client.flush()
                if round_ < 7:
                    client.trim(48 * MIB // 2, 0)
                    client.trim(48 * MIB // 2, 48 * MIB // 2)
                    client.flush()
            client.shutdown()
        check_image(lv.device)
        measured = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", lv.device))
        assert end_of(lv.device) <= measured["required"], (end_of(lv.device), measured)


def test_device_size_is_watched(tmp):
    """A device that was made smaller under an image is told of; one that grew has grown, and no more."""
    with LoopDevice(tmp / "lv1", 4 * MIB) as grows, LoopDevice(tmp / "lv2", 4 * MIB) as shrinks:
        d, q = start(tmp)
        with d:
            clients = []
            for name, lv, size in ("a", grows, 8 * MIB), ("b", shrinks, 3 * MIB):
                qemu_img("create", "-q", "-f", "qcow2", lv.device, 64 * MIB)
                add_disk(q, tmp, name, file={"driver": "host_device", "filename": lv.device})
                clients.append(connect(uri(tmp, name)))
                lv.grow(size)
            deadline = time.monotonic() + HANG
            while f"{shrinks.device} was resized" not in d.log():
                assert time.monotonic() < deadline, d.log()
                for client in clients:  # the device that grew first
                    client.pwrite(b"x" * 512, 0)
                time.sleep(0.01)
            assert f"{grows.device} was resized" not in d.log(), d.log()
            for client in clients:
                client.shutdown()


def test_raw_device_grows(tmp):
    """A raw disk on a device takes up the size that the device has, when it is told."""
    with LoopDevice(tmp / "lv", 4 * MIB) as lv:
        d, q = start(tmp)
        with d:
            q.command("blockdev-add", driver="host_device", node_name="lv", filename=lv.device)
            q.command("block-export-add", type="nbd", id="e", node_name="lv", name="lv", writable=True)
            old = connect(uri(tmp, "lv"))
            assert q.error("block_resize", node_name="lv", size=8 * MIB) == "Cannot grow device files"
            lv.grow(8 * MIB)
            q.command("block_resize", node_name="lv", size=8 * MIB)
            new = connect(uri(tmp, "lv"))
            assert (old.get_size(), new.get_size()) == (4 * MIB, 8 * MIB)
            new.pwrite(b"end!" * 128, 8 * MIB - 512)
            assert new.pread(512, 8 * MIB - 512) == b"end!" * 128
            old.shutdown()
            new.shutdown()


if __name__ == "__main__":
    main(globals())

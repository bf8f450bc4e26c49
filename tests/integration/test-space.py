#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A job that cannot fit is refused before its first byte, with what it needs and what there is; one that
may fit is not. On small file systems and loop devices.

usage: test-space.py [--chaind PATH] [WORD]...
"""
import os
import random
import re
import time

from disks import LoopDevice, fill, small_file_system
from harness import KIB, MIB, check_image, main, qemu_img, qemu_io, says
from world import World

CLUSTER = 64 * KIB


def create(path, size=None, below=None, options=""):
    over = ["-b", below, "-F", "qcow2"] if below else []
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), *over, path,
             *([size] if size else []))


def await_end(w, job="j"):
    """Its error, or None; "paused" where it waits for room."""
    while True:
        event = w.qmp.event("JOB_STATUS_CHANGE")
        if event["status"] == "ready":
            w.qmp.command("job-complete", id=job)
        elif event["status"] == "paused":
            assert w.qmp.command("query-block-jobs")[0]["io-status"] == "nospace"
            w.qmp.command("job-cancel", id=job)
            return "paused"
        elif event["status"] == "concluded":
            info, = w.qmp.command("query-jobs")
            w.qmp.command("job-dismiss", id=job)
            if "error" in info:
                while f"failed: {info['error']}" not in w.daemon.log():
                    time.sleep(0.01)
            return info.get("error")


def start(w, job, **arguments):
    w.qmp.command(job, job_id="j", auto_dismiss=False, **arguments)


def figures(error):
    """What it has room for, and needs."""
    assert error and error.startswith("No space left on device: "), error
    return [int(n) for n in re.findall(r"(\d+) bytes| (\d+) at least", error)
            for n in n if n]


def add_two(w, base, top, driver="host_device", **options):
    w.qmp.command("blockdev-add", driver="qcow2", node_name="base", read_only=True,
                  file={"driver": driver, "filename": str(base), "node-name": "base-file"}, **options)
    w.add("top", top, backing="base")


def test_stream(tmp):
    """A stream into a file system that is too small is refused, and done once there is room"""
    create(tmp / "base", 32 * MIB)
    qemu_io(tmp / "base", "write -q -P 3 0 24M")
    with small_file_system(tmp, 48 * MIB) as full:
        with World(tmp) as w:
            create(full / "top", None, tmp / "base")
            w.add("top", full / "top")
            filler = fill(full)
            os.truncate(filler, os.stat(filler).st_size - 8 * MIB)
            before = os.stat(full / "top")
            start(w, "block-stream", device="top")
            error = await_end(w)
            left, needed = figures(error)
            says(error, str(full / "top"), "Nothing was copied", "on-error=enospc")
            assert needed == 24 * MIB and 8 * MIB - MIB < left <= 8 * MIB + MIB, error
            after = os.stat(full / "top")
            assert (before.st_size, before.st_blocks) == (after.st_size, after.st_blocks)
            filler.unlink()
            start(w, "block-stream", device="top")
            assert await_end(w) is None
        check_image(full / "top")


def one_device(tmp, size, seed, policy, is_active):
    """How a commit into a base on a device of `size` bytes ends."""
    rng = random.Random(seed)
    with LoopDevice(tmp / "lv", size) as lv:
        create(lv.device, 16 * MIB)
        qemu_io(lv.device, "write -q -P 1 0 2M", "discard -q 1M 512k", "write -q -z 3M 256k")
        create(tmp / "middle", None, lv.device)
        for _ in range(4):
            qemu_io(tmp / "middle", f"write -q -P 2 {rng.randrange(200) * CLUSTER} 1M")
        qemu_io(tmp / "middle", f"write -q -z {rng.randrange(200) * CLUSTER} 512k")
        create(tmp / "top", None, tmp / "middle")
        with World(tmp) as w:
            w.qmp.command("blockdev-add", driver="qcow2", node_name="base", read_only=True,
                          file={"driver": "host_device", "filename": lv.device})
            w.add("middle", tmp / "middle", backing="base", read_only=True)
            w.add("top", tmp / "top", backing="middle")
            where = {} if is_active else {"top_node": "middle"}
            start(w, "block-commit", device="top", base_node="base", on_error=policy, **where)
            end = await_end(w)
        check_image(lv.device)
    for name in ("lv", "middle", "top"):
        (tmp / name).unlink()
    return end


def test_device(tmp):
    """A commit into a device that is too small is refused before the first byte, and only then"""
    for seed in range(3):
        is_active = seed % 2
        left, needed = figures(one_device(tmp, 3 * MIB, seed, "report", is_active))
        assert left < needed, (left, needed)
        short = needed - left
        # What is refused would be full for certain, also at the border.
        assert one_device(tmp, 3 * MIB + short - CLUSTER, seed, "enospc", is_active) == "paused"
        figures(one_device(tmp, 3 * MIB + short - CLUSTER, seed, "report", is_active))
        end = one_device(tmp, 3 * MIB + short, seed, "report", is_active)
        assert end is None or "Nothing was copied" not in end, end
        # A table and a refcount block are not counted.
        assert one_device(tmp, 3 * MIB + short + 4 * CLUSTER, seed, "report", is_active) is None


def test_room_within(tmp):
    """Free clusters, preallocated space and places of zeros count as room"""
    with LoopDevice(tmp / "lv", 5 * MIB) as lv, World(tmp) as w:
        create(lv.device, 16 * MIB)
        qemu_io(lv.device, "write -q -P 1 0 4M", "discard -q 0 2M")
        create(tmp / "top", None, lv.device)
        qemu_io(tmp / "top", "write -q -P 2 8M 2M")
        add_two(w, lv.device, tmp / "top")
        start(w, "block-commit", device="top")
        assert await_end(w) is None
    with small_file_system(tmp, 24 * MIB) as full:
        raw, image = full / "raw", full / "image"
        with open(raw, "wb") as f:
            os.posix_fallocate(f.fileno(), 0, 4 * MIB)
        create(image, 4 * MIB, options="preallocation=falloc")
        qemu_io(image, "write -q -z 0 4M")
        fill(full)
        for base, fmt in (raw, "raw"), (image, "qcow2"):
            top = tmp / f"over-{fmt}"
            qemu_img("create", "-q", "-f", "qcow2", "-F", fmt, "-b", base, top)
            qemu_io(top, "write -q -P 2 0 4M")
            with World(tmp) as w:
                w.add("base", base, fmt, read_only=True)
                w.add("top", top, backing="base")
                start(w, "block-commit", device="top")
                assert await_end(w) is None, fmt
            qemu_io(base, "read -q -P 2 0 4M", fmt=fmt)


def test_raw(tmp):
    """Holes of a raw base need room"""
    create(tmp / "top", 32 * MIB)
    with small_file_system(tmp, 16 * MIB) as full, World(tmp) as w:
        raw = full / "raw"
        with open(raw, "wb") as f:
            f.write(b"x" * MIB)
            f.truncate(32 * MIB)
        (tmp / "top").unlink()
        qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, tmp / "top")
        qemu_io(tmp / "top", "write -q -P 2 0 24M")
        w.add("base", raw, "raw", read_only=True)
        w.add("top", tmp / "top", backing="base")
        start(w, "block-commit", device="top")
        left, needed = figures(await_end(w))
        assert needed == 23 * MIB and left < 16 * MIB, (left, needed)


def test_threshold(tmp):
    """Who has set a threshold makes room as it is needed"""
    with LoopDevice(tmp / "lv", 4 * MIB) as lv, World(tmp) as w:
        create(lv.device, 16 * MIB)
        create(tmp / "top", None, lv.device)
        qemu_io(tmp / "top", "write -q -P 2 0 8M")
        add_two(w, lv.device, tmp / "top")
        start(w, "block-commit", device="top")
        figures(await_end(w))
        w.qmp.command("block-set-write-threshold", node_name="base-file", write_threshold=512 * KIB)
        start(w, "block-commit", device="top", speed=64 * KIB)  # a minute to the device's end
        w.qmp.event("BLOCK_WRITE_THRESHOLD")
        lv.grow(24 * MIB)
        w.qmp.command("block-job-set-speed", device="j", speed=0)
        assert await_end(w) is None


if __name__ == "__main__":
    main(globals())

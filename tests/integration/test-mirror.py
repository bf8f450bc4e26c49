#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mirrors from outside: under guests that write as fast as they can, killed at any moment, to servers
that are lost. What guests see never changes but by what they write.

usage: test-mirror.py [--chaind PATH] [WORD]...
"""
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

from commits import BLOCK, await_status, content, create, end_of, guests, kill_beside, start_guests
from harness import (KIB, MIB, await_listener, check_image, main, need_program, qemu_img, qemu_io,
                     random_file, says)
from world import World

SIZE = 16 * MIB


def start(w, target, device="top", job="j", **arguments):
    w.qmp.command("blockdev-mirror", job_id=job, device=device, target=target,
                  **{"sync": "full", **arguments})


def complete(w, job="j"):
    w.qmp.command("job-complete", id=job)
    done = end_of(w.qmp)
    assert "error" not in done, done


def make_disk(w, tmp):
    """Two layers with data and holes, exported as `disk`; guests have the first 4 MiB."""
    create(tmp / "base", SIZE)
    qemu_io(tmp / "base", "write -P 1 4M 4M", "write -P 2 12M 1M")
    create(tmp / "top", None, tmp / "base")
    qemu_io(tmp / "top", "write -P 3 6M 4M", "write -z 12M 512k")
    w.add("base", tmp / "base", read_only=True)
    w.add("top", tmp / "top", backing="base")
    w.export("top", name="disk")


def add_target(w, path, fmt="qcow2", below=None, **options):
    if fmt == "qcow2":
        create(path, None if below else SIZE, below)
    else:
        qemu_img("create", "-q", "-f", "raw", path, SIZE)
    w.add("target", path, fmt=fmt, **options)


# -- guests ---------------------------------------------------------------------------------------

def pivot_under_guests(tmp, fmt, **arguments):
    with World(tmp) as w:
        make_disk(w, tmp)
        add_target(w, tmp / "target", fmt)
        with guests(w, "disk", 2, 4 * MIB // BLOCK, 16) as all_guests:
            while sum(g.n_done for g in all_guests) < 1000:
                time.sleep(0.01)
            start(w, "target", **arguments)
            w.qmp.event("BLOCK_JOB_READY")
            complete(w)
            after = sum(g.n_done for g in all_guests)
            while sum(g.n_done for g in all_guests) < after + 1000:
                time.sleep(0.01)
        w.qmp.command("blockdev-del", node_name="top")
        w.io("disk", "read -P 1 4M 2M", "read -P 3 6M 4M", "read -P 0 10M 2560k", "read -P 2 12800k 512k")
    disk = content(tmp / "target", tmp / "raw", fmt)
    for g in all_guests:
        g.check(disk, g.acked)
    if fmt == "qcow2":
        check_image(tmp / "target")


def test_pivots(tmp):
    """A disk that is written as fast as can be is mirrored, and its clients go on with the target"""
    pivot_under_guests(tmp, "qcow2")


def test_pivots_to_raw(tmp):
    """The same to a raw file, with writes that go to both from the start"""
    pivot_under_guests(tmp, "raw", copy_mode="write-blocking")


def test_let_go(tmp):
    """Cancelled when it is ready: the target has all that had been written, and is whole by itself"""
    with World(tmp) as w:
        make_disk(w, tmp)
        add_target(w, tmp / "target")
        with guests(w, "disk", 2, 4 * MIB // BLOCK, 16) as all_guests:
            start(w, "target")
            w.qmp.event("BLOCK_JOB_READY")
            acked = [dict(g.acked) for g in all_guests]
            w.qmp.command("block-job-cancel", device="j")
            end_of(w.qmp)
            w.qmp.command("blockdev-del", node_name="target")
            disk = content(tmp / "target", tmp / "raw")
    for g, least in zip(all_guests, acked):
        g.check(disk, least)
    check_image(tmp / "target")


def test_mode_is_changed(tmp):
    """The copy mode of a mirror is changed both ways while it runs, as QEMU's"""
    with World(tmp) as w:
        make_disk(w, tmp)
        add_target(w, tmp / "target")
        start(w, "target")
        w.qmp.event("BLOCK_JOB_READY")
        for mode in ("write-blocking", "background", "write-blocking"):
            w.qmp.command("block-job-change", id="j", type="mirror", copy_mode=mode)
            w.io("disk", "write -P 7 0 64k", "write -P 8 96k 1k")
            job, = w.qmp.command("query-block-jobs")
            while job["actively-synced"] != (mode == "write-blocking"):
                job, = w.qmp.command("query-block-jobs")
        complete(w)
        w.io("disk", "read -P 7 0 64k", "read -P 8 96k 1k", "read -P 0 97k 31k")
    check_image(tmp / "target")


def test_killed(tmp):
    """Killed at any moment: what was flushed is there, and the images are valid"""
    rng = random.Random("killed")
    for number in range(6):
        directory = tmp / str(number)
        directory.mkdir()
        w = World(directory)
        make_disk(w, directory)
        add_target(w, directory / "target")
        all_guests = start_guests(w, "disk", 2, 4 * MIB // BLOCK, 8)
        start(w, "target")
        has_pivoted = number % 2
        if has_pivoted:
            w.qmp.event("BLOCK_JOB_READY")
            complete(w)
        time.sleep(rng.random() * 0.02)
        kill_beside(w, all_guests)
        disk = content(directory / ("target" if has_pivoted else "top"), directory / "raw")
        for g in all_guests:
            g.check(disk, g.flushed)
        for name in ("base", "top", "target"):
            qemu_img("check", "-q", "-r", "leaks", directory / name)


# -- what is copied -------------------------------------------------------------------------------

def test_sparse(tmp):
    """Holes stay holes, zeros take no space, and what the target had there is gone"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "top", "1G")
    qemu_io(tmp / "top", "write -P 1 0 1M", "write -P 2 512M 1M", "write -z 100M 50M")
    before = {}
    for fmt, is_used in (("raw", False), ("raw", True), ("qcow2", False), ("qcow2", True)):
        target = tmp / f"target-{fmt}-{is_used}"
        qemu_img("create", "-q", "-f", fmt, target, "1G")
        if is_used:
            qemu_io(target, "write -P 9 99M 3M", "write -P 9 512M 4M", fmt=fmt)
        with World(tmp) as w:
            w.add("top", tmp / "top")
            w.export("top", name="disk")
            w.add("target", target, fmt=fmt)
            start(w, "target")
            w.qmp.event("BLOCK_JOB_READY")
            job, = w.qmp.command("query-block-jobs")
            assert job["len"] == job["offset"] == 2 * MIB, job
            complete(w)
        says(qemu_img("compare", "-f", "qcow2", "-F", fmt, tmp / "top", target), "identical")
        before[fmt, is_used] = os.stat(target).st_blocks * 512
    assert all(used < 16 * MIB for used in before.values()), before


def test_target_is_zero(tmp):
    """Zeros are not written to a target that is said to have them"""
    with World(tmp) as w:
        make_disk(w, tmp)
        add_target(w, tmp / "target", "raw")
        start(w, "target", target_is_zero=True)
        w.qmp.event("BLOCK_JOB_READY")
        w.io("disk", "write -z 7M 64k", "write -P 5 14M 64k", "write -z 14M 32k")
        complete(w)
        w.io("disk", "read -P 0 0 4M", "read -P 1 4M 2M", "read -P 0 7M 64k", "read -P 0 14M 32k",
             "read -P 5 14368k 32k", "read -P 2 12800k 512k")


def test_shallow(tmp):
    """Only the top is copied, into an overlay of a copy of what lies below it, which is there already"""
    with World(tmp) as w:
        make_disk(w, tmp)
        shutil.copy(tmp / "base", tmp / "copy")
        w.add("copy", tmp / "copy", read_only=True)
        add_target(w, tmp / "target", below=tmp / "copy", backing="copy")
        start(w, "target", sync="top")
        w.qmp.event("BLOCK_JOB_READY")
        w.io("disk", "write -P 7 5M 4k", "write -z 7M 64k")
        complete(w)
        w.qmp.command("blockdev-del", node_name="top")
        w.qmp.command("blockdev-del", node_name="base")
        w.io("disk", "read -P 1 4M 1M", "read -P 7 5M 4k", "read -P 1 5124k 1020k",
             "read -P 3 6M 1M", "read -P 0 7M 64k", "read -P 0 12M 512k", "read -P 2 12800k 512k")
    assert os.stat(tmp / "target").st_blocks * 512 < 6 * MIB
    check_image(tmp / "target")


# -- targets that are lost ------------------------------------------------------------------------

@contextlib.contextmanager
def server(tmp, disk, *words):
    """nbdkit, which loses what it has not been told to flush when it is killed. Its cache calls holes what it
    has and the file has not."""
    sock = tmp / "server"
    sock.unlink(missing_ok=True)
    process = subprocess.Popen([need_program("nbdkit"), "-f", "-U", sock, "--filter=noextents", "--filter=cache",
                                *words, "file", disk, "cache=writeback"])
    await_listener(sock)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def add_remote(w, tmp):
    w.qmp.command("blockdev-add", driver="nbd", node_name="target",
                  server={"type": "unix", "path": str(tmp / "server")})


def make_remote(tmp):
    random_file(tmp / "remote", SIZE)  # none of it may be left
    return tmp / "remote"


def test_goes_on(tmp):
    """A server that was lost, with what was not durable, and came back has all in the end"""
    disk = make_remote(tmp)
    with World(tmp) as w:
        make_disk(w, tmp)
        with server(tmp, disk):
            add_remote(w, tmp)
            start(w, "target", on_target_error="stop")
            w.qmp.event("BLOCK_JOB_READY")
        w.io("disk", "write -P 4 1M 64k")
        says(str(w.qmp.event("BLOCK_JOB_ERROR")), "'write'", "'stop'")
        await_status(w.qmp, "j", "standby")
        with server(tmp, disk):
            w.qmp.command("job-complete", id="j")
            # Until there is a connection again, and then once, when a flush tells of the loss.
            while jobs := w.qmp.command("query-block-jobs"):
                if jobs[0]["paused"]:
                    w.qmp.command("job-resume", id="j")
                time.sleep(0.05)
            assert "error" not in end_of(w.qmp)
            w.io("disk", "write -P 6 5M 64k", "flush")
            w.qmp.command("block-export-del", id="e-top")
            w.qmp.event("BLOCK_EXPORT_DELETED")
            w.qmp.command("blockdev-del", node_name="target")
        copied = disk.read_bytes()
    qemu_io(tmp / "top", "write -P 6 5M 64k")
    assert copied == content(tmp / "top", tmp / "raw"), "another content"


def test_bitmap(tmp):
    """What a mirror that failed has not copied is in its bitmap, and is all that the next one copies"""
    disk = make_remote(tmp)
    with World(tmp) as w:
        make_disk(w, tmp)
        w.qmp.command("block-dirty-bitmap-add", node="top", name="left", granularity=64 * KIB)
        left = {"bitmap": "left", "bitmap_mode": "always"}
        says(w.qmp.error("blockdev-mirror", job_id="j", device="top", target="base", sync="bitmap"),
             "busy")
        with server(tmp, disk):
            add_remote(w, tmp)
            says(w.qmp.error("blockdev-mirror", job_id="j", device="top", target="target",
                             sync="bitmap"), "must provide a valid bitmap name")
            says(w.qmp.error("blockdev-mirror", job_id="j", device="top", target="target",
                             sync="full", bitmap="left"), "Bitmap sync mode must be given")
            start(w, "target", **left)
            w.qmp.event("BLOCK_JOB_READY")
        w.io("disk", "write -P 4 1M 64k")
        assert "error" in end_of(w.qmp)
        w.io("disk", "write -P 5 3M 64k")
        w.qmp.command("blockdev-del", node_name="target")
        with server(tmp, disk):
            add_remote(w, tmp)
            start(w, "target", sync="bitmap", job="k", **left)
            w.qmp.event("BLOCK_JOB_READY")
            w.qmp.command("block-job-cancel", device="k")
            assert "error" not in end_of(w.qmp)
            count, = (b["count"] for b in w.nodes()["top"]["dirty-bitmaps"])
            assert count == 0, count
            w.io("disk", "write -P 6 9M 64k")
            start(w, "target", sync="bitmap", job="l", **left)
            w.qmp.event("BLOCK_JOB_READY")
            job, = w.qmp.command("query-block-jobs")
            assert job["len"] == 64 * KIB, job
            w.qmp.command("block-job-cancel", device="l")
            assert "error" not in end_of(w.qmp)
            w.qmp.command("blockdev-del", node_name="target")
    assert disk.read_bytes() == content(tmp / "top", tmp / "raw"), "another content"


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host file system that is full: a write without room fails itself, nothing that was acknowledged
is lost, and a discard makes room. On ext4 in a loop device, which is as small as it has to be."""
import errno
import os
import random
import time

import nbd

from disks import fill, small_file_system, used_bytes
from harness import GIB, KIB, MIB, Daemon, check_image, connect, main, qemu_img, qemu_io, says
from world import World


def small_image(directory, size, options="cluster_size=64k"):
    disk = directory / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, disk, size)
    return disk


def test_everything_acknowledged_survives_a_full_file_system(tmp):
    """On a full file system flush, FUA and TRIM succeed, and nothing acknowledged is lost."""
    with small_file_system(tmp, 24 * MIB) as full:
        disk = small_image(full, "20G")
        with Daemon(disk) as d:
            h = connect(d.uri())
            for i in range(100):
                h.pwrite(bytes([1 + i]) * 64 * KIB, i * 64 * KIB)
            h.flush()
            h.pwrite(b"\xee" * 64 * KIB, 5 * GIB)  # needs a table of its own
            fill(full)
            h.flush()
            h.pwrite(b"\xdd" * 4096, 0, nbd.CMD_FLAG_FUA)
            before = used_bytes(full)
            h.trim(6 * MIB, 256 * KIB)
            h.flush()
            h.flush()
            # The host gets it back once no request may use it any more, a moment after the flush.
            while before - used_bytes(full) < 5 * MIB:
                time.sleep(0.01)
            h.pwrite(b"\xcc" * 64 * KIB, 8 * MIB)
            h.flush()
            h.shutdown()
        check_image(disk)
        with Daemon("--read-only", disk) as d:
            h = connect(d.uri())
            assert h.pread(64 * KIB, 0) == b"\xdd" * 4096 + b"\1" * (60 * KIB)
            assert h.pread(64 * KIB, 64 * KIB) == b"\2" * 64 * KIB
            assert h.pread(6 * MIB, 256 * KIB) == bytes(6 * MIB)
            assert h.pread(64 * KIB, 5 * GIB) == b"\xee" * 64 * KIB
            assert h.pread(64 * KIB, 8 * MIB) == b"\xcc" * 64 * KIB


def test_what_fails_on_a_full_file_system_takes_nothing(tmp):
    """Many requests in flight on a full file system keep what was acknowledged, and a TRIM empties it."""
    with small_file_system(tmp, 24 * MIB) as full:
        disk = small_image(full, "64M", "cluster_size=4k,refcount_bits=1")
        size, n_refused, written = 256 * KIB, 0, {}
        with Daemon(disk) as d:
            h = connect(d.uri())
            h.pwrite(b"x", 0, nbd.CMD_FLAG_FUA)
            before = used_bytes(full)
            for _ in range(3):
                flying = {}
                for i in random.Random(1).sample(range(256), 256):
                    buf = nbd.Buffer.from_bytearray(bytearray([1 + i % 255]) * size)
                    flying[h.aio_pwrite(buf, i * size)] = i, buf
                    while len(flying) >= 32:
                        n_refused += reap(h, flying, written)
                while flying:
                    n_refused += reap(h, flying, written)
                h.flush()
            assert n_refused > 256 and len(written) > 40, (n_refused, len(written))
            for i in written:
                assert h.pread(size, i * size) == bytes([1 + i % 255]) * size, i
            assert os.stat(disk).st_size < 48 * MIB, "failed writes made the file longer"
            for off in range(0, 64 * MIB, 8 * MIB):
                h.trim(8 * MIB, off)
            h.flush()
            h.flush()
            h.shutdown()
        kept = used_bytes(full) - before  # it has stopped: whatever was freed has been given back
        assert kept <= 24 * MIB // 50, f"{kept} bytes stay in use"
        check_image(disk)


def reap(h, flying, written):
    """Waits for at least one request; how many were refused for lack of space."""
    h.poll(-1)
    n_refused = 0
    for cookie in list(flying):
        try:
            if h.aio_command_completed(cookie):
                written[flying.pop(cookie)[0]] = True
        except nbd.Error as e:
            assert e.errnum == errno.ENOSPC, e
            flying.pop(cookie)
            n_refused += 1
    return n_refused


def test_a_stream_without_room_is_paused_and_goes_on(tmp):
    """A stream that meets a full file system is paused if its user wants that. What was acknowledged
    stays meanwhile, and can be flushed; with room again the stream goes on and loses nothing."""
    base = tmp / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, 32 * MIB)
    qemu_io(base, "write -q -P 3 0 24M")
    with small_file_system(tmp, 48 * MIB) as full, World(tmp) as w:
        disk = full / "top.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk)
        w.add("top", disk)
        w.export("top", name="top")
        h = connect(w.uri("top"))
        h.pwrite(b"\x07" * 64 * KIB, 0)
        filler = fill(full)
        with open(filler, "r+b") as f:  # some of it fits
            f.truncate(os.stat(filler).st_size - 6 * MIB)
        w.qmp.command("block-stream", job_id="s", device="top", on_error="enospc")
        error = w.qmp.event("BLOCK_JOB_ERROR")
        assert error == {"device": "s", "operation": "write", "action": "stop"}, error
        while w.qmp.event("JOB_STATUS_CHANGE")["status"] != "paused":
            pass
        job, = w.qmp.command("query-block-jobs")
        assert (job["io-status"], job["paused"], job["busy"]) == ("nospace", True, False), job
        says(w.daemon.log(), "job 's' is paused, because no space is left")
        h.flush()
        h.pwrite(b"\x08" * 4096, 4096, nbd.CMD_FLAG_FUA)
        assert h.pread(MIB, 23 * MIB) == b"\3" * MIB
        os.unlink(filler)
        w.qmp.command("block-job-resume", device="s")
        end = w.qmp.event("BLOCK_JOB_COMPLETED")
        assert "error" not in end and end["offset"] == end["len"], end
        base.unlink()
        data = h.pread(24 * MIB, 0)
        assert data == b"\7" * 4096 + b"\10" * 4096 + b"\7" * 56 * KIB + b"\3" * (len(data) - 64 * KIB)
        h.shutdown()
        w.qmp.command("block-export-del", id="e-top")
        w.qmp.event("BLOCK_EXPORT_DELETED")
        w.qmp.command("blockdev-del", node_name="top")
        check_image(disk)


main(globals())

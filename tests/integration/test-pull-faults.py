#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pull backups with readers that hang and scratch images that are slow, full, broken or gone: by an overlay of
the disk, as libvirt does it, and by snapshot-access. The backup fails, guests never do.

usage: test-pull-faults.py [--chaind PATH] [WORD]...
"""
import os
import random
import re
import shutil
import subprocess
import sys
import time

from commits import BLOCK, create, guests
from disks import small_file_system
from harness import HANG, KIB, MIB, Skip, await_listener, main, qemu_io
from pulls import (SIZE, Pull, await_job, await_writes, check_moment, connect, format_scratch,
                   in_both_ways, pull, reads_refused)
from world import World


def guests_on(w, n_bytes, depth):
    """Two of them, on the begin of the disk."""
    return guests(w, "vda", 2, n_bytes // BLOCK, depth, version=1)


def go_on(w, tmp, way, pull_now, all_guests):
    """After what failed the next one is whole again."""
    await_writes(all_guests, 100)
    pull_now.end()
    await_writes(all_guests, 100)
    w.qmp.command("blockdev-add", node_name="good", **format_scratch(tmp / "good"))
    acked = [dict(g.acked) for g in all_guests]
    pull_now = Pull(w, way, "good")
    issued = [dict(g.issued) for g in all_guests]
    await_writes(all_guests, 100)
    check_moment(all_guests, pull(w, tmp / "copy", "pull"), acked, issued)
    pull_now.end()
    w.qmp.command("blockdev-del", node_name="good")


def test_readers_that_hang(tmp):
    """A reader that takes no replies for ever, or goes away, holds no guest up, and no other reader"""
    for way, w, folder, wanted in in_both_ways(tmp):
        w.qmp.command("blockdev-add", node_name="storage", **format_scratch(folder / "scratch"))
        pull_now = Pull(w, way, "storage")
        with guests_on(w, SIZE // 2, 8) as all_guests, w.deaf_reader("pull", SIZE):
            await_writes(all_guests, 1000)
            assert not reads_refused(w, wanted)
        pull_now.end()


def test_slow_scratch(tmp):
    """A scratch image of 1 MiB/s: guests wait for what they change first, and go on; the pull is whole"""
    for way, w, folder, wanted in in_both_ways(tmp):
        w.qmp.command("object-add", qom_type="throttle-group", id="slow", limits={"bps-write": MIB})
        w.qmp.command("blockdev-add", driver="throttle", node_name="storage", throttle_group="slow",
                      file=format_scratch(folder / "scratch"))
        pull_now = Pull(w, way, "storage")
        with guests_on(w, SIZE // 8, 4) as all_guests:
            await_writes(all_guests, 500)
            assert not reads_refused(w, wanted)
        pull_now.end()


def test_full_scratch(tmp):
    """A scratch image without room ends the pull, and no guest hears of it"""
    for way, w, folder, wanted in in_both_ways(tmp):
        with small_file_system(folder, 2 * MIB) as small:
            w.qmp.command("blockdev-add", node_name="storage", **format_scratch(small / "scratch"))
            pull_now = Pull(w, way, "storage")
            with guests_on(w, SIZE // 2, 8) as all_guests:
                pull_now.await_broken(wanted)
                go_on(w, folder, way, pull_now, all_guests)
            w.qmp.command("blockdev-del", node_name="storage")


def test_broken_scratch(tmp):
    """A scratch image that cannot be written ends the pull, and no guest hears of it"""
    for way, w, folder, wanted in in_both_ways(tmp):
        w.qmp.command("blockdev-add", driver="blkdebug", node_name="storage", image=format_scratch(folder / "scratch"),
                      **{"inject-error": [{"event": "none", "iotype": "write", "errno": 5, "sector": 6 * 128}]})
        pull_now = Pull(w, way, "storage")
        with guests_on(w, SIZE // 2, 8) as all_guests:
            pull_now.await_broken(wanted)
            go_on(w, folder, way, pull_now, all_guests)


def test_lost_scratch(tmp):
    """A scratch image on a server that is killed ends the pull, and no guest hears of it"""
    if not shutil.which("nbdkit"):
        raise Skip("nbdkit is not installed")
    for way, w, folder, wanted in in_both_ways(tmp):
        format_scratch(folder / "scratch")
        os.truncate(folder / "scratch", 4 * SIZE)
        server = subprocess.Popen(["nbdkit", "-f", "-U", folder / "far", "file", folder / "scratch"])
        try:
            await_listener(folder / "far")
            w.qmp.command("blockdev-add", driver="nbd", node_name="storage",
                          server={"type": "unix", "path": str(folder / "far")})
            pull_now = Pull(w, way, "storage", cbw_timeout=2)
            with guests_on(w, SIZE // 2, 8) as all_guests:
                await_writes(all_guests, 100)
                server.kill()
                pull_now.await_broken(wanted)
                go_on(w, folder, way, pull_now, all_guests)
        finally:
            server.kill()
            server.wait()


# -- discard-source -------------------------------------------------------------------------------

def pick_near(rng, off):
    """A block around `off`, of every other 64 KiB: the rest is never saved by a guest, so is discarded."""
    at = min(max(0, off + rng.randrange(-8, 8) * 64 * KIB), SIZE - 1) // (128 * KIB) * 128 * KIB
    return at // BLOCK + rng.randrange(64 * KIB // BLOCK)


def test_discard_source_beside_guests(tmp):
    """Of a disk that is discarded while it is copied, what clients write after the moment stays"""
    with World(tmp) as w:
        create(tmp / "src", SIZE)
        w.add("src", tmp / "src", discard="unmap")
        w.export("src", name="vda")
        h, rng, written = connect(w, "vda"), random.Random(1), set()
        old, new = b"\1" * BLOCK, b"\2" * BLOCK
        h.pwrite(b"\1" * SIZE, 0)
        create(tmp / "copy", SIZE)
        w.add("copy", tmp / "copy")
        w.qmp.command("blockdev-backup", job_id="j", device="src", target="copy", sync="full", speed=4 * MIB,
                      discard_source=True, auto_dismiss=False)
        while (job := w.qmp.command("query-jobs")[0])["status"] == "running":
            block = pick_near(rng, job["current-progress"])
            h.pwrite(new, block * BLOCK)
            written.add(block)
        assert "error" not in await_job(w, "j", "concluded")
        kept = [h.pread(BLOCK, block * BLOCK) for block in range(SIZE // BLOCK)]
        h.shutdown()
        for block, data in enumerate(kept):
            assert data == new if block in written else data in (old, bytes(BLOCK)), block
        # A chunk that a client came to while it was copied is not discarded.
        assert kept.count(bytes(BLOCK)) >= SIZE // BLOCK // 4
        w.qmp.command("job-dismiss", id="j")
        w.qmp.command("blockdev-del", node_name="copy")
    qemu_io(tmp / "copy", f"read -P 1 0 {SIZE}")


def logged(path, kind):
    """Requests of that kind in a log of nbdkit: when each began and ended, and its range."""
    begun, all_requests = {}, []
    for line in path.read_text().splitlines():
        found = re.match(r"\S+ (\S+) connection=\d+ (\.\.\.)?(\w+) id=(\d+)(?: offset=(\S+) count=(\S+))?", line)
        if not found or found[3] != kind:
            continue
        time_of, number = found[1], found[4]
        if found[2]:
            begin, off, count = begun.pop(number)
            all_requests.append((begin, time_of, off, count))
        else:
            begun[number] = (time_of, int(found[5] or "0", 16), int(found[6] or "0", 16))
    return all_requests


def logging_server(folder, name):
    return subprocess.Popen(["nbdkit", "-f", "-U", folder / name, "--filter=log", "memory", str(SIZE),
                             f"logfile={folder / name}.log"])


def test_discarded_is_durable(tmp):
    """Of a disk only that is discarded of which the target has made the copy durable"""
    servers = {name: logging_server(tmp, name) for name in ("from", "to")}
    try:
        with World(tmp) as w:
            for name in servers:
                await_listener(tmp / name)
                w.qmp.command("blockdev-add", driver="nbd", node_name=name, discard="unmap",
                              server={"type": "unix", "path": str(tmp / name)})
            qemu_io(f"nbd+unix:///?socket={tmp / 'from'}", f"write -P 1 0 {SIZE}", fmt="raw")
            w.qmp.command("blockdev-backup", job_id="j", device="from", target="to", sync="full",
                          discard_source=True, auto_dismiss=False)
            assert "error" not in await_job(w, "j", "concluded")
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    writes, flushes = (logged(tmp / "to.log", kind) for kind in ("Write", "Flush"))
    trims = logged(tmp / "from.log", "Trim")
    assert sum(count for _, _, _, count in trims) == SIZE
    for begin, _, off, count in trims:
        last = max(end for _, end, at, n in writes if at < off + count and off < at + n)
        assert any(flush >= last and end <= begin for flush, end, _, _ in flushes), \
            f"{off:#x} was discarded at {begin}, written at {last}, and not flushed between"


def test_discards_free_space(tmp):
    """A scratch image gives space back while it is read, of what is discarded, and the rest can be read"""
    size, scratch = 128 * MIB, tmp / "scratch"
    (tmp / "src").write_bytes(b"\1" * size)
    create(scratch, size)
    with World(tmp) as w:
        w.add("scratch", scratch, discard="unmap")
        w.qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", target="scratch",
                      file={"driver": "raw", "file": {"driver": "file", "filename": str(tmp / "src")}})
        w.qmp.command("blockdev-add", driver="snapshot-access", node_name="access", file="cbw", discard="unmap")
        w.export("cbw", name="vda")
        w.export("access", name="pull")
        guest, reader = connect(w, "vda"), connect(w, "pull")
        for at in range(0, size, MIB):
            guest.pwrite(b"\2" * MIB, at)
        assert scratch.stat().st_blocks * 512 >= size
        for at in range(0, size * 3 // 4, MIB):
            assert reader.pread(MIB, at) == b"\1" * MIB, at
            reader.trim(MIB, at)
        deadline = time.monotonic() + HANG
        while scratch.stat().st_blocks * 512 > size * 5 // 8:
            assert time.monotonic() < deadline, scratch.stat()
            time.sleep(0.01)
        for at in range(size * 3 // 4, size, MIB):
            assert reader.pread(MIB, at) == b"\1" * MIB, at
        guest.shutdown()
        reader.shutdown()


if __name__ == "__main__":
    sys.exit(main(globals()))

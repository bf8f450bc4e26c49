#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pull backups from outside, under guests that write as fast as they can: a moment of the disk is read
over NBD while copy-before-write keeps what they change; whole, and by bitmaps; with readers that do not
read, scratch images that are full, and a daemon that is killed.

usage: test-fleecing.py [--chaind PATH] [WORD]...
"""
import random
import time

import nbd

from commits import BLOCK, content, create, guests, kill_beside, start_guests
from disks import small_file_system
from harness import KIB, MIB, check_image, main, qemu_img, qemu_io, run
from world import World

SIZE = 16 * MIB
TOP = {"driver": "throttle", "throttle-group": "none"}  # what it costs to be able to put a filter in


def copies(all_guests, of):
    return [dict(getattr(g, of)) for g in all_guests]


def check(all_guests, data, acked, issued):
    """Each block is as new as `acked`, and not newer than `issued`."""
    assert len(data) == SIZE
    for guest, least, most in zip(all_guests, acked, issued):
        guest.check(data, least)
        for block in guest.blocks:
            version = int.from_bytes(data[block * BLOCK + 8:block * BLOCK + 16], "little")
            assert version <= most[block], f"block {block}: version {version} is newer than the moment"


def await_writes(all_guests, n):
    until = sum(g.n_done for g in all_guests) + n
    while sum(g.n_done for g in all_guests) < until:
        assert not any(g.failure for g in all_guests)
        time.sleep(0.01)


def add_disk(w, tmp, size=SIZE):
    """Two layers, and over them the node that is put over a filter while it is exported."""
    create(tmp / "base", size)
    qemu_io(tmp / "base", f"write -z 0 {size}")
    create(tmp / "src", None, tmp / "base")
    w.add("src", tmp / "src")
    w.qmp.command("object-add", qom_type="throttle-group", id="none")
    w.qmp.command("blockdev-add", node_name="top", file="src", **TOP)
    w.export("top", name="disk")


def add_scratch(w, path, fmt="raw", size=SIZE):
    path.unlink(missing_ok=True)
    qemu_img("create", "-q", "-f", fmt, path, str(size))
    w.add("scratch", path, fmt)


def lay_over(w, node):
    w.qmp.command("blockdev-reopen", options=[{**TOP, "node-name": "top", "file": node}])


def put_in(w, all_guests, **options):
    """The moment lies between what had been acknowledged before and what was issued after."""
    w.qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="src", target="scratch",
                  **options)
    acked = copies(all_guests, "acked")
    lay_over(w, "cbw")
    return acked, copies(all_guests, "issued")


def show(w, bitmap=None, writable=False):
    w.qmp.command("blockdev-add", driver="snapshot-access", node_name="access", file="cbw", discard="unmap")
    bitmaps = {"bitmaps": [{"node": "src", "name": bitmap}]} if bitmap else {}
    w.export("access", name="pull", writable=writable, **bitmaps)


def take_out(w):
    w.qmp.command("block-export-del", id="e-access", mode="hard")
    w.qmp.event("BLOCK_EXPORT_DELETED")
    w.qmp.command("blockdev-del", node_name="access")
    lay_over(w, "src")
    w.qmp.command("blockdev-del", node_name="cbw")
    w.qmp.command("blockdev-del", node_name="scratch")


def pull(w, path):
    """All of it, by nbdcopy."""
    path.unlink(missing_ok=True)
    run("nbdcopy", w.uri("pull"), path)
    return path.read_bytes()


def test_under_guests(tmp):
    """What is pulled is the disk of the moment at which the filter was put in, each time it is read"""
    with World(tmp, "--loops", 2) as w:
        add_disk(w, tmp)
        with guests(w, "disk", 2, SIZE // BLOCK, 16) as all_guests:
            for fmt, size in (("raw", SIZE), ("qcow2", SIZE), ("raw", SIZE + MIB)):
                await_writes(all_guests, 1000)
                add_scratch(w, tmp / "scratch", fmt, size)
                acked, issued = put_in(w, all_guests)
                await_writes(all_guests, 1000)
                show(w)
                data = pull(w, tmp / "pulled")
                check(all_guests, data, acked, issued)
                await_writes(all_guests, 3000)
                assert pull(w, tmp / "pulled") == data
                take_out(w)
    check_image(tmp / "src")


def dirty_ranges(h, name):
    """What the bitmap says is dirty, as (offset, length)."""
    ranges, off = [], 0

    def take(context, at, entries, error):
        nonlocal off
        assert context == f"qemu:dirty-bitmap:{name}"
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & 1:
                ranges.append((at, length))
            at += length
        off = at

    while off < h.get_size():
        h.block_status(h.get_size() - off, off, take)
    return ranges


def pull_dirty(w, name, data, discards):
    """`data` with what is dirty read anew, and let go of."""
    h = nbd.NBD()
    h.add_meta_context(f"qemu:dirty-bitmap:{name}")
    h.connect_uri(w.uri("pull"))
    data, n = bytearray(data), 0
    for off, length in dirty_ranges(h, name):
        for at in range(off, off + length, MIB):
            part = min(MIB, off + length - at)
            data[at:at + part] = h.pread(part, at)
            n += part
            if discards:
                h.trim(part, at)
    h.shutdown()
    return bytes(data), n


def test_days(tmp):
    """What changed since the last time makes of the last copy the disk of the next moment"""
    with World(tmp) as w:
        add_disk(w, tmp)
        w.qmp.command("block-dirty-bitmap-add", node="src", name="b0", persistent=True)
        with guests(w, "disk", 2, SIZE // BLOCK // 4, 4) as all_guests:
            data = bytes(SIZE)
            for day in range(6):
                await_writes(all_guests, 200)
                add_scratch(w, tmp / "scratch", ("raw", "qcow2")[day % 2])
                # The next one begins before the moment, and the last one ends after it.
                w.qmp.command("block-dirty-bitmap-add", node="src", name=f"b{day + 1}", persistent=True)
                acked, issued = put_in(w, all_guests)
                w.qmp.command("block-dirty-bitmap-disable", node="src", name=f"b{day}")
                show(w, f"b{day}", writable=True)
                await_writes(all_guests, 100)
                whole = pull(w, tmp / "pulled")
                data, n_read = pull_dirty(w, f"b{day}", whole if day == 0 else data, day % 3 == 2)
                assert n_read < SIZE or day == 0
                take_out(w)
                w.qmp.command("block-dirty-bitmap-remove", node="src", name=f"b{day}")
                assert data == whole, f"day {day}"
                check(all_guests, data, acked, issued)
    check_image(tmp / "src")


def test_only_what_a_bitmap_says(tmp):
    """With a bitmap of the filter only what was dirty is kept, and nothing else can be read"""
    with World(tmp) as w:
        add_disk(w, tmp)
        w.qmp.command("block-dirty-bitmap-add", node="src", name="b", granularity=64 * KIB)
        w.io("disk", "write -q -P 1 1M 128k")
        add_scratch(w, tmp / "scratch")
        put_in(w, [], bitmap={"node": "src", "name": "b"})
        show(w)
        w.io("disk", f"write -q -P 2 0 {SIZE}")
        w.io("pull", "read -q -P 1 1M 128k", read_only=True)
        h = nbd.NBD()
        h.connect_uri(w.uri("pull"))
        for off in (0, MIB - 512, MIB + 128 * KIB):
            try:
                h.pread(1024, off)
            except nbd.Error as e:
                assert e.errno == "EPERM", e
            else:
                raise AssertionError(f"what was not kept can be read at {off}")
        h.shutdown()
        assert (tmp / "scratch").stat().st_blocks * 512 <= MIB
        take_out(w)


def test_deaf_reader(tmp):
    """A reader that takes no replies, or goes away, holds no guest up"""
    with World(tmp) as w:
        add_disk(w, tmp)
        with guests(w, "disk", 2, SIZE // BLOCK, 16) as all_guests:
            add_scratch(w, tmp / "scratch")
            acked, issued = put_in(w, all_guests)
            show(w)
            with w.deaf_reader("pull", SIZE):
                await_writes(all_guests, 5000)
            await_writes(all_guests, 1000)
            check(all_guests, pull(w, tmp / "pulled"), acked, issued)
            take_out(w)


def reads_fail(w):
    h = nbd.NBD()
    h.connect_uri(w.uri("pull"))
    try:
        for off in range(0, SIZE, MIB):
            h.pread(MIB, off)
    except nbd.Error as e:
        return e.errno == "EPERM"
    return False


def test_full_scratch(tmp):
    """A scratch image without room ends the pull, and no guest hears of it; the next one is whole again"""
    with small_file_system(tmp, 4 * MIB) as directory, World(tmp) as w:
        add_disk(w, tmp)
        with guests(w, "disk", 2, SIZE // BLOCK, 16) as all_guests:
            await_writes(all_guests, 4096)
            add_scratch(w, directory / "scratch")
            put_in(w, all_guests)
            show(w)
            await_writes(all_guests, 16000)
            assert reads_fail(w)
            take_out(w)
            (directory / "scratch").unlink()
            await_writes(all_guests, 100)
            add_scratch(w, tmp / "scratch")
            acked, issued = put_in(w, all_guests)
            show(w)
            await_writes(all_guests, 1000)
            check(all_guests, pull(w, tmp / "pulled"), acked, issued)
            take_out(w)


def test_guests_that_are_to_fail(tmp):
    """With break-guest-write it is the client's request that fails, and the snapshot stays"""
    with small_file_system(tmp, 2 * MIB) as directory, World(tmp) as w:
        add_disk(w, tmp)
        w.io("disk", f"write -q -P 1 0 {SIZE}")
        add_scratch(w, directory / "scratch")
        put_in(w, [], on_cbw_error="break-guest-write")
        show(w)
        h, n_failed = nbd.NBD(), 0
        h.connect_uri(w.uri("disk"))
        for off in range(0, SIZE, 64 * KIB):
            try:
                h.pwrite(b"\2" * 64 * KIB, off)
            except nbd.Error as e:
                assert e.errno == "ENOSPC", e
                n_failed += 1
        assert 0 < n_failed < SIZE // (64 * KIB)
        h.shutdown()
        assert pull(w, tmp / "pulled") == b"\1" * SIZE
        take_out(w)


def test_layers_change(tmp):
    """The layers below the filter change meanwhile: an overlay, then a stream, and another backup of it"""
    with World(tmp) as w:
        add_disk(w, tmp)
        with guests(w, "disk", 2, SIZE // BLOCK, 8) as all_guests:
            await_writes(all_guests, 1000)
            add_scratch(w, tmp / "scratch")
            acked, issued = put_in(w, all_guests)
            show(w)
            await_writes(all_guests, 500)
            w.qmp.command("blockdev-snapshot-sync", node_name="src", snapshot_file=str(tmp / "overlay"),
                          snapshot_node_name="overlay")
            await_writes(all_guests, 1000)
            data = pull(w, tmp / "pulled")
            check(all_guests, data, acked, issued)
            w.qmp.command("block-stream", job_id="j", device="overlay")
            done = w.qmp.event("BLOCK_JOB_COMPLETED")
            assert "error" not in done, done
            create(tmp / "copy", SIZE)
            w.add("copy", tmp / "copy")
            before = copies(all_guests, "acked")
            w.qmp.command("blockdev-backup", job_id="b", device="overlay", target="copy", sync="full")
            after = copies(all_guests, "issued")
            done = w.qmp.event("BLOCK_JOB_COMPLETED")
            assert "error" not in done, done
            await_writes(all_guests, 500)
            assert pull(w, tmp / "pulled") == data
            w.qmp.command("blockdev-del", node_name="copy")
            check(all_guests, content(tmp / "copy", tmp / "raw"), before, after)
            w.qmp.command("block-export-del", id="e-access", mode="hard")
            w.qmp.event("BLOCK_EXPORT_DELETED")
            w.qmp.command("blockdev-del", node_name="access")
            lay_over(w, "overlay")
            w.qmp.command("blockdev-del", node_name="cbw")
            await_writes(all_guests, 100)
    check_image(tmp / "overlay")


def test_on_the_command_line(tmp):
    """The filter is there from the start, with all that it needs described in one"""
    create(tmp / "src", SIZE)
    qemu_io(tmp / "src", "write -P 1 0 1M")
    qemu_img("create", "-q", "-f", "raw", tmp / "scratch", str(SIZE))
    with World(tmp) as w:
        w.qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw",
                      file={"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp / "src")}},
                      target={"driver": "file", "node-name": "scratch", "filename": str(tmp / "scratch")})
        w.export("cbw", name="disk")
        show(w)
        nodes = w.nodes()
        assert nodes["scratch"]["drv"] == "file" and len(nodes) == 5, nodes
        w.io("disk", f"write -q -P 2 0 {SIZE}")
        w.io("pull", "read -q -P 1 0 1M", f"read -q -P 0 1M {SIZE - MIB}", read_only=True)
        locked = run("qemu-img", "info", tmp / "scratch", check=False)
        assert locked.returncode == 0  # it only looks
        writer = run("qemu-io", "-f", "raw", "-c", "write 0 512", tmp / "scratch", check=False)
        assert "lock" in writer.stdout + writer.stderr, writer
        for export in ("e-access", "e-cbw"):
            w.qmp.command("block-export-del", id=export)
        w.qmp.command("blockdev-del", node_name="access")
        w.qmp.command("blockdev-del", node_name="cbw")
        assert not w.nodes()
        qemu_io(tmp / "scratch", "write 0 512", fmt="raw")
    check_image(tmp / "src")


def test_iothread(tmp):
    """Disk, filter, scratch image and snapshot go to another loop together"""
    with World(tmp, "--loops", 2) as w:
        add_disk(w, tmp)
        w.qmp.command("object-add", qom_type="iothread", id="io")
        with guests(w, "disk", 2, SIZE // BLOCK, 8) as all_guests:
            add_scratch(w, tmp / "scratch")
            acked, issued = put_in(w, all_guests)
            w.qmp.command("blockdev-add", driver="snapshot-access", node_name="access", file="cbw")
            w.export("access", name="pull", writable=False, iothread="io", fixed_iothread=True)
            await_writes(all_guests, 2000)
            check(all_guests, pull(w, tmp / "pulled"), acked, issued)
            take_out(w)


def test_killed(tmp):
    """Killed at any moment beside a pull, the disk holds what was flushed"""
    rng = random.Random("killed")
    for number in range(3):
        directory = tmp / str(number)
        directory.mkdir()
        w = World(directory)
        add_disk(w, directory)
        add_scratch(w, directory / "scratch")
        all_guests = start_guests(w, "disk", 2, SIZE // BLOCK, 8)
        await_writes(all_guests, 500)
        put_in(w, all_guests)
        show(w)
        time.sleep(rng.random() * 0.3)
        kill_beside(w, all_guests)
        qemu_img("check", "-q", "-r", "leaks", directory / "src")
        disk = content(directory / "src", directory / "raw")
        for g in all_guests:
            g.check(disk, g.flushed)


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backups from outside, under guests that write as fast as they can: of one moment, of a week of days
by a bitmap, of two disks at one moment; cancelled, killed, with a target that is full.

usage: test-backup.py [--chaind PATH] [WORD]...
"""
import random
import threading
import time

import nbd

from commits import (BLOCK, add_three, await_status, content, create, end_of, guests, kill_beside,
                     make_three, start_guests)
from disks import small_file_system
from harness import KIB, MIB, check_image, main, qemu_img
from world import World

SIZE = 16 * MIB


def copies(all_guests, of):
    return [dict(getattr(g, of)) for g in all_guests]


def check(all_guests, data, acked, issued):
    """Each block is as new as `acked`, and not newer than `issued`."""
    for guest, least, most in zip(all_guests, acked, issued):
        guest.check(data, least)
        for block in guest.blocks:
            version = int.from_bytes(data[block * BLOCK + 8:block * BLOCK + 16], "little")
            assert version <= most[block], f"block {block}: version {version} is newer than the backup"


def start(w, all_guests, target, job="j", **arguments):
    """What had been acknowledged before the moment of the backup, and issued until after it."""
    acked = copies(all_guests, "acked")
    w.qmp.command("blockdev-backup", job_id=job, device="top", target=target, **arguments)
    return acked, copies(all_guests, "issued")


def await_writes(all_guests, n):
    until = sum(g.n_done for g in all_guests) + n
    while sum(g.n_done for g in all_guests) < until:
        assert not any(g.failure for g in all_guests)
        time.sleep(0.01)


def end_well(qmp):
    done = end_of(qmp)
    assert "error" not in done, done


def test_under_guests(tmp):
    """A backup under guests is the disk of the moment at which the command returned"""
    make_three(tmp, SIZE)
    with World(tmp, "--loops", 2) as w:
        add_three(w, tmp)
        with guests(w, "disk", 2, SIZE // BLOCK, 16) as all_guests:
            for name, fmt in (("one", "qcow2"), ("two", "raw")):
                await_writes(all_guests, 1000)
                qemu_img("create", "-q", "-f", fmt, tmp / name, str(SIZE))
                w.add(name, tmp / name, fmt)
                acked, issued = start(w, all_guests, name, sync="full")
                end_well(w.qmp)
                w.qmp.command("blockdev-del", node_name=name)
                check(all_guests, content(tmp / name, tmp / "raw", fmt), acked, issued)
    check_image(tmp / "one")
    check_image(tmp / "top")


def test_several_of_one(tmp):
    """Several backups of one disk at a time are each of their own moment, in whatever order they end"""
    make_three(tmp, SIZE)
    names = [f"copy{i}" for i in range(3)]
    with World(tmp) as w:
        add_three(w, tmp)
        for name in names:
            create(tmp / name, SIZE)
            w.add(name, tmp / name)
        with guests(w, "disk", 2, SIZE // BLOCK, 16) as all_guests:
            for speeds in ((MIB, 0, 0), (0, MIB, MIB // 2), (MIB // 2, MIB, 0)):
                moments = {}
                for name, speed in zip(names, speeds):
                    await_writes(all_guests, 300)
                    moments[name] = start(w, all_guests, name, sync="full", job=name, speed=speed)
                for _ in names:
                    end_well(w.qmp)
                for name in names:
                    check(all_guests, content(tmp / name, tmp / "raw"), *moments[name])
        for name in names:
            w.qmp.command("blockdev-del", node_name=name)
    for name in names:
        check_image(tmp / name)


def test_top(tmp):
    """A backup of the top over what lies below it shows the whole disk"""
    make_three(tmp, SIZE)
    create(tmp / "copy", None, tmp / "middle")
    with World(tmp) as w:
        add_three(w, tmp)
        w.add("copy", tmp / "copy", backing="middle")
        with guests(w, "disk", 2, SIZE // BLOCK, 16) as all_guests:
            await_writes(all_guests, 1000)
            acked, issued = start(w, all_guests, "copy", sync="top")
            end_well(w.qmp)
        w.qmp.command("blockdev-del", node_name="copy")
        check(all_guests, content(tmp / "copy", tmp / "raw"), acked, issued)


def one_day(w, tmp, day, all_guests):
    name, before = f"day{day}", f"day{day - 1}"
    create(tmp / name, None if day else SIZE, tmp / before if day else None)
    w.add(name, tmp / name)
    sync = {"sync": "incremental"} if day else {"sync": "full", "bitmap_mode": "on-success"}
    acked, issued = start(w, all_guests, name, bitmap="week", **sync)
    end_well(w.qmp)
    w.qmp.command("blockdev-del", node_name=name)
    check(all_guests, content(tmp / name, tmp / "raw"), acked, issued)


def test_week(tmp):
    """Each day of a week opens as the disk of its moment, also when a day in the middle is committed"""
    make_three(tmp, SIZE)
    with World(tmp) as w:
        add_three(w, tmp)
        w.qmp.command("block-dirty-bitmap-add", node="top", name="week", persistent=True)
        with guests(w, "disk", 2, SIZE // BLOCK // 4, 4) as all_guests:
            for day in range(7):
                await_writes(all_guests, 200)
                one_day(w, tmp, day, all_guests)
    last = content(tmp / "day6", tmp / "raw")
    qemu_img("commit", "-q", "-d", tmp / "day3")
    qemu_img("rebase", "-q", "-u", "-F", "qcow2", "-b", tmp / "day2", tmp / "day4")
    assert content(tmp / "day6", tmp / "raw") == last
    for day in range(7):
        check_image(tmp / f"day{day}")


def write_in_step(uris, done, failures):
    """Version after version, to the first disk, and then to the second."""
    try:
        handles = [nbd.NBD(), nbd.NBD()]
        for h, uri in zip(handles, uris):
            h.connect_uri(uri)
        version = 0
        while not done.is_set():
            version += 1
            for h in handles:
                h.pwrite(version.to_bytes(8, "little") * 64, version % 100 * 64 * KIB)
                h.pwrite(version.to_bytes(8, "little") * 64, SIZE - 512)
    except nbd.Error as e:
        failures.append(e)


def test_two_disks(tmp):
    """The backups of one transaction are of one moment"""
    for name in "abxy":
        create(tmp / name, SIZE)
    done, failures = threading.Event(), []
    with World(tmp, "--loops", 2) as w:
        for name in "abxy":
            w.add(name, tmp / name)
        for name in "ab":
            w.export(name)
        thread = threading.Thread(target=write_in_step, args=([w.uri("a"), w.uri("b")], done, failures))
        thread.start()
        for _ in range(5):
            time.sleep(0.1)
            w.qmp.command("transaction", properties={"completion-mode": "grouped"}, actions=[
                {"type": "blockdev-backup",
                 "data": {"job-id": f"j{a}", "device": a, "target": x, "sync": "full"}}
                for a, x in ("ax", "by")])
            end_well(w.qmp)
            end_well(w.qmp)
        done.set()
        thread.join()
        for name in "xy":
            w.qmp.command("blockdev-del", node_name=name)
    assert not failures, failures
    first, second = (int.from_bytes(content(tmp / name, tmp / "raw")[-512:-504], "little") for name in "xy")
    assert second <= first <= second + 1, (first, second)


def test_cancel(tmp):
    """Cancelled at any moment, a backup leaves guests alone, and the bitmap as it has to be"""
    make_three(tmp, SIZE)
    rng = random.Random("cancel")
    with World(tmp) as w:
        add_three(w, tmp)
        w.qmp.command("block-dirty-bitmap-add", node="top", name="b")
        create(tmp / "copy", SIZE)
        w.add("copy", tmp / "copy")
        with guests(w, "disk", 2, SIZE // BLOCK, 8) as all_guests:
            start(w, all_guests, "copy", sync="full", bitmap="b", bitmap_mode="on-success")
            end_well(w.qmp)
            for _ in range(10):
                start(w, all_guests, "copy", sync="incremental", bitmap="b", speed=rng.choice((0, 1)))
                time.sleep(rng.random() * 0.1)
                w.qmp.send({"execute": "job-cancel", "arguments": {"id": "j"}})
                w.qmp.reply()  # it may have ended
                await_status(w.qmp, "j", "null")
            acked, issued = start(w, all_guests, "copy", sync="incremental", bitmap="b")
            end_well(w.qmp)
        w.qmp.command("blockdev-del", node_name="copy")
        check(all_guests, content(tmp / "copy", tmp / "raw"), acked, issued)


def test_no_time_left(tmp):
    """Of a backup that goes on until it is cancelled query-block-jobs tells how much it has saved, and no time left"""
    make_three(tmp, SIZE)
    create(tmp / "copy", SIZE)
    with World(tmp) as w:
        add_three(w, tmp)
        w.add("copy", tmp / "copy")
        with guests(w, "disk", 1, SIZE // BLOCK, 4) as all_guests:
            await_writes(all_guests, 100)
            start(w, all_guests, "copy", sync="none")
            await_writes(all_guests, 100)
            progress = w.qmp.command("query-block-jobs")[0]["progress"]
            assert progress["copied"] and progress["rate"] and "seconds-left" not in progress, progress
            w.qmp.command("block-job-cancel", device=w.qmp.command("query-block-jobs")[0]["device"])


def test_full_target(tmp):
    """A target without room ends the backup, and no guest hears of it"""
    make_three(tmp, SIZE)
    with small_file_system(tmp, 8 * MIB) as directory, World(tmp) as w:
        create(directory / "copy", SIZE)
        add_three(w, tmp)
        w.add("copy", directory / "copy")
        with guests(w, "disk", 2, SIZE // BLOCK, 16) as all_guests:
            await_writes(all_guests, 8000)
            start(w, all_guests, "copy", sync="none")
            await_writes(all_guests, 8000)
            done = end_of(w.qmp)
            assert "No space left on device" in done["error"], done
            await_writes(all_guests, 1000)
        w.qmp.command("blockdev-del", node_name="copy")


def test_killed(tmp):
    """Killed at any moment beside a backup, the disk holds what was flushed"""
    rng = random.Random("killed")
    for number in range(4):
        directory = tmp / str(number)
        directory.mkdir()
        make_three(directory, SIZE)
        create(directory / "copy", SIZE)
        w = World(directory)
        add_three(w, directory)
        w.add("copy", directory / "copy")
        all_guests = start_guests(w, "disk", 2, SIZE // BLOCK, 8)
        await_writes(all_guests, 500)
        start(w, all_guests, "copy", sync="full", speed=MIB)
        time.sleep(rng.random() * 0.1)
        kill_beside(w, all_guests)
        qemu_img("check", "-q", "-r", "leaks", directory / "top")
        disk = content(directory / "top", directory / "raw")
        for g in all_guests:
            g.check(disk, g.flushed)


if __name__ == "__main__":
    main(globals())

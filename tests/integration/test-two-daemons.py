#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two daemons, each of which has a disk and mirrors or backs it up to an export of the other, at the same
time, under guests; and one of them killed while the other writes to it.

usage: test-two-daemons.py [--chaind PATH] [WORD]...
"""
import contextlib
import time

from commits import BLOCK, content, create, end_of, guests, held
from harness import MIB, check_image, main, qemu_io, same_content, says
from world import World

SIZE = 16 * MIB
GUESTS = 4 * MIB  # from the begin of the disk


class Side:
    """A daemon with a disk of its own, and an image for what the other one sends."""

    def __init__(self, tmp, name):
        self.tmp, self.name = tmp / name, name
        self.tmp.mkdir()
        self.disk, self.copy = self.tmp / "disk", self.tmp / "copy"
        create(self.disk, SIZE)
        qemu_io(self.disk, f"write -P {ord(name)} 6M 4M", f"write -P {ord(name) + 1} 12M 512k")
        create(self.copy, SIZE)
        qemu_io(self.copy, "write -P 9 2M 12M")  # none of it may be left
        self.start()

    def start(self):
        for sock in "qmp", "nbd":
            (self.tmp / sock).unlink(missing_ok=True)
        self.w = World(self.tmp)
        for node in "disk", "copy":
            self.w.add(node, self.tmp / node)
            self.w.export(node, name=node)

    def add_other(self, other, **options):
        self.w.qmp.command("blockdev-add", driver="nbd", node_name="far", export="copy",
                           server={"type": "unix", "path": str(other.tmp / "nbd")}, **options)

    def begin(self, command="blockdev-mirror", **arguments):
        self.w.qmp.command(command, job_id="j", device="disk", target="far", sync="full", **arguments)

    def end_well(self):
        done = end_of(self.w.qmp)
        assert "error" not in done, f"{self.name}: {done}"


@contextlib.contextmanager
def two_sides(tmp):
    with contextlib.ExitStack() as stack:
        sides = []
        for name in "ab":
            sides.append(Side(tmp, name))
            stack.enter_context(sides[-1].w)
        for side, other in zip(sides, reversed(sides)):
            side.add_other(other)
        yield sides


@contextlib.contextmanager
def guests_on(sides):
    """The guests of each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(guests(side.w, "disk", 2, GUESTS // BLOCK, 8)) for side in sides]


def go_on(all_guests, n=200):
    for mine in all_guests:
        until = sum(g.n_done for g in mine) + n
        while sum(g.n_done for g in mine) < until:
            assert not any(g.failure for g in mine), [g.failure for g in mine]
            time.sleep(0.005)


def begin_both(sides, all_guests, **arguments):
    go_on(all_guests)
    for side in sides:
        side.begin(**arguments)
    go_on(all_guests)
    with held(sum(all_guests, [])):
        for side in sides:
            side.w.qmp.event("BLOCK_JOB_READY")
    go_on(all_guests)


def test_let_go(tmp):
    """Each mirrors its disk to the other, both at once under guests: the copies are the disks"""
    for mode in "background", "write-blocking":
        there = tmp / mode
        there.mkdir()
        with two_sides(there) as sides:
            with guests_on(sides) as all_guests:
                begin_both(sides, all_guests, copy_mode=mode)
            for side in sides:
                side.w.qmp.command("block-job-cancel", device="j")
                side.end_well()
        for side, other in zip(sides, reversed(sides)):
            check_image(side.copy)
            same_content(side.disk, other.copy, "qcow2", "qcow2")


def test_pivots(tmp):
    """The same with pivots: in the end each serves its guests from the other's image"""
    with two_sides(tmp) as sides:
        with guests_on(sides) as all_guests:
            begin_both(sides, all_guests)
            for side in sides:
                side.w.qmp.command("job-complete", id="j")
            for side in sides:
                side.end_well()
            go_on(all_guests)
        for side in sides:  # while the other one is there still
            side.w.io("disk", f"read -P {ord(side.name)} 6M 4M", f"read -P {ord(side.name) + 1} 12M 512k",
                      "read -P 0 10M 2M", "flush")
            side.w.qmp.command("block-export-del", id="e-disk")
            side.w.qmp.event("BLOCK_EXPORT_DELETED")
            side.w.qmp.command("blockdev-del", node_name="far")
    for mine, other in zip(all_guests, reversed(sides)):
        check_image(other.copy)
        disk = content(other.copy, tmp / "raw")
        for g in mine:
            g.check(disk, g.acked)


def test_backups(tmp):
    """Each backs its disk up to the other, both at once under guests: the copies are of the moment of the command"""
    with two_sides(tmp) as sides:
        with guests_on(sides) as all_guests:
            go_on(all_guests)
            moments = []
            for side, mine in zip(sides, all_guests):
                acked = [dict(g.acked) for g in mine]
                side.begin("blockdev-backup")
                moments.append((acked, [dict(g.issued) for g in mine]))
            for side in sides:
                side.end_well()
            go_on(all_guests)
        for side in sides:
            side.w.qmp.command("blockdev-del", node_name="far")
    for side, other, mine, (acked, issued) in zip(sides, reversed(sides), all_guests, moments):
        check_image(other.copy)
        disk = content(other.copy, tmp / "raw")
        for g, least, most in zip(mine, acked, issued):
            g.issued = most
            g.check(disk, least)


def resume_until(qmp, is_reached):
    """The other one may not be there yet, and a flush tells once of what was lost."""
    while not is_reached(jobs := qmp.command("query-block-jobs")):
        if jobs[0]["paused"]:
            qmp.send({"execute": "job-resume", "arguments": {"id": "j"}})  # it may have gone on
            qmp.reply()
        time.sleep(0.02)


def test_killed(tmp):
    """One is killed while the other mirrors to it, and comes back: the mirror goes on, and loses nothing"""
    with contextlib.ExitStack() as stack:
        a = Side(tmp, "a")
        stack.enter_context(a.w)
        b = Side(tmp, "b")
        a.add_other(b)
        with guests(a.w, "disk", 2, GUESTS // BLOCK, 8) as mine:
            a.begin(on_target_error="stop", speed=4 * MIB, copy_mode="background")
            for is_ready in False, True:
                go_on([mine])
                b.w.daemon.kill()
                b.w.qmp.close()
                says(str(a.w.qmp.event("BLOCK_JOB_ERROR")), "'stop'")
                go_on([mine])  # guests notice nothing
                b.start()
                a.w.qmp.command("block-job-set-speed", device="j", speed=0)
                with held(mine):
                    resume_until(a.w.qmp, lambda jobs: jobs[0]["status"] == "ready")
        resume_until(a.w.qmp, lambda jobs: jobs[0]["status"] == "ready" and jobs[0]["offset"] == jobs[0]["len"])
        a.w.qmp.command("block-job-cancel", device="j")
        resume_until(a.w.qmp, lambda jobs: not jobs)
        a.end_well()
        a.w.qmp.command("blockdev-del", node_name="far")
        with b.w:
            pass
    same_content(a.disk, b.copy, "qcow2", "qcow2")


if __name__ == "__main__":
    main(globals())

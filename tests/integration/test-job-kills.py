#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 in each phase of each job, under guests that check what they read: what was flushed is there
in whichever image the disk is by then, images are valid, and each layer that stays a point in time is
what it was.

usage: test-job-kills.py [--chaind PATH] [WORD]...
"""
import random
import time

from commits import (BLOCK, add_three, await_status, content, create, held, kill_beside, make_three,
                     start_guests)
from harness import MIB, main, qemu_img, qemu_io
from world import World

SIZE, GUESTS = 8 * MIB, 4 * MIB  # behind the guests' part the middle layer has data
PHASES = ("running", "pending", "finalizing", "concluded")
LIVE_PHASES = ("running", "ready", "completing", *PHASES[1:])


class Case:
    """A job that is killed in one of its phases."""

    def __init__(self, directory, phase, rng):
        self.tmp, self.phase, self.rng = directory, phase, rng
        directory.mkdir()
        make_three(directory, SIZE)
        qemu_io(directory / "middle", f"write -P 5 {GUESTS} {SIZE - GUESTS}")
        self.points = {name: self.content(name) for name in ("base", "middle")}
        self.w = World(directory)
        add_three(self.w, directory)
        self.guests = start_guests(self.w, "disk", 2, GUESTS // BLOCK, 8)

    def content(self, name):
        return content(self.tmp / name, self.tmp / "raw")

    def add_target(self):
        create(self.tmp / "target", SIZE)
        self.w.add("target", self.tmp / "target")

    def await_writes(self, n):
        until = sum(g.n_done for g in self.guests) + n
        while sum(g.n_done for g in self.guests) < until:
            assert not any(g.failure for g in self.guests)
            time.sleep(0.005)

    def go_to_phase(self, command, arguments, is_live):
        """`completing` and `finalizing` may be over by the time of the kill, or not."""
        w, phase = self.w, self.phase
        self.await_writes(200)
        self.acked = [dict(g.acked) for g in self.guests]
        w.qmp.command(command, job_id="j", auto_finalize=phase in ("running", "ready", "completing"),
                      auto_dismiss=False, speed=MIB if phase == "running" else 0, **arguments)
        self.issued = [dict(g.issued) for g in self.guests]
        if is_live and phase != "running":
            with held(self.guests):
                w.qmp.event("BLOCK_JOB_READY")
        if is_live and phase not in ("running", "ready"):
            w.qmp.command("job-complete", id="j")
        if phase in PHASES[1:]:
            await_status(w.qmp, "j", "pending")
        if phase in ("finalizing", "concluded"):
            w.qmp.command("job-finalize", id="j")
        if phase == "concluded":
            await_status(w.qmp, "j", "concluded")
            job, = w.qmp.command("query-jobs")
            assert "error" not in job, job
        if phase in ("running", "ready", "pending", "concluded"):
            self.await_writes(self.rng.randrange(100))
        else:
            time.sleep(self.rng.random() * 0.01)

    def kill(self):
        kill_beside(self.w, self.guests)

    def holds(self, name):
        """Is the disk in that image?"""
        disk = self.content(name)
        try:
            for g in self.guests:
                g.check(disk, g.flushed)
        except AssertionError as e:
            return str(e)
        return None if disk[GUESTS:] == bytes([5]) * (SIZE - GUESTS) else "what guests did not write"

    def look(self, heads, points):
        for path in self.tmp.iterdir():
            if path.name in ("base", "middle", "top", "target"):
                qemu_img("check", "-q", "-r", "leaks", path)
        problems = {name: self.holds(name) for name in heads}
        assert None in problems.values(), problems
        for name in points:
            assert self.content(name) == self.points[name], f"{name} is no point in time any more"


    def look_at_backup(self):
        disk = self.content("target")
        assert disk[GUESTS:] == bytes([5]) * (SIZE - GUESTS)
        for g, least, most in zip(self.guests, self.acked, self.issued):
            g.check(disk, least)
            for block in g.blocks:
                version = int.from_bytes(disk[block * BLOCK + 8:block * BLOCK + 16], "little")
                assert version <= most[block], f"block {block}: version {version} is newer than the backup"


def in_each_phase(tmp, command, arguments, phases, look, has_target=False):
    rng = random.Random(command)
    for phase in phases:
        for i in range(3 if phase in ("completing", "finalizing") else 1):
            case = Case(tmp / f"{phase}-{i}", phase, rng)
            if has_target:
                case.add_target()
            case.go_to_phase(command, arguments, phases is LIVE_PHASES)
            case.kill()
            print(f"# {command} {arguments.get('copy_mode', '')}: killed {phase}")
            look(case)


def left_for(name):
    """The image that guests are in, once they have been taken to another."""
    return {"running": ["top"], "ready": ["top"], "pending": ["top"], "completing": ["top", name],
            "finalizing": ["top", name], "concluded": [name]}


def test_stream(tmp):
    """A stream: the base stays a point in time, and the layer between is needed until the job ends"""
    def look(case):
        if case.phase == "concluded":
            (case.tmp / "middle").unlink()
        case.look(["top"], ["base"])
    in_each_phase(tmp, "block-stream", {"device": "top", "base_node": "base"}, PHASES, look)


def test_commit(tmp):
    """A commit of a layer in the middle"""
    def look(case):
        if case.phase == "concluded":
            (case.tmp / "middle").unlink()
        case.look(["top"], [])
    in_each_phase(tmp, "block-commit", {"device": "top", "top_node": "middle", "base_node": "base"},
                  PHASES, look)


def active(tmp, **arguments):
    in_each_phase(tmp, "block-commit", {"device": "top", "base_node": "base", **arguments}, LIVE_PHASES,
                  lambda case: case.look(left_for("base")[case.phase], []))


def test_active_commit(tmp):
    """A commit of what guests write, in the background"""
    active(tmp, copy_mode="background")


def test_blocking_commit(tmp):
    """The same, write-blocking"""
    active(tmp, copy_mode="write-blocking")


def test_keep_top(tmp):
    """A commit whose top stays: guests never leave it"""
    in_each_phase(tmp, "block-commit", {"device": "top", "base_node": "base", "keep_top": True},
                  LIVE_PHASES, lambda case: case.look(["top"], []))


def test_mirror(tmp):
    """A mirror: all layers below stay points in time"""
    in_each_phase(tmp, "blockdev-mirror", {"device": "top", "target": "target", "sync": "full"},
                  LIVE_PHASES, lambda case: case.look(left_for("target")[case.phase], ["base", "middle"]),
                  has_target=True)


def test_backup(tmp):
    """A backup: the disk stays where it is; one that had ended is of one moment"""
    def look(case):
        case.look(["top"], ["base", "middle"])
        if case.phase == "concluded":
            case.look_at_backup()
    in_each_phase(tmp, "blockdev-backup", {"device": "top", "target": "target", "sync": "full"},
                  PHASES, look, has_target=True)


if __name__ == "__main__":
    main(globals())

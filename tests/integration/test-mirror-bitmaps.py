#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes of the bitmap of a mirror, for each bitmap-mode and each way in which the job can end:
what the bitmap no longer has is in the target, so that the next mirror, of what it has, completes it.

usage: test-mirror-bitmaps.py [--chaind PATH] [WORD]...
"""
import time

from commits import await_status, content, create, end_of
from harness import KIB, MIB, main, qemu_io
from world import World

SIZE = 8 * MIB
GRANULE = 64 * KIB
CHANGED = [n * MIB for n in range(8)]  # a granule each
BAD = 5 * MIB                          # where a target fails
ALL = len(CHANGED) * GRANULE

# What the bitmap has then: of what was changed before the job, all or nothing; `some`: what was not
# copied, and perhaps more.
EXPECTED = {
    #                            never  on-success  always
    "completed":                ("all", "nothing", "nothing"),
    "left when ready":          ("all", "nothing", "nothing"),
    "cancelled before ready":   ("all", "all", "some"),
    "cancelled when ready":     ("all", "all", "some"),
    "failed":                   ("all", "all", "some"),
    "killed":                   ("all", "inconsistent", "inconsistent"),
}
MODES = ("never", "on-success", "always")


class Case:
    def __init__(self, tmp):
        """A disk, its copy of some moment, and what was changed since."""
        self.tmp = tmp
        create(tmp / "disk", SIZE)
        qemu_io(tmp / "disk", f"write -P 1 0 {SIZE}")
        (tmp / "copy").write_bytes(content(tmp / "disk", tmp / "raw"))
        with World(tmp) as w:
            self.add(w)
            w.qmp.command("block-dirty-bitmap-add", node="disk", name="b", granularity=GRANULE,
                          persistent=True)
            w.io("disk", *(f"write -P {n + 2} {off} {GRANULE}" for n, off in enumerate(CHANGED)))
            w.qmp.command("block-export-del", id="e-disk")
            w.qmp.command("blockdev-del", node_name="disk")

    def add(self, w):
        w.add("disk", self.tmp / "disk")
        w.export("disk")

    def add_copy(self, w, fails=False):
        file = {"driver": "file", "filename": str(self.tmp / "copy")}
        if fails:
            file = {"driver": "blkdebug", "image": file,
                    "inject-error": [{"event": "none", "iotype": "write", "sector": BAD // 512}]}
        w.qmp.command("blockdev-add", driver="raw", node_name="copy", file=file)

    def bitmap(self, w):
        return next(b for b in w.nodes()["disk"]["dirty-bitmaps"] if b["name"] == "b")

    def start(self, w, mode, **arguments):
        w.qmp.command("blockdev-mirror", job_id="j", device="disk", target="copy", sync="bitmap",
                      bitmap="b", bitmap_mode=mode, **arguments)


def await_copied(w):
    while w.qmp.command("query-block-jobs")[0]["offset"] == 0:
        time.sleep(0.01)


def await_cancelled(w):
    w.qmp.event("BLOCK_JOB_CANCELLED")
    await_status(w.qmp, "j", "null")


def end_completed(case, w, mode):
    case.start(w, mode)
    w.qmp.event("BLOCK_JOB_READY")
    w.qmp.command("job-complete", id="j")
    assert "error" not in end_of(w.qmp)


def end_left_when_ready(case, w, mode):
    case.start(w, mode)
    w.qmp.event("BLOCK_JOB_READY")
    w.qmp.command("block-job-cancel", device="j")
    assert "error" not in end_of(w.qmp)


def end_cancelled_before_ready(case, w, mode):
    case.start(w, mode, speed=GRANULE)
    await_copied(w)
    w.qmp.command("block-job-cancel", device="j", force=True)
    await_cancelled(w)


def end_cancelled_when_ready(case, w, mode):
    case.start(w, mode)
    w.qmp.event("BLOCK_JOB_READY")
    w.qmp.command("job-cancel", id="j")
    await_cancelled(w)


def end_failed(case, w, mode):
    case.start(w, mode)
    done = end_of(w.qmp)
    assert "error" in done, done


def check_bitmap(case, w, expected):
    bitmap = case.bitmap(w)
    count = bitmap["count"]
    if expected == "inconsistent":
        assert bitmap.get("inconsistent"), bitmap
    elif expected == "some":
        assert count <= ALL and not bitmap.get("inconsistent"), bitmap
    else:
        assert count == (ALL if expected == "all" else 0), f"{expected} is expected: {bitmap}"


def check_rest(case, w):
    """The bitmap's rest makes the copy the disk."""
    case.add_copy(w)
    case.start(w, "on-success")
    w.qmp.event("BLOCK_JOB_READY")
    w.qmp.command("block-job-cancel", device="j")
    assert "error" not in end_of(w.qmp)
    check_bitmap(case, w, "nothing")


def check_end(tmp, end, mode):
    case = Case(tmp)
    expected = EXPECTED[end][MODES.index(mode)]
    with World(tmp) as w:
        case.add(w)
        case.add_copy(w, end == "failed")
        globals()["end_" + end.replace(" ", "_")](case, w, mode)
        if end == "completed":  # clients are at the copy now
            w.qmp.command("block-export-del", id="e-disk")
            w.qmp.event("BLOCK_EXPORT_DELETED")
        check_bitmap(case, w, expected)
        assert end != "failed" or case.bitmap(w)["count"] >= GRANULE, "what failed is not left"
        w.qmp.command("blockdev-del", node_name="copy")
        check_rest(case, w)
    assert (tmp / "copy").read_bytes() == content(tmp / "disk", tmp / "raw"), "another content"


def check_killed(tmp, mode):
    case = Case(tmp)
    world = World(tmp)
    case.add(world)
    case.add_copy(world)
    case.start(world, mode, speed=GRANULE)
    await_copied(world)
    world.daemon.kill()
    world.daemon.process.wait()
    (tmp / "qmp").unlink(missing_ok=True)
    (tmp / "nbd").unlink(missing_ok=True)
    expected = EXPECTED["killed"][MODES.index(mode)]
    with World(tmp) as w:
        case.add(w)
        check_bitmap(case, w, expected)
        if expected == "all":
            check_rest(case, w)


def add_tests():
    for end in EXPECTED:
        for mode in MODES:
            def test(tmp, end=end, mode=mode):
                if end == "killed":
                    check_killed(tmp, mode)
                else:
                    check_end(tmp, end, mode)
            test.__doc__ = f"A mirror that was {end}, and bitmap-mode {mode}"
            globals()[f"test_{end}_{mode}".replace(" ", "_").replace("-", "_")] = test


add_tests()
main(globals())

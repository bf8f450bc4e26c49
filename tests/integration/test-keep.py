#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commits that keep points in time: overlays of the base, and what lies on them, show what they did, with
guests at work, killed in the middle, and with qemu-img as the judge."""
import random
import threading
import time

from harness import KIB, MIB, Daemon, check_image, connect, main, qemu_img, qemu_io, random_file, same_content, says
from qmp_client import Qmp

SIZE = 8 * MIB
BLOCK = 32 * KIB


class World:
    """base ← l1 ← l2 ← head, and branch (with a head of its own) over base. `points` says what each showed."""

    def __init__(self, tmp, seed, cluster="64k", extended="off"):
        self.tmp, rand = tmp, random.Random(seed)
        random_file(tmp / "content", SIZE, seed)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "content", tmp / "base")
        self.points = []
        for name, below in (("l1", "base"), ("l2", "l1"), ("head", "l2"), ("branch", "base"), ("branch2", "branch")):
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster},extended_l2={extended}",
                     "-b", tmp / below, "-F", "qcow2", tmp / name)
            qemu_io(tmp / name, *(f"write -P {rand.randrange(1, 255)} {rand.randrange(SIZE // BLOCK) * BLOCK} {BLOCK}"
                                  for _ in range(24)), f"write -z {rand.randrange(8) * MIB} 300k")
            qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp / name, tmp / f"{name}.was")

    def config(self, name, below=None, read_only=True):
        c = {"driver": "qcow2", "node-name": name, "read-only": read_only,
             "file": {"driver": "file", "filename": str(self.tmp / name)}}
        if below:
            c["backing"] = below
        return c

    def start(self, *options):
        """The chain of head, branch and branch2 over one base; head and branch2 are written."""
        d = Daemon("--qmp", self.tmp / "q", *options)
        q = Qmp(self.tmp / "q")
        for c in (self.config("base"), self.config("l1", "base"), self.config("l2", "l1"),
                  self.config("head", "l2", False), self.config("branch", "base"),
                  self.config("branch2", "branch", False)):
            q.command("blockdev-add", **{k.replace("-", "_"): v for k, v in c.items()})
        q.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.tmp / "s")}})
        return d, q

    def export(self, q, name, writable):
        q.command("block-export-add", type="nbd", id=f"e-{name}", node_name=name, name=name, writable=writable)
        return connect(f"nbd+unix:///{name}?socket={self.tmp / 's'}")

    def check_points(self, *names):
        for name in names:
            check_image(self.tmp / name)
            same_content(self.tmp / name, self.tmp / f"{name}.was", "qcow2", "raw")


def commit(q, keep=True, **more):
    q.command("block-commit", job_id="j", device="head", top_node="l2", base_node="base",
              **({"keep_points": True} if keep else {}), **more)


def completed(q):
    data = q.event("BLOCK_JOB_COMPLETED")
    assert "error" not in data, data
    return data


def test_kept(tmp):
    """Committed with and without loops and subclusters: every layer shows what it did, and so do branches."""
    for number, (options, extended) in enumerate((((), "off"), (("--loops", "2"), "off"), ((), "on"))):
        there = tmp / str(number)
        there.mkdir()
        w = World(there, number, extended=extended)
        d, q = w.start(*options)
        with d:
            sizes = {name: (there / name).stat().st_size for name in ("l1", "branch")}
            commit(q, auto_dismiss=False)
            completed(q)
            # What the points got counts beside what the base did.
            job, = q.command("query-block-jobs")
            growth = sum((there / name).stat().st_size - was for name, was in sizes.items())
            moved = job["progress"]["copied"] + job["progress"]["shared"]
            assert moved > growth and job["offset"] == job["len"] > SIZE, (job, growth)
            q.command("job-dismiss", id="j")
            chain = q.command("query-named-block-nodes", flat=True)
            head = next(n for n in chain if n["node-name"] == "head")
            assert head["backing_file"].endswith("/base"), head
        w.check_points("l1", "l2", "head", "branch", "branch2")
        # The base is what l2 was.
        same_content(w.tmp / "base", w.tmp / "l2.was", "qcow2", "raw")


def test_guests(tmp):
    """Guests write the head and the branch, others read l1 and the branch's point, all through the job."""
    w = World(tmp, 7)
    d, q = w.start("--loops", "1")
    writers, readers, stop, wrong = {}, {}, threading.Event(), []
    with d:
        for name in ("head", "branch2"):
            writers[name] = w.export(q, name, True), bytearray((tmp / f"{name}.was").read_bytes())
        for name in ("l1", "branch"):
            readers[name] = w.export(q, name, False), (tmp / f"{name}.was").read_bytes()

        def guest(name, seed):
            rand = random.Random(seed)
            h, shadow = (writers.get(name) or readers[name])
            while not stop.is_set() and not wrong:
                off = rand.randrange(SIZE // 4096) * 4096
                if name in writers and rand.random() < 0.5:
                    data = rand.randbytes(4096)
                    h.pwrite(data, off)
                    shadow[off:off + 4096] = data
                elif h.pread(4096, off) != shadow[off:off + 4096]:
                    wrong.append(f"{name} at {off}")

        threads = [threading.Thread(target=guest, args=(n, i)) for i, n in enumerate((*writers, *readers))]
        for t in threads:
            t.start()
        commit(q, speed=8 * MIB)
        completed(q)
        stop.set()
        for t in threads:
            t.join()
        assert not wrong, wrong
        for h, _ in (*writers.values(), *readers.values()):
            h.shutdown()
    for name, (_, shadow) in writers.items():
        (tmp / f"{name}.was").write_bytes(shadow)
    w.check_points("l1", "l2", "head", "branch", "branch2")


def test_head(tmp):
    """The head itself is committed and stays, under its guest: all layers between and branches show what they did"""
    w = World(tmp, 13)
    d, q = w.start("--loops", "1")
    with d:
        h, shadow = w.export(q, "head", True), bytearray((tmp / "head.was").read_bytes())
        rand = random.Random(13)
        q.command("block-commit", job_id="j", device="head", base_node="base", keep_points=True, keep_top=True,
                  auto_complete=True, speed=8 * MIB)
        while q.command("query-jobs"):
            off, data = rand.randrange(SIZE // 4096) * 4096, rand.randbytes(4096)
            h.pwrite(data, off)
            shadow[off:off + 4096] = data
        completed(q)
        assert h.pread(SIZE, 0) == shadow
        h.shutdown()
        head = next(n for n in q.command("query-named-block-nodes", flat=True) if n["node-name"] == "head")
        assert head["backing_file"].endswith("/base"), head
    (tmp / "head.was").write_bytes(shadow)
    w.check_points("l1", "l2", "head", "branch", "branch2")


def await_part(q, part):
    """Waits until the job has done something, and this part of what there is; or has ended."""
    while jobs := q.command("query-block-jobs"):
        if jobs[0]["offset"] > 0 and jobs[0]["offset"] >= part * jobs[0]["len"]:
            return
        time.sleep(0.01)


def test_killed(tmp):
    """Killed at any moment the layers and the branch still show what they did; the head does after it, too."""
    for number, part in enumerate((0, 0.1, 0.3, 0.6)):
        there = tmp / str(number)
        there.mkdir()
        w = World(there, number)
        d, q = w.start()
        try:
            commit(q, speed=6 * MIB)
            await_part(q, part)
        finally:
            d.kill()
        for name in ("l1", "l2", "head", "branch", "branch2"):
            same_content(w.tmp / name, w.tmp / f"{name}.was", "qcow2", "raw")


def test_refused(tmp):
    """Who would see something else is named; with keep-points nobody would. The head itself cannot."""
    w = World(tmp, 9)
    d, q = w.start("--loops", "1")
    with d:
        w.export(q, "l1", False)
        q.command("block-export-add", type="nbd", id="e-base", node_name="base", name="base")
        refused = {"job_id": "j", "device": "head", "top_node": "l2", "base_node": "base"}
        assert "'base'" in q.error("block-commit", **refused, keep_points=True)
        q.command("block-export-del", id="e-base")
        q.event("BLOCK_EXPORT_DELETED")
        assert "l1" in q.error("block-commit", **refused) or "base" in q.error("block-commit", **refused)
        says(q.error("block-commit", job_id="j", device="head", base_node="base", keep_points=True),
             "'keep-points' specified, but 'top' is the active layer", "'keep-top'")
        commit(q)
        completed(q)
    w.check_points("l1", "l2", "head", "branch", "branch2")


def test_cancelled(tmp):
    """Cancelled in the middle, nothing shows anything else."""
    w = World(tmp, 11)
    d, q = w.start()
    with d:
        commit(q, speed=4 * MIB)
        await_part(q, 0.3)
        q.command("block-job-cancel", device="j")
        q.event("BLOCK_JOB_CANCELLED")
    w.check_points("l1", "l2", "head", "branch", "branch2")


if __name__ == "__main__":
    main(globals())

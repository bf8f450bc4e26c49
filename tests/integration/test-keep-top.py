#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commits whose top stays in the chain: what guests see never changes, what the base has is given back to
the host, and what they write in the meantime stays, killed at any moment.

usage: test-keep-top.py [--chaind PATH] [WORD]...
"""
import os
import random
import time

import commits
from harness import HANG, KIB, MIB, check_image, main, qemu_img, qemu_io, random_file, same_content, says
from world import World

SIZE = 16 * MIB


def create(path, below, *options):
    qemu_img("create", "-q", "-f", "qcow2", *options, "-b", below, "-F", "qcow2", path)


def allocated(path):
    return os.stat(path).st_blocks * 512


def add_chain(w, tmp, *names):
    for below, name in zip((None, *names), names):
        is_head = name == names[-1]
        w.add(name, tmp / name, read_only=not is_head, **({"backing": below} if below else {}))
    w.export(names[-1], name="disk")


def make_chain(tmp, *options):
    """base ← middle ← top, each with something, zeros and discarded clusters in the top."""
    random_file(tmp / "content", SIZE)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "content", tmp / "base")
    create(tmp / "middle", tmp / "base")
    qemu_io(tmp / "middle", "write -P 1 1M 4M", "write -z 6M 1M")
    create(tmp / "top", tmp / "middle", *options)
    qemu_io(tmp / "top", "write -P 2 2M 8M", "write -z 1M 512k", "discard 12M 1M", "write -P 3 15M 4k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp / "top", tmp / "was")


def start(w, device, **arguments):
    w.qmp.command("block-commit", job_id="j", device=device, keep_top=True, **arguments)


def end(w):
    done = commits.end_of(w.qmp)
    assert "error" not in done, done


def await_given_back(path, bytes_left):
    """What was unlinked goes to the host in the background."""
    deadline = time.monotonic() + HANG
    while allocated(path) > bytes_left:
        assert time.monotonic() < deadline, f"{path} still has {allocated(path)} bytes"
        time.sleep(0.02)


def test_given_back(tmp):
    """The head stays, with nothing in it: of clusters, subclusters, small ones, and compressed ones"""
    for number, options in enumerate(("cluster_size=64k", "cluster_size=4k", "extended_l2=on", "compat=0.10", "z")):
        there = tmp / str(number)
        there.mkdir()
        if options == "z":
            make_chain(there)
            qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-B", there / "middle", "-F", "qcow2",
                     there / "top", there / "packed")
            (there / "packed").rename(there / "top")
        else:
            make_chain(there, "-o", options)
        with World(there, *(("--loops", 2) if number == 0 else ())) as w:
            add_chain(w, there, "base", "middle", "top")
            start(w, "top", base_node="base")
            w.qmp.event("BLOCK_JOB_READY")
            w.io("disk", "write -q -P 9 3M 64k")
            w.qmp.command("job-complete", id="j")
            end(w)
            nodes = w.nodes()
            says(nodes["top"]["backing_file"], "base")
            assert nodes["base"]["ro"] and not nodes["top"]["ro"]
            await_given_back(there / "top", 512 * KIB)
            w.io("disk", "read -q -P 9 3M 64k", "read -q -P 2 4M 6M", "read -q -P 0 1M 512k", "write -q -P 8 0 64k")
            w.qmp.command("blockdev-del", node_name="middle")
        (there / "middle").unlink()
        says(qemu_img("info", there / "top"), f"backing file: {there}/base")
        check_image(there / "base")
        check_image(there / "top")
        qemu_io(there / "was", "write -P 9 3M 64k", "write -P 8 0 64k", fmt="raw")
        same_content(there / "top", there / "was")


def test_completes_itself(tmp):
    """With auto-complete nobody has to say anything; without a layer between, too"""
    make_chain(tmp)
    with World(tmp) as w:
        add_chain(w, tmp, "base", "middle", "top")
        start(w, "top", base_node="middle", auto_complete=True)
        end(w)
        await_given_back(tmp / "top", 512 * KIB)
        w.qmp.command("block-commit", job_id="j", device="top", base_node="base", auto_complete=True)
        end(w)
    same_content(tmp / "base", tmp / "was")


def test_layer_between(tmp):
    """A layer in the middle stays, and is empty, under a guest of the head"""
    make_chain(tmp)
    create(tmp / "head", tmp / "top")
    with World(tmp, "--loops", 1) as w:
        add_chain(w, tmp, "base", "middle", "top", "head")
        w.io("disk", "write -q -z 0 2M")
        with commits.guests(w, "disk", 2, 2 * MIB // commits.BLOCK, 4) as guests:
            start(w, "head", top_node="top", base_node="base")
            end(w)
            await_given_back(tmp / "top", 512 * KIB)
        assert w.nodes()["top"]["ro"] and w.nodes()["base"]["ro"]
        says(w.nodes()["head"]["backing_file"], "top")
        w.io("disk", "read -q -P 2 4M 6M", "read -q -P 0 12M 1M", "read -q -P 3 15M 4k")
    (tmp / "middle").unlink()
    check_image(tmp / "top")
    same_content(tmp / "top", tmp / "was")
    disk = commits.content(tmp / "head", tmp / "raw")
    for g in guests:
        g.check(disk, g.acked)


def test_under_guests(tmp):
    """Guests that write all the time keep what they write, and do not keep the job from its end"""
    size = 32 * MIB
    commits.make_three(tmp, size)
    with World(tmp) as w:
        commits.add_three(w, tmp)
        with commits.guests(w, "disk", 2, size // commits.BLOCK, 16) as guests:
            while sum(g.n_done for g in guests) < 2000:
                time.sleep(0.01)
            start(w, "top", base_node="base")
            w.qmp.event("BLOCK_JOB_READY")
            w.qmp.command("job-complete", id="j")
            end(w)
            after = sum(g.n_done for g in guests)
            while sum(g.n_done for g in guests) < after + 1000:
                time.sleep(0.01)
        w.qmp.command("blockdev-del", node_name="middle")
        (tmp / "middle").unlink()
    check_image(tmp / "base")
    check_image(tmp / "top")
    disk = commits.content(tmp / "top", tmp / "raw")
    for g in guests:
        g.check(disk, g.acked)


def test_progress_and_speed(tmp):
    """What is given back is progress of the job, which users see, no faster than it may; they change that, or cancel"""
    for number, ending in enumerate(("let", "cancel", "hurry")):
        there = tmp / str(number)
        there.mkdir()
        make_chain(there)
        with World(there) as w:
            add_chain(w, there, "base", "middle", "top")
            start(w, "top", base_node="base", auto_complete=True, speed=8 * MIB, auto_finalize=False)
            commits.await_status(w.qmp, "j", "pending")
            copied, = w.qmp.command("query-block-jobs")
            assert copied["offset"] == copied["len"], copied
            w.qmp.command("job-finalize", id="j")  # which does not wait for all of it
            w.qmp.command("block-job-set-speed", device="j", speed=2 * MIB)  # for some seconds of looks
            begun, seen = time.monotonic(), set()
            while jobs := w.qmp.command("query-block-jobs"):
                job, = jobs
                assert job["status"] == "pending" and job["offset"] <= job["len"], job
                seen.add((job["offset"], job["len"]))
                if len(seen) == 4 and ending != "let":
                    seen.add(ending)
                    if ending == "cancel":
                        w.qmp.command("job-cancel", id="j")
                    else:
                        w.qmp.command("block-job-set-speed", device="j", speed=0)
            took = time.monotonic() - begun
            end(w)
            says(w.nodes()["top"]["backing_file"], "base")
            if ending == "cancel":
                says(w.daemon.log(), "keeps clusters that its base has, too")
            else:
                await_given_back(there / "top", 512 * KIB)
            assert len(seen) > 4 and (took > 0.5 or ending != "let"), (seen, took)
            assert max(s for s in seen if s != ending)[1] > copied["len"]
        check_image(there / "top")
        same_content(there / "top", there / "was")


def test_trims_that_are_ignored(tmp):
    """What a guest only trims, where that is ignored, is given back all the same"""
    make_chain(tmp)
    with World(tmp) as w:
        for below, name in ((None, "base"), ("base", "middle"), ("middle", "top")):
            w.add(name, tmp / name, read_only=name != "top", discard="ignore", **({"backing": below} if below else {}))
        w.export("top", name="disk")
        start(w, "top", base_node="base")
        w.qmp.event("BLOCK_JOB_READY")
        w.io("disk", "discard 0 16M")
        w.qmp.command("job-complete", id="j")
        end(w)
        await_given_back(tmp / "top", 512 * KIB)
    same_content(tmp / "top", tmp / "was")


def test_killed(tmp):
    """Killed at any moment: what was flushed is there, and the images are valid"""
    size, rng = 8 * MIB, random.Random("keep-top")
    for number in range(8):
        there = tmp / str(number)
        there.mkdir()
        commits.make_three(there, size)
        qemu_io(there / "middle", f"write -z 0 {size // 2}")
        w = World(there)
        commits.add_three(w, there)
        guests = commits.start_guests(w, "disk", 2, size // commits.BLOCK, 8)
        start(w, "top", base_node="base", auto_complete=True)
        time.sleep(rng.random() * 0.05)
        commits.kill_beside(w, guests)
        disk = commits.content(there / "top", there / "raw")
        for g in guests:
            g.check(disk, g.flushed)
        for name in ("base", "middle", "top"):
            qemu_img("check", "-q", "-r", "leaks", there / name)


def test_refused(tmp):
    """What cannot be is said before anything changes; cancelled, all stays as it was"""
    make_chain(tmp)
    with World(tmp) as w:
        add_chain(w, tmp, "base", "middle", "top")
        says(w.qmp.error("block-commit", job_id="j", device="top", keep_top=True, copy_mode="background"),
             "'keep-top'")
        says(w.qmp.error("block-commit", job_id="j", device="top", top_node="middle", auto_complete=True),
             "'auto-complete'")
        start(w, "top", base_node="base", speed=MIB)
        w.qmp.command("block-job-cancel", device="j", force=True)
        w.qmp.event("BLOCK_JOB_CANCELLED")
        commits.await_status(w.qmp, "j", "null")
        says(w.nodes()["top"]["backing_file"], "middle")
        w.qmp.command("blockdev-snapshot-internal-sync", device="top", name="s")
        says(w.qmp.error("block-commit", job_id="j", device="top", keep_top=True), "'top'", "internal snapshots")
    same_content(tmp / "top", tmp / "was")


if __name__ == "__main__":
    main(globals())

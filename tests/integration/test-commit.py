#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commits from outside: of random chains, under guests that write as fast as they can, killed at any
moment, into a base that is in somebody's way. What guests see never changes but by what they write.

usage: test-commit.py [--chaind PATH] [WORD]...
"""
import os
import random
import time

import nbd

import images
from commits import (BLOCK, add_three, await_status, content, create, end_of, guests, kill_beside,
                     make_three, start_guests)
from harness import KIB, MIB, check_image, main, qemu_img, qemu_io, says
from world import World


def commit(qmp, device, complete=True, **arguments):
    qmp.command("block-commit", job_id="j", device=device, **arguments)
    if complete:
        qmp.event("BLOCK_JOB_READY")
        qmp.command("job-complete", id="j")
    done = end_of(qmp)
    assert "error" not in done, done


# -- random chains --------------------------------------------------------------------------------

def add_chain(w, paths, layers):
    for i, path in enumerate(paths):
        below = {"backing": f"n{i - 1}"} if i else {}
        w.add(f"n{i}", path, layers[i].fmt, read_only=i < len(paths) - 1, **below)


def one_random_chain(tmp, seed):
    rng = random.Random(f"commit {seed}")
    layers = images.random_chain(seed)
    size = 4 * MIB
    paths, _ = images.make_chain(rng, str(tmp), layers, size)
    head = len(paths) - 1
    top = rng.randrange(1, len(paths))
    base = rng.randrange(top)
    before = content(paths[head], tmp / "raw", layers[head].fmt)
    with World(tmp, "--loops", 2) as w:
        add_chain(w, paths, layers)
        w.export(f"n{head}")
        commit(w.qmp, f"n{head}", complete=top == head, base_node=f"n{base}", top_node=f"n{top}")
        name, sectors = f"n{head}", size // 512 * 512
        h = nbd.NBD()
        h.connect_uri(w.uri(name))
        seen = b"".join(h.pread(min(MIB, sectors - at), at) for at in range(0, sectors, MIB))
        h.shutdown()
        assert seen == before[:sectors], f"seed {seed}: another content through NBD"
    for path in paths[base + 1:top + 1]:
        os.rename(path, f"{path}.gone")
    left, fmt = (paths[base], layers[base].fmt) if top == head else (paths[head], layers[head].fmt)
    after = content(left, tmp / "raw", fmt)
    assert after[:size] == before[:size], f"seed {seed}: another content, commit of {top} into {base}"
    for i, layer in enumerate(layers):
        if layer.fmt == "qcow2" and not base < i <= top:
            check_image(paths[i])


def test_random_chains(tmp):
    """Chains of all kinds of layers show the same after a commit, and stay valid"""
    for seed in (1, 2, 4, 6, 9, 17, 27, 29, 33):
        layers = images.random_chain(seed)
        if len(layers) < 2 or layers[-1].data_file or layers[-1].fmt == "raw":
            continue
        directory = tmp / str(seed)
        directory.mkdir()
        one_random_chain(directory, seed)


def test_internal_snapshots_of_the_base(tmp):
    """Internal snapshots of the base keep what they are"""
    create(tmp / "base", 4 * MIB)
    qemu_io(tmp / "base", "write -P 1 0 2M")
    qemu_img("snapshot", "-c", "s", tmp / "base")
    create(tmp / "top", None, tmp / "base")
    qemu_io(tmp / "top", "write -P 2 1M 2M")
    with World(tmp) as w:
        w.add("base", tmp / "base", read_only=True)
        w.add("top", tmp / "top", backing="base")
        w.export("top")
        commit(w.qmp, "top")
        w.io("top", "read -P 1 0 1M", "read -P 2 1M 2M", "read -P 0 3M 1M")
    check_image(tmp / "base")
    qemu_img("snapshot", "-a", "s", tmp / "base")
    qemu_io(tmp / "base", "read -P 1 0 2M", "read -P 0 2M 2M")


# -- guests ---------------------------------------------------------------------------------------

def converge(tmp, **arguments):
    """Becomes ready, and pivots, under guests that write all the time."""
    size = 32 * MIB
    make_three(tmp, size)
    with World(tmp) as w:
        add_three(w, tmp)
        with guests(w, "disk", 2, size // BLOCK, 16) as all_guests:
            while sum(g.n_done for g in all_guests) < 2000:
                time.sleep(0.01)
            commit(w.qmp, "top", base_node="base", **arguments)
            after = sum(g.n_done for g in all_guests)
            while sum(g.n_done for g in all_guests) < after + 1000:
                time.sleep(0.01)
        w.qmp.command("blockdev-del", node_name="top")
        w.qmp.command("blockdev-del", node_name="middle")
        for name in ("middle", "top"):
            (tmp / name).unlink()
    check_image(tmp / "base")
    disk = content(tmp / "base", tmp / "raw")
    for g in all_guests:
        g.check(disk, g.acked)


def test_converges(tmp):
    """A head that is written as fast as can be is committed all the same"""
    converge(tmp)


def test_write_blocking(tmp):
    """The same with writes that go to both from the start"""
    converge(tmp, copy_mode="write-blocking")


def test_limited_and_pending(tmp):
    """What guests write while the job is pending does not hold up its end, however slow it may be"""
    create(tmp / "base", 8 * MIB)
    create(tmp / "top", None, tmp / "base")
    with World(tmp) as w:
        w.add("base", tmp / "base", read_only=True)
        w.add("top", tmp / "top", backing="base")
        w.export("top")
        w.qmp.command("block-commit", job_id="j", device="top", speed=KIB, auto_finalize=False)
        w.qmp.event("BLOCK_JOB_READY")
        w.qmp.command("job-complete", id="j")
        await_status(w.qmp, "j", "pending")
        w.io("top", "write -q -P 1 0 4M", "write -q -P 2 4M 4M")
        w.qmp.command("job-finalize", id="j")
        done = end_of(w.qmp)
        assert "error" not in done, done
        w.io("top", "read -q -P 1 0 4M", "read -q -P 2 4M 4M")
    check_image(tmp / "base")


def test_under_guests(tmp):
    """A layer in the middle is committed beside guests of the head"""
    size = 32 * MIB
    make_three(tmp, size)
    qemu_io(tmp / "middle", "write -z 1M 16M")
    with World(tmp) as w:
        add_three(w, tmp)
        with guests(w, "disk", 2, size // BLOCK, 16):
            commit(w.qmp, "top", complete=False, top_node="middle", base_node="base")
        (tmp / "middle").unlink()
    says(qemu_img("info", tmp / "top"), f"backing file: {tmp}/base")
    check_image(tmp / "top")
    check_image(tmp / "base")


def test_killed(tmp):
    """Killed at any moment: what was flushed is there, and the images are valid"""
    size = 8 * MIB
    rng = random.Random("killed")
    for round in range(8):
        directory = tmp / str(round)
        directory.mkdir()
        make_three(directory, size)
        qemu_io(directory / "middle", f"write -z 0 {size // 2}")
        is_active = round % 2
        w = World(directory)
        add_three(w, directory)
        all_guests = start_guests(w, "disk", 2, size // BLOCK, 8)
        where = {"top_node": "top" if is_active else "middle"}
        w.qmp.command("block-commit", job_id="j", device="top", base_node="base", **where)
        if is_active:
            w.qmp.event("BLOCK_JOB_READY")
        time.sleep(rng.random() * 0.02)
        kill_beside(w, all_guests)
        disk = content(directory / "top", directory / "raw")
        for g in all_guests:
            g.check(disk, g.flushed)
        for name in ("base", "middle", "top"):
            qemu_img("check", "-q", "-r", "leaks", directory / name)


# -- who is in the way ----------------------------------------------------------------------------

def test_in_the_way(tmp):
    """Who needs the base, or a layer that goes, is named, and nothing has changed"""
    make_three(tmp, 4 * MIB)
    create(tmp / "other", None, tmp / "base")
    with World(tmp, "--loops", 2) as w:
        add_three(w, tmp)
        start = {"job_id": "j", "device": "top"}
        w.add("other", tmp / "other", backing="base")
        says(w.qmp.error("block-commit", **start), "'base'", "'other'")
        w.qmp.command("blockdev-del", node_name="other")
        w.export("middle", writable=False)
        says(w.qmp.error("block-commit", **start), "'middle'", "e-middle")
        w.qmp.command("block-export-del", id="e-middle")
        w.qmp.event("BLOCK_EXPORT_DELETED")
        assert w.nodes()["base"]["ro"]
        commit(w.qmp, "top", base_node="middle")
        assert w.nodes()["base"]["ro"] and not w.nodes()["middle"]["ro"]


def test_locked(tmp):
    """A base that another program holds is not committed into"""
    make_three(tmp, 4 * MIB)
    with World(tmp) as holder:
        holder.add("base", tmp / "base", read_only=True)
        holder.export("base", writable=False)
        directory = tmp / "second"
        directory.mkdir()
        with World(directory) as w:
            add_three(w, tmp)
            says(w.qmp.error("block-commit", job_id="j", device="top"), "base")
            w.io("disk", "write -P 1 0 64k", "read -P 1 0 64k")


def test_mode_is_changed(tmp):
    """The copy mode of a commit is told, and changed both ways while it runs"""
    make_three(tmp, 4 * MIB)
    with World(tmp) as w:
        add_three(w, tmp)
        w.qmp.command("block-commit", job_id="j", device="top")
        w.qmp.event("BLOCK_JOB_READY")
        for mode in ("write-blocking", "background", "write-blocking"):
            w.qmp.command("block-job-change", id="j", type="commit", copy_mode=mode)
            told = w.qmp.event("BLOCK_JOB_COPY_MODE_CHANGE")
            assert told == {"type": "commit", "device": "j", "copy-mode": mode}, told
            job, = w.qmp.command("query-block-jobs")
            assert job["copy-mode"] == mode, job
            while job["actively-synced"] != (mode == "write-blocking"):
                job, = w.qmp.command("query-block-jobs")
            w.io("disk", "write -P 3 0 64k")
        says(str(w.qmp.error("block-job-change", id="j", type="mirror", copy_mode="background")),
             "does not support change")
        w.qmp.command("job-complete", id="j")
        assert "error" not in end_of(w.qmp)
    check_image(tmp / "base")


def test_full(tmp):
    """A base without room pauses the job, which goes on once it is resumed, and loses nothing"""
    make_three(tmp, 4 * MIB)
    qemu_io(tmp / "top", "write -P 7 0 3M")
    with World(tmp) as w:
        fault = {"event": "pwritev", "errno": 28, "once": True, "immediately": True}
        w.qmp.command("blockdev-add", driver="qcow2", node_name="base", read_only=True,
                      file={"driver": "blkdebug", "inject-error": [fault],
                            "image": {"driver": "file", "filename": str(tmp / "base")}})
        w.add("middle", tmp / "middle", backing="base", read_only=True)
        w.add("top", tmp / "top", backing="middle")
        w.export("top", name="disk")
        w.qmp.command("block-commit", job_id="j", device="top", on_error="enospc")
        says(str(w.qmp.event("BLOCK_JOB_ERROR")), "'write'", "'stop'")
        await_status(w.qmp, "j", "paused")
        job, = w.qmp.command("query-block-jobs")
        assert job["io-status"] == "nospace" and job["paused"], job
        w.io("disk", "read -P 7 0 3M", "write -P 8 3M 64k")
        w.qmp.command("block-job-resume", device="j")
        w.qmp.event("BLOCK_JOB_READY")
        w.qmp.command("job-complete", id="j")
        assert "error" not in end_of(w.qmp)
        w.io("disk", "read -P 7 0 3M", "read -P 8 3M 64k")
    check_image(tmp / "base")


if __name__ == "__main__":
    main(globals())

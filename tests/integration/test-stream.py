#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains are shortened by streams while guests write and verify: nobody sees a difference, every layer
that stays shows what it did, and what has left may be deleted. Replies word by word are in ../qmp.

usage: test-stream.py [--chaind PATH] [WORD]...
"""
import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import nbd

from guests import GuestThread
from harness import HANG, KIB, MIB, check_image, main, need_program, qemu_img, qemu_io, run
from stamps import BLOCK, State, stamped
from world import World

SIZE = 16 * MIB


def make_chain(tmp, n, size=SIZE, **options):
    """l0 ← l1 ← …, each with data of its own in places. Their paths, and what each shows."""
    paths, contents = [], []
    rng = random.Random(n)
    for i in range(n):
        path = tmp / f"l{i}.qcow2"
        over = ["-F", "qcow2", "-b", f"l{i - 1}.qcow2"] if i else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *over, path.name, size, cwd=tmp)
        writes = []
        for _ in range(6):
            off = rng.randrange(size // (64 * KIB)) * 64 * KIB
            writes.append(f"write -q -P {1 + rng.randrange(255)} {off} {min(MIB, size - off)}")
        qemu_io(path, f"write -q -P {i + 1} 0 {size // 2}" if not i else "flush", *writes,
                f"write -q -z {rng.randrange(size // MIB)}M 1M", f"write -q -P 9 {i * 68}k 4k")
        paths.append(path)
        contents.append(content(path))
    return paths, contents


def content(path):
    raw = path.with_suffix(".content")
    qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


class Chain(World):
    """A daemon with such a chain, node by node, whose top is exported."""

    def __init__(self, tmp, n, *args, size=SIZE):
        super().__init__(tmp, *args)
        self.paths, self.contents = make_chain(tmp, n, size)
        for i, path in enumerate(self.paths):
            below = {"backing": f"l{i - 1}"} if i else {}
            self.add(f"l{i}", path, read_only=i < n - 1, discard="unmap", **below)
        self.top = f"l{n - 1}"
        self.export(self.top, name="top")

    def stream(self, job, device, wait=True, **options):
        self.qmp.command("block-stream", job_id=job, device=device, **options)
        if wait:
            self.wait_end(job)

    def wait_event(self, job, name, **values):
        """Until the job has had such an event; its data."""
        while True:
            data = self.qmp.event(name)
            if data.get("id", data.get("device")) == job and values.items() <= data.items():
                return data

    def wait_end(self, job, error=None):
        data = self.wait_event(job, "BLOCK_JOB_COMPLETED")
        assert data.get("error") == error, data
        assert error or data["offset"] == data["len"], data
        self.wait_event(job, "JOB_STATUS_CHANGE", status="null")

    def job(self, job):
        return next(j for j in self.qmp.command("query-block-jobs") if j["device"] == job)

    def backing(self, node):
        return self.nodes()[node]["image"].get("backing-filename")

    def open_files(self):
        folder = f"/proc/{self.daemon.process.pid}/fd"
        files = []
        for fd in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                files.append(os.readlink(f"{folder}/{fd}"))
        return files


class Guest(GuestThread):
    """Writes stamps into some blocks and verifies them all the time. One connection for ever."""

    N = 600

    def __init__(self, chain, before):
        super().__init__()
        self.handle, self.random = nbd.NBD(), random.Random(7)
        self.handle.connect_uri(chain.uri("top"))
        self.blocks = self.random.sample(range(len(before) // BLOCK), self.N)
        self.now = {b: before[b * BLOCK:(b + 1) * BLOCK] for b in self.blocks}
        self.flushed, self.since = dict(self.now), {b: [] for b in self.blocks}
        self.state = State([])

    def one_request(self):
        block, kind = self.random.choice(self.blocks), self.random.random()
        off = block * BLOCK
        if kind < 0.02:
            self.handle.flush()
            self.flushed, self.since = dict(self.now), {b: [] for b in self.blocks}
        elif kind < 0.5:
            assert self.handle.pread(BLOCK, off) == self.now[block], f"block {block}"
        elif kind < 0.6:
            self.since[block].append(bytes(BLOCK))
            self.handle.zero(BLOCK, off) if kind < 0.55 else self.handle.pwrite(bytes(BLOCK), off)
            self.now[block] = bytes(BLOCK)
        else:
            data = stamped(self.state.new_stamp())
            self.since[block].append(data)
            self.handle.pwrite(data, off)
            self.now[block] = data

    def check(self, data, before, is_after_crash=False):
        """All that it did not write is as before."""
        for b in range(len(before) // BLOCK):
            found = data[b * BLOCK:(b + 1) * BLOCK]
            if b not in self.now:
                assert found == before[b * BLOCK:(b + 1) * BLOCK], f"block {b}"
            elif not is_after_crash:
                assert found == self.now[b], f"block {b} of the guest"
            else:
                assert found in (self.flushed[b], *self.since[b]), f"block {b} of the guest"


def test_all_under_a_guest(tmp):
    """A guest writes and verifies while its whole chain is streamed into the top; the files below are
    closed and deleted then, and it goes on."""
    with Chain(tmp, 4) as chain:
        guest = Guest(chain, chain.contents[-1])
        guest.start()
        guest.go_on(100)
        chain.stream("s", "l3")
        for i in (2, 1, 0):
            chain.qmp.command("blockdev-del", node_name=f"l{i}")
            chain.paths[i].unlink()
        left = [f for f in chain.open_files() if ".qcow2" in f]
        assert set(left) == {str(chain.paths[3])}, left
        guest.go_on(500)
        guest.stop()
        guest.handle.shutdown()
        assert chain.backing("l3") is None
    check_image(chain.paths[3])
    guest.check(content(chain.paths[3]), chain.contents[3])


def test_into_the_middle(tmp):
    """A stream into a layer in the middle: what it and the others show does not change, and it is
    read-only again."""
    with Chain(tmp, 5) as chain:
        guest = Guest(chain, chain.contents[-1])
        guest.start()
        chain.stream("s", "l3", base_node="l0")
        assert chain.nodes()["l3"]["ro"]
        assert chain.backing("l3") == str(chain.paths[0]), chain.backing("l3")
        for i in (2, 1):
            chain.qmp.command("blockdev-del", node_name=f"l{i}")
            chain.paths[i].unlink()
        guest.go_on(300)
        guest.stop()
        guest.handle.shutdown()
        for i in (0, 3):
            check_image(chain.paths[i], "-U")
            assert content(chain.paths[i]) == chain.contents[i], f"layer {i}"
    check_image(chain.paths[4])
    guest.check(content(chain.paths[4]), chain.contents[4])


def test_two_at_once(tmp):
    """Two streams on one chain that do not touch each other's layers; a third that would is refused."""
    with Chain(tmp, 6) as chain:
        chain.stream("low", "l2", wait=False, base_node="l0", speed=1)
        chain.stream("high", "l5", wait=False, base_node="l2", speed=1)
        for device in ("l2", "l4", "l1"):
            said = chain.qmp.error("block-stream", job_id="third", device=device)
            assert "is busy" in said and "stream job '" in said, said
        for job in ("high", "low"):
            chain.qmp.command("block-job-set-speed", device=job, speed=0)
        running = {"low", "high"}
        while running:
            data = chain.qmp.event("JOB_STATUS_CHANGE")
            if data["status"] == "concluded":
                running.remove(data["id"])
        while chain.qmp.command("query-block-jobs"):
            time.sleep(0.01)
        for i in (4, 3, 1):
            chain.qmp.command("blockdev-del", node_name=f"l{i}")
            chain.paths[i].unlink()
    for i in (0, 2, 5):
        check_image(chain.paths[i])
        assert content(chain.paths[i]) == chain.contents[i], f"layer {i}"


def test_filters(tmp):
    """Into an image under a throttle node, down to a base under one: both stay where they are."""
    paths, contents = make_chain(tmp, 3)
    with World(tmp) as w:
        w.qmp.command("object-add", qom_type="throttle-group", id="g")
        w.add("l0", paths[0], read_only=True)
        w.qmp.command("blockdev-add", driver="throttle", node_name="t0", throttle_group="g",
                      read_only=True, file="l0")
        w.add("l1", paths[1], read_only=True, backing="t0")
        w.add("l2", paths[2], backing="l1")
        w.qmp.command("blockdev-add", driver="throttle", node_name="t2", throttle_group="g", file="l2")
        w.export("t2", name="top")
        w.qmp.command("block-stream", job_id="s", device="t2", base_node="t0")
        assert "error" not in w.qmp.event("BLOCK_JOB_COMPLETED")
        w.qmp.command("blockdev-del", node_name="l1")
        assert w.nodes()["l2"]["image"]["backing-filename"] == str(paths[0])
        paths[1].unlink()
        said = w.qmp.error("blockdev-del", node_name="t0")
        assert "backing hd of 'l2'" in said, said
        raw = tmp / "read"
        run("nbdcopy", w.uri("top"), raw)
        assert raw.read_bytes() == contents[2]
    check_image(paths[2])
    assert content(paths[2]) == contents[2]


def test_errors(tmp):
    """An unreadable place below: the stream fails, goes on without it and fails, or is stopped and tries
    again, as its user wants. The chain shows what it did."""
    paths, contents = make_chain(tmp, 2)
    for policy in ("report", "enospc", "ignore", "stop"):  # after which nothing is left to be read
        with World(tmp) as w:
            w.qmp.command("blockdev-add", driver="blkdebug", node_name="broken", read_only=True,
                          image={"driver": "file", "filename": str(paths[0])},
                          inject_error=[{"event": "read_aio", "errno": 5, "once": True}])
            w.qmp.command("blockdev-add", driver="qcow2", node_name="l0", file="broken",
                          read_only=True)
            w.add("l1", paths[1], backing="l0")
            w.qmp.command("block-stream", job_id="s", device="l1", on_error=policy)
            action = {"enospc": "report"}.get(policy, policy)
            error = w.qmp.event("BLOCK_JOB_ERROR")
            assert error == {"device": "s", "operation": "read", "action": action}, error
            if policy == "stop":
                while not w.qmp.event("JOB_STATUS_CHANGE") == {"id": "s", "status": "paused"}:
                    pass
                job, = w.qmp.command("query-block-jobs")
                assert (job["io-status"], job["paused"]) == ("failed", True), job
                w.qmp.command("block-job-resume", device="s")
            end = w.qmp.event("BLOCK_JOB_COMPLETED")
            assert ("error" in end) == (policy != "stop"), end
            if policy != "stop":
                said = end["error"]
                assert said.startswith("Input/output error: cannot read at offset "), said
                assert said.endswith(f" of {paths[0]}"), said
            assert ("backing-filename" in w.nodes()["l1"]["image"]) == (policy != "stop"), policy
            w.export("l1", name="top")
            run("nbdcopy", w.uri("top"), tmp / "read")
            assert (tmp / "read").read_bytes() == contents[1]
        check_image(paths[1])
        assert content(paths[1]) == contents[1]


def test_stopped_daemon(tmp):
    """SIGTERM while streams run, are paused, or wait for their user: exit status 0, the chain as it was,
    and a stream goes on where that one was."""
    paths, contents = make_chain(tmp, 4)
    for state in ("running", "paused", "pending"):
        chain = World(tmp)
        for i, path in enumerate(paths):
            chain.add(f"l{i}", path, read_only=i < 3, **({"backing": f"l{i - 1}"} if i else {}))
        chain.qmp.command("block-stream", job_id="s", device="l2" if state == "paused" else "l3",
                          base_node="l0", auto_finalize=state != "pending",
                          speed=0 if state == "pending" else 65536)
        if state == "pending":
            chain.qmp.event("BLOCK_JOB_PENDING")
        if state == "paused":
            chain.qmp.command("job-pause", id="s")
        chain.daemon.stop()
        chain.qmp.close()
        for path, data in zip(paths, contents):
            check_image(path)
            assert content(path) == data
        assert paths[2].name in qemu_img("info", paths[3])
        assert paths[1].name in qemu_img("info", paths[2])
    with World(tmp) as chain:
        chain.add("l3", paths[3])
        chain.qmp.command("block-stream", job_id="s", device="l3")
        assert "error" not in chain.qmp.event("BLOCK_JOB_COMPLETED")
    assert content(paths[3]) == contents[3]


def test_killed(tmp):
    """The daemon is killed at any moment of a stream under a guest: the chain is consistent, what was
    flushed is there, and once the job had ended the files below are not needed."""
    for seed in range(4):
        folder = tmp / str(seed)
        folder.mkdir()
        chain = Chain(folder, 3, size=8 * MIB)
        guest = Guest(chain, chain.contents[-1])
        guest.start()
        guest.go_on(50)
        chain.stream("s", "l2", wait=seed == 3)
        guest.go_on(seed * 40)
        chain.daemon.kill()
        chain.qmp.close()
        guest.stopped.set()
        guest.join(HANG)
        run("qemu-img", "check", "-q", "-r", "leaks", chain.paths[2])
        if seed == 3:
            chain.paths[0].unlink()
            chain.paths[1].unlink()
        guest.check(content(chain.paths[2]), chain.contents[2], is_after_crash=True)


def test_loops(tmp):
    """Chains on two loops over one base: one is streamed, the other goes on. The layer that both read is
    not streamed into, and a chain with a job stays where it is."""
    paths, contents = make_chain(tmp, 3)
    other = tmp / "other.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "l1.qcow2", other, cwd=tmp)
    with World(tmp, "--loops", 2) as w:
        for thread in ("first", "second"):
            w.qmp.command("object-add", qom_type="iothread", id=thread)
        for i in range(2):
            w.add(f"l{i}", paths[i], read_only=True, **({"backing": f"l{i - 1}"} if i else {}))
        w.add("l2", paths[2], backing="l1")
        w.add("other", other, backing="l1")
        w.export("l2", name="l2", iothread="first")
        w.export("other", name="other", iothread="second")
        said = w.qmp.error("block-stream", job_id="s", device="l1")
        assert "is read by chains on" in said, said
        w.qmp.command("block-stream", job_id="s", device="l2", base_node="l0", speed=1)
        said = w.qmp.error("block-export-add", type="nbd", id="x", node_name="l2", name="x",
                           iothread="second", fixed_iothread=True)
        assert "it is used by stream job 's'" in said, said
        w.qmp.command("block-job-set-speed", device="s", speed=0)
        assert "error" not in w.qmp.event("BLOCK_JOB_COMPLETED")
        for name, expected in (("l2", contents[2]), ("other", contents[1])):
            run("nbdcopy", w.uri(name), tmp / "read")
            assert (tmp / "read").read_bytes() == expected, name
    check_image(paths[2])
    assert content(paths[2]) == contents[2]


def test_one_base(tmp):
    """Two heads on two loops over the same layers are streamed at once. None of those is committed
    meanwhile, nor when only one of the streams is left; at the end nobody needs them."""
    paths, contents = make_chain(tmp, 3)
    other = tmp / "other.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "l1.qcow2", other, cwd=tmp)
    qemu_io(other, "write -q -P 77 1M 100k")
    contents.append(content(other))
    with World(tmp, "--loops", 2) as w:
        for i in range(2):
            w.add(f"l{i}", paths[i], read_only=True, **({"backing": f"l{i - 1}"} if i else {}))
        heads = {"l2": paths[2], "other": other}
        for name, path in heads.items():
            w.add(name, path, backing="l1")
            w.qmp.command("object-add", qom_type="iothread", id=f"of-{name}")
            w.export(name, name=name, iothread=f"of-{name}")
            w.qmp.command("block-stream", job_id=name, device=name, speed=1)
        for name in heads:
            said = w.qmp.error("block-commit", job_id="c", device=name, top_node="l1",
                               base_node="l0")
            assert "is busy: stream job '" in said, said
            w.qmp.command("block-job-set-speed", device=name, speed=0)
            assert "error" not in w.qmp.event("BLOCK_JOB_COMPLETED")
        while w.qmp.command("query-block-jobs"):
            time.sleep(0.01)
        for i in (1, 0):
            w.qmp.command("blockdev-del", node_name=f"l{i}")
            paths[i].unlink()
    for path, expected in zip(heads.values(), contents[2:]):
        check_image(path)
        assert content(path) == expected, path


def add_overlay(w, tmp, name, below):
    """Over the node `below`, on the loop of the other iothread."""
    path = tmp / f"{name}.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "x", path, SIZE)
    w.add(name, path, backing=below)
    w.export(name, name=name, iothread="second")


def shows(w, tmp, name):
    run("nbdcopy", w.uri(name), tmp / "shown")
    return (tmp / "shown").read_bytes()


def test_other_loop_afterwards(tmp):
    """A layer that got another backing node, by a stream or a snapshot, shows the same on a loop that
    opens it after that."""
    paths, contents = make_chain(tmp, 4)
    with World(tmp, "--loops", 2) as w:
        for thread in ("first", "second"):
            w.qmp.command("object-add", qom_type="iothread", id=thread)
        inner = {"driver": "qcow2", "node-name": "l1", "backing": "l0",
                 "file": {"driver": "file", "filename": str(paths[1])}}
        w.add("l0", paths[0], read_only=True)
        w.add("l2", paths[2], read_only=True, backing=inner)
        w.add("l3", paths[3], backing="l2")
        w.export("l3", name="l3", iothread="first")
        w.qmp.command("block-stream", job_id="s", device="l2", base_node="l0")
        assert "error" not in w.qmp.event("BLOCK_JOB_COMPLETED")
        while w.qmp.command("query-block-jobs"):
            time.sleep(0.01)
        paths[1].unlink()
        add_overlay(w, tmp, "over-stream", "l2")
        assert shows(w, tmp, "over-stream") == contents[2]
        new = tmp / "new.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", paths[3], new)
        w.add("new", new, backing=None)
        w.qmp.command("blockdev-snapshot", node="l3", overlay="new")
        w.qmp.command("blockdev-snapshot-sync", node_name="new", snapshot_node_name="newer",
                      snapshot_file=str(tmp / "newer.qcow2"))
        add_overlay(w, tmp, "over-snapshot", "new")
        assert shows(w, tmp, "over-snapshot") == contents[3]
        assert shows(w, tmp, "l3") == contents[3]


def test_internal_snapshots(tmp):
    """An image with internal snapshots is not streamed into: they show what lies below, too."""
    paths, _ = make_chain(tmp, 2)
    qemu_img("snapshot", "-c", "one", paths[1])
    with World(tmp) as w:
        w.add("l1", paths[1])
        said = w.qmp.error("block-stream", job_id="s", device="l1")
        assert "internal snapshots" in said, said


def test_silent_machine(tmp):
    """What a stream reads from another machine does not come: the daemon ends all the same."""
    server = subprocess.Popen([need_program("nbdkit"), "-f", "-U", tmp / "far", "--filter=delay", "pattern", "1M",
                               "rdelay=1000"])
    try:
        while not os.path.exists(tmp / "far"):
            time.sleep(0.01)
        top = tmp / "top.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "x", top, MIB)
        w = World(tmp)
        w.qmp.command("blockdev-add", driver="nbd", node_name="far", read_only=True,
                      server={"type": "unix", "path": str(tmp / "far")})
        w.add("top", top, backing="far")
        w.qmp.command("block-stream", job_id="s", device="top")
        assert w.qmp.command("query-block-jobs")[0]["status"] == "running"
        w.daemon.process.send_signal(signal.SIGTERM)
        assert w.daemon.wait() == 0, w.daemon.log()
        w.qmp.close()
    finally:
        server.kill()
        server.wait()
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "", top)
    check_image(top)


if __name__ == "__main__":
    main(sys.modules[__name__].__dict__)

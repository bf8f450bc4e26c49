#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Streams and commits whose layers fail: each kind of fault, in each phase of each job, with each of its
policies. The guest beside it notices nothing, and whatever becomes of the job, the chain shows what it
did and each image is valid. What QEMU does in the same places is ../qmp/job-errors.qmp.

usage: test-job-faults.py [--chaind PATH] [WORD]...
"""
import contextlib
import shutil
import struct
import subprocess

import nbd

from guests import GuestThread
from harness import HANG, KIB, MIB, check_image, main, need_program, qemu_img, qemu_io, run
from world import World

SIZE, CLUSTER, L2_COVERS = 8 * MIB, 4 * KIB, 2 * MIB
GUEST = 6 * MIB  # from here on nothing but the top has data, and the guest reads and writes
IN_BASE = 5 * MIB  # data of the base alone
POLICIES = ("report", "ignore", "enospc", "stop")
EIO, ENOSPC = 5, 28
WORDS = {EIO: "Input/output error", ENOSPC: "No space left on device"}
LAYERS = ("base", "middle", "top")


class Images:
    """base ← middle ← top, made once; each case gets copies."""

    def __init__(self, tmp):
        self.master, self.tmp = tmp / "master", tmp
        self.master.mkdir()
        below = None
        for i, name in enumerate(LAYERS):
            over = ["-F", "qcow2", "-b", below] if below else []
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", *over, name,
                SIZE, cwd=self.master)
            qemu_io(self.master / name, f"write -q -P {i + 1} {i}M 1536k")
            below = name
        qemu_io(self.master / "base", f"write -q -P 9 {IN_BASE} 512k")
        qemu_io(self.master / "top", f"write -q -P 8 {GUEST} 64k")
        self.content = self.read(self.master / "top")

    @staticmethod
    def read(path):
        raw = path.parent / "raw"
        qemu_img("convert", "-q", "-U", "-f", "qcow2", "-O", "raw", path, raw)
        data = raw.read_bytes()
        raw.unlink()
        return data

    def copies(self):
        folder = self.tmp / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.master, folder)
        return folder

    def data_sector(self, name, off):
        """Where the file of a layer has what the guest has at `off`."""
        with open(self.master / name, "rb") as f:
            return self.entry(f, off) // 512

    @staticmethod
    def entry(f, off):
        f.seek(40)
        table, = struct.unpack(">Q", f.read(8))
        for index in (off // L2_COVERS, off % L2_COVERS // CLUSTER):
            f.seek(table + index * 8)
            table = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
        return table


class Guest(GuestThread):
    """Reads, and where it may, writes its part of the disk."""

    def __init__(self, uri, writes):
        super().__init__()
        self.handle, self.writes = nbd.NBD(), writes
        self.handle.connect_uri(uri)
        self.now = [8] * 16

    def one_request(self):
        block = self.n_requests % 16
        off = GUEST + block * 4 * KIB
        assert self.handle.pread(4 * KIB, off) == bytes([self.now[block]]) * 4 * KIB, f"block {block}"
        if self.writes:
            value = 10 + self.n_requests % 200
            self.handle.pwrite(bytes([value]) * 4 * KIB, off)
            self.now[block] = value

    def stop(self):
        super().stop()
        self.handle.shutdown()
        assert self.n_requests, "the guest has done nothing"

    def content(self, before):
        data = bytearray(before)
        for block, value in enumerate(self.now):
            at = GUEST + block * 4 * KIB
            data[at:at + 4 * KIB] = bytes([value]) * 4 * KIB
        return bytes(data)


# What a job is started with; and whether it is completed by its user.
JOBS = {
    "stream": ("block-stream", {"device": "top"}, False),
    "commit": ("block-commit", {"device": "top", "top-node": "middle", "base-node": "base"}, False),
    "active": ("block-commit", {"device": "top", "base-node": "base", "copy-mode": "background"}, True),
    "blocking": ("block-commit", {"device": "top", "base-node": "base",
                                  "copy-mode": "write-blocking"}, True),
}


def faults(images, job):
    """(phase, layer whose file fails, rule, operation that the job's users hear of; None: none) """
    source, first = ("base", 0) if job == "stream" else ("middle", MIB)
    target = "top" if job == "stream" else "base"
    yield "look-up", source, {"event": "l2_load", "iotype": "read", "once": False}, "read"
    yield ("read", source, {"event": "none", "iotype": "read",
                            "sector": images.data_sector(source, first + 512 * KIB)}, "read")
    yield "allocation", target, {"event": "cluster_alloc", "iotype": "write"}, "write"
    yield "write", target, {"event": "pwritev", "iotype": "write"}, "write"
    yield "flush", target, {"event": "none", "iotype": "flush"}, None
    if not JOBS[job][2]:
        yield "header", "top", {"event": "none", "iotype": "write", "sector": 0}, None
    else:
        # A guest's write that cannot go to both at once is work, and done again.
        yield ("ready", "base", {"event": "none", "iotype": "write",
                                 "sector": images.data_sector("base", IN_BASE)},
               "write" if job == "active" else None)


class Case:
    """One job that meets one fault."""

    def __init__(self, images, job, fault, errno, policy):
        self.images, self.policy, self.errno = images, policy, errno
        self.command, self.arguments, self.completes = JOBS[job]
        self.phase, self.layer, self.rule, self.operation = fault
        self.folder = images.copies()

    def is_in(self, w):
        for i, name in enumerate(LAYERS):
            file = {"driver": "file", "filename": str(self.folder / name)}
            if name == self.layer:
                rule = {"errno": self.errno, "once": True, **self.rule}
                file = {"driver": "blkdebug", "image": file, "inject-error": [rule]}
            w.qmp.command("blockdev-add", driver="qcow2", node_name=name, file=file, discard="unmap",
                          read_only=name != "top", backing=LAYERS[i - 1] if i else None)
        w.export("top", name="disk")

    def action(self):
        if self.policy == "enospc":
            return "stop" if self.errno == ENOSPC else "report"
        return self.policy

    def meet(self, w):
        """What its users hear of it, and do."""
        event = w.qmp.event("BLOCK_JOB_ERROR")
        assert event == {"device": "j", "operation": self.operation, "action": self.action()}, event
        if self.action() != "stop":
            return
        while w.qmp.event("JOB_STATUS_CHANGE")["status"] not in ("paused", "standby"):
            pass
        job, = w.qmp.command("query-block-jobs")
        status = "nospace" if self.errno == ENOSPC else "failed"
        assert job["paused"] and job["io-status"] == status, job
        w.qmp.command("job-resume", id="j")

    def may_end_well(self):
        """The fault comes once: what is tried again is done."""
        if self.operation is None:
            return self.phase == "ready"
        return self.action() == "stop" or (self.action() == "ignore" and self.command != "block-stream")

    def complete(self, w):
        if self.operation and self.phase != "ready":
            self.meet(w)
        if self.completes and (self.operation is None or self.phase == "ready" or self.may_end_well()):
            w.qmp.event("BLOCK_JOB_READY")
            if self.phase == "ready":
                w.io("disk", f"write -q -P 9 {IN_BASE} 4k")
                if self.operation:
                    self.meet(w)
            if self.operation is None or self.may_end_well():
                w.qmp.command("job-complete", id="j")

    def check_end(self, end):
        if self.may_end_well():
            assert "error" not in end, end
            return
        said = end.get("error", "")
        assert WORDS[self.errno] in said and str(self.folder) in said, end
        if self.operation:
            assert f"cannot {self.operation} at offset" in said, end

    def do_job(self, w):
        self.is_in(w)
        writes = self.layer != "top" and self.arguments.get("copy-mode") != "write-blocking"
        guest = Guest(w.uri("disk"), writes)
        guest.start()
        w.qmp.send({"execute": self.command, "arguments": {
            "job-id": "j", "on-error": self.policy, **self.arguments}})
        assert "return" in w.qmp.reply()
        self.complete(w)
        self.check_end(w.qmp.event("BLOCK_JOB_COMPLETED"))
        while w.qmp.event("JOB_STATUS_CHANGE")["status"] != "null":
            pass
        guest.stop()
        return guest

    def run(self):
        w = World(self.folder)
        try:
            guest = self.do_job(w)
            # A flush that has failed is told once more at the end.
            w.daemon.stop(expect=int(self.phase == "flush" and self.layer == "top"))
        finally:
            w.qmp.close()
            if w.daemon.process.poll() is None:
                w.daemon.kill()
        self.check(guest)

    def check(self, guest):
        is_pivoted = self.completes and self.may_end_well()
        head = self.folder / ("base" if is_pivoted else "top")
        for name in LAYERS:
            if self.phase == "flush" and name == self.layer:  # nothing is written any more
                run("qemu-img", "check", "-q", "-r", "leaks", self.folder / name)
            check_image(self.folder / name)
        assert self.images.read(head) == guest.content(self.images.content), "another content"
        middle = qemu_img("info", "-U", self.folder / "top").count("backing file: middle")
        assert middle == (is_pivoted or not self.may_end_well()), "the chain recorded"


def run_cases(tmp, job):
    images = Images(tmp)
    n = 0
    for fault in faults(images, job):
        # A file whose flush has failed fails for good: asked, users could only stop again.
        policies = POLICIES if fault[3] else ("report",)
        if fault[0] == "look-up":  # for good
            policies = ("report", "enospc")
        for errno in (EIO,) if fault[3] == "read" else (EIO, ENOSPC):
            for policy in policies:
                case = Case(images, job, fault, errno, policy)
                try:
                    case.run()
                except BaseException:
                    print(f"# {job}: {fault[0]}, {WORDS[errno]}, on-error={policy}")
                    raise
                n += 1
    print(f"# {n} cases")


def test_stream(tmp):
    """Faults in each phase of a stream"""
    run_cases(tmp, "stream")


def test_commit(tmp):
    """Faults in each phase of a commit of a layer in the middle"""
    run_cases(tmp, "commit")


def test_active(tmp):
    """Faults in each phase of a commit of the head, in the background"""
    run_cases(tmp, "active")


def test_blocking(tmp):
    """Faults in each phase of a commit of the head, write-blocking"""
    run_cases(tmp, "blocking")


# -- layers on a server that is slow, or fails at random -------------------------------------------

@contextlib.contextmanager
def server(path, sock, *filters):
    """nbdkit that serves the file."""
    process = subprocess.Popen([need_program("nbdkit"), "-f", "-U", sock, *filters[:-1], "file", path, *filters[-1]],
                               stderr=subprocess.DEVNULL)
    try:
        yield {"driver": "nbd", "server": {"type": "unix", "path": str(sock)}, "reconnect-delay": 5,
               "open-timeout": HANG}
    finally:
        process.terminate()
        process.wait()


def run_remote(tmp, *filters):
    """Each job with a layer that it reads on that server; how often they were stopped."""
    images, n_stops = Images(tmp), 0
    for job, (command, arguments, completes) in JOBS.items():
        folder = images.copies()
        far = "base" if job == "stream" else "middle"
        with server(folder / far, folder / "server", *filters) as remote, World(folder) as w:
            for i, name in enumerate(LAYERS):
                file = {"driver": "file", "filename": str(folder / name)}
                w.qmp.command("blockdev-add", driver="qcow2", node_name=name,
                              file=remote if name == far else file, read_only=name != "top",
                              backing=LAYERS[i - 1] if i else None)
            w.export("top", name="disk")
            guest = Guest(w.uri("disk"), True)
            guest.start()
            (tmp / "fail").touch()
            w.qmp.send({"execute": command, "arguments": {
                "job-id": "j", "on-error": "stop", **arguments}})
            reply = w.qmp.reply()
            assert "return" in reply, reply
            n_stops += drive(w, completes)
            guest.stop()
        head = folder / ("base" if completes else "top")
        assert images.read(head) == guest.content(images.content), job
        check_image(head)
        (tmp / "fail").unlink()
    return n_stops


def drive(w, completes):
    """To its end, however often it stops: how often."""
    n_stops = 0
    while True:
        event = w.qmp.event("JOB_STATUS_CHANGE")["status"]
        if event == "ready" and completes:
            w.qmp.command("job-complete", id="j")
            completes = False
        elif event in ("paused", "standby"):
            w.qmp.command("job-resume", id="j")
            n_stops += 1
        elif event == "null":
            return n_stops


def test_slow(tmp):
    """Layers that take their time: jobs end, and nothing else waits"""
    assert run_remote(tmp, "--filter=delay", ["rdelay=20ms", "wdelay=20ms"]) == 0


def test_failing_at_random(tmp):
    """A layer that fails now and then: jobs that are resumed each time lose nothing"""
    assert run_remote(tmp, "--filter=error", ["error-pread=EIO", "error-pread-rate=0.5",
                                              f"error-pread-file={tmp}/fail"]) > 0


if __name__ == "__main__":
    main(globals(), limit=900)

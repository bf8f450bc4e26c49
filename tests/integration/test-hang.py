#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A server below one disk stops within requests. Whatever is done to that disk meanwhile, other
disks, other commands and the end of the program do not wait for it."""
import os
import select
import signal
import subprocess
import time

import nbd

from harness import HANG, MIB, Daemon, connect, main, qemu_img
from qmp_client import Qmp

QUERIES = ("query-named-block-nodes", "query-block", "query-block-exports", "query-block-jobs",
           "query-jobs", "query-blockstats", "x-debug-query-block-graph", "query-commands")


class Hang:
    """The disk `top` lies over a server that has stopped, with a read and a write under way; `other`
    has nothing to do with it. Two monitors: `a` is for what may wait, `b` for what may not."""

    def __init__(self, tmp):
        self.tmp = tmp
        tmp.mkdir(exist_ok=True)
        (tmp / "far.raw").write_bytes(b"f" * 8 * MIB)
        self.n_stops = 0
        self.server = subprocess.Popen(["nbdkit", "-f", "-U", tmp / "far", "file", tmp / "far.raw"])
        for name, options in (("top", ["-u", "-F", "raw", "-b", "x"]), ("other", []),
                              ("over", ["-u", "-F", "raw", "-b", "x"]), ("overlay", [])):
            qemu_img("create", "-q", "-f", "qcow2", *options, tmp / f"{name}.qcow2", 8 * MIB)
        self.daemon = Daemon("--loops", "2", "--qmp", tmp / "q", "--nbd", tmp / "n")
        self.a, self.b = Qmp(tmp / "q"), Qmp(tmp / "q")
        while not os.path.exists(tmp / "far"):
            time.sleep(0.01)
        self.a.command("blockdev-add", node_name="far", **self.far())
        self.a.command("blockdev-add", driver="null-co", node_name="base", read_only=True, size=8 * MIB)
        for name, backing in ("top", "far"), ("other", None), ("overlay", None):
            self.add(self.a, name, name, backing)
        for name in "top", "other":
            self.a.command("block-export-add", type="nbd", id=name, node_name=name, name=name, writable=True)
        self.guest, self.other = self.connect("top"), self.connect("other")
        self.guest.pwrite(b"m" * 65536, 4 * MIB)
        self.stop()

    def far(self):
        return {"driver": "nbd", "read_only": True, "server": {"type": "unix", "path": str(self.tmp / "far")}}

    def add(self, qmp, name, file, backing):
        qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=backing,
                    file={"driver": "file", "filename": str(self.tmp / f"{file}.qcow2")})

    def connect(self, name):
        return connect(f"nbd+unix:///{name}?socket={self.tmp}/n")

    def stop(self):
        self.server.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.server.pid, os.WSTOPPED | os.WNOWAIT)
        h = self.guest
        self.n_stops += 1
        self.hung = [h.aio_pread(nbd.Buffer(4096), 0), h.aio_pwrite(b"x" * 512, self.n_stops * MIB)]
        # The server takes a client's requests in their order: both are under way.
        assert h.pread(512, 4 * MIB) == b"m" * 512

    def resume(self):
        self.server.send_signal(signal.SIGCONT)
        while self.hung:
            if self.guest.aio_command_completed(self.hung[0]):
                self.hung.pop(0)
            else:
                self.guest.poll(-1)

    def waits(self):
        """`a` has no answer."""
        return not self.a.bytes and not select.select([self.a.socket], [], [], 0)[0]

    def begin(self, name, /, **arguments):
        self.a.send({"execute": name, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})

    def begin_snapshot(self):
        self.begin("blockdev-snapshot", node="top", overlay="overlay")

    def others_go_on(self):
        for i in range(20):
            self.other.pwrite(bytes([i]) * 512, i * MIB // 4)
            assert self.other.pread(512, i * MIB // 4) == bytes([i]) * 512
        self.other.flush()

    def control_goes_on(self):
        for query in QUERIES:
            self.b.command(query)
        self.b.command("blockdev-add", driver="null-co", node_name="null")
        self.add(self.b, "over", "over", "base")
        self.b.command("block-dirty-bitmap-add", node="other", name="b")
        self.b.command("block-dirty-bitmap-remove", node="other", name="b")
        self.b.command("blockdev-del", node_name="over")
        self.b.command("blockdev-del", node_name="null")

    def goes_on_while_it_waits(self):
        self.others_go_on()
        self.control_goes_on()
        assert self.waits(), self.a.line()
        assert not self.guest.aio_command_completed(self.hung[0])

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        try:
            self.daemon.__exit__(kind, *rest)
        finally:
            self.server.send_signal(signal.SIGCONT)
            self.server.kill()
            self.server.wait()
            self.a.close()
            self.b.close()


def test_answers(tmp):
    """Commands that need no answer of the server have theirs while it hangs."""
    with Hang(tmp) as w:
        w.control_goes_on()
        assert "in use" in w.a.error("blockdev-del", node_name="top")
        assert "busy" in w.a.error("blockdev-del", node_name="far")
        assert "still in use" in w.a.error("block-export-del", id="top")
        w.a.command("block-dirty-bitmap-add", node="top", name="b")
        w.a.command("block-stream", job_id="j", device="top")
        assert w.a.command("query-jobs")[0]["status"] == "running"
        w.a.command("job-cancel", id="j")
        w.others_go_on()
        assert not w.guest.aio_command_completed(w.hung[0])
        w.resume()
        w.a.event("BLOCK_JOB_CANCELLED")


def test_snapshots_wait_alone(tmp):
    """A snapshot waits for the write that hangs, and then is taken; nothing else waits for it."""
    for number, (name, arguments) in enumerate((
            ("blockdev-snapshot", {"node": "top", "overlay": "overlay"}),
            ("blockdev-snapshot-sync", {"node_name": "top", "snapshot_node_name": "new", "snapshot_file": "new"}),
            ("blockdev-snapshot-internal-sync", {"device": "top", "name": "s"}))):
        with Hang(tmp / str(number)) as w:
            if "snapshot_file" in arguments:
                arguments["snapshot_file"] = str(w.tmp / "new.qcow2")
            w.begin(name, **arguments)
            w.goes_on_while_it_waits()
            w.resume()
            assert w.a.reply() == {"return": {}}
            assert w.guest.pread(512, MIB) == b"x" * 512


def test_transaction_gives_up(tmp):
    """A transaction over several disks does not keep the others while one hangs, and says which does."""
    with Hang(tmp) as w:
        w.begin("transaction", actions=[
            {"type": "blockdev-snapshot-sync",
             "data": {"node-name": name, "snapshot-file": str(tmp / f"{name}.new"), "snapshot-node-name": f"{name}-new"}}
            for name in ("other", "top")])
        w.goes_on_while_it_waits()
        text = w.a.reply()["error"]["desc"]
        assert "Node 'top'" in text and "does not answer" in text, text
        assert not (tmp / "other.new").exists()
        w.resume()


def test_new_node_waits_alone(tmp):
    """A node that is being connected to the server holds up no other command; the program ends all the same."""
    with Hang(tmp) as w:
        w.begin("blockdev-add", node_name="far2", open_timeout=600, **w.far())
        w.goes_on_while_it_waits()
        w.resume()
        assert w.a.reply() == {"return": {}}
        assert w.a.error("blockdev-add", node_name="far2", **w.far()).startswith("Duplicate nodes")
        w.stop()
        w.begin("blockdev-add", node_name="far3", open_timeout=600, **w.far())
        w.goes_on_while_it_waits()
        w.daemon.stop()


def test_export_goes(tmp):
    """An export that is removed by force is said to be going until its requests end, and then is gone."""
    with Hang(tmp) as w:
        w.a.command("block-export-del", id="top", mode="hard")
        going, = (e for e in w.a.command("query-block-exports") if e["id"] == "top")
        assert going["shutting-down"], going
        w.control_goes_on()
        w.others_go_on()
        assert not any(e["event"] == "BLOCK_EXPORT_DELETED" for e in w.a.events)
        w.server.send_signal(signal.SIGCONT)
        assert w.a.event("BLOCK_EXPORT_DELETED") == {"id": "top"}


def test_server_stops(tmp):
    """nbd-server-stop says in the log which export it waits for."""
    with Hang(tmp) as w:
        w.begin("nbd-server-stop")
        w.control_goes_on()
        deadline = time.monotonic() + HANG
        while "nbd-server-stop waits for the export 'top' of node 'top'" not in w.daemon.log():
            assert time.monotonic() < deadline, w.daemon.log()
            time.sleep(0.01)
        assert "export 'other'" not in w.daemon.log()
        w.server.send_signal(signal.SIGCONT)
        assert w.a.reply() == {"return": {}}


def test_end(tmp):
    """A signal ends the program with status 0 beside what hangs, and beside a command that waits for it."""
    for number, begin in enumerate((lambda w: None, Hang.begin_snapshot,
                                    lambda w: w.begin("nbd-server-stop"))):
        with Hang(tmp / str(number)) as w:
            begin(w)
            w.control_goes_on()
            w.daemon.stop()
            assert "does not answer" in w.daemon.log(), w.daemon.log()


if __name__ == "__main__":
    main(globals())

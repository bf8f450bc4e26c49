#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A server below one disk stops within requests. Whatever is done to that disk meanwhile, other
disks, other commands and the end of the program do not wait for it."""
import json
import os
import select
import signal
import subprocess
import time

import nbd

from harness import HANG, MIB, Daemon, await_listener, connect, main, need_program, qemu_img
from qmp_client import Qmp

LIMIT = "does not answer"
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
        self.server = subprocess.Popen([need_program("nbdkit"), "-f", "-U", tmp / "far", "file", tmp / "far.raw"])
        by_json = "json:" + json.dumps({"driver": "raw", "file": self.patient()})
        for name, options in (("top", ["-u", "-F", "raw", "-b", "x"]), ("other", []),
                              ("over", ["-u", "-F", "raw", "-b", "x"]), ("overlay", []),
                              ("above", ["-u", "-F", "raw", "-b", "x"]),
                              ("by-json", ["-u", "-F", "raw", "-b", by_json]),
                              ("over-json", ["-u", "-F", "qcow2", "-b", tmp / "by-json.qcow2"]),
                              ("by-uri", ["-u", "-F", "raw", "-b", f"nbd+unix:///?socket={tmp}/far"])):
            qemu_img("create", "-q", "-f", "qcow2", *options, tmp / f"{name}.qcow2", 8 * MIB)
        self.daemon = Daemon("--loops", "2", "--qmp", tmp / "q", "--nbd", tmp / "n")
        self.a, self.b = Qmp(tmp / "q"), Qmp(tmp / "q")
        await_listener(tmp / "far")
        self.a.command("blockdev-add", node_name="far", **self.far())
        self.a.command("blockdev-add", driver="null-co", node_name="base", read_only=True, size=8 * MIB)
        for name, backing in ("top", "far"), ("other", None), ("overlay", None):
            self.add(self.a, name, name, backing)
        for name in "top", "other":
            self.a.command("block-export-add", type="nbd", id=name, node_name=name, name=name, writable=True)
        self.guest, self.other = self.connect("top"), self.connect("other")
        self.guest.pwrite(b"m" * 65536, 4 * MIB)
        self.stop()

    def patient(self):
        """The server, in a description that is not given up."""
        return {"driver": "nbd", "server": {"type": "unix", "path": str(self.tmp / "far")}, "open-timeout": 600}

    def far(self):
        return {"driver": "nbd", "read_only": True, "server": {"type": "unix", "path": str(self.tmp / "far")}}

    def add(self, qmp, name, file, backing):
        qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=backing,
                    file={"driver": "file", "filename": str(self.tmp / f"{file}.qcow2")})

    def add_file(self, name, file):
        self.a.command("blockdev-add", driver="file", node_name=name,
                       filename=str(self.tmp / f"{file}.qcow2"))

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

    def use_other(self, i):
        self.other.pwrite(bytes([i]) * 512, i * MIB // 4)
        assert self.other.pread(512, i * MIB // 4) == bytes([i]) * 512
        self.other.flush()

    def use_nodes(self):
        self.b.command("blockdev-add", driver="null-co", node_name="null")
        self.add(self.b, "over", "over", "base")
        self.b.command("blockdev-del", node_name="over")
        self.b.command("blockdev-del", node_name="null")

    def use_bitmaps(self):
        self.b.command("block-dirty-bitmap-add", node="other", name="b")
        self.b.command("block-dirty-bitmap-remove", node="other", name="b")

    def others(self):
        """What another disk does, in steps that can be repeated."""
        return [lambda i=i: self.use_other(i) for i in range(20)]

    def control(self):
        """What other commands do."""
        return [lambda query=query: self.b.command(query) for query in QUERIES] + [
            self.use_nodes, self.use_bitmaps]

    def others_go_on(self):
        for step in self.others():
            step()

    def control_goes_on(self):
        for step in self.control():
            step()

    def goes_on_while_it_waits(self, begin, limit=None):
        """All the others, and what `begin` began has no answer. `limit`: what it says when it gives up,
        as commands do after a while. A machine that is slower than that begins it again."""
        begin()
        deadline = time.monotonic() + HANG
        for step in self.others() + self.control():
            step()
            while not self.waits():
                text = self.a.reply()["error"]["desc"]
                assert limit and limit in text, text
                assert time.monotonic() < deadline, "nothing goes on while it waits"
                begin()
                step()
        assert not self.guest.aio_command_completed(self.hung[0])

    def ends_well(self, begin, limit):
        """After the resume. It may have given up before."""
        reply = self.a.reply()
        if limit and "error" in reply:
            assert limit in reply["error"]["desc"], reply
            begin()
            reply = self.a.reply()
        assert reply == {"return": {}}, reply

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
            def begin():
                w.begin(name, **arguments)

            w.goes_on_while_it_waits(begin, LIMIT)
            w.resume()
            w.ends_well(begin, LIMIT)
            assert w.guest.pread(512, MIB) == b"x" * 512


def test_transaction_gives_up(tmp):
    """A transaction over several disks does not keep the others while one hangs, and says which does."""
    with Hang(tmp) as w:
        w.goes_on_while_it_waits(lambda: w.begin("transaction", actions=[
            {"type": "blockdev-snapshot-sync",
             "data": {"node-name": name, "snapshot-file": str(tmp / f"{name}.new"), "snapshot-node-name": f"{name}-new"}}
            for name in ("other", "top")]), LIMIT)
        text = w.a.reply()["error"]["desc"]
        assert "Node 'top'" in text and LIMIT in text, text
        assert not (tmp / "other.new").exists()
        w.resume()


def test_new_node_waits_alone(tmp):
    """A node that is being connected to the server holds up no other command; the program ends all the same."""
    with Hang(tmp) as w:
        w.goes_on_while_it_waits(
            lambda: w.begin("blockdev-add", node_name="far2", open_timeout=600, **w.far()))
        w.resume()
        assert w.a.reply() == {"return": {}}
        assert w.a.error("blockdev-add", node_name="far2", **w.far()).startswith("Duplicate nodes")
        w.stop()
        w.goes_on_while_it_waits(
            lambda: w.begin("blockdev-add", node_name="far3", open_timeout=600, **w.far()))
        w.daemon.stop()


def test_server_of_a_header_waits_alone(tmp):
    """A server that only an image's header names holds up no other command, whether the image is opened by
    its path, lies in a node, or below others; what it uses stays meanwhile. The program ends all the same."""
    ways = (("by-json", {"file": {"driver": "file", "filename": "by-json.qcow2"}}, None),
            ("by-json", {"file": "file"}, None),
            ("over-json", {"file": "file"}, None),
            ("by-json", {"file": {"driver": "file", "filename": "above.qcow2"},
                         "backing": {"driver": "qcow2", "file": "file"}}, None),
            ("by-uri", {"file": "file"}, "timed out"))
    for number, (name, options, limit) in enumerate(ways):
        with Hang(tmp / str(number)) as w:
            if isinstance(options["file"], dict):
                options["file"]["filename"] = str(w.tmp / options["file"]["filename"])
            w.add_file("file", name)

            def begin():
                w.begin("blockdev-add", driver="qcow2", node_name="new", **options)

            w.goes_on_while_it_waits(begin, limit)
            if number:
                assert "in use" in w.b.error("blockdev-del", node_name="file")
                assert "Permission conflict" in w.b.error(
                    "blockdev-add", driver="qcow2", node_name="x", file="file", backing=None)
            w.resume()
            w.ends_well(begin, limit)
            w.a.command("block-export-add", type="nbd", id="new", node_name="new", name="new")
            h = w.connect("new")
            assert h.pread(4096, 0) == b"f" * 4096
            h.shutdown()
            w.a.command("block-export-del", id="new", mode="hard")
            w.a.event("BLOCK_EXPORT_DELETED")
            w.a.command("blockdev-del", node_name="new")
            w.a.command("blockdev-del", node_name="file")  # nothing is left that uses it
            w.stop()
            w.add_file("file", name)
            w.goes_on_while_it_waits(begin, limit)
            w.daemon.stop()


def test_image_on_a_server_waits_alone(tmp):
    """An image whose file is a node of the server holds up no other command, nor does a new image there."""
    with Hang(tmp) as w:
        w.goes_on_while_it_waits(
            lambda: w.begin("blockdev-add", driver="qcow2", node_name="new", read_only=True, file="far"))
        assert "in use" in w.b.error("blockdev-del", node_name="far")
        w.b.command("blockdev-create", job_id="j", options={
            "driver": "qcow2", "size": MIB, "file": w.patient()})
        w.control_goes_on()
        job, = w.b.command("query-jobs")
        assert job["status"] == "running", job
        w.resume()
        assert "not a qcow2 image" in w.a.reply()["error"]["desc"]
        while w.b.event("JOB_STATUS_CHANGE")["status"] != "concluded":
            pass


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

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits of exports: set and changed live, shared by a group, remembered with disks. At one byte a
second the first request of a group goes on and those behind it wait longer than any test."""
import time

import nbd

from chainctl import Tool, daemon
from harness import KIB, MIB, Daemon, fails, main, qemu_img, says
from qmp_client import Qmp
from state import Service

SIZE = 8 * MIB
NONE = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}


def ask(s, **arguments):
    """The reply: names have underscores, as in QEMU."""
    qmp = getattr(s, "qmp", s)
    qmp.send({"execute": "block_set_io_throttle", "arguments": arguments})
    return qmp.reply()


def limit(s, export, **limits):
    reply = ask(s, id=export, **{**NONE, **limits})
    assert reply == {"return": {}}, reply


def refusal(s, export, **limits):
    return ask(s, id=export, **{**NONE, **limits})["error"]["desc"]


def throttle_of(s, export):
    stats, = [e for e in s.command("query-export-stats") if e["id"] == export]
    return stats.get("throttle")


def limits_of(s, export):
    """Those that there are, and the group."""
    throttle = throttle_of(s, export)
    return throttle and (throttle["group"], {k: v for k, v in throttle["limits"].items()
                                             if v and not k.endswith("-length")})


class Waiting:
    """A client with reads that wait for the limits, but for the first."""

    def __init__(self, s, name, n=4):
        self.h = s.connect(name)
        self.buffers = [nbd.Buffer(4 * KIB) for _ in range(n)]
        for i, buffer in enumerate(self.buffers):
            self.h.aio_pread(buffer, 4 * KIB * i)
        while self.h.aio_in_flight() == n:
            self.h.poll(-1)
        self.h.poll(50)
        assert self.h.aio_in_flight() == n - 1, self.h.aio_in_flight()

    def end(self):
        """They go on."""
        while self.h.aio_in_flight():
            self.h.poll(-1)
        self.h.shutdown()


def seconds_to_read(s, name, total, step=64 * KIB):
    h = s.connect(name)
    began = time.monotonic()
    for at in range(0, total, step):
        h.pread(step, at)
    h.shutdown()
    return time.monotonic() - began


def test_rate(tmp):
    """A limit holds for clients that are connected, and changes while they read"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        limit(s, "web", bps_rd=2 * MIB)
        assert limits_of(s, "web") == ("web", {"bps-read": 2 * MIB})
        assert seconds_to_read(s, "web", 2 * MIB) > 0.8 # a tenth of a second may come at once
        limit(s, "web", iops=20)
        assert limits_of(s, "web") == ("web", {"iops-total": 20})
        assert seconds_to_read(s, "web", 20 * 64 * KIB) > 0.7
        limit(s, "web", bps=1)
        w = Waiting(s, "web")
        limit(s, "web", bps=1 << 40)
        w.end()
        limit(s, "web")
        assert throttle_of(s, "web") is None


def test_waiting(tmp):
    """Snapshots, a removal and the daemon's end do not wait for requests that wait for limits"""
    with Service(tmp) as s:
        for name in ("web", "db"):
            s.command("disk-create", name=name, size=SIZE)
            limit(s, name, bps=1)
        web, db = Waiting(s, "web"), Waiting(s, "db")
        s.snapshot("web", "mon")
        s.command("disk-export", disk="web", point="mon")
        s.command("disk-resize", disk="web", size=2 * SIZE)
        assert web.h.aio_in_flight() == 3
        s.command("disk-rollback", disk="web", point="mon", clients="hard")
        assert limits_of(s, "web") == ("web", {"bps-total": 1})
        s.command("disk-remove", name="db", clients="hard")
        last = Waiting(s, "web")
        s.stop()
        del web, db, last


def test_group(tmp):
    """Disks of a group share its limits, which change for all of them, and it goes with its last member"""
    with Service(tmp) as s:
        for name in ("a", "b", "c"):
            s.command("disk-create", name=name, size=SIZE)
        limit(s, "a", bps=1, group="g")
        limit(s, "b", bps=1, group="g")
        first = Waiting(s, "a")
        h = s.connect("b")
        buffer = nbd.Buffer(4 * KIB)
        h.aio_pread(buffer, 0)
        h.poll(50)
        assert h.aio_in_flight() == 1, "the other one of the group has used up what there is"
        assert s.content("c")
        limit(s, "a", bps=2, group="g")
        for _ in range(5): # one goes on with the new limits, and no other
            first.h.poll(20)
            h.poll(20)
        assert h.aio_in_flight() + first.h.aio_in_flight() == 3
        limit(s, "b", iops=10**6, group="g")
        assert limits_of(s, "a") == limits_of(s, "b") == ("g", {"iops-total": 10**6})
        first.end()
        while h.aio_in_flight():
            h.poll(-1)
        h.shutdown()
        limit(s, "a")
        says(s.error("object-add", qom_type="throttle-group", id="g"), "already exists")
        limit(s, "b")
        s.command("object-add", qom_type="throttle-group", id="g")
        limit(s, "c", bps=MIB, group="g") # an object's limits are changed, too
        assert s.command("qom-get", path="/objects/g", property="limits")["bps-total"] == MIB
        says(s.error("object-del", id="g"), "in use")
        s.command("qom-set", path="/objects/g", property="limits", value={"bps-total": 2 * MIB})
        assert limits_of(s, "c") == ("g", {"bps-total": 2 * MIB})
        limit(s, "c")
        s.command("object-del", id="g")


def test_remembered(tmp):
    """Limits of disks are there again after a restart and after kill -9, with their group"""
    with Service(tmp) as s:
        for name in ("a", "b", "c"):
            s.command("disk-create", name=name, size=SIZE)
        limit(s, "a", bps_rd=MIB, bps_rd_max=4 * MIB, bps_rd_max_length=3)
        limit(s, "b", iops=100, group="g")
        limit(s, "c", iops=200, group="g")
        was = [throttle_of(s, name) for name in ("a", "b", "c")]
        assert was[0]["limits"]["bps-read-max-length"] == 3, was
    s = Service(tmp)
    try:
        assert [throttle_of(s, name) for name in ("a", "b", "c")] == was
        assert limits_of(s, "b") == ("g", {"iops-total": 200})
        limit(s, "b")
    finally:
        s.kill()
    with Service(tmp) as s:
        assert throttle_of(s, "b") is None and throttle_of(s, "c") == was[2]
        limit(s, "c", iops=300, group="g")
    # What the command line says of a group is newer than what is remembered of it.
    with Service(tmp, "--object", "throttle-group,id=g,limits.iops-total=7") as s:
        assert limits_of(s, "c") == ("g", {"iops-total": 7})


class Configured(Service):
    """One with a configuration, whose sections are given."""

    def __init__(self, tmp, text, *args):
        self.file = tmp / "c.conf"
        self.file.write_text(text)
        super().__init__(tmp, "--config", self.file, *args)

    def reload(self, text):
        self.file.write_text(text)
        return self.command("reload-config")


def test_configured(tmp):
    """Exports are in the groups that files say, unless they have limits of their own; both change live"""
    slow = "[throttle-group slow]\nbps = 1\n"
    with Configured(tmp, f"{slow}[export w*]\nthrottle-group = slow\n") as s:
        for name in ("web", "www", "db"):
            s.command("disk-create", name=name, size=SIZE)
        assert limits_of(s, "web") == limits_of(s, "www") == ("slow", {"bps-total": 1})
        assert throttle_of(s, "db") is None
        s.snapshot("web", "mon")
        s.command("disk-export", disk="web", point="mon")
        assert limits_of(s, "web@mon") == ("slow", {"bps-total": 1})
        w = Waiting(s, "web")
        # Other limits of the group.
        reply = s.reload("[throttle-group slow]\nread-bps = 1G\nwrite-iops = 7\n"
                         "[export w*]\nthrottle-group = slow\n")
        says("\n".join(reply["done"]), "what clients of exports may do has changed")
        w.end()
        assert limits_of(s, "www") == ("slow", {"bps-read": 1 << 30, "iops-write": 7})
        # Its own limits win, and without them it is back.
        limit(s, "web", bps=5)
        assert limits_of(s, "web") == ("web", {"bps-total": 5})
        s.reload(f"{slow}[export *]\nthrottle-group = slow\n")
        assert limits_of(s, "web") == ("web", {"bps-total": 5})
        assert limits_of(s, "db") == ("slow", {"bps-total": 1})
        limit(s, "web")
        assert limits_of(s, "web") == ("slow", {"bps-total": 1})
        # Out of the group, which goes.
        w = Waiting(s, "web")
        s.reload("")
        w.end()
        assert [throttle_of(s, name) for name in ("web", "www", "db")] == [None] * 3
        s.command("object-add", qom_type="throttle-group", id="slow")


def test_configured_names(tmp):
    """A file's group changes in the file only, takes over one of that name, and leaves objects alone"""
    group = "[throttle-group g]\niops = 100\n"
    with Configured(tmp, "") as s:
        for name in ("a", "b"):
            s.command("disk-create", name=name, size=SIZE)
        limit(s, "a", bps=1, group="g")
        w = Waiting(s, "a")
        s.reload(group)
        w.end()
        assert limits_of(s, "a") == ("g", {"iops-total": 100})
        says(refusal(s, "b", bps=1, group="g"), f"{s.file}:1", "change them there")
        says(s.error("object-add", qom_type="throttle-group", id="g"), "already exists")
        limit(s, "a")
        s.reload("")
        s.command("object-add", qom_type="throttle-group", id="g")
        reply = s.reload(group)
        says("\n".join(reply["failed"]), f"{s.file}:1: there is an object 'g'")
        limit(s, "b", bps=1, group="g")
        s.reload("")
        assert limits_of(s, "b") == ("g", {"bps-total": 1})
        limit(s, "b")
        s.command("object-del", id="g")
    with Configured(tmp, group) as s:
        assert throttle_of(s, "a") is None
    says(fails("--state", tmp / "x", "--config", s.file, "--object", "throttle-group,id=g"), "already exists")


def test_refused(tmp):
    """What makes no sense is refused in QEMU's words, and changes nothing"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        limit(s, "web", iops=100)
        says(refusal(s, "nope"), "Device 'nope' not found")
        says(refusal(s, "web", bps=1, bps_rd=1), "cannot be used at the same time")
        says(refusal(s, "web", bps=-1), "within [0,")
        says(refusal(s, "web", bps_max=5), "require")
        says(ask(s, id="web")["error"]["desc"], "Parameter 'bps' is missing")
        assert limits_of(s, "web") == ("web", {"iops-total": 100})


def test_moved(tmp):
    """An export that moves to another loop keeps its limits, and its clients"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a", SIZE)
    with Daemon("--qmp", tmp / "qmp", "--nbd", tmp / "nbd", "--object", "iothread,id=t", "--loops", "1",
                f"a={tmp}/a") as d:
        qmp = Qmp(tmp / "qmp")
        qmp.connect = lambda name: connect(tmp, name)
        limit(qmp, "a", bps=1)
        node, = [e["node-name"] for e in qmp.command("query-block-exports")]
        w = Waiting(qmp, "a")
        # A second export, which is to be on the other loop, takes the node and the first one there.
        qmp.command("block-export-add", type="nbd", id="b", node_name=node, name="b", iothread="t",
                    fixed_iothread=True)
        w.end() # who is moved waits no more
        limit(qmp, "a", bps=1) # nothing of it is used up
        Waiting(qmp, "a")
        limit(qmp, "a")
        d.stop()


def connect(tmp, name):
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///{name}?socket={tmp}/nbd")
    return h


def test_chainctl(tmp):
    """chainctl limits exports and disks, keeps what is not given, and shows what holds"""
    with Service(tmp) as s:
        tool = Tool(tmp / "qmp")
        for name in ("web", "db"):
            s.command("disk-create", name=name, size=SIZE)
        s.snapshot("web", "mon")
        tool.out("limit", "db", "--read-bps", "100M", "--iops", "2k")
        assert limits_of(s, "db") == ("db", {"bps-read": 100 * MIB, "iops-total": 2000})
        tool.out("limit", "db", "--write-iops=50")
        assert limits_of(s, "db") == ("db", {"bps-read": 100 * MIB, "iops-write": 50})
        tool.out("limit", "db", "--bps=1G")
        assert limits_of(s, "db") == ("db", {"bps-total": 1 << 30, "iops-write": 50})
        assert "1 GiB/s, write 50 requests/s (group 'db')" in tool.out("info", "db")
        tool.out("limit", "web", "--group", "db")
        assert limits_of(s, "web") == limits_of(s, "db")
        tool.out("limit", "web", "--write-iops=0")
        assert limits_of(s, "db") == ("db", {"bps-total": 1 << 30})
        table = [line.split("\t") for line in tool.out("limit", "-H").splitlines()]
        assert table == [["web", "1 GiB/s", "db"], ["db", "1 GiB/s", "db"]], table
        row, = [d for d in tool.json("top", "-n", "1", "-d", "0.1")["disks"] if d["name"] == "web"]
        assert row["limit"] == "1 GiB/s", row
        assert tool.json("info", "web")["limits"] == [
            {"export": "web", "group": "db", "text": "1 GiB/s", "limits": throttle_of(s, "db")["limits"]}]
        tool.out("limit", "web", "--none")
        assert throttle_of(s, "web") is None and "limits" not in tool.out("info", "web")
        # A disk with several exports is a group.
        s.command("disk-export", disk="web", point="mon")
        tool.out("limit", "web", "--iops=1.5k")
        assert limits_of(s, "web") == limits_of(s, "web@mon") == ("web", {"iops-total": 1500})
        tool.out("limit", "web@mon", "--none")
        assert limits_of(s, "web") and not limits_of(s, "web@mon")
        says(tool.fails("limit", "nope", "--bps=1", status=5), "no export 'nope'")
        says(tool.fails("limit", "web@mon", "--group=new", status=2), "no group 'new'")
        says(tool.fails("limit", "web", "--none", "--bps=1", status=2), "--none")
        says(tool.fails("limit", "--bps=1", status=2), "EXPORT is missing")
        says(tool.fails("limit", "web", "--iops=1.5", status=2), "such as 2k")


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A moment of a remembered disk is exported for who reads it at his own pace, with what has changed since the
last time, while a guest writes."""
import threading
import time

import nbd
from disks import fill, small_file_system
from harness import KIB, MIB, check_image, main, says
from qmp_client import Qmp
from state import Guest, Service

SIZE = 16 * MIB


class Reader:
    """A backup program: has what it read last, and reads what has changed."""

    def __init__(self, service):
        self.service, self.copy = service, bytearray(SIZE)

    def extents(self, h, context):
        found, at = [], 0
        while at < SIZE:
            entries = []
            h.block_status(SIZE - at, at, lambda c, o, e, err: entries.extend(e) if c == context else 0)
            for length, flags in zip(entries[::2], entries[1::2]):
                found.append((at, length, flags))
                at += length
        return found

    def read(self, reply):
        """What was read, in bytes."""
        h, context, n = nbd.NBD(), reply.get("context"), 0
        if context:
            h.add_meta_context(context)
        h.connect_uri(self.service.uri_of(reply["export"]))
        assert h.is_read_only()
        for at, length, flags in self.extents(h, context) if context else [(0, SIZE, 1)]:
            for part in range(at, at + length if flags & 1 else at, MIB):
                step = min(MIB, at + length - part)
                self.copy[part:part + step] = h.pread(step, part)
                n += step
        h.shutdown()
        return n


def pull(service, **more):
    return service.command("disk-pull", disk="web", **more)


def end(service, success=True):
    service.command("disk-pull-end", disk="web", success=success)


def is_clean(service):
    disk = service.disk("web")
    assert "job" not in disk and service.files() == {layer["file"].rsplit("/", 1)[1]
                                                     for layer in disk["layers"]}, service.files()
    nodes = service.command("query-named-block-nodes", flat=True)
    assert not any(n["node-name"].startswith("pull-") for n in nodes), nodes
    assert [e["id"] for e in service.command("query-block-exports")] == ["web"]


def test_moments(tmp):
    """All of one moment, then what has changed, over a point in time and a restart, under a guest"""
    s = Service(tmp)
    s.command("disk-create", name="web", size=SIZE)
    s.write("web", 300, 1)
    reader = Reader(s)
    shadow, count = s.content("web"), None
    for step in range(4):
        g = Guest(s, "web", seed=step, shadow=shadow)
        g.go_on(100)
        with g.still():
            reply = pull(s, checkpoint=f"c{step}", **({"since": "last"} if step else {}))
            moment = bytes(g.shadow)
        assert reply["uris"] == [s.uri_of(reply["export"])] and reply["checkpoint"] == f"c{step}", reply
        g.go_on(100)
        count = reader.read(reply)
        g.go_on(20)
        assert reader.copy == moment, f"pull {step}"
        assert (reply.get("since") == f"c{step - 1}") == (step > 0) and "reason" not in reply, reply
        assert count <= max(reply["copy"], SIZE if not step else 0), (count, reply)
        says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "x"}]), f"'{reply['job']}'")
        end(s)
        is_clean(s)
        shadow = g.end()
        if step == 1:
            s.snapshot("web", "p")
        if step == 2:
            s.stop()
            s = reader.service = Service(tmp)
    assert [c["name"] for c in s.disk("web")["checkpoints"]] == [f"c{i}" for i in range(4)]
    # There is no file over which an increment could lie.
    plan = s.command("disk-backup", disk="web", target=str(tmp / "b"), since="last", dry_run=True)
    says(plan["reason"], "c3", "was pulled")
    assert s.content("web") == shadow
    s.stop()
    check_image(tmp / "state/images/web.qcow2")


def test_nothing_is_left(tmp):
    """Cancelled, refused, ended without success, or with the daemon, it leaves nothing, and the next one is well"""
    s = Service(tmp)
    s.command("disk-create", name="web", size=SIZE)
    s.write("web", 300, 1)
    says(s.error("disk-pull", disk="web", directory="/nowhere"), "/nowhere")
    says(s.error("disk-pull", disk="web", since="last"), "full backup")
    says(s.error("disk-pull", disk="web", name="web"), "web")
    s.idle()
    is_clean(s)
    says(s.error("disk-pull-end", disk="web", success=True), "nobody pulls")
    reply = pull(s, checkpoint="c")
    end(s, success=False)
    is_clean(s)
    job = pull(s, checkpoint="c")["job"]
    says(s.error("disk-pull", disk="web"), f"'{job}'")
    s.command("job-cancel", id=job)
    s.ended(job)
    is_clean(s)
    assert s.disk("web")["checkpoints"] == []
    pull(s, checkpoint="c")
    s.stop()
    s = Service(tmp)
    is_clean(s)
    reply = pull(s, checkpoint="c")
    s.write("web", 50, 2)
    s.kill()
    s = Service(tmp)
    is_clean(s)
    assert s.disk("web")["checkpoints"] == []
    reader = Reader(s)
    reply = pull(s, checkpoint="c")
    was = s.content("web")
    s.write("web", 50, 3)
    reader.read(reply)
    end(s)
    assert reader.copy == was
    s.stop()
    check_image(tmp / "state/images/web.qcow2")


def test_cancelled_at_its_begin(tmp):
    """Cancelled while it begins, it leaves neither an export nor a node"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        other, ended = Qmp(tmp / "qmp"), threading.Event()

        def cancel():
            while not ended.is_set():
                for job in other.command("query-jobs"):
                    other.send({"execute": "job-cancel", "arguments": {"id": job["id"]}})
                    other.reply()
        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            for _ in range(10):
                s.qmp.send({"execute": "disk-pull", "arguments": {"disk": "web"}})
                s.qmp.reply()
                while "job" in s.disk("web"):
                    time.sleep(0.01)
                is_clean(s)
        finally:
            ended.set()
            thread.join()
            other.close()


def test_full_scratch(tmp):
    """Where the scratch image has no room the reader fails, and the guest goes on and notices nothing"""
    with small_file_system(tmp, 24 * MIB) as directory, Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        s.write("web", 700, 1)
        reply = pull(s, directory=str(directory))
        fill(directory)
        h = s.connect(reply["export"])
        g = Guest(s, "web", shadow=s.content("web"))
        g.go_on(2000)
        try:
            for at in range(0, SIZE, 64 * KIB):
                h.pread(64 * KIB, at)
            raise AssertionError("the moment is lost, and nobody says so")
        except nbd.Error:
            pass
        shown = g.end()
        entry = s.ended(reply["job"])
        assert entry["result"] != "ok", entry
        says(s.error("disk-pull-end", disk="web", success=True), "was not kept")
        is_clean(s)
        assert s.disk("web")["checkpoints"] == [] and s.content("web") == shown


if __name__ == "__main__":
    main(globals())

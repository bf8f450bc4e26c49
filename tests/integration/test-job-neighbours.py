#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What others do to the nodes of a stream or a commit while it is at work, ready or pending: it is done,
or refused in a sentence that names the job; and monitors that leave in the middle.

usage: test-job-neighbours.py [--chaind PATH] [WORD]...
"""
import contextlib
import os
import time

from harness import KIB, MIB, check_image, main, qemu_img, qemu_io, run, says
from qmp_client import Qmp
from world import World

SIZE = 8 * MIB
LAYERS = ("base", "middle", "top")
# Started so that it stays where it is looked at, and in which state that is.
JOBS = {
    "stream": ("block-stream", {"device": "top", "speed": KIB}, "running"),
    "commit": ("block-commit", {"device": "top", "top-node": "middle", "base-node": "base",
                                "speed": KIB}, "running"),
    "active": ("block-commit", {"device": "top", "base-node": "base"}, "ready"),
    "pending": ("block-stream", {"device": "top", "auto-finalize": False}, "pending"),
}


def make(tmp):
    below = None
    for i, name in enumerate(LAYERS):
        over = ["-F", "qcow2", "-b", below] if below else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *over, name, SIZE, cwd=tmp)
        qemu_io(tmp / name, f"write -q -P {i + 1} {2 * i}M 2M")
        below = name


def start(w, tmp, job):
    command, arguments, state = JOBS[job]
    for i, name in enumerate(LAYERS):
        w.add(name, tmp / name, read_only=name != "top", **({"backing": LAYERS[i - 1]} if i else {}))
    w.export("top", name="disk")
    w.qmp.send({"execute": command, "arguments": {"job-id": "j", "auto-dismiss": False, **arguments}})
    reply = w.qmp.reply()
    assert "return" in reply, reply
    while w.qmp.command("query-jobs")[0]["status"] != state:
        time.sleep(0.01)


@contextlib.contextmanager
def at_work(tmp, job):
    """A daemon with the job at work, in a folder of the job's own."""
    folder = tmp / job
    folder.mkdir()
    make(folder)
    with World(folder) as w:
        start(w, folder, job)
        yield w


def finish(q, job):
    """On any monitor; its result stays known until it is dismissed."""
    if job in ("stream", "commit"):
        q.command("block-job-set-speed", device="j", speed=0)
    elif job == "active":
        q.command("job-complete", id="j")
    else:
        q.command("job-finalize", id="j")
    while True:
        info, = q.command("query-jobs")
        if info["status"] == "concluded":
            break
        time.sleep(0.01)
    assert "error" not in info, info
    q.command("job-dismiss", id="j")


def check(w, head="disk"):
    w.io(head, "read -q -P 1 0 2M", "read -q -P 2 2M 2M", "read -q -P 3 4M 2M", "read -q -P 0 6M 2M")


def reopen_options(tmp):
    return {"options": [{"driver": "qcow2", "node-name": "middle", "backing": None, "read-only": True,
                         "file": {"driver": "file", "filename": str(tmp / "middle")}}]}


def neighbours(tmp):
    """(command, arguments, is it done?)"""
    for name in LAYERS:
        yield "blockdev-del", {"node-name": name}, False
        yield "block_resize", {"node-name": name, "size": 2 * SIZE}, False
    yield "blockdev-reopen", reopen_options(tmp), False
    yield "blockdev-snapshot-internal-sync", {"device": "top", "name": "s"}, False
    yield "blockdev-snapshot-sync", {"node-name": "top", "snapshot-file": str(tmp / "no"),
                                     "snapshot-node-name": "no"}, False
    yield "block-stream", {"device": "top", "job-id": "k"}, False
    yield "block-commit", {"device": "top", "job-id": "k", "base-node": "base"}, False
    yield "block-export-add", {"type": "nbd", "id": "e2", "node-name": "top", "name": "second"}, True
    yield "block-export-del", {"id": "e2"}, True
    yield "query-named-block-nodes", {"flat": True}, True
    yield "x-chain-plan", {"device": "top"}, True


def one_job(tmp, job):
    make(tmp)
    with World(tmp) as w:
        start(w, tmp, job)
        for command, arguments, is_done in neighbours(tmp):
            w.qmp.send({"execute": command, "arguments": arguments})
            reply = w.qmp.reply()
            what = f"{command} {arguments} beside {job}: {reply}"
            assert ("return" in reply) == is_done, what
            if not is_done:
                assert "job 'j'" in reply["error"]["desc"], what
            check(w)
        finish(w.qmp, job)
        check(w)
    for name in LAYERS:
        check_image(tmp / name)


def test_stream(tmp):
    """Others beside a stream"""
    one_job(tmp, "stream")


def test_commit(tmp):
    """Others beside a commit of a layer in the middle"""
    one_job(tmp, "commit")


def test_active(tmp):
    """Others beside a commit of the head that is ready"""
    one_job(tmp, "active")


def test_pending(tmp):
    """Others beside a stream that waits for job-finalize"""
    one_job(tmp, "pending")


def test_export_goes(tmp):
    """The export of a head goes, and comes back, while its job runs or is ready"""
    for job in JOBS:
        with at_work(tmp, job) as w:
            w.qmp.command("block-export-del", id="e-top")
            w.qmp.event("BLOCK_EXPORT_DELETED")
            w.export("top", name="again")
            check(w, "again")
            finish(w.qmp, job)
            check(w, "again")


def test_a_monitor_that_leaves_while_the_job_goes_on(tmp):
    """A monitor that leaves while a job is at work, ready or pending: another one ends it, and its result
    is known until it is dismissed"""
    for job in JOBS:
        with at_work(tmp, job) as w:
            w.qmp.close()
            w.qmp = Qmp(w.tmp / "qmp")
            says(w.qmp.error("block-stream", job_id="j", device="top"), "'j'")
            finish(w.qmp, job)
            check(w)


def test_the_end_in_each_state(tmp):
    """SIGTERM in each state: exit status 0, and the chain shows what it did"""
    for job in JOBS:
        with at_work(tmp, job):
            pass
        for name in LAYERS:
            check_image(tmp / job / name)
        qemu_io(tmp / job / "top", "read -q -P 1 0 2M", "read -q -P 2 2M 2M", "read -q -P 3 4M 2M")


def test_files_of_layers_that_were_dropped_are_closed(tmp):
    """Files of layers that left the chain are open no more, whichever job it was"""
    for job, leaves in (("stream", "base"), ("commit", "middle"), ("active", "top")):
        with at_work(tmp, job) as w:
            finish(w.qmp, job)
            gone = [leaves] if job == "commit" else [n for n in LAYERS if n != (
                "top" if job == "stream" else "base")]
            for name in reversed(gone):
                w.qmp.command("blockdev-del", node_name=name)
            pid = w.daemon.process.pid
            files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert not [n for n in gone if str(w.tmp / n) in files], files
            check(w)


if __name__ == "__main__":
    main(globals())

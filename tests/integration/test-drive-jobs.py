#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""drive-mirror and drive-backup from outside, and every kind of job as an action of a transaction.

usage: test-drive-jobs.py [--chaind PATH] [WORD]...
"""
import contextlib
import os
import socket
import subprocess
import time

from commits import BLOCK, content, create, end_of, guests
from harness import MIB, await_listener, check_image, main, qemu_img, qemu_io, same_content, says
from qmp_client import Qmp
from world import World

SIZE = 16 * MIB


def make_disk(w, tmp, name="top", below="base"):
    create(tmp / below, SIZE)
    qemu_io(tmp / below, "write -P 1 4M 4M", "write -P 2 12M 1M")
    create(tmp / name, None, tmp / below)
    qemu_io(tmp / name, "write -P 3 6M 4M")
    w.add(name, tmp / name)
    w.export(name, name=name)


@contextlib.contextmanager
def serving(path, sock):
    with subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", sock, path]) as server:
        try:
            yield
        finally:
            server.terminate()


def action(kind, **arguments):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in arguments.items()}}


def grouped(w, *actions):
    w.qmp.command("transaction", actions=list(actions), properties={"completion-mode": "grouped"})


def test_refused(tmp):
    """What is refused, or taken back with its transaction, leaves no file"""
    with World(tmp) as w:
        make_disk(w, tmp)
        before = sorted(os.listdir(tmp))
        arguments = {"device": "top", "target": str(tmp / "new"), "sync": "full"}
        for name in ("drive-mirror", "drive-backup"):
            w.qmp.error(name, **arguments)
            w.qmp.error(name, job_id="j", **{**arguments, "sync": "bitmap"})
            w.qmp.error(name, job_id="j", speed=-1, **arguments)
            w.qmp.error("transaction", actions=[action(name, job_id="j", **arguments), action("abort")])
            assert sorted(os.listdir(tmp)) == before, os.listdir(tmp)
        assert len(w.nodes()) == 4, w.nodes()


def test_overwrites_nothing(tmp):
    """A file that is there is not overwritten by a new image, but one that is empty"""
    with World(tmp) as w:
        make_disk(w, tmp)
        (tmp / "kept").write_bytes(b"precious")
        (tmp / "empty").touch()
        said = w.qmp.error("drive-backup", job_id="j", device="top", target=str(tmp / "kept"), sync="full")
        says(said, "exists already", '"mode": "existing"')
        assert (tmp / "kept").read_bytes() == b"precious"
        w.qmp.command("drive-backup", job_id="j", device="top", target=str(tmp / "empty"), sync="full")
        assert "error" not in end_of(w.qmp)
    same_content(tmp / "empty", tmp / "top", "qcow2", "qcow2")


def test_target_over_layers(tmp):
    """A target over layers of its own, which stay on their loop when it comes to the device's, is closed
    with them"""
    with World(tmp) as w:
        make_disk(w, tmp)
        qemu_img("convert", "-U", "-O", "qcow2", tmp / "base", tmp / "copy")
        for n in range(6):
            create(tmp / f"target-{n}", None, tmp / "copy")
            w.qmp.command("drive-backup", job_id="j", device="top", target=str(tmp / f"target-{n}"),
                          sync="top", mode="existing", format="qcow2")
            assert "error" not in end_of(w.qmp)
            assert len(w.nodes()) == 4, w.nodes()
    same_content(tmp / "target-5", tmp / "top", "qcow2", "qcow2")


def test_to_a_server(tmp):
    """A disk that is written moves to an NBD server that a URI names, and its clients go on there"""
    sock = tmp / "remote.sock"
    qemu_img("create", "-q", "-f", "raw", tmp / "remote", SIZE)
    with World(tmp) as w:
        make_disk(w, tmp)
        with serving(tmp / "remote", sock):
            await_listener(sock)
            with guests(w, "top", 2, 4 * MIB // BLOCK, 8) as all_guests:
                w.qmp.command("drive-mirror", job_id="j", device="top", sync="full", mode="existing",
                              format="raw", node_name="moved", target=f"nbd+unix:///?socket={sock}")
                w.qmp.event("BLOCK_JOB_READY")
                w.qmp.command("job-complete", id="j")
                assert "error" not in end_of(w.qmp)
                after = sum(g.n_done for g in all_guests)
                while sum(g.n_done for g in all_guests) < after + 500:
                    time.sleep(0.01)
            w.qmp.command("blockdev-del", node_name="top")
            w.io("top", "read -P 1 4M 2M", "read -P 3 6M 4M", "read -P 0 10M 2M", "flush")
            w.qmp.command("block-export-del", id="e-top")
            w.qmp.event("BLOCK_EXPORT_DELETED")
            assert "moved" not in w.nodes()
    disk = (tmp / "remote").read_bytes()
    for g in all_guests:
        g.check(disk, g.acked)


def test_shallow_over_a_server(tmp):
    """A new target over the layer on a server that its source lies over names it as others can open it"""
    sock = tmp / "remote.sock"
    qemu_img("create", "-q", "-f", "raw", tmp / "remote", SIZE)
    qemu_io(tmp / "remote", "write -P 1 4M 4M", fmt="raw")
    create(tmp / "top", SIZE)
    qemu_io(tmp / "top", "write -P 3 6M 4M")
    with World(tmp) as w, serving(tmp / "remote", sock):
        await_listener(sock)
        nbd = {"driver": "nbd", "server": {"type": "unix", "path": str(sock)}}
        for number, lower in enumerate((nbd, {"driver": "raw", "file": nbd})):
            w.qmp.command("blockdev-add", node_name="lower", read_only=True, **lower)
            w.add("top", tmp / "top", backing="lower")
            w.export("top", name="top")
            target = tmp / f"target-{number}"
            w.qmp.command("drive-mirror", job_id="j", device="top", sync="top", format="qcow2",
                          target=str(target), node_name="new")
            w.qmp.event("BLOCK_JOB_READY")
            w.qmp.command("job-complete", id="j")
            assert "error" not in end_of(w.qmp)
            w.io("top", "read -P 1 4M 2M", "read -P 3 6M 4M", "read -P 0 10M 2M", "write -P 4 0 64k")
            w.qmp.command("block-export-del", id="e-top")
            w.qmp.event("BLOCK_EXPORT_DELETED")
            for name in ("top", "lower"):
                w.qmp.command("blockdev-del", node_name=name)
            qemu_io(target, "read -P 4 0 64k", "read -P 1 4M 2M", "read -P 3 6M 4M", "read -P 0 10M 2M")
            assert os.stat(target).st_size < 6 * MIB, "what lies below was copied"
            w.add("again", target, read_only=True)
            w.qmp.command("blockdev-del", node_name="again")


def test_silent_server(tmp):
    """A server that does not answer holds up the job that is to go there, and nobody else"""
    with World(tmp) as w, socket.socket(socket.AF_UNIX) as silent:
        make_disk(w, tmp)
        silent.bind(str(tmp / "silent"))
        silent.listen()
        other = Qmp(tmp / "qmp")
        for name in ("drive-mirror", "drive-backup"):
            other.send({"execute": name, "arguments": {
                "job-id": "j", "device": "top", "sync": "full", "mode": "existing", "format": "raw",
                "target": f"nbd+unix:///?socket={tmp / 'silent'}"}})
            connection, _ = silent.accept()
            create(tmp / name, SIZE)
            w.add("meanwhile", tmp / name)
            says(w.qmp.error("blockdev-del", node_name="top"), "top", "in use")
            w.qmp.command("blockdev-del", node_name="meanwhile")
            connection.close()
            assert "error" in other.reply()
            assert not w.qmp.command("query-jobs")
        other.close()


def test_together(tmp):
    """A stream, a commit, a mirror and a backup of one transaction end together, under guests"""
    with World(tmp) as w:
        for name in ("a", "b", "c", "d"):
            make_disk(w, tmp, name, name + "0")
        with guests(w, "c", 1, 2 * MIB // BLOCK, 4):
            grouped(w, action("block-stream", job_id="ja", device="a"),
                    action("block-commit", job_id="jb", device="b"),
                    action("drive-mirror", job_id="jc", device="c", target=str(tmp / "c1"), sync="full",
                           node_name="c1"),
                    action("drive-backup", job_id="jd", device="d", target=str(tmp / "d1"), sync="full"))
            ready = {w.qmp.event("BLOCK_JOB_READY")["device"] for _ in range(2)}
            assert ready == {"jb", "jc"}, ready
            w.qmp.command("job-complete", id="jb")
            for job in w.qmp.command("query-jobs"):
                assert job["status"] in ("waiting", "running", "ready"), job
            w.qmp.command("job-complete", id="jc")
            done = [w.qmp.event("BLOCK_JOB_COMPLETED") for _ in range(4)]
            assert not any("error" in d for d in done), done
        for name in ("a", "b", "c"):
            w.io(name, "read -P 1 4M 2M", "read -P 3 6M 4M", "read -P 2 12M 1M")
        exports = {e["id"]: e["node-name"] for e in w.qmp.command("query-block-exports")}
        assert exports["e-c"] == "c1" and exports["e-b"] != "b", exports
    for name in ("a", "b0", "c1", "d1"):
        check_image(tmp / name)
    assert content(tmp / "d1", tmp / "raw") == content(tmp / "d", tmp / "raw")


def test_fail_together(tmp):
    """One of them is cancelled: none of the others does anything"""
    with World(tmp) as w:
        for name in ("a", "b", "c"):
            make_disk(w, tmp, name, name + "0")
        grouped(w, action("block-stream", job_id="ja", device="a"),
                action("block-commit", job_id="jb", device="b"),
                action("drive-mirror", job_id="jc", device="c", target=str(tmp / "c1"), sync="full", speed=1))
        w.qmp.event("BLOCK_JOB_READY")
        w.qmp.command("job-complete", id="jb")
        w.qmp.command("job-cancel", id="jc")
        gone = {w.qmp.event("BLOCK_JOB_CANCELLED")["device"] for _ in range(3)}
        assert gone == {"ja", "jb", "jc"}, gone
        exports = {e["id"]: e["node-name"] for e in w.qmp.command("query-block-exports")}
        assert exports == {f"e-{n}": n for n in ("a", "b", "c")}, exports
        for name in ("a", "b", "c"):
            w.io(name, "read -P 1 4M 2M", "read -P 3 6M 4M", "read -P 2 12M 1M")
            assert w.nodes()[name]["image"].get("backing-filename"), name


if __name__ == "__main__":
    main(globals())

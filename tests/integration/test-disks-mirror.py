#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remembered disks move to other images, here and elsewhere, under guests that verify."""
import socket
import time

from disks import fill, small_file_system
from harness import HANG, KIB, MIB, Daemon, check_image, main, says
from qmp_client import Qmp
from state import Guest, Service

SIZE = 8 * MIB


def world(service, **more):
    """Disk web with a point in time; what that and the head show."""
    service.command("disk-create", name="web", size=SIZE, **more)
    service.write("web", 60, 1)
    mon = service.content("web")
    service.snapshot("web", "mon")
    service.write("web", 60, 2)
    return mon, service.content("web")


def point(service, name):
    service.command("disk-export", disk="web", point=name, name="look")
    content = service.content("look")
    service.command("disk-unexport", id="look")
    return content


def mirror(service, target, **more):
    reply = service.command("disk-mirror", disk="web", target=str(target), **more)
    return reply, service.well(reply["job"])


def test_to_a_file(tmp):
    """A disk moves to a file under a guest that does not notice; points stay, and a restart finds all there"""
    with Service(tmp) as s:
        mon, content = world(s)
        g = Guest(s, "web", shadow=content)
        g.go_on(50)
        reply, _ = mirror(s, tmp / "moved.qcow2")
        g.go_on(200)
        disk = s.disk("web")
        assert disk["file"] == reply["file"] == str(tmp / "moved.qcow2"), disk
        assert disk["node-name"] == reply["node-name"] and len(disk["layers"]) == 1, disk
        assert [(p["name"], p["in-chain"]) for p in disk["points"]] == [("mon", False)], disk
        assert s.files() == {"web.qcow2"}, s.files()  # the point's; the old head is gone
        assert point(s, "mon") == mon
        s.snapshot("web", "tue")
        g.go_on(50)
        # And on, with a layer below, to a raw image.
        mirror(s, tmp / "again.raw", format="raw", verify=True)
        g.go_on(50)
        content = g.end()
        assert s.content("web") == content
        disk = s.disk("web")
    with Service(tmp) as s:
        assert s.disk("web") == disk
        assert s.content("web") == content and point(s, "mon") == mon
    assert (tmp / "again.raw").read_bytes() == content
    check_image(tmp / "moved.qcow2")


def test_all_goes(tmp):
    """Without points nothing of the old chain is left, but for what is not ours"""
    (tmp / "new").mkdir()
    with Service(tmp) as s:
        _, content = world(s)
        s.well(s.command("disk-flatten", disk="web")["job"])
        s.command("disk-delete-point", disk="web", point="mon")
        reply, _ = mirror(s, tmp / "new")
        assert reply["file"] == str(tmp / "new/web.qcow2"), reply
        assert s.files() == set() and s.content("web") == content
        s.command("disk-remove", name="web")
        s.command("disk-add", name="web", file=str(tmp / "new/web.qcow2"))
        mirror(s, tmp / "new", format="raw")
        assert (tmp / "new/web.qcow2").exists(), "that was somebody's"
        nodes = [n["node-name"] for n in s.command("query-named-block-nodes", flat=True)]
        assert sum(n.startswith("layer-") for n in nodes) == 1, nodes
    assert (tmp / "new/web.raw").read_bytes() == content


def test_elsewhere(tmp):
    """A disk moves to an NBD server, is there after a restart, and comes back"""
    with open(tmp / "far.raw", "wb") as f:
        f.truncate(SIZE)
    far = f"nbd+unix:///?socket={tmp}/far"
    with Daemon("--format", "raw", "--nbd", tmp / "far", tmp / "far.raw"):
        with Service(tmp) as s:
            _, content = world(s)
            s.command("disk-rollback", disk="web", point="mon", above="drop", clients="hard")
            s.command("disk-delete-point", disk="web", point="mon", way="commit")
            s.idle()
            g = Guest(s, "web", shadow=s.content("web"))
            mirror(s, far)
            g.go_on(100)
            content = g.end()
            assert s.disk("web")["file"] == far and s.files() == set(), s.disk("web")
        with Service(tmp) as s:
            assert s.content("web") == content
            g = Guest(s, "web", shadow=content)
            mirror(s, tmp / "back.qcow2")
            g.go_on(50)
            content = g.end()
            assert s.content("web") == content
    with Service(tmp) as s:
        assert s.content("web") == content


def test_refused(tmp):
    """What cannot be is refused, or fails, and leaves the disk where it was and no file"""
    with Service(tmp) as s:
        _, content = world(s)
        before = s.lasting("web")
        (tmp / "mine").write_bytes(b"precious")
        for target, words in ((tmp / "mine", "exists already"), (before["file"], "image of a disk"),
                              ("/nowhere/x", "/nowhere"), (f"nbd+unix:///?socket={tmp}/none", "none")):
            says(s.error("disk-mirror", disk="web", target=str(target)), words)
        with open(tmp / "small.raw", "wb") as f:
            f.truncate(MIB)
        with Daemon("--format", "raw", "--nbd", tmp / "far", tmp / "small.raw"):
            says(s.error("disk-mirror", disk="web", target=f"nbd+unix:///?socket={tmp}/far"), "size")
        assert s.lasting("web") == before and (tmp / "mine").read_bytes() == b"precious"
        # Cancelled, before it is there and when it could be completed.
        job = s.command("disk-mirror", disk="web", target=str(tmp / "new"), speed=64 * KIB)["job"]
        says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "p"}]), f"'{job}'")
        s.command("job-cancel", id=job)
        assert s.ended(job)["result"] == "cancelled"
        for force in False, True:
            job = s.command("disk-mirror", disk="web", target=str(tmp / "new"), auto_complete=False)["job"]
            until = time.monotonic() + HANG
            while not any(j["status"] == "ready" for j in s.command("query-jobs")):
                assert time.monotonic() < until
                time.sleep(0.01)
            s.command("block-job-cancel", device=job, force=force)
            s.ended(job)
            s.idle()
        assert s.lasting("web") == before and s.content("web") == content
        assert not (tmp / "new").exists()
        job = s.command("disk-mirror", disk="web", target=str(tmp / "new"), auto_complete=False)["job"]
        while not any(j["status"] == "ready" for j in s.command("query-jobs")):
            time.sleep(0.01)
        s.command("job-complete", id=job)
        s.well(job)
        assert s.disk("web")["file"] == str(tmp / "new") and s.content("web") == content


def test_beside_other_commands(tmp):
    """What a disk that moves leaves goes, though another command drops layers at that moment"""
    (tmp / "old").mkdir()
    with socket.socket(socket.AF_UNIX) as silent, Service(tmp) as s:
        silent.bind(str(tmp / "silent"))
        silent.listen()
        world(s, directory=str(tmp / "old"))
        s.command("disk-delete-point", disk="web", point="mon", way="stream")
        s.idle()
        s.command("disk-create", name="db", size=SIZE)
        s.snapshot("db", "a")
        s.command("disk-rollback", disk="db", point="a", keep_as="b")
        job = s.command("disk-mirror", disk="web", target=str(tmp / "new"), speed=KIB)["job"]
        # One command waits for a server, the next one for that; then the disk moves.
        others = [Qmp(tmp / "qmp") for _ in range(2)]
        others[0].send({"execute": "disk-add",
                        "arguments": {"name": "far", "file": f"nbd+unix:///?socket={tmp}/silent"}})
        client, _ = silent.accept()
        others[1].send({"execute": "disk-delete-point", "arguments": {"disk": "db", "point": "b"}})
        s.command("query-disks")
        s.command("block-job-set-speed", device=job, speed=0)
        while s.disk("web")["file"] != str(tmp / "new"):
            time.sleep(0.01)
        client.close()
        assert "error" in others[0].reply() and "return" in others[1].reply()
        s.well(job)
        assert list((tmp / "old").iterdir()) == []


def test_full(tmp):
    """A target that is full fails the job; a state directory that is full keeps the disk where it was"""
    with small_file_system(tmp, 24 * MIB) as directory:
        with Service(tmp) as s:
            world(s)
            filler = fill(directory)
            g = Guest(s, "web", shadow=s.content("web"))
            says(s.error("disk-mirror", disk="web", target=str(directory / "x")), "No space")
            filler.unlink()
            g.go_on(20)
            content = g.end()
            assert s.content("web") == content and s.files() == {"web.qcow2", "web.2.qcow2"}
            s.command("disk-remove", name="web", delete_files=True)
        (directory / "state").mkdir()
        (tmp / "state").rename(tmp / "old")
        (tmp / "state").symlink_to(directory / "state")
        with Service(tmp) as s:
            mon, _ = world(s, directory=str(tmp))
            g = Guest(s, "web", shadow=s.content("web"))
            before = s.lasting("web")
            job = s.command("disk-mirror", disk="web", target=str(tmp / "new"), auto_complete=False)["job"]
            while not any(j["status"] == "ready" for j in s.command("query-jobs")):
                time.sleep(0.01)
            g.go_on(20)
            filler = fill(directory)
            s.command("job-complete", id=job)
            while s.disk("web").get("job"):
                time.sleep(0.01)
            g.go_on(100)
            assert s.disk("web")["file"] == before["file"] and not (tmp / "new").exists()
            filler.unlink()
            mirror(s, tmp / "new2")
            g.go_on(20)
            content = g.end()
            assert s.content("web") == content and point(s, "mon") == mon
        with Service(tmp) as s:
            assert s.content("web") == content and point(s, "mon") == mon


if __name__ == "__main__":
    main(globals())

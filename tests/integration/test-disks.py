#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remembered disks: made, added, exported, kept over restarts, removed; points in time of them."""
import contextlib
import os
import sqlite3
import subprocess

from disks import file_system, fill, small_file_system
from harness import (MIB, Daemon, Skip, check_image, fails, main, need_program, qemu_img, qemu_io, random_file,
                     run, says)
from qmp_client import Qmp
from state import Guest, Service, content_of

SIZE = 8 * MIB


def test_create(tmp):
    """A disk is made, exported under its name, and there again after a restart with what was written"""
    with Service(tmp) as s:
        info = s.command("disk-create", name="web", size=SIZE)
        assert info["size"] == SIZE and info["open"] and info["format"] == "qcow2", info
        assert info["file"] == str(tmp / "state/images/web.qcow2"), info
        export, = info["exports"]
        assert export["served"] and export["writable"] and export["uris"], export
        assert s.command("query-disks") == [info]
        g = Guest(s, "web")
        g.go_on(100)
        shadow = g.end()
        s.command("disk-create", name="plain", size=SIZE, format="raw", export=False)
        assert s.disk("plain")["exports"] == []
        d = s.disk("web")
    with Service(tmp) as s:
        assert s.disk("web") == d
        assert s.content("web") == shadow
        assert s.disk("plain")["format"] == "raw"
    check_image(tmp / "state/images/web.qcow2")


def test_create_refused(tmp):
    """What cannot be is refused with a sentence, and leaves nothing behind"""
    with Service(tmp) as s:
        says(s.error("disk-create", name="a b", size=SIZE), "cannot be the name of a disk")
        says(s.error("disk-create", name="a", size=SIZE, directory="/nowhere"), "/nowhere")
        s.command("disk-create", name="web", size=SIZE)
        says(s.error("disk-create", name="web", size=SIZE), "there is a disk 'web' already")
        (tmp / "mine").write_text("precious")
        says(s.error("disk-create", name="b", size=SIZE, file=str(tmp / "mine")),
             "exists already", "disk-add")
        assert (tmp / "mine").read_text() == "precious"
        assert s.files() == {"web.qcow2"}
    with Service(tmp) as s:
        assert [d["name"] for d in s.command("query-disks")] == ["web"]


def chain(tmp, n=3):
    random_file(tmp / "content", SIZE)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "content", tmp / "l0.qcow2")
    for i in range(1, n):
        qemu_img("create", "-q", "-f", "qcow2", "-b", f"l{i - 1}.qcow2", "-F", "qcow2",
                 tmp / f"l{i}.qcow2")
        qemu_io(tmp / f"l{i}.qcow2", f"write -P {i} {i * 64}k 100k")
    return tmp / f"l{n - 1}.qcow2"


def test_add(tmp):
    """A chain that exists is served, its layers are named, and nothing of it is ours"""
    top = chain(tmp)
    was = content_of(top)
    with Service(tmp) as s:
        info = s.command("disk-add", name="web", file=str(top))
        assert [os.path.basename(layer["file"]) for layer in info["layers"]] == \
            ["l2.qcow2", "l1.qcow2", "l0.qcow2"], info
        assert not any(layer["ours"] for layer in info["layers"])
        assert s.content("web") == was
        says(s.error("disk-add", name="b", file=str(top)), "head of disk 'web'")
        says(s.error("disk-add", name="b", file=str(tmp / "l1.qcow2")), "disk-clone")
        says(s.error("disk-add", name="b", file=str(tmp / "none")), "none")
        says(s.error("disk-add", name="b", file=str(tmp / "content")), "raw")
        s.command("disk-add", name="raw", file=str(tmp / "content"), format="raw", read_only=True)
        assert s.content("raw") == (tmp / "content").read_bytes()
        # Another overlay of the same base shares its layers.
        qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "l1.qcow2", "-F", "qcow2", tmp / "o")
        other = s.command("disk-add", name="other", file=str(tmp / "o"))
        assert other["layers"][1:] == s.disk("web")["layers"][1:], other
        assert other["layers"][1]["shared"], other
    with Service(tmp) as s:
        assert s.content("web") == was
        s.command("disk-remove", name="web")
        assert s.content("other")
        s.command("disk-remove", name="other", delete_files=True)
        assert not (tmp / "o").exists() and (tmp / "l1.qcow2").exists()
        nodes = {n["node-name"] for n in s.command("query-named-block-nodes", flat=True)}
        assert not any(n.startswith("layer-") and n != s.disk("raw")["node-name"] for n in nodes), nodes


def test_parent_of_a_link(tmp):
    """`..` in a header's name is the directory over the one that a link leads to"""
    for folder in "data/images", "data/base", "base":
        (tmp / folder).mkdir(parents=True)
    (tmp / "link").symlink_to(tmp / "data/images")
    for fill_with, folder in (1, "data/base"), (2, "base"):
        qemu_img("create", "-q", "-f", "qcow2", tmp / folder / "b", SIZE)
        qemu_io(tmp / folder / "b", f"write -q -P {fill_with} 0 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "../base/b", tmp / "data/images/web")
    with Service(tmp) as s:
        s.command("disk-add", name="web", file=str(tmp / "link/web"))
        assert s.disk("web")["layers"][1]["file"] == str(tmp / "data/base/b")
        assert s.content("web")[:4] == b"\1\1\1\1"
    with Service(tmp) as s:
        assert s.content("web")[:4] == b"\1\1\1\1"
        s.command("disk-remove", name="web")
        s.command("disk-add", name="web", file=str(tmp / "data/images/web"))
        assert s.disk("web")["layers"][1]["file"] == str(tmp / "data/base/b")


def test_changed_behind(tmp):
    """A chain that somebody changed while the daemon was away is not opened, and the others are"""
    top = chain(tmp)
    with Service(tmp) as s:
        s.command("disk-add", name="web", file=str(top))
        s.command("disk-create", name="good", size=SIZE)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "l0.qcow2", "-F", "qcow2", top)
    with Service(tmp) as s:
        web = s.disk("web")
        assert not web["open"]
        says(web["problem"], "l0.qcow2", "l1.qcow2")
        assert s.disk("good")["open"] and s.content("good") == bytes(SIZE)
        says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "p"}]), "not open")
        s.command("disk-remove", name="web")


def test_remove(tmp):
    """Clients are in the way of a removal unless they are disconnected; files go only on request"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        h = s.connect("web")
        h.pwrite(b"x" * 512, 0)
        says(s.error("disk-remove", name="web"), "has clients")
        says(s.error("block-export-del", id="web"), "belongs to disk 'web'")
        s.command("disk-remove", name="web", clients="hard")
        assert s.command("query-disks") == [] and s.files() == {"web.qcow2"}
        s.command("disk-add", name="web", file=str(tmp / "state/images/web.qcow2"))
        s.snapshot("web", "p1")
        s.command("disk-remove", name="web", delete_files=True)
        # What was added is not ours, but the head is.
        assert s.files() == {"web.qcow2"}, s.files()
        assert s.command("query-named-block-nodes") == []


def test_snapshots(tmp):
    """Points in time are made under a guest, shown beside the head, and there after a restart"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        g, shown = Guest(s, "web"), {}
        for point in "mon", "tue", "wed":
            g.go_on(100)
            with g.still():
                s.snapshot("web", point)
                shown[point] = bytes(g.shadow)
        g.go_on(100)
        says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "mon"}]), "already")
        export = s.command("disk-export", disk="web", point="tue")
        assert export["name"] == "web@tue" and not export["writable"], export
        assert s.content("web@tue") == shown["tue"]
        h = s.connect("web@tue")
        assert h.is_read_only()
        h.shutdown()
        now = g.end()
        disk = s.disk("web")
        assert [p["name"] for p in disk["points"]] == ["mon", "tue", "wed"], disk
    with Service(tmp) as s:
        assert s.disk("web") == disk
        assert s.content("web") == now and s.content("web@tue") == shown["tue"]
        s.command("disk-unexport", id="web@tue")
        for point in "mon", "wed":
            s.command("disk-export", disk="web", point=point, name=point)
            assert s.content(point) == shown[point]
        # Low level commands see the nodes, and leave them where they are.
        head = disk["node-name"]
        for name, arguments in (
                ("blockdev-snapshot-sync", {"node_name": head, "snapshot_file": str(tmp / "x"),
                                            "snapshot_node_name": "x"}),
                ("block-commit", {"job_id": "j", "device": head}),
                ("block-commit", {"job_id": "j", "device": head,
                                  "top_node": disk["layers"][1]["node-name"]}),
                ("block-stream", {"job_id": "j", "device": head}),
                ("blockdev-del", {"node_name": head}),
                ("change-backing-file", {"device": head, "image_node_name": head,
                                         "backing_file": "x"})):
            says(s.error(name, **arguments), "disk 'web'")
        s.command("block-dirty-bitmap-add", node=head, name="b")
        assert not (tmp / "x").exists()


def test_together(tmp):
    """Points of several disks are of one moment, or none is made"""
    with Service(tmp) as s:
        for name in "a", "b":
            s.command("disk-create", name=name, size=SIZE)
        s.command("disk-snapshot", snapshots=[{"disk": "a", "point": "p"}, {"disk": "b", "point": "p"}])
        before = s.files()
        says(s.error("disk-snapshot", snapshots=[
            {"disk": "a", "point": "q"}, {"disk": "b", "point": "q", "directory": "/nowhere"}]), "/nowhere")
        says(s.error("disk-snapshot", snapshots=[
            {"disk": "a", "point": "q"}, {"disk": "a", "point": "r"}]), "named twice")
        assert s.files() == before
        for name in "a", "b":
            assert [p["name"] for p in s.disk(name)["points"]] == ["p"]
        s.snapshot("a", "q")


def test_one_daemon(tmp):
    """A directory has one daemon; a damaged or newer database is told of, and no image touched"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        says(fails("--state", tmp / "state"), "in use by another chaind", f"pid {s.process.pid}")
    database = tmp / "state/chaind.db"
    good = database.read_bytes()
    database.write_bytes(good[:100] + os.urandom(len(good) - 100))
    says(fails("--state", tmp / "state"), "damaged", "disk-add")
    database.write_bytes(good)
    db = sqlite3.connect(database)
    db.execute("PRAGMA user_version=99")
    db.commit()
    db.close()
    says(fails("--state", tmp / "state"), "newer chaind")


def test_server_stopped(tmp):
    """Exports of disks end with the NBD server, and are there again with the next one"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        s.snapshot("web", "p")
        s.command("disk-export", disk="web", point="p")
        s.command("disk-create", name="hidden", size=SIZE, export=False)
        h = s.connect("web")
        h.pwrite(b"x" * 512, 0)
        s.command("nbd-server-stop")
        assert [e["served"] for e in s.disk("web")["exports"]] == [False, False]
        says(s.error("disk-export", disk="hidden"), "no NBD server")
        s.snapshot("web", "q")  # all else goes on
        address = {"type": "unix", "data": {"path": str(tmp / "nbd")}}
        s.command("nbd-server-start", addr=address)
        assert [e["served"] for e in s.disk("web")["exports"]] == [True, True]
        assert s.content("web")[:512] == b"x" * 512
        assert s.content("web@p") == bytes(SIZE)
        assert s.disk("hidden")["exports"] == []
    with Service(tmp) as s:
        assert s.content("web")[:512] == b"x" * 512


def test_full(tmp):
    """On a disk that is full disks stay as they are, with a sentence; with room again all goes on"""
    with small_file_system(tmp, 24 * MIB) as directory:
        (directory / "state").mkdir()
        (tmp / "state").symlink_to(directory / "state")
        with Service(tmp) as s:
            s.command("disk-create", name="web", size=MIB)
            s.snapshot("web", "p")
            before, files = s.lasting("web"), s.files()
            filler = fill(directory)
            says(s.error("disk-create", name="b", size=MIB), "full")
            says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "q"}]), "full")
            says(s.error("disk-export", disk="web", point="p"), "full")
            assert s.lasting("web") == before and s.files() == files
            filler.unlink()
            s.snapshot("web", "q")
            s.command("disk-export", disk="web", point="p")
            after = s.disk("web")
            fill(directory)
        with Service(tmp) as s:
            assert s.disk("web") == after
            assert s.content("web@p") == bytes(MIB)


def test_kept_until_the_end(tmp):
    """What could not be noted on a disk that was full is noted at the latest when the daemon ends"""
    images = tmp / "images"
    images.mkdir()
    with small_file_system(tmp, 8 * MIB) as full:
        (tmp / "state").symlink_to(full)
        with Service(tmp) as s:
            s.command("disk-create", name="web", size=MIB, directory=str(images))
            s.command("disk-create", name="db", size=MIB, directory=str(images))
            filler = fill(full)
            says(s.error("disk-remove", name="db", delete_files=True), "full")
            filler.unlink()
        with Service(tmp) as s:
            assert [d["name"] for d in s.command("query-disks")] == ["web"]
            assert [p.name for p in images.iterdir()] == ["web.qcow2"]


@contextlib.contextmanager
def next_sync_fails(service):
    """The next sync of the database does not come to the disk; those after it do."""
    traced = subprocess.Popen(
        [need_program("strace"), "-f", "-P", service.state / "chaind.db-wal", "-e", "trace=fdatasync,fsync",
         "-e", "inject=fdatasync,fsync:error=EIO:when=1", "-p", str(service.process.pid)],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        attached = traced.stderr.readline()
        if "attached" not in attached:
            raise Skip(f"cannot trace a process here: {attached.strip()}")
        yield
    finally:
        traced.terminate()
        traced.communicate()


def test_failed_is_not_done(tmp):
    """What failed because the database could not be synced is not found to be done after a kill"""
    s = Service(tmp)
    s.command("disk-create", name="web", size=MIB)
    s.snapshot("web", "mon")
    with next_sync_fails(s):
        says(s.error("disk-delete-point", disk="web", point="mon", way="commit"), "I/O error")
    assert [p["name"] for p in s.disk("web")["points"]] == ["mon"]
    s.kill()
    with Service(tmp) as s:
        s.idle()
        assert [p["name"] for p in s.disk("web")["points"]] == ["mon"]


def test_read_only_directory(tmp):
    """A state directory that nobody can write is told of at the start"""
    with file_system(tmp, 24 * MIB, "mkfs.ext4", "-q") as directory:
        run("mount", "-o", "remount,ro", directory)
        says(fails("--state", directory / "state"), "cannot make the state directory", "Read-only")
        says(fails("--state", directory), "chaind.lock", "Read-only")
        run("mount", "-o", "remount,rw", directory)
        with Daemon("--state", directory, "--qmp", tmp / "q", "--nbd", tmp / "n"):
            Qmp(tmp / "q").command("disk-create", name="web", size=MIB)
        run("mount", "-o", "remount,ro", directory)
        says(fails("--state", directory), "Read-only")


def test_without(tmp):
    """Without a state directory the commands say what is missing"""
    with Daemon("--qmp", tmp / "q"):
        q = Qmp(tmp / "q")
        assert q.command("query-disks") == []
        says(q.error("disk-create", name="web", size=SIZE), "--state")


if __name__ == "__main__":
    main(globals())

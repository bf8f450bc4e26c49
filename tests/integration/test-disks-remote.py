#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remembered disks that stand on images of another machine, which is slow, away, or back again."""
import pathlib
import socket
import time

from harness import HANG, MIB, Daemon, main, qemu_img, random_file, says
from state import Guest, Service

SIZE = 4 * MIB


def overlay(tmp, name, base="nbd+unix:///?socket={}/far"):
    """An image over what the other machine shows."""
    path = tmp / f"{name}.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", base.format(tmp), "-F", "raw", path, SIZE)
    return str(path)


def far(tmp):
    """The other machine."""
    return Daemon("--format", "raw", "--read-only", "--nbd", tmp / "far", tmp / "content")


def until_open(service, name):
    until = time.monotonic() + HANG
    while not service.disk(name)["open"]:
        assert time.monotonic() < until, service.disk(name)
        time.sleep(0.05)


def test_silent_server(tmp):
    """A server that never answers holds up its own disk only; once it answers the disk is there"""
    random_file(tmp / "content", SIZE)
    content = (tmp / "content").read_bytes()
    with far(tmp), Service(tmp) as s:
        for name in "web", "db":
            s.command("disk-add", name=name, file=overlay(tmp, name))
        assert s.disk("db")["layers"][1]["shared"]
        s.command("disk-create", name="here", size=SIZE)
        s.write("here", 5, 1)
        here = s.content("here")
        assert s.content("web") == content
    (tmp / "far").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp / "far"))
        silent.listen()
        begun = time.monotonic()
        with Service(tmp) as s:
            assert time.monotonic() - begun < HANG
            assert s.content("here") == here
            web = s.disk("web")
            assert not web["open"], web
            says(web["problem"], "has not answered yet")
            says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "p"}]), "not open")
            s.snapshot("here", "p")
            begun = time.monotonic()
        assert time.monotonic() - begun < HANG  # it also ends
        s = Service(tmp)
    pathlib.Path(tmp / "far").unlink()
    with far(tmp):  # the connection that was never answered is closed; it is tried again
        for name in "web", "db":
            until_open(s, name)
            assert s.content(name) == content
        s.stop()


def test_server_away(tmp):
    """A disk whose server is away at the start says so, is there once that is back, and can be removed"""
    random_file(tmp / "content", SIZE)
    content = (tmp / "content").read_bytes()
    with far(tmp), Service(tmp) as s:
        for name in "web", "gone":
            s.command("disk-add", name=name, file=overlay(tmp, name))
    with Service(tmp) as s:
        says(s.disk("web")["problem"], "far")
        s.command("disk-remove", name="gone")
        with far(tmp):
            until_open(s, "web")
            assert s.content("web") == content
            s.snapshot("web", "p")
        assert [d["name"] for d in s.command("query-disks")] == ["web"]


def test_migrated(tmp):
    """What another machine shows comes here under a guest, from the first moment, and is not needed then"""
    random_file(tmp / "content", SIZE)
    content = (tmp / "content").read_bytes()
    uri = f"nbd+unix:///?socket={tmp}/far"
    with Service(tmp) as s:
        with far(tmp):
            says(s.error("disk-add", name="web", file=uri, format="raw", overlay=True, directory="/nowhere"),
                 "/nowhere")
            assert s.command("query-disks") == [] and s.files() == set()
            disk = s.command("disk-add", name="web", file=uri, format="raw", overlay=True)
            assert [layer["file"] for layer in disk["layers"]][1:] == [uri], disk
            g = Guest(s, "web", shadow=content)
            g.go_on(100)
            s.well(s.command("disk-flatten", disk="web")["job"])
            g.go_on(20)
        g.go_on(100)
        shown = g.end()
        assert len(s.disk("web")["layers"]) == 1 and s.content("web") == shown
    assert (tmp / "content").read_bytes() == content
    with Service(tmp) as s:
        assert s.content("web") == shown


def test_migration_interrupted(tmp):
    """A migration that lost its source, or the daemon, goes on once both are there"""
    random_file(tmp / "content", SIZE)
    content = (tmp / "content").read_bytes()
    s = Service(tmp)
    with far(tmp):
        s.command("disk-add", name="web", file=f"nbd+unix:///?socket={tmp}/far", format="raw", overlay=True)
        job = s.command("disk-flatten", disk="web", speed=64 << 10)["job"]
        s.write("web", 3, 1)
        shown = s.content("web")
    s.ended(job)  # its source is gone
    assert len(s.disk("web")["layers"]) == 2
    s.kill()
    s = Service(tmp)
    with far(tmp):
        until_open(s, "web")
        assert s.content("web") == shown
        s.well(s.command("disk-flatten", disk="web")["job"])
    assert s.content("web") == shown and shown != content
    s.stop()


if __name__ == "__main__":
    main(globals())

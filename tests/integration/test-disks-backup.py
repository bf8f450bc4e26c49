#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backups of remembered disks: full ones, and what has changed since a checkpoint, over points in time and
restarts, under a guest; what fails or is cancelled leaves nothing behind."""
import json
import os

from disks import file_system, fill, small_file_system
from harness import KIB, MIB, check_image, main, qemu_img, says
from state import Guest, Service, content_of

SIZE = 16 * MIB


def backup(service, path, **more):
    reply = service.command("disk-backup", disk="web", target=str(path), **more)
    return reply, service.well(reply["job"])


def test_increments(tmp):
    """A full backup and increments on it, each over the one before, are what the disk was"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        s.write("web", 100, 1)
        was = {0: s.content("web")}
        reply, full = backup(s, tmp / "0.qcow2")
        assert s.disk("web")["checkpoints"][0]["name"] == reply["checkpoint"]
        for i in range(1, 4):
            s.write("web", 5, i + 1)
            was[i] = s.content("web")
            reply, entry = backup(s, tmp / f"{i}.qcow2", since="last", checkpoint=f"day{i}")
            assert entry["copied"] + entry["shared"] < 20 * 64 * KIB, entry
        assert [c["name"] for c in s.disk("web")["checkpoints"]][1:] == ["day1", "day2", "day3"]
        # Since one that is named, and beside the others.
        reply, _ = backup(s, tmp / "since1.qcow2", since="day1", checkpoint="other")
        assert reply["since"] == "day1"
        was["since1"] = was[3]
    for name, shown in was.items():
        check_image(tmp / f"{name}.qcow2")
        assert content_of(tmp / f"{name}.qcow2") == shown, name
    info = json.loads(qemu_img("info", "-U", "--output=json", tmp / "2.qcow2"))
    assert info["backing-filename"] == str(tmp / "1.qcow2"), info


def test_over_points_and_restarts(tmp):
    """What has changed since a checkpoint is known over points in time and restarts"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        s.write("web", 100, 1)
        backup(s, tmp / "0.qcow2")
        s.write("web", 3, 2)
        s.snapshot("web", "p")
        s.write("web", 3, 3)
        s.snapshot("web", "q")
        s.write("web", 3, 4)
        one = s.content("web")
        _, entry = backup(s, tmp / "1.qcow2", since="last")
        assert entry["copied"] + entry["shared"] < 30 * 64 * KIB, entry
        s.write("web", 3, 5)
    with Service(tmp) as s:
        s.write("web", 3, 6)
        two = s.content("web")
        _, entry = backup(s, tmp / "2.qcow2", since="last")
        assert entry["copied"] + entry["shared"] < 12 * 64 * KIB, entry
        nodes = s.command("query-named-block-nodes", flat=True)
        names = {b["name"] for n in nodes for b in n.get("dirty-bitmaps", ())}
        assert names == {f"checkpoint-{c['name']}" for c in s.disk("web")["checkpoints"]}, names
    assert content_of(tmp / "1.qcow2") == one and content_of(tmp / "2.qcow2") == two


def test_under_a_guest(tmp):
    """The backup is the disk of one moment, whatever a guest writes meanwhile"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        g = Guest(s, "web")
        for i in range(3):
            g.go_on(100)
            with g.still():
                was = bytes(g.shadow)
                reply = s.command("disk-backup", disk="web", target=str(tmp / f"{i}.qcow2"),
                                  **({"since": "last"} if i else {}))
            g.go_on(20)
            s.well(reply["job"])
            assert content_of(tmp / f"{i}.qcow2") == was, i
        now = g.end()
        assert s.content("web") == now


def test_nothing_is_left(tmp):
    """A backup that is cancelled or refused leaves no file and no bitmap, and the next one is as it was"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        s.write("web", 300, 1)
        says(s.error("disk-backup", disk="web", target=str(tmp / "x"), since="last"), "full backup")
        says(s.error("disk-backup", disk="web", target="/nowhere/x"), "/nowhere")
        backup(s, tmp / "0.qcow2", checkpoint="one")
        says(s.error("disk-backup", disk="web", target=str(tmp / "0.qcow2")), "exists already")
        says(s.error("disk-backup", disk="web", target=str(tmp / "x"), checkpoint="one"), "already")
        s.write("web", 300, 2)
        before = s.command("query-named-block-nodes", flat=True)
        job = s.command("disk-backup", disk="web", target=str(tmp / "x"), since="last", speed=64 * KIB)["job"]
        says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "p"}]), job)
        s.command("job-cancel", id=job)
        assert s.ended(job)["result"] == "cancelled"
        assert not (tmp / "x").exists()
        bitmaps = [sorted(b["name"] for b in n.get("dirty-bitmaps", ())) for n in before]
        assert [sorted(b["name"] for b in n.get("dirty-bitmaps", ()))
                for n in s.command("query-named-block-nodes", flat=True)] == bitmaps
        was = s.content("web")
        backup(s, tmp / "1.qcow2", since="one")
        assert content_of(tmp / "1.qcow2") == was
        s.command("disk-forget-checkpoint", disk="web", checkpoint="one")
        says(s.error("disk-backup", disk="web", target=str(tmp / "x"), since="one"), "no checkpoint 'one'")
        (tmp / "1.qcow2").rename(tmp / "moved")
        plan = s.command("disk-backup", disk="web", target=str(tmp / "x"), since="last", dry_run=True)
        says(plan["reason"], "1.qcow2", "is not there")
        assert "since" not in plan and "job" not in plan, plan
        one, = s.disk("web")["checkpoints"]
        says(s.error("disk-backup", disk="web", target=str(tmp / "x"), since=one["name"]), "1.qcow2", "full")
        assert not (tmp / "x").exists()


def test_database_without_room(tmp):
    """A backup, and a copy, that cannot be noted have failed, and the next ones are there after a restart"""
    with file_system(tmp, 512 * MIB, "mkfs.xfs", "-q", "-m", "reflink=1") as images:
        (tmp / "small").mkdir()
        with small_file_system(tmp / "small", 8 * MIB) as full:
            (tmp / "state").symlink_to(full)
            s = Service(tmp)
            s.command("disk-create", name="web", size=SIZE, directory=str(images))
            s.write("web", 60, 1)
            s.snapshot("web", "mon")
            files = sorted(images.iterdir())
            job = s.command("disk-backup", disk="web", target=str(images / "b"), speed=KIB)["job"]
            filler = fill(full)
            s.command("block-job-set-speed", device=job, speed=0)
            says(s.ended(job)["error"], "full")
            assert s.disk("web")["checkpoints"] == [] and sorted(images.iterdir()) == files
            for room in range(0, 64 * KIB, 4 * KIB):  # none to intend it, then none to note it
                filler.unlink()
                filler = fill(full)
                os.truncate(filler, filler.stat().st_size - room)
                answer = s.qmp.ask("disk-copy-point", disk="web", point="mon", target=str(images / "c"))
                if "return" in answer:
                    break
                says(answer["error"]["desc"], "full")
                assert sorted(images.iterdir()) == files
            s.kill()
            filler.unlink()
            with Service(tmp) as s:
                assert (images / "c").exists()
                backup(s, images / "b")
            with Service(tmp) as s:
                assert content_of(images / "b") == s.content("web")


def test_name_of_another_backup(tmp):
    """A backup never lies over one of another disk that has the name of its own since"""
    with Service(tmp) as s:
        for name in "web", "db":
            s.command("disk-create", name=name, size=SIZE)
            s.write(name, 50, len(name))
        backup(s, tmp / "x", checkpoint="c")
        (tmp / "x").unlink()
        s.well(s.command("disk-backup", disk="db", target=str(tmp / "x"))["job"])
        says(s.error("disk-backup", disk="web", target=str(tmp / "y"), since="c"), "another file")
    with Service(tmp) as s:
        reply, _ = backup(s, tmp / "y", since="last")
        says(reply["reason"], "another file")
        assert content_of(tmp / "y") == s.content("web")


def test_any_disk(tmp):
    """Raw and read-only disks, and those without exports, are backed up and moved, too"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE, format="raw")
        s.write("web", 40, 1)
        was = s.content("web")
        reply, _ = backup(s, tmp / "raw.qcow2")
        assert "checkpoint" not in reply and reply["copy"] >= 30 * 16 * KIB, reply
        says(s.error("disk-backup", disk="web", target=str(tmp / "x"), since="last"), "no checkpoint")
        reply = s.command("disk-pull", disk="web")
        assert s.content(reply["export"]) == was
        s.command("disk-pull-end", disk="web", success=True)
        s.command("disk-unexport", id="web")
        s.well(s.command("disk-mirror", disk="web", target=str(tmp / "moved.qcow2"))["job"])
        s.snapshot("web", "p")
        s.command("disk-export", disk="web")
        assert s.content("web") == was
        s.command("disk-remove", name="web")
        s.command("disk-add", name="web", file=str(tmp / "moved.qcow2"), read_only=True)
        backup(s, tmp / "copy.qcow2")
        says(s.error("disk-mirror", disk="web", target=str(tmp / "x")), "read-only")
    for name in "raw", "copy":
        assert content_of(tmp / f"{name}.qcow2") == was, name


def killed(service):
    service.kill()
    return Service(service.tmp)


def test_after_a_kill(tmp):
    """After kill -9 the head's changes are not known: said before, with size and reason, and all is copied"""
    s = Service(tmp)
    s.command("disk-create", name="web", size=SIZE)
    s.write("web", 300, 1)
    backup(s, tmp / "0.qcow2", checkpoint="c0")
    s.write("web", 3, 2)
    s = killed(s)
    was = s.content("web")
    before = s.command("query-named-block-nodes", flat=True), s.lasting("web")
    plan = s.command("disk-backup", disk="web", target=str(tmp / "1.qcow2"), since="last", dry_run=True)
    says(plan["reason"], "'c0'", "was lost")
    assert "since" not in plan and "job" not in plan and 250 * 16 * KIB <= plan["copy"] <= SIZE, plan
    assert (s.command("query-named-block-nodes", flat=True), s.lasting("web")) == before
    assert not (tmp / "1.qcow2").exists()
    says(s.error("disk-backup", disk="web", target=str(tmp / "x"), since="c0"), "'c0'", "full backup")
    reply, _ = backup(s, tmp / "1.qcow2", since="last")
    assert reply["reason"] == plan["reason"] and reply["copy"] == plan["copy"], reply
    s.write("web", 3, 3)
    now = s.content("web")
    reply, entry = backup(s, tmp / "2.qcow2", since="last")
    assert "reason" not in reply and reply["copy"] <= 3 * 128 * KIB, reply
    assert entry["copied"] <= reply["copy"], (entry, reply)
    s.command("disk-forget-checkpoint", disk="web", checkpoint="c0")
    s.stop()
    s = Service(tmp)  # now the bitmap is in the image, and is in use from the first write on
    s.write("web", 3, 4)
    s = killed(s)
    last_shown = s.content("web")
    last = s.disk("web")["checkpoints"][-1]["name"]
    plan = s.command("disk-backup", disk="web", target=str(tmp / "3.qcow2"), since="last", dry_run=True)
    says(plan["reason"], f"'{last}'", "was in use when its image was closed last")
    backup(s, tmp / "3.qcow2", since="last")
    s.command("disk-forget-checkpoint", disk="web", checkpoint=last)
    s.stop()
    for name, shown in ("1", was), ("2", now), ("3", last_shown):
        check_image(tmp / f"{name}.qcow2")
        assert content_of(tmp / f"{name}.qcow2") == shown, name
    assert "backing-filename" not in json.loads(qemu_img("info", "--output=json", tmp / "1.qcow2"))
    check_image(tmp / "state/images/web.qcow2")


def test_after_a_kill_over_points(tmp):
    """After kill -9 the changes since a checkpoint below the head are known still"""
    s = Service(tmp)
    s.command("disk-create", name="web", size=SIZE)
    s.write("web", 300, 1)
    backup(s, tmp / "0.qcow2", checkpoint="c0")
    s.write("web", 3, 2)
    s.snapshot("web", "p")
    s.write("web", 3, 3)
    s = killed(s)
    was = s.content("web")
    reply, _ = backup(s, tmp / "1.qcow2", since="last", checkpoint="c1")
    assert reply["since"] == "c0" and "reason" not in reply and reply["copy"] <= 6 * 128 * KIB, reply
    s.write("web", 3, 4)
    s = killed(s)
    now = s.content("web")
    reply, _ = backup(s, tmp / "2.qcow2", since="last")  # c1 is the head's
    says(reply["reason"], "'c1'")
    assert reply["since"] == "c0" and reply["copy"] <= 9 * 128 * KIB, reply
    s.stop()
    for name, shown in ("1", was), ("2", now):
        check_image(tmp / f"{name}.qcow2")
        assert content_of(tmp / f"{name}.qcow2") == shown, name


if __name__ == "__main__":
    main(globals())

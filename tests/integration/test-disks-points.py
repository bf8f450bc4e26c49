#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Points in time of remembered disks: deleted, gone back to, cloned; chains made shorter; under guests that
verify, with every other point showing what it did, also after a restart."""
import os

from disks import fill, small_file_system
from harness import KIB, MIB, check_image, main, qemu_img, says
from state import Guest, Service

SIZE = 4 * MIB


def shown(service, disk="web"):
    """What the head and each point show."""
    points = {}
    for point in service.disk(disk)["points"]:
        service.command("disk-export", disk=disk, point=point["name"], name="look")
        points[point["name"]] = service.content("look")
        service.command("disk-unexport", id="look")
    return points


def world(service, sizes=(40, 10, 10, 10)):
    """Disk web with the points a, b, c; each layer has so many blocks."""
    service.command("disk-create", name="web", size=SIZE)
    for i, (blocks, point) in enumerate(zip(sizes, ("a", "b", "c", None))):
        service.write("web", blocks, i)
        if point:
            service.snapshot("web", point)
    return shown(service)


def known_files(service):
    disks = service.command("query-disks")
    return {of["file"] for d in disks for of in d["layers"] + d["points"]}


def check_files(service):
    known = known_files(service)
    here = {str(service.state / "images" / name) for name in service.files()}
    assert here == known, (here, known)
    return known


def delete_each(tmp, way):
    for point in "a", "b", "c":
        there = tmp / point
        there.mkdir()
        with Service(there) as s:
            points = world(s)
            depth = len(s.disk("web")["layers"])
            g = Guest(s, "web", shadow=s.content("web"))
            plan = s.command("disk-plan", disk="web", point=point)
            assert plan["way"] in ("stream", "commit") and len(plan["ways"]) == 2, plan
            reply = s.command("disk-delete-point", disk="web", point=point, way=way)
            assert reply["way"] == way and reply["copy"] > 0 and reply["freed"] > 0, reply
            entry = s.well(reply["job"])
            assert entry["disk"] == "web", entry
            g.go_on(50)
            now = g.end()
            del points[point]
            assert shown(s) == points
            assert len(s.disk("web")["layers"]) == depth - 1
            paths = check_files(s)
        with Service(there) as s:
            assert s.content("web") == now and shown(s) == points
            assert s.command("query-job-history")[0] == entry
        for path in paths:
            check_image(path)


def test_delete_by_stream(tmp):
    """Each point is deleted by a stream under a guest, and all others show what they did"""
    delete_each(tmp, "stream")


def test_delete_by_commit(tmp):
    """Each point is deleted by a commit under a guest, the head's too, and all others show what they did"""
    delete_each(tmp, "commit")


def test_cheaper_way(tmp):
    """The way that moves less is taken: up where the layer is small, down where the one above is"""
    with Service(tmp) as s:
        world(s, (150, 5, 100, 100))
        assert s.command("disk-plan", disk="web", point="a")["way"] == "commit"
        plan = s.command("disk-plan", disk="web", point="b")
        assert plan["way"] == "stream" and plan["ways"][0]["copy"] < plan["ways"][1]["copy"], plan
        for point in "b", "a", "c":
            s.well(s.command("disk-delete-point", disk="web", point=point)["job"])
        disk = s.disk("web")
        assert len(disk["layers"]) == 1 and disk["points"] == []
        check_files(s)
        says(s.error("disk-delete-point", disk="web", point="a"), "no point in time 'a'")


def test_branches(tmp):
    """A point that clones stand on goes by name; its layer when one of them is left"""
    with Service(tmp) as s:
        points = world(s)
        head = s.content("web")
        clone = s.command("disk-clone", name="clone", disk="web", point="b")
        assert clone["size"] == SIZE and s.content("clone") == points["b"]
        s.write("clone", 10, 77)
        mine = s.content("clone")
        s.snapshot("clone", "x")
        plan = s.command("disk-plan", disk="web", point="b")
        assert plan["way"] == "keep" and plan["ways"][0]["freed"] == 0, plan
        s.command("disk-delete-point", disk="web", point="b")
        del points["b"]
        assert shown(s) == points and s.content("clone") == mine
        # What is below the branch is merged under both.
        s.well(s.command("disk-delete-point", disk="web", point="a", way="commit")["job"])
        del points["a"]
        assert shown(s) == points and s.content("clone") == mine and s.content("web") == head
        assert shown(s, "clone") == {"x": mine}
    with Service(tmp) as s:
        assert shown(s) == points and s.content("clone") == mine and s.content("web") == head
        s.command("disk-remove", name="clone", delete_files=True)
        layer = s.disk("web")["layers"][-1]
        assert layer["node-name"] not in [p["node-name"] for p in s.disk("web")["points"]]
        s.well(s.command("disk-delete-point", disk="web", layer=layer["node-name"])["job"])
        assert shown(s) == points and s.content("web") == head
        check_files(s)


def test_clone_is_flattened(tmp):
    """A clone that is flattened needs the other disk no more"""
    with Service(tmp) as s:
        points = world(s)
        s.command("disk-clone", name="clone", disk="web", point="c")
        g = Guest(s, "clone", shadow=points["c"])
        s.well(s.command("disk-flatten", disk="clone")["job"])
        assert len(s.disk("clone")["layers"]) == 1
        s.command("disk-remove", name="web", clients="hard", delete_files=True)
        g.go_on(20)
        now = g.end()
        assert len(s.files()) == 1
    with Service(tmp) as s:
        assert s.content("clone") == now


def test_flatten_to_a_depth(tmp):
    """A chain is shortened to a depth; points in time that leave the chain stay"""
    with Service(tmp) as s:
        points, head = world(s), s.content("web")
        assert "job" not in s.command("disk-flatten", disk="web", depth=4)
        s.well(s.command("disk-flatten", disk="web", depth=2)["job"])
        disk = s.disk("web")
        assert len(disk["layers"]) == 2
        assert [(p["name"], p["in-chain"]) for p in disk["points"]] == \
            [("a", True), ("b", False), ("c", False)], disk
        assert shown(s) == points and s.content("web") == head
        # A point beside the chain that nothing stands on goes at once; one below it by a merge.
        assert s.command("disk-plan", disk="web", point="c")["way"] == "drop"
        assert "job" not in s.command("disk-delete-point", disk="web", point="c")
        del points["c"]
        assert shown(s) == points and s.content("web") == head
        check_files(s)
    with Service(tmp) as s:
        assert shown(s) == points and s.content("web") == head


def test_side_branch(tmp):
    """Points beside the chain are merged, too"""
    for way in "commit", "stream":
        there = tmp / way
        there.mkdir()
        with Service(there) as s:
            points, head = world(s), s.content("web")
            s.well(s.command("disk-flatten", disk="web")["job"])
            s.well(s.command("disk-delete-point", disk="web", point="b", way=way)["job"])
            del points["b"]
            assert shown(s) == points and s.content("web") == head
            paths = check_files(s)
        with Service(there) as s:
            assert shown(s) == points and s.content("web") == head
        for path in paths:
            check_image(path)


def test_rollback(tmp):
    """Back to a point: clients are in the way or disconnected, what is above is kept or dropped"""
    with Service(tmp) as s:
        points, head = world(s), s.content("web")
        h = s.connect("web")
        assert h.pread(SIZE, 0) == head  # it is there only now: after the handshake it changes threads
        says(s.error("disk-rollback", disk="web", point="b"), "has clients")
        s.command("disk-rollback", disk="web", point="b", clients="hard", keep_as="later")
        try:
            h.pread(512, 0)
            raise SystemExit("the client was not disconnected")
        except Exception as e:
            assert not isinstance(e, SystemExit)
        assert s.content("web") == points["b"]
        points["later"] = head
        assert shown(s) == points
        s.write("web", 5, 99)
        now = s.content("web")
        # And forward again, dropping what was written since.
        s.snapshot("web", "other")
        points["other"] = now
        s.command("disk-export", disk="web", point="other")
        s.command("disk-rollback", disk="web", point="later")
        assert s.content("web") == head
        kept = [p["name"] for p in s.disk("web")["points"] if p["name"].startswith("before-")]
        assert len(kept) == 1, kept
        assert s.content("web@other") == now
    with Service(tmp) as s:
        assert s.content("web") == head and s.content("web@other") == now
        s.command("disk-rollback", disk="web", point="a", above="drop")
        assert s.content("web") == points["a"]
        left = shown(s)
        assert "c" not in left and "later" not in left and left["other"] == now, left.keys()
        s.command("disk-remove", name="web", delete_files=True)
        assert s.files() == set(), s.files()


def test_refused(tmp):
    """What an export shows, and what is not ours, is not deleted"""
    with Service(tmp) as s:
        world(s)
        s.command("disk-export", disk="web", point="a")
        says(s.error("disk-delete-point", disk="web", point="a"), "disk-unexport")
        says(s.error("disk-delete-point", disk="web"), "either a point or a layer")
        # A chain that is not ours: its layers stay as they are, so only the head can take them up.
        qemu_img("create", "-q", "-f", "qcow2", tmp / "base", SIZE)
        qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "base", "-F", "qcow2", tmp / "top")
        s.command("disk-add", name="added", file=str(tmp / "top"))
        s.write("added", 3, 1)
        was = s.content("added")
        s.snapshot("added", "p")
        plan = s.command("disk-plan", disk="added", point="p")
        assert plan["way"] == "stream", plan
        says(next(w for w in plan["ways"] if w["way"] == "commit")["blocked"], "not ours")
        s.well(s.command("disk-delete-point", disk="added", point="p")["job"])
        assert s.content("added") == was and (tmp / "top").exists()


def test_still_in_use(tmp):
    """A file in which somebody's node lies stays when its layer goes"""
    with Service(tmp) as s:
        world(s)
        point = s.disk("web")["points"][2]
        s.command("block-export-add", type="nbd", id="mine", node_name=point["node-name"], name="mine")
        was = s.content("mine")
        s.command("disk-rollback", disk="web", point="a", above="drop")
        assert os.path.exists(point["file"]) and s.content("mine") == was
        assert [p["name"] for p in s.disk("web")["points"]] == ["a"]


def test_file_of_two_names(tmp):
    """A file stays that a disk needs by another name of its directory"""
    (tmp / "real").mkdir()
    (tmp / "link").symlink_to(tmp / "real")
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE, directory=str(tmp / "link"))
        s.write("web", 40, 1)
        was = s.content("web")
        s.snapshot("web", "mon")
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", tmp / "real/web.qcow2", tmp / "top")
        s.command("disk-add", name="other", file=str(tmp / "top"))
        s.command("disk-remove", name="web", delete_files=True)
        assert [p.name for p in (tmp / "real").iterdir()] == ["web.qcow2"]
    with Service(tmp) as s:
        assert s.content("other") == was
        s.command("disk-remove", name="other", delete_files=True)
        assert (tmp / "real/web.qcow2").exists() and not (tmp / "top").exists()


def add_over(service, tmp, base):
    """Disk other, of an image over this name of a layer of web."""
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, tmp / "top")
    service.command("disk-add", name="other", file=str(tmp / "top"))


def test_file_with_links(tmp):
    """A file stays that a disk needs by a link to it, or to its directory, whatever hard links it has"""
    for kind in "directory", "link", "link-in-between", "protocol":
        there = tmp / kind
        (there / "real").mkdir(parents=True)
        (there / "linked").symlink_to(there / "real")
        with Service(there) as s:
            base = there / "real/web.qcow2"
            qemu_img("create", "-q", "-f", "qcow2", there / "image", SIZE)
            if kind == "link-in-between":
                base.symlink_to(there / "image")
            else:
                (there / "image").rename(base)
                os.link(base, there / "copy")
            s.command("disk-add", name="web", file=str(there / "linked/web.qcow2"), own=True)
            s.write("web", 40, 1)
            was = s.content("web")
            s.snapshot("web", "mon")
            if kind == "link":
                (there / "link").symlink_to(base)
                base = there / "link"
            add_over(s, there, f"file:{base}" if kind == "protocol" else base)
        (there / "top").rename(there / "away")
        with Service(there) as s:
            assert not s.disk("other")["open"]
            s.command("disk-remove", name="web", delete_files=True)
        (there / "away").rename(there / "top")
        with Service(there) as s:
            assert s.content("other") == was, kind


def test_names_that_are_taken(tmp):
    """Files of others that have the names of new layers stay, and free ones are found"""
    with Service(tmp) as s:
        world(s)
        names = [f"{disk}.{n}.{more}qcow2" for disk in ("web", "new") for n in range(20)
                 for more in ("", f"{n}.", f"{n + 1}.")]
        others = [s.state / "images" / name for name in names if name not in s.files()]
        for path in others:
            path.write_text("somebody else's")
        s.snapshot("web", "d")
        s.command("disk-clone", name="new", disk="web", point="a")
        s.command("disk-rollback", disk="web", point="b")
        assert all(path.read_text() == "somebody else's" for path in others)
        for path in others:
            path.unlink()
        check_files(s)


def test_names_of_layers_without_files(tmp):
    """A new layer takes no name that another layer has, though its file is gone"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        gone = s.state / "images/web.3.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", gone, SIZE)
        s.command("disk-add", name="other", file=str(gone))
        gone.unlink()
        s.snapshot("web", "mon")
        s.command("disk-create", name="more", size=SIZE)
        assert s.disk("web")["file"] != str(gone)


def shape(service):
    disk = service.disk("web")
    return disk["layers"], disk["points"], [(e["id"], e["served"]) for e in disk["exports"]]


def roll_back_within(tmp, full, room, above):
    """With so much room for the database: was it done? Killed then, the disk is what it was."""
    s = Service(tmp)
    before, was = s.content("web"), shape(s)
    filler = fill(full)
    os.truncate(filler, filler.stat().st_size - room)
    answer = s.qmp.ask("disk-rollback", disk="web", point="a", above=above)
    if "error" in answer:
        says(answer["error"]["desc"], "database")
        assert s.content("web") == before and shape(s) == was, (shape(s), was)
    s.write("web", 10, room)
    filler.unlink()
    flushed, points = s.content("web"), s.disk("web")["points"]
    s.kill()
    with Service(tmp) as s:
        assert s.content("web") == flushed, f"{room} bytes: what was flushed is gone"
        assert s.disk("web")["points"] == points
    return "return" in answer


def test_database_without_room(tmp):
    """A rollback that cannot be noted has not happened, and what is flushed after it is kept"""
    images = tmp / "images"
    images.mkdir()
    with small_file_system(tmp, 8 * MIB) as full:
        (tmp / "state").symlink_to(full)
        with Service(tmp) as s:
            s.command("disk-create", name="web", size=SIZE, directory=str(images))
            s.write("web", 40, 1)
            s.snapshot("web", "a")
            s.write("web", 40, 2)
        for above in "keep", "drop":
            room = 0
            while not roll_back_within(tmp, full, room, above):
                room += 4 * KIB
            assert room > 8 * KIB, room  # it failed to be intended, and to be noted
        with Service(tmp) as s:
            assert {str(path) for path in images.iterdir()} == known_files(s)


def test_cancelled(tmp):
    """A stream that is cancelled has changed nothing; a commit goes on after a restart"""
    with Service(tmp) as s:
        points = world(s, (200, 200, 200, 10))
        head = s.content("web")
        job = s.command("disk-delete-point", disk="web", point="b", way="stream", speed=64 * KIB)["job"]
        says(s.error("disk-snapshot", snapshots=[{"disk": "web", "point": "x"}]), f"job '{job}'")
        assert s.disk("web")["job"] == job
        s.command("job-cancel", id=job)
        assert s.ended(job)["result"] == "cancelled"
        assert shown(s) == points
        job = s.command("disk-delete-point", disk="web", point="b", way="commit", speed=64 * KIB)["job"]
        del points["b"]
        assert [p["name"] for p in s.disk("web")["points"]] == ["a", "c"]
    with Service(tmp) as s:
        again = next(j["id"] for j in s.command("query-jobs") + s.command("query-job-history")
                     if j["id"] > job)
        s.well(again)
        assert shown(s) == points and s.content("web") == head
        check_files(s)


def test_added_over_what_is_merged(tmp):
    """An image over a layer that is half merged is no disk"""
    with Service(tmp) as s:
        world(s, (200, 200, 200, 10))
        base = s.disk("web")["layers"][2]["file"]
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, tmp / "top")
        job = s.command("disk-delete-point", disk="web", point="b", way="commit", speed=64 * KIB)["job"]
        says(s.error("disk-add", name="other", file=str(tmp / "top")), base, "commit")
        s.command("job-cancel", id=job)
        assert s.ended(job)["result"] == "cancelled"
        says(s.error("disk-add", name="other", file=str(tmp / "top")), base, "commit")


def test_points_beside_a_job(tmp):
    """A point that lies beside its disk stays while a job of another disk is at work on its layer"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        s.write("web", 60, 1)
        s.snapshot("web", "mon")
        s.command("disk-clone", name="clone", disk="web", point="mon")
        s.write("clone", 20, 2)
        was = s.content("clone")
        s.snapshot("clone", "tue")
        for name in "web", "clone":
            s.well(s.command("disk-mirror", disk=name, target=str(tmp / name))["job"])
        job = s.command("disk-delete-point", disk="web", point="mon", way="stream", speed=KIB)["job"]
        for name, arguments in (("disk-delete-point", {"disk": "clone", "point": "tue"}),
                                ("disk-copy-point", {"disk": "clone", "point": "tue", "target": str(tmp / "c")}),
                                ("disk-remove", {"name": "clone"})):
            says(s.error(name, **arguments), f"job '{job}'")
        s.command("block-job-set-speed", device=job, speed=0)
        s.well(job)
        assert shown(s, "clone") == {"tue": was}
        assert s.files() == {os.path.basename(s.disk("clone")["points"][0]["file"])}


def test_resize(tmp):
    """A disk grows under its clients, and shrinks only if that is said"""
    with Service(tmp) as s:
        world(s)
        was = s.content("web")
        assert s.command("disk-resize", disk="web", size=2 * SIZE)["size"] == 2 * SIZE
        assert s.content("web") == was + bytes(SIZE)
        says(s.error("disk-resize", disk="web", size=SIZE), "shrink")
        s.command("disk-resize", disk="web", size=SIZE, shrink=True)
    with Service(tmp) as s:
        assert s.content("web") == was


def test_no_room(tmp):
    """Where there is no room a point stays, and the refusal has both figures; with room it goes"""
    with small_file_system(tmp, 128 * MIB) as directory, Service(tmp) as s:
        s.command("disk-create", name="web", size=32 * MIB, directory=str(directory))
        for i, point in enumerate(("a", "b", None)):
            s.write("web", 200, i)
            if point:
                s.snapshot("web", point)
        before, points, content = s.lasting("web"), shown(s), s.content("web")
        filler = fill(directory)
        plan = s.command("disk-plan", disk="web", point="b")
        assert "way" not in plan, plan
        for way in plan["ways"]:
            assert way["space"] > way["available"], way
            says(way["blocked"], way["space"], way["available"])
        error = s.error("disk-delete-point", disk="web", point="b")
        for way in plan["ways"]:
            says(error, f"needs {way['space']} bytes", f"there are {way['available']}")
        assert s.lasting("web") == before and shown(s) == points
        filler.unlink()
        s.well(s.command("disk-delete-point", disk="web", point="b")["job"])
        del points["b"]
        assert shown(s) == points and s.content("web") == content


def test_filters(tmp):
    """While a filter of a backup of its node lies over a head, what would move it says what is in the way,
    and takes nothing away"""
    with Service(tmp) as s:
        s.command("disk-create", name="web", size=SIZE)
        s.write("web", 40, 1)
        s.snapshot("web", "a")
        s.write("web", 40, 2)
        s.snapshot("web", "b")
        was, disk = shown(s), s.disk("web")
        g = Guest(s, "web", shadow=s.content("web"))
        (tmp / "target").write_bytes(bytes(SIZE))
        s.command("blockdev-add", driver="raw", node_name="target",
                  file={"driver": "file", "filename": str(tmp / "target")})
        s.command("blockdev-backup", job_id="backup", device=disk["node-name"], target="target",
                  sync="full", speed=256 * KIB)
        s.command("job-pause", id="backup")  # guests' writes bring it on, too
        for verb, arguments in (
                ("disk-snapshot", {"snapshots": [{"disk": "web", "point": "c"}]}),
                ("disk-flatten", {"disk": "web"}),
                ("disk-delete-point", {"disk": "web", "point": "b", "way": "commit"}),
                ("disk-delete-point", {"disk": "web", "point": "b", "way": "stream"})):
            g.go_on(20)
            says(s.error(verb, **arguments), "is busy", "'backup'")
        s.command("block-job-cancel", device="backup", force=True)
        s.idle()
        content = g.end()
        now = s.disk("web")
        assert now["points"] == disk["points"] and now["layers"] == disk["layers"], now
        assert s.content("web") == content and shown(s) == was
    with Service(tmp) as s:
        assert s.disk("web")["points"] == disk["points"]
        assert s.content("web") == content and shown(s) == was
        s.well(s.command("disk-delete-point", disk="web", point="b", way="commit")["job"])
        assert s.content("web") == content


if __name__ == "__main__":
    main(globals())

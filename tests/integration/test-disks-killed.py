#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon is killed at each step of each command of disks, and started again: every disk is as it was
before the command or as after it, shows what it did, and nothing is left over. Ends at the places that
daemon/state/stop-point.h names: chaind-stops beside chaind is the program that does."""
import pathlib
import random
import struct
import threading

import harness
from harness import KIB, MIB, Skip, check_image, main, run
from state import Service

SIZE = 2 * MIB


def shape(service):
    """What is remembered, but for numbers and times that differ between runs."""
    return [{"name": d["name"], "depth": len(d["layers"]),
             "points": [(p["name"], p["in-chain"]) for p in d["points"]],
             "exports": [(e["name"], e.get("point"), e["served"]) for e in d["exports"]],
             "checkpoints": [c["name"] for c in d["checkpoints"]]}
            for d in service.command("query-disks")]


def contents(service):
    """What each disk and each of its points shows."""
    shown = {}
    for disk in service.command("query-disks"):
        assert disk["open"], disk
        for point in None, *(p["name"] for p in disk["points"]):
            arguments = {"point": point} if point else {}
            service.command("disk-export", disk=disk["name"], name="look", **arguments)
            shown[disk["name"], point] = service.content("look")
            service.command("disk-unexport", id="look")
    return shown


def is_clean(service):
    """Each file in the directory is a layer, and each image is sound."""
    known = {layer["file"] for d in service.command("query-disks")
             for layer in d["layers"]} | {p["file"] for d in service.command("query-disks")
                                          for p in d["points"]}
    here = {str(service.state / "images" / name) for name in service.files()}
    assert here <= known, f"left over: {here - known}"
    return known


def prepare_one(s):
    s.command("disk-create", name="web", size=SIZE)
    s.write("web", 12, 1, 4 * KIB)


def prepare_points(s):
    prepare_one(s)
    for i, point in enumerate(("mon", "tue")):
        s.snapshot("web", point)
        s.write("web", 12, i + 2, 4 * KIB)


def prepare_two(s):
    prepare_points(s)
    s.command("disk-create", name="db", size=SIZE)
    s.write("db", 12, 9, 4 * KIB)


def prepare_clones(s):
    prepare_points(s)
    s.command("disk-clone", name="clone", disk="web", point="tue")
    s.write("clone", 12, 5, 4 * KIB)


def delete(s, point, way):
    s.well(s.command("disk-delete-point", disk="web", point=point, way=way)["job"])


def copy_point(s):
    """Where the file system shares no blocks it is refused, and leaves as little."""
    s.qmp.ask("disk-copy-point", disk="web", point="mon", target=str(s.state / "images/copy"))
    (s.state / "images/copy").unlink(missing_ok=True)


SCENARIOS = {
    "disk-create": (prepare_one, lambda s: s.command("disk-create", name="new", size=SIZE)),
    "disk-add": (prepare_one, lambda s: s.command("disk-add", name="new", file=str(s.tmp / "added"))),
    "disk-add with an overlay": (prepare_one, lambda s: s.command(
        "disk-add", name="new", file=str(s.tmp / "added"), overlay=True)),
    "disk-remove": (prepare_two, lambda s: s.command("disk-remove", name="db", delete_files=True)),
    "disk-remove of a chain": (prepare_two,
                               lambda s: s.command("disk-remove", name="web", delete_files=True)),
    "disk-snapshot": (prepare_one, lambda s: s.snapshot("web", "new")),
    "disk-snapshot of two": (prepare_two, lambda s: s.command("disk-snapshot", snapshots=[
        {"disk": "web", "point": "new"}, {"disk": "db", "point": "new"}])),
    "disk-clone": (prepare_points, lambda s: s.command("disk-clone", name="new", disk="web", point="mon")),
    "disk-rollback that keeps": (prepare_points, lambda s: s.command(
        "disk-rollback", disk="web", point="mon", keep_as="kept")),
    "disk-rollback that drops": (prepare_points, lambda s: s.command(
        "disk-rollback", disk="web", point="mon", above="drop")),
    "disk-delete-point by a stream": (prepare_points, lambda s: delete(s, "mon", "stream")),
    "disk-delete-point by a commit": (prepare_points, lambda s: delete(s, "mon", "commit")),
    "disk-delete-point by a commit of the head": (prepare_points, lambda s: delete(s, "tue", "commit")),
    "disk-delete-point that clones stand on": (prepare_clones, lambda s: s.command(
        "disk-delete-point", disk="web", point="tue")),
    "disk-delete-point below clones": (prepare_clones, lambda s: delete(s, "mon", "commit")),
    "disk-flatten": (prepare_points, lambda s: s.well(s.command("disk-flatten", disk="web")["job"])),
    "disk-backup": (prepare_points, lambda s: s.well(s.command(
        "disk-backup", disk="web", target=str(s.tmp / "backup"), checkpoint="c")["job"])),
    "disk-copy-point": (prepare_points, copy_point),
    "disk-pull": (prepare_points, lambda s: (
        s.command("disk-pull", disk="web", checkpoint="c"),
        s.command("disk-pull-end", disk="web", success=True))),
    "disk-mirror": (prepare_points, lambda s: s.well(s.command(
        "disk-mirror", disk="web", target=str(s.tmp / "moved"))["job"])),
    "disk-export": (prepare_points, lambda s: s.command("disk-export", disk="web", point="mon")),
    "disk-unexport": (prepare_points, lambda s: s.command("disk-unexport", id="web")),
}


def passed(tmp):
    path = tmp / "points"
    names = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def make(tmp, prepare):
    run("qemu-img", "create", "-q", "-f", "qcow2", tmp / "added", SIZE)
    with Service(tmp) as s:
        prepare(s)
        return shape(s), contents(s)


def explore(tmp, prepare, command):
    """The places that the command passes, and what there is after it."""
    tmp.mkdir()
    make(tmp, prepare)
    with Service(tmp, stops=True, env={"CHAIND_STOP_POINTS": str(tmp / "points")}) as s:
        passed(tmp)
        command(s)
        places = passed(tmp)
        after = shape(s), contents(s)
        known = is_clean(s)
    for path in known:
        check_image(path)
    return places, after


def kill_at(tmp, prepare, command, n):
    tmp.mkdir()
    before = make(tmp, prepare)
    s = Service(tmp, stops=True, env={"CHAIND_STOP_AT": str(n)})
    try:
        command(s)
    except (ConnectionError, TypeError, AssertionError):
        pass  # it was killed, or is about to be
    s.process.wait(harness.HANG)
    s.kill()
    return before


def need_stops():
    stops = harness.chaind_path + "-stops"
    if run("test", "-x", stops, check=False).returncode:
        raise Skip(f"no {stops}: ninja daemon/chaind-stops makes it")


def killed(tmp, prepare, command):
    need_stops()
    places, after = explore(tmp / "all", prepare, command)
    assert places, "the command passes no place"
    found = set()
    for n, place in enumerate(places, 1):
        there = tmp / str(n)
        before = kill_at(there, prepare, command, n)
        with Service(there) as s:
            s.idle()
            now = shape(s), contents(s)
            is_before = now == before
            assert is_before or now == after, f"killed at '{place}': {now[0]}, not {before[0]} " \
                f"nor {after[0]}" if now[0] not in (before[0], after[0]) else \
                f"killed at '{place}': something else is shown"
            found.add(is_before)
            known = is_clean(s)
            if is_before:
                command(s)
                assert (shape(s), contents(s)) == after, f"after '{place}' it is not done again"
        for path in known:
            if is_before:
                break
            check_image(path)
    return found


def add_test(name, prepare, command):
    def test(tmp):
        killed(tmp, prepare, command)
    test.__doc__ = f"Killed at each step of {name}, all is as before or as after"
    globals()[f"test_{name}"] = test


class Writer(threading.Thread):
    """Writes versions of blocks, and flushes now and then, until the daemon is gone."""

    def __init__(self, service, name):
        super().__init__(daemon=True)
        self.handle, n = service.connect(name), SIZE // 4096
        self.issued, self.acked, self.flushed = [0] * n, [0] * n, [0] * n
        self.start()

    @staticmethod
    def block(version):
        return struct.pack("<Q", version) * 512

    def run(self):
        rand = random.Random(5)
        try:
            while True:
                for _ in range(rand.randrange(8)):
                    block = rand.randrange(len(self.issued))
                    self.issued[block] += 1
                    self.handle.pwrite(self.block(self.issued[block]), block * 4096)
                    self.acked[block] = self.issued[block]
                covered = list(self.acked)
                self.handle.flush()
                self.flushed = covered
        except Exception:
            pass  # it was killed

    def check(self, content):
        for block, (least, most) in enumerate(zip(self.flushed, self.issued)):
            data = content[block * 4096:(block + 1) * 4096]
            version, = struct.unpack("<Q", data[:8])
            assert data == self.block(version), f"block {block} is torn"
            assert least <= version <= most, f"block {block} has version {version}, not {least} to {most}"


def prepare_empty(s):
    s.command("disk-create", name="web", size=SIZE)
    s.snapshot("web", "mon")
    s.snapshot("web", "tue")


def killed_under_a_guest(tmp, command, wanted):
    places, _ = explore(tmp / "all", prepare_empty, command)
    for n, place in enumerate(places, 1):
        if place not in wanted:
            continue
        there = tmp / str(n)
        there.mkdir()
        make(there, prepare_empty)
        # The guest goes on, and flushes, while the command has come to that place.
        s = Service(there, stops=True, env={"CHAIND_STOP_AT": str(n), "CHAIND_STOP_MS": "300"})
        guest = Writer(s, "web")
        while sum(guest.flushed) < 200:
            guest.join(0.001)
        try:
            command(s)
        except (ConnectionError, TypeError, AssertionError):
            pass
        s.process.wait(harness.HANG)
        s.kill()
        guest.join(harness.HANG)
        with Service(there) as s:
            s.idle()
            guest.check(s.content("web"))


def test_file_system_away(tmp):
    """A snapshot of two disks, killed and started without one of them, keeps what was written since"""
    need_stops()
    other = tmp / "other"
    other.mkdir()

    def prepare(s):
        s.command("disk-create", name="web", size=SIZE)
        s.command("disk-create", name="db", size=SIZE, directory=str(other))

    def command(s):
        s.command("disk-snapshot", snapshots=[{"disk": name, "point": "new"} for name in ("web", "db")])

    (tmp / "all").mkdir()
    with Service(tmp / "all", stops=True, env={"CHAIND_STOP_POINTS": str(tmp / "points")}) as s:
        prepare(s)
        passed(tmp)
        command(s)
        n = passed(tmp).index("disk-snapshot: the overlays are heads") + 1
        for name in "web", "db":
            s.command("disk-remove", name=name, delete_files=True)
        passed(tmp)
    with Service(tmp) as s:
        prepare(s)
    s = Service(tmp, stops=True, env={"CHAIND_STOP_AT": str(n), "CHAIND_STOP_POINTS": str(tmp / "points"),
                                      "CHAIND_STOP_MS": "3600000"})
    guest = s.connect("web")
    waits = threading.Thread(target=lambda: s.qmp.ask("disk-snapshot", snapshots=[
        {"disk": name, "point": "new"} for name in ("web", "db")]), daemon=True)
    waits.start()
    while not (tmp / "points").exists() or len((tmp / "points").read_text().splitlines()) < n:
        guest.pread(512, 0)
    guest.pwrite(b"x" * 4096, 0)
    guest.flush()
    s.kill()
    other.rename(tmp / "away")
    with Service(tmp) as s:
        assert not s.disk("db")["open"]
    (tmp / "away").rename(other)
    with Service(tmp) as s:
        assert s.content("web") == b"x" * 4096 + bytes(SIZE - 4096)
        assert s.content("db") == bytes(SIZE)
        assert [[p["name"] for p in s.disk(name)["points"]] for name in ("web", "db")] == [["new"]] * 2


def test_merge_away(tmp):
    """A merge that was killed at its end, and started without its files, is found to be done with them"""
    need_stops()
    for way, place in ("stream", "a stream has switched"), ("commit", "a commit has switched"):
        there = tmp / way
        images = there / "images"
        images.mkdir(parents=True)

        def prepare(s):
            s.command("disk-create", name="web", size=SIZE, directory=str(images))
            for i, point in enumerate(("mon", "tue")):
                s.write("web", 12, i, 4 * KIB)
                s.snapshot("web", point)
            s.write("web", 12, 5, 4 * KIB)

        with Service(there, stops=True, env={"CHAIND_STOP_POINTS": str(there / "points")}) as s:
            prepare(s)
            passed(there)
            delete(s, "mon", way)
            n = passed(there).index(place) + 1
            s.command("disk-remove", name="web", delete_files=True)
        with Service(there) as s:
            prepare(s)
            before = contents(s)
        s = Service(there, stops=True, env={"CHAIND_STOP_AT": str(n)})
        try:
            delete(s, "mon", way)
        except (ConnectionError, TypeError):
            pass
        s.process.wait(harness.HANG)
        s.kill()
        images.rename(there / "away")
        with Service(there) as s:
            assert not s.disk("web")["open"]
        (there / "away").rename(images)
        with Service(there) as s:
            s.idle()
            del before["web", "mon"]
            assert contents(s) == before
            assert {p.name for p in images.iterdir()} == {
                pathlib.Path(of["file"]).name for of in s.disk("web")["layers"]}


def test_flushed(tmp):
    """Killed around the moment at which another image becomes the head, what was flushed is there"""
    need_stops()
    pivot = {"a pivot is about to be noted", "a pivot is noted", "a commit has switched", "a file is removed"}
    (tmp / "commit").mkdir()
    killed_under_a_guest(tmp / "commit", lambda s: delete(s, "tue", "commit"), pivot)
    (tmp / "snapshot").mkdir()
    (tmp / "mirror").mkdir()
    killed_under_a_guest(tmp / "mirror", lambda s: s.well(s.command(
        "disk-mirror", disk="web", target=str(s.tmp / "moved"))["job"]),
        {"a pivot is about to be noted", "a pivot is noted", "disk-mirror: clients are there",
         "a file is removed"})
    killed_under_a_guest(tmp / "snapshot", lambda s: s.snapshot("web", "new"),
                         {"disk-snapshot: the overlays are heads", "disk-snapshot: it is remembered"})


for scenario, (begin, do) in SCENARIOS.items():
    add_test(scenario, begin, do)


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a job has to do at its switch and after it fails: headers of layers in the middle, what a top that
stays gives back, what is closed. Users read what failed and where, guests notice nothing, and the files
show what they did.

usage: test-job-ends.py [--chaind PATH] [WORD]...
"""
import contextlib
import json
import struct

from commits import content, create, end_of
from harness import KIB, MIB, check_image, connect, main, qemu_img, qemu_io, says
from world import World

SIZE = 4 * MIB
ERRNOS = {5: "Input/output error", 28: "No space left on device"}


def make_chain(tmp, *names):
    """Each layer has a MiB of its own; what each shows."""
    tmp.mkdir()
    shown, below = {}, None
    for i, name in enumerate(names):
        create(tmp / name, None if below else SIZE, below and tmp / below)
        qemu_io(tmp / name, f"write -q -P {i + 1} {i * 512}k 1M")
        shown[name] = content(tmp / name, tmp / "raw")
        below = name
    return shown


def add_chain(w, tmp, names, failing, rule):
    for i, name in enumerate(names):
        file = {"driver": "file", "filename": str(tmp / name)}
        if name == failing:
            file = {"driver": "blkdebug", "image": file, "inject-error": [rule]}
        w.qmp.command("blockdev-add", driver="qcow2", node_name=name, file=file, discard="unmap",
                      read_only=name != names[-1], backing=names[i - 1] if i else None)
    w.export(names[-1], name="disk")


def l2_sector(path):
    """Of the first table of a new image's head."""
    with open(path, "rb") as f:
        f.seek(40)
        at, = struct.unpack(">Q", f.read(8))
        f.seek(at)
        return (struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00) // 512


def backing_of(path):
    return qemu_img("info", "-U", path).partition("backing file: ")[2].partition(" (")[0].split("\n")[0]


@contextlib.contextmanager
def world(tmp, exit_status):
    w = World(tmp)
    try:
        yield w
        w.daemon.stop(expect=exit_status)
    finally:
        w.qmp.close()
        if w.daemon.process.poll() is None:
            w.daemon.kill()


def is_empty(path):
    return all(r["depth"] for r in json.loads(qemu_img("map", "--output=json", path)))


def each_errno(tmp):
    for errno, words in ERRNOS.items():
        for once in (False, True):
            there = tmp / f"{errno}-{once}"
            yield there, {"event": "none", "errno": errno, "once": once}, words


def test_header_of_a_layer(tmp):
    """The header of a layer in the middle is not written: the commit fails, and all is as it was"""
    names = ("base", "middle", "top", "head")
    for there, rule, words in each_errno(tmp):
        shown = make_chain(there, *names)
        with World(there) as w:
            add_chain(w, there, names, "top", {**rule, "iotype": "write", "sector": 0})
            w.qmp.command("block-commit", job_id="j", device="head", top_node="middle", base_node="base")
            says(end_of(w.qmp)["error"], words, str(there / "top"))
            w.io("disk", "read -q -P 4 1536k 1M", "write -q -P 9 3M 64k", "read -q -P 1 0 512k")
            assert w.nodes()["top"]["ro"] and w.nodes()["base"]["ro"]
        assert backing_of(there / "top").endswith("middle")
        for name in names:
            check_image(there / name)
        assert content(there / "top", there / "raw") == shown["top"]


def test_header_of_one_of_two(tmp):
    """Of two overlays the second takes no new header: the first gets its old one, or its user is told"""
    told = 0
    for n in range(1, 8):  # so many writes to the first succeed
        there = tmp / str(n)
        make_chain(there, "base", "middle", "one")
        create(there / "two", None, there / "middle")
        first = {"inject-error": [{"event": "pwritev", "state": n + 1, "iotype": "write", "once": False}],
                 "set-state": [{"event": "pwritev", "state": i, "new_state": i + 1} for i in range(1, n + 1)]}
        second = {"inject-error": [{"event": "none", "iotype": "write", "sector": 0, "once": False}]}
        with World(there) as w:
            w.add("base", there / "base", read_only=True)
            w.add("middle", there / "middle", backing="base", read_only=True)
            for name, rules in (("one", first), ("two", second)):
                file = {"driver": "file", "filename": str(there / name)}
                w.qmp.command("blockdev-add", driver="qcow2", node_name=name, backing="middle", read_only=True,
                              file={"driver": "blkdebug", "image": file, **rules})
            w.qmp.command("block-commit", job_id="j", device="one", top_node="middle", base_node="base")
            said = end_of(w.qmp)["error"]
            says(said, ": cannot record", f"{there}/base", ERRNOS[5])
            w.qmp.command("blockdev-del", node_name="one")
            names_base = backing_of(there / "one").endswith("base")
            assert names_base == ("change-backing-file" in said), said
            told += names_base
        assert backing_of(there / "two").endswith("middle")
    assert told


def test_nothing_given_back(tmp):
    """What a top that stays gives back is not written: it is told, and guests go on with the same"""
    names = ("base", "middle", "top")
    for there, rule, words in each_errno(tmp):
        shown = make_chain(there, *names)
        rule.update(iotype="write", sector=l2_sector(there / "top"))
        with world(there, exit_status=0 if rule["once"] else 1) as w:
            add_chain(w, there, names, "top", rule)
            w.qmp.command("block-commit", job_id="j", device="top", base_node="base", keep_top=True,
                          auto_complete=True)
            assert "error" not in end_of(w.qmp)
            w.io("disk", "read -q -P 3 1M 1M", "read -q -P 2 512k 512k", "read -q -P 1 0 512k")
        if rule["once"]:  # it has been written again
            assert is_empty(there / "top")
        else:
            says(w.daemon.log(), "commit job 'j': node 'top' keeps clusters that its base has, too", words)
            assert not is_empty(there / "top")
        for name in names[:1] + names[2:]:
            check_image(there / name)
            assert content(there / name, there / "raw") == shown["top"], name


def test_old_head(tmp):
    """What guests left by a pivot cannot be closed well: it is told, and the disk does not suffer"""
    names = ("base", "top")
    for there, rule, words in each_errno(tmp):
        make_chain(there, *names)
        rule.update(iotype="write", sector=l2_sector(there / "top"))
        with world(there, exit_status=0) as w:
            add_chain(w, there, names, "top", rule)
            h = connect(w.uri("disk"))
            h.pwrite(bytes([7]) * 64 * KIB, 3 * MIB)
            w.qmp.command("block-commit", job_id="j", device="top", base_node="base", auto_complete=True)
            assert "error" not in end_of(w.qmp)
            w.qmp.command("blockdev-del", node_name="top")
            h.flush()
            h.shutdown()
            w.io("disk", "read -q -P 7 3M 64k", "read -q -P 2 512k 1M", "write -q -P 8 2M 64k")
        told = f"'top' could not be flushed when it was closed: {words}" in w.daemon.log()
        assert told != rule["once"], w.daemon.log()  # what failed once has been written again
        check_image(there / "base")


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The recipes of docs/recipes.md, as they are printed there, under guests that write all the while, and
the examples of chaind-qmp(7).

usage: test-recipes.py [--chaind PATH] [WORD]...
"""
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import chainctl
from commits import BLOCK, Guest, content, create, guests
from disks import file_system
from harness import HANG, MIB, Daemon, check_image, main, qemu_img, qemu_io, run, same_content
from qmp_client import Qmp

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = DOCS / "recipes.md"
SIZE = 16 * MIB
GUESTS = 4 * MIB  # have the begin of the disk


def recipes():
    """{title: [block]} of those in sh, and the program that they use."""
    text = PAGE.read_text("utf-8")
    program = re.search(r"^```python\n(.*?)^```", text, re.M | re.S).group(1)
    parts = re.split(r"^## (.*)\n", text, flags=re.M)[1:]
    blocks = {title: re.findall(r"^```sh\n(.*?)^```", body, re.M | re.S)
              for title, body in zip(parts[::2], parts[1::2])}
    return program, {title: found for title, found in blocks.items() if found}


class Kitchen:
    """A daemon as the page has it, in a folder with the client; what guests wrote is compared."""

    def __init__(self, folder, *args):
        self.folder = folder
        program, self.recipes = recipes()
        (folder / "bin").mkdir()
        (folder / "bin/qmp").write_text(program)
        (folder / "bin/qmp").chmod(0o755)
        self.daemon = Daemon("--qmp", "qmp.sock", "--nbd", "nbd.sock", *args, cwd=folder)

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.folder}/nbd.sock"

    def sh(self, block):
        env = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-e", "-u", "-o", "pipefail", "-c", block], cwd=self.folder, env=env,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                              timeout=HANG)
        assert done.returncode == 0, f"{block}\n{done.stdout}"
        return done.stdout

    def cook(self, title):
        for block in self.recipes[title]:
            self.sh(block)

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *why):
        self.daemon.__exit__(*why)


def make_disk(folder, *layers):
    """The layers, lowest first: each writes its number to a place of its own, and over the last one's."""
    below = None
    for n, name in enumerate(layers, 1):
        create(folder / f"{name}.qcow2", None if below else SIZE, below)
        qemu_io(folder / f"{name}.qcow2", f"write -P {n} {3 + n}M 2M")
        below = f"{name}.qcow2"


def layers_content(n):
    """What layers of make_disk() show together, past the guests' part."""
    disk = bytearray(SIZE)
    for i in range(1, n + 1):
        disk[(3 + i) * MIB:(5 + i) * MIB] = bytes([i]) * (2 * MIB)
    return bytes(disk[GUESTS:])


@contextlib.contextmanager
def busy(kitchen):
    """Guests are at work before the recipe begins, and after it."""
    def await_more(all_guests, n):
        wanted = sum(g.n_done for g in all_guests) + n
        while sum(g.n_done for g in all_guests) < wanted:
            assert not any(g.failure for g in all_guests), [g.failure for g in all_guests]
            time.sleep(0.01)

    with guests(kitchen, "web", 2, GUESTS // BLOCK, 8) as all_guests:
        await_more(all_guests, 300)
        yield all_guests
        await_more(all_guests, 300)


def check_disk(path, tmp, all_guests, rest):
    """It is whole by itself, has what guests were told is written, and else what it had."""
    check_image(path)
    disk = content(path, tmp / "raw")
    for g in all_guests:
        g.check(disk, g.acked)
    assert disk[GUESTS:] == rest


def first_part(path, raw):
    """What guests have of a disk that is large."""
    name = {"driver": "raw", "size": GUESTS, "file": {"driver": "qcow2",
                                                      "file": {"driver": "file", "filename": str(path)}}}
    run("qemu-img", "convert", "-O", "raw", f"json:{json.dumps(name)}", raw)
    return raw.read_bytes()


def backing_of(path):
    return re.search(r"backing file: (\S*)", run("qemu-img", "info", "-U", path).stdout)


def test_page(_tmp):
    """Each recipe of the page is run by a test"""
    titles = set(recipes()[1])
    assert titles == {t.__doc__ for n, t in globals().items() if n.startswith("test_")} & titles
    assert len(titles) >= 6, titles


def test_backup_in_a_moment(tmp):
    """A backup in a moment"""
    size = 10 << 30
    with file_system(tmp, 2 * size, "mkfs.xfs", "-q", "-m", "reflink=1") as folder:
        qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", folder / "web.qcow2", size)
        with Kitchen(folder, "web=web.qcow2") as kitchen:
            with busy(kitchen) as all_guests:
                before = [dict(g.acked) for g in all_guests]
                start = time.monotonic()
                kitchen.cook("A backup in a moment")
                print(f"# {time.monotonic() - start:.2f} s")
                after = [dict(g.issued) for g in all_guests]
            exports = kitchen.sh("qmp query-block-exports")
            assert '"node-name": "web"' in exports, exports
            assert not (folder / "web.tmp.qcow2").exists()
        for image, least in (("backup", before), ("web", [g.acked for g in all_guests])):
            check_image(folder / f"{image}.qcow2")
            disk = first_part(folder / f"{image}.qcow2", folder / "raw")
            for g, floor, ceiling in zip(all_guests, least, after):
                g.issued, issued = ceiling if image == "backup" else g.issued, g.issued
                g.check(disk, floor)
                g.issued = issued


def test_one_command(tmp):
    """One command each"""
    with open(tmp / "far.raw", "wb") as f:
        f.write(bytes(range(256)) * (SIZE // 256))
    with Daemon("--format", "raw", "--read-only", "--nbd", tmp / "far.sock", tmp / "far.raw"), \
            Kitchen(tmp, "--state", "state") as kitchen:
        (tmp / "bin/chainctl").symlink_to(chainctl.path)
        kitchen.sh(f"chainctl -s qmp.sock create web {SIZE}")
        with busy(kitchen) as all_guests:
            before = [dict(g.acked) for g in all_guests]
            kitchen.cook("One command each")
            after = [dict(g.issued) for g in all_guests]
        disks = {d["name"]: d for d in json.loads(kitchen.sh("qmp query-disks"))}
        assert [p["name"] for p in disks["web"]["points"]] == ["later"], disks["web"]
        assert disks["web"]["file"] == str(tmp / "moved.qcow2") and len(disks["web"]["layers"]) == 1
        assert len(disks["db"]["layers"]) == 1
    assert content(disks["db"]["file"], tmp / "raw") == (tmp / "far.raw").read_bytes()
    check_disk(tmp / "moved.qcow2", tmp, all_guests, bytes(SIZE - GUESTS))
    for image in content(tmp / "mon.qcow2", tmp / "raw"), (tmp / "moment.raw").read_bytes():
        for g, floor, ceiling in zip(all_guests, before, after):
            then = types.SimpleNamespace(blocks=g.blocks, data=g.data, issued=ceiling)
            Guest.check(then, image, floor)


def test_one_command_in_a_moment(tmp):
    """A backup with shared blocks of a large disk takes a moment, under guests"""
    size = 10 << 30
    with file_system(tmp, 2 * size, "mkfs.xfs", "-q", "-m", "reflink=1") as folder:
        qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", folder / "web.qcow2", size)
        with Kitchen(folder, "--state", "state") as kitchen:
            (folder / "bin/chainctl").symlink_to(chainctl.path)
            kitchen.sh("chainctl -s qmp.sock add web web.qcow2 --own")
            with busy(kitchen) as all_guests:
                before = [dict(g.acked) for g in all_guests]
                start = time.monotonic()
                kitchen.sh("chainctl -s qmp.sock backup web copy.qcow2 --reflink")
                print(f"# {time.monotonic() - start:.2f} s")
                after = [dict(g.issued) for g in all_guests]
        check_image(folder / "copy.qcow2")
        disk = first_part(folder / "copy.qcow2", folder / "raw")
        for g, floor, ceiling in zip(all_guests, before, after):
            Guest.check(types.SimpleNamespace(blocks=g.blocks, data=g.data, issued=ceiling), disk, floor)


def test_back_to_a_point(tmp):
    """Back to a point in time"""
    make_disk(tmp, "web")
    with Kitchen(tmp, "web=web.qcow2") as kitchen:
        take, go_back = kitchen.recipes["Back to a point in time"]
        with busy(kitchen):
            pass
        run("nbdcopy", kitchen.uri("web"), tmp / "then.raw")
        kitchen.sh(take)
        with busy(kitchen):
            pass
        kitchen.sh(go_back)
        run("nbdcopy", kitchen.uri("web"), tmp / "now.raw")
        run("cmp", tmp / "then.raw", tmp / "now.raw")
        assert not (tmp / "web.1.qcow2").exists()
        with busy(kitchen):
            pass
    check_image(tmp / "web.2.qcow2")
    same_content(tmp / "web.qcow2", tmp / "then.raw")
    assert content(tmp / "web.2.qcow2", tmp / "raw")[GUESTS:] == layers_content(1)


@contextlib.contextmanager
def far_server(tmp):
    """Another daemon, that serves the files of a chain byte for byte; they do not grow there."""
    far = tmp / "far"
    far.mkdir()
    make_disk(far, "base", "web")
    os.truncate(far / "web.qcow2", 2 * SIZE)
    with Daemon("--nbd", tmp / "far.sock", *(f"{n}={n}.qcow2,format=raw" for n in ("base", "web")), cwd=far):
        yield


def test_storage_that_moves(tmp):
    """Storage that moves"""
    with Kitchen(tmp) as kitchen:
        serve, move = kitchen.recipes["Storage that moves"]
        with far_server(tmp):
            kitchen.sh(serve)
            with busy(kitchen) as all_guests:
                kitchen.sh(move)
        assert backing_of(tmp / "local.qcow2") is None
        run("nbdcopy", kitchen.uri("web"), tmp / "now.raw")  # without the other machine
    check_disk(tmp / "local.qcow2", tmp, all_guests, layers_content(2))


def test_chain_that_is_too_long(tmp):
    """A chain that is too long"""
    names = ["base", *(f"day-{n}" for n in range(6)), "web"]
    make_disk(tmp, *names)
    with Kitchen(tmp, "web=web.qcow2") as kitchen:
        with busy(kitchen) as all_guests:
            kitchen.cook("A chain that is too long")
        node = re.search(r'"node-name": "(.*)"', kitchen.sh("qmp query-block-exports")).group(1)
        chain = kitchen.sh("qmp query-named-block-nodes '{\"flat\": true}'")
        assert chain.count('"drv": "qcow2"') == 1, chain
        path = re.search(rf'"node-name": "{node}".*?"filename": "(.*?)"', chain, re.S).group(1)
    check_disk(tmp / path, tmp, all_guests, layers_content(len(names)))


def add_nodes(kitchen, *names):
    """A chain, lowest first, whose layers have names; the last one is exported."""
    below = None
    for name in names:
        kitchen.sh(f"""qmp blockdev-add '{{"driver": "qcow2", "node-name": "{name}",
            "read-only": {str(name != names[-1]).lower()}, "backing": {f'"{below}"' if below else "null"},
            "file": {{"driver": "file", "filename": "{name}.qcow2"}}}}'""")
        below = name
    kitchen.sh(f"""qmp block-export-add '{{"type": "nbd", "id": "{below}", "node-name": "{below}",
                                           "writable": true}}'""")


def test_layer_in_the_middle(tmp):
    """A layer in the middle"""
    make_disk(tmp, "base", "monday", "tuesday", "web")
    before = content(tmp / "tuesday.qcow2", tmp / "raw")
    with Kitchen(tmp) as kitchen:
        add_nodes(kitchen, "base", "monday", "tuesday", "web")
        with busy(kitchen) as all_guests:
            kitchen.cook("A layer in the middle")
    assert backing_of(tmp / "tuesday.qcow2").group(1) == "base.qcow2"
    assert content(tmp / "tuesday.qcow2", tmp / "raw") == before
    check_disk(tmp / "web.qcow2", tmp, all_guests, layers_content(4))


def test_backups_of_a_week(tmp):
    """Backups of a week"""
    make_disk(tmp, "web")
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    with Kitchen(tmp, "web=web.qcow2") as kitchen:
        with busy(kitchen) as all_guests:
            kitchen.cook("Backups of a week")
    check_disk(tmp / "web.qcow2", tmp, all_guests, layers_content(1))
    for day in days:
        if day == "tue":
            assert not (tmp / "tue.qcow2").exists()
            continue
        check_image(tmp / f"{day}.qcow2")
        qemu_img("convert", "-q", "-f", "qcow2", "-l", f"snapshot.name={day}", "-O", "raw", tmp / "web.qcow2",
                 tmp / "day.raw")
        same_content(tmp / f"{day}.qcow2", tmp / "day.raw")


def test_backup_that_is_pulled(tmp):
    """A backup that is pulled"""
    make_disk(tmp, "web")
    with Kitchen(tmp, "web=web.qcow2") as kitchen:
        begin, end, changed = kitchen.recipes["A backup that is pulled"]
        with busy(kitchen) as all_guests:
            before = [dict(g.acked) for g in all_guests]
            kitchen.sh(begin)
            moment = [dict(g.issued) for g in all_guests]
        kitchen.sh(end)
        with busy(kitchen) as others:
            kitchen.sh(changed)
            run("nbdcopy", kitchen.uri("moment"), tmp / "whole.raw")
        run("cmp", tmp / "second.raw", tmp / "whole.raw")
        kitchen.sh(end)
    first = (tmp / "first.raw").read_bytes()
    for g, least, most in zip(all_guests, before, moment):
        g.issued = most
        g.check(first, least)
    assert first[GUESTS:] == layers_content(1)
    check_disk(tmp / "web.qcow2", tmp, others, layers_content(1))


def test_what_has_changed(tmp):
    """What has changed since a point in time"""
    make_disk(tmp, "base", "monday", "web")
    qemu_img("convert", "-q", "-O", "qcow2", tmp / "monday.qcow2", tmp / "monday-copy.qcow2")
    with Kitchen(tmp) as kitchen:
        add_nodes(kitchen, "base", "monday", "web")
        add, copy = kitchen.recipes["What has changed since a point in time"]
        with busy(kitchen) as all_guests:
            kitchen.sh(add)
        kitchen.sh(copy)
    check_disk(tmp / "now.qcow2", tmp, all_guests, layers_content(3))
    same_content(tmp / "now.qcow2", tmp / "web.qcow2", "qcow2", "qcow2")


def qmp_examples():
    """The commands of chaind-qmp(7)'s EXAMPLES, in their order."""
    page = (DOCS / "chaind-qmp.pod").read_text("utf-8").split("=head1 EXAMPLES\n")[1].split("=for")[0]
    rest = "".join(line for line in page.splitlines() if line.startswith("    ")).strip()
    while rest:
        command, end = json.JSONDecoder().raw_decode(rest)
        yield command
        rest = rest[end:].lstrip()


def test_qmp_page(tmp):
    """The examples of chaind-qmp(7) work, one after the other"""
    create(tmp / "web.qcow2", 64 * MIB)
    qemu_io(tmp / "web.qcow2", "write -P 1 4M 2M")
    n_commands = 0
    with Daemon("--qmp", "qmp.sock", "--nbd", "nbd.sock", "web=web.qcow2", cwd=tmp) as daemon:
        qmp = Qmp(tmp / "qmp.sock")
        for command in qmp_examples():
            while command["execute"] == "job-dismiss" and \
                    qmp.event("JOB_STATUS_CHANGE") != {"id": command["arguments"]["id"],
                                                       "status": "concluded"}:
                pass
            qmp.send(command)
            reply = qmp.reply()
            assert "return" in reply, f"{command}: {reply}"
            n_commands += 1
        assert daemon.process.wait(HANG) == 0
    assert n_commands > 10
    same_content(tmp / "backup.qcow2", tmp / "web.qcow2", "qcow2", "qcow2")
    info = json.loads(run("qemu-img", "info", "--output=json", tmp / "web-2.qcow2").stdout)
    assert "backing-filename" not in info, info


if __name__ == "__main__":
    sys.exit(main(globals()))

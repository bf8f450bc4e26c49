#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dirty bitmaps from outside: QEMU goes on with what chaind stores and the other way round, and for the
same requests both have the same bits."""
import json
import random
import shutil
import socket
import subprocess

import nbd

from harness import GIB, HANG, KIB, MIB, Daemon, check_image, connect, main, qemu_img, run


def image(tmp, size, options="cluster_size=64k", name="a.qcow2", bitmaps=()):
    """`bitmaps`: (name, granularity, enabled)."""
    disk = tmp / name
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, disk, size)
    for bitmap, granularity, enabled in bitmaps:
        qemu_img("bitmap", "--add", "-g", granularity, *([] if enabled else ["--disable"]), disk, bitmap)
    return disk


def flags(disk):
    """{name: flags} as qemu-img tells them."""
    info = json.loads(qemu_img("info", "--output=json", disk))
    return {b["name"]: b["flags"] for b in info["format-specific"]["data"].get("bitmaps", [])}


class Failed(Exception):
    """A command's error, as a sentence."""


class Monitor:
    """A QMP monitor; `send` and `receive` are text files."""

    def __init__(self, send, receive):
        self.send, self.receive = send, receive
        assert "QMP" in self.read()
        self.command("qmp_capabilities")

    def read(self):
        line = self.receive.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def command(self, execute, **arguments):
        """Its reply; underscores in names of arguments stand for dashes."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.send.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        self.send.flush()
        while True:
            reply = self.read()
            if "error" in reply:
                raise Failed(reply["error"]["desc"])
            if "return" in reply:
                return reply["return"]


    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.kill()
        else:
            self.close()


class Qemu(Monitor):
    """qemu-storage-daemon with a QMP monitor on its standard streams."""

    def __init__(self, *args):
        self.process = subprocess.Popen(
            ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "m", *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        super().__init__(self.process.stdin, self.process.stdout)

    def close(self):
        self.command("quit")
        assert self.process.wait(HANG) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


class Chaind(Monitor):
    """chaind without disks, and a monitor."""

    def __init__(self, tmp, name="chaind"):
        self.daemon = Daemon("--qmp", tmp / f"{name}.qmp")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(tmp / f"{name}.qmp"))
        stream = self.socket.makefile("rw")
        super().__init__(stream, stream)

    def close(self):
        if self.daemon.process.poll() is None:
            self.command("quit")
        assert self.daemon.wait() == 0, self.daemon.log()

    def kill(self):
        self.daemon.kill()
        print("# log of the daemon:", *self.daemon.lines, sep="\n#   ")


def blockdev(disk, read_only):
    return json.dumps({"driver": "qcow2", "node-name": "disk", "read-only": read_only,
                       "discard": "unmap", "file": {"driver": "file", "filename": str(disk),
                                                    "discard": "unmap", "read-only": read_only}})


def hashes(disk, names):
    """{name: QEMU's hash of its bits}"""
    with Qemu("--blockdev", blockdev(disk, True)) as q:
        return {name: q.command("x-debug-block-dirty-bitmap-sha256", node="disk", name=name)["sha256"]
                for name in names}


def random_requests(seed, size, n):
    """(what, offset, length, byte): sectors, and now and then the disk's odd end."""
    r = random.Random(seed)
    for _ in range(n):
        what = r.choice(("write", "write", "zero", "trim"))
        length = 512 * r.choice((1, 8, r.randrange(1, 64), r.randrange(1, 2048)))
        offset = r.randrange(0, size // 512) * 512
        yield what, offset, min(length, size - offset), r.randrange(1, 255)


def do_requests(h, requests):
    for what, offset, length, byte in requests:
        if what == "write":
            h.pwrite(bytes([byte]) * length, offset)
        elif what == "zero":
            h.zero(length, offset)
        else:
            h.trim(length, offset)
    h.flush()


def with_chaind(disk, requests):
    with Daemon(disk) as d:
        do_requests(connect(d.uri()), requests)


def with_qemu(tmp, disk, requests):
    with Qemu("--blockdev", blockdev(disk, False), "--nbd-server",
              f"addr.type=unix,addr.path={tmp}/q.sock", "--export",
              "type=nbd,id=e,node-name=disk,writable=on,name=e"):
        h = connect(f"nbd+unix:///e?socket={tmp}/q.sock")
        do_requests(h, requests)
        h.shutdown()


def contents(tmp, disk):
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, tmp / "raw")
    return (tmp / "raw").read_bytes()


GEOMETRIES = [
    (8 * MIB, "cluster_size=64k", 65536),
    (8 * MIB + 512, "cluster_size=4k", 512),
    (3 * MIB - 1024, "cluster_size=512", 4096),
    (8 * MIB, "cluster_size=64k,extended_l2=on", 32768),
    (40 * MIB, "cluster_size=2M", 1 * MIB),
]


def test_same_bits_as_qemu(tmp):
    """The same random requests dirty the same granules as with QEMU."""
    for seed, (size, options, granularity) in enumerate(GEOMETRIES):
        bitmaps = [("one", granularity, True), ("two", 65536, True), ("off", granularity, False),
                   ("wide", 16 * MIB, True)]
        ours = image(tmp, size, options, f"ours{seed}", bitmaps)
        theirs = tmp / f"theirs{seed}"
        shutil.copy(ours, theirs)
        requests = list(random_requests(seed, size, 60))
        before = contents(tmp, ours)
        with_chaind(ours, requests)
        with_qemu(tmp, theirs, requests)
        names = [b[0] for b in bitmaps]
        assert hashes(ours, names) == hashes(theirs, names), f"{options}: other bits"
        assert flags(ours) == flags(theirs) == {"one": ["auto"], "two": ["auto"], "off": [], "wide": ["auto"]}
        check_image(ours)
        after = contents(tmp, ours)
        assert after == contents(tmp, theirs)
        assert before != after


def test_taking_turns(tmp):
    """QEMU and chaind take turns on one image; its bitmaps end as if one of them had done it all."""
    size, names = 64 * MIB, ["one", "two"]
    bitmaps = [("one", 4 * KIB, True), ("two", MIB, True)]
    ours = image(tmp, size, "cluster_size=64k", "ours", bitmaps)
    theirs = tmp / "theirs"
    shutil.copy(ours, theirs)
    for turn in range(6):
        requests = list(random_requests(100 + turn, size, 25))
        if turn % 2:
            with_qemu(tmp, ours, requests)
        else:
            with_chaind(ours, requests)
        with_qemu(tmp, theirs, requests)
        assert hashes(ours, names) == hashes(theirs, names), f"turn {turn}"
        check_image(ours)


def test_large_disk(tmp):
    """Bitmaps of a large, sparse disk are stored sparsely; all dirty takes no clusters."""
    disk = image(tmp, "4T", bitmaps=[("b", 65536, True), ("all", 65536, True)])
    twin = tmp / "twin"
    shutil.copy(disk, twin)
    requests = [("write", i * 256 * GIB, 4096, 1) for i in range(16)] + [("trim", 0, 200 * GIB, 0)]
    requests = [r for r in requests if r[2] < 4 * GIB]
    with_chaind(disk, requests)
    with_qemu(tmp, twin, requests)
    assert hashes(disk, ["b", "all"]) == hashes(twin, ["b", "all"])
    assert disk.stat().st_size <= twin.stat().st_size + MIB
    check_image(disk)


def test_nothing_written(tmp):
    """While nothing is written bitmaps stay as they are, byte for byte."""
    disk = image(tmp, "8M", bitmaps=[("b", 65536, True), ("c", 512, False)])
    before = disk.read_bytes()
    with Daemon(disk) as d:
        h = connect(d.uri())
        h.pread(4096, 0)
        h.flush()
    assert disk.read_bytes() == before


def test_kill(tmp):
    """After a kill what was in use is inconsistent, and stays so; QEMU removes it."""
    disk = image(tmp, "8M", bitmaps=[("b", 65536, True)])
    for _ in range(2):
        d = Daemon(disk)
        connect(d.uri()).pwrite(b"x" * 4096, 0)
        d.kill()
        assert flags(disk) == {"b": ["in-use", "auto"]}
    with_chaind(disk, [("write", 0, 4096, 1)])
    assert flags(disk) == {"b": ["in-use", "auto"]}
    check_image(disk)
    qemu_img("bitmap", "--remove", disk, "b")
    with_chaind(disk, [("write", 0, 4096, 2)])
    check_image(disk)


# -- commands ---


def add_node(monitor, name, disk, read_only=False):
    monitor.command("blockdev-add", driver="qcow2", node_name=name, read_only=read_only, discard="unmap",
                    file={"driver": "file", "filename": str(disk), "read-only": read_only,
                          "discard": "unmap"})


def serve(monitor, path):
    monitor.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})


def export(monitor, node, writable=True, **options):
    monitor.command("block-export-add", type="nbd", id=f"e-{node}", node_name=node, name=node,
                    writable=writable, **options)


class Side:
    """One of the two programs, with its own copies of two disks, each exported."""

    def __init__(self, tmp, name, monitor, disks):
        self.monitor = monitor
        self.disks = [tmp / f"{name}-{disk.name}" for disk in disks]
        serve(monitor, tmp / f"{name}.sock")
        self.nbd = []
        for i, (copy, disk) in enumerate(zip(self.disks, disks)):
            shutil.copy(disk, copy)
            add_node(monitor, f"n{i}", copy)
            export(monitor, f"n{i}")
            h = nbd.NBD()
            h.connect_uri(f"nbd+unix:///n{i}?socket={tmp}/{name}.sock")
            self.nbd.append(h)

    def run(self, command, arguments):
        """What a client reads: the reply, or the error."""
        try:
            return self.monitor.command(command, **arguments)
        except Failed as error:
            return str(error)

    def hash(self, node, name):
        return self.run("x-debug-block-dirty-bitmap-sha256", {"node": node, "name": name})

    def shutdown(self):
        for h in self.nbd:
            h.shutdown()


NAMES = ["a", "b", "c"]


def random_merge(r, node, name):
    others = [s for s in NAMES if s != name]
    return {"node": node, "target": name,
            "bitmaps": [r.choice((s, {"node": f"n{r.randrange(2)}", "name": s}))
                        for s in r.sample(others, r.randrange(1, 3))]}


def random_change(r):
    """(command, arguments) about bitmaps; often one that fails."""
    node, name = f"n{r.randrange(2)}", r.choice(NAMES)
    kind = r.choice(("add", "add", "add", "remove", "clear", "enable", "disable"))
    arguments = {"node": node, "name": name}
    if kind == "add":
        arguments.update(granularity=512 << r.randrange(12), persistent=r.random() < 0.5,
                         disabled=r.random() < 0.3)
    return f"block-dirty-bitmap-{kind}", arguments


def random_transaction(r, exists):
    """Only additions and removals, at its end, may fail: QEMU 7.2 crashes when another action does."""
    actions = []
    for _ in range(r.randrange(3)):
        command, data = random_change(r)
        if command.endswith(("clear", "enable", "disable")) and exists(data["node"], data["name"]):
            actions.append((command, data))
    merge = random_merge(r, f"n{r.randrange(2)}", r.choice(NAMES))
    sources = [(s["node"], s["name"]) if isinstance(s, dict) else (merge["node"], s)
               for s in merge["bitmaps"]]
    if all(exists(*b) for b in [(merge["node"], merge["target"]), *sources]):
        actions.insert(r.randrange(len(actions) + 1), ("block-dirty-bitmap-merge", merge))
    for _ in range(r.randrange(3)):
        command, data = random_change(r)
        if command.endswith(("add", "remove")):
            actions.append((command, data))
    actions = [{"type": t, "data": d} for t, d in actions]
    if r.random() < 0.3:
        actions.append({"type": "abort", "data": {}})
    return "transaction", {"actions": actions}


def random_command(r, exists):
    kind = r.random()
    if kind < 0.3:
        return random_transaction(r, exists)
    if kind < 0.5:
        return "block-dirty-bitmap-merge", random_merge(r, f"n{r.randrange(2)}", r.choice(NAMES))
    return random_change(r)


def compare(sides, what):
    infos = [{n["node-name"]: n.get("dirty-bitmaps")
              for n in side.run("query-named-block-nodes", {"flat": True})
              if n["node-name"] in ("n0", "n1")} for side in sides]
    assert infos[0] == infos[1], f"{what}: {infos[0]}, not {infos[1]}"
    for node in ("n0", "n1"):
        for name in NAMES:
            ours, theirs = (side.hash(node, name) for side in sides)
            assert ours == theirs, f"{what}: bits of {node} {name}"


def run_random(sides, r, seed, size):
    replies = []
    for step in range(120):
        if r.random() < 0.5:
            node, requests = r.randrange(2), list(random_requests(r.random(), size, 2))
            for side in sides:
                do_requests(side.nbd[node], requests)
            continue
        command, arguments = random_command(
            r, lambda node, name: isinstance(sides[0].hash(node, name), dict))
        ours, theirs = (side.run(command, arguments) for side in sides)
        what = f"seed {seed}, step {step}: {command} {arguments}"
        assert ours == theirs, f"{what}: {ours}, not {theirs}"
        replies.append(theirs == {})
        compare(sides, what)
    assert 10 < replies.count(True) < len(replies) - 10  # the script does something, and errs


def test_random_commands(tmp):
    """Random commands and transactions between requests: the same replies and the same bits as QEMU's."""
    size = 4 * MIB
    disks = [image(tmp, size, "cluster_size=64k", f"d{i}", [("b", 4096, True)]) for i in range(2)]
    for seed in range(6):
        with Chaind(tmp, f"c{seed}") as ours, Qemu() as theirs:
            sides = [Side(tmp, f"ours{seed}", ours, disks), Side(tmp, f"theirs{seed}", theirs, disks)]
            run_random(sides, random.Random(seed), seed, size)
            for side in sides:
                side.shutdown()
        for ours, theirs in zip(sides[0].disks, sides[1].disks):
            assert flags(ours) == flags(theirs)
            assert hashes(ours, flags(ours)) == hashes(theirs, flags(ours))
            check_image(ours)


def nbd_map(uri, name):
    out = run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", uri).stdout
    return [(e["offset"], e["length"], e["type"]) for e in json.loads(out)]


def test_context(tmp):
    """qemu:dirty-bitmap:NAME says the same as with QEMU; the bitmap is busy as long as it is exported."""
    requests = list(random_requests(7, 8 * MIB, 30))
    disk = image(tmp, "8M", "cluster_size=64k", bitmaps=[("x", 4096, True), ("y", 65536, True)])
    with_chaind(disk, requests)
    with Chaind(tmp) as ours, Qemu() as theirs:
        show_and_compare(tmp, disk, ours, theirs)


def show_and_compare(tmp, disk, ours, theirs):
    for monitor, sock in ((ours, tmp / "c.sock"), (theirs, tmp / "q.sock")):
        serve(monitor, sock)
        add_node(monitor, "n", disk, read_only=True)
        export(monitor, "n", False, bitmaps=["x", {"node": "n", "name": "y"}])
        try:
            monitor.command("block-dirty-bitmap-disable", node="n", name="x")
            raise AssertionError("an exported bitmap was changed")
        except Failed as error:
            assert str(error) == ("Bitmap 'x' is currently in use by another operation and cannot be "
                                  "used")
    for name in ("x", "y"):
        ours_map = nbd_map(f"nbd+unix:///n?socket={tmp}/c.sock", name)
        assert ours_map == nbd_map(f"nbd+unix:///n?socket={tmp}/q.sock", name)
        assert {e[2] for e in ours_map} == {0, 1}
    listed = run("nbdinfo", "--list", "--json", f"nbd+unix://?socket={tmp}/c.sock").stdout
    assert "qemu:dirty-bitmap:x" in json.loads(listed)["exports"][0]["contexts"]
    ours.command("block-export-del", id="e-n")
    ours.command("block-dirty-bitmap-disable", node="n", name="x")


def test_stored(tmp):
    """What commands make persistent is stored when the node is deleted, and by SIGTERM."""
    disk = image(tmp, "8M")
    for end in ("blockdev-del", "SIGTERM"):
        with Chaind(tmp, end) as c:
            add_node(c, "n", disk)
            for name, disabled in ((f"{end}-on", False), (f"{end}-off", True)):
                c.command("block-dirty-bitmap-add", node="n", name=name, persistent=True,
                          disabled=disabled)
            c.command("block-dirty-bitmap-add", node="n", name="gone")
            if end == "blockdev-del":
                c.command("blockdev-del", node_name="n")
                assert flags(disk) == {"blockdev-del-on": ["auto"], "blockdev-del-off": []}
            else:
                c.command("block-dirty-bitmap-remove", node="n", name="blockdev-del-off")
                c.daemon.stop()
        check_image(disk)
    assert flags(disk) == {"blockdev-del-on": ["auto"], "SIGTERM-on": ["auto"], "SIGTERM-off": []}


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Graphs at random, of formats and filters over each other and over files, by name and inline, made by
qemu-storage-daemon and by chaind: the same commands succeed, refusals have the same words, the same
nodes and edges come to be, and clients read the same through them after the same writes.

usage: random-graphs.py [--chaind PATH]     SEEDS=1,2,3 COMMANDS=60 in the environment
"""
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from harness import MIB, Daemon, HANG, check_image, main, qemu_img, run  # noqa: E402
from qmp_client import Qmp  # noqa: E402

SEEDS = [int(s) for s in os.environ.get("SEEDS", "1,2,3,4,5,6").split(",")]
N_COMMANDS = int(os.environ.get("COMMANDS", "60"))
SIZE = MIB
PART = 64 << 10  # where an image begins inside a file
RAW = [f"raw{i}" for i in range(8)] + ["odd"]
QCOW2 = [f"q{i}.qcow2" for i in range(12)]
PARTS = [f"part{i}" for i in range(8)]  # a qcow2 image in each

# What a description may be refused for. One may be wrong in several ways, of which each program finds
# another first; anything else is refused in the same words.
FAULTS = re.compile(
    r"""Permission\ conflict\ on\ node
      | Block\ node\ is\ read-only | ^Cannot\ export\ read-only\ node
      | ^(Could\ not\ open\ backing\ file:\ )?Cannot\ find\ device=
      | ^(Could\ not\ open\ backing\ file:\ )?Image\ is\ not\ in\ qcow2\ format
      | not\ a\ qcow2\ image
      | ^Offset\ .*\ cannot\ be\ greater | ^The\ sum\ of\ offset | the\ part\ asked\ for
      | ^(Node|Block\ device)\ \S+\ is\ in\ use
      | ^Failed\ to\ get\ (shared\ )?"\w+"\ lock | is\ in\ use\ by
      """, re.X)
# An export lets nobody resize its node in QEMU, and so no image lie in it that is written.
ONLY_QEMU = re.compile("permissions 'resize' are both required by")
# What lies below an overlay is written by nobody here, whether somebody uses the overlay or not.
ONLY_CHAIND = re.compile("permissions 'write")


# -- what is made ---------------------------------------------------------------------------------

class Maker:
    """Descriptions of nodes; names of those that may be there."""

    def __init__(self, rng):
        self.rng = rng
        self.n = 0
        self.names = []  # that were made, and may be gone
        self.new = []    # that the command makes
        self.files = [*RAW, *QCOW2, *PARTS]
        self.described = {}  # by name

    def is_image(self, node):
        """Are its bytes those of an image, which a client would destroy?"""
        if isinstance(node, str):
            node = self.described[node]
        if node["driver"] == "file":
            return node["filename"] not in RAW
        below = node.get("file") or node.get("image")
        return node["driver"] != "qcow2" and below is not None and self.is_image(below)

    def new_name(self):
        self.n += 1
        self.new.append(f"n{self.n}")
        return self.new[-1]

    def file(self):
        """Each once: raw is locked here from its first moment, and in QEMU when it is used."""
        if not self.files:
            return {"driver": "null-co", "size": SIZE, "read-zeroes": True}
        return {"driver": "file",
                "filename": self.files.pop(self.rng.randrange(len(self.files)))}

    def leaf(self):
        what = self.rng.random()
        if what < 0.7:
            return self.file()
        if what < 0.85:
            return {"driver": "null-co", "size": SIZE, "read-zeroes": True}
        return {"driver": "nbd", "export": "disk", "server": {"type": "unix", "path": "remote.sock"}}

    def common(self, node, depth):
        if depth == 0 or self.rng.random() < 0.4:
            node["node-name"] = self.new_name()
            self.described[node["node-name"]] = node
        if self.rng.random() < 0.25:
            node["read-only"] = depth > 0 or self.rng.random() < 0.8
        if depth == 0 and self.rng.random() < 0.5:
            node["discard"] = "unmap"
        return node

    def child(self, depth):
        if self.names and self.rng.random() < 0.4:
            return self.rng.choice(self.names)
        return self.node(depth + 1)

    def inner(self, depth):
        """What an image may lie in."""
        what = self.rng.random()
        if what < 0.3 and depth < 3:
            return self.common({"driver": "raw", "offset": PART, "file": self.inner(depth + 1)}, depth)
        if what < 0.6 and depth < 3:
            return self.common(self.filter(self.inner(depth + 1)), depth)
        if what < 0.75 and self.names:
            return self.rng.choice(self.names)
        return self.common(self.leaf(), depth)

    def filter(self, below):
        which = self.rng.choice(["throttle", "copy-on-read", "blkdebug"])
        if which == "throttle":
            return {"driver": "throttle", "throttle-group": "group", "file": below}
        return {"driver": which, "image" if which == "blkdebug" else "file": below}

    def node(self, depth=0):
        what = self.rng.random()
        if depth > 3 or what < 0.2:
            return self.common(self.leaf(), depth)
        if what < 0.45:
            node = {"driver": "qcow2", "file": self.inner(1)}
            if self.rng.random() < 0.3:
                node["backing"] = self.child(depth)
            return self.common(node, depth)
        if what < 0.65:
            node = {"driver": "raw", "file": self.inner(1)}
            if self.rng.random() < 0.4:
                node["offset"] = self.rng.choice([0, 512, PART])
            if self.rng.random() < 0.3 and not self.is_image(node["file"]):
                node["size"] = self.rng.choice([4096, SIZE // 2, SIZE])
            return self.common(node, depth)
        return self.common(self.filter(self.child(depth)), depth)


# -- the programs ---------------------------------------------------------------------------------

class Program:
    """One of the two, in a directory of its own with the same files."""

    def __init__(self, kind, tmp, seed):
        self.kind, self.tmp = kind, tmp
        tmp.mkdir()
        rng = random.Random(seed)
        for name in *RAW, "remote":
            (tmp / name).write_bytes(rng.randbytes(100 * 512 if name == "odd" else SIZE))
        qemu_img("create", "-q", "-f", "qcow2", tmp / QCOW2[0], SIZE)
        run("qemu-io", "-c", f"write -P {rng.randrange(1, 256)} 64k 128k", tmp / QCOW2[0])
        image = (tmp / QCOW2[0]).read_bytes()
        for name in QCOW2:
            (tmp / name).write_bytes(image)
        for name in PARTS:
            (tmp / name).write_bytes(rng.randbytes(PART) + image)
        self.remote = subprocess.Popen(
            ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-x", "disk", "-k", tmp / "remote.sock",
             "--discard", "unmap", tmp / "remote"])
        while not (tmp / "remote.sock").exists():
            assert self.remote.poll() is None

    def __enter__(self):
        if self.kind == "chaind":
            self.daemon = Daemon("--qmp", self.tmp / "q", cwd=self.tmp)
            self.daemon.__enter__()
        else:
            self.daemon = subprocess.Popen(
                ["qemu-storage-daemon", "--chardev", "socket,id=q,path=q,server=on,wait=off",
                 "--monitor", "chardev=q", "--pidfile", "pid"], cwd=self.tmp,
                stderr=subprocess.DEVNULL)
            while not (self.tmp / "pid").exists():
                assert self.daemon.poll() is None
        self.qmp = Qmp(self.tmp / "q")
        self.qmp.command("object-add", qom_type="throttle-group", id="group")
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(self.tmp / "nbd")}})
        return self

    def __exit__(self, *why):
        try:
            if self.kind == "chaind":
                self.qmp.close()
                self.daemon.__exit__(*why)
            else:
                self.qmp.send({"execute": "quit"})
                while self.qmp.line():
                    pass
                self.qmp.close()
                assert self.daemon.wait(HANG) == 0
        finally:
            if self.kind == "qemu" and self.daemon.poll() is None:
                self.daemon.kill()
            self.remote.kill()
            self.remote.wait()

    def answer(self, command):
        self.qmp.send(command)
        reply = self.qmp.reply()
        assert reply is not None, f"{self.kind}: the monitor ended after {command}"
        return reply

    def state(self):
        """Nodes and edges, without what nobody can compare."""
        names = {}

        def name_of(name):
            return names.setdefault(name, f"#{len(names)}") if name.startswith("#") else name
        nodes = []
        graph = self.qmp.command("x-debug-query-block-graph")
        for node in self.qmp.command("query-named-block-nodes", flat=True):
            file = node["file"]
            # What an image lies in is as long as the program made it.
            has_size = node["drv"] == "qcow2" or not re.search(r"\b(q|part)\d", file)
            nodes.append([name_of(node["node-name"]), node["drv"], node["ro"],
                          node["image"]["virtual-size"] if has_size else None,
                          "json:" if file.startswith("json:") else file])
        called = {n["id"]: name_of(n["name"]) if n["type"] == "block-driver" else "-"
                  for n in graph["nodes"]}
        # An export here lets others resize the node; and see ONLY_CHAIND.
        below = {n["id"] for n in graph["nodes"]
                 if any(e["child"] == n["id"] and e["name"] == "backing" for e in graph["edges"])}
        for _ in graph["edges"]:
            below |= {e["child"] for e in graph["edges"] if e["parent"] in below}
        edges = sorted([called[e["parent"]], e["name"], called[e["child"]],
                        *([] if e["child"] in below else
                          [sorted(e["perm"]), sorted({*e["shared-perm"]} - {"resize"})])]
                       for e in graph["edges"])
        return {"nodes": nodes, "edges": edges}

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.tmp / 'nbd'}"

    def transfer(self, name, script):
        """What a client reads of the export after what it writes: "write OFF LEN BYTE"."""
        import nbd
        client = nbd.NBD()
        client.connect_uri(self.uri(name))
        size = client.get_size()
        for off, length, byte in script:
            length = min(length, size - off)
            if off >= size:
                continue
            try:
                if byte is None:
                    client.zero(length, off)
                else:
                    client.pwrite(bytes([byte]) * length, off)
            except nbd.Error as e:
                return f"a write of {length} bytes at {off} fails: {e.errno}"
        content = client.pread(size, 0) if size else b""
        client.shutdown()
        return content


# -- the comparison -------------------------------------------------------------------------------

def words(reply):
    if "return" in reply:
        return "ok"
    text = reply["error"]["desc"]
    return "refused" if FAULTS.search(text) else re.sub(r"#block\d+", "", text)


class Run:
    def __init__(self, seed, programs):
        self.rng = random.Random(seed)
        self.maker = Maker(self.rng)
        self.programs = programs
        self.exports = {}  # name of the node: writable
        self.said = []
        self.n_made = 0

    def both(self, command):
        self.said.append(json.dumps(command))
        of_qemu, of_chaind = (p.answer(command) for p in self.programs)
        for i, one, other, fault in ((1, of_chaind, of_qemu, ONLY_QEMU),
                                     (0, of_qemu, of_chaind, ONLY_CHAIND)):
            if "return" in one and fault.search(str(other)):
                self.undo(self.programs[i], command)
                return False
        assert words(of_qemu) == words(of_chaind), self.fault(of_qemu, of_chaind)
        self.n_made += "return" in of_qemu
        return "return" in of_qemu

    def undo(self, program, command):
        arguments = command["arguments"]
        if command["execute"] == "blockdev-add":
            program.qmp.command("blockdev-del", node_name=arguments["node-name"])
        else:
            program.qmp.command("block-export-del", id=arguments["id"])
            program.qmp.event("BLOCK_EXPORT_DELETED")

    def fault(self, qemu, chaind):
        return "\n".join([*self.said[-12:], f"qemu:   {qemu}", f"chaind: {chaind}"])

    def same_state(self):
        states = [p.state() for p in self.programs]
        for what in states[0]:
            of_qemu, of_chaind = (s[what] for s in states)
            assert of_qemu == of_chaind, self.fault(
                [x for x in of_qemu if x not in of_chaind] or of_qemu,
                [x for x in of_chaind if x not in of_qemu] or of_chaind)

    def step(self):
        what = self.rng.random()
        names = self.maker.names
        if what < 0.5 or not names:
            self.maker.new = []
            if self.both({"execute": "blockdev-add", "arguments": self.maker.node()}):
                names += self.maker.new
        elif what < 0.75:
            name = self.rng.choice(names)
            writable = self.rng.random() < 0.6 and not self.maker.is_image(name)
            if self.both({"execute": "block-export-add",
                          "arguments": {"type": "nbd", "id": f"e-{name}", "node-name": name,
                                        "writable": writable}}):
                self.exports[name] = writable
                self.use(name)
        elif what < 0.85 and self.exports:
            name = self.rng.choice(list(self.exports))
            del self.exports[name]
            self.both({"execute": "block-export-del", "arguments": {"id": f"e-{name}"}})
            for p in self.programs:
                p.qmp.event("BLOCK_EXPORT_DELETED")
        else:
            self.both({"execute": "blockdev-del",
                       "arguments": {"node-name": self.rng.choice(names)}})
        self.same_state()

    def use(self, name):
        script = [(self.rng.randrange(SIZE // 512) * 512, self.rng.choice([512, 4096, 100 << 10]),
                   self.rng.choice([None, *range(1, 9)])) for _ in range(4 * self.exports[name])]
        self.said.append(f"{name}: {script}")
        self.compare(name, script)

    def compare(self, name, script):
        contents = [p.transfer(name, script) for p in self.programs]
        # Where a program puts what is in an image is its own business.
        assert self.maker.is_image(name) or contents[0] == contents[1], self.fault(
            *[c if isinstance(c, str) else f"{len(c)} bytes" for c in contents])

    def end(self):
        """Everything that is exported shows the same, and then the files do."""
        for name in self.exports:
            self.compare(name, [])


def run_seed(tmp, seed):
    with Program("qemu", tmp / "qemu", seed) as qemu, Program("chaind", tmp / "chaind", seed) as chaind:
        r = Run(seed, [qemu, chaind])
        try:
            for _ in range(N_COMMANDS):
                r.step()
            r.end()
        except AssertionError:
            print(f"# seed {seed}")
            raise
    for name in *RAW, "remote":
        assert (tmp / "qemu" / name).read_bytes() == (tmp / "chaind" / name).read_bytes(), name
    for name in QCOW2:
        check_image(tmp / "chaind" / name)
        run("qemu-img", "compare", tmp / "qemu" / name, tmp / "chaind" / name)
    print(f"# seed {seed}: {r.n_made} of {N_COMMANDS} commands succeeded", flush=True)


def test_random_graphs(tmp):
    """Graphs at random are made, refused, told of, written and read as by qemu-storage-daemon"""
    if not shutil.which("qemu-storage-daemon"):
        from harness import Skip
        raise Skip("qemu-storage-daemon is not installed")
    for seed in SEEDS:
        folder = tmp / str(seed)
        folder.mkdir()
        run_seed(folder, seed)


main(globals(), limit=900)

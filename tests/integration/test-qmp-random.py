#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command with arguments at random, made from the schema: each is answered, with what its type
says or a sentence, the monitor stays alive, and the daemon ends well. What files are named is in the
test's directory.

usage: test-qmp-random.py [--chaind PATH] [WORD]...     SEEDS=1,2,3 COMMANDS=500 in the environment
"""
import json
import os
import random

from harness import MIB, Daemon, main, qemu_img
from qmp_client import Qmp

SEEDS = [int(s) for s in os.environ.get("SEEDS", "1,2,3,4").split(",")]
N_COMMANDS = int(os.environ.get("COMMANDS", "400"))
NODES = ["n0", "n1", "n2", "n3", "disk", "base"]
FILES = ["disk.qcow2", "base.qcow2", "raw.img", "new0.qcow2", "new1.qcow2", "new2.img"]
# What a member's name says of its value; all others are words.
STRINGS = {
    "filename": FILES, "snapshot-file": FILES, "backing-file": FILES, "change-backing-file": FILES,
    "path": ["nbd0.sock", "nbd1.sock", "/objects", "/objects/o0", "/"],
    "host": ["localhost"], "port": ["0"], "str": ["nope"], "cid": ["nope"],
    "id": ["e0", "e1", "o0", "o1", "j0", "j1", "j2"], "job-id": ["j0", "j1", "j2"],
    "device": [*NODES, "j0", "j1", "j2"],
    "name": ["m0", "m1", "m2", ""], "target": ["m0", "m1", *NODES],
    "server": ["nope"], "uri": ["nbd+unix:///?socket=nope.sock"],
}
SKIPPED = {"quit", "qmp_capabilities"}


class Maker:
    """Values for the types of a schema."""

    def __init__(self, schema, rng):
        self.types = {entry["name"]: entry for entry in schema}
        self.rng = rng

    def string(self, name):
        pool = STRINGS.get(name, NODES + ["o0", "e0", "nope", "", "\u00e4", "x" * 300])
        return self.rng.choice(pool)

    def integer(self, name):
        values = [0, 1, -1, 512, 4096, 65536, MIB, 16 * MIB]
        # Sizes and times stay small: the daemon would do what they say.
        if not any(word in name for word in ("size", "offset", "ns", "delay", "timeout", "length")):
            values += [1 << 31, 1 << 40, (1 << 63) - 1]
        return self.rng.choice(values)

    def members(self, entry, depth):
        made = {}
        for member in entry["members"]:
            if "default" not in member or self.rng.random() < 0.25:
                made[member["name"]] = self.value(member["type"], member["name"], depth + 1)
        for variant in entry.get("variants", ()):
            if made.get(entry["tag"]) == variant["case"]:
                made.update(self.members(self.types[variant["type"]], depth))
        return made

    def value(self, type_name, name, depth):
        entry, rng = self.types[type_name], self.rng
        kind = entry["meta-type"]
        if rng.random() < 0.01 or depth > 8:
            return rng.choice([None, 5, "x", [], {}, True, 1.5])
        if kind == "object":
            return self.members(entry, depth)
        if kind == "array":
            return [self.value(entry["element-type"], name, depth + 1)
                    for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        if kind == "enum":
            # Space that is filled with zeros would be filled.
            return rng.choice([v for v in entry["values"] if v not in ("full", "falloc")])
        if kind == "alternate":
            return self.value(rng.choice(entry["members"])["type"], name, depth + 1)
        return {"string": lambda: self.string(name), "int": lambda: self.integer(name),
                "number": lambda: rng.choice([0, -1.5, 1e300]), "boolean": lambda: rng.random() < 0.5,
                "null": lambda: None, "value": lambda: rng.choice([1, "x", None, {}, [1]]),
                }[entry["json-type"]]()


def run_seed(tmp, seed):
    rng = random.Random(seed)
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "4M", cwd=tmp)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2", cwd=tmp)
    qemu_img("create", "-q", "-f", "raw", "raw.img", "1M", cwd=tmp)
    with Daemon("--qmp", tmp / "q", cwd=tmp) as d:
        q = Qmp(tmp / "q")
        maker = Maker(q.command("query-qmp-schema"), rng)
        commands = [e for e in maker.types.values()
                    if e["meta-type"] == "command" and e["name"] not in SKIPPED]
        n_done = 0
        for i in range(N_COMMANDS):
            # Nodes and exports come first, and more often: all others need some.
            name = rng.choice(["blockdev-add", "block-export-add", None, None, None, None,
                               rng.choice(["block-stream", "block-commit"])])
            command = maker.types[name] if name else rng.choice(commands)
            arguments = maker.value(command["arg-type"], "", 0)
            request = {"execute": command["name"], "arguments": arguments}
            q.send(request)
            reply = q.reply()
            assert reply is not None, f"seed {seed}, command {i}: the monitor ended after " \
                f"{json.dumps(request)}\n{d.log()}"
            assert ("return" in reply) != ("error" in reply), reply
            if "error" in reply:
                assert reply["error"]["desc"], f"no sentence: {request} {reply}"
            n_done += "return" in reply
        q.command("query-named-block-nodes")
        print(f"# seed {seed}: {n_done} of {N_COMMANDS} succeeded", flush=True)


def test_random(tmp):
    """Commands with arguments at random are all answered, and the daemon ends well."""
    for seed in SEEDS:
        folder = tmp / str(seed)
        folder.mkdir()
        run_seed(folder, seed)


main(globals(), limit=900)

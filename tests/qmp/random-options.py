#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random command lines of qemu-storage-daemon, good and bad, against it and chaind: either both end
with the same sentence, or both run and tell the same of their nodes, exports and objects. What differs
on purpose stands in the file `differences-generated`, under the name random-options.

usage: random-options.py [--chaind PATH] [--qemu PATH] [--seed N] [--number N] [--show]
"""
import argparse
import importlib.util
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

spec = importlib.util.spec_from_file_location("side_by_side",
                                              pathlib.Path(__file__).parent / "side-by-side.py")
side_by_side = importlib.util.module_from_spec(spec)
spec.loader.exec_module(side_by_side)

QUERIES = [
    ("query-block-exports", {}, ("id", "node-name", "type", "shutting-down")),
    ("query-named-block-nodes", {"flat": True}, ("node-name", "drv", "ro", "detect_zeroes", "cache")),
    ("qom-list", {"path": "/objects"}, ("name", "type")),
]


# -- command lines --------------------------------------------------------------------------------

def maybe(rng, options, key, values, chance=0.3):
    if rng.random() < chance:
        options[key] = rng.choice(values)


def make_object(rng, names):
    kind = rng.choice(["throttle-group", "secret", "iothread"])
    name = f"o{len(names['object'])}"
    options = {"qom-type": kind, "id": name}
    if kind == "throttle-group":
        maybe(rng, options, "limits", [{"bps-total": 1 << 20}, {"iops-total": 10, "iops-size": 512},
                                       {"bps-read": 5, "bps-read-max": 10}])
        maybe(rng, options, "x-iops-write", [7])
        names["group"].append(name)
    elif kind == "secret":
        options["data"] = rng.choice(["x", "bGV0", "a,b"])
        maybe(rng, options, "format", ["raw", "base64"])
    else:
        maybe(rng, options, "poll-max-ns", [0, 1000])
        names["iothread"].append(name)
    names["object"].append(name)
    return "object", options


def make_file(rng, filename):
    options = {"driver": "file", "filename": filename}
    maybe(rng, options, "aio", ["threads", "io_uring"], 0.1)
    maybe(rng, options, "locking", ["auto", "on", "off"], 0.2)
    return options


def child(rng, names, filename):
    """What an option `file` may be: the name of a node that nobody has yet, or a description."""
    if names["unused"] and rng.random() < 0.3:
        return names["unused"].pop(rng.randrange(len(names["unused"])))
    return make_file(rng, filename) if filename else {"driver": "null-co", "size": 65536}


def make_node(rng, names):
    name = f"n{len(names['node'])}"
    driver = rng.choice(["null-co", "file", "qcow2", "qcow2", "raw", "throttle", "copy-on-read"])
    options = {"driver": driver, "node-name": name}
    if driver == "null-co":
        maybe(rng, options, "size", [65536, 1 << 30], 0.8)
        maybe(rng, options, "read-zeroes", [True, False])
    elif driver == "file":
        options["filename"] = take_file(rng, names, "raw")
    elif driver == "qcow2":
        options["file"] = make_file(rng, take_file(rng, names, "qcow2"))
        maybe(rng, options, "backing", [""], 0.5)
        maybe(rng, options, "lazy-refcounts", [True, False], 0.1)
        maybe(rng, options, "l2-cache-size", [1 << 20], 0.1)
        maybe(rng, options, "overlap-check", ["cached", {"template": "none", "inactive-l2": True}],
              0.2)
    elif driver == "raw":
        options["file"] = child(rng, names, take_file(rng, names, "raw"))
        maybe(rng, options, "offset", [0, 512], 0.2)
        maybe(rng, options, "size", [1024], 0.2)
    else:
        options["file"] = child(rng, names, None)
        if driver == "throttle":
            options["throttle-group"] = rng.choice(names["group"] or ["none"])
    maybe(rng, options, "read-only", [driver not in ("throttle", "copy-on-read"), False])
    maybe(rng, options, "discard", ["ignore", "unmap"])
    maybe(rng, options, "detect-zeroes", ["off", "on"], 0.1)
    maybe(rng, options, "cache", [{"no-flush": True}, {"no-flush": False, "direct": False}], 0.2)
    names["node"].append(name)
    if driver != "qcow2" and driver != "raw":
        names["unused"].append(name)
    return "blockdev", options


def take_file(rng, names, kind):
    files = names[kind]
    return files.pop() if files and rng.random() < 0.95 else f"nope.{kind}"


def make_export(rng, names):
    name = f"e{len(names['export'])}"
    names["export"].append(name)
    options = {"type": "nbd", "id": name, "node-name": rng.choice(names["node"] or ["none"])}
    maybe(rng, options, "name", [name], 0.7)
    maybe(rng, options, "writable", [True, False])
    maybe(rng, options, "description", ["a disk"], 0.2)
    maybe(rng, options, "writethrough", [True], 0.1)
    maybe(rng, options, "allocation-depth", [True, False], 0.2)
    maybe(rng, options, "bitmaps", [["none"]], 0.05)
    return "export", options


def make_server(rng, names):
    address = rng.choice([{"type": "unix", "path": "nbd.sock"},
                          {"type": "inet", "host": "127.0.0.1", "port": "0"}])
    options = {"addr": address}
    maybe(rng, options, "max-connections", [0, 5])
    return "nbd-server", options


def spoil(rng, options):
    """Makes an object wrong in one place, which may be deeper."""
    inner = [v for v in options.values() if isinstance(v, dict)]
    if inner and rng.random() < 0.4:
        spoil(rng, rng.choice(inner))
        return
    what = rng.randrange(4)
    key = rng.choice(list(options))
    if what == 0:
        del options[key]
    elif what == 1:
        options["bogus"] = "1"
    elif isinstance(options[key], bool):
        options[key] = "maybe"
    elif isinstance(options[key], int):
        options[key] = rng.choice(["x", "-1", "1.5"])
    elif isinstance(options[key], str):
        options[key] = rng.choice(["none", "9", "-x"])
    else:
        options[key] = "none"


def flatten(value, path=""):
    """Pairs of dotted keys and texts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from flatten(inner, f"{path}.{i}")
    else:
        text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        yield path, str(text).replace(",", ",,")


IMPLIED = {"blockdev": "driver", "export": "type", "object": "qom-type"}


def render(rng, name, options):
    """The words of the option. A key that may be left out is, when it comes first."""
    if rng.random() < 0.3:
        return [f"--{name}", json.dumps(options)]
    pairs = list(flatten(options))
    if rng.random() < 0.3:
        rng.shuffle(pairs)
    words = [f"{key}={text}" for key, text in pairs]
    if pairs and pairs[0][0] == IMPLIED.get(name) and rng.random() < 0.5:
        words[0] = pairs[0][1]
    if words and rng.random() < 0.5:
        return [f"--{name}={','.join(words)}"]
    return [f"--{name}", ",".join(words)]


def make_command_line(rng):
    names = {"object": [], "group": [], "iothread": [], "node": [], "unused": [], "export": [],
             "qcow2": ["b.qcow2", "a.qcow2"], "raw": ["b.raw", "a.raw"]}
    made = [make_object(rng, names) for _ in range(rng.randrange(3))]
    made += [make_node(rng, names) for _ in range(rng.randrange(1, 5))]
    if rng.random() < 0.9:
        made.append(make_server(rng, names))
    made += [make_export(rng, names) for _ in range(rng.randrange(3))]
    if rng.random() < 0.3:
        spoil(rng, rng.choice(made)[1])
    if rng.random() < 0.05:
        rng.shuffle(made)
    return [word for name, options in made for word in render(rng, name, options)]


# -- running --------------------------------------------------------------------------------------

class Runner(side_by_side.Player):
    """A program that is started with a command line beside some images, and asked what came of it."""

    def __init__(self, program, words, images):
        super().__init__(program, [])
        self.command_line += words
        shutil.copytree(images, self.directory, dirs_exist_ok=True)

    def play(self):
        try:
            self.start()
            try:
                self.ask()
            except side_by_side.Bad:
                if self.process.poll() is None:
                    raise
                self.tell_end()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for monitor in self.monitors.values():
                monitor.socket.close()
            self.log.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        return self.transcript

    def ask(self):
        monitor = self.open_monitor()
        self.talk(monitor, "send", '{"execute": "qmp_capabilities"}')
        for command, arguments, keys in QUERIES:
            self.filters = [("only", " ".join(keys)), ("sorted", "")]
            self.talk(monitor, "send", json.dumps({"execute": command, "arguments": arguments}))
        self.quit()

    def tell_end(self):
        self.log.seek(0)
        sentences = re.findall(r"^(?:\S*qemu-storage-daemon|chaind): (--.*)", self.log.read(), re.M)
        self.write("ended:", self.normal(sentences[-1] if sentences else ""))


def make_images(directory):
    for fmt, name, more in (("qcow2", "a.qcow2", []), ("raw", "a.raw", []), ("raw", "b.raw", []),
                            ("qcow2", "b.qcow2", ["-b", "a.qcow2", "-F", "qcow2"])):
        subprocess.run(["qemu-img", "create", "-q", "-f", fmt, *more, name, "64k"], cwd=directory,
                       check=True)


def known(differences, qemu, chaind):
    for difference in differences:
        if difference.covers("random-options", qemu, chaind):
            difference.is_met = True
            return True
    return False


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--chaind", default=side_by_side.chaind_path)
    ap.add_argument("--qemu", default=side_by_side.qemu_path)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--number", type=int, default=60)
    ap.add_argument("--show", action="store_true")
    args = ap.parse_args()
    side_by_side.chaind_path, side_by_side.qemu_path = os.path.abspath(args.chaind), args.qemu
    version = side_by_side.qemu_version()
    if not version:
        print(f"1..0 # SKIP {args.qemu} is not installed")
        return 0
    path = side_by_side.HERE / "differences-generated"
    differences = side_by_side.of_version(side_by_side.read_differences(path), version)
    failed = n_run = 0
    images = tempfile.TemporaryDirectory()
    make_images(images.name)
    for seed in range(args.seed, args.seed + args.number):
        words = make_command_line(random.Random(seed))
        qemu, chaind = (Runner(p, words, images.name).play() for p in ("qemu", "chaind"))
        n_run += not chaind[0].startswith("ended:")
        wrong = [(a, b) for a, b in zip(qemu, chaind) if a != b and not known(differences, a, b)]
        if args.show or wrong or len(qemu) != len(chaind):
            print(f"# seed {seed}: {words}")
            print("".join(f"# qemu:   {line}\n" for line in qemu), end="")
            print("".join(f"# chaind: {line}\n" for line in chaind), end="")
            failed += bool(wrong) or len(qemu) != len(chaind)
    is_good = not failed and 0 < n_run < args.number
    print(f"{'' if is_good else 'not '}ok 1 - {args.number} command lines mean the same to both "
          f"programs; {n_run} of them were good\n1..1")
    return 0 if is_good else 1


sys.exit(main())

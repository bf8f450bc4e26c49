#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wrong arguments of every command, generated from qemu-storage-daemon's own schema: missing members,
unexpected ones, values of each wrong type, out of bounds, and names of nothing. Both programs refuse
them with the same sentence. What differs on purpose stands in the file `differences-generated`, under
the name `arguments`, and what the schemas differ in under the name `schema`.

usage: arguments.py [--chaind PATH] [--qemu PATH] [COMMAND]...
"""
import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import sys

spec = importlib.util.spec_from_file_location("side_by_side",
                                              pathlib.Path(__file__).parent / "side-by-side.py")
side_by_side = importlib.util.module_from_spec(spec)
spec.loader.exec_module(side_by_side)

# Of each command with arguments, some that are well-formed and lead to nothing: there is no node,
# job or export of these names.
FILE = {"driver": "file", "filename": "none/none"}
BITMAP = {"node": "none", "name": "b"}
ADDRESS = {"type": "unix", "data": {"path": "none/none"}}
WELL_FORMED = {
    "block-commit": {"job-id": "j", "device": "none"},
    "block-dirty-bitmap-add": BITMAP, "block-dirty-bitmap-clear": BITMAP,
    "block-dirty-bitmap-disable": BITMAP, "block-dirty-bitmap-enable": BITMAP,
    "block-dirty-bitmap-remove": BITMAP,
    "block-dirty-bitmap-merge": {"node": "none", "target": "b", "bitmaps": ["c", BITMAP]},
    "block-export-add": {"type": "nbd", "id": "e", "node-name": "none"},
    "block-export-del": {"id": "none"},
    "block-job-cancel": {"device": "none"}, "block-job-complete": {"device": "none"},
    "block-job-change": {"id": "none", "type": "mirror", "copy-mode": "background"},
    "block-job-dismiss": {"id": "none"}, "block-job-finalize": {"id": "none"},
    "block-job-pause": {"device": "none"}, "block-job-resume": {"device": "none"},
    "block-job-set-speed": {"device": "none", "speed": 1},
    "block-set-write-threshold": {"node-name": "none", "write-threshold": 1},
    "block-stream": {"job-id": "j", "device": "none"},
    "block_resize": {"node-name": "none", "size": 512},
    "blockdev-add": {"driver": "qcow2", "node-name": "n", "backing": None,
                     "file": {"driver": "raw", "file": FILE}},
    "blockdev-create": {"job-id": "9j", "options": {"driver": "qcow2", "file": "none", "size": 512}},
    "blockdev-del": {"node-name": "none"},
    "blockdev-backup": {"job-id": "j", "device": "none", "target": "none", "sync": "full"},
    "blockdev-mirror": {"job-id": "j", "device": "none", "target": "none", "sync": "full"},
    "blockdev-reopen": {"options": [{"driver": "raw", "node-name": "none", "file": "none"}]},
    "blockdev-snapshot": {"node": "none", "overlay": "none"},
    "blockdev-snapshot-delete-internal-sync": {"device": "none", "name": "s"},
    "blockdev-snapshot-internal-sync": {"device": "none", "name": "s"},
    "blockdev-snapshot-sync": {"node-name": "none", "snapshot-file": "f", "mode": "existing"},
    "change-backing-file": {"device": "none", "image-node-name": "none", "backing-file": "f"},
    "chardev-add": {"id": "c", "backend": {"type": "socket", "data": {"addr": ADDRESS,
                                                                      "server": False}}},
    "chardev-change": {"id": "none", "backend": {"type": "null", "data": {}}},
    "chardev-remove": {"id": "none"},
    "drive-backup": {"job-id": "j", "device": "none", "target": "none/none", "sync": "full"},
    "drive-mirror": {"job-id": "j", "device": "none", "target": "none/none", "sync": "full"},
    "job-cancel": {"id": "none"}, "job-complete": {"id": "none"}, "job-dismiss": {"id": "none"},
    "job-finalize": {"id": "none"}, "job-pause": {"id": "none"}, "job-resume": {"id": "none"},
    "nbd-server-start": {"addr": ADDRESS},
    "object-add": {"qom-type": "secret", "id": "o", "file": "none/none"},
    "object-del": {"id": "none"},
    "qom-get": {"path": "/none", "property": "p"}, "qom-list": {"path": "/none"},
    "qom-set": {"path": "/none", "property": "p", "value": 1},
    "qom-list-properties": {"typename": "none"},
    "transaction": {"actions": [{"type": "block-dirty-bitmap-add", "data": BITMAP},
                                {"type": "blockdev-snapshot-sync",
                                 "data": {"node-name": "none", "snapshot-file": "f"}}]},
    "x-debug-block-dirty-bitmap-sha256": BITMAP,
}
# What QEMU ends itself at, or accepts, so that it would be in the way of others.
SKIPPED = [("blockdev-reopen", "options", []), ("chardev-add", "reconnect", 5),
           ("chardev-add", "reconnect-ms", 5), ("chardev-add", "reconnect", 1 << 32),
           ("chardev-add", "reconnect-ms", 1 << 32), ("chardev-add", "logfile", "x")]
VALUES = ["x", "", 5, -1, 1 << 32, 1 << 63, 1 << 64, 1.5, True, None, [], {}]


# -- schemas --------------------------------------------------------------------------------------

class Schema:
    def __init__(self, entries):
        self.entries = {entry["name"]: entry for entry in entries}

    def names(self, meta_type):
        return {name for name, entry in self.entries.items() if entry["meta-type"] == meta_type}

    def members(self, name, value):
        """Of an object's type, with those of the variant that the value chooses."""
        entry = self.entries[name]
        found = {member["name"]: member for member in entry.get("members", [])}
        for variant in entry.get("variants", []):
            if isinstance(value, dict) and variant["case"] == value.get(entry["tag"]):
                found |= self.members(variant["type"], value)
        return found

    def object_type(self, name):
        """The type of an object that a value of this type may be; None: it is none."""
        entry = self.entries[name]
        if entry["meta-type"] == "object":
            return name
        if entry["meta-type"] == "alternate":
            for member in entry["members"]:
                if self.entries[member["type"]]["meta-type"] == "object":
                    return member["type"]
        return None


def differ(qemu, chaind, name_q, name_c, path, seen, found):
    """Adds to `found` what of a type chaind does not know, or knows otherwise."""
    a, b = qemu.entries[name_q], chaind.entries[name_c]
    if a["meta-type"] != b["meta-type"]:
        found.append(f"{path}: {a['meta-type']} in qemu, {b['meta-type']} in chaind")
    elif a["meta-type"] == "builtin" and a["json-type"] != b["json-type"]:
        found.append(f"{path}: {a['json-type']} in qemu, {b['json-type']} in chaind")
    elif a["meta-type"] == "enum":
        lacks, has = set(a["values"]) - set(b["values"]), set(b["values"]) - set(a["values"])
        found += [f"{path}: value {value} in qemu only" for value in sorted(lacks)]
        found += [f"{path}: value {value} in chaind only" for value in sorted(has)]
    elif a["meta-type"] == "array":
        differ(qemu, chaind, a["element-type"], b["element-type"], f"{path}[]", seen, found)
    elif a["meta-type"] == "object" and (name_q, name_c) not in seen:
        seen = seen | {(name_q, name_c)}
        differ_members(qemu, chaind, a, b, path, seen, found)


def differ_features(a, b, path, found):
    theirs, ours = set(a.get("features", [])), set(b.get("features", []))
    found += [f"{path}: feature {feature} in qemu only" for feature in sorted(theirs - ours)]
    found += [f"{path}: feature {feature} in chaind only" for feature in sorted(ours - theirs)]


def differ_members(qemu, chaind, a, b, path, seen, found):
    differ_features(a, b, path, found)
    ours = {member["name"]: member for member in b["members"]}
    theirs = {member["name"]: member for member in a["members"]}
    found += [f"{path}.{name} in qemu only" for name in sorted(theirs.keys() - ours.keys())]
    found += [f"{path}.{name} in chaind only" for name in sorted(ours.keys() - theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        if ("default" in ours[name]) != ("default" in theirs[name]):
            found.append(f"{path}.{name}: not optional in both")
        differ_features(theirs[name], ours[name], f"{path}.{name}", found)
        differ(qemu, chaind, theirs[name]["type"], ours[name]["type"], f"{path}.{name}", seen, found)
    cases = {variant["case"]: variant["type"] for variant in b.get("variants", [])}
    for variant in a.get("variants", []):
        if variant["case"] in cases:
            differ(qemu, chaind, variant["type"], cases[variant["case"]],
                   f"{path}<{variant['case']}>", seen, found)


def schema_differences(qemu, chaind):
    found = []
    for kind, parts in (("command", ("arg-type", "ret-type")), ("event", ("arg-type",))):
        theirs, ours = qemu.names(kind), chaind.names(kind)
        found += [f"{kind} {name} in qemu only" for name in sorted(theirs - ours)]
        found += [f"{kind} {name} in chaind only" for name in sorted(ours - theirs)]
        for name in sorted(ours & theirs):
            differ_features(qemu.entries[name], chaind.entries[name], name, found)
            for part in parts:
                differ(qemu, chaind, qemu.entries[name][part], chaind.entries[name][part],
                       name + (":reply" if part == "ret-type" else ""), frozenset(), found)
    return found


# -- wrong arguments ------------------------------------------------------------------------------

def changed(value, path, change):
    """A copy in which `change` was done to the object or array at the path."""
    copy = json.loads(json.dumps(value))
    at = copy
    for step in path:
        at = at[step]
    change(at)
    return copy


def places(schema, name, value, path=()):
    """(path of an object, its members) in the value, outermost first."""
    entry = schema.entries[name]
    if isinstance(value, list):
        for i, element in enumerate(value):
            yield from places(schema, entry["element-type"], element, (*path, i))
    elif isinstance(value, dict) and schema.object_type(name):
        members = schema.members(schema.object_type(name), value)
        yield path, members
        for key, inner in value.items():
            yield from places(schema, members[key]["type"], inner, (*path, key))


def wrong_arguments(qemu, chaind, command, good):
    """Arguments with one fault each, in the order of the schema."""
    yield good
    theirs = qemu.entries[command]["arg-type"]
    ours = dict(places(chaind, chaind.entries[command]["arg-type"], good))
    for path, members in places(qemu, theirs, good):
        at = good
        for step in path:
            at = at[step]
        yield changed(good, path, lambda o: o.update(bogus=1))
        for name in at:
            if "default" not in members[name]:
                yield changed(good, path, lambda o, n=name: o.pop(n))
        for name in members:
            if name not in ours.get(path, ()):
                continue
            for value in VALUES:
                if (command, name, value) in SKIPPED:
                    continue
                yield changed(good, path, lambda o, n=name, v=value: o.update({n: v}))


# -- the run --------------------------------------------------------------------------------------

class Program(side_by_side.Player):
    def __init__(self, program):
        super().__init__(program, [])
        self.begin()

    def begin(self):
        self.monitor = self.open_monitor()
        self.ask("qmp_capabilities")

    def ask(self, command, arguments=None):
        """The reply; None: it ended itself, and was started again."""
        request = {"execute": command, "arguments": arguments or {}}
        self.monitor.socket.sendall(json.dumps(request).encode())
        while (line := self.monitor.receive()) and "event" in line:
            pass
        if not line:
            self.process.wait(side_by_side.HANG)
            self.process, self.monitors = None, {}
            pathlib.Path(self.directory, side_by_side.PID_FILE).unlink(missing_ok=True)
            self.begin()
        return line

    def end(self):
        self.monitor.socket.sendall(b'{"execute": "quit"}')
        self.process.wait(side_by_side.HANG)
        self.monitor.socket.close()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def told(reply):
    if not reply:
        return "the program ended"
    error = reply.get("error")
    return f"{error['class']}: {error['desc']}" if error else "accepted"


class Differences:
    def __init__(self, version):
        path = side_by_side.HERE / "differences-generated"
        self.all = side_by_side.of_version(side_by_side.read_differences(path), version)

    def knows(self, name, qemu, chaind):
        for difference in self.all:
            if difference.covers(name, qemu, chaind):
                difference.is_met = True
                return True
        return False


def compare_schemas(qemu, chaind, version, differences):
    if int(version) < 10:
        print("ok 1 - the schemas # SKIP chaind's is that of QEMU 10")
        return True
    wrong = [line for line in schema_differences(qemu, chaind)
             if not differences.knows("schema", line, None)]
    for line in wrong:
        print(f"# {line}")
    print(f"{'not ' if wrong else ''}ok 1 - the schemas differ only where it is said why")
    return not wrong


def compare_command(number, command, schemas, programs, differences):
    n = n_wrong = 0
    for arguments in wrong_arguments(*schemas, command, WELL_FORMED[command]):
        qemu, chaind = (told(program.ask(command, arguments)) for program in programs)
        n += 1
        if qemu != chaind and not differences.knows("arguments", f"{command} {qemu}",
                                                    f"{command} {chaind}"):
            n_wrong += 1
            print(f"# {command} {json.dumps(arguments)}\n#   qemu:   {qemu}\n#   chaind: {chaind}")
    print(f"{'not ' if n_wrong else ''}ok {number} - {command}: {n} arguments", flush=True)
    return not n_wrong


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--chaind", default=side_by_side.chaind_path)
    ap.add_argument("--qemu", default=side_by_side.qemu_path)
    ap.add_argument("commands", nargs="*")
    args = ap.parse_args()
    side_by_side.chaind_path, side_by_side.qemu_path = os.path.abspath(args.chaind), args.qemu
    version = side_by_side.qemu_version()
    if not version:
        print(f"1..0 # SKIP {args.qemu} is not installed")
        return 0
    differences = Differences(version)
    programs = [Program("qemu"), Program("chaind")]
    try:
        schemas = [Schema(program.ask("query-qmp-schema")["return"]) for program in programs]
        shared = schemas[0].names("command") & schemas[1].names("command")
        is_good = compare_schemas(*schemas, version, differences)
        commands = [c for c in WELL_FORMED if c in shared and c in (args.commands or [c])]
        for number, command in enumerate(commands, 2):
            is_good &= compare_command(number, command, schemas, programs, differences)
        print(f"1..{len(commands) + 1}")
    finally:
        for program in programs:
            program.end()
    return 0 if is_good and commands else 1


if __name__ == "__main__":
    sys.exit(main())

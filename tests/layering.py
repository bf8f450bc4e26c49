#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may include whom (docs/architecture.md), read from the #include lines: folders see only what
lies below them, and the files of a folder make no circles. In nbd/ and qcow2/ calls make none
either. And every header compiles alone.

usage: layering.py SOURCE-ROOT
"""
import os
import re
import shlex
import subprocess
import sys
import tempfile

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)

# Inside libchain: a folder and all that it may see. Anything not listed is forbidden.
LIBCHAIN = {
    "base": {"base"},
    "format": {"format", "base"},
    "loop": {"loop", "base"},
    "io": {"io", "loop", "base"},
    "host": {"host", "io", "loop", "base"},
    "sim": {"sim", "io", "loop", "base"},
    "tls": {"tls", "io", "loop", "base"},
    "node": {"node", "io", "loop", "base"},
    "bitmap": {"bitmap", "node", "io", "loop", "base"},
    "qcow2": {"qcow2", "format", "bitmap", "node", "io", "loop", "base"},
    "remote": {"remote", "format", "tls", "node", "io", "loop", "base"},
    "raw": {"raw", "node", "io", "loop", "base"},
    "chain": {"chain", "node", "io", "loop", "base"},
}
# Which folder of libchain a header of include/chain-core/ belongs to.
CORE = {
    "units.h": "base", "zeros.h": "base", "map-memory.h": "base", "mutant.h": "base",
    "fiber.h": "loop", "fiber-sync.h": "loop", "loop.h": "loop", "io-batch.h": "loop",
    "remote-call.h": "loop",
    "file.h": "io", "io-buffers.h": "io", "debug-event.h": "io", "stream.h": "io", "socket-process.h": "io", "sim.h": "sim", "sim-choice.h": "sim",
    "tls-creds.h": "tls", "tls-authz.h": "tls", "tls-stream.h": "tls",
    "node.h": "node", "port.h": "node", "driver.h": "node", "whole-sectors.h": "node",
    "node-drivers.h": "node", "driver-option.h": "node", "component.h": "node",
    "switch.h": "node", "node-perm.h": "node", "node-hold.h": "node", "external-snapshot.h": "chain",
    "throttle-group.h": "node", "node-file.h": "node", "node-fill.h": "node",
    "node-compressed.h": "node",
    "node-kinds.h": "node",
    "chain-range.h": "chain", "chain-plan.h": "chain", "chain-map.h": "chain",
    "bitmap.h": "bitmap", "dirty-bitmap.h": "bitmap",
    "raw.h": "raw", "nbd-client.h": "remote", "fd-wait.h": "io",
    "qcow2.h": "qcow2", "qcow2-snapshot.h": "qcow2",
    "qcow2-check.h": "qcow2", "qcow2-create.h": "qcow2",
    "chain.h": "chain", "layer.h": "chain", "node-config.h": "chain", "node-reopen.h": "chain",
}
# The chain opens its layers by their drivers' headers, never by their insides.
CORE_EXTRA = {"chain": {"raw.h", "nbd-client.h", "qcow2.h", "qcow2-check.h", "qcow2-create.h"}}
# Outside libchain: whose include folders may be seen.
OUTSIDE = {
    "nbd": {"chain-core", "chain"},
    "jobs": {"chain-core", "chain"},
    "daemon": {"chain-core", "chain", "nbd", "jobs"},
}
# What daemon/qmp/ may see of the daemon besides itself: it knows the wire, and no nodes.
QMP_EXTRA = {"daemon/log.h"}
# Folders whose files still go in circles. Take a folder off the list with its last circle.
CIRCLES_LEFT = set()
# Where also calls must not go in circles, except between files that are one thing in several
# chapters and say so in the opening paragraph: "One thing with that-file.c".
NO_CALL_CIRCLES = ("nbd", "libchain/qcow2", "libchain/qcow2/check")
ONE_THING = re.compile(r"\bOne thing with ([a-z0-9.-]+\.c(?:(?:,| and) [a-z0-9.-]+\.c)*)")
DEFINITION = re.compile(r"^(?!static\b|typedef\b)[A-Za-z_][^\n;={}#/]*?\b(\w+)\([^;{}]*\)\n\{", re.M)


def sources(root):
    for top in ("libchain", "nbd", "jobs", "daemon"):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                if name.endswith((".c", ".h")):
                    yield os.path.relpath(os.path.join(folder, name), root)


def folder_of(path):
    """("libchain", "qcow2") for libchain/qcow2/…, its include/chain-core/ headers likewise."""
    parts = path.split("/")
    if parts[0] != "libchain":
        return parts[0], None
    if parts[1] == "include":
        return "libchain", CORE.get(parts[3]) if parts[2] == "chain-core" else "api"
    return "libchain", parts[1]


def fault(root, path, include):
    """Why `path` may not include `include`, or None."""
    top, folder = folder_of(path)
    head, _, rest = include.partition("/")
    if top == "libchain":
        if head == "chain-core":
            owner = CORE.get(rest)
            if owner is None:
                return f"{include} belongs to no folder: add it to CORE in layering.py"
            if folder == "api" or rest in CORE_EXTRA.get(folder, ()):
                return None
            return None if owner in LIBCHAIN.get(folder, ()) else f"{folder} may not use {owner}"
        if folder == "api":  # the installed API: sees chain-core and itself
            own = head == "api" or os.path.exists(os.path.join(root, "libchain/include", include))
            return None if own or head == "base" else f"{folder} may not use {head}"
        if head in ("nbd", "jobs", "daemon"):
            return f"libchain may not use {head}"
        if not rest:
            near = os.path.join(root, os.path.dirname(path), include)
            return None if os.path.exists(near) else "a header of another folder, without its folder"
        return None if head in LIBCHAIN.get(folder, ()) else f"{folder} may not use {head}"
    if not rest:
        near = os.path.join(root, os.path.dirname(path), include)
        return None if os.path.exists(near) else "a header of another folder, without its folder"
    if path.startswith("daemon/ctl/"):
        return "chainctl knows the daemon by its QMP only"
    if path.startswith("daemon/qmp/") and include not in QMP_EXTRA and (
            head in ("nbd", "jobs") or head == "daemon" and not rest.startswith("qmp/")):
        return "daemon/qmp may not use what is above it"
    if head == top:
        return None
    if head in OUTSIDE[top]:
        if head in ("nbd", "jobs") and not os.path.exists(f"{root}/{head}/include/{include}"):
            return f"only {head}/include/ is for others"
        return None
    return f"{top} may not use {head}"


def test_includes(root):
    faults, n = [], 0
    for path in sources(root):
        with open(os.path.join(root, path), encoding="utf-8") as f:
            for include in INCLUDE.findall(f.read()):
                n += 1
                why = fault(root, path, include)
                if why:
                    faults.append(f'{path} includes "{include}": {why}')
    return faults if n else ["no #include found: is the source root right?"]


def test_the_rules_bite(root):
    bad = [("libchain/base/x.c", "loop/y.h"), ("libchain/format/x.c", "chain-core/fiber.h"),
           ("libchain/qcow2/x.c", "chain/map.h"), ("libchain/node/x.c", "qcow2/y.h"),
           ("nbd/x.c", "jobs/y.h"), ("jobs/x.c", "nbd/server.h"), ("nbd/x.c", "qcow2/y.h"),
           ("libchain/loop/x.c", "nbd/server.h"),
           ("daemon/qmp/x.c", "daemon/nodes.h"), ("daemon/qmp/x.c", "nbd/server.h"), ("daemon/ctl/x.c", "daemon/log.h"),
           ("libchain/io/x.c", "host/y.h"), ("daemon/x.c", "format/qcow2-header.h")]
    return [f"{a} including {b} was not noticed" for a, b in bad if not fault(root, a, b)]


def circles(edges):
    """The sets of nodes that lead to each other, sorted; `edges`: node -> nodes."""
    number, low, stack, found = {}, {}, [], []

    def visit(node):
        number[node] = low[node] = len(number)
        stack.append(node)
        for to in sorted(edges.get(node, ())):
            if to not in number:
                visit(to)
            if to in stack:
                low[node] = min(low[node], low[to])
        if low[node] == number[node]:
            members = stack[stack.index(node):]
            del stack[stack.index(node):]
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(edges):
        if node not in number:
            visit(node)
    return found


def by_folder(root):
    """folder -> {file name: text}"""
    folders = {}
    for path in sources(root):
        with open(os.path.join(root, path), encoding="utf-8") as f:
            folders.setdefault(os.path.dirname(path), {})[os.path.basename(path)] = f.read()
    return folders


def include_edges(folder, texts, unit):
    """Between the files of one folder; `unit` tells what a file is part of."""
    edges = {unit(name): set() for name in texts}
    for name, text in texts.items():
        for include in INCLUDE.findall(text):
            head, rest = os.path.split(include)
            is_near = rest in texts and (not head or folder.endswith(head))
            if is_near and unit(rest) != unit(name):
                edges[unit(name)].add(unit(rest))
    return edges


def call_edges(texts):
    """file.c -> files of the same folder whose functions it calls, one thing's own calls left out."""
    units = {name: text for name, text in texts.items() if name.endswith(".c")}
    home = {f: name for name, text in units.items() for f in DEFINITION.findall(text)}
    same = {name: {name} for name in units}
    edges = {}
    for name, text in units.items():
        opening = re.match(r"(?://[^\n]*\n)*", text).group().replace("\n//", "")
        for said in ONE_THING.findall(opening):
            for other in re.findall(r"[a-z0-9.-]+\.c", said):
                same[name].add(other)
                same.setdefault(other, {other}).add(name)
        code = re.sub(r"//[^\n]*", "", text)
        edges[name] = {home[f] for f in re.findall(r"\b(\w+)\(", code) if f in home}
    return {name: edges[name] - same[name] for name in edges}


def circle_faults(folder, texts):
    faults = []
    # Headers alone, then each with its .c: a.c that includes b.h, and b.c that includes a.h.
    headers = {name: text for name, text in texts.items() if name.endswith(".h")}
    for what, edges in (
            ("headers", include_edges(folder, headers, lambda name: name)),
            ("files", include_edges(folder, texts, lambda name: name[:-2]))):
        for members in circles(edges):
            faults.append(f"{folder}: {what} include each other in a circle: {', '.join(members)}")
    if folder in NO_CALL_CIRCLES:
        for members in circles(call_edges(texts)):
            faults.append(f"{folder}: files call each other in a circle: {', '.join(members)}")
    return faults


def test_circles(root):
    faults = []
    for folder, texts in sorted(by_folder(root).items()):
        here = circle_faults(folder, texts)
        if folder not in CIRCLES_LEFT:
            faults += here
        elif not here:
            faults.append(f"{folder} has no circle left: take it off CIRCLES_LEFT in layering.py")
    return faults


def test_circles_bite(root):
    faults = []
    a, b = "int a(void)\n{\n    return b();\n}\n", "int b(void)\n{\n    return a();\n}\n"
    for name, texts, n in (
            ("headers", {"a.h": '#include "b.h"', "b.h": '#include "nbd/a.h"'}, 2),
            ("a file and its header", {"a.c": '#include "b.h"', "a.h": "", "b.h": "",
                                       "b.c": '#include "a.h"'}, 1),
            ("calls", {"a.c": a, "b.c": b}, 1),
            ("calls within one thing", {"a.c": "// Why. One thing\n// with b.c.\n" + a, "b.c": b},
             0),
            ("no circle", {"a.c": '#include "b.h"\n' + a, "b.h": "", "b.c": "int b(void)\n{\n}\n"},
             0)):
        found = circle_faults("nbd", texts)
        if len(found) != n:
            faults.append(f"{name}: {len(found)} circles, not {n}: {found}")
    return faults


def test_headers(root):
    flags = subprocess.run(["pkg-config", "--cflags", "glib-2.0", "liburing"], text=True,
                           stdout=subprocess.PIPE, check=True).stdout
    args = ["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-fsyntax-only", "-Wall", "-Wno-unused-function",
            *shlex.split(flags)]
    for include in ("libchain/include", "libchain", "nbd/include", "nbd", "jobs/include", "jobs",
                    "."):
        args += ["-I", include]
    faults = []
    with tempfile.TemporaryDirectory() as tmp:
        for path in sources(root):
            if not path.endswith(".h"):
                continue
            one = os.path.join(tmp, "one.c")
            with open(one, "w", encoding="utf-8") as f:
                f.write(f'#include "{path}"\n#include "{path}"\n')
            done = subprocess.run([*args, one], cwd=root, text=True, stderr=subprocess.PIPE)
            if done.returncode:
                faults.append(f"{path} does not compile alone: {done.stderr.splitlines()[0]}")
    return faults


def main():
    root = os.path.abspath(sys.argv[1])
    failed = 0
    tests = [("folders include only what lies below them", test_includes),
             ("a forbidden include is noticed", test_the_rules_bite),
             ("the files of a folder make no circles", test_circles),
             ("a circle is noticed", test_circles_bite),
             ("each header compiles alone and twice", test_headers)]
    for i, (name, test) in enumerate(tests, 1):
        faults = test(root)
        for line in faults:
            print(f"# {line}")
        print(f"{'not ok' if faults else 'ok'} {i} - {name}")
        failed += bool(faults)
    return 1 if failed else 0


raise SystemExit(main())

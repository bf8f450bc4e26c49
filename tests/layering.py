#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may include whom (docs/architecture.md), read from the #include lines; and every header
compiles alone.

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
    "node": {"node", "io", "loop", "base"},
    "bitmap": {"bitmap", "node", "io", "loop", "base"},
    "qcow2": {"qcow2", "format", "node", "io", "loop", "base"},
    "chain": {"chain", "node", "io", "loop", "base"},
}
# Which folder of libchain a header of include/chain-core/ belongs to.
CORE = {
    "units.h": "base", "map-memory.h": "base",
    "fiber.h": "loop", "fiber-sync.h": "loop", "loop.h": "loop", "io-batch.h": "loop",
    "remote-call.h": "loop",
    "file.h": "io", "stream.h": "io", "sim.h": "sim",
    "node.h": "node", "port.h": "node", "raw.h": "node",
    "qcow2.h": "qcow2", "qcow2-check.h": "qcow2", "qcow2-create.h": "qcow2",
    "chain.h": "chain",
}
# The chain opens its layers by their drivers' headers, never by their insides.
CORE_EXTRA = {"chain": {"qcow2.h", "qcow2-check.h", "qcow2-create.h"}}
# Outside libchain: whose include folders may be seen.
OUTSIDE = {
    "nbd": {"chain-core", "chain"},
    "jobs": {"chain-core", "chain"},
    "daemon": {"chain-core", "chain", "nbd", "jobs"},
}


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
           ("libchain/io/x.c", "host/y.h"), ("daemon/x.c", "format/qcow2-header.h")]
    return [f"{a} including {b} was not noticed" for a, b in bad if not fault(root, a, b)]


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
             ("each header compiles alone and twice", test_headers)]
    for i, (name, test) in enumerate(tests, 1):
        faults = test(root)
        for line in faults:
            print(f"# {line}")
        print(f"{'not ok' if faults else 'ok'} {i} - {name}")
        failed += bool(faults)
    return 1 if failed else 0


raise SystemExit(main())

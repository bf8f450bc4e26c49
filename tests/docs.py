#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The documents against the sources: what docs/architecture.md names is there, and what documents
link to.

usage: docs.py SOURCE-ROOT
"""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
FOLDERS = ("libchain", "nbd", "jobs", "daemon", "tests", "systemd", "docs")
files = [p for folder in FOLDERS for p in sorted((root / folder).rglob("*")) if p.is_file()]
text = {p: p.read_text("utf-8") for p in files
        if p.suffix in (".c", ".h", ".S", ".py", ".sh", ".md", ".pod", ".build")}
sources = "\n".join(t for p, t in text.items() if p.suffix in (".c", ".h", ".py", ".sh"))
names = {p.relative_to(root).as_posix() for p in files}
documents = [*(p for p in text if p.suffix == ".md"), root / "README.md"]


def is_there(name):
    """Is the `name` of a document a file or folder (below any folder), a function or another word of
    the sources? Names with a `…` stand for many."""
    if "…" in name or "*" in name or " " in name:
        return True
    if "/" in name or re.search(r"\.(c|h|py|md|sh|build)$", name):
        wanted = re.sub(r"\.\{c,h\}$", ".c", name).rstrip("/")
        return any(n == wanted or n.endswith(f"/{wanted}") or f"{wanted}/" in f"/{n}"
                   for n in names) or (root / wanted).exists()
    return re.search(rf"(?<!\w){re.escape(name.removesuffix('()'))}(?!\w)", sources)


def unknown_names():
    page = (root / "docs/architecture.md").read_text("utf-8")
    page = re.sub(r"^    .*$", "", page, flags=re.M)
    return [f"docs/architecture.md names {name}" for name in re.findall(r"`([^`]+)`", page)
            if not is_there(name)]


def unknown_links():
    return [f"{p.relative_to(root)} links to {link}" for p in documents
            for link in re.findall(r"\]\(([^)#:]+)\)", text.get(p) or p.read_text("utf-8"))
            if not (p.parent / link).exists()]


checks = [("what docs/architecture.md names is there", unknown_names),
          ("what documents link to is there", unknown_links)]
is_good = True
for n, (sentence, check) in enumerate(checks, 1):
    wrong = check()
    is_good &= not wrong
    print("".join(f"# {line}\n" for line in wrong), end="")
    print(f"{'not ' if wrong else ''}ok {n} - {sentence}")
print(f"1..{len(checks)}")
sys.exit(0 if is_good else 1)

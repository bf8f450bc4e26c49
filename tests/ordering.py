#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each paragraph of docs/ordering.md is named by code that keeps it, and by a test that cuts the power.

usage: ordering.py SOURCE-ROOT
"""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
PLACES = {
    "code": [*root.glob("libchain/qcow2/*.[ch]"), *root.glob("libchain/io/*.c"),
             *root.glob("libchain/node/*.c"), *root.glob("libchain/chain/*.c"),
             *root.glob("jobs/*.c")],
    "a test": [*root.glob("tests/crash/*.c"), *root.glob("tests/qcow2/test-*power.c"),
               root / "tests/chain/test-external-snapshot.c", root / "tests/jobs/test-commit.c",
               root / "tests/jobs/test-mirror.c", root / "tests/jobs/test-filter-copy-before.c",
               root / "tests/jobs/test-backup.c"],
}


def named(paths):
    """Numbers of the paragraphs that occur. A file says once that it speaks of docs/ordering.md."""
    texts = [p.read_text(encoding="utf-8") for p in paths]
    return {int(n) for text in texts if "docs/ordering.md" in text for n in re.findall(r"§(\d+)", text)}


paragraphs = re.findall(r"^## §(\d+) (.*)$", (root / "docs/ordering.md").read_text("utf-8"), re.M)
missing = [f"§{number} ({title}): no {place} names it"
           for place, paths in PLACES.items() for number, title in paragraphs
           if int(number) not in named(paths)]
print("".join(f"# {line}\n" for line in missing), end="")
ok = paragraphs and not missing
print(f"{'' if ok else 'not '}ok 1 - each paragraph of docs/ordering.md has its code and its test\n1..1")
sys.exit(0 if ok else 1)

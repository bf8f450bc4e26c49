#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/qmp.md is what chaind would write today.

usage: reference.py CHAIND SOURCE-ROOT      (CHAIND --qmp-reference >docs/qmp.md makes it so)
"""
import difflib
import pathlib
import subprocess
import sys

chaind, root = sys.argv[1:]
page = pathlib.Path(root, "docs/qmp.md").read_text("utf-8")
now = subprocess.run([chaind, "--qmp-reference"], stdout=subprocess.PIPE, text=True, check=True).stdout
changes = list(difflib.unified_diff(page.splitlines(), now.splitlines(), "docs/qmp.md", "now", lineterm="", n=0))
for line in changes:
    print(f"# {line}")
is_good = not changes and len(now) > 1000
print(f"{'' if is_good else 'not '}ok 1 - docs/qmp.md is current\n1..1")
sys.exit(0 if is_good else 1)

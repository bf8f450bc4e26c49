#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every test that README.md names, and every file, is there."""
import pathlib
import re
import sys

here = pathlib.Path(__file__).parent
rows = [line for line in (here / "README.md").read_text("utf-8").splitlines() if line.startswith("| ")]
missing, n = [], 0
for row in rows:
    # "folder/file: `name`, `name`; folder/file: …" in the last column
    for path, names in re.findall(r"([a-z]+/[\w-]+\.(?:c|py))((?:: )?(?:(?:, )?`[^`]+`)*)", row):
        file = here / path
        text = file.read_text("utf-8") if file.exists() else ""
        n += 1
        missing += [] if text else [f"no {path}"]
        missing += [f"{path} has no {name}" for name in re.findall(r"`([^`]+)`", names)
                    if not re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", text)]
print("".join(f"# {line}\n" for line in missing), end="")
ok = n > 50 and not missing
print(f"{'' if ok else 'not '}ok 1 - the tests that README.md names exist\n1..1")
sys.exit(0 if ok else 1)

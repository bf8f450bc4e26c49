#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""tally.py counts what TAP lines say, and tells why tests were skipped."""
import json
import pathlib
import subprocess
import sys
import tempfile

PROGRAMS = [
    ("a", "OK", "1..4\n# SKIP no qemu here\nnot ok 1 # SKIP cmocka_skips\nok 2 - fine\n"
                "ok 3 - python skips # SKIP no disk\nnot ok 4 # SKIP cmocka_is_silent\n"),
    ("b", "SKIP", "1..0 # SKIP nothing can run\n"),
    ("c", "FAIL", "ok 1 - fine\nnot ok 2 - broken\n"),
    ("d", "FAIL", "ok 1 - fine\n"),  # died
    ("e", "OK", "no TAP at all\n"),
]
WANT = """skipped: a: cmocka_skips: no qemu here
skipped: a: python skips: no disk
skipped: a: cmocka_is_silent: it does not say why
skipped: b: nothing can run
failed: c: broken
failed: d: fail, exit status 1
4 passed, 2 failed, 4 skipped
"""

with tempfile.TemporaryDirectory() as tmp:
    log = pathlib.Path(tmp, "log.json")
    log.write_text("".join(json.dumps({"name": f"chaind:unit / {name}", "result": result,
                                       "returncode": 1, "stdout": text}) + "\n"
                           for name, result, text in PROGRAMS))
    done = subprocess.run([sys.executable, pathlib.Path(__file__).parent / "tally.py", f"s=0={log}"],
                          stdout=subprocess.PIPE, text=True)
ok = done.returncode == 1 and done.stdout.endswith(WANT)
print("".join(f"# {line}\n" for line in done.stdout.splitlines()) if not ok else "", end="")
print(f"{'' if ok else 'not '}ok 1 - reasons of skipped tests, failures and deaths are told\n1..1")
sys.exit(not ok)

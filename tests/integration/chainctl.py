# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of chainctl share: running it against a daemon, in a pipe or on a terminal."""
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import harness
from harness import HANG, Daemon, run

COLUMNS = 120

# As it is built beside the daemon under test.
path = os.environ.get("CHAINCTL", os.path.join(os.path.dirname(harness.chaind_path), "ctl/chainctl"))


class Tool:
    """chainctl for one control socket."""

    def __init__(self, socket):
        self.env = {**os.environ, "CHAIND_SOCKET": str(socket), "LC_ALL": "C.UTF-8"}
        self.env.pop("NO_COLOR", None)

    def run(self, *args, status=0, **env):
        """The finished process, whose exit status is `status`."""
        done = run(path, *args, check=False, env={**self.env, **env})
        assert done.returncode == status, (f"chainctl {' '.join(str(a) for a in args)}: exit status "
                                           f"{done.returncode}, not {status}\n{done.stdout}{done.stderr}")
        return done

    def out(self, *args):
        return self.run(*args).stdout

    def json(self, *args):
        return json.loads(self.out(*args, "--output=json"))

    def fails(self, *args, status):
        """Nothing on stdout and one line on stderr, which is returned."""
        done = self.run(*args, status=status)
        assert done.stdout == "", done.stdout
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("chainctl"), done.stderr
        return lines[0]


class Terminal:
    """chainctl on a terminal of its own."""

    def __init__(self, tool, *args, columns=COLUMNS):
        self.fd, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [path, *(str(a) for a in args)], stdin=other, stdout=other, stderr=other, env=tool.env,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(other)
        self.text = ""

    def read_until(self, pattern, group=0):
        """What comes, until it matches; the match."""
        deadline = time.monotonic() + HANG
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            assert self.read(1), f"ended without {pattern!r}: {self.text!r}"
        return match[group]

    def read(self, timeout):
        """False: it is at its end."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def wait(self, status=0):
        """Its end, with this exit status; all that it has written."""
        deadline = time.monotonic() + HANG
        while self.read(1):
            assert time.monotonic() < deadline, f"does not end: {self.text!r}"
        found = self.process.wait(HANG)
        os.close(self.fd)
        assert found == status, f"exit status {found}, not {status}: {self.text!r}"
        return self.text


@contextlib.contextmanager
def daemon(tmp, *args, cwd=None):
    """A daemon with a control socket in `tmp`; gives it and its Tool."""
    socket = tmp / "control.sock"
    with Daemon("--qmp", socket, "--nbd", tmp / "nbd.sock", *args, cwd=cwd or tmp) as running:
        yield running, Tool(socket)


def plain(text):
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)

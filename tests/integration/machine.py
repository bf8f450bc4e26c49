# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small machine with a real systemd, in namespaces of this one, with chaind installed in it. It takes
root; where that, or anything else it takes, is not to be had, the test is skipped with the reason."""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time

import harness
from harness import HANG, ROOT, Skip, run

SYSTEMD = "/lib/systemd/systemd"


def find_cgroup2():
    with open("/proc/mounts") as f:
        for line in f:
            _, place, kind, options, *_ = line.split()
            if kind == "cgroup2" and "rw" in options.split(","):
                return pathlib.Path(place)
    raise Skip("no cgroup2 file system to write to")


def install(build, destination):
    """What `meson install` puts where, without building anything."""
    done = run("meson", "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", destination,
               check=False)
    if done.returncode:
        raise Skip(f"meson install: {done.stderr.strip() or done.stdout.strip()}")


class Machine:
    def __init__(self, tmp):
        if os.geteuid() != 0:
            raise Skip("only root can make such a machine")
        for program in "unshare", "nsenter", "meson":
            harness.need_program(program)
        if not os.path.exists(SYSTEMD):
            raise Skip("systemd is not installed")
        build = pathlib.Path(harness.chaind_path).parents[1]
        install(build, tmp / "installed")
        self.cgroup = find_cgroup2() / f"chaind-test-{os.getpid()}"
        try:
            self.cgroup.mkdir()
        except OSError as e:
            raise Skip(f"no cgroup can be made: {e}")
        (tmp / "machine").mkdir()
        self.log = open(tmp / "console", "w+")
        try:
            self.process = subprocess.Popen(
                ["unshare", "-m", "-p", "-f", "-C", "-u", "-i", "-n", "--kill-child",
                 str(ROOT / "tests/integration/boot-systemd.sh"), str(tmp / "machine"),
                 str(tmp / "installed")],
                stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
                preexec_fn=lambda: (self.cgroup / "cgroup.procs").write_text(str(os.getpid())))
        except (OSError, subprocess.SubprocessError) as e:
            self.cgroup.rmdir()
            raise Skip(f"no process can be put into a cgroup: {e}")
        try:
            self.boot()
        except BaseException:
            self.end()
            raise

    def boot(self):
        deadline = time.monotonic() + 60
        self.init = None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Skip(f"no machine here: {self.console()[-300:]}")
            if self.is_up():
                return
            time.sleep(0.1)
        raise Skip(f"systemd does not come up here: {self.console()[-300:]}")

    def is_up(self):
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        with contextlib.suppress(OSError):
            self.init = open(children).read().strip()
            if os.path.basename(os.readlink(f"/proc/{self.init}/exe")) == "systemd":
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                return state in ("running", "degraded")
        return False

    def console(self):
        self.log.seek(0)
        return self.log.read()

    def command(self, *args):
        return ["nsenter", "-t", self.init, "-m", "-p", "-u", "-i", "-n", "-C", *map(str, args)]

    def run(self, *args, check=True, **kwargs):
        """A program in the machine, as root."""
        return run(*self.command(*args), check=check,
                   env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"},
                   **kwargs)

    def path(self, path):
        """Where a file of the machine is for this process."""
        return pathlib.Path(f"/proc/{self.init}/root{path}")

    def show(self, unit, what):
        return self.run("systemctl", "show", "-P", what, unit).stdout.strip()

    def journal(self, *args):
        return self.run("journalctl", "--no-pager", "-o", "cat", *args).stdout

    def wait(self, what, is_it, timeout=HANG):
        deadline = time.monotonic() + timeout
        while not (value := what()) or not is_it(value):
            assert time.monotonic() < deadline, f"after {timeout} s: {value}"
            time.sleep(0.05)
        return value

    def end(self):
        if self.init:
            with contextlib.suppress(OSError):
                os.kill(int(self.init), signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.log.close()
        with contextlib.suppress(OSError):
            for _ in range(100):
                groups = [d for d, _, _ in os.walk(self.cgroup, topdown=False)]
                for group in groups:
                    with contextlib.suppress(OSError):
                        os.rmdir(group)
                if not self.cgroup.exists():
                    break
                time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

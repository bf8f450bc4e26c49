# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk of the host that misbehaves as a test wants: nbdkit makes its content, nbdfuse shows it as
a file. Needs /dev/fuse and the right to mount."""
import contextlib
import os
import shutil
import subprocess
import time


class NoFuse(Exception):
    """The machine cannot do it; the text says why."""


def unmount(directory):
    """As root, or as the user who mounted it; also while somebody still has the file open."""
    for command in (["umount", "-l"], ["fusermount3", "-u", "-z"]):
        if os.path.ismount(directory) and shutil.which(command[0]):
            subprocess.run([*command, directory], stderr=subprocess.DEVNULL)


def deepen_queue(mount):
    """FUSE queues 12 requests, and then lets even those wait who asked not to; disks queue more."""
    control = "/sys/fs/fuse/connections"
    mounted = not os.path.ismount(control) and subprocess.run(
        ["mount", "-t", "fusectl", "fusectl", control], stderr=subprocess.DEVNULL).returncode == 0
    with contextlib.suppress(OSError):
        number = os.minor(os.stat(mount).st_dev)
        with open(f"{control}/{number}/max_background", "w") as f:
            f.write("1024")
    if mounted:
        subprocess.run(["umount", control])


@contextlib.contextmanager
def fuse_disk(directory, *nbdkit):
    """The path of a file that shows what `nbdkit` with these arguments serves."""
    for program in ("nbdfuse", "nbdkit"):
        if not shutil.which(program):
            raise NoFuse(f"{program} is not installed")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise NoFuse("/dev/fuse is not there for us")
    os.makedirs(directory)
    path = os.path.join(directory, "disk")
    log = open(f"{directory}.log", "w+")
    server = subprocess.Popen(["nbdfuse", path, "[", "nbdkit", *map(str, nbdkit), "]"],
                              stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        while not os.path.ismount(directory):
            if server.poll() is not None:
                log.seek(0)
                raise NoFuse(f"nbdfuse does not start: {log.read().strip()}")
            time.sleep(0.01)
        deepen_queue(directory)
        yield path
    finally:
        unmount(directory)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def write_script(path, **methods):
    """An nbdkit sh plugin: shell commands for the methods that matter; else 1 MiB of nothing."""
    table = {"get_size": "echo 1048576", "can_write": "exit 0", "can_flush": "exit 0",
             "pread": 'head -c "$3" /dev/zero', "pwrite": "cat >/dev/null", "flush": "exit 0",
             "config": "exit 0", **methods}
    with open(path, "w") as f:
        f.write("case $1 in\n")
        for name, command in table.items():
            f.write(f"{name}) {command} ;;\n")
        f.write("*) exit 2 ;;\nesac\n")
    os.chmod(path, 0o755)
    return path

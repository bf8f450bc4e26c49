# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks of the host that are as small as a test needs them."""
import contextlib
import os
import shutil
import subprocess

from harness import KIB, MIB, Skip, run


@contextlib.contextmanager
def file_system(tmp, size, *mkfs):
    """The directory of a new file system of `size` bytes, made by that command, or the test is skipped."""
    disk, directory = tmp / "disk", tmp / "full"
    with open(disk, "wb") as f:
        f.truncate(size)
    directory.mkdir()
    if not shutil.which(mkfs[0]):
        raise Skip(f"{mkfs[0]} is not installed")
    for command in ([*mkfs, disk], ["mount", "-o", "loop", disk, directory]):
        done = run(*command, check=False)
        if done.returncode:
            raise Skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        run("umount", "-l", directory, check=False)


def small_file_system(tmp, size):
    """An ext4 at tmp/full, of which nothing is set aside."""
    return file_system(tmp, size, "mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal")


def used_bytes(directory):
    s = os.statvfs(directory)
    return (s.f_blocks - s.f_bfree) * s.f_frsize


def fill(directory):
    """Takes all the room that is left, to the last block; the file that has it."""
    path = directory / "filler"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    off = 0
    with contextlib.closing(os.fdopen(fd, "wb", buffering=0)) as f:
        for step in (MIB, 64 * KIB, 4 * KIB, KIB):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(f.fileno(), off, step)
                    off += step
    run("sync", "-f", directory)
    return path


class LoopDevice:
    """A file as a block device that grows, like a logical volume."""

    def __init__(self, path, size):
        self.path = path
        with open(path, "wb") as f:
            f.truncate(size)
        made = subprocess.run(["losetup", "--show", "-f", path], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=False)
        if made.returncode:
            raise Skip(f"no loop device: {made.stderr.strip()}")
        self.device = made.stdout.strip()

    def grow(self, size):
        with open(self.path, "r+b") as f:
            f.truncate(size)
        run("losetup", "-c", self.device)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["losetup", "-d", self.device], check=False)

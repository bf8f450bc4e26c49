# SPDX-License-Identifier: LGPL-2.1-or-later
"""The last chapter of the demo: a disk that the daemon remembers, and chainctl, under a client that
writes all the time."""
import os
import re

import harness
from demo_client import BUSY_SIZE, Writer, content_after, newest_number, read_all, show, title
from harness import Daemon, qemu_img


def chainctl(tmp, line):
    """Types the line; returns what it prints."""
    tool = os.path.join(os.path.dirname(harness.chaind_path), "ctl")
    env = {**os.environ, "CHAIND_SOCKET": str(tmp / "control.sock"), "COLUMNS": "100",
           "PATH": f"{tool}:{os.environ['PATH']}"}
    return show(*f"chainctl {line}".split(), env=env, cwd=tmp)


def content_of(tmp, image):
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp / image, tmp / "content.raw")
    return (tmp / "content.raw").read_bytes()


def one_moment(content, what):
    """Is it what the disk was between two writes? The number of the last."""
    moment = newest_number(content)
    assert content == content_after(moment), f"{what} is not the disk of one moment"
    return moment


def points_and_backups(tmp, writer):
    """The writes between which web@tue was made."""
    chainctl(tmp, "snapshot web@mon")
    writer.wait_for(writer.n + 2000)
    chainctl(tmp, "backup web web-1.qcow2")
    writer.wait_for(writer.n + 2000)
    tuesday = [writer.n]
    chainctl(tmp, "snapshot web@tue")
    tuesday.append(writer.n + 1)  # one may be in flight
    writer.wait_for(writer.n + 2000)
    chainctl(tmp, "backup web web-2.qcow2 --since last")
    chainctl(tmp, "tree web")
    chainctl(tmp, "delete web@mon --dry-run")
    chainctl(tmp, "delete web@mon")
    return tuesday


def check_backups(tmp):
    first, second = (one_moment(content_of(tmp, f"web-{n}.qcow2"), f"backup {n}") for n in (1, 2))
    assert first < second, f"{first} < {second}"
    print(f"  web-1.qcow2 is the disk after write {first}, web-2.qcow2 after write {second}: the second\n"
          "  holds only what had changed, and stands on the first.")


def five_minutes(tmp):
    title("10. Disks that are remembered, with chainctl")
    args = ("--state", tmp / "state", "--qmp", tmp / "control.sock", "--nbd", tmp / "nbd.sock")
    print("  $ chaind --state state --qmp control.sock --nbd nbd.sock &")
    with Daemon(*args, cwd=tmp):
        uri = re.search(r"nbd\S+", chainctl(tmp, f"create web {BUSY_SIZE >> 20}M"))[0]
        writer = Writer(uri)
        writer.start()
        writer.wait_for(2000)
        print("  From now on a client writes.")
        tuesday = points_and_backups(tmp, writer)
        writer.enough.set()
        writer.join()
        assert read_all(uri) == content_after(writer.n), "the disk lacks writes"
        print(f"  All {writer.n} writes are there; the slowest took {writer.slowest * 1000:.1f} ms.")
    check_backups(tmp)

    print("  The daemon ends, and another one starts:")
    with Daemon(*args, cwd=tmp):
        chainctl(tmp, "ls")
        chainctl(tmp, "rollback web@tue")
        moment = one_moment(read_all(uri), "web@tue")
        assert tuesday[0] <= moment <= tuesday[1], f"{moment} is not within {tuesday}"
        print(f"  The disk is again what it was on tuesday, after write {moment}.")
        chainctl(tmp, "doctor --check")

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""chaind, QEMU and its tools keep out of each other's way."""
import os
import subprocess

from harness import Daemon, connect, fails, main, qemu_img, qemu_io, run, says


def image(tmp, name="a.qcow2"):
    qemu_img("create", "-q", "-f", "qcow2", tmp / name, "4M")
    return tmp / name


class Holder:
    """qemu-io with an image open."""

    def __init__(self, *args):
        self.process = subprocess.Popen(["qemu-io", *map(str, args)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.process.stdin.write("length\n")
        self.process.stdin.flush()
        while "MiB" not in self.process.stdout.readline():
            assert self.process.poll() is None, "qemu-io did not open the image"

    def __enter__(self):
        return self.process

    def __exit__(self, *_):
        self.process.communicate("quit\n")


def test_two_daemons(tmp):
    """A second chaind is refused an image that the first one serves, by the holder's name."""
    disk = image(tmp)
    with Daemon(disk) as d:
        says(fails(disk), "a.qcow2", "chaind", d.process.pid)


def test_twice_in_one_daemon(tmp):
    """One chaind cannot export one image twice for writing."""
    disk = image(tmp)
    says(fails(f"a={disk}", f"b={disk}"), "a.qcow2")


def test_qemu_first(tmp):
    """An image that QEMU has open for writing is refused; the sentence names QEMU."""
    disk = image(tmp)
    with Holder("-f", "qcow2", disk) as qemu:
        says(fails(disk), "a.qcow2", "qemu-io", qemu.pid)
        says(fails("--read-only", disk), "a.qcow2")
    with Daemon(disk):
        pass


def test_force_share(tmp):
    """--force-share reads an image that QEMU has open for writing."""
    disk = image(tmp)
    with Holder("-f", "qcow2", disk):
        with Daemon("--force-share", disk) as d:
            assert connect(d.uri()).is_read_only()


def test_chaind_first(tmp):
    """QEMU's tools refuse an image that chaind serves for writing, and read it with -U."""
    disk = image(tmp)
    with Daemon(disk):
        done = run("qemu-io", "-f", "qcow2", "-c", "write 0 4k", disk, check=False)
        says(done.stderr + done.stdout, "lock")
        done = run("qemu-img", "check", disk, check=False)
        assert done.returncode and "lock" in done.stderr, done.stderr
        qemu_img("info", "-U", disk)
        qemu_img("check", "-U", disk)
    qemu_io(disk, "write 0 4k")


def test_readers_share(tmp):
    """Two read-only daemons and qemu-io -r share an image; a writer is kept out."""
    disk = image(tmp)
    with Daemon("--read-only", disk), Daemon("--read-only", disk), Holder("-r", "-f", "qcow2", disk):
        says(fails(disk), "a.qcow2")


def test_shared_base(tmp):
    """Two overlays on one base are served by two daemons; nobody may write to the base."""
    base = image(tmp, "base.qcow2")
    tops = [tmp / "t1.qcow2", tmp / "t2.qcow2"]
    for top in tops:
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    with Daemon(tops[0]) as one, Daemon(tops[1]) as two:
        connect(one.uri()).pwrite(b"1" * 512, 0)
        connect(two.uri()).pwrite(b"2" * 512, 0)
        says(fails(base), "base.qcow2")
        done = run("qemu-io", "-f", "qcow2", "-c", "write 0 4k", base, check=False)
        says(done.stderr + done.stdout, "lock")
    with Daemon(base):
        pass


def test_shared_base_in_one_daemon(tmp):
    """One daemon serves many overlays of one base."""
    base = image(tmp, "base.qcow2")
    qemu_io(base, "write -P 7 0 4M")
    disks = []
    for i in range(10):
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp / f"t{i}.qcow2")
        disks.append(f"t{i}={tmp}/t{i}.qcow2")
    with Daemon("--loops", 2, *disks) as d:
        for i in range(10):
            h = connect(d.uri(f"t{i}"))
            h.pwrite(bytes([i]) * 512, 512)
            assert h.pread(1024, 0) == b"\7" * 512 + bytes([i]) * 512


def test_locks_end_with_kill(tmp):
    """The locks of a killed daemon are gone."""
    disk = image(tmp)
    d = Daemon(disk)
    d.kill()
    with Daemon(disk):
        pass


def test_same_bytes_as_qemu(tmp):
    """The lock bytes in /proc/locks are those that QEMU takes."""
    base = image(tmp, "base.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp / "top.qcow2")

    def locked():
        ids = {os.stat(tmp / n).st_ino: n for n in ("base.qcow2", "top.qcow2")}
        out = set()
        with open("/proc/locks", encoding="ascii") as f:
            for line in f:
                words = line.split()
                if words[1] != "OFDLCK":  # "->" is somebody who waits for another kind of lock
                    continue
                inode = int(words[5].split(":")[2])
                if inode in ids:
                    for byte in range(int(words[6]), int(words[7]) + 1):
                        out.add((ids[inode], words[3], byte))
        return out

    with Holder("-f", "qcow2", tmp / "top.qcow2"):
        want = locked()
    with Daemon(tmp / "top.qcow2"):
        got = locked()
    assert want, "qemu-io took no locks?"
    assert got == want, f"chaind: {sorted(got)}\nQEMU: {sorted(want)}"


main(globals())

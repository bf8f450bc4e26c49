#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cannot be served is refused in one sentence that names the file and the reason; damage found
later costs that image only, and a full disk loses nothing."""
import os
import random
import struct
import subprocess

import nbd

import harness
from harness import (KIB, MIB, Daemon, Skip, check_image, connect, fails, main, qemu_img, qemu_io,
                     run, says)


def image(tmp, name="a.qcow2", size="4M", options="cluster_size=64k"):
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, tmp / name, size)
    return tmp / name


def patch(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def test_missing(tmp):
    """A file that is not there."""
    says(fails(tmp / "no.qcow2"), "no.qcow2", "No such file")


def test_directory(tmp):
    """A directory."""
    says(fails(tmp), str(tmp))
    says(fails("--format", "raw", tmp), str(tmp))


def test_fifo(tmp):
    """A fifo is refused at once, without waiting for a writer."""
    os.mkfifo(tmp / "fifo")
    says(fails("--format", "raw", tmp / "fifo"), "fifo")


def test_permission(tmp):
    """A file that may not be written is refused with a word about --read-only, or served with it."""
    disk = image(tmp)
    disk.chmod(0o444)
    # Root without capabilities may no more than the owner of a file.
    done = run("setpriv", "--bounding-set=-all", "--inh-caps=-all", harness.chaind_path, disk,
               check=False)
    assert done.returncode == 1, done.stderr
    says(done.stderr, "a.qcow2", "Permission denied", "--read-only")
    with Daemon("--read-only", disk):
        pass


def test_missing_backing(tmp):
    """A backing file that is not there is named, and so is who wants it."""
    image(tmp, "base.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "base.qcow2", "-F", "qcow2", tmp / "t.qcow2")
    (tmp / "base.qcow2").unlink()
    says(fails(tmp / "t.qcow2"), "base.qcow2", "No such file")


def test_loop(tmp):
    """A chain that backs itself is refused."""
    a, b = image(tmp, "a.qcow2"), tmp / "b.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", a, "-F", "qcow2", b)
    qemu_img("rebase", "-u", "-b", b, "-F", "qcow2", a)
    says(fails(a), "qcow2")


def test_bad_headers(tmp):
    """Damaged headers are refused with the file's name, and the file is not touched."""
    good = image(tmp).read_bytes()
    bad = tmp / "bad.qcow2"
    for what, offset, data in [
            ("version", 4, struct.pack(">I", 99)),
            ("cluster bits small", 20, struct.pack(">I", 8)),
            ("cluster bits large", 20, struct.pack(">I", 40)),
            ("size", 24, struct.pack(">Q", 1 << 63)),
            ("encryption", 32, struct.pack(">I", 77)),
            ("L1 size small", 36, struct.pack(">I", 0)),
            ("L1 size large", 36, struct.pack(">I", 0x7fffffff)),
            ("L1 offset", 40, struct.pack(">Q", 12345)),
            ("refcount table offset", 48, struct.pack(">Q", 1 << 62)),
            ("refcount table clusters", 56, struct.pack(">I", 0xffffffff)),
            ("snapshots", 60, struct.pack(">I", 0xffffffff)),
            ("incompatible bits", 72, struct.pack(">Q", 1 << 40)),
            ("refcount order", 96, struct.pack(">I", 9)),
            ("header length", 100, struct.pack(">I", 1 << 30)),
            ("backing name length", 8, struct.pack(">QI", 200, 5000))]:
        bad.write_bytes(good)
        patch(bad, offset, data)
        before = bad.read_bytes()
        says(fails(bad), "bad.qcow2")
        assert bad.read_bytes() == before, what


def test_truncated(tmp):
    """A qcow2 file cut off anywhere is refused or served without a crash."""
    disk = image(tmp)
    qemu_io(disk, "write -P 1 0 1M")
    whole = disk.read_bytes()
    for n in (0, 3, 4, 71, 103, 511, 512, 65536, 65537, 131072, 200000, 262144, 300000):
        (tmp / "cut.qcow2").write_bytes(whole[:n])
        done = subprocess.run(["timeout", "-s", "TERM", "-k", "10", "1", harness.chaind_path,
                               "--read-only", tmp / "cut.qcow2"], capture_output=True, text=True)
        # 124: it was serving when the time was over.
        assert done.returncode in (1, 124), f"{n}: {done.returncode} {done.stderr}"


def test_unknown_feature_is_named(tmp):
    """An unknown incompatible feature is named from the image's own table."""
    disk = image(tmp)
    data = bytearray(disk.read_bytes())
    at = data.index(b"dirty bit") - 2
    patch(disk, at, bytes([0, 40]) + b"quantum foam".ljust(46, b"\0"))
    patch(disk, 72, struct.pack(">Q", 1 << 40))
    says(fails(disk), "quantum foam")


def l2_of(disk):
    """Host offset of the first L2 table."""
    with open(disk, "rb") as f:
        f.seek(40)
        f.seek(struct.unpack(">Q", f.read(8))[0])
        return struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00


def test_damage_at_run_time(tmp):
    """A damaged table gives EIO to its readers and a line in the log; other disks do not notice."""
    bad, good = image(tmp, "bad.qcow2"), image(tmp, "good.qcow2")
    qemu_io(bad, "write -P 1 0 1M")
    qemu_io(good, "write -P 2 0 1M")
    patch(bad, l2_of(bad), struct.pack(">Q", 1 << 63 | 0x123456789 << 9 | 0x200))
    d = Daemon(f"bad={bad}", f"good={good}")
    h, other = connect(d.uri("bad")), connect(d.uri("good"))
    try:
        h.pread(4096, 0)
    except nbd.Error as e:
        assert e.errno == "EIO", e
    else:
        raise AssertionError("data from a damaged entry")
    assert other.pread(4096, 0) == b"\2" * 4096
    other.pwrite(b"\3" * 4096, 0)
    other.shutdown()
    d.stop(expect=1)
    says(d.log(), "bad.qcow2", "corrupt")
    check_image(good)
    assert run("qemu-img", "check", bad, check=False).returncode == 2


def tiny_file_system(tmp, size):
    """A tmpfs of `size` at tmp/full, or Skip."""
    (tmp / "full").mkdir()
    done = run("mount", "-t", "tmpfs", "-o", f"size={size}", "chaind-test", tmp / "full", check=False)
    if done.returncode:
        raise Skip(f"cannot mount a small tmpfs here: {done.stderr.strip()}")
    return tmp / "full"


def test_disk_full(tmp):
    """With the host's disk full writes get ENOSPC, reads go on, and after space came back all works."""
    full = tiny_file_system(tmp, "8m")
    try:
        disk = image(full, size="64M")
        written = {}
        with Daemon(disk) as d:
            h = connect(d.uri())
            rng = random.Random(2)
            n_errors = 0
            for i in range(400):
                data = rng.randbytes(64 * KIB)
                try:
                    h.pwrite(data, i * 64 * KIB)
                    written[i] = data
                except nbd.Error as e:
                    assert e.errno == "ENOSPC", e
                    n_errors += 1
            assert n_errors > 100 and len(written) > 60, (n_errors, len(written))
            for i, data in written.items():
                assert h.pread(64 * KIB, i * 64 * KIB) == data, i
            run("mount", "-o", "remount,size=64m", full)
            for i in range(400):
                if i not in written:
                    written[i] = rng.randbytes(64 * KIB)
                    h.pwrite(written[i], i * 64 * KIB)
            h.flush()
            h.shutdown()
        check_image(disk)
        with Daemon("--read-only", disk) as d:
            h = connect(d.uri())
            for i, data in written.items():
                assert h.pread(64 * KIB, i * 64 * KIB) == data, i
    finally:
        run("umount", "-l", full, check=False)


def test_disk_full_at_flush(tmp):
    """A disk that stays full until the end leaves an image without corruption."""
    full = tiny_file_system(tmp, "4m")
    try:
        disk = image(full, size="64M", options="cluster_size=4k,refcount_bits=64")
        d = Daemon(disk)
        h = connect(d.uri())
        flushed = {}
        pending = {}
        for i in range(2000):
            data = struct.pack(">Q", i) * 512
            try:
                h.pwrite(data, i * 4096)
                pending[i] = data
                if i % 50 == 0:
                    h.flush()
                    flushed.update(pending)
                    pending.clear()
            except nbd.Error as e:
                assert e.errno in ("ENOSPC", "EIO"), e
        assert flushed
        h.shutdown()
        d.process.terminate()
        assert d.wait() in (0, 1)
        done = run("qemu-img", "check", disk, check=False)
        assert done.returncode in (0, 3), done.stdout
        with Daemon("--read-only", disk) as d:
            h = connect(d.uri())
            for i, data in flushed.items():
                assert h.pread(4096, i * 4096) == data, i
    finally:
        run("umount", "-l", full, check=False)


main(globals())

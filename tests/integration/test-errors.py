#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cannot be served is refused in one sentence that names the file and the reason; damage found
later costs that image only, and a full disk loses nothing."""
import bz2
import gzip
import json
import lzma
import os
import random
import struct
import time

import nbd

import harness
from fuse_disk import write_script
from harness import (KIB, MIB, Daemon, Skip, check_image, connect, fails, main, need_fuse_disk,
                     qemu_img, qemu_io, run, says)


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


def foreign_images(tmp, raw):
    """(path, words, suffix of what the command in the message makes) of files that are no qcow2."""
    for name, fmt, options, words in (
            ("sparse.vmdk", "vmdk", "", "VMDK"),
            ("split.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat", "VMDK"),
            ("dynamic.vhd", "vpc", "", "VHD"), ("fixed.vhd", "vpc", "subformat=fixed", "VHD"),
            ("a.vhdx", "vhdx", "", "VHDX"), ("a.vdi", "vdi", "", "VDI"), ("a.qed", "qed", "", "QED"),
            ("a.hdd", "parallels", "", "Parallels"), ("old.qcow2", "qcow", "", "qcow image of version 1")):
        qemu_img("convert", "-f", "raw", "-O", fmt, *(["-o", options] if options else []), raw,
                 tmp / name)
        yield tmp / name, [words, "qemu-img convert -O qcow2"], ".qcow2"
    iso = tmp / "a.iso"
    iso.write_bytes(raw.read_bytes())
    patch(iso, 32769, b"CD001")
    yield iso, ["ISO 9660", "qemu-img convert -O qcow2"], ".qcow2"
    data = raw.read_bytes()
    for name, packed, words in (("a.gz", gzip.compress(data), "gzip -dc"),
                                ("a.xz", lzma.compress(data), "xz -dc"),
                                ("a.bz2", bz2.compress(data), "bzip2 -dc")):
        (tmp / name).write_bytes(packed)
        yield tmp / name, [words], ""
    for name, start, words in (("a.zst", b"\x28\xb5\x2f\xfd", "zstd -dc"), ("a.zip", b"PK\3\4", "unzip"),
                               ("a.7z", b"7z\xbc\xaf\x27\x1c", "7z x"),
                               ("luks1", b"LUKS\xba\xbe\0\1", "qemu-img convert -O qcow2"),
                               ("luks2", b"LUKS\xba\xbe\0\2", "cryptsetup open")):
        (tmp / name).write_bytes(start + bytes(4096))
        yield tmp / name, [words], None


def test_foreign_images(tmp):
    """Images of other programs, compressed ones and archives are named, with the command that helps."""
    raw = harness.random_file(tmp / "in.raw", MIB)
    for path, words, suffix in foreign_images(tmp, raw):
        for args in [path], ["--format", "qcow2", path]:
            sentence = fails(*args)
            says(sentence, path.name, *words)
            assert "--format raw" not in sentence, sentence
        if suffix is None:
            continue
        command = sentence.split(" it: ")[1]
        run("sh", "-c", command, cwd=tmp)
        made = path.with_suffix(suffix) if path.name != "old.qcow2" else tmp / "old.new.qcow2"
        with Daemon(*([] if suffix else ["--format", "raw"]), "--read-only", made) as d:
            got = connect(d.uri()).pread(512 * KIB, 512 * KIB)
        assert got == raw.read_bytes()[512 * KIB:], path
        made.unlink()


def test_foreign_backing_image(tmp):
    """A backing file of another kind than its overlay records is named with the command that helps."""
    raw = harness.random_file(tmp / "base.raw", MIB)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "qcow2", tmp / "top.qcow2", "1M")
    command = f"qemu-img rebase -u -F raw -b base.raw {tmp}/top.qcow2"
    sentence = fails(tmp / "top.qcow2")
    says(sentence, "base.raw", "top.qcow2 records", command)
    assert "--format" not in sentence, sentence
    run("sh", "-c", command, cwd=tmp)
    with Daemon(tmp / "top.qcow2") as d:
        assert connect(d.uri()).pread(4096, 0) == raw.read_bytes()[:4096]
        assert notices(d) == []
    qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, tmp / "base.vmdk")
    qemu_img("rebase", "-u", "-F", "qcow2", "-b", "base.vmdk", tmp / "top.qcow2")
    says(fails(tmp / "top.qcow2"), "base.vmdk", "VMDK", "qemu-img convert -O qcow2")


def test_qcow2_served_as_raw(tmp):
    """A file with a qcow2 magic that is to be read as raw is, with one warning that says how to change it."""
    disk = image(tmp)
    with Daemon("--format", "raw", disk) as d:
        assert len(notices(d, 1)) == 1, d.log()
        says(notices(d)[0], "a.qcow2", "begins like a qcow2 image", "leave it out")
        assert connect(d.uri()).pread(4, 0) == b"QFI\xfb"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "a.qcow2", "-F", "raw", tmp / "top.qcow2", "4M")
    with Daemon(tmp / "top.qcow2") as d:
        assert len(notices(d, 1)) == 1, d.log()
        says(notices(d)[0], "a.qcow2", "top.qcow2 records it as raw",
             f"qemu-img rebase -u -F qcow2 -b a.qcow2 {tmp}/top.qcow2")
        assert connect(d.uri()).pread(4, 0) == b"QFI\xfb"


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


def test_permission_to_read(tmp):
    """Where not even reading is allowed, nobody is advised to try --read-only."""
    disk = image(tmp)
    disk.chmod(0)
    done = run("setpriv", "--bounding-set=-all", "--inh-caps=-all", harness.chaind_path, disk,
               check=False)
    assert done.returncode == 1, done.stderr
    says(done.stderr, "a.qcow2", "Permission denied")
    assert "--read-only" not in done.stderr, done.stderr


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
        d = Daemon("--read-only", tmp / "cut.qcow2", ready=False)
        d.ended_or_ready.wait(harness.HANG)
        if "chaind: ready" in d.lines:
            d.stop()
        else:
            assert d.wait() == 1, f"{n}: {d.log()}"


def is_cut_off(text, missing):
    """The sentence about a file that is too short by `missing` bytes or more, and what helps."""
    says(text, f"cut off, at least {missing} bytes are missing", "restore it from a copy",
         "'qemu-img check -r all' cannot")
    assert "repair it" not in text and "try 'qemu-img" not in text, text


def cut(disk, n):
    """A copy of the first `n` bytes."""
    path = disk.with_name("cut.qcow2")
    path.write_bytes(disk.read_bytes()[:n])
    return path


def test_cut_off_at_open(tmp):
    """Where a table is missing at the file's end: that it is cut off, and by how much."""
    disk = image(tmp)
    qemu_io(disk, "write -P 1 0 1M")
    assert l2_of(disk) == 4 * 64 * KIB  # header, refcount table and block, L1 table, L2 table
    for n, missing in ((65536, 8), (65539, 5), (131072, 65544), (196610, 6)):
        is_cut_off(fails(cut(disk, n)), missing)
        is_cut_off(fails("--read-only", cut(disk, n)), missing)
    for n in 200000, 262144:
        is_cut_off(fails(cut(disk, n)), 262145 - n)
    says(fails(cut(disk, 71)), "cut off", "71 of 72 bytes", "copy")


def test_cut_off_snapshot_table(tmp):
    """A snapshot table of which the end is missing."""
    disk = image(tmp)
    qemu_img("snapshot", "-c", "a-name", disk)
    at = feature_bits(disk, 64)
    for n, missing in ((at + 8, 32), (at + 44, 1)):
        is_cut_off(fails(cut(disk, n)), missing)


def test_cut_off_while_served(tmp):
    """Data or L2 tables that are missing: EIO for them, one line in the log, the rest is served."""
    disk = image(tmp)
    qemu_io(disk, "write -P 1 0 1M")
    data = 5 * 64 * KIB
    for args, n, at, missing in (("--read-only",), 200000, 0, 262145 - 200000), \
            (("--read-only",), data, 0, 1), (("--read-only",), data + 100000, 512 * KIB, 424289), \
            ((), data + 2 * 64 * KIB, 128 * KIB, 1), ((), data + 2 * 64 * KIB, MIB - 1, 851969):
        d = Daemon(*args, cut(disk, n))
        h = connect(d.uri())
        fails_with_eio(lambda: h.pread(1, at))
        if not args:
            assert h.pread(128 * KIB, 0) == b"\1" * (128 * KIB)
            fails_with_eio(lambda: h.pwrite(b"x", at))
        h.shutdown()
        d.stop(expect=0 if args else 1)
        is_cut_off(d.log(), missing)
        assert d.log().count("cut off") == 1, d.log()


def test_cut_off_compressed(tmp):
    """A compressed cluster that is missing."""
    raw = harness.random_file(tmp / "a.raw", 32 * KIB)
    raw.write_bytes((raw.read_bytes() + bytes(32 * KIB)) * 4)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, tmp / "a.qcow2")
    n = (tmp / "a.qcow2").stat().st_size - 80000
    with Daemon("--read-only", cut(tmp / "a.qcow2", n)) as d:
        fails_with_eio(lambda: connect(d.uri()).pread(1, 192 * KIB))
    says(d.log(), "cut off, at least", "restore it from a copy")


def test_cut_off_and_dirty(tmp):
    """What is missing is not made zeros by the repair of an image that was not closed cleanly."""
    disk = image(tmp)
    qemu_io(disk, "write -P 1 0 1M")
    patch(disk, 72, struct.pack(">Q", DIRTY))
    path = cut(disk, 7 * 64 * KIB)
    before = path.read_bytes()
    is_cut_off(fails(path), 14 * 64 * KIB - 65535)
    assert path.read_bytes() == before
    with Daemon("--read-only", path) as d:
        assert connect(d.uri()).pread(128 * KIB, 0) == b"\1" * (128 * KIB)


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


def feature_bits(disk, offset):
    return struct.unpack(">Q", disk.read_bytes()[offset:offset + 8])[0]


def incompatible_bits(disk):
    return feature_bits(disk, 72)


def autoclear_bits(disk):
    return feature_bits(disk, 88)


DIRTY, CORRUPT = 1, 2  # incompatible
BITMAPS = 1            # autoclear


def notices(daemon, n=0):
    """What the log says beside the usual. At least `n` lines are waited for: they are read aside."""
    usual = ("chaind: ready", "chaind: serving", "chaind: stopping", "chaind: stopped")
    end = time.monotonic() + harness.HANG
    while True:
        lines = [line for line in daemon.lines if not line.startswith(usual)]
        if len(lines) >= n or time.monotonic() > end:
            return lines
        time.sleep(0.01)


def fails_with_eio(request):
    try:
        request()
    except nbd.Error as e:
        assert e.errno == "EIO", e
    else:
        raise AssertionError("no error")


def test_damage_at_run_time(tmp):
    """A damaged table gives EIO to its readers and a line in the log; other disks do not notice."""
    bad, good = image(tmp, "bad.qcow2"), image(tmp, "good.qcow2")
    qemu_io(bad, "write -P 1 0 1M")
    qemu_io(good, "write -P 2 0 1M")
    patch(bad, l2_of(bad), struct.pack(">Q", 1 << 63 | 0x123456789 << 9 | 0x200))
    d = Daemon(f"bad={bad}", f"good={good}")
    h, other = connect(d.uri("bad")), connect(d.uri("good"))
    fails_with_eio(lambda: h.pread(4096, 0))
    assert other.pread(4096, 0) == b"\2" * 4096
    other.pwrite(b"\3" * 4096, 0)
    other.shutdown()
    d.stop(expect=1)
    says(d.log(), "bad.qcow2", "corrupt")
    check_image(good)
    assert run("qemu-img", "check", bad, check=False).returncode == 2
    assert incompatible_bits(bad) & CORRUPT  # the mark is on disk
    says(fails(bad), "bad.qcow2", "corrupt", "qemu-img check -r all", "--read-only")


def test_corrupt_bit(tmp):
    """An image marked corrupt is refused for writing, without a write, and served read-only."""
    disk = image(tmp)
    qemu_io(disk, "write -P 1 0 1M")
    patch(disk, 72, struct.pack(">Q", CORRUPT))
    before = disk.read_bytes()
    says(fails(disk), "a.qcow2", "corrupt", "qemu-img check -r all", "--read-only")
    with Daemon("--read-only", disk) as d:
        h = connect(d.uri())
        assert h.is_read_only() and h.pread(4096, 4096) == b"\1" * 4096
    assert disk.read_bytes() == before


def test_dirty_bit(tmp):
    """An image that was not closed cleanly is repaired when it is opened, and the log says so."""
    disk = image(tmp, options="lazy_refcounts=on")
    run("sh", "-c", f"ulimit -c 0; qemu-io -f qcow2 -c 'write -P 1 0 1M' -c flush -c abort {disk}",
        check=False)
    assert incompatible_bits(disk) & DIRTY
    before = disk.read_bytes()
    assert run("qemu-img", "check", disk, check=False).returncode == 2  # refcounts are too low
    with Daemon("--read-only", disk) as d:
        assert connect(d.uri()).pread(MIB, 0) == b"\1" * MIB
        assert notices(d) == [], d.log()
    assert disk.read_bytes() == before  # a read-only open repairs nothing
    with Daemon(disk) as d:
        assert len(notices(d, 1)) == 1, d.log()
        says(notices(d)[0], "a.qcow2", "not closed cleanly", "repaired")
        assert not incompatible_bits(disk) & DIRTY
        h = connect(d.uri())
        assert h.pread(MIB, 0) == b"\1" * MIB
        h.pwrite(b"\2" * MIB, MIB)
        h.shutdown()
    check_image(disk)
    with Daemon(disk) as d:
        assert connect(d.uri()).pread(2 * MIB, 0) == b"\1" * MIB + b"\2" * MIB
        assert notices(d) == [], d.log()


def bitmap_flags(disk):
    """{name: flags} as qemu-img tells them."""
    info = json.loads(qemu_img("info", "--output=json", "-U", disk))
    return {b["name"]: b["flags"] for b in info["format-specific"]["data"].get("bitmaps", [])}


def test_bitmaps(tmp):
    """Persistent bitmaps are marked in use before the first write and not earlier; after a kill QEMU distrusts them."""
    disk = image(tmp)
    qemu_img("bitmap", "--add", disk, "one")
    qemu_img("bitmap", "--add", "--disable", disk, "two")
    assert bitmap_flags(disk) == {"one": ["auto"], "two": []}
    before = disk.read_bytes()
    with Daemon("--read-only", disk) as d:
        connect(d.uri()).pread(4096, 0)
        assert notices(d) == [], d.log()
    assert disk.read_bytes() == before  # a read-only open changes nothing
    patch(disk, 88, struct.pack(">Q", BITMAPS | 1 << 5))
    before = disk.read_bytes()
    with Daemon(disk) as d:
        h = connect(d.uri())
        h.pread(4096, 0)
        h.flush()
        assert notices(d) == [], d.log()
    assert disk.read_bytes() == before  # nor does one for writing, while nothing is written
    d = Daemon(disk)
    h = connect(d.uri())
    h.pwrite(b"x" * 4096, 0)
    h.flush()
    assert autoclear_bits(disk) == BITMAPS
    assert bitmap_flags(disk) == {"one": ["in-use", "auto"], "two": ["in-use"]}
    d.kill()
    check_image(disk)
    done = run("qemu-img", "bitmap", "--merge", "two", disk, "one", check=False)
    assert done.returncode, "QEMU still uses the bitmap"
    says(done.stderr, "inconsistent")
    with Daemon(disk) as d:
        connect(d.uri()).pwrite(b"y" * 4096, 0)
        assert len(notices(d)) == 1, d.log()
        says(notices(d)[0], "a.qcow2", "2 of its 2", "inconsistent", "in use")
    assert bitmap_flags(disk) == {"one": ["in-use", "auto"], "two": ["in-use"]}
    qemu_img("bitmap", "--remove", disk, "one")
    qemu_img("bitmap", "--remove", disk, "two")
    check_image(disk)


def test_ignored_bitmaps(tmp):
    """Bitmaps whose autoclear bit is 0 are ignored, without a word."""
    disk = image(tmp)
    qemu_img("bitmap", "--add", disk, "one")
    patch(disk, 88, struct.pack(">Q", 0))
    with Daemon(disk) as d:
        connect(d.uri()).pwrite(b"x" * 4096, 0)
        assert notices(d) == [], d.log()
    assert autoclear_bits(disk) == 0


def test_unknown_autoclear_bit(tmp):
    """An unknown autoclear bit is 0 before the first write, and kept while nothing is written."""
    disk = image(tmp)
    patch(disk, 88, struct.pack(">Q", 1 << 40))
    before = disk.read_bytes()
    with Daemon("--read-only", disk) as d:
        connect(d.uri()).pread(4096, 0)
    assert disk.read_bytes() == before
    with Daemon(disk) as d:
        h = connect(d.uri())
        assert h.pread(4096, 0) == bytes(4096)
        assert autoclear_bits(disk) == 1 << 40
        h.pwrite(b"x" * 4096, 0)
        assert autoclear_bits(disk) == 0
    check_image(disk)


def test_data_file_name(tmp):
    """A data file's name is a plain file name: json:, paths and protocols open nothing."""
    secret = tmp / "secret"
    secret.write_bytes(b"s" * MIB)
    (tmp / "dir").mkdir()
    for name in ('json:{"file":{"driver":"file","filename":"../secret"}}', "../secret", str(secret),
                 "json:{}", "nbd://localhost/secret", "file:secret", ".", ".."):
        placeholder = "d" * len(name)
        disk = tmp / "dir/a.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={placeholder}", "a.qcow2", "1M",
                 cwd=tmp / "dir")
        head = b"DATA" + struct.pack(">I", len(name))  # the header extension, spec "External data file name"
        data = disk.read_bytes()
        assert head + placeholder.encode() in data
        disk.write_bytes(data.replace(head + placeholder.encode(), head + name.encode()))
        says(fails("--read-only", disk), "a.qcow2", "data file")
        says(fails(disk), "a.qcow2")
        disk.unlink()


def failed(call):
    """The error that `call` raises."""
    try:
        call()
    except nbd.Error as e:
        return e.errno
    raise AssertionError("it succeeded")


def test_host_errors_are_told(tmp):
    """EIO of the backing storage is one line with disk, file, offset and reason, however often it fails."""
    script = write_script(tmp / "storage",
                          pread='if test "$4" -ge 524288; then echo "EIO no" >&2; exit 1; fi; '
                                'head -c "$3" /dev/zero',
                          pwrite='echo "ENOSPC full" >&2; exit 1')
    with need_fuse_disk(tmp / "mnt", "sh", script) as base:
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", tmp / "top.qcow2", "1M")
        with Daemon(f"web={tmp}/top.qcow2") as d:
            h = connect(d.uri("web"))
            assert h.pread(4096, 0) == bytes(4096)
            for _ in range(20):
                assert failed(lambda: h.pread(4096, 786432)) == "EIO"
            assert len(notices(d, 1)) == 1, d.log()
            says(notices(d)[0], "disk 'web'", f"cannot read {base} at offset", "Input/output error")
            h.shutdown()
        says(d.log(), "disk 'web': 19 more failures of its files")


def test_broken_compressed_cluster_is_told(tmp):
    """A compressed cluster that cannot be decompressed is told with disk, file and offset."""
    raw = tmp / "in.raw"
    raw.write_bytes(b"text " * (256 * KIB))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, tmp / "a.qcow2")
    with open(tmp / "a.qcow2", "rb") as f:
        f.seek(l2_of(tmp / "a.qcow2"))
        offset = struct.unpack(">Q", f.read(8))[0] & ((1 << 54) - 1)
    patch(tmp / "a.qcow2", offset, b"\xff" * 64)
    with Daemon(tmp / "a.qcow2") as d:
        assert failed(lambda: connect(d.uri()).pread(4096, 0)) == "EIO"
        assert len(notices(d, 1)) == 1, d.log()
        says(notices(d)[0], f"disk '{tmp}/a.qcow2'", "cannot decompress a cluster of", "a.qcow2",
             f"at offset {offset}")


def test_resized_from_outside(tmp):
    """An image file that another program makes longer or shorter is one line for each time."""
    raw, disk = harness.random_file(tmp / "a.raw", MIB), image(tmp)
    with Daemon(f"raw={raw},format=raw", f"disk={disk}") as d:
        before = os.path.getsize(disk)
        for path, size in ((raw, 2 * MIB), (raw, 512 * KIB), (disk, before + MIB)):
            os.truncate(path, size)
            while not any(f"to {size} bytes" in line for line in d.lines):
                assert d.process.poll() is None, d.log()
                time.sleep(0.05)
        assert len(notices(d, 3)) == 3, d.log()
        says(notices(d)[0], "disk 'raw'", "a.raw", "from outside", f"from {MIB} to {2 * MIB} bytes")
        says(notices(d)[2], "disk 'disk'", "a.qcow2", f"from {before} to {before + MIB} bytes")


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

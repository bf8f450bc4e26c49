#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What clients see: copies in and out, maps, sizes, deep and odd chains, fio's verification."""
import contextlib
import json
import os
import random
import socket
import subprocess

import nbd

import harness
from harness import (GIB, HANG, KIB, MIB, Daemon, check_image, connect, main, need_fuse_disk, qemu_img,
                     qemu_io, random_file, run, same_content)
from images import Layer, make_chain, random_chain


def chain(tmp, seed=3, size=16 * MIB):
    layers = [Layer(fmt="raw"), Layer(cluster=4 * KIB), Layer(extended_l2=True),
              Layer(cluster=512, refcount_bits=1)]
    paths, _ = make_chain(random.Random(seed), tmp, layers, size)
    qemu_img("convert", "-O", "raw", paths[-1], tmp / "want.raw")
    return paths[-1]


def test_copy_out(tmp):
    """nbdcopy of a four-layer chain gives what qemu-img convert gives."""
    with Daemon(chain(tmp)) as d:
        run("nbdcopy", d.uri(), tmp / "got.raw")
    run("cmp", tmp / "got.raw", tmp / "want.raw")


def test_copy_out_direct(tmp):
    """The same with --direct."""
    harness.need_disk()
    with Daemon("--direct", chain(tmp)) as d:
        run("nbdcopy", d.uri(), tmp / "got.raw")
    run("cmp", tmp / "got.raw", tmp / "want.raw")


def test_copy_out_by_qemu(tmp):
    """qemu-img convert and compare read a chain over NBD."""
    top = chain(tmp)
    with Daemon(top) as d:
        qemu_img("convert", "-f", "raw", "-O", "raw", d.uri(), tmp / "got.raw")
        same_content(d.uri(), tmp / "want.raw", "raw")
    run("cmp", tmp / "got.raw", tmp / "want.raw")


def test_round_trip(tmp):
    """nbdcopy into a fresh image and out again; holes stay holes."""
    raw = random_file(tmp / "in.raw", 3 * MIB)
    with open(raw, "r+b") as f:
        f.truncate(256 * MIB)
        f.seek(200 * MIB)
        f.write(b"end" * 1000)
    for options in ("cluster_size=512", "cluster_size=64k", "cluster_size=2M,extended_l2=on"):
        disk = tmp / "a.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, disk, "256M")
        with Daemon(disk) as d:
            run("nbdcopy", "--flush", raw, d.uri())
            run("nbdcopy", d.uri(), tmp / "out.raw")
        run("cmp", raw, tmp / "out.raw")
        check_image(disk)
        same_content(disk, raw)
        assert os.stat(disk).st_blocks * 512 < 40 * MIB, options


def merged(extents):
    """[(start, length, word)] with equal neighbours joined."""
    out = []
    for start, length, word in extents:
        if out and out[-1][2] == word and out[-1][0] + out[-1][1] == start:
            out[-1] = (out[-1][0], out[-1][1] + length, word)
        else:
            out.append((start, length, word))
    return out


def map_of(uri_or_file, fmt):
    """qemu-img map: [(start, length, (data, zero))]."""
    entries = json.loads(qemu_img("map", "--output=json", "-f", fmt, "-U", uri_or_file))
    return merged([(e["start"], e["length"], (e["data"], e["zero"])) for e in entries])


def nbdinfo_map(*server):
    """nbdinfo --map of a URI or a command in the same words: base:allocation's hole is QEMU's "no data"."""
    entries = json.loads(run("nbdinfo", "--json", "--map", "--", *server).stdout)
    return merged([(e["offset"], e["length"], (not e["type"] & nbd.STATE_HOLE,
                                               bool(e["type"] & nbd.STATE_ZERO))) for e in entries])


DATA, HOLE, UNWRITTEN = (True, False), (False, True), (True, True)


def same_maps(top, *words, fmt="qcow2"):
    """All ways to ask for the map of `top` agree, qemu-nbd's too, and `words` occur in it."""
    want = map_of(top, fmt)
    for word in words:
        assert word in [w for _, _, w in want], (word, want)
    with Daemon("--read-only", "--format", fmt, top) as d:
        assert nbdinfo_map(d.uri()) == want, (nbdinfo_map(d.uri()), want)
        assert map_of(d.uri(), "raw") == want, (map_of(d.uri(), "raw"), want)
    with Daemon("--format", fmt, top) as d:  # the writable top answers from other tables
        assert nbdinfo_map(d.uri()) == want, (nbdinfo_map(d.uri()), want)
    theirs = nbdinfo_map("[", "qemu-nbd", "-r", "-f", fmt, top, "]")
    assert theirs == want, (theirs, want)
    return want


def test_map(tmp):
    """nbdinfo --map and qemu-img map over NBD are qemu-img map of the file: a chain of four layers."""
    assert len(same_maps(chain(tmp), DATA, HOLE)) > 8


def test_map_zero_clusters(tmp):
    """The same for zero clusters that keep their space, and that do not, over data."""
    for options in "cluster_size=64k", "cluster_size=4k", "cluster_size=64k,extended_l2=on":
        qemu_img("create", "-q", "-f", "qcow2", tmp / "b.qcow2", "8M")
        qemu_io(tmp / "b.qcow2", "write -P 9 0 5M")
        disk = tmp / f"{options}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", tmp / "b.qcow2", "-F", "qcow2",
                 disk)
        qemu_io(disk, "write -P 1 0 2M", "write -z 0 128k", "write -z -u 512k 128k",
                "write -z 4M 64k", "discard 1M 64k", "write -z 3M 6k", "write -z 1540k 8k")
        same_maps(disk, DATA, HOLE)


def test_map_preallocated(tmp):
    """The same for preallocated metadata: data that the host's file does not store reads as zeros."""
    for options in "cluster_size=64k", "cluster_size=4k,refcount_bits=8", "extended_l2=on":
        disk = tmp / f"{options}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options + ",preallocation=metadata", disk,
                 "64M")
        qemu_io(disk, "write -P 1 1M 100k", "write -z 3M 64k", "write -P 2 5M 4k", "discard 9M 1M")
        words = [HOLE] if "extended" in options else [DATA, HOLE, UNWRITTEN]
        same_maps(disk, *words)
        top = tmp / f"top-{options}.qcow2"  # and below another layer
        qemu_img("create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", top, "65M")
        qemu_io(top, "write -P 1 2M 100k", "write -P 2 40M 4k")
        same_maps(top, *words)


def test_map_reserved(tmp):
    """The same where the host reserved the space: QEMU does not look for holes then."""
    for mode in "falloc", "full":
        disk = tmp / f"{mode}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"preallocation={mode}", disk, "16M")
        qemu_io(disk, "write -P 1 1M 100k", "write -z 3M 64k")
        same_maps(disk, DATA, HOLE)


def test_map_compressed(tmp):
    """The same for compressed clusters, some of them written again."""
    raw = random_file(tmp / "in.raw", 2 * MIB)
    with open(raw, "ab") as f:
        f.truncate(8 * MIB)
    for kind in "zlib", "zstd":
        disk = tmp / f"{kind}.qcow2"
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", raw,
                 disk)
        qemu_io(disk, "write -P 1 256k 64k", "write -P 1 5M 64k", "write -z 1M 64k")
        same_maps(disk, DATA, HOLE)


def test_map_short_backing(tmp):
    """The same for a backing file shorter than its overlay, and a raw one with holes."""
    with open(tmp / "base.raw", "wb") as f:
        f.seek(MIB)
        f.write(b"x" * 70000)
        f.truncate(3 * MIB + 512)
    same_maps(tmp / "base.raw", DATA, HOLE, fmt="raw")
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "base.raw", "-F", "raw", tmp / "1.qcow2", "2M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", tmp / "1.qcow2", "-F",
             "qcow2", tmp / "2.qcow2", "9M")
    qemu_io(tmp / "2.qcow2", "write -P 1 8M 70k", "write -P 1 1040k 512")
    same_maps(tmp / "2.qcow2", DATA, HOLE)


def test_map_random(tmp):
    """The same for chains of random shapes."""
    for seed in range(12):
        layers = random_chain(1000 + seed)
        (tmp / str(seed)).mkdir()
        with contextlib.chdir(tmp / str(seed)):  # where QEMU looks for data files
            paths, _ = make_chain(random.Random(seed), tmp / str(seed), layers, 6 * MIB)
            same_maps(paths[-1], fmt=layers[-1].fmt)


def test_map_copied_sparsely(tmp):
    """The same for an image whose file lost the zeros among its data in a copy."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "16M")
    qemu_io(tmp / "a.qcow2", "write -P 1 0 1M", "write -P 0 1M 12M", "write -P 2 14M 1M")
    run("cp", "--sparse=always", tmp / "a.qcow2", tmp / "b.qcow2")
    same_maps(tmp / "b.qcow2", DATA, HOLE, UNWRITTEN)


def test_depth_map(tmp):
    """qemu:allocation-depth says from which layer each part comes."""
    for i in range(3):
        backing = ["-b", tmp / f"{i - 1}.qcow2", "-F", "qcow2"] if i else []
        qemu_img("create", "-q", "-f", "qcow2", *backing, tmp / f"{i}.qcow2", "4M")
        qemu_io(tmp / f"{i}.qcow2", f"write -P {i + 1} {i}M 1M")
    with Daemon(tmp / "2.qcow2") as d:
        out = json.loads(run("nbdinfo", "--json", "--map=qemu:allocation-depth", d.uri()).stdout)
    assert merged([(e["offset"] // MIB, e["length"] // MIB, e["type"]) for e in out]) == \
        [(0, 1, 3), (1, 1, 2), (2, 1, 1), (3, 1, 0)], out


def test_odd_size(tmp):
    """A raw image whose size is no multiple of 512 is served to its last byte."""
    raw = random_file(tmp / "a.raw", MIB + 7)
    with Daemon("--format", "raw", raw) as d:
        h = connect(d.uri())
        assert h.get_size() == MIB + 7
        assert h.pread(9, MIB - 2) == raw.read_bytes()[-9:]
        h.pwrite(b"tail", MIB + 3)
        h.shutdown()
    assert os.path.getsize(raw) == MIB + 7 and raw.read_bytes()[-4:] == b"tail"


def test_empty(tmp):
    """A disk of 0 bytes is served."""
    (tmp / "a.raw").touch()
    with Daemon("--format", "raw", tmp / "a.raw") as d:
        assert connect(d.uri()).get_size() == 0


def test_huge(tmp):
    """An 8 TiB image is written and read at its end."""
    disk = tmp / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", disk, "8T")
    with Daemon(disk) as d:
        h = connect(d.uri())
        end = h.get_size()
        assert end == 8192 * GIB
        h.pwrite(b"e" * 4096, end - 4096)
        h.flush()
        assert h.pread(8192, end - 8192) == bytes(4096) + b"e" * 4096
        h.shutdown()
    check_image(disk)
    assert "e" * 16 in qemu_io(disk, f"read -v {end - 4096} 512")


def test_deep(tmp):
    """A chain of 200 layers reads right."""
    rng = random.Random(5)
    shadow = bytearray(8 * MIB)
    for i in range(200):
        # Without -u qemu-img opens all layers below each time.
        backing = ["-u", "-b", f"{i - 1}.qcow2", "-F", "qcow2"] if i else []
        qemu_img("create", "-q", "-f", "qcow2", *backing, f"{i}.qcow2", "8M", cwd=tmp)
        if i % 10 == 0:
            at = rng.randrange(2000) * 4096
            qemu_io(tmp / f"{i}.qcow2", f"write -P {i % 250 + 1} {at} 16k")
            shadow[at:at + 16384] = bytes([i % 250 + 1]) * min(16384, len(shadow) - at)
    with Daemon(tmp / "199.qcow2") as d:
        got = connect(d.uri()).pread(8 * MIB, 0)
        assert got == shadow


def test_no_backing_format(tmp):
    """A backing file without a recorded format is refused, with the command that records it."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base.qcow2", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp / "top.qcow2")
    head = bytearray((tmp / "top.qcow2").read_bytes())
    at = head.index(bytes.fromhex("e2792aca"))
    head[at:at + 4] = b"\x01\x02\x03\x04"  # an extension that nobody knows
    (tmp / "top.qcow2").write_bytes(head)
    assert "backing file format" not in qemu_img("info", tmp / "top.qcow2")
    harness.says(harness.fails(tmp / "top.qcow2"), "top.qcow2", "base.qcow2", "format")


def test_relative_backing(tmp):
    """A relative backing name is found beside its overlay, wherever chaind runs."""
    (tmp / "sub").mkdir()
    qemu_img("create", "-q", "-f", "qcow2", tmp / "sub/b ä:x.qcow2", "1M")
    qemu_io(tmp / "sub/b ä:x.qcow2", "write -P 9 0 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "./b ä:x.qcow2", "-F", "qcow2",
             tmp / "sub/top.qcow2", cwd=tmp / "sub")
    with Daemon("sub/top.qcow2", cwd=tmp) as d:
        assert connect(d.uri()).pread(512, 0) == b"\t" * 512


def sector_client(d):
    """A client that says nothing of block sizes, and so may be able to address sectors only."""
    h = nbd.NBD()
    h.set_request_block_size(False)
    h.set_strict_mode(0)
    h.connect_uri(d.uri())
    return h


def test_last_sector_cut_short(tmp):
    """A raw disk of an odd size: exact for who asks, whole sectors for others, and it never grows."""
    size = 10000
    for args in [], ["--direct"]:
        raw = random_file(tmp / "odd.raw", size)
        content = bytearray(raw.read_bytes())
        with Daemon(*args, f"{raw},format=raw") as d:
            out = tmp / "copy"
            run("nbdcopy", d.uri(), out)
            assert out.read_bytes() == content
            h = sector_client(d)
            assert h.get_size() == 10240
            assert h.pread(512, 9728) == content[9728:] + bytes(240)
            content[9728:] = b"x" * 272
            h.pwrite(b"x" * 272 + bytes(240), 9728)
            for data in (b"y" * 272 + bytes(239) + b"z", b"z" * 512):
                try:
                    h.pwrite(data, 9728)
                except nbd.Error as e:
                    assert e.errno == "ENOSPC", e
                else:
                    raise AssertionError("it kept what lies after the end")
            assert h.pread(512, 9728) == content[9728:] + bytes(240)
            h.flush()
            h.shutdown()
        assert raw.read_bytes() == content, args


def test_last_sector_from_qemu(tmp):
    """QEMU, which rounds the size up for its guest, reads and writes the last sector of an odd disk."""
    raw = random_file(tmp / "odd.raw", 10000)
    with Daemon(f"{raw},format=raw") as d:
        qemu_io(d.uri(), "read -P 0 10000 240", "write -P 0 9728 512", "write -z 9216 1024",
                "discard 9728 512", "write -P 3 9216 784", "read -P 3 9216 784", "flush", fmt="raw")
        assert "virtual size: 10 KiB" in qemu_img("info", d.uri())
        qemu_img("map", d.uri())
        run("nbdinfo", "--map", d.uri())
    assert raw.read_bytes()[9216:] == b"\3" * 784


def test_json_name(tmp):
    """A json: name is a FILE."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    name = {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp / "a.qcow2")}}
    with Daemon("json:" + json.dumps(name)) as d:
        assert connect(d.uri()).get_size() == MIB


def test_data_file(tmp):
    """An image with an external data file is read."""
    raw = random_file(tmp / "in.raw", MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "a.qcow2", "2M",
             cwd=tmp)
    # QEMU looks for a relative data file in the current directory.
    run("qemu-io", "-f", "qcow2", "-c", f"write -s {raw} 64k 1M", "a.qcow2", cwd=tmp)
    qemu_img("convert", "-O", "raw", "a.qcow2", "want.raw", cwd=tmp)
    with Daemon("--read-only", tmp / "a.qcow2") as d:
        run("nbdcopy", d.uri(), tmp / "got.raw")
    run("cmp", tmp / "got.raw", tmp / "want.raw")


def fio(uri, *options):
    run("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--output-format=terse",
        "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0", "--randseed=7",
        *options, cwd="/tmp")


def test_fio_small(tmp):
    """fio verifies random 4 KiB writes in an overlay, 16 in flight."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base.qcow2", "64M")
    qemu_io(tmp / "base.qcow2", "write -P 1 0 64M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "base.qcow2", "-F", "qcow2",
             tmp / "top.qcow2")
    with Daemon(tmp / "top.qcow2") as d:
        fio(d.uri(), "--rw=randwrite", "--bs=4k", "--size=64m", "--io_size=32m", "--iodepth=16")
    check_image(tmp / "top.qcow2")


def test_fio_mixed(tmp):
    """fio verifies mixed reads and writes of mixed sizes, direct."""
    harness.need_disk()
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", tmp / "a.qcow2", "64M")
    with Daemon("--direct", tmp / "a.qcow2") as d:
        fio(d.uri(), "--rw=randrw", "--bsrange=512-128k", "--bs_unaligned=1", "--size=64m",
            "--io_size=32m", "--iodepth=16")
    check_image(tmp / "a.qcow2")


def test_space_comes_back(tmp):
    """What is trimmed is taken from the host's file, and the next write reuses it."""
    disk = tmp / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", disk, "64M")
    with Daemon(disk) as d:
        h = connect(d.uri())
        for round_number in range(4):
            for at in range(0, 32 * MIB, MIB):
                h.pwrite(random.Random(at).randbytes(MIB), at)
            h.flush()
            h.trim(32 * MIB, 0)
            h.flush()
        assert h.pread(MIB, 3 * MIB) == bytes(MIB)
        h.shutdown()
    check_image(disk)
    stat = os.stat(disk)
    assert stat.st_blocks * 512 < 8 * MIB, f"{stat.st_blocks * 512} bytes in use"
    assert stat.st_size < 80 * MIB, f"the file grew to {stat.st_size}"


def test_raw_and_qcow2(tmp):
    """One file below two disks, once as qcow2 and once as raw: each disk reads its own, also after writes."""
    qemu_img("create", "-q", "-f", "qcow2", f"{tmp}/base.qcow2", "16M")
    qemu_io(f"{tmp}/base.qcow2", "write -P 0x11 0 16M")
    for name, fmt in [("a", "qcow2"), ("b", "raw")]:
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", fmt, f"{tmp}/{name}.qcow2")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", f"{tmp}/{name}.qcow2", f"{tmp}/{name}.raw")
    for loops in 1, 2:
        with Daemon("--loops", loops, "--nbd", f"{tmp}/s", f"b={tmp}/b.qcow2",
                    f"a={tmp}/a.qcow2") as daemon:
            for name in "b", "a":
                run("nbdcopy", daemon.uri(name), f"{tmp}/copy.raw")
                same_content(f"{tmp}/copy.raw", f"{tmp}/{name}.raw", "raw", "raw")
            if loops == 2:
                connect(daemon.uri("a")).pwrite(b"\x22" * 4096, 4096)
    qemu_io(f"{tmp}/a.qcow2", "read -P 0x11 0 4k", "read -P 0x22 4k 4k", "read -P 0x11 8k 100k")


def test_slow_writes(tmp):
    """While a slow disk takes small writes, what else the client asks for is answered; when it is told
    to stop, or the client is gone, they are written nevertheless."""
    @contextlib.contextmanager
    def disk_is_paused():
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(f"{tmp}/control")
            control.sendall(b"p")
            assert control.recv(1) == b"P"
            yield
            control.sendall(b"r")
            assert control.recv(1) == b"R"

    def small_writes(h, at):
        return [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 4096)), at + i * 64 * KIB)
                for i in range(4)]

    def test(disk):
        with Daemon("--nbd", f"{tmp}/s", disk) as daemon:
            h = connect(daemon.uri())
            for turn in range(3):
                with disk_is_paused():
                    cookies = small_writes(h, turn * MIB)
                    assert h.pread(4096, 12 * MIB) == bytes(4096)
                    assert not any(h.aio_command_completed(cookie) for cookie in cookies)
                while h.aio_in_flight():
                    h.poll(-1)
            gone = connect(daemon.uri())
            with disk_is_paused():
                small_writes(gone, 4 * MIB)
                gone.pread(4096, 12 * MIB)  # the server has them all
                del gone
                small_writes(h, 8 * MIB)
                assert h.pread(4096, 12 * MIB) == bytes(4096)
                daemon.process.terminate()
                while not any("stopping" in line for line in daemon.lines):
                    os.sched_yield()
            assert daemon.wait() == 0, daemon.log()
        check_image(tmp / "storage")
        for turn in 0, 1, 2, 4, 8:
            qemu_io(tmp / "storage", *(f"read -P 0x78 {turn * MIB + i * 64 * KIB} 4k" for i in range(4)))

    qemu_img("create", "-q", "-f", "qcow2", tmp / "storage", "16M")
    os.truncate(tmp / "storage", 32 * MIB)  # it does not grow through FUSE
    with need_fuse_disk(tmp / "mnt", "--filter=pause", "file", tmp / "storage",
                        f"pause-control={tmp}/control") as disk:
        test(disk)


def test_closed_descriptors(tmp):
    """Started with 0, 1 and 2 closed, no log line ends up in the image."""
    with open(f"{tmp}/disk.raw", "wb") as f:
        f.truncate(MIB)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp}/s")
        listening.listen()
        fd = listening.fileno()
        # Activated, so that the image would be the first file to get a number below 3.
        command = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&{fd} 0<&- 1>&- 2>&-'
        process = subprocess.Popen(["/bin/sh", "-c", command, harness.chaind_path, "--format", "raw",
                                    "--loops", "1", f"{tmp}/disk.raw"], pass_fds=(fd,))
    h = connect(f"nbd+unix:///?socket={tmp}/s")
    assert h.pread(4096, 0) == bytes(4096)
    h.shutdown()
    assert process.wait(HANG) == 0
    with open(f"{tmp}/disk.raw", "rb") as f:
        assert f.read() == bytes(MIB)


def test_json_read_only(tmp):
    """A json: name that says read-only is served read-only, at whichever level it says so."""
    qemu_img("create", "-q", "-f", "qcow2", f"{tmp}/n.qcow2", "1M")
    file = {"driver": "file", "filename": f"{tmp}/n.qcow2"}
    for outer, inner in [(True, None), ("on", None), (None, True), (False, "off")]:
        name = {"driver": "qcow2", "file": dict(file)}
        if outer is not None:
            name["read-only"] = outer
        if inner is not None:
            name["file"]["read-only"] = inner
        with Daemon("--nbd", f"{tmp}/s", "json:" + json.dumps(name)) as daemon:
            expected = outer in (True, "on") or inner in (True, "on")
            assert connect(daemon.uri()).is_read_only() == expected, name


main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Streams and commits where layers are no plain qcow2 files: NBD exports of another server, block devices,
images with their data in a file of its own. qemu-img is the oracle of what comes out.

usage: test-job-bases.py [--chaind PATH] [WORD]...
"""
import contextlib
import os
import subprocess

from disks import LoopDevice
from harness import HANG, MIB, await_listener, main, qemu_img, run
from world import World

SIZE = 8 * MIB
# What the base shows, and what the top changes; the one ends inside clusters of the other.
BASE = ("write -q -P 1 0 3M", "write -q -P 2 3500k 700k", "write -q -P 3 7M 1M")
TOP = ("write -q -P 4 1M 1M", "write -q -P 5 3600k 5k", "write -q -z 7M 256k", "write -q -P 6 6M 64k")


# In the folder of the images, where qemu looks for data files.
def write(path, commands, fmt="qcow2"):
    words = [word for command in commands for word in ("-c", command)]
    out = run("qemu-io", "-f", fmt, *words, path, cwd=os.path.dirname(path)).stdout
    assert "rror" not in out and "failed" not in out, out


def check(path):
    run("qemu-img", "check", path, cwd=os.path.dirname(path))


def raw_content(tmp, path, fmt):
    raw = tmp / "content"
    qemu_img("convert", "-U", "-f", fmt, "-O", "raw", path, raw, cwd=tmp)
    data = raw.read_bytes()
    raw.unlink()
    return data


class FileBase:
    """A qcow2 image, perhaps with a data file."""

    def __init__(self, tmp, options="cluster_size=64k"):
        self.tmp, self.path = tmp, tmp / "base"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, self.path, SIZE, cwd=tmp)
        write(self.path, BASE)

    def describe(self):
        return {"driver": "qcow2", "file": {"driver": "file", "filename": str(self.path)}}

    def content(self):
        check(self.path)
        return raw_content(self.tmp, self.path, "qcow2")

    def stop(self):
        """Nobody but us uses it any more."""

    def close(self):
        """It goes."""


class DataFileBase(FileBase):
    def __init__(self, tmp):
        super().__init__(tmp, "data_file=base.data")


class RawDataFileBase(FileBase):
    def __init__(self, tmp):
        super().__init__(tmp, "data_file=base.data,data_file_raw=on")

    def content(self):
        data = super().content()
        assert (self.tmp / "base.data").read_bytes() == data, "the data file is not the disk"
        return data


class NbdBase:
    """What another server exports: the image that lies in `path`, in that format."""

    def __init__(self, tmp, fmt="raw"):
        self.tmp, self.path, self.fmt = tmp, tmp / "base", fmt
        run("qemu-img", "create", "-q", "-f", fmt, self.path, SIZE)
        write(self.path, BASE, fmt)
        self.serve(fmt)

    def serve(self, fmt, *options):
        self.socket = self.tmp / "base-socket"
        self.socket.unlink(missing_ok=True)
        self.server = subprocess.Popen(["qemu-nbd", "-f", fmt, "-t", "-k", self.socket, "-x", "base",
                                        "--discard=unmap", *options, self.path])
        await_listener(self.socket)

    def describe(self):
        return {"driver": "nbd", "export": "base",
                "server": {"type": "unix", "path": str(self.socket)}}

    def content(self):
        return raw_content(self.tmp, self.path, self.fmt)

    def stop(self):
        self.server.terminate()
        self.server.wait(HANG)

    close = stop


class ImageOnNbdBase(NbdBase):
    """A qcow2 image whose file is what another server exports."""

    def __init__(self, tmp):
        self.tmp, self.path, self.fmt = tmp, tmp / "base", "qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", self.path, SIZE)
        write(self.path, BASE)
        run("truncate", "-s", 2 * SIZE, self.path)  # an export does not grow
        self.serve("raw")

    def describe(self):
        return {"driver": "qcow2", "file": super().describe()}

    def content(self):
        check(self.path)
        return super().content()


class DeviceBase:
    """A block device that is the disk."""

    def __init__(self, tmp):
        self.tmp, self.device = tmp, LoopDevice(tmp / "base", SIZE)
        write(self.device.device, BASE, "raw")

    def describe(self):
        return {"driver": "host_device", "filename": self.device.device}

    def content(self):
        return raw_content(self.tmp, self.device.device, "raw")

    def stop(self):
        pass

    def close(self):
        self.device.__exit__()


class ImageOnDeviceBase(DeviceBase):
    """A qcow2 image on a block device."""

    def __init__(self, tmp):
        self.tmp, self.device = tmp, LoopDevice(tmp / "base", 2 * SIZE)
        qemu_img("create", "-q", "-f", "qcow2", self.device.device, SIZE)
        write(self.device.device, BASE)

    def describe(self):
        return {"driver": "qcow2", "file": super().describe()}

    def content(self):
        check(self.device.device)
        return raw_content(self.tmp, self.device.device, "qcow2")


def expected():
    """What the chain shows."""
    data = bytearray(SIZE)
    for off, length, value in ((0, 3072, 1), (3500, 700, 2), (7168, 1024, 3), (1024, 1024, 4),
                               (3600, 5, 5), (7168, 256, 0), (6144, 64, 6)):
        data[off * 1024:(off + length) * 1024] = bytes([value]) * length * 1024
    return bytes(data)


@contextlib.contextmanager
def chain(tmp, base, options):
    """A daemon with `base` and an overlay of it."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "top", SIZE, cwd=tmp)
    with World(tmp) as w:
        w.qmp.command("blockdev-add", **{"node-name": "base", "read-only": True, **base.describe()})
        w.add("top", tmp / "top", backing="base")
        w.export("top")
        w.io("top", *TOP)
        yield w


def run_job(w, command, **arguments):
    w.qmp.command(command, job_id="j", device="top", **arguments)
    if command == "block-commit":
        w.qmp.event("BLOCK_JOB_READY")
        w.qmp.command("job-complete", id="j")
    done = w.qmp.event("BLOCK_JOB_COMPLETED")
    assert "error" not in done and done["offset"] == done["len"], done


def try_both(tmp, make_base, options="cluster_size=64k"):
    for command in ("block-stream", "block-commit"):
        place = tmp / command
        place.mkdir()
        base = make_base(place)
        with contextlib.closing(base):
            with chain(place, base, options) as w:
                run_job(w, command)
                w.io("top", "read -q -P 4 1M 1M", "read -q -P 2 3700k 100k", "read -q -P 3 7500k 600k")
            base.stop()
            if command == "block-commit":
                result = base.content()
            else:
                check(place / "top")
                result = raw_content(place, place / "top", "qcow2")
            assert result == expected(), f"{command}: other content"


def test_nbd(tmp):
    """A base that is an NBD export"""
    try_both(tmp, NbdBase)


def test_qcow2_behind_nbd(tmp):
    """An NBD export of a qcow2 image, which the server alone knows to be one"""
    try_both(tmp, lambda place: NbdBase(place, "qcow2"))


def test_image_on_nbd(tmp):
    """A qcow2 base whose file is an NBD export"""
    try_both(tmp, ImageOnNbdBase)


def test_read_only_export(tmp):
    """An export that its server keeps read-only is streamed from, and not committed into"""
    base = NbdBase(tmp)
    base.stop()
    base.serve("raw", "-r")
    with contextlib.closing(base), chain(tmp, base, "cluster_size=64k") as w:
        said = w.qmp.error("block-commit", job_id="j", device="top")
        assert "is a read-only export" in said, said
        run_job(w, "block-stream")
    check(tmp / "top")
    assert raw_content(tmp, tmp / "top", "qcow2") == expected()


def test_device(tmp):
    """A base that is a block device"""
    try_both(tmp, DeviceBase)


def test_image_on_device(tmp):
    """A qcow2 base on a block device"""
    try_both(tmp, ImageOnDeviceBase)


def test_data_files(tmp):
    """A base with its data in a file of its own; a top with one; both"""
    for i, (base, options) in enumerate(((DataFileBase, "cluster_size=64k"),
                                         (FileBase, "data_file=top.data"),
                                         (DataFileBase, "data_file=top.data,cluster_size=4k"))):
        place = tmp / str(i)
        place.mkdir()
        try_both(place, base, options)


def test_raw_data_file(tmp):
    """A base whose data file is the disk, byte by byte, stays so"""
    try_both(tmp, RawDataFileBase)


if __name__ == "__main__":
    main(globals())

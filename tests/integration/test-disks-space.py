#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Room for what commands of disks are going to write: where there is too little they are refused before they
begin, with both figures, and only there."""
import os
import re
import time

from disks import LoopDevice, file_system, fill, small_file_system
from harness import MIB, main, qemu_img, qemu_io, random_file, says
from state import Service, content_of

ROOM = 8 * MIB
DATA = 24 * MIB


def leave(directory, room):
    """Takes all the room but so much; the file that has it."""
    filler = fill(directory)
    os.truncate(filler, filler.stat().st_size - room)
    return filler


def commands(directory):
    """Each with what it would fill `directory` with."""
    yield "disk-flatten", {}
    yield "disk-backup", {"target": str(directory / "backup")}
    yield "disk-mirror", {"target": str(directory / "qcow2")}
    yield "disk-mirror", {"target": str(directory / "raw"), "format": "raw"}


def await_pause(service, job):
    while next(j["status"] for j in service.command("query-jobs") if j["id"] == job) != "paused":
        time.sleep(0.01)


def test_refused(tmp):
    """What would not fit is refused with both figures, and leaves nothing; or begins, and waits for room"""
    random_file(tmp / "data", DATA)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "data", tmp / "base")
    with small_file_system(tmp, 64 * MIB) as small, Service(tmp) as s:
        for name, more in commands(small):
            s.command("disk-add", name="web", file=str(tmp / "base"), overlay=True, directory=str(small))
            s.write("web", 5, 1)
            content, before, files = s.content("web"), s.lasting("web"), s.files()
            filler = leave(small, ROOM)
            there = sorted(small.iterdir())
            answer = s.qmp.ask(name, disk="web", **more)
            assert answer["error"]["reason"] == "no-space", answer
            needed, free = map(int, re.search(r"needs (\d+) bytes at most, and there are (\d+)",
                                              answer["error"]["desc"]).groups())
            assert DATA - MIB < needed < DATA + MIB and ROOM - 2 * MIB < free < ROOM + 2 * MIB, answer
            assert (s.lasting("web"), s.files(), sorted(small.iterdir())) == (before, files, there)
            job = s.command(name, disk="web", check_space=False, **more)["job"]
            await_pause(s, job)
            filler.unlink()
            s.command("job-resume", id=job)
            s.well(job)
            assert s.content("web") == content
            s.command("disk-remove", name="web", delete_files=True)
            for path in small.glob("backup"):
                assert content_of(path) == content
                path.unlink()


def test_delete_anyway(tmp):
    """A point is deleted without room, too, where that is wanted"""
    with small_file_system(tmp, 64 * MIB) as small, Service(tmp) as s:
        random_file(tmp / "data", DATA)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "data", small / "web")
        s.command("disk-add", name="web", file=str(small / "web"))
        s.snapshot("web", "mon")
        content = s.content("web")
        filler = leave(small, ROOM)
        says(s.error("disk-delete-point", disk="web", point="mon"), "needs")
        job = s.command("disk-delete-point", disk="web", point="mon", check_space=False)["job"]
        await_pause(s, job)
        filler.unlink()
        s.command("job-resume", id=job)
        s.well(job)
        assert s.content("web") == content


def sources(tmp):
    """Images that show more than they have to be copied for."""
    compressible = bytes(range(256)) * 256
    qemu_img("create", "-q", "-f", "qcow2", tmp / "sparse", 512 * MIB)
    qemu_io(tmp / "sparse", "write -q 100M 1M")
    yield "sparse", "qcow2", {}
    with open(tmp / "holes", "wb") as f:
        f.truncate(512 * MIB)
        f.write(b"x" * MIB)
    yield "holes", "raw", {}
    (tmp / "plain").write_bytes(compressible * (DATA // len(compressible)))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", tmp / "plain", tmp / "compressed")
    yield "compressed", "qcow2", {}
    yield "plain", "raw", {"compress": True}


def test_not_refused(tmp):
    """Holes, zeros that are known, and what is or will be compressed need no room"""
    with small_file_system(tmp, 64 * MIB) as small, Service(tmp) as s:
        leave(small, ROOM)
        for image, fmt, more in sources(tmp):
            s.command("disk-add", name="web", file=str(tmp / image), format=fmt, export=False)
            s.well(s.command("disk-backup", disk="web", target=str(small / "b"), **more)["job"])
            qemu_img("compare", "-U", "-f", fmt, "-F", "qcow2", tmp / image, small / "b")
            (small / "b").unlink()
            if not more:
                s.well(s.command("disk-mirror", disk="web", target=str(small / "m"))["job"])
                qemu_img("compare", "-U", "-f", fmt, "-F", "qcow2", tmp / image, small / "m")
                (small / "m").unlink()
            s.command("disk-remove", name="web")


def test_shared(tmp):
    """Where blocks are shared nothing is asked"""
    with file_system(tmp, 512 * MIB, "mkfs.xfs", "-q", "-m", "reflink=1") as large, Service(tmp) as s:
        random_file(tmp / "data", DATA)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "data", large / "web")
        s.command("disk-add", name="web", file=str(large / "web"))
        s.snapshot("web", "mon")
        leave(large, ROOM)
        s.well(s.command("disk-backup", disk="web", target=str(large / "b"))["job"])
        s.well(s.command("disk-mirror", disk="web", target=str(large / "m"))["job"])
        s.snapshot("web", "tue")
        s.well(s.command("disk-flatten", disk="web")["job"])
        qemu_img("compare", "-U", "-f", "qcow2", "-F", "raw", large / "b", tmp / "data")
        assert s.content("web") == (tmp / "data").read_bytes()


def test_devices(tmp):
    """How much room a device has nobody knows, and the file system that it is on does not matter"""
    with small_file_system(tmp, 64 * MIB) as small:
        with LoopDevice(small / "device", 48 * MIB) as device, Service(tmp) as s:
            random_file(tmp / "data", DATA)
            with open(small / "device", "r+b") as f:
                os.posix_fallocate(f.fileno(), 0, 48 * MIB)
            qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "data", tmp / "base")
            qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", tmp / "base", device.device)
            s.command("disk-add", name="web", file=device.device, format="qcow2")
            content = s.content("web")
            fill(small)
            s.well(s.command("disk-flatten", disk="web")["job"])
            assert s.content("web") == content


main(globals())

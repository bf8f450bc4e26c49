#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images whose data lies in a file of its own are written as QEMU writes them: random requests
against a shadow, with qemu-img as the oracle and QEMU as another writer in between."""
import errno
import random

import nbd

from harness import KIB, MIB, Daemon, connect, main, run
from qmp_client import Qmp


class Disk:
    """An image with a data file, and what it should show. QEMU looks for the data file in the
    current directory, so its programs run there."""

    def __init__(self, tmp, seed):
        self.tmp, self.rng = tmp, random.Random(seed)
        self.is_raw, self.is_extended = seed % 2 == 1, seed // 2 % 2 == 1
        self.cluster = self.rng.choice([16 * KIB, 64 * KIB] if self.is_extended
                                       else [512, 4 * KIB, 64 * KIB])
        self.size = self.rng.choice([MIB, 3 * MIB, MIB + 512])
        self.path, self.shadow = tmp / "a.qcow2", bytearray(self.size)
        self.old = b""  # what the data file held
        self.make()

    def make(self):
        options = (f"data_file=data.raw,data_file_raw={'on' if self.is_raw else 'off'},"
                   f"cluster_size={self.cluster},extended_l2={'on' if self.is_extended else 'off'}")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, self.path, self.size,
            cwd=self.tmp)

    def random_request(self, h):
        rng, kind = self.rng, self.rng.random()
        start = rng.randrange(self.size)
        if kind >= 0.7 or rng.random() < 0.6:
            start -= start % self.cluster
        n = min(rng.choice((1, 512, 4096, self.cluster, 3 * self.cluster, 100000)), self.size - start)
        if kind < 0.5:
            data = rng.randbytes(n)
            h.pwrite(data, start)
            self.shadow[start:start + n] = data
        elif kind < 0.7:
            h.zero(n, start, nbd.CMD_FLAG_NO_HOLE if rng.random() < 0.4 else 0)
            self.shadow[start:start + n] = bytes(n)
        elif kind < 0.85:
            n = min(self.size - start, self.cluster * rng.randrange(1, 4))
            h.trim(n, start)
            self.shadow[start:start + n] = bytes(n)
        else:
            assert h.pread(n, start) == self.shadow[start:start + n], (start, n)

    def random_requests(self, h, n):
        for _ in range(n):
            self.random_request(h)
        assert h.pread(self.size, 0) == self.shadow

    def check(self):
        run("qemu-img", "check", self.path, cwd=self.tmp)
        (self.tmp / "want.raw").write_bytes(self.shadow)
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path, "want.raw", cwd=self.tmp)
        info = run("qemu-img", "info", self.path, cwd=self.tmp).stdout
        assert ("data file raw: true" in info) == self.is_raw, info
        if self.is_raw:
            data = (self.tmp / "data.raw").read_bytes()
            assert data[:self.size].ljust(self.size, b"\0") == self.shadow
            rest, old = data[self.size:], self.old[self.size:]
            assert rest.startswith(old) and not any(rest[len(old):])

    def written_by_qemu(self):
        run("qemu-io", "-f", "qcow2", "-c", "write -P 7 8k 100k", self.path, cwd=self.tmp)
        self.shadow[8 * KIB:108 * KIB] = b"\7" * (100 * KIB)


class CreatedDisk(Disk):
    """The same, made by blockdev-create in a folder that is not the daemon's, over a data file that
    holds something. It stays up to an end that is not the disk's, too."""

    def make(self):
        rng, data, path = self.rng, self.tmp / "data.raw", self.tmp / "qmp"
        mode = rng.choice(["off", "metadata", "falloc", "full"])
        self.old = rng.randbytes(rng.choice([0, self.size // 2 + 100, self.size + 5 * KIB]))
        data.write_bytes(self.old)
        self.path.touch()
        if self.is_raw or (mode != "off" and not self.is_extended):
            self.shadow[:] = self.old[:self.size].ljust(self.size, b"\0")
        with Daemon("--loops", 2, "--qmp", path):
            qmp = Qmp(path)
            # On a loop each.
            for name, file in (("file", self.path), ("data", data)):
                qmp.command("blockdev-add", driver="file", node_name=name, filename=str(file))
            qmp.command("blockdev-create", job_id="j", options={
                "driver": "qcow2", "file": "file", "size": self.size, "data-file": "data",
                "data-file-raw": self.is_raw, "cluster-size": self.cluster,
                "extended-l2": self.is_extended, "preallocation": mode})
            while qmp.event("JOB_STATUS_CHANGE")["status"] != "concluded":
                pass
            job, = qmp.command("query-jobs")
            assert "error" not in job, job
            qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="file",
                        data_file="data", discard="unmap")
            qmp.command("nbd-server-start",
                        addr={"type": "unix", "data": {"path": str(self.tmp / "nbd")}})
            qmp.command("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
            h = connect(f"nbd+unix:///disk?socket={self.tmp}/nbd")
            h.set_strict_mode(0)
            assert h.pread(self.size, 0) == self.shadow
            self.random_requests(h, 50)
            h.shutdown()
            qmp.close()


def test_created(tmp):
    """An image made by blockdev-create shows what its kind of data file says, and QEMU sees that, too."""
    for seed in range(16):
        (tmp / str(seed)).mkdir()
        disk = CreatedDisk(tmp / str(seed), seed)
        disk.check()
        with Daemon(disk.path) as d:
            h = connect(d.uri())
            h.set_strict_mode(0)
            disk.random_requests(h, 100)
            h.shutdown()
        disk.check()
        disk.written_by_qemu()
        disk.check()


def test_random_requests(tmp):
    """What clients wrote is what QEMU reads, raw data files are raw, and QEMU writes in between."""
    for seed in range(16):
        (tmp / str(seed)).mkdir()
        disk = Disk(tmp / str(seed), seed)
        for _ in range(2):
            with Daemon(disk.path) as d:
                h = connect(d.uri())
                h.set_strict_mode(0)
                disk.random_requests(h, 250)
                h.shutdown()
            disk.check()
            disk.written_by_qemu()


def test_data_elsewhere(tmp):
    """Data at another place than the guest's could be in the way of what is written later: as with
    QEMU its cluster cannot be read or written, and nothing else is harmed."""
    for command in ("read", "write", "zero", "trim"):
        folder = tmp / command
        folder.mkdir()
        options = "data_file=data.raw,data_file_raw=off,cluster_size=4k"
        path = folder / "a.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, MIB, cwd=folder)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4k", "-c", "write -P 2 8k 4k", path, cwd=folder)
        image = bytearray(path.read_bytes())
        l1 = int.from_bytes(image[40:48], "big")
        l2 = int.from_bytes(image[l1:l1 + 8], "big") & 0x00fffffffffffe00
        image[l2:l2 + 8] = (1 << 63 | 4096).to_bytes(8, "big")  # cluster 0 at the place of 1
        path.write_bytes(image)
        done = run("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 4k", path, cwd=folder, check=False)
        assert "Input/output error" in done.stdout + done.stderr, done
        before = (folder / "data.raw").read_bytes()
        d = Daemon(path)
        h = connect(d.uri())
        do = {"read": lambda: h.pread(4096, 0), "write": lambda: h.pwrite(bytes(4096), 0),
              "zero": lambda: h.zero(4096, 0), "trim": lambda: h.trim(4096, 0)}[command]
        try:
            do()
        except nbd.Error as e:
            assert e.errnum == errno.EIO, e
        else:
            raise AssertionError(f"{command} of a cluster whose data lies elsewhere")
        assert h.pread(4096, 8192) == bytes([2]) * 4096
        d.stop(expect=1)  # what was written since the last flush may be lost
        assert (folder / "data.raw").read_bytes() == before


def test_killed(tmp):
    """What a flush confirmed is there after a kill, in the data file and in the image."""
    for seed in range(4):
        (tmp / str(seed)).mkdir()
        disk = Disk(tmp / str(seed), seed)
        d = Daemon(disk.path)
        h = connect(d.uri())
        h.set_strict_mode(0)
        disk.random_requests(h, 150)
        h.flush()
        d.kill()
        disk.check()


def test_locked(tmp):
    """The data file of an image that is served is locked against other writers."""
    disk = Disk(tmp, 1)
    with Daemon(disk.path) as d:
        connect(d.uri()).pwrite(b"x" * 512, 0)
        done = run("qemu-io", "-f", "raw", "-c", "write 0 512", tmp / "data.raw", check=False)
        assert "lock" in done.stderr + done.stdout, done


main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""External snapshots while guests write and verify: clients do not notice, each layer keeps a point in
time, of several disks the same one.

usage: test-snapshot.py [--chaind PATH] [WORD]...
"""
import contextlib
import json
import random
import socket
import struct
import sys
import threading

from guests import GuestThread
from harness import HANG, Daemon, check_image, main, qemu_img, run

BLOCK = 4096
SIZE = 4 << 20


class Qmp:
    """A monitor of chaind."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(HANG)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rw")
        assert "QMP" in json.loads(self.file.readline())
        self.command("qmp_capabilities")

    def command(self, execute, **arguments):
        self.file.write(json.dumps({"execute": execute, "arguments": {
            name.replace("_", "-"): value for name, value in arguments.items()}}) + "\n")
        self.file.flush()
        while True:
            reply = json.loads(self.file.readline())
            if "error" in reply:
                raise AssertionError(f"{execute}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def close(self):
        self.file.close()
        self.socket.close()


class Disks:
    """chaind with disks disk0, disk1, … that were added by QMP, exported under their names."""

    def __init__(self, tmp, n, fmt="qcow2"):
        self.tmp, self.fmt = tmp, fmt
        self.daemon = Daemon("--qmp", tmp / "qmp.sock", "--loops", 2)
        self.qmp = Qmp(tmp / "qmp.sock")
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(tmp / "nbd.sock")}})
        self.layers = []
        for i in range(n):
            path = tmp / f"disk{i}.{fmt}"
            qemu_img("create", "-q", "-f", fmt, path, SIZE)
            self.layers.append([path])
            self.qmp.command("blockdev-add", driver=fmt, node_name=f"disk{i}",
                             file={"driver": "file", "filename": str(path)})
            self.qmp.command("block-export-add", type="nbd", id=f"e{i}", node_name=f"disk{i}",
                             name=f"disk{i}", writable=True)

    def connect(self, i):
        import nbd
        h = nbd.NBD()
        h.connect_uri(f"nbd+unix:///disk{i}?socket={self.tmp}/nbd.sock")
        return h

    def top(self, i):
        n = len(self.layers[i]) - 1
        return f"disk{i}" if n == 0 else f"disk{i}-{n}"

    def snapshot_data(self, i):
        n = len(self.layers[i])
        path = self.tmp / f"disk{i}-{n}.qcow2"
        data = {"node-name": self.top(i), "snapshot-file": str(path),
                "snapshot-node-name": f"disk{i}-{n}"}
        self.layers[i].append(path)
        return data

    def snapshot(self, i):
        self.qmp.command("blockdev-snapshot-sync", **self.snapshot_data(i))

    def snapshot_all(self):
        self.qmp.command("transaction", actions=[
            {"type": "blockdev-snapshot-sync", "data": self.snapshot_data(i)}
            for i in range(len(self.layers))])

    def format_of(self, path):
        return self.fmt if path in [layers[0] for layers in self.layers] else "qcow2"

    def content(self, path):
        raw = path.with_suffix(".content")
        qemu_img("convert", "-U", "-f", self.format_of(path), "-O", "raw", path, raw)
        return raw.read_bytes()

    def close(self):
        self.qmp.close()
        self.daemon.stop()
        for path in (path for layers in self.layers for path in layers):
            if self.format_of(path) == "qcow2":
                check_image(path)


class Guest(GuestThread):
    """Writes and verifies blocks that hold their number and a version. One connection for ever."""

    def __init__(self, handle, seed):
        super().__init__()
        self.handle, self.random = handle, random.Random(seed)
        n = SIZE // BLOCK
        self.issued, self.acked, self.flushed = [0] * n, [0] * n, [0] * n

    @staticmethod
    def block(number, version):
        return struct.pack("<QQ", number, version) * (BLOCK // 16) if version else bytes(BLOCK)

    def one_request(self):
        kind = self.random.random()
        number = self.random.randrange(SIZE // BLOCK)
        if kind < 0.02:
            covered = list(self.acked)
            self.handle.flush()
            self.flushed = covered
        elif kind < 0.4:
            data = self.handle.pread(BLOCK, number * BLOCK)
            assert data == self.block(number, self.acked[number]), f"block {number}"
        else:
            self.issued[number] += 1
            self.handle.pwrite(self.block(number, self.issued[number]), number * BLOCK)
            self.acked[number] = self.issued[number]


def versions(content, least, most):
    """Each block of `content` is whole, and its version lies within the bounds."""
    for number, (low, high) in enumerate(zip(least, most)):
        data = content[number * BLOCK:(number + 1) * BLOCK]
        owner, version = struct.unpack("<QQ", data[:16])
        assert data == Guest.block(number, version), f"block {number} is torn"
        assert low <= version <= high and (not version or owner == number), \
            f"block {number} has version {version}, not {low} to {high}"


def snapshots_under_a_guest(tmp, fmt):
    disks = Disks(tmp, 1, fmt)
    guest = Guest(disks.connect(0), 1)
    guest.start()
    bounds = []
    for _ in range(15):
        guest.go_on(50)
        least = list(guest.acked)
        disks.snapshot(0)
        bounds.append((least, list(guest.issued)))
    guest.go_on(200)
    guest.stop()
    for path, (least, most) in zip(disks.layers[0], bounds):
        versions(disks.content(path), least, most)
    guest.handle.flush()
    guest.handle.shutdown()
    disks.close()
    versions(disks.content(disks.layers[0][-1]), guest.acked, guest.acked)


def test_under_a_guest(tmp):
    """A guest writes and verifies while its chain grows by snapshots, and notices nothing."""
    snapshots_under_a_guest(tmp, "qcow2")


def test_over_raw(tmp):
    """The same over a raw image."""
    snapshots_under_a_guest(tmp, "raw")


class Counter(threading.Thread):
    """Writes one number after the other to the first disk, then to the second."""

    def __init__(self, first, second):
        super().__init__(daemon=True)
        self.handles, self.stopped, self.failure, self.n_requests = (first, second), False, None, 0

    def run(self):
        try:
            while not self.stopped:
                self.n_requests += 1
                for handle in self.handles:
                    handle.pwrite(struct.pack("<Q", self.n_requests) * 512, 0)
        except BaseException as e:
            self.failure = e

    go_on = Guest.go_on


def test_two_disks_at_one_moment(tmp):
    """A transaction over disks of two loops keeps one moment of both."""
    disks = Disks(tmp, 2)
    counter = Counter(disks.connect(0), disks.connect(1))
    counter.start()
    for _ in range(25):
        counter.go_on(5)
        disks.snapshot_all()
    counter.go_on(5)
    counter.stopped = True
    counter.join(HANG)
    assert not counter.failure, counter.failure
    for handle in counter.handles:
        handle.shutdown()
    for first, second in list(zip(*disks.layers))[:-1]:
        a, b = (struct.unpack("<Q", disks.content(path)[:8])[0] for path in (first, second))
        assert b <= a <= b + 1, f"{first.name} has {a}, {second.name} has {b}"
    disks.close()


def test_none_when_one_fails(tmp):
    """When one of a transaction's snapshots fails, no disk has got one."""
    disks = Disks(tmp, 2)
    handle = disks.connect(0)
    handle.pwrite(b"a" * BLOCK, 0)
    with contextlib.suppress(AssertionError):
        disks.qmp.command("transaction", actions=[
            {"type": "blockdev-snapshot-sync", "data": disks.snapshot_data(0)},
            {"type": "blockdev-snapshot-sync", "data": {
                "node-name": "disk1", "snapshot-file": str(tmp / "missing/file.qcow2"),
                "snapshot-node-name": "never"}}])
        raise SystemExit("the transaction did not fail")
    disks.layers[0].pop()
    handle.pwrite(b"b" * BLOCK, BLOCK)
    assert handle.pread(2 * BLOCK, 0) == b"a" * BLOCK + b"b" * BLOCK
    exports = disks.qmp.command("query-block-exports")
    assert sorted(e["node-name"] for e in exports) == ["disk0", "disk1"], exports
    handle.flush()
    handle.shutdown()
    disks.close()
    assert disks.content(disks.layers[0][0])[:2 * BLOCK] == b"a" * BLOCK + b"b" * BLOCK


def test_killed(tmp):
    """What was flushed before and after a snapshot is there when the daemon is killed."""
    for seed in range(5):
        folder = tmp / str(seed)
        folder.mkdir()
        disks = Disks(folder, 1)
        guest = Guest(disks.connect(0), seed)
        guest.start()
        for _ in range(4):
            guest.go_on(40)
            disks.snapshot(0)
        guest.go_on(seed * 30)
        disks.daemon.kill()
        disks.qmp.close()
        guest.stopped.set()
        guest.join(HANG)
        for path in disks.layers[0]:
            run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", path)
        versions(disks.content(disks.layers[0][-1]), guest.flushed, guest.issued)


if __name__ == "__main__":
    main(sys.modules[__name__].__dict__)

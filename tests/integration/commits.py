# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests of commits share: chains of three, guests that know what they wrote, and the ends of jobs."""
import contextlib
import random
import struct
import threading

import nbd

from harness import KIB, qemu_img, qemu_io

BLOCK = 4 * KIB


def create(path, size, below=None):
    over = ["-b", below, "-F", "qcow2"] if below else []
    qemu_img("create", "-q", "-f", "qcow2", *over, path, *([size] if size else []))


def content(path, raw, fmt="qcow2"):
    qemu_img("convert", "-q", "-U", "-f", fmt, "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def await_status(qmp, job, status):
    while True:
        data = qmp.event("JOB_STATUS_CHANGE")
        if data["id"] == job and data["status"] == status:
            return


def end_of(qmp):
    """Its BLOCK_JOB_COMPLETED, once it is forgotten."""
    data = qmp.event("BLOCK_JOB_COMPLETED")
    await_status(qmp, data["device"], "null")
    return data


class Guest(threading.Thread):
    """Writes versions into blocks of its own, `depth` at a time, and reads some of them again. At first
    they have `version`."""

    def __init__(self, uri, number, n_guests, n_blocks, depth, version=0):
        super().__init__(daemon=True)
        self.uri, self.number, self.depth = uri, number, depth
        self.blocks = list(range(number, n_blocks, n_guests))
        self.issued = dict.fromkeys(self.blocks, version)
        self.acked = dict(self.issued)
        self.flushed = dict(self.acked)
        self.is_over, self.failure, self.n_done = False, None, 0
        self.goes_on = threading.Event()
        self.goes_on.set()

    @staticmethod
    def data(block, version):
        return struct.pack("<QQ", block, version) * (BLOCK // 16) if version else bytes(BLOCK)

    def one_batch(self, h, rng):
        chosen = rng.sample(self.blocks, min(self.depth, len(self.blocks)))
        cookies = []
        for block in chosen:
            self.issued[block] += 1
            buffer = nbd.Buffer.from_bytearray(bytearray(self.data(block, self.issued[block])))
            cookies.append(h.aio_pwrite(buffer, block * BLOCK))
        while cookies:
            h.poll(-1)
            cookies = [c for c in cookies if not h.aio_command_completed(c)]
        for block in chosen:
            self.acked[block] = self.issued[block]
        self.n_done += len(chosen)
        block = chosen[0]
        assert h.pread(BLOCK, block * BLOCK) == self.data(block, self.acked[block]), f"block {block}"
        if rng.random() < 0.05:
            covered = dict(self.acked)
            h.flush()
            self.flushed = covered

    def run(self):
        rng = random.Random(self.number)
        try:
            h = nbd.NBD()
            h.connect_uri(self.uri)
            while not self.is_over:
                self.goes_on.wait()
                self.one_batch(h, rng)
        except nbd.Error as e:
            self.failure = e
        except AssertionError as e:
            self.failure = e

    def check(self, disk, least):
        """Each sector of `disk` is as new as `least` says, at least."""
        for block in self.blocks:
            data = disk[block * BLOCK:(block + 1) * BLOCK]
            for at in range(0, BLOCK, 512):
                number, version = struct.unpack("<QQ", data[at:at + 16])
                assert data[at:at + 512] == self.data(block, version)[:512], f"block {block} is torn"
                assert version == 0 or number == block
                assert least[block] <= version <= self.issued[block], \
                    f"block {block}: version {version}, not {least[block]} to {self.issued[block]}"


def start_guests(w, name, n, n_blocks, depth, version=0):
    all_guests = [Guest(w.uri(name), i, n, n_blocks, depth, version) for i in range(n)]
    for g in all_guests:
        g.start()
    return all_guests


@contextlib.contextmanager
def held(all_guests):
    """They finish what they have under way, and begin nothing meanwhile: a copy whose mode is to be the
    background gets in step with guests only as long as it is faster than they are."""
    for g in all_guests:
        g.goes_on.clear()
    try:
        yield
    finally:
        for g in all_guests:
            g.goes_on.set()


def kill_beside(w, all_guests):
    """Kills the daemon while they write; none of them has read anything wrong."""
    w.daemon.kill()
    for g in all_guests:
        g.is_over = True
        g.join()
        assert not isinstance(g.failure, AssertionError), g.failure
    w.qmp.close()


@contextlib.contextmanager
def guests(w, name, n, n_blocks, depth, version=0):
    all_guests = start_guests(w, name, n, n_blocks, depth, version)
    try:
        yield all_guests
    finally:
        for g in all_guests:
            g.is_over = True
        for g in all_guests:
            g.join()
    for g in all_guests:
        assert g.failure is None, g.failure


def make_three(tmp, size):
    create(tmp / "base", size)
    qemu_io(tmp / "base", f"write -z 0 {size}")
    create(tmp / "middle", None, tmp / "base")
    create(tmp / "top", None, tmp / "middle")


def add_three(w, tmp):
    w.add("base", tmp / "base", read_only=True)
    w.add("middle", tmp / "middle", backing="base", read_only=True)
    w.add("top", tmp / "top", backing="middle")
    w.export("top", name="disk")

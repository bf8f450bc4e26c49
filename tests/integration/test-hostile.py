#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that break the protocol, stall, ask without end or vanish, seen from outside: the daemon
lives, other clients are served, and memory and descriptors stay bounded."""
import concurrent.futures
import contextlib
import fcntl
import os
import random
import socket
import struct
import sys
import termios
import threading
import time

import nbd

import harness
from harness import GIB, HANG, KIB, MIB, Daemon, connect, main, qemu_img

IHAVEOPT = b"IHAVEOPT"
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED = 1, 2, 3, 6, 7, 8
OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS = 10, 11
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_BLOCK_STATUS = 0, 1, 2, 3, 7


class Raw:
    """A client that speaks bytes. The server may drop it at any moment; sending then fails with a
    ConnectionError, which a test that expects to be dropped has to allow."""

    def __init__(self, path, hello=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))  # without a time limit: that would not wait for room
        self.socket.settimeout(HANG)
        if hello:
            assert self.receive(18)[:16] == b"NBDMAGICIHAVEOPT"
            self.send(struct.pack(">I", 3))  # fixed newstyle, no zeroes

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, n):
        out = b""
        while len(out) < n:
            piece = self.socket.recv(n - len(out))
            if not piece:
                raise EOFError
            out += piece
        return out

    def option(self, number, data=b"", length=None):
        self.send(IHAVEOPT + struct.pack(">II", number, len(data) if length is None else length) + data)

    def reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == 0x3e889045565a9
        return kind, self.receive(length)

    def go(self, name=b""):
        self.option(OPT_GO, struct.pack(">I", len(name)) + name + b"\0\0")
        while True:
            kind, _ = self.reply()
            if kind != 3:
                return kind

    def go_for_status(self, option):
        """GO with structured replies or extended headers, and base:allocation."""
        self.option(option)
        assert self.reply()[0] == 1
        query = b"base:allocation"
        self.option(OPT_SET_META_CONTEXT, struct.pack(">III", 0, 1, len(query)) + query)
        assert self.reply()[0] == 4 and self.reply()[0] == 1
        assert self.go() == 1

    def status(self, offset, length, flags=0):
        """The extents [(length, flags)] of a structured BLOCK_STATUS."""
        self.request(CMD_BLOCK_STATUS, offset, length, flags=flags)
        magic, done, kind, _, n = struct.unpack(">IHHQI", self.receive(20))
        assert (magic, done, kind) == (0x668e33ef, 1, 5), (hex(magic), done, kind)
        words = struct.unpack(f">{n // 4}I", self.receive(n))[1:]
        return list(zip(words[::2], words[1::2]))

    def extended_status(self, offset, length, flags=0):
        """The same with extended headers, in 64 bits."""
        self.send(struct.pack(">IHHQQQ", 0x21e41c71, flags, CMD_BLOCK_STATUS, 1, offset, length))
        magic, done, kind, _, at, n = struct.unpack(">IHHQQQ", self.receive(32))
        assert (magic, done, kind, at) == (0x6e8a278c, 1, 6, offset), (hex(magic), done, kind, at)
        payload = self.receive(n)
        count, = struct.unpack(">I", payload[4:8])
        assert n == 8 + 16 * count, (n, count)
        words = struct.unpack(f">{2 * count}Q", payload[8:])
        return list(zip(words[::2], words[1::2]))

    def request(self, command, offset, length, data=b"", cookie=1, flags=0):
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data)

    def simple_reply(self):
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698, hex(magic)
        return error, cookie

    def wait_until_read(self):
        """Returns when the server has received all that was sent."""
        unread = bytearray(4)
        while True:
            fcntl.ioctl(self.socket, termios.TIOCOUTQ, unread)
            if not int.from_bytes(unread, sys.byteorder):
                return
            time.sleep(0.001)

    def is_closed(self):
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionError:
            return True

    def close(self):
        self.socket.close()


class Served:
    """A daemon, and a well-behaved client that must not notice anything."""

    def __init__(self, tmp, size="64M"):
        qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", size)
        self.path = tmp / "s"
        self.daemon = Daemon("--nbd", self.path, tmp / "a.qcow2")
        self.good = connect(self.daemon.uri())
        self.good.pwrite(b"good" * 1024, 4096)

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if kind is None:
            self.alive()
            self.good.shutdown()
        self.daemon.__exit__(kind, *rest)

    def alive(self):
        assert self.good.pread(4096, 4096) == b"good" * 1024
        h = connect(self.daemon.uri())
        assert h.pread(4, 4096) == b"good"
        h.shutdown()

    def memory(self):
        """Anonymous memory in bytes."""
        with open(f"/proc/{self.daemon.process.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))


def test_leave_anywhere(tmp):
    """A client that leaves after any number of bytes of handshake and requests harms nobody."""
    with Served(tmp) as s:
        talk = struct.pack(">I", 3) + IHAVEOPT + struct.pack(">II", OPT_LIST, 0) + \
            IHAVEOPT + struct.pack(">II", OPT_STRUCTURED, 0) + \
            IHAVEOPT + struct.pack(">III", OPT_GO, 6, 0) + b"\0\0" + \
            struct.pack(">IHHQQI", 0x25609513, 0, CMD_READ, 1, 0, 4096) + \
            struct.pack(">IHHQQI", 0x25609513, 0, CMD_WRITE, 2, 8192, 4096) + b"x" * 4096
        for n in [*range(len(talk) - 4090), len(talk) - 1, len(talk)]:
            c = Raw(s.path, hello=False)
            c.send(talk[:n])
            c.close()
        s.alive()


def test_half_a_write(tmp):
    """A write whose data does not arrive completely is not applied."""
    with Served(tmp) as s:
        c = Raw(s.path)
        assert c.go() == 1
        c.request(CMD_WRITE, 4096, 4096, b"evil" * 1000)
        c.close()
        s.alive()


def test_garbage(tmp):
    """Random bytes, in the handshake and after it, harm nobody."""
    rng = random.Random(11)
    with Served(tmp) as s:
        for i in range(200):
            c = Raw(s.path, hello=i % 2)
            try:
                if i % 4 == 1:
                    c.go()
                c.send(rng.randbytes(rng.randrange(1, 4000)))
            except (ConnectionError, EOFError):
                pass
            c.close()
        s.alive()


def test_long_name(tmp):
    """An export name of 4,096 bytes is answered; one that lies about its length is refused."""
    with Served(tmp) as s:
        c = Raw(s.path)
        assert c.go(b"n" * 4096) == 0x80000006  # unknown
        c.option(OPT_GO, struct.pack(">I", 0xffffffff) + b"\0\0")
        assert c.reply()[0] == 0x80000003  # invalid
        assert c.go() == 1
        c.close()


def test_huge_option(tmp):
    """An option of 4 GiB is not stored: the client is dropped or answered."""
    with Served(tmp) as s:
        before = s.memory()
        c = Raw(s.path)
        with contextlib.suppress(ConnectionError):
            c.option(OPT_LIST, b"x" * 100000, length=0xffffffff)
            for _ in range(1000):
                c.send(b"x" * 100000)
        assert s.memory() - before < 16 * MIB
        c.close()


def test_endless_options(tmp):
    """A client that sends options for ever is cut off."""
    with Served(tmp) as s:
        c = Raw(s.path)
        try:
            for _ in range(100000):
                c.option(77)
                c.reply()
        except (ConnectionError, EOFError):
            return
        raise AssertionError("100,000 options were answered")


def test_slow_handshake(tmp):
    """A handshake that takes for ever is ended after its time limit of about 10 s."""
    with Served(tmp) as s:
        start = time.monotonic()
        c = Raw(s.path)
        assert c.is_closed()
        assert time.monotonic() - start > 5


def test_bad_magic(tmp):
    """A request with a wrong magic number ends that connection only."""
    with Served(tmp) as s:
        c = Raw(s.path)
        assert c.go() == 1
        c.send(b"\xde\xad\xbe\xef" * 7)
        assert c.is_closed()


def test_errors_keep_the_connection(tmp):
    """Requests outside the disk, absurd lengths and unknown commands get errors, not a hang-up."""
    with Served(tmp) as s:
        c = Raw(s.path)
        assert c.go() == 1
        for command, offset, length in [
                (CMD_READ, 64 * MIB, 1), (CMD_READ, 64 * MIB - 1, 2), (CMD_READ, 2**64 - 1, 2),
                (CMD_READ, 0, 0xffffffff), (4, 2**63, 4096), (6, 64 * MIB - 1, 4096), (99, 0, 0),
                (5, 64 * MIB, 1), (CMD_FLUSH, 0, 1 << 31)]:
            c.request(command, offset, length, cookie=42)
            error, cookie = c.simple_reply()
            assert cookie == 42
            assert error != 0 or command == CMD_FLUSH, (command, offset, length)
        c.request(CMD_READ, 4096, 4, cookie=7)
        assert c.simple_reply() == (0, 7) and c.receive(4) == b"good"
        c.close()


def test_refused_write_arrives_late(tmp):
    """A refused write whose data comes after its header, behind a large write, does not hang the loop."""
    with Served(tmp) as s:
        c = Raw(s.path)
        assert c.go() == 1
        talk = b"".join(struct.pack(">IHHQQI", 0x25609513, 0, CMD_WRITE, cookie, offset, 65536) + data
                        for cookie, offset, data in [(1, MIB, b"x" * 65536), (2, 1 << 40, b"")])
        for start, end in [(0, 1000), (1000, 20000), (20000, 65000), (65000, len(talk))]:
            c.send(talk[start:end])
            c.wait_until_read()  # so that each piece is received by itself
        s.alive()
        c.send(b"y" * 65536)
        answers = dict(reversed(c.simple_reply()) for _ in range(2))
        assert answers[1] == 0 and answers[2] != 0, answers
        c.close()


def test_unread_replies(tmp):
    """A client that reads no replies costs bounded memory, and others are served meanwhile."""
    with Served(tmp, "256M") as s:
        c = Raw(s.path)
        assert c.go() == 1
        c.socket.settimeout(1)
        sent = 0
        try:
            for i in range(20000):
                c.request(CMD_READ, i % 8 * 32 * MIB, 32 * MIB, cookie=i)
                sent += 1
        except socket.timeout:
            pass
        for _ in range(100):
            assert s.good.pread(4096, 4096) == b"good" * 1024
        assert s.memory() < 512 * MIB, f"{s.memory() // MIB} MiB after {sent} requests"
        c.close()
        s.alive()


def test_vanish_under_load(tmp):
    """Clients that vanish with requests in flight leave nothing behind."""
    rng = random.Random(3)
    with Served(tmp) as s:
        for _ in range(100):
            c = Raw(s.path)
            assert c.go() == 1
            for i in range(rng.randrange(1, 40)):
                at = MIB + rng.randrange(60 * MIB)
                if rng.random() < 0.5:
                    c.request(CMD_READ, at, 100000, cookie=i)
                else:
                    c.request(CMD_WRITE, at, 5000, b"v" * 5000, cookie=i)
            c.close()
        s.alive()
        # The server hears of the last ones a moment after they left.
        while len(os.listdir(f"/proc/{s.daemon.process.pid}/fd")) >= 60:
            time.sleep(0.01)
    harness.check_image(tmp / "a.qcow2")


def test_bulk(tmp):
    """A client with 512 reads in flight does not starve another one."""
    with Served(tmp) as s:
        bulk = nbd.NBD()
        bulk.connect_uri(s.daemon.uri())
        buffers = [nbd.Buffer(4096) for _ in range(512)]
        for _ in range(20):
            for b in buffers:
                bulk.aio_pread(b, MIB, lambda error: 1)
            for _ in range(20):
                assert s.good.pread(4096, 4096) == b"good" * 1024
            while bulk.aio_in_flight():
                bulk.poll(-1)
        bulk.shutdown()


def bulk_reads(h, data, length, n, rng, is_over):
    """Keeps `n` reads in flight, and checks each."""
    buffers, at = [nbd.Buffer(length) for _ in range(n)], [0] * n

    def start(i):
        at[i] = rng.randrange((len(data) - length) // 512 + 1) * 512
        h.aio_pread(buffers[i], at[i], lambda error, i=i: done.append((i, error.value)) or 1)

    done = []
    for i in range(n):
        start(i)
    while h.aio_in_flight():
        h.poll(-1)
        while done:
            i, error = done.pop()
            assert error == 0, error
            assert buffers[i].to_bytearray() == data[at[i]:at[i] + length], (at[i], length)
            if not is_over.is_set():
                start(i)


def bulk_writes(h, offset, is_over):
    """Writes to a region of its own, large and small, and reads it back."""
    for round_ in range(1, 1 << 20):
        piece = bytes([round_ % 256]) * 4096
        for i in range(8):
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(piece * 64)), offset + i * 256 * KIB,
                         lambda error: 1)
        while h.aio_in_flight():
            h.poll(-1)
        assert h.pread(2 * MIB, offset) == piece * 512
        h.cache(2 * MIB, offset)
        h.flush()
        if is_over.is_set():
            return


def test_bulk_beside_interactive(tmp):
    """Beside an interactive client: bulk clients of each kind, some vanish, a stop ends the others."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "64M")
    data = random.Random(5).randbytes(16 * MIB) + bytes(16 * MIB)
    with Daemon(tmp / "a.qcow2") as d:
        h = connect(d.uri())
        h.pwrite(data[:16 * MIB], 0)
        is_over = threading.Event()
        kinds = [lambda h: bulk_reads(h, data, MIB, 8, random.Random(1), is_over),
                 lambda h: bulk_reads(h, data, 64 * KIB, 16, random.Random(2), is_over),
                 lambda h: bulk_reads(h, data, 4096, 32, random.Random(3), is_over),
                 lambda h: bulk_writes(h, 40 * MIB, is_over),
                 lambda h: bulk_writes(h, 48 * MIB, is_over)]
        with concurrent.futures.ThreadPoolExecutor(len(kinds)) as pool:
            running = [pool.submit(f, connect(d.uri())) for f in kinds]
            try:
                for n in range(800):
                    assert h.pread(4096, n * 4096) == data[n * 4096:][:4096]
                    if n % 200 == 0:
                        raw = Raw(d.socket())
                        assert raw.go() == 1
                        for i in range(64):
                            raw.request(CMD_READ, i * 256 * KIB, 256 * KIB)
                        raw.close()
            finally:
                is_over.set()
            for r in running:
                r.result()
        raw = [Raw(d.socket()) for _ in range(4)]
        for r in raw:
            assert r.go() == 1
            for i in range(64):
                r.request(CMD_READ, i * 256 * KIB, 256 * KIB)
        for _ in range(50):
            h.pread(4096, 0)
        d.process.terminate()
        for r in raw:
            assert r.is_closed()
        assert d.wait() == 0
    harness.check_image(tmp / "a.qcow2")


def test_too_many_connections(tmp):
    """More clients than the limit wait or are turned away; then others get in again."""
    with Served(tmp) as s:
        crowd = []
        for _ in range(400):
            k = socket.socket(socket.AF_UNIX)
            k.setblocking(False)
            try:
                k.connect(str(s.path))
            except (BlockingIOError, ConnectionError):
                pass
            crowd.append(k)
        assert s.good.pread(4096, 4096) == b"good" * 1024
        for k in crowd:
            k.close()
        s.alive()


GONE = 3  # hole and zero
WIDE = 8192 * GIB


def far_data(tmp):
    """An 8 TiB disk whose first extent ends 64 KiB below 2^32, and whose next hole is longer than that."""
    served = Served(tmp, "8T")
    served.good.zero(4096, 4096)  # what Served wrote at the start
    served.good.trim(64 * KIB, 0)
    served.good.pwrite(b"d" * 64 * KIB, (1 << 32) - 64 * KIB)
    served.good.pwrite(b"e" * 64 * KIB, 10 * GIB)
    return served


def test_status_structured_near_32_bits(tmp):
    """Block status with 32-bit lengths, asked with 0xffffffff: no extent is 0, none passes 32 bits."""
    with far_data(tmp) as s:
        c = Raw(s.path)
        c.go_for_status(OPT_STRUCTURED)
        most = 0xffffffff
        assert c.status(0, most) == [((1 << 32) - 64 * KIB, GONE), (64 * KIB - 1, 0)]
        assert c.status(1 << 32, most) == [(most, GONE)]
        assert c.status(1 << 32, most, flags=8) == [(most, GONE)]  # REQ_ONE
        assert c.status((1 << 32) - 64 * KIB, most) == [(64 * KIB, 0), (most - 64 * KIB, GONE)]
        assert c.status(WIDE - 4096, 4096) == [(4096, GONE)]
        c.request(CMD_BLOCK_STATUS, WIDE - 4096, most)
        _, _, kind, _, n = struct.unpack(">IHHQI", c.receive(20))
        assert kind == 0x8001 and struct.unpack(">I", c.receive(n)[:4])[0] == 22
        c.close()
        s.good.pwrite(b"good" * 1024, 4096)


def test_status_extended_beyond_32_bits(tmp):
    """Block status with 64-bit lengths, asked with 2^40: extents below and above 2^32 are whole."""
    with far_data(tmp) as s:
        c = Raw(s.path)
        c.go_for_status(OPT_EXTENDED_HEADERS)
        want = [((1 << 32) - 64 * KIB, GONE), (64 * KIB, 0), (6 * GIB, GONE), (64 * KIB, 0),
                ((1 << 40) - 10 * GIB - 64 * KIB, GONE)]
        assert c.extended_status(0, 1 << 40) == want, c.extended_status(0, 1 << 40)
        assert c.extended_status(1 << 32, 1 << 40, flags=8) == [(6 * GIB, GONE)]
        at, n_answers = 0, 0
        while at < WIDE:  # an answer may be shorter than asked
            extents = c.extended_status(at, WIDE - at)
            assert all(length for length, _ in extents)
            at += sum(length for length, _ in extents)
            n_answers += 1
        assert at == WIDE and n_answers < 20, (at, n_answers)
        c.close()
        s.good.pwrite(b"good" * 1024, 4096)


def test_status_many_extents(tmp):
    """More extents than one answer holds: each answer is bounded, and together they tell all."""
    n = 12000
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", tmp / "m.qcow2", "16M")
    with Daemon("--nbd", tmp / "s", tmp / "m.qcow2") as d:
        h = connect(d.uri())
        for i in range(n // 2):
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"m" * 512)), i * 1024, lambda error: 1)
            if h.aio_in_flight() >= 64:
                h.poll(-1)
        while h.aio_in_flight():
            h.poll(-1)
        for option in OPT_STRUCTURED, OPT_EXTENDED_HEADERS:
            c = Raw(tmp / "s")
            c.go_for_status(option)
            ask = c.status if option == OPT_STRUCTURED else c.extended_status
            at, got, n_answers = 0, [], 0
            while at < 16 * MIB:
                extents = ask(at, 16 * MIB - at)
                assert 1 <= len(extents) <= 4096, len(extents)
                got += extents
                at += sum(length for length, _ in extents)
                n_answers += 1
            assert n_answers > 1
            assert got[:n - 1] == [(512, 0), (512, GONE)] * (n // 2 - 1) + [(512, 0)]
            assert got[n - 1:] == [(16 * MIB - (n - 1) * 512, GONE)], got[n - 1:]
            c.close()
        h.shutdown()


def test_request_before_go(tmp):
    """A request before GO, and an option after it, end that connection only."""
    with Served(tmp) as s:
        c = Raw(s.path)
        c.request(CMD_WRITE, 4096, 4096, b"evil" * 1024)
        assert c.is_closed()
        c = Raw(s.path)
        c.option(OPT_INFO, struct.pack(">I", 0) + b"\0\0")  # answered, but nothing is chosen yet
        while c.reply()[0] == 3:
            pass
        c.request(CMD_WRITE, 4096, 4096, b"evil" * 1024)
        assert c.is_closed()
        c = Raw(s.path)
        assert c.go() == 1
        with contextlib.suppress(ConnectionError):
            c.option(OPT_GO, struct.pack(">I", 0) + b"\0\0")
            c.send(b"\0" * 64)  # whatever length of a request the server waits for
        assert c.is_closed()
        s.alive()


def test_guest_writes_a_header(tmp):
    """A guest that writes a qcow2 header into its raw disk does not make it a qcow2 image."""
    secret = harness.random_file(tmp / "secret", MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", tmp / "evil.qcow2", "1M")
    evil = (tmp / "evil.qcow2").read_bytes()
    with open(tmp / "disk.raw", "wb") as f:
        f.truncate(MIB)
    with Daemon("--format", "raw", tmp / "disk.raw") as d:
        h = connect(d.uri())
        h.pwrite(evil, 0)
        h.flush()
        h.shutdown()
    with Daemon("--format", "raw", tmp / "disk.raw") as d:  # as the top
        assert connect(d.uri()).pread(MIB, 0) == evil.ljust(MIB, b"\0")
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "disk.raw", "-F", "raw", tmp / "top.qcow2")
    with Daemon(tmp / "top.qcow2") as d:  # as backing
        h = connect(d.uri())
        assert h.pread(MIB, 0) == evil.ljust(MIB, b"\0")
        h.pwrite(b"x" * 512, MIB - 512)  # copies up from below
        assert h.pread(MIB, 0) == evil.ljust(MIB - 512, b"\0") + b"x" * 512
        h.shutdown()


main(globals())

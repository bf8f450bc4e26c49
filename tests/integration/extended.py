# SPDX-License-Identifier: LGPL-2.1-or-later
"""An NBD client with extended headers, which Debian 12's libnbd does not know. A handle has those
methods of a libnbd handle that random load needs, and checks what every reply must keep to: the
echoed offset, chunks that cover the request once, DONE last, no extent of length 0."""
import socket
import struct
import urllib.parse

import nbd

from harness import HANG

REQUEST, REPLY = 0x21e41c71, 0x6e8a278c
OPT_GO, OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS = 7, 10, 11
READ, WRITE, DISC, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 4, 6, 7
PAYLOAD_LEN = 1 << 5
NONE, OFFSET_DATA, OFFSET_HOLE, STATUS_EXT, ERROR = 0, 1, 2, 6, 0x8001


class Error:
    """As libnbd passes it to a completion."""

    def __init__(self, value):
        self.value = value


class Flying:
    """A request in flight."""

    def __init__(self, kind, offset, length, completed, flags=0, buffer=None, extents=None):
        self.kind, self.offset, self.length, self.flags = kind, offset, length, flags
        self.completed, self.buffer, self.extents = completed, buffer, extents
        self.error = 0
        self.covered = []  # (start, end) of a READ's chunks
        self.n_status = 0


class Handle:
    def __init__(self, uri):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(uri).query)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(query["socket"][0])
        self.socket.settimeout(HANG)
        self.flying, self.next_cookie = {}, 1
        self.out, self.received = bytearray(), bytearray()
        self.is_dead = False
        self.handshake()
        self.socket.setblocking(False)

    # -- handshake

    def receive(self, n):
        data = self.socket.recv(n, socket.MSG_WAITALL)
        assert len(data) == n, "the server closed the connection"
        return data

    def option(self, number, data=b""):
        """Sends an option; the payloads of its replies up to the ACK."""
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        payloads = []
        while True:
            magic, _, kind, n = struct.unpack(">QIII", self.receive(20))
            assert magic == 0x3e889045565a9 and kind < 1 << 31, (hex(magic), hex(kind))
            if kind == 1:
                return payloads
            payloads.append(self.receive(n))

    def handshake(self):
        assert self.receive(18)[:16] == b"NBDMAGICIHAVEOPT"
        self.socket.sendall(struct.pack(">I", 3))
        self.option(OPT_EXTENDED_HEADERS)
        query = b"base:allocation"
        answer, = self.option(OPT_SET_META_CONTEXT, struct.pack(">III", 0, 1, len(query)) + query)
        self.context, = struct.unpack(">I", answer[:4])
        infos = self.option(OPT_GO, struct.pack(">IHH", 0, 1, 3))  # with block sizes
        self.sizes = {struct.unpack(">H", i[:2])[0]: i[2:] for i in infos}

    def get_size(self):
        return struct.unpack(">Q", self.sizes[0][:8])[0]

    def get_block_size(self, _):
        return struct.unpack(">I", self.sizes[3][:4])[0]

    def get_structured_replies_negotiated(self):
        return True

    def can_meta_context(self, name):
        return name == "base:allocation"

    # -- requests

    def send(self, request, payload=b""):
        """`payload` goes along; with it the header's length is the payload's."""
        flags, length = request.flags, request.length
        if payload:
            flags, length = flags | PAYLOAD_LEN, len(payload)
        cookie, self.next_cookie = self.next_cookie, self.next_cookie + 1
        self.flying[cookie] = request
        self.out += struct.pack(">IHHQQQ", REQUEST, flags, request.kind, cookie, request.offset, length)
        self.out += payload
        self.aio_notify_write()

    def aio_pread(self, buffer, offset, completed, flags=0):
        self.send(Flying(READ, offset, len(buffer), completed, flags, buffer))

    def aio_pwrite(self, buffer, offset, completed, flags=0):
        self.send(Flying(WRITE, offset, len(buffer), completed, flags), bytes(buffer))

    def aio_zero(self, n, offset, completed, flags=0):
        self.send(Flying(WRITE_ZEROES, offset, n, completed, flags))

    def aio_trim(self, n, offset, completed, flags=0):
        self.send(Flying(TRIM, offset, n, completed, flags))

    def aio_flush(self, completed):
        self.send(Flying(FLUSH, 0, 0, completed))

    def aio_block_status(self, n, offset, extents, completed, flags=0):
        request = Flying(BLOCK_STATUS, offset, n, completed, flags, extents=extents)
        # Every other one chooses its context in a payload.
        payload = struct.pack(">QI", n, self.context) if self.next_cookie % 2 else b""
        self.send(request, payload)

    def flush(self):
        """Waits for it; nothing else is in flight."""
        assert not self.flying
        self.aio_flush(lambda error: 1)
        self.socket.setblocking(True)
        self.socket.settimeout(HANG)
        self.aio_notify_write()
        while self.flying:
            self.aio_notify_read()
        self.socket.setblocking(False)

    def shutdown(self):
        self.out += struct.pack(">IHHQQQ", REQUEST, 0, DISC, 0, 0, 0)
        self.aio_notify_write()
        self.socket.close()

    # -- the socket

    def aio_get_fd(self):
        return self.socket.fileno()

    def aio_get_direction(self):
        return nbd.AIO_DIRECTION_READ | (nbd.AIO_DIRECTION_WRITE if self.out else 0)

    def aio_is_dead(self):
        return self.is_dead

    def aio_notify_write(self):
        try:
            while self.out:
                del self.out[:self.socket.send(self.out)]
        except BlockingIOError:
            pass

    def aio_notify_read(self):
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        self.is_dead = not data
        self.received += data
        while len(self.received) >= 32:
            magic, flags, kind, cookie, offset, n = struct.unpack(">IHHQQQ", self.received[:32])
            assert magic == REPLY and cookie in self.flying and flags <= 1 and n <= 33 << 20, \
                (hex(magic), cookie, flags, n)
            if len(self.received) < 32 + n:
                return
            payload = bytes(self.received[32:32 + n])
            del self.received[:32 + n]
            request = self.flying[cookie]
            assert offset == request.offset, f"offset {offset} of a request at {request.offset}"
            self.chunk(request, kind, payload, flags)
            if flags:
                del self.flying[cookie]
                self.check(request)
                request.completed(Error(request.error))

    def chunk(self, request, kind, payload, is_last):
        if kind == NONE:
            assert not payload and is_last
        elif kind == OFFSET_DATA:
            at, = struct.unpack(">Q", payload[:8])
            self.cover(request, at, payload[8:])
        elif kind == OFFSET_HOLE:
            at, n = struct.unpack(">QI", payload)
            self.cover(request, at, bytes(n))
        elif kind == STATUS_EXT:
            context, n = struct.unpack(">II", payload[:8])
            words = struct.unpack(f">{2 * n}Q", payload[8:])
            assert request.kind == BLOCK_STATUS and context == self.context and n and all(words[::2])
            request.n_status += 1
            request.extents("base:allocation", request.offset, list(words), Error(0))
        elif kind == ERROR:
            request.error, n = struct.unpack(">IH", payload[:6])
            assert request.error and n == len(payload) - 6
        else:
            raise AssertionError(f"chunk of type {kind}")

    def cover(self, request, at, data):
        start = at - request.offset
        assert request.kind == READ and data and 0 <= start <= request.length - len(data)
        request.buffer[start:start + len(data)] = data
        request.covered.append((start, start + len(data)))

    def check(self, request):
        if request.error:
            return
        if request.kind == READ:
            ends = [0] + [end for _, end in sorted(request.covered)]
            assert [start for start, _ in sorted(request.covered)] == ends[:-1] and \
                ends[-1] == request.length, f"chunks {sorted(request.covered)}"
            assert not request.flags & nbd.CMD_FLAG_DF or len(request.covered) == 1
        if request.kind == BLOCK_STATUS:
            assert request.n_status == 1

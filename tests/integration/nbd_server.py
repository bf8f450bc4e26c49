# SPDX-License-Identifier: LGPL-2.1-or-later
"""An NBD server in memory, for tests of clients: it keeps to the protocol until it is told how not to.

A *misdeed* is a function of the connection and a request, and answers in place of the server. True: the
connection goes on."""
import contextlib
import dataclasses
import socket
import struct
import threading

READ, WRITE, DISC, FLUSH, TRIM, ZEROES, STATUS = 0, 1, 2, 3, 4, 6, 7
CHANGES = (WRITE, FLUSH, TRIM, ZEROES)
NONE, DATA, HOLE, EXTENTS, ERROR = 0, 1, 2, 5, 0x8001  # types of chunks
DONE = 1
EIO, ENOSPC = 5, 28

OPT_ABORT, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT = 2, 7, 8, 10
REP_ACK, REP_INFO, REP_CONTEXT, REP_UNSUPPORTED = 1, 3, 4, 0x80000001
FLAGS = 1 | 4 | 8 | 32 | 64  # flush, FUA, trim, zeroes
CONTEXT = 7


@dataclasses.dataclass
class Request:
    command: int
    cookie: int
    offset: int
    length: int


class Connection:
    def __init__(self, server, sock):
        self.server, self.socket = server, sock

    def receive(self, n):
        data = bytearray()
        while len(data) < n:
            piece = self.socket.recv(n - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def send(self, data):
        self.socket.sendall(data)

    # -- the handshake

    def reply(self, option, kind, data=b""):
        self.send(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data)) + data)

    def answer_option(self, option):
        if option == OPT_SET_CONTEXT:
            self.reply(option, REP_CONTEXT, struct.pack(">I", CONTEXT) + b"base:allocation")
        if option == OPT_GO:
            self.reply(option, REP_INFO, struct.pack(">HQH", 0, self.server.size, FLAGS))
        is_known = option in (OPT_ABORT, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT)
        self.reply(option, REP_ACK if is_known else REP_UNSUPPORTED)

    def greet(self):
        self.send(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
        self.receive(4)
        option = None
        while option != OPT_GO:
            _, option, n = struct.unpack(">QII", self.receive(16))
            self.receive(n)
            self.answer_option(option)

    # -- requests

    def simple(self, request, error=0, data=b"", magic=0x67446698):
        self.send(struct.pack(">IIQ", magic, error, request.cookie) + data)

    def chunk(self, request, kind, data=b"", flags=DONE, length=None):
        self.send(struct.pack(">IHHQI", 0x668e33ef, flags, kind, request.cookie,
                              len(data) if length is None else length) + data)

    def read_chunk(self, request, offset, length, flags=DONE):
        content = self.server.content[offset:offset + length].ljust(length, b"?")
        self.chunk(request, DATA, struct.pack(">Q", offset) + content, flags)

    def status_chunk(self, request, *extents, context=CONTEXT):
        self.chunk(request, EXTENTS, struct.pack(">I", context) + b"".join(struct.pack(">II", *e) for e in extents))

    def error(self, request, number):
        self.chunk(request, ERROR, struct.pack(">IH", number, 0))

    def answer(self, request):
        if request.command == READ:
            self.read_chunk(request, request.offset, request.length)
        elif request.command == STATUS:
            self.status_chunk(request, (request.length, 0))
        else:
            self.chunk(request, NONE)

    def serve(self):
        self.greet()
        goes_on = True
        while goes_on:
            _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", self.receive(28))
            request, data = Request(command, cookie, offset, length), None
            if command == WRITE:
                data = self.receive(length)
            if command == DISC:
                return
            misdeed = self.server.misdeed_for(request)
            if misdeed:
                goes_on = misdeed(self, request)
                continue
            if command in (WRITE, ZEROES):
                self.server.content[offset:offset + length] = data or bytes(length)
            self.answer(request)

    def run(self):
        with contextlib.suppress(EOFError, OSError), self.socket:
            self.serve()


class Server:
    """Listens on a unix socket. Leaving the `with` block ends it, whoever waits for an answer."""

    def __init__(self, path, size):
        self.size, self.content = size, bytearray(size)
        self.misdeed, self.commands = None, ()
        self.misdone = threading.Event()
        self.lock, self.connections = threading.Lock(), []
        self.listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self.listener.bind(str(path))
        self.listener.listen(16)
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection = Connection(self, self.listener.accept()[0])
                with self.lock:
                    self.connections.append(connection)
                threading.Thread(target=connection.run, daemon=True).start()

    def arm(self, misdeed, commands):
        """From now on these commands are answered like that."""
        self.misdone.clear()
        self.misdeed, self.commands = misdeed, commands

    def misdeed_for(self, request):
        if self.misdeed is None or request.command not in self.commands:
            return None
        self.misdone.set()
        return self.misdeed

    def drop(self):
        """Ends all connections."""
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
            self.connections = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        self.drop()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QMP client: enough of one to see every byte."""
import json
import os
import socket

from harness import HANG


class Qmp:
    def __init__(self, path=None, sock=None, negotiate=True, of_qemu=False):
        self.of_qemu = of_qemu
        self.socket = sock or self.connect(path)
        self.socket.settimeout(HANG)
        self.bytes = b""
        self.events = []
        self.greeting = self.line()["QMP"]
        if negotiate:
            assert self.command("qmp_capabilities") == {}

    @staticmethod
    def connect(path):
        s = socket.socket(socket.AF_UNIX)
        # The path of a socket is short, that of a test's directory perhaps not.
        fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_PATH)
        try:
            s.connect(f"/proc/self/fd/{fd}/{os.path.basename(path)}")
        finally:
            os.close(fd)
        return s

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else json.dumps(data).encode())

    def line(self):
        """The next line, decoded; None at the end."""
        while b"\n" not in self.bytes:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                assert not self.bytes, f"ended within a line: {self.bytes}"
                return None
            self.bytes += data
        line, self.bytes = self.bytes.split(b"\n", 1)
        assert line.endswith(b"\r"), line
        return json.loads(line)

    def reply(self):
        """The next reply; events before it are kept."""
        while True:
            line = self.line()
            if self.of_qemu and line and "QMP" in line:
                continue  # it greets once more those who come while it starts
            if line is None or "event" not in line:
                return line
            self.events.append(line)

    def ask(self, name, /, **arguments):
        """Its reply. Words of arguments are joined with `_` for `-`."""
        self.send({"execute": name,
                   "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        return self.reply()

    def command(self, name, /, **arguments):
        """What it returns."""
        reply = self.ask(name, **arguments)
        if reply is None:
            raise ConnectionResetError(f"{name}: no reply, the connection has ended")
        assert "return" in reply, f"{name}: {reply}"
        return reply["return"]

    def error(self, name, /, **arguments):
        """The sentence of its refusal."""
        reply = self.ask(name, **arguments)
        assert reply and "error" in reply, f"{name}: {reply}"
        return reply["error"]["desc"]

    def event(self, name):
        """Waits for it; returns its data."""
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name:
                    del self.events[:i + 1]
                    return event.get("data")
            line = self.line()
            assert line, f"ended without {name}"
            assert "event" in line, line
            self.events.append(line)

    def close(self):
        self.socket.close()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon that is told over QMP what to serve, and qemu-io as its client."""
import contextlib
import socket

from harness import MIB, Daemon, run
from qmp_client import Qmp


class World:
    """chaind with a monitor and an NBD server."""

    def __init__(self, tmp, *args):
        self.tmp = tmp
        self.daemon = Daemon("--qmp", tmp / "qmp", *args)
        self.qmp = Qmp(tmp / "qmp")
        self.start()

    def start(self, name="nbd"):
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(self.tmp / name)}})

    def add(self, name, path, fmt="qcow2", **options):
        self.qmp.command("blockdev-add", driver=fmt, node_name=name,
                         file={"driver": "file", "filename": str(path)}, **options)

    def export(self, node, writable=True, **options):
        self.qmp.command("block-export-add", type="nbd", id=f"e-{node}", node_name=node,
                         writable=writable, **options)

    def uri(self, name, sock="nbd"):
        return f"nbd+unix:///{name}?socket={self.tmp / sock}"

    def io(self, name, *commands, **options):
        return qemu_io(self.uri(name), *commands, **options)

    @contextlib.contextmanager
    def deaf_reader(self, name, size):
        """A client that asks for all of an export and takes no reply."""
        s = socket.socket(socket.AF_UNIX)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(str(self.tmp / "nbd"))
        s.recv(18)
        s.sendall((3).to_bytes(4, "big"))
        s.sendall(b"IHAVEOPT" + (7).to_bytes(4, "big") + (len(name) + 6).to_bytes(4, "big") +
                  len(name).to_bytes(4, "big") + name.encode() + b"\0\0")
        for i in range(size // MIB):
            s.sendall((0x25609513).to_bytes(4, "big") + bytes(4) + i.to_bytes(8, "big") +
                      (i * MIB).to_bytes(8, "big") + MIB.to_bytes(4, "big"))
        try:
            yield
        finally:
            s.close()

    def nodes(self):
        return {n["node-name"]: n
                for n in self.qmp.command("query-named-block-nodes", flat=True)}

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *why):
        self.qmp.close()
        self.daemon.__exit__(*why)


def qemu_io(target, *commands, read_only=False):
    words = ["qemu-io", "-f", "raw"] + (["-r"] if read_only else [])
    for command in commands:
        words += ["-c", command]
    done = run(*words, target, check=False)
    out = done.stdout + done.stderr
    assert done.returncode == 0 and "rror" not in out and "failed" not in out, out
    return out

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Layers on other NBD servers: content, and what a server that hangs, or goes away, does to its own
disk and to others."""
import contextlib
import errno
import json
import os
import random
import signal
import time

import nbd

from harness import MIB, Daemon, check_image, connect, fails, main, qemu_img, qemu_io, run, same_content


@contextlib.contextmanager
def server(tmp, *args):
    """qemu-nbd, read-only unless told otherwise, on tmp/s."""
    socket, pid = tmp / "s", tmp / "pid"
    run("qemu-nbd", "--fork", "-k", socket, "--pid-file", pid, "-t", "-e", "8", *args)
    number = int(pid.read_text())
    try:
        yield number
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)
            os.kill(number, signal.SIGKILL)
        while os.path.exists(f"/proc/{number}"):
            time.sleep(0.01)
        socket.unlink(missing_ok=True)


def over(tmp, top, **options):
    """A name of the image `top` over what the server shows."""
    backing = {"driver": "nbd", "server": {"type": "unix", "path": str(tmp / "s")}, **options}
    return "json:" + json.dumps({"driver": "qcow2", "backing": backing,
                                 "file": {"driver": "file", "filename": str(top)}})


def make_base(tmp):
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base.qcow2", 32 * MIB)
    rng = random.Random(1)
    qemu_io(tmp / "base.qcow2", *(f"write -P {rng.randrange(1, 256)} {rng.randrange(31 * MIB)} 70000"
                                  for _ in range(40)))
    qemu_img("create", "-q", "-f", "qcow2", tmp / "top.qcow2", 32 * MIB)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp / "base.qcow2", tmp / "want.raw")


def test_backing(tmp):
    """An export below an image: read, copied up around writes, holes known from block status."""
    make_base(tmp)
    shadow = bytearray((tmp / "want.raw").read_bytes())
    with server(tmp, "-r", "-f", "qcow2", tmp / "base.qcow2"), Daemon(over(tmp, tmp / "top.qcow2")) as d:
        h = connect(d.uri())
        assert h.pread(32 * MIB, 0) == shadow
        rng = random.Random(2)
        for _ in range(60):
            start = rng.randrange(31 * MIB)
            data = rng.randbytes(rng.choice((1, 512, 5000, 70000)))
            h.pwrite(data, start)
            shadow[start:start + len(data)] = data
        assert h.pread(32 * MIB, 0) == shadow
        extents = json.loads(run("nbdinfo", "--json", "--map", d.uri()).stdout)
        at = 0
        for extent in extents:
            if extent["type"] & nbd.STATE_ZERO:
                assert not any(shadow[at:at + extent["length"]]), extent
            at += extent["length"]
        assert at == 32 * MIB and any(e["type"] & nbd.STATE_HOLE for e in extents), extents
        h.shutdown()
    (tmp / "shadow.raw").write_bytes(shadow)
    with server(tmp, "-r", "-f", "qcow2", tmp / "base.qcow2"):
        uri = f"nbd+unix:///?socket={tmp}/s"
        qemu_img("rebase", "-u", "-F", "raw", "-b", uri, tmp / "top.qcow2")
        same_content(tmp / "top.qcow2", tmp / "shadow.raw", "qcow2", "raw")


def test_recorded(tmp):
    """A backing name that is a URI, as qemu-img records it: raw, and an image on the server."""
    make_base(tmp)
    want = (tmp / "want.raw").read_bytes()
    uri = f"nbd+unix:///?socket={tmp}/s"
    for fmt, served in ("raw", "qcow2"), ("qcow2", "raw"):
        with server(tmp, "-r", "-f", served, tmp / "base.qcow2"):
            qemu_img("create", "-q", "-f", "qcow2", "-F", fmt, "-b", uri, tmp / "over.qcow2")
            with Daemon(tmp / "over.qcow2") as d:
                h = connect(d.uri())
                assert h.pread(32 * MIB, 0) == want
                h.pwrite(b"x" * 1000, 5000)
                assert h.pread(32 * MIB, 0) == want[:5000] + b"x" * 1000 + want[6000:]
                h.shutdown()


def test_image_on_a_server(tmp):
    """An image that lies on a server is written, up to the server's end."""
    with open(tmp / "disk", "wb") as f:
        f.truncate(8 * MIB)
    with server(tmp, "-f", "raw", tmp / "disk"):
        remote = f"nbd+unix:///?socket={tmp}/s"
        qemu_img("create", "-q", "-f", "qcow2", remote, 64 * MIB)
        shadow = bytearray(64 * MIB)
        rng = random.Random(3)
        name = {"driver": "qcow2", "file": {"driver": "nbd", "path": str(tmp / "s")}}
        with Daemon("json:" + json.dumps(name)) as d:
            h = connect(d.uri())
            for _ in range(60):
                start = rng.randrange(4 * MIB)
                data = rng.randbytes(rng.choice((1, 512, 5000, 70000)))
                h.pwrite(data, start)
                shadow[start:start + len(data)] = data
            h.flush()
            try:
                for i in range(16):
                    h.pwrite(b"y" * MIB, (32 + i) * MIB)
                    shadow[(32 + i) * MIB:(33 + i) * MIB] = b"y" * MIB
                raise AssertionError("there is space for all of it")
            except nbd.Error as e:
                assert e.errnum == errno.ENOSPC, e
            assert h.pread(32 * MIB, 0) == shadow[:32 * MIB]
            h.shutdown()
        check_image(remote)


def test_hanging_server(tmp):
    """A server that hangs holds up its own disk and no other one."""
    make_base(tmp)
    qemu_img("create", "-q", "-f", "qcow2", tmp / "other.qcow2", MIB)
    with server(tmp, "-r", "-f", "qcow2", tmp / "base.qcow2") as pid:
        with Daemon("a=" + over(tmp, tmp / "top.qcow2"), f"b={tmp}/other.qcow2") as d:
            a, b = connect(d.uri("a")), connect(d.uri("b"))
            os.kill(pid, signal.SIGSTOP)
            hung = a.aio_pread(nbd.Buffer(4096), 0)
            for i in range(50):
                b.pwrite(bytes([i + 1]) * 512, 0)
                assert b.pread(512, 0) == bytes([i + 1]) * 512
            b.flush()
            assert not a.aio_command_completed(hung)
            os.kill(pid, signal.SIGCONT)
            while not a.aio_command_completed(hung):
                a.poll(-1)
            a.shutdown()
            b.shutdown()


def test_end_beside_a_hanging_server(tmp):
    """A signal ends the program, however long a server does not answer or come back."""
    make_base(tmp)
    for options in {}, {"reconnect-delay": 100000}:
        with server(tmp, "-r", "-f", "qcow2", tmp / "base.qcow2") as pid:
            d = Daemon(over(tmp, tmp / "top.qcow2", **options))
            h = connect(d.uri())
            os.kill(pid, signal.SIGKILL if options else signal.SIGSTOP)
            h.aio_pread(nbd.Buffer(4096), 0)
            h.aio_pread(nbd.Buffer(4096), MIB)
            d.process.send_signal(signal.SIGTERM)
            assert d.wait() == 0, d.log()


def test_server_that_comes_back(tmp):
    """Within reconnect-delay requests wait; without it they fail until the server is back."""
    make_base(tmp)
    want = (tmp / "want.raw").read_bytes()
    with contextlib.ExitStack() as first:
        first.enter_context(server(tmp, "-r", "-f", "qcow2", tmp / "base.qcow2"))
        with Daemon(over(tmp, tmp / "top.qcow2", **{"reconnect-delay": 600})) as d:
            h = connect(d.uri())
            assert h.pread(MIB, 0) == want[:MIB]
            first.close()
            buffer = nbd.Buffer(MIB)
            cookie = h.aio_pread(buffer, 4 * MIB)
            with server(tmp, "-r", "-f", "qcow2", tmp / "base.qcow2"):
                while not h.aio_command_completed(cookie):
                    h.poll(-1)
                assert buffer.to_bytearray() == want[4 * MIB:5 * MIB]
            h.shutdown()


def test_refused(tmp):
    """No server, and TLS: one sentence."""
    make_base(tmp)
    for options, word in (({}, "Failed to connect to"), ({"tls-creds": "t"}, "No TLS credentials with id 't'")):
        assert word in fails(over(tmp, tmp / "top.qcow2", **options))


main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many clients, seen from outside: how many there may be, what stops the next one, and what the log
says of it."""
import resource
import select
import socket
import struct
import time

import nbd

import harness
from harness import HANG, MIB, Daemon, Skip, connect, main, qemu_img

OPT_LIST = 3


def connected(path):
    """A client that has connected and said nothing."""
    c = socket.socket(socket.AF_UNIX)
    c.settimeout(HANG)
    c.connect(str(path))
    return c


def is_greeted(c, timeout=0):
    return bool(select.select([c], [], [], timeout)[0])


def until(condition):
    """Waits for what is about to happen; the time limit is for a hang."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines_of(daemon, word):
    return [line for line in daemon.lines if word in line]


def limit_descriptors(n):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))


def test_thousand_exports(tmp):
    """1,200 exports with a client each: every client writes and reads its own disk."""
    n, hard = 1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 4 * n:
        raise Skip(f"the hard limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    qemu_img("create", "-q", "-f", "qcow2", tmp / "0.qcow2", "1M")
    empty = (tmp / "0.qcow2").read_bytes()
    for i in range(1, n):
        (tmp / f"{i}.qcow2").write_bytes(empty)
    with Daemon("--nbd", tmp / "s", *[f"d{i}={tmp}/{i}.qcow2" for i in range(n)]) as d:
        clients = []
        for i in range(n):
            h = nbd.NBD()
            h.connect_uri(f"nbd+unix:///d{i}?socket={tmp}/s")
            clients.append(h)
            h.pwrite(struct.pack(">I", i) * 1024, 8192)
        for i in reversed(range(n)):
            assert clients[i].pread(4096, 8192) == struct.pack(">I", i) * 1024, i
        assert not lines_of(d, "client"), d.log()
        c = connected(tmp / "s")
        c.recv(18, socket.MSG_WAITALL)
        c.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", OPT_LIST, 0))
        names = set()
        while True:
            head = c.recv(20, socket.MSG_WAITALL)
            kind, length = struct.unpack(">II", head[12:])
            if kind != 2:
                break
            data = c.recv(length, socket.MSG_WAITALL)
            names.add(data[4:4 + struct.unpack(">I", data[:4])[0]])
        assert kind == 1 and names == {b"d%d" % i for i in range(n)}, (kind, len(names))
        c.close()
        for h in clients:
            h.shutdown()


def test_limit_of_connections(tmp):
    """With --max-connections 3 a fourth client waits until one leaves; the log says so once."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    with Daemon("--nbd", tmp / "s", "--max-connections", "3", tmp / "a.qcow2") as d:
        clients = [connect(d.uri()) for _ in range(3)]
        fourth = connected(tmp / "s")
        until(lambda: lines_of(d, "--max-connections"))
        assert not is_greeted(fourth)
        clients.pop().shutdown()
        assert is_greeted(fourth, HANG)
        fourth.close()
        fifth = connect(d.uri())
        for h in [*clients, fifth]:
            h.pread(512, 0)
            h.shutdown()
        assert len(lines_of(d, "--max-connections")) == 1, d.log()
        harness.says(d.log(), "3 clients are connected")


def test_limit_of_descriptors(tmp):
    """At the hard limit of open files clients wait, images can still be opened, the log says it once."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    with Daemon("--nbd", tmp / "s", tmp / "a.qcow2", preexec_fn=limit_descriptors(96)) as d:
        good = connect(d.uri())
        good.pwrite(b"good" * 128, 0)
        others = []
        while not lines_of(d, "open files"):
            others.append(nbd.NBD())
            others[-1].aio_connect_uri(d.uri())
            assert len(others) < 200
            deadline = time.monotonic() + HANG
            while not others[-1].aio_is_ready() and not lines_of(d, "open files"):
                others[-1].poll(10)
                assert time.monotonic() < deadline
        assert len(others) > 40, len(others)
        assert good.pread(512, 0) == b"good" * 128
        waiting = others.pop()
        assert not waiting.aio_is_ready()
        others.pop().shutdown()
        while not waiting.aio_is_ready():
            assert waiting.poll(HANG * 1000) == 1
        assert waiting.pread(512, 0) == b"good" * 128
        for h in [*others, waiting, good]:
            h.shutdown()
        assert len(lines_of(d, "open files")) == 1, d.log()
        harness.says(d.log(), "96 open files", "ulimit -Hn", "LimitNOFILE=")


def test_hard_limit_too_low(tmp):
    """A hard limit that leaves no client for some exports is told at the start."""
    disks = []
    for i in range(40):
        qemu_img("create", "-q", "-f", "qcow2", tmp / f"{i}.qcow2", "1M")
        disks.append(f"d{i}={tmp}/{i}.qcow2")
    with Daemon(*disks, preexec_fn=limit_descriptors(80)) as d:
        harness.says(d.log(), "hard limit of 80 open files", "40 exports", "ulimit -Hn")
        assert connect(d.uri("d7")).pread(512, 0) == bytes(512)
    with Daemon(*disks, preexec_fn=limit_descriptors(256)) as d:
        assert not lines_of(d, "hard limit"), d.log()


def test_silent_crowd(tmp):
    """1,000 connections that say nothing do not keep a client from being served."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with Daemon("--nbd", tmp / "s", tmp / "a.qcow2") as d:
        crowd = [connected(tmp / "s") for _ in range(1000)]
        h = connect(d.uri())
        h.pwrite(bytes(MIB // 2), 0)
        h.shutdown()
        for c in crowd:
            c.close()
        assert len(lines_of(d, "chosen no export")) == 1, d.log()


main(globals())

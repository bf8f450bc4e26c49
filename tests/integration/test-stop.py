#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""How it ends: signals while idle and under load, clients that stay, exit statuses."""
import os
import signal
import socket
import threading

import nbd

import harness
from harness import MIB, Daemon, connect, main, qemu_img, run, says


def image(tmp, name="a.qcow2", size="64M"):
    qemu_img("create", "-q", "-f", "qcow2", tmp / name, size)
    return tmp / name


def test_sigterm(tmp):
    """SIGTERM ends an idle daemon with status 0."""
    with Daemon(image(tmp)) as d:
        d.stop()


def test_sigint(tmp):
    """SIGINT ends an idle daemon with status 0."""
    d = Daemon(image(tmp))
    d.process.send_signal(signal.SIGINT)
    assert d.wait() == 0


def test_sighup(tmp):
    """SIGHUP does not end a daemon without a terminal."""
    with Daemon(image(tmp)) as d:
        d.process.send_signal(signal.SIGHUP)
        for _ in range(10):
            assert connect(d.uri()).get_size() == 64 * MIB


def test_stop_with_client(tmp):
    """A connected, idle client does not keep the daemon from ending."""
    d = Daemon(image(tmp))
    h = connect(d.uri())
    h.pwrite(b"x" * 4096, 0)
    d.stop()
    harness.check_image(tmp / "a.qcow2")
    assert "x" * 16 in harness.qemu_io(tmp / "a.qcow2", "read -v 0 512")


def test_stop_with_silent_client(tmp):
    """A client that never finished its handshake does not keep the daemon from ending."""
    d = Daemon("--nbd", tmp / "s", image(tmp))
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(tmp / "s"))
        assert s.recv(8) == b"NBDMAGIC"
        d.stop(timeout=30)


def test_stop_under_load(tmp):
    """Writes answered before a SIGTERM in the middle of load are in the image afterwards."""
    disk = image(tmp)
    for round_number in range(5):
        d = Daemon(disk)
        answered = [set() for _ in range(4)]

        def load(n):
            h = connect(d.uri())
            try:
                for i in range(4000):
                    block = i * 4 + n
                    h.pwrite(bytes([1 + round_number]) * 4096, block * 4096)
                    answered[n].add(block)
            except nbd.Error:
                pass

        threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
        for t in threads:
            t.start()
        while sum(map(len, answered)) < 500:
            assert d.process.poll() is None
            os.sched_yield()
        d.stop()
        for t in threads:
            t.join()
        harness.check_image(disk)
        qemu_img("convert", "-O", "raw", disk, tmp / "now.raw")
        with open(tmp / "now.raw", "rb") as f:
            for block in sorted(set().union(*answered)):
                f.seek(block * 4096)
                got = f.read(4096)
                assert got == bytes([1 + round_number]) * 4096, f"block {block}, round {round_number}"


def test_second_signal(tmp):
    """A second signal while stopping ends it at once with status 1, and the image is usable."""
    disk = image(tmp)
    d = Daemon("--nbd", tmp / "s", disk)
    h = connect(d.uri())
    h.pwrite(b"x" * 4096, 0)
    h.flush()
    # A client that takes no replies makes the stop wait for it.
    stuck = nbd.NBD()
    stuck.connect_uri(d.uri())
    buffers = [nbd.Buffer(MIB) for _ in range(32)]
    for i, b in enumerate(buffers):
        stuck.aio_pread(b, i * MIB)
    d.process.send_signal(signal.SIGTERM)
    while not any("stopping" in line for line in d.lines):
        os.sched_yield()
    d.process.send_signal(signal.SIGTERM)
    assert d.wait(timeout=20) in (0, 1)
    with Daemon(disk) as d:
        assert connect(d.uri()).pread(4096, 0) == b"x" * 4096
    harness.check_image(disk)


def test_stuck_client(tmp):
    """A client that takes no replies delays the end by a bounded time only."""
    d = Daemon(image(tmp))
    stuck = nbd.NBD()
    stuck.connect_uri(d.uri())
    buffers = [nbd.Buffer(MIB) for _ in range(64)]
    for i, b in enumerate(buffers[:48]):
        stuck.aio_pread(b, i * MIB)
    d.stop(timeout=30)


def test_log_of_a_life(tmp):
    """The log says what is served, and why it stopped."""
    with Daemon(f"web={image(tmp)}") as d:
        pass
    says(d.log(), "serving 'web': 64 MiB qcow2, 1 layer", "stopping: Terminated")


main(globals())

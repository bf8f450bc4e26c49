#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""How it ends: signals while idle and under load, clients that stay, exit statuses."""
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time

import nbd

import harness
from fuse_disk import write_script
from harness import MIB, Daemon, connect, main, need_fuse_disk, qemu_img, says
from nbd_server import FLUSH, READ, TRIM, WRITE, ZEROES, Server
from world import World


def image(tmp, name="a.qcow2", size="64M"):
    qemu_img("create", "-q", "-f", "qcow2", tmp / name, size)
    return tmp / name


def stuck_client(d, n):
    """A client that asked for `n` MiB, and takes no replies. Simple ones: holes are sent as zeros."""
    stuck = nbd.NBD()
    stuck.set_request_structured_replies(False)
    stuck.connect_uri(d.uri())
    stuck.buffers = [nbd.Buffer(MIB) for _ in range(n)]
    for i, b in enumerate(stuck.buffers):
        stuck.aio_pread(b, i * MIB)
    return stuck


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


def test_stop_with_tcp_client(tmp):
    """Over TCP a client reads every reply that was due at the stop, however many requests lay unread."""
    each = 64 << 10
    d = Daemon("--nbd", "127.0.0.1:0", image(tmp))
    host, port = d.uri().removeprefix("nbd://").rstrip("/").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as s:
        s.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))  # no zeroes; EXPORT_NAME ""
        assert len(s.recv(18, socket.MSG_WAITALL)) == 18
        assert len(s.recv(10, socket.MSG_WAITALL)) == 10
        requests = b"".join(struct.pack(">IHHQQI", 0x25609513, 0, 0, i, 0, each)
                            for i in range(200000))
        sent = 0
        while select.select([], [s], [], 1)[1]:  # until it reads no more
            sent += s.send(requests[sent:sent + 65536], socket.MSG_DONTWAIT)
        d.process.send_signal(signal.SIGTERM)
        n_replies = 0
        while head := s.recv(16, socket.MSG_WAITALL):
            magic, error, cookie = struct.unpack(">IIQ", head)
            assert (magic, cookie) == (0x67446698, n_replies), (magic, cookie, n_replies)
            if error == 0:
                assert len(s.recv(each, socket.MSG_WAITALL)) == each
            n_replies += 1
    assert n_replies > 0
    assert d.wait() == 0


def test_stop_with_silent_client(tmp):
    """A client that never finished its handshake does not keep the daemon from ending."""
    d = Daemon("--nbd", tmp / "s", image(tmp))
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(tmp / "s"))
        assert s.recv(8) == b"NBDMAGIC"
        d.stop()


def test_stop_under_load(tmp):
    """Writes answered before a SIGTERM in the middle of load are in the image afterwards."""
    disk = image(tmp)
    for round_number in range(5):
        d = Daemon(disk)
        uri = d.uri()
        answered = [set() for _ in range(4)]

        def load(n):
            h = connect(uri)
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


def begin_stop(d, stop_signal=signal.SIGTERM):
    """Asks for the end, and waits until the daemon has taken the signal: another one is a second."""
    d.process.send_signal(stop_signal)
    while not any("stopping" in line for line in d.lines):
        os.sched_yield()


def keep_signalling(d):
    """Signals until it ends; its exit status."""
    while d.process.poll() is None:
        d.process.send_signal(signal.SIGTERM)
        try:
            d.process.wait(0.05)
        except subprocess.TimeoutExpired:
            pass
    return d.wait()


def test_two_signals_at_once(tmp):
    """Two signals at once, as timeout(1) sends them to a process and its group, flush as one does."""
    disk = image(tmp)
    d = Daemon(disk)
    h = connect(d.uri())
    h.pwrite(b"x" * MIB, 0)
    stuck = stuck_client(d, 48)  # so that the second one finds it stopping
    begin_stop(d)
    d.process.send_signal(signal.SIGTERM)
    d.process.send_signal(signal.SIGINT)
    assert d.wait() == 0, d.log()
    del stuck
    assert "at once" not in d.log(), d.log()
    assert "x" * 16 in harness.qemu_io(disk, f"read -v {MIB - 512} 512")
    harness.check_image(disk)


def test_signal_to_process_and_group(tmp):
    """What was written is there after timeout(1), which signals the process and then its group."""
    disk = image(tmp)
    for round_number in range(1, 13):
        d = Daemon(disk, preexec_fn=os.setsid)
        h = connect(d.uri())
        h.pwrite(bytes([round_number]) * (16 * MIB), 0)
        begin_stop(d)
        os.killpg(d.process.pid, signal.SIGTERM)  # of a zombie, if it has ended already
        assert d.wait() == 0, f"round {round_number}: {d.log()}"
        harness.qemu_io(disk, f"read -P {round_number} 0 16M")
    harness.check_image(disk)


def test_second_signal_leaves_nothing_behind(tmp):
    """A second signal removes the private socket and its directory, too."""
    d = Daemon(image(tmp))
    directory = os.path.dirname(d.socket())
    stuck = stuck_client(d, 48)
    begin_stop(d)
    assert keep_signalling(d) == 1, d.log()
    del stuck
    assert not os.path.exists(directory), f"{directory} is still there"


def test_second_signal(tmp):
    """Another signal a second after the first ends it at once with status 1; the image is usable."""
    disk = image(tmp)
    d = Daemon("--nbd", tmp / "s", disk)
    h = connect(d.uri())
    h.pwrite(b"x" * 4096, 0)
    h.flush()
    stuck = stuck_client(d, 32)  # makes the stop wait for it
    begin_stop(d)
    assert keep_signalling(d) == 1, d.log()
    del stuck
    with Daemon(disk) as d:
        assert connect(d.uri()).pread(4096, 0) == b"x" * 4096
    harness.check_image(disk)


def test_stuck_client(tmp):
    """A client that takes no replies delays the end by a bounded time only."""
    d = Daemon(image(tmp))
    stuck = stuck_client(d, 48)
    d.stop()
    del stuck


def test_corrupt_at_the_end(tmp):
    """A disk that turned out to be corrupt cannot be flushed: status 1 and a sentence that says so."""
    disk = image(tmp)
    harness.qemu_io(disk, "write 0 1M")
    with open(disk, "r+b") as f:
        f.seek(40)  # the first L2 entry becomes one that is not aligned to a cluster
        f.seek(int.from_bytes(f.read(8), "big"))
        l2 = int.from_bytes(f.read(8), "big") & 0x00fffffffffffe00
        f.seek(l2)
        f.write((1 << 63 | 0x200).to_bytes(8, "big"))
    d = Daemon(f"bad={disk}", f"good={image(tmp, 'good.qcow2')}")
    try:
        connect(d.uri("bad")).pread(4096, 0)
    except nbd.Error as e:
        assert e.errno == "EIO", e
    else:
        raise AssertionError("data from a damaged entry")
    d.stop(expect=1)
    last = [line for line in d.lines if "at the end" in line]
    assert len(last) == 1, d.log()
    says(last[0], "a.qcow2", "could not be flushed at the end: it is damaged", "may be lost")


def on_fuse(tmp, test, **methods):
    """Calls test(path) with a file whose storage does what the shell commands say."""
    with need_fuse_disk(tmp / "mnt", "sh", write_script(tmp / "storage", **methods)) as path:
        test(path)


def test_failed_sync(tmp):
    """A sync that fails is told once, sticks, and makes the end one with status 1."""
    def test(disk):
        d = Daemon("--format", "raw", disk)
        h = connect(d.uri())
        h.pwrite(b"x" * 4096, 0)
        for _ in range(3):
            try:
                h.flush()
            except nbd.Error as e:
                assert e.errno == "EIO", e
            else:
                raise AssertionError("a flush succeeded")
        d.stop(expect=1)
        told = [line for line in d.lines if "sync failed" in line]
        assert len(told) == 1, d.log()
        says(told[0], disk, "Input/output error",
             "every flush answers an error until it is opened again")
        says(d.log(), "could not be flushed at the end")
    on_fuse(tmp, test, flush='echo "EIO no" >&2; exit 1')


def test_hung_disk(tmp):
    """A disk whose storage hangs keeps no other from being flushed and closed, and is named."""
    def hang(disk):
        with open(tmp / "good.raw", "wb") as f:
            f.truncate(MIB)
        d = Daemon("--loops", 1, "--format", "raw", f"hung={disk}", f"good={tmp}/good.raw")
        good_one, hung = connect(d.uri("good")), connect(d.uri("hung"))
        good_one.pwrite(b"y" * 4096, 0)
        hung.pwrite(b"x" * 4096, 0)
        (tmp / "hang").touch()
        d.process.send_signal(signal.SIGTERM)
        while not any("not closed yet" in line for line in d.lines):
            assert d.process.poll() is None, d.log()
            os.sched_yield()
        says(d.log(), f"'{disk}' is not closed yet")
        # The other one is closed: its locks are gone.
        qemu_img("resize", "-f", "raw", tmp / "good.raw", "2M")
        (tmp / "hang").unlink()
        assert d.wait() == 0, d.log()
    on_fuse(tmp, hang, flush=f'while test -e "{tmp}/hang"; do sleep 0.05; done')


def test_all_at_once(tmp):
    """With idle clients, one that takes no replies, a job, and servers that fell silent, it ends in 10 s."""
    with Server(tmp / "far", 64 * MIB) as far, Server(tmp / "target", 64 * MIB) as target:
        with World(tmp) as w:
            w.add("local", image(tmp))
            w.export("local", name="local")
            for name in "far", "target":
                w.qmp.command("blockdev-add", driver="nbd", node_name=name,
                              server={"type": "unix", "path": str(tmp / name)})
            w.export("far", name="far")
            idle, h = connect(w.uri("local")), connect(w.uri("local"))
            h.pwrite(b"x" * MIB, 0)
            stuck = nbd.NBD()
            stuck.set_request_structured_replies(False)
            stuck.connect_uri(w.uri("local"))
            buffers = [nbd.Buffer(MIB) for _ in range(48)]
            for i, b in enumerate(buffers):
                stuck.aio_pread(b, i * MIB)
            for server in far, target:
                server.arm(lambda connection, request: True, (READ, WRITE, FLUSH, ZEROES, TRIM))
            waiting = connect(w.uri("far"))
            waiting.aio_pwrite(b"y" * 4096, 0)
            waiting.aio_flush()
            w.qmp.command("blockdev-mirror", job_id="m", device="local", target="target", sync="full")
            begin = time.monotonic()
            w.daemon.process.send_signal(signal.SIGTERM)
            status = w.daemon.wait()
            took = time.monotonic() - begin
            assert took < 60, f"{took:.1f} s: {w.daemon.log()}"  # 8 s; a slow machine takes longer
            assert status == 0, w.daemon.log()  # nothing that was acknowledged is lost
            print(f"# {took:.1f} s")
    harness.check_image(tmp / "a.qcow2")
    harness.qemu_io(tmp / "a.qcow2", f"read -P {ord('x')} 0 1M")
    del idle, stuck


def test_log_of_a_life(tmp):
    """The log says what is served, and why it stopped."""
    with Daemon(f"web={image(tmp)}") as d:
        pass
    says(d.log(), "serving 'web': 64 MiB qcow2, 1 layer", "stopping: Terminated")


main(globals())

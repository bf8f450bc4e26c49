#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGHUP and reload-config: what changed takes effect, clients stay, and with a mistake all stays."""
import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import time

import nbd

from harness import (HANG, MIB, Daemon, connect, main, need_program, qemu_img, run, says)
from pki import Authority
from qmp_client import Qmp
import harness


class Configured:
    """A daemon with a configuration of its own, and a disk "web"."""

    def __init__(self, tmp, text, *args):
        self.tmp, self.file = tmp, tmp / "c.conf"
        self.base = f"[daemon]\nstate = {tmp}/state\n[control main]\npath = {tmp}/qmp\n"
        self.write(text)
        self.daemon = Daemon("--config", self.file, *args)
        self.qmp = Qmp(tmp / "qmp")

    def __enter__(self):
        return self

    def __exit__(self, *why):
        self.qmp.socket.close()
        self.daemon.__exit__(*why)

    def write(self, text):
        self.file.write_text(self.base + text)

    def disk(self):
        self.qmp.command("disk-create", name="web", size=64 * MIB)
        return self

    def reload(self, text):
        """By SIGHUP: the lines of the log since."""
        n = len(self.daemon.lines)
        self.write(text)
        self.daemon.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + HANG
        while time.monotonic() < end:
            since = "\n".join(self.daemon.lines[n:])
            if "the configuration was read again" in since or "stays as it was" in since:
                return since
            time.sleep(0.01)
        raise AssertionError(f"nothing was said: {self.daemon.log()}")


def unix(path, export="web"):
    return f"nbd+unix:///{export}?socket={path}"


def accepts(path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as s:
        try:
            s.connect(str(path))
        except OSError:
            return False
        return True


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listen(name, address, more=""):
    return f"[listen {name}]\naddress = {address}\n{more}"


# -- sockets --------------------------------------------------------------------------------------

def test_listeners_come_and_go(tmp):
    """sockets of sections that come are opened, those of sections that go are closed; clients stay"""
    a, b = tmp / "a.sock", tmp / "b.sock"
    with Configured(tmp, listen("a", a)) as c:
        c.disk()
        old = connect(unix(a))
        old.pwrite(b"x" * 4096, 0)
        said = c.reload(listen("b", b, "mode = 0640\n"))
        says(said, f"no more clients are taken at {a}", f"clients are taken at {b}")
        assert not a.exists() and not accepts(a)
        assert b.stat().st_mode & 0o777 == 0o640, oct(b.stat().st_mode)
        assert connect(unix(b)).pread(4096, 0) == b"x" * 4096
        old.pwrite(b"y" * 4096, 0)
        assert old.pread(4096, 0) == b"y" * 4096
        old.shutdown()
        c.reload(listen("other", b, "mode = 0640\n"))
        assert accepts(b), "what a section is called does not matter"


def test_mode_of_a_socket(tmp):
    """permissions of a socket that stays change"""
    a = tmp / "a.sock"
    with Configured(tmp, listen("a", a)) as c:
        before = a.stat()
        assert before.st_mode & 0o777 == 0o600, oct(before.st_mode)
        c.reload(listen("a", a, "mode = 0666\n"))
        assert a.stat().st_mode & 0o777 == 0o666, oct(a.stat().st_mode)
        assert a.stat().st_ino == before.st_ino, "it is another socket"


def test_address_that_ours_had(tmp):
    """an address that is free only when another of ours goes is taken"""
    port = free_port()
    with Configured(tmp, listen("a", f":{port}")) as c:
        c.disk()
        old = connect(f"nbd://localhost:{port}/web")
        said = c.reload(listen("a", f"127.0.0.1:{port}"))
        says(said, f"no more clients are taken at :{port}", f"clients are taken at 127.0.0.1:{port}")
        connect(f"nbd://127.0.0.1:{port}/web").shutdown()
        old.pwrite(b"x" * 512, 0)
        old.shutdown()


def test_address_that_is_taken(tmp):
    """an address that another program has: everything stays, and the log names the line"""
    a, b = tmp / "a.sock", tmp / "b.sock"
    with Configured(tmp, listen("a", a)) as c, contextlib.closing(socket.socket(socket.AF_UNIX)) as s:
        s.bind(str(b))
        s.listen()
        said = c.reload(listen("b", b) + "[daemon]\nlog = debug\n")
        says(said, f"stays as it was: {c.file}:6: cannot listen on '{b}'")
        assert accepts(a)
        assert c.qmp.command("query-log-level") == {"level": "info"}


def test_listeners_of_the_command_line(tmp):
    """sockets that the command line names stay, whatever the files say"""
    a, b = tmp / "a.sock", tmp / "b.sock"
    with Configured(tmp, listen("b", b), "--nbd", a) as c:
        assert accepts(a) and not b.exists()
        c.reload(listen("b", b, "mode = 0666\n"))
        assert accepts(a) and not b.exists()


def test_clients_under_load(tmp):
    """reloads, in which sockets come and go, do not disturb clients that write and verify"""
    a, b = tmp / "a.sock", tmp / "b.sock"
    need_program("fio")
    with Configured(tmp, listen("a", a)) as c:
        c.disk()
        fio = subprocess.Popen(
            ["fio", "--name=w", "--ioengine=nbd", f"--uri={unix(a)}", "--rw=randwrite", "--bs=4k",
             "--iodepth=16", "--time_based", "--runtime=6", "--size=32m", "--verify=crc32c",
             "--verify_backlog=64", "--verify_state_save=0", "--output=/dev/null"], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        handle = connect(unix(a))
        while c.qmp.command("query-export-stats")[0]["clients"] < 2:
            assert fio.poll() is None, fio.stdout.read()
            time.sleep(0.01)
        n = 0
        while fio.poll() is None:
            i = n % 256
            n += 1
            where = listen("a", a) if i % 2 else listen("b", b)
            says(c.reload(where + f"[daemon]\nlog = {'debug' if i % 3 else 'info'}\n"), "read again")
            handle.pwrite(bytes([i]) * 512, 40 * MIB)
            assert handle.pread(512, 40 * MIB) == bytes([i]) * 512
            run("nbdcopy", unix(a if i % 2 else b), "null:")
        assert fio.returncode == 0, fio.stdout.read()
        assert n >= 4, f"only {n} reloads in that time"
        handle.shutdown()


def test_certificates(tmp):
    """certificates are read again; who is connected stays, and broken ones change nothing"""
    port = free_port()
    a = f"127.0.0.1:{port}"
    one = Authority(tmp / "one").issue("server", "server").folder
    two = Authority(tmp / "two").issue("server", "server").folder
    shutil.copytree(one, tmp / "live")
    text = listen("a", a, f"tls-certificates = {tmp}/live\n")

    def client(folder):
        h = nbd.NBD()
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_certificates(str(folder))
        h.set_tls_verify_peer(True)
        h.set_export_name("web")
        h.connect_tcp("localhost", str(port))
        return h

    with Configured(tmp, text) as c:
        c.disk()
        old = client(one)
        for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
            shutil.copy(two / name, tmp / "live" / name)
        c.reload(text)
        client(two).shutdown()
        try:
            client(one)
            raise AssertionError("the certificate is the old one")
        except nbd.Error:
            pass
        old.pwrite(b"x" * 512, 0)
        (tmp / "live/server-cert.pem").write_text("no certificate")
        says(c.reload(text), f"stays as it was: {c.file}:7: ", "server-cert.pem")
        client(two).shutdown()
        says(c.reload(listen("a", a)), "read again")
        connect(f"nbd://{a}/web").shutdown()
        old.shutdown()


def test_many_signals(tmp):
    """signals that come in a burst are answered, and the last state of the files holds"""
    a, b = tmp / "a.sock", tmp / "b.sock"
    with Configured(tmp, listen("a", a)) as c:
        for i in range(300):
            c.write(listen("a", a) if i % 2 else listen("b", b))
            c.daemon.process.send_signal(signal.SIGHUP)
        c.qmp.command("reload-config")
        assert accepts(a) and not accepts(b)


def test_server_stops_meanwhile(tmp):
    """the NBD server is stopped and started by commands beside reloads"""
    a, b = tmp / "a.sock", tmp / "b.sock"
    with Configured(tmp, listen("a", a)) as c:
        other = Qmp(tmp / "qmp")
        for i in range(60):
            c.write(listen("a", a) if i % 2 else listen("b", b))
            c.daemon.process.send_signal(signal.SIGHUP)
            other.command("nbd-server-stop")
            other.command("nbd-server-start",
                          addr={"type": "unix", "data": {"path": str(tmp / "own.sock")}})
        c.qmp.command("reload-config")
        assert accepts(tmp / "own.sock") and accepts(a) and not accepts(b)
        other.close()


# -- what else changes ----------------------------------------------------------------------------

def test_bad_file(tmp):
    """a file with mistakes changes nothing, and the log names them all"""
    a = tmp / "a.sock"
    with Configured(tmp, listen("a", a)) as c:
        bad = listen("b", tmp / "b.sock") + "moed = 0600\n[daemon]\nloops = many\n"
        said = c.reload(bad)
        says(said, f"{c.file}:7: [listen] has no 'moed': did you mean 'mode'?",
             f"{c.file}:9: 'loops' is a number from 1 to 256, not 'many'",
             "stays as it was: 2 mistakes, the first: ")
        assert accepts(a) and not (tmp / "b.sock").exists()
        says(c.reload(listen("a", a)), "nothing in it has changed")
        c.write(bad)
        says(c.qmp.error("reload-config"), "2 mistakes, the first: ", f"{c.file}:7: ")


def test_what_waits(tmp):
    """settings that need a start are named with their line, others take effect"""
    with Configured(tmp, "") as c:
        said = c.reload("[daemon]\nlog = debug\nloops = 3\n[control two]\npath = /nowhere/x\n")
        says(said, f"{c.file}:7: 'loops' of [daemon] takes effect when chaind starts again",
             f"{c.file}:9: 'path' of [control two] takes effect", "the log level is debug")
        assert c.qmp.command("query-log-level") == {"level": "debug"}
        c.write("")
        reply = c.qmp.command("reload-config")
        assert reply["done"] == ["the log level is info"], reply
        assert "'loops' of [daemon] takes effect when chaind starts again" in reply["waiting"], reply


def test_command_line_stays(tmp):
    """a reload does not change what the command line says"""
    with Configured(tmp, "", "--log", "debug", "--loops", "2") as c:
        c.write("[daemon]\nlog = error\nloops = 3\n")
        assert c.qmp.command("reload-config") == {"done": [], "waiting": [], "failed": []}
        assert c.qmp.command("query-log-level") == {"level": "debug"}


def test_without_configuration(tmp):
    """without a configuration SIGHUP says so, and the daemon goes on; the command fails"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    with Daemon("--qmp", tmp / "qmp", tmp / "a.qcow2") as d:
        d.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + HANG
        while "no configuration to read again" not in d.log() and time.monotonic() < end:
            time.sleep(0.01)
        says(d.log(), "SIGHUP: there is no configuration to read again: start chaind with --config")
        qmp = Qmp(tmp / "qmp")
        says(qmp.error("reload-config"), "there is no configuration to read again")
        connect(d.uri()).shutdown()


def on_terminal(tmp):
    """A daemon whose log is a terminal of its own: its process, and the terminal's other end."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    pid, master = pty.fork()
    if pid == 0:
        os.execv(harness.chaind_path, [harness.chaind_path, str(tmp / "a.qcow2")])
    return pid, master


def read_until(fd, words):
    text = b""
    while words not in text:
        text += os.read(fd, 1 << 16)
    return text


def test_terminal(tmp):
    """with a terminal, SIGHUP from somebody does not end the daemon; the terminal's end does"""
    pid, master = on_terminal(tmp)
    read_until(master, b"ready")
    os.kill(pid, signal.SIGHUP)
    read_until(master, b"no configuration to read again")
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0, "it did not stop in order"


main(globals())

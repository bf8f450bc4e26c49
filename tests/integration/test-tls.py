#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""TLS with the programs that people use: nbdinfo, nbdcopy, nbdkit and QEMU as clients, QEMU and nbdkit
as servers, certificates and keys that are wrong, and clients that leave in the handshake."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import nbd

from harness import (HANG, MIB, Daemon, check_image, connect, fails, main, need_program, qemu_img, qemu_io,
                     random_file, run, same_content)
from pki import Authority, make_keys
from qmp_client import Qmp

QEMU_IMG = os.environ.get("QEMU_IMG", "qemu-img")
QSD = os.environ.get("QSD", "qemu-storage-daemon")


def make_disk(tmp, size=8 * MIB):
    random_file(tmp / "want.raw", size)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp / "want.raw", tmp / "a.qcow2")
    return tmp / "a.qcow2"


def authority(tmp, name="pki"):
    return Authority(tmp / name).issue("server", "server").issue("client", "client").folder


def x509(folder, end="client", name="t"):
    return f"tls-creds-x509,id={name},dir={folder},endpoint={end}"


def over_tls(socket_path, hostname="localhost"):
    host = f",tls-hostname={hostname}" if hostname else ""
    return f"driver=nbd,server.type=unix,server.path={socket_path},tls-creds=t{host}"


def tls_handle(socket_path, folder, verify=True):
    h = nbd.NBD()
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_certificates(str(folder))
    h.set_tls_verify_peer(verify)
    h.connect_unix(str(socket_path))
    return h


def refused(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except nbd.Error as e:
        return e.string
    raise AssertionError("it was let in")


def await_log(d, words):
    deadline = time.monotonic() + HANG
    while words not in d.log():
        assert time.monotonic() < deadline, f"no {words!r} in the log:\n{d.log()}"
        time.sleep(0.01)


def test_certificates(tmp):
    """With certificates nbdinfo, nbdcopy, nbdkit and QEMU read, write and copy."""
    disk, pki = make_disk(tmp), authority(tmp)
    with Daemon("--tls-certificates", pki, "--tls-verify-peer", "--nbd", tmp / "s", "--nbd", "localhost:0",
                disk) as d:
        local, remote = d.uris()
        assert local.startswith("nbds+unix://") and remote.startswith("nbds://localhost:"), d.uris()
        info = json.loads(run("nbdinfo", "--json", local).stdout)
        assert info["TLS"] and info["exports"][0]["export-size"] == 8 * MIB, info
        for uri in local, remote:
            run("nbdcopy", uri, tmp / "copy.raw")
            assert (tmp / "copy.raw").read_bytes() == (tmp / "want.raw").read_bytes()
        run("nbdkit", "-U", "-", "nbd", f"socket={tmp}/s", "tls=require", f"tls-certificates={pki}",
            "--run", f"nbdcopy $uri {tmp}/copy-2.raw")
        assert (tmp / "copy-2.raw").read_bytes() == (tmp / "want.raw").read_bytes()
        run(QEMU_IMG, "convert", "--object", x509(pki), "--image-opts", over_tls(tmp / "s"), "-O", "raw",
            tmp / "copy-3.raw")
        assert (tmp / "copy-3.raw").read_bytes() == (tmp / "want.raw").read_bytes()
        port = remote.split("localhost:")[1].split("/")[0]
        out = run("qemu-io", "--object", x509(pki), "--image-opts",
                  f"driver=nbd,host=localhost,port={port},tls-creds=t", "-c", "write -P 7 1M 3M", "-c", "flush",
                  "-c", "read -P 7 1M 3M").stdout
        assert "failed" not in out and "rror" not in out, out
        assert connect_and_read(tmp / "s", pki) == b"\7" * 4096
        assert "did not come in" not in d.log(), d.log()
    check_image(disk)


def connect_and_read(path, pki):
    h = tls_handle(path, pki, verify=False)
    data = h.pread(4096, 2 * MIB)
    h.shutdown()
    return bytes(data)


def test_keys(tmp):
    """With shared keys nbdinfo, nbdkit and QEMU connect, and a key that is added later counts at once."""
    disk = make_disk(tmp)
    keys = make_keys(tmp / "keys", "alice", "qemu")
    with Daemon("--tls-psk", keys / "keys.psk", "--nbd", tmp / "s", disk) as d:
        uri = d.uri().replace("nbds+unix://", "nbds+unix://alice@")
        assert f"tls-psk-file={keys}/keys.psk" in uri, uri
        assert run("nbdinfo", "--size", uri).stdout.strip() == str(8 * MIB)
        run("nbdkit", "-U", "-", "nbd", f"socket={tmp}/s", "tls=require", "tls-username=alice",
            f"tls-psk={keys}/keys.psk", "--run", f"nbdcopy $uri {tmp}/copy.raw")
        assert (tmp / "copy.raw").read_bytes() == (tmp / "want.raw").read_bytes()
        run(QEMU_IMG, "convert", "--object", f"tls-creds-psk,id=t,dir={keys},endpoint=client", "--image-opts",
            over_tls(tmp / "s", None), "-O", "raw", tmp / "copy-2.raw")
        assert (tmp / "copy-2.raw").read_bytes() == (tmp / "want.raw").read_bytes()
        bob = uri.replace("alice@", "bob@")
        run("psktool", "-u", "bob", "-p", tmp / "other.psk")
        bob = bob.replace(f"{keys}/keys.psk", f"{tmp}/other.psk")
        assert run("nbdinfo", bob, check=False).returncode != 0
        await_log(d, "did not come in: TLS")
        with open(keys / "keys.psk", "a") as f:
            f.write((tmp / "other.psk").read_text())
        assert run("nbdinfo", "--size", bob).stdout.strip() == str(8 * MIB)


def test_refused(tmp):
    """Who has a wrong, an old or no certificate, or speaks plain, is refused; the log says why."""
    disk, pki = make_disk(tmp), authority(tmp)
    other = authority(tmp, "other")
    old, none = tmp / "old", tmp / "none"
    shutil.copytree(pki, old)
    shutil.copytree(pki, none)
    aged = Authority.__new__(Authority)
    aged.folder = old
    aged.issue("client", "client", valid=False)
    (none / "client-cert.pem").unlink()
    (none / "client-key.pem").unlink()
    with Daemon("--tls-certificates", pki, "--tls-verify-peer", "--nbd", tmp / "s", disk) as d:
        for folder, words in (other, "the peer is refused"), (old, "expired"), (none, "ertificate"):
            refused(lambda: tls_handle(tmp / "s", folder, verify=False).get_size())
            await_log(d, words)
            time.sleep(1.1)  # it is told once a second
        h = nbd.NBD()
        assert "TLS" in refused(h.connect_unix, str(tmp / "s"))
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.connect_unix(str(tmp / "s"))
        refused(h.opt_list, lambda name, text: 0)
        h.opt_abort()
        assert connect_and_read(tmp / "s", pki)
    aged.issue("server", "server", valid=False)
    assert "server certificate" in fails("--tls-certificates", old, disk)


def test_modes(tmp):
    """--tls on serves both, --tls off none; the command line says what is missing."""
    disk, pki = make_disk(tmp), authority(tmp)
    with Daemon("--tls", "on", "--tls-certificates", pki, "--nbd", tmp / "s", disk) as d:
        assert d.uri().startswith("nbd+unix://"), d.uris()
        assert connect(d.uri()).get_size() == 8 * MIB
        assert connect_and_read(tmp / "s", pki)
    with Daemon("--tls", "off", "--tls-certificates", pki, "--nbd", tmp / "s", disk) as d:
        assert connect(d.uri()).get_size() == 8 * MIB
        assert refused(tls_handle, tmp / "s", pki)
    for args, words in (
            (["--tls", "on"], "--tls-certificates DIR or --tls-psk FILE"),
            (["--tls", "maybe"], "require, on or off"),
            (["--tls-verify-peer"], "--tls-certificates DIR"),
            (["--tls-psk", "f", "--tls-certificates", "d"], "not both")):
        assert words in fails(*args, disk, status=2)
    assert "No such file" in fails("--tls-certificates", tmp / "nowhere", disk)
    assert "No such file" in fails("--tls-psk", tmp / "nowhere", disk)
    assert "nbd-server-start" in fails("--tls-certificates", pki, "--qmp", tmp / "q")


def test_commands(tmp):
    """nbd-server-start and --nbd-server take credentials; tls-authz says who may connect, as its list
    changes."""
    disk, pki = make_disk(tmp), authority(tmp)
    (tmp / "list").write_text(json.dumps({"policy": "allow"}))
    with Daemon("--qmp", tmp / "q", "--object", x509(pki, "server"), "--object",
                f"authz-list-file,id=f,filename={tmp}/list", "--blockdev",
                f"driver=qcow2,node-name=a,file.driver=file,file.filename={disk}") as d:
        q = Qmp(tmp / "q")
        address = {"type": "unix", "data": {"path": str(tmp / "n")}}
        q.command("object-add", qom_type="authz-list", id="l",
                  rules=[{"match": "CN=cli*", "policy": "allow", "format": "glob"}])
        for authz, is_open in (None, True), ("l", True), ("f", True):
            arguments = {"tls-authz": authz} if authz else {}
            q.command("nbd-server-start", addr=address, tls_creds="t", **arguments)
            q.command("block-export-add", type="nbd", id="e", node_name="a", name="")
            assert connect_and_read(tmp / "n", pki)
            if authz == "l":
                q.command("qom-set", path="/objects/l", property="rules", value=[])
            elif authz == "f":
                (tmp / "list.new").write_text(json.dumps({"policy": "deny"}))
                os.rename(tmp / "list.new", tmp / "list")
            if authz:
                refused(connect_and_read, tmp / "n", pki)
                await_log(d, "'CN=client' is not authorized")
            q.command("nbd-server-stop")
        q.command("object-del", id="t")
    with Daemon("--object", x509(pki, "server"), "--nbd-server",
                f"addr.type=unix,addr.path={tmp}/n,tls-creds=t", "--blockdev",
                f"driver=qcow2,node-name=a,file.driver=file,file.filename={disk}", "--export",
                "type=nbd,id=e,node-name=a,name=") as d:
        assert connect_and_read(tmp / "n", pki)
        h = nbd.NBD()
        assert "TLS" in refused(h.connect_unix, str(tmp / "n"))


# -- clients that leave --


class Cutter:
    """Passes on what a client sends to `path`, up to so many bytes, and then is gone."""

    def __init__(self, path, folder, n_bytes):
        self.listener = socket.socket(socket.AF_UNIX)
        self.path = folder / f"cut-{n_bytes}"
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.up = socket.socket(socket.AF_UNIX)
        self.up.connect(str(path))
        self.left = n_bytes
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        self.down, _ = self.listener.accept()
        back = threading.Thread(target=self.pass_back, daemon=True)
        back.start()
        while self.left:
            data = self.down.recv(self.left)
            if not data:
                break
            with contextlib.suppress(OSError):
                self.up.sendall(data)
            self.left -= len(data)
        for s in self.up, self.down:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        back.join()
        for s in self.up, self.down, self.listener:
            s.close()
        self.path.unlink()

    def pass_back(self):
        with contextlib.suppress(OSError):
            while data := self.up.recv(1 << 16):
                self.down.sendall(data)


def test_leaving(tmp):
    """A client that leaves after any byte of the handshake leaves nothing behind."""
    disk, pki = make_disk(tmp), authority(tmp)
    with Daemon("--tls-certificates", pki, "--tls-verify-peer", "--nbd", tmp / "s", disk) as d:
        n_cut, n = 0, 1
        while True:
            cutter = Cutter(tmp / "s", tmp, n)
            try:
                tls_handle(cutter.path, pki, verify=False)
                break
            except nbd.Error:
                n_cut += 1
            cutter.thread.join(HANG)
            n += 1 if n < 24 else 37
        assert n_cut > 60, n_cut
        assert connect_and_read(tmp / "s", pki)
        fds = f"/proc/{d.process.pid}/fd"
        deadline = time.monotonic() + HANG
        while sum("socket:" in os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)) > 2:
            assert time.monotonic() < deadline, "connections are left"
            time.sleep(0.05)


# -- chaind as the client --


@contextlib.contextmanager
def tls_server(tmp, pki, disk, program="qsd"):
    """Another program, which serves `disk` with TLS on tmp/r."""
    if program == "nbdkit":
        args = ["nbdkit", "-f", "-U", tmp / "r", "--tls=require", f"--tls-certificates={pki}", "file", disk]
    else:
        args = [need_program(QSD), "--object", x509(pki, "server"), "--blockdev",
                f"driver=qcow2,node-name=a,file.driver=file,file.filename={disk}", "--nbd-server",
                f"addr.type=unix,addr.path={tmp}/r,tls-creds=t", "--export",
                "type=nbd,id=e,node-name=a,name=,writable=on"]
    process = subprocess.Popen([str(a) for a in args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + HANG
    while not (tmp / "r").exists():
        assert process.poll() is None and time.monotonic() < deadline, f"{args[0]} does not serve"
        time.sleep(0.01)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        (tmp / "r").unlink(missing_ok=True)


def remote_options(tmp, **more):
    options = {"driver": "nbd", "node-name": "r", "server": {"type": "unix", "path": str(tmp / "r")},
               "tls-creds": "t", **more}
    return ["--object", x509(tmp / "pki"), "--blockdev", json.dumps(options)]


def test_remote(tmp):
    """A layer and a target on a QEMU server and a nbdkit server: read, written, moved, mirrored to."""
    disk, pki = make_disk(tmp), authority(tmp)
    with tls_server(tmp, pki, tmp / "want.raw", "nbdkit"):
        with Daemon(*remote_options(tmp, **{"tls-hostname": "localhost"}), "--nbd-server",
                    f"addr.type=unix,addr.path={tmp}/n", "--export", "type=nbd,id=e,node-name=r,name="):
            run("nbdcopy", f"nbd+unix:///?socket={tmp}/n", tmp / "copy.raw")
            assert (tmp / "copy.raw").read_bytes() == (tmp / "want.raw").read_bytes()
    random_file(tmp / "local.raw", 8 * MIB, seed=2)
    with tls_server(tmp, pki, disk):
        with Daemon(*remote_options(tmp, **{"tls-hostname": "localhost"}), "--qmp", tmp / "q", "--blockdev",
                    f"driver=raw,node-name=l,file.driver=file,file.filename={tmp}/local.raw", "--object",
                    "iothread,id=io", "--nbd-server", f"addr.type=unix,addr.path={tmp}/n"):
            q = Qmp(tmp / "q")
            q.command("blockdev-mirror", job_id="j", device="l", target="r", sync="full")
            while not any(e["event"] == "BLOCK_JOB_READY" for e in q.events):
                q.command("query-jobs")
                time.sleep(0.01)
            q.command("job-complete", id="j")
            while q.command("query-jobs"):
                time.sleep(0.01)
            # To another loop, and back to work.
            q.command("block-export-add", type="nbd", id="e", node_name="r", name="", writable=True,
                      iothread="io")
            h = connect(f"nbd+unix:///?socket={tmp}/n")
            assert h.pread(8 * MIB, 0) == (tmp / "local.raw").read_bytes()
            h.pwrite(b"\3" * MIB, MIB)
            h.flush()
            assert h.pread(MIB, MIB) == b"\3" * MIB
            h.shutdown()
    want = bytearray((tmp / "local.raw").read_bytes())
    want[MIB:2 * MIB] = b"\3" * MIB
    (tmp / "local.raw").write_bytes(want)
    same_content(disk, tmp / "local.raw")
    check_image(disk)


def test_false_servers(tmp):
    """A server of another authority or name, without TLS, or that leaves in the handshake, is not used."""
    disk, pki = make_disk(tmp), authority(tmp)
    other = authority(tmp, "other")
    good = {"tls-hostname": "localhost"}
    with tls_server(tmp, other, disk):
        assert "refused" in fails(*remote_options(tmp, **good))
    with tls_server(tmp, pki, disk):
        assert "name in the certificate" in fails(*remote_options(tmp, **{"tls-hostname": "elsewhere"}))
        with Daemon(*remote_options(tmp)):
            pass  # a unix socket has no name to verify
        for n in 1, 20, 40, 300, 600:
            cutter = Cutter(tmp / "r", tmp, n)
            options = remote_options(tmp, server={"type": "unix", "path": str(cutter.path)})
            fails(*options)
            cutter.thread.join(HANG)
    with Daemon("--nbd", tmp / "r", disk):
        assert "does not speak TLS" in fails(*remote_options(tmp, **good))
    assert "No TLS credentials with id 't'" in fails(*remote_options(tmp)[2:])


def test_reconnecting(tmp):
    """A connection with TLS that is lost is made again, with TLS."""
    disk, pki = make_disk(tmp), authority(tmp)
    want = (tmp / "want.raw").read_bytes()
    with tls_server(tmp, pki, disk) as server:
        d = Daemon(*remote_options(tmp, **{"reconnect-delay": 100}), "--nbd-server",
                   f"addr.type=unix,addr.path={tmp}/n", "--export", "type=nbd,id=e,node-name=r,name=")
        h = connect(f"nbd+unix:///?socket={tmp}/n")
        assert h.pread(MIB, 0) == want[:MIB]
        server.send_signal(signal.SIGKILL)
    with tls_server(tmp, pki, disk):
        assert h.pread(MIB, MIB) == want[MIB:2 * MIB]
        d.stop()


main(globals())

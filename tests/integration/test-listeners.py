#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where clients connect: unix and TCP sockets, socket activation, many clients at once."""
import contextlib
import ctypes
import os
import socket
import stat
import urllib.parse

import harness
from harness import MIB, Daemon, Skip, connect, fails, main, qemu_img, random_file, run, says
from qmp_client import Qmp
from service_manager import activated, listening


def image(tmp, name="a.qcow2"):
    qemu_img("create", "-q", "-f", "qcow2", tmp / name, "4M")
    return tmp / name


def test_unix(tmp):
    """A unix socket is made with the umask's permissions and removed at the end."""
    before = os.umask(0o007)
    try:
        with Daemon("--nbd", tmp / "s.sock", image(tmp)) as d:
            assert connect(d.uri()).get_size() == 4 * MIB
            mode = os.stat(tmp / "s.sock").st_mode
            assert stat.S_ISSOCK(mode) and mode & 0o777 == 0o770, oct(mode)
    finally:
        os.umask(before)
    assert not (tmp / "s.sock").exists()


def test_odd_socket_names(tmp):
    """A socket path with spaces, percent signs and UTF-8 makes a URI that clients understand."""
    with Daemon("--nbd", tmp / "a %20&ü=.sock", image(tmp)) as d:
        assert connect(d.uri()).get_size() == 4 * MIB
        says(run("nbdinfo", "--size", d.uri()).stdout, 4 * MIB)


def test_relative_socket(tmp):
    """A relative socket path is one in the current directory."""
    with Daemon("--nbd", "s.sock", image(tmp), cwd=tmp) as d:
        assert d.socket() == f"{tmp}/s.sock"
        assert connect(d.uri()).get_size() == 4 * MIB


def test_stale_socket(tmp):
    """A socket left behind by a killed daemon is replaced."""
    disk = image(tmp)
    d = Daemon("--nbd", tmp / "s.sock", disk)
    d.kill()
    assert (tmp / "s.sock").exists()
    with Daemon("--nbd", tmp / "s.sock", disk) as d:
        assert connect(d.uri()).get_size() == 4 * MIB


def test_socket_in_use(tmp):
    """A socket on which another daemon listens is refused, and stays that daemon's."""
    a, b = image(tmp, "a.qcow2"), image(tmp, "b.qcow2")
    with Daemon("--nbd", tmp / "s.sock", a) as d:
        says(fails("--nbd", tmp / "s.sock", b), "s.sock")
        assert connect(d.uri()).get_size() == 4 * MIB


def test_plain_file_in_the_way(tmp):
    """A plain file at the socket's path is refused and stays as it was."""
    (tmp / "s.sock").write_text("precious")
    says(fails("--nbd", tmp / "s.sock", image(tmp)), "s.sock", "not a socket", "remove it")
    assert (tmp / "s.sock").read_text() == "precious"


def test_runtime_directory(tmp):
    """A relative, too long or closed XDG_RUNTIME_DIR: served from TMPDIR, and the log says why."""
    too_long = tmp / ("x" * 90)
    too_long.mkdir()
    (tmp / "t").mkdir()
    for value, words in (("run", "not an absolute path"), (str(too_long), "too long"),
                         (str(tmp / "no"), "No such file")):
        with Daemon(image(tmp), env={"XDG_RUNTIME_DIR": value, "TMPDIR": str(tmp / "t")}) as d:
            says(d.log(), f"XDG_RUNTIME_DIR is '{value}'", words, "--nbd")
            says(d.socket(), tmp / "t")
            assert connect(d.uri()).get_size() == 4 * MIB


def test_no_place_for_the_private_socket(tmp):
    """Where no private socket can be made it is one sentence that names --nbd."""
    for tmpdir, words in (("t", "not an absolute path"), (f"/{'x' * 120}", "too long")):
        done = run("env", "-u", "XDG_RUNTIME_DIR", f"TMPDIR={tmpdir}", harness.chaind_path,
                   image(tmp), check=False)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
        says(done.stderr, words, tmpdir, "--nbd")


def test_no_such_directory(tmp):
    """A socket in a directory that is not there is refused with its name."""
    says(fails("--nbd", tmp / "no/s.sock", image(tmp)), "no/s.sock")


def test_tcp4(tmp):
    """TCP over IPv4 on a port that the kernel chooses."""
    with Daemon("--nbd", "127.0.0.1:0", image(tmp)) as d:
        says(d.uri(), "nbd://127.0.0.1:")
        h = connect(d.uri())
        h.pwrite(b"tcp!" * 1024, 8192)
        assert h.pread(4096, 8192) == b"tcp!" * 1024


def socket_of(pid, peer):
    """The socket of a process whose other end is `peer`, as a socket of ours."""
    pidfd_getfd = 438  # the same number on every architecture
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            fd = ctypes.CDLL(None, use_errno=True).syscall(pidfd_getfd, pidfd, int(name), 0)
            if fd < 0:
                raise Skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.close(fd)
                continue
            s = socket.socket(fileno=fd)
            try:
                if s.getpeername() == peer:
                    return s
            except OSError:  # a listening one
                pass
            s.close()
    finally:
        os.close(pidfd)
    raise AssertionError(f"no socket of process {pid} leads to {peer}")


def test_tcp_options(tmp):
    """An accepted TCP socket sends at once and notices a peer that vanished."""
    with Daemon("--nbd", "127.0.0.1:0", image(tmp)) as d:
        address = urllib.parse.urlsplit(d.uri())
        with socket.create_connection((address.hostname, address.port)) as client:
            assert client.recv(8) == b"NBDMAGIC"
            with socket_of(d.process.pid, client.getsockname()) as served:
                for level, option, least in (
                        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)):
                    assert served.getsockopt(level, option) >= least, (level, option)
                assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 300


def test_tcp6(tmp):
    """TCP over IPv6 in brackets."""
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError as e:
        raise Skip(f"no IPv6 here: {e}")
    with Daemon("--nbd", "[::1]:0", image(tmp)) as d:
        says(d.uri(), "nbd://[::1]:")
        assert connect(d.uri()).get_size() == 4 * MIB


def test_tcp_port_in_use(tmp):
    """A TCP port in use is refused with its address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        says(fails("--nbd", f"127.0.0.1:{port}", image(tmp)), f"{port}")


def test_several_listeners(tmp):
    """Several addresses serve the same exports, and each has its URI."""
    with Daemon("--nbd", tmp / "1.sock", "--nbd", "127.0.0.1:0", "--nbd", tmp / "2.sock",
                f"x={image(tmp)}") as d:
        uris = d.uris()
        assert len(uris) == 3, uris
        handles = [connect(uri) for uri in uris]
        handles[0].pwrite(b"a" * 512, 0)
        for h in handles:
            assert h.pread(512, 0) == b"a" * 512


def test_activation_by_nbdcopy(tmp):
    """nbdcopy -- [ chaind FILE ] copies the content, and leaves no process or lock behind."""
    raw = random_file(tmp / "in.raw", 5 * MIB + 512)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, tmp / "a.qcow2")
    run("nbdcopy", "--", "[", harness.chaind_path, tmp / "a.qcow2", "]", tmp / "out.raw")
    assert (tmp / "out.raw").read_bytes() == raw.read_bytes()
    qemu_img("check", tmp / "a.qcow2")


def test_activation_for_writing(tmp):
    """nbdcopy into an activated chaind: everything is in the file when nbdcopy is done."""
    raw, disk = random_file(tmp / "in.raw", 4 * MIB), image(tmp)
    run("nbdcopy", "--flush", raw, "--", "[", harness.chaind_path, disk, "]")
    # The daemon ends by itself; nbdcopy waited for it, so its locks are gone.
    harness.check_image(disk)
    harness.same_content(disk, raw)


def test_activation_by_systemd(tmp):
    """Activated with a socket for NBD it serves there, prints nothing, and ends with its last client."""
    disk = image(tmp)
    with listening(tmp / "s.sock") as s:
        for names in ["nbd"], ["unknown"], ["web.socket"], None:
            d = activated([s], disk, names=names)
            first = connect(f"nbd+unix:///?socket={tmp}/s.sock")
            second = connect(f"nbd+unix:///?socket={tmp}/s.sock")
            first.pwrite(b"x" * 512, 0)
            first.shutdown()
            assert second.pread(512, 0) == b"x" * 512
            assert d.process.poll() is None
            second.shutdown()
            assert d.wait() == 0, d.log()
            assert d.uris() == []
    assert (tmp / "s.sock").exists(), "a socket of somebody else was removed"


def test_activation_by_names(tmp):
    """Sockets are what their names say: control takes commands, nbd serves, and neither ends it."""
    with contextlib.ExitStack() as stack:
        control, unix = (stack.enter_context(listening(tmp / name)) for name in ("control", "unix"))
        tcp = stack.enter_context(socket.socket())
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        uris = [f"nbd+unix:///web?socket={tmp}/unix", f"nbd://127.0.0.1:{tcp.getsockname()[1]}/web"]
        d = activated([unix, control, tcp], "--state", tmp / "state", names=["nbd", "control", "nbd"])
        for again in False, True:
            qmp = Qmp(tmp / "control")
            if not again:
                qmp.command("disk-create", name="web", size=4 * MIB)
            disk, = qmp.command("query-disks")
            told = [uri for export in disk["exports"] for uri in export["uris"]]
            assert told == uris, told
            for uri in uris:
                connect(uri).shutdown()
            qmp.socket.close()
            assert d.process.poll() is None
        d.stop()
        assert d.uris() == []


def test_activation_for_control_only(tmp):
    """A control socket, and disks whose clients come elsewhere."""
    with listening(tmp / "control") as control:
        with activated([control], "--nbd", tmp / "s", image(tmp), names=["control"]) as d:
            assert "qemu" in Qmp(tmp / "control").command("query-version")
            connect(f"nbd+unix:///?socket={tmp}/s").shutdown()
            assert d.process.poll() is None


def test_activation_with_unknown_name(tmp):
    """A socket for something that is not known is refused, with the names that are."""
    with listening(tmp / "s") as s:
        d = activated([s], image(tmp), names=["contorl"], ready=False)
        assert d.wait() == 1
        says(d.log(), "'contorl'", "FileDescriptorName= is nbd, control or query")


def test_activation_with_nonsense(tmp):
    """A descriptor that is no listening socket is refused with words about the unit."""
    with open(tmp / "plain", "w") as f:
        command = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&%d' % f.fileno()
        done = run("/bin/sh", "-c", command, harness.chaind_path, image(tmp), check=False,
                   pass_fds=(f.fileno(),))
    assert done.returncode == 1
    says(done.stderr, "descriptor 3", "Accept=no")


def test_activation_of_somebody_else(tmp):
    """LISTEN_FDS for another process is ignored."""
    with Daemon(image(tmp), env={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) as d:
        assert connect(d.uri()).get_size() == 4 * MIB


def test_many_connections(tmp):
    """A hundred clients at once write their own blocks and read each other's."""
    with Daemon("--nbd", tmp / "s.sock", image(tmp)) as d:
        handles = [connect(d.uri()) for _ in range(100)]
        for i, h in enumerate(handles):
            assert h.can_multi_conn()
            h.pwrite(bytes([i]) * 4096, 4096 * i)
        handles[7].flush()
        for i, h in enumerate(handles):
            j = (i + 31) % 100
            assert h.pread(4096, 4096 * j) == bytes([j]) * 4096
        for h in handles:
            h.shutdown()
    harness.check_image(tmp / "a.qcow2")


def test_reconnecting(tmp):
    """A thousand connections one after the other leave no descriptor behind."""
    with Daemon("--nbd", tmp / "s.sock", image(tmp)) as d:
        def n_descriptors():
            return len(os.listdir(f"/proc/{d.process.pid}/fd"))
        connect(d.uri()).shutdown()
        before = n_descriptors()
        for _ in range(1000):
            connect(d.uri()).shutdown()
        last = connect(d.uri())
        assert last.get_size() == 4 * MIB
        # The server hears of the last goodbyes a moment after we said them.
        while n_descriptors() > before + 3:
            os.sched_yield()


main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: what is accepted, what is refused and with which words."""
import contextlib
import ctypes
import os
import re
import resource
import shlex
import socket
import struct

from harness import (MIB, ROOT, Daemon, connect, fails, main, qemu_img, random_file, run,
                     same_content, says)
from pki import Authority
import harness


def image(path, size="1M"):
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    return path


def test_help(tmp):
    """--help prints the usage on standard output and exits 0."""
    done = run(harness.chaind_path, "--help")
    says(done.stdout, "usage: chaind", "--nbd", "--format", "--snapshot", "--read-only", "--direct",
         "--force-share", "--description", "--loops", "--map-memory", "--log")
    assert done.stderr == ""


def test_version(tmp):
    """--version prints the name and a number."""
    assert run(harness.chaind_path, "--version").stdout.startswith("chaind 0.")


def test_no_file(tmp):
    """Without a FILE it is a usage error that points at --help."""
    says(fails(status=2), "no FILE", "chaind --help")


def test_usage_errors(tmp):
    """Each usage error is one sentence with exit status 2, and opens nothing."""
    disk = image(tmp / "a.qcow2")
    for args, words in [
            (["--frobnicate", disk], ["--frobnicate"]),
            (["--format", "vmdk", disk], ["qcow2 or raw", "vmdk"]),
            (["--format"], ["--format", "value"]),
            (["--loops", "0", disk], ["--loops", "'0'"]),
            (["--loops", "many", disk], ["--loops", "many"]),
            (["--map-memory", "12", disk], ["--map-memory", "1M"]),
            (["--map-memory", "3Q", disk], ["--map-memory", "3Q"]),
            (["--map-memory", "-1", disk], ["--map-memory"]),
            (["--map-memory", "99999999999999999999G", disk], ["--map-memory"]),
            (["--log", "loud", disk], ["--log", "loud"]),
            (["--nbd", "localhost:", disk], ["port"]),
            (["--nbd", "localhost:65536", disk], ["65535"]),
            (["--nbd", "localhost:76345", disk], ["65535"]),
            (["--nbd", "localhost:nbd", disk], ["port", "number"]),
            (["--nbd", "::1:10809", disk], ["[IPV6]"]),
            (["--nbd", "/" + "x" * 200, disk], ["107"]),
            (["--nbd", "", disk], ["--nbd"]),
            (["a=" + str(disk), "a=" + str(disk)], ["two disks", "'a'"]),
            ([disk, tmp / "b.qcow2"], ["default export", "NAME="]),
            (["web="], ["names no file"])]:
        says(fails(*args, status=2), *words)


def test_uri(tmp):
    """One FILE is the default export of a private socket, whose URI is on standard output."""
    disk = image(tmp / "a.qcow2")
    with Daemon(disk) as d:
        assert len(d.uris()) == 1, d.uris()
        says(d.uris()[0], "nbd+unix:///?socket=/")
        path = d.socket()
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
        assert connect(d.uri()).get_size() == MIB
    assert not os.path.exists(os.path.dirname(path)), "the private directory is still there"


def test_names(tmp):
    """Several named exports are listed, with descriptions, and each serves its own disk."""
    for i, name in enumerate(("one", "two-2", "Three_3.x")):
        image(tmp / f"{i}.qcow2", f"{i + 1}M")
    with Daemon(f"one={tmp}/0.qcow2", f"two-2={tmp}/1.qcow2", f"Three_3.x={tmp}/2.qcow2") as d:
        listed = run("nbdinfo", "--list", d.uri("one")).stdout
        says(listed, 'export="one"', 'export="two-2"', 'export="Three_3.x"', "2 MiB qcow2, 1 layer")
        for i, name in enumerate(("one", "two-2", "Three_3.x")):
            assert connect(d.uri(name)).get_size() == (i + 1) * MIB


def test_unknown_export(tmp):
    """A client that asks for a name that is not there is told so, and others are served."""
    disk = image(tmp / "a.qcow2")
    with Daemon(f"web={disk}") as d:
        done = run("nbdinfo", d.uri("web").replace("/web?", "/nope?"), check=False)
        assert done.returncode != 0
        assert connect(d.uri("web")).get_size() == MIB


def test_equals_sign(tmp):
    """A file whose name contains '=' is that file, not NAME=FILE."""
    disk = image(tmp / "a=b.qcow2")
    with Daemon("a=b.qcow2", cwd=tmp) as d:
        assert connect(d.uri("")).get_size() == MIB
    with Daemon(f"x={disk}") as d:
        assert connect(d.uri("x")).get_size() == MIB


def test_odd_names(tmp):
    """File names with spaces, colons, percent signs and UTF-8 are served."""
    for name in ("with space.qcow2", "co:lon.qcow2", "per%cent.qcow2", "größe ☃.qcow2"):
        disk = image(tmp / name)
        with Daemon(disk) as d:
            assert connect(d.uri()).get_size() == MIB


def test_description(tmp):
    """--description replaces the summary that clients see."""
    disk = image(tmp / "a.qcow2")
    with Daemon("--description", "Ümläut & more", disk) as d:
        says(run("nbdinfo", "--list", d.uri()).stdout, "Ümläut & more")


def test_default_description(tmp):
    """Without --description clients see name, size, format, layers and which state it is."""
    disk, raw = image(tmp / "a.qcow2"), random_file(tmp / "a.raw", MIB)
    qemu_img("snapshot", "-c", "monday", disk)
    for args, want in (
            ([f"web={disk}"], "web: 1 MiB qcow2, 1 layer, head"),
            ([disk], "1 MiB qcow2, 1 layer, head"),
            (["--read-only", f"web={disk}"], "web: 1 MiB qcow2, 1 layer, head, read-only"),
            (["--snapshot", "monday", disk], "1 MiB qcow2, 1 layer, snapshot monday, read-only"),
            (["--format", "raw", f"r={raw}"], "r: 1 MiB raw, 1 layer")):
        with Daemon(*args) as d:
            listed = run("nbdinfo", "--list", d.uris()[0]).stdout
            assert f"description: {want}\n" in listed, listed


def test_long_strings(tmp):
    """A description or a name longer than NBD allows is a usage error; one as long is served."""
    disk = image(tmp / "a.qcow2")
    says(fails("--description", "x" * 4097, disk, status=2), "--description", "4096")
    says(fails("x" * 4097 + f"={disk}", status=2), "4096")
    with Daemon("--description", "x" * 4096, disk) as d:
        says(run("nbdinfo", "--list", d.uri()).stdout, "x" * 4096)


def test_raw_needs_format(tmp):
    """A raw image is served with --format raw and refused without, with words that say so."""
    raw = random_file(tmp / "a.raw", MIB)
    says(fails(raw), "a.raw", "--format raw")
    with Daemon("--format", "raw", raw) as d:
        out = tmp / "copy"
        run("nbdcopy", d.uri(), out)
        assert out.read_bytes() == raw.read_bytes()


def test_format_of_each_file(tmp):
    """FILE,format=FORMAT says the format of one file, also of one with commas in its name."""
    raw, odd = random_file(tmp / "a.raw", MIB), random_file(tmp / "b,c=d.raw", MIB, seed=2)
    disk = image(tmp / "a.qcow2", "2M")
    with Daemon(f"raw={raw},format=raw", f"odd={odd},format=raw", f"disk={disk}") as d:
        assert connect(d.uri("raw")).pread(4096, 0) == raw.read_bytes()[:4096]
        assert connect(d.uri("odd")).pread(4096, 0) == odd.read_bytes()[:4096]
        assert connect(d.uri("disk")).get_size() == 2 * MIB
    with Daemon("--format", "raw", f"raw={raw}", f"disk={disk},format=qcow2") as d:
        assert connect(d.uri("raw")).get_size() == MIB
        assert connect(d.uri("disk")).get_size() == 2 * MIB
    named = tmp / "e,format=raw"
    raw.rename(named)
    says(fails(named), "e,format=raw", "not a qcow2 image")
    with Daemon(f"{named},format=raw") as d:
        assert connect(d.uri()).get_size() == MIB
    says(fails(f"{disk},format=vmdk", status=2), "qcow2 or raw", "vmdk")


def test_descriptor_limit(tmp):
    """A soft limit of 64 descriptors does not keep a chain of 200 layers from being served."""
    image(tmp / "0.qcow2")
    harness.qemu_io(tmp / "0.qcow2", "write -P 5 0 64k")
    for i in range(1, 200):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", f"{i - 1}.qcow2", "-F", "qcow2",
                 tmp / f"{i}.qcow2", "1M")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def lower():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    with Daemon(tmp / "199.qcow2", preexec_fn=lower) as d:
        with open(f"/proc/{d.process.pid}/limits") as f:
            line = next(line for line in f if line.startswith("Max open files"))
        soft = line.split()[3]
        assert soft == line.split()[4], line
        assert len(os.listdir(f"/proc/{d.process.pid}/fd")) > 200
        assert connect(d.uri()).pread(4096, 0) == b"\5" * 4096


def test_hard_descriptor_limit(tmp):
    """A chain that needs more descriptors than the hard limit: one sentence that says what to raise."""
    image(tmp / "0.qcow2")
    for i in range(1, 100):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", f"{i - 1}.qcow2", "-F", "qcow2",
                 tmp / f"{i}.qcow2", "1M")

    def lower():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    done = run(harness.chaind_path, tmp / "99.qcow2", check=False, preexec_fn=lower)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
    says(done.stderr, "Too many open files", "64", "ulimit -Hn", "LimitNOFILE=")


def refuse_io_uring():
    """A seccomp filter for this process: io_uring_setup() fails with EPERM, as with the sysctl."""
    io_uring_setup, eperm = 425, 1  # the same number on every architecture
    allow, errno = 0x7fff0000, 0x00050000
    load_number, if_equal, give = 0x20, 0x15, 0x06
    code = struct.pack("=" + "HBBI" * 4, load_number, 0, 0, 0, if_equal, 0, 1, io_uring_setup,
                       give, 0, 0, errno | eperm, give, 0, 0, allow)

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    if (libc.prctl(set_no_new_privs, 1, 0, 0, 0) or
            libc.prctl(set_seccomp, filter_mode, ctypes.byref(Program(4, code)), 0, 0)):
        raise OSError(ctypes.get_errno(), "prctl")


def test_no_io_uring(tmp):
    """Where the kernel refuses io_uring it is one sentence that names the sysctl, and status 1."""
    done = run(harness.chaind_path, image(tmp / "a.qcow2"), check=False, preexec_fn=refuse_io_uring)
    assert done.returncode == 1 and done.stdout == "", done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    says(done.stderr, "io_uring", "kernel.io_uring_disabled")


def test_read_only(tmp):
    """--read-only refuses writes and changes no byte of the file."""
    import nbd
    disk = image(tmp / "a.qcow2")
    before, changed = disk.read_bytes(), os.stat(disk).st_mtime_ns
    with Daemon("--read-only", disk) as d:
        h = connect(d.uri())
        assert h.is_read_only()
        h.set_strict_mode(0)
        try:
            h.pwrite(b"x" * 512, 0)
        except nbd.Error as e:
            assert e.errno in ("EPERM", "EROFS"), e.errno
        else:
            raise AssertionError("a write to a read-only export succeeded")
    assert disk.read_bytes() == before and os.stat(disk).st_mtime_ns == changed


def test_snapshot(tmp):
    """--snapshot serves an internal snapshot by name and by id, read-only."""
    disk, old, new = image(tmp / "a.qcow2"), tmp / "old.raw", tmp / "new.raw"
    harness.qemu_io(disk, "write -P 17 64k 128k")
    qemu_img("snapshot", "-c", "before", disk)
    qemu_img("convert", "-O", "raw", disk, old)
    harness.qemu_io(disk, "write -P 18 128k 128k")
    qemu_img("convert", "-O", "raw", disk, new)
    for args, want in ((["--snapshot", "before"], old), (["--snapshot", "1"], old), ([], new)):
        with Daemon(*args, disk) as d:
            assert connect(d.uri()).is_read_only() == bool(args)
            run("nbdcopy", d.uri(), tmp / "got")
            assert (tmp / "got").read_bytes() == want.read_bytes(), args
    says(fails("--snapshot", "nope", disk), "nope", "a.qcow2")


def test_loops(tmp):
    """--loops spreads the exports over threads; all are served."""
    files = [image(tmp / f"{i}.qcow2") for i in range(7)]
    with Daemon("--loops", 3, *(f"d{i}={f}" for i, f in enumerate(files))) as d:
        handles = [connect(d.uri(f"d{i}")) for i in range(7)]
        for i, h in enumerate(handles):
            h.pwrite(bytes([i + 1]) * 4096, 4096 * i)
            h.flush()
        for i, h in enumerate(handles):
            assert h.pread(4096, 4096 * i) == bytes([i + 1]) * 4096
            h.shutdown()
    for i, f in enumerate(files):
        harness.check_image(f)


def test_log_levels(tmp):
    """--log error is silent while all goes well."""
    disk = image(tmp / "a.qcow2")
    d = Daemon("--log", "error", "--nbd", tmp / "s", disk, ready=False)
    with d:
        while d.process.poll() is None and not d.uris():
            os.sched_yield()
        connect(d.uri()).shutdown()
    assert d.log() == "", d.log()


def test_debug_log_complains_of_nothing(tmp):
    """--log debug says nothing about unsetenv() or other faults of its own at the start."""
    with Daemon("--log", "debug", image(tmp / "a.qcow2")) as d:
        pass
    assert "thread-safe" not in d.log(), d.log()


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def examples():
    """The commands of chaind(8)'s EXAMPLES: a list for each paragraph, lines that go on put together."""
    page = (ROOT / "docs/chaind.pod").read_text("utf-8").split("=head1 EXAMPLES\n")[1].split("=head1")[0]
    paragraphs = [re.findall(r"^    \$ (.*)$", text.replace("\\\n", ""), re.M)
                  for text in page.split("\n\n")]
    return [lines for lines in paragraphs if lines]


def run_example(tmp, line):
    env = {**os.environ, "PATH": f"{os.path.dirname(harness.chaind_path)}:{os.environ['PATH']}"}
    if line.startswith("qemu-system"):
        # Machines are test-guest.py's.
        line = "qemu-img info -f raw " + re.search(r"'file=(\S+?),format=raw", line)[1].join("''")
    run("bash", "-c", line, cwd=tmp, env=env)


def test_page(tmp):
    """The examples of chaind(8) work as they are printed there, at other places"""
    Authority(tmp / "pki").issue("server", "server").issue("client", "client")
    for name in ("disk.qcow2", "web.qcow2"):
        image(tmp / name)
    qemu_img("snapshot", "-c", "before-upgrade", tmp / "disk.qcow2")
    (tmp / "db.img").write_bytes(bytes(MIB))
    port, n_commands, last = free_port(), 0, None
    here = {"/run/vm.sock": f"{tmp}/vm.sock", " :10809": f" localhost:{port}", ":10809": f":{port}",
            "store.example": "localhost", "/etc/pki/chaind": f"{tmp}/pki", "/etc/pki/client": f"{tmp}/pki"}
    for lines in examples():
        for known, mine in here.items():
            lines = [line.replace(known, mine) for line in lines]
        n_commands += len(lines)
        if lines[0].startswith("qemu-system"):
            lines.insert(0, last)  # it uses what was served before
        with contextlib.ExitStack() as served:
            for line in lines:
                if not line.startswith("chaind "):
                    run_example(tmp, line)
                    continue
                daemon = served.enter_context(Daemon(*shlex.split(line)[1:], cwd=tmp))
                assert daemon.uris(), line
                last = line if "vm.sock" in line else last
    assert n_commands > 10, n_commands
    same_content(tmp / "disk.qcow2", tmp / "disk.raw")
    same_content(tmp / "web.qcow2", tmp / "web.raw")


main(globals())

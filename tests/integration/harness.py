# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the integration tests share: a daemon under test, programs that act as oracles, and a runner
that prints TAP. A test is a function test_*(tmp) with its sentence as docstring; it gets an empty
directory and fails by raising. Tests run alone as well:

    tests/integration/test-cli.py [--chaind PATH] [WORD]...      only tests whose sentence has a WORD
"""
import argparse
import contextlib
import fcntl
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse

from fuse_disk import NoFuse, fuse_disk

ROOT = pathlib.Path(__file__).resolve().parents[2]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HANG = 200  # seconds after which something hangs, and is not merely slow
F_OFD_GETLK = 36  # Linux, fcntl.h

os.environ["PATH"] += ":/usr/sbin:/sbin"  # mkfs.ext4 and its like, for ordinary users

chaind_path = os.environ.get("CHAIND", str(ROOT / "build/daemon/chaind"))


class Skip(Exception):
    """The machine cannot run this test; the text says why."""


class Late(Exception):
    """A test ran out of its time."""


def run(*args, check=True, timeout=HANG, **kwargs):
    """Runs a program; returns the finished process with its text output. A failure shows it."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run([str(a) for a in args], text=True, timeout=timeout, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(str(a) for a in args)}: exit status {done.returncode}\n"
                             f"{done.stdout}{done.stderr}")
    return done


def qemu_img(*args, **kwargs):
    return run("qemu-img", *args, **kwargs).stdout


def qemu_io(image, *commands, fmt="qcow2"):
    args = ["qemu-io", "-f", fmt]
    for command in commands:
        args += ["-c", command]
    out = run(*args, image).stdout
    assert "rror" not in out and "failed" not in out, out
    return out


def check_image(image, *options):
    """qemu-img finds no corruption; leaks are reported by status 3 and are a fault here too."""
    done = run("qemu-img", "check", *options, image, check=False)
    assert done.returncode == 0, f"qemu-img check {image}: {done.returncode}\n{done.stdout}{done.stderr}"


def same_content(a, b, fmt_a="qcow2", fmt_b="raw", *options):
    done = run("qemu-img", "compare", *options, "-f", fmt_a, "-F", fmt_b, a, b, check=False)
    assert done.returncode == 0, f"{a} and {b} differ: {done.stdout}{done.stderr}"


def random_file(path, size, seed=1):
    """`size` bytes that neither compress nor repeat; the same for the same seed."""
    rng = random.Random(seed)
    with open(path, "wb") as f:
        while size:
            n = min(size, MIB)
            f.write(rng.randbytes(n))
            size -= n
    return path


def disk_directory():
    """A directory on the file system of a disk, where O_DIRECT means something; None: there is none."""
    for path in tempfile.gettempdir(), "/var/tmp", os.getcwd(), str(ROOT):
        kind = run("stat", "-f", "-c", "%T", path, check=False).stdout.strip()
        if kind and kind not in ("tmpfs", "ramfs", "hugetlbfs") and os.access(path, os.W_OK):
            return path
    return None


def need_program(name):
    if not shutil.which(name):
        raise Skip(f"no {name}")
    return name


def need_disk():
    """For tests of --direct, whose directory run_one() made on a disk if it could."""
    if not disk_directory():
        raise Skip("no file system of a disk here: --direct would mean nothing")


@contextlib.contextmanager
def need_fuse_disk(directory, *nbdkit):
    """fuse_disk(), or the test is skipped."""
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(fuse_disk(directory, *nbdkit))
        except NoFuse as e:
            raise Skip(str(e))
        yield path


def await_listener(sock):
    """Until somebody takes connections at the unix socket `sock`: a program makes it before it listens."""
    deadline = time.monotonic() + HANG
    while not any(line.endswith(f" {sock}") and line.split()[3] == "00010000"  # __SO_ACCEPTCON
                  for line in pathlib.Path("/proc/net/unix").read_text("utf-8").splitlines()):
        assert time.monotonic() < deadline, f"nobody listens at {sock}"
        time.sleep(0.01)


def await_unlocked(path):
    """Waits until nobody holds a lock on the file. The kernel closes what a killed process had given to
    its io_uring a little after the process is gone, and the locks go with that."""
    deadline = time.monotonic() + HANG
    with open(path, "rb") as f:
        while True:
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, = struct.unpack_from("h", fcntl.fcntl(f, F_OFD_GETLK, lock))
            if kind == fcntl.F_UNLCK:
                return
            assert time.monotonic() < deadline, f"{path} is still locked after {HANG} s"
            time.sleep(0.001)


class Daemon:
    """A running chaind. Leaving the `with` block stops it and expects a clean end."""

    def __init__(self, *args, ready=True, env=None, pass_fds=(), preexec_fn=None, cwd=None,
                 launcher=()):
        self.args = [chaind_path, *(str(a) for a in args)]
        self.stdout = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*launcher, *self.args], stdin=subprocess.DEVNULL, stdout=self.stdout,
                                        stderr=subprocess.PIPE, text=True, errors="replace",
                                        env={**os.environ, **(env or {})}, pass_fds=pass_fds,
                                        preexec_fn=preexec_fn, cwd=cwd)
        self.lines = []
        self.ended_or_ready = threading.Event()
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()
        if ready:
            self.ended_or_ready.wait(HANG)
            if "chaind: ready" not in self.lines:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"chaind did not get ready: {self.log()}")

    def read_log(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if self.lines[-1] == "chaind: ready":
                self.ended_or_ready.set()
        self.ended_or_ready.set()

    def log(self):
        return "\n".join(self.lines)

    def uris(self):
        self.stdout.seek(0)
        return self.stdout.read().split("\n")[:-1]

    def uri(self, name=""):
        """The first URI of the export `name`."""
        path = "/" + urllib.parse.quote(name, safe="")
        for uri in self.uris():
            if urllib.parse.urlsplit(uri).path == path:
                return uri
        raise AssertionError(f"no URI for {name!r} in {self.uris()}")

    def socket(self):
        query = urllib.parse.urlsplit(self.uris()[0]).query
        return urllib.parse.parse_qs(query)["socket"][0]

    def wait(self):
        """Waits for the end; returns the exit status."""
        status = self.process.wait(HANG)
        self.reader.join()
        for bad in ("Sanitizer", "runtime error", "Assertion"):
            assert bad not in self.log(), self.log()
        return status

    def stop(self, expect=0):
        self.process.send_signal(signal.SIGTERM)
        status = self.wait()
        assert status == expect, f"exit status {status}, log:\n{self.log()}"

    def open_files(self):
        """The regular files that it has open on disks; none once it has ended."""
        folder = f"/proc/{self.process.pid}/fd"
        paths = set()
        with contextlib.suppress(OSError):
            for fd in os.listdir(folder):
                with contextlib.suppress(OSError):
                    paths.add(os.readlink(f"{folder}/{fd}"))
        return {path for path in paths if os.path.isfile(path) and not path.startswith("/proc/")}

    def kill(self, awaits_locks=True):
        """Kills it at this moment; returns when nobody holds a lock on what it had open, unless told
        not to wait for that: another daemon may hold one for as long as it runs."""
        files = set()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            files = self.open_files()
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for path in files if awaits_locks else ():
            await_unlocked(path)
        # A private socket outlives a kill; nobody else will remove it.
        if "--nbd" not in self.args and self.uris():
            shutil.rmtree(os.path.dirname(self.socket()), ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None and kind is None:
            self.stop()
        elif self.process.poll() is None:
            self.kill(awaits_locks=False)
            print("# log of the daemon:", *self.lines, sep="\n#   ")
        else:
            self.reader.join()
            if kind is None:
                assert self.process.returncode == 0, f"{self.process.returncode}: {self.log()}"
            else:
                print(f"# the daemon ended with {self.process.returncode}:", *self.lines,
                      sep="\n#   ")


def fails(*args, status=1):
    """chaind refuses these arguments: its sentence."""
    done = run(chaind_path, *args, check=False)
    assert done.returncode == status, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
    assert done.stdout == "", f"unexpected output: {done.stdout}"
    lines = done.stderr.splitlines()
    assert len(lines) == 1, f"not one sentence: {done.stderr}"
    assert lines[0].startswith("chaind: "), lines[0]
    return lines[0][len("chaind: "):]


def says(text, *parts):
    for part in parts:
        assert str(part) in text, f"{part!r} is missing in: {text}"


def connect(uri):
    """A libnbd handle with structured replies and the common contexts."""
    import nbd
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    return h


@contextlib.contextmanager
def time_limit(seconds):
    def late(*_):
        raise Late(f"not done after {seconds} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_one(number, test, limit):
    """One TAP line; True unless the test failed."""
    sentence = (test.__doc__ or test.__name__).strip().splitlines()[0].rstrip(".")
    start = time.monotonic()
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="chaind-test-", dir=disk_directory()))
    try:
        with time_limit(limit):
            test(tmp)
    except Skip as why:
        print(f"ok {number} - {sentence} # SKIP {why}", flush=True)
        return True
    except BaseException as e:
        for line in traceback.format_exc().splitlines():
            print(f"# {line}")
        print(f"not ok {number} - {sentence}", flush=True)
        if isinstance(e, KeyboardInterrupt):
            raise
        return False
    finally:
        if "CHAIND_TEST_KEEP" not in os.environ:
            shutil.rmtree(tmp, ignore_errors=True)
    print(f"ok {number} - {sentence}")
    print(f"# {time.monotonic() - start:.1f} s", flush=True)
    return True


def main(module, limit=300):
    """Runs the module's tests in the order of their definition, each with a limit in seconds that
    only a hang reaches."""
    global chaind_path
    ap = argparse.ArgumentParser(description=module.get("__doc__"))
    ap.add_argument("--chaind", default=chaind_path)
    ap.add_argument("words", nargs="*")
    args = ap.parse_args()
    chaind_path = os.path.abspath(args.chaind)  # tests may start it elsewhere
    tests = [f for name, f in module.items() if name.startswith("test_") and
             (not args.words or any(w in (f.__doc__ or "") + name for w in args.words))]
    results = [run_one(i, test, limit) for i, test in enumerate(tests, 1)]
    print(f"1..{len(results)}")
    sys.exit(0 if results and all(results) else 1)

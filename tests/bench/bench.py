#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""chaind beside other NBD servers, each on the same image over a unix socket, driven by fio's nbd engine.
Servers take turns, and the median of the runs is printed: requests per second, 99th percentile of the
latency, the server's own CPU time per request, and the memory that the server itself holds.

Workloads are IMAGE-PATTERN. Images: raw; flat (one qcow2, full); chainN (N empty overlays over flat);
mixN (N layers of mixed cluster sizes, each with its share of the data); new (an empty overlay of flat);
fresh (an empty qcow2). Patterns: rr, rw (random 4 KiB, 32 in flight), rr1, rw1 (one at a time), sr,
sw (sequential 256 KiB, 8 in flight), with xN for N connections; copy (nbdcopy of the whole disk to
nowhere, 256 KiB, as often as fits into the time). On new and fresh nearly each rw allocates. With --tls
all clients and servers encrypt, with certificates; qemu-nbd and floor are left out then.

Beside the other servers stands "floor", a server that does nothing but the system calls
(floor-server.c). Two more workloads measure only chaind:
  map-memory      a 1 TiB image with preallocated metadata: a working set within --map-memory, and one of
                  four times that; requests per second of both, and memory beside the bound
  slow-neighbour  export B alone, and beside export A of the same loop on a disk with 50 ms delays (nbdkit's
                  delay filter behind nbdfuse); B's latencies of both

Put --dir on a tmpfs (the default) to see CPU cost, on a disk to see the page cache, and add --direct there
to see the disk. Servers that are not installed, or cannot serve an image, are left out.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, f"{ROOT}/tests/integration")
from fuse_disk import NoFuse, fuse_disk  # noqa: E402
from pki import Authority  # noqa: E402

MIB, GIB = 1 << 20, 1 << 30
PATTERNS = {"rr": ("randread", "4k", 32), "rr1": ("randread", "4k", 1),
            "rw": ("randwrite", "4k", 32), "rw1": ("randwrite", "4k", 1),
            "sr": ("read", "256k", 8), "sw": ("write", "256k", 8)}
DEFAULT = ("raw-rr,raw-rw,raw-rr1,raw-sr,raw-sw,flat-rr,flat-rw,chain1-rr,chain50-rr,mix20-rr,new-rw,fresh-rw,"
           "map-memory,slow-neighbour")


def run(*args):
    subprocess.run([str(a) for a in args], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)


class Images:
    """Makes each image once, when first asked for, below one directory."""

    def __init__(self, directory, size_mib):
        self.dir, self.size = directory, size_mib * MIB

    def path(self, name):
        return f"{self.dir}/{name}"

    def get(self, kind):
        """(path, format)"""
        if kind == "raw":
            return self.once("raw.img", self.make_raw), "raw"
        if kind == "flat":
            return self.once("flat.qcow2", self.make_flat), "qcow2"
        if kind == "new":
            return self.overlay("new.qcow2", self.get("flat")[0]), "qcow2"
        if kind == "fresh":
            run("qemu-img", "create", "-q", "-f", "qcow2", self.path("fresh.qcow2"), "16G")
            return self.path("fresh.qcow2"), "qcow2"
        for prefix, make in (("chain", self.chain), ("mix", self.mix)):
            if kind.startswith(prefix) and kind[len(prefix):].isdigit():
                return make(int(kind[len(prefix):])), "qcow2"
        raise SystemExit(f"bench: there is no image '{kind}'")

    def once(self, name, make):
        path = self.path(name)
        if not os.path.exists(path):
            make(path + ".part")
            os.rename(path + ".part", path)
        return path

    def make_raw(self, path):
        with open(path, "wb") as f:
            for _ in range(self.size // MIB):
                f.write(os.urandom(MIB))

    def make_flat(self, path):
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.get("raw")[0], path)

    def overlay(self, name, base, *options):
        run("qemu-img", "create", "-q", "-f", "qcow2", *options, "-b", base, "-F", "qcow2",
            self.path(name))
        return self.path(name)

    def chain(self, n):
        below = self.get("flat")[0]
        for i in range(1, n + 1):
            name = f"chain{n}-{i}.qcow2"
            below = self.path(name) if os.path.exists(self.path(name)) else self.overlay(name, below)
        return below

    def mix(self, n):
        last = self.path(f"mix{n}-{n}.qcow2")
        if os.path.exists(last):
            return last
        below = None
        for i in range(1, n + 1):
            path = self.path(f"mix{n}-{i}.qcow2")
            cluster = ("64k", "4k", "2M", "128k")[i % 4]
            back = ["-b", below, "-F", "qcow2"] if below else []
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", *back,
                path, self.size)
            writes = []
            for at in range((i - 1) * MIB, self.size, n * MIB):
                writes += ["-c", f"write -q -P {random.Random(at).randrange(1, 256)} {at} 1M"]
            run("qemu-io", "-f", "qcow2", *writes, path)
            below = path
        return last


def command_of(server, path, fmt, sock, args):
    """How to start a server, or None."""
    direct, pki = args.direct, args.pki
    if server == "chaind":
        return [args.chaind, *(["--tls-certificates", pki] if pki else []), "--log", "error", "--format", fmt, "--nbd", sock,
                *(["--direct"] if direct else []), path]
    floor = os.path.join(os.path.dirname(args.chaind), "../tests/bench/floor-server")
    if server in ("floor", "qemu-nbd") and pki:
        return None
    if server == "floor" and os.path.exists(floor) and fmt == "raw" and not direct:
        return [floor, sock, path]
    if server == "nbdkit" and shutil.which("nbdkit") and fmt == "raw":
        tls = ["--tls=require", f"--tls-certificates={pki}"] if pki else []
        return ["nbdkit", "-f", "-U", sock, *tls, "file", path] + (["cache=none"] if direct else [])
    if server == "qemu-nbd" and shutil.which("qemu-nbd"):
        return ["qemu-nbd", "-f", fmt, "-k", sock, "-t", "-e", "16", "--aio=io_uring",
                *(["--cache=none"] if direct else []), path]
    daemon = os.environ.get("QSD", "qemu-storage-daemon")
    if server == "qsd" and shutil.which(daemon):
        cache = "on" if direct else "off"
        # Debian 12's own 7.2 aborts when a client of an export in an I/O thread leaves.
        threads = not subprocess.run([daemon, "--version"], capture_output=True,
                                     text=True).stdout.startswith("qemu-storage-daemon version 7.")
        creds = f"tls-creds-x509,id=t,dir={pki},endpoint=server,verify-peer=off"
        return [daemon, *(["--object", "iothread,id=io"] if threads else []),
                *(["--object", creds] if pki else []),
                "--blockdev", f"driver=file,node-name=f,filename={path},aio=io_uring,cache.direct={cache}",
                "--blockdev", f"driver={fmt},node-name=n,file=f",
                "--nbd-server", f"addr.type=unix,addr.path={sock},max-connections=16" + (",tls-creds=t" if pki else ""),
                "--export", "type=nbd,id=e,node-name=n,name=,writable=on" +
                (",iothread=io" if threads else "")]
    return None


class Server:
    """A running server; measures itself through /proc."""

    def __init__(self, command, sock):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(sock)
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise SystemExit(f"bench: {' '.join(command)}: "
                                     f"{self.process.stderr.read().decode()}") from None
                time.sleep(0.01)

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return sum(int(line.split()[1]) for line in f
                       if line.startswith(("RssAnon", "RssShmem"))) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def copy(sock, size, seconds, tls):
    """What fio() would say of the requests that nbdcopy makes."""
    n, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        run("nbdcopy", f"nbd{'s' if tls else ''}+unix:///?socket={sock}", "null:")
        n += size // (256 << 10)
    side = {"total_ios": n, "iops": n / (time.monotonic() - start), "clat_ns": {}}
    return {"read": side, "write": {"total_ios": 0, "iops": 0, "clat_ns": {}}}


def fio(sock, kind, pattern, size, seconds, export="", tls=False):
    name, _, connections = pattern.partition("x")
    rw, block, depth = PATTERNS[name]
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd{'s' if tls else ''}+unix:///{export}?socket={sock}",
               f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}", f"--numjobs={connections or 1}",
               "--group_reporting", "--norandommap", "--randrepeat=1", "--output-format=json"]
    if kind in ("fresh", "new") and name == "rw":  # one request per cluster
        total = 16 << 30 if kind == "fresh" else size
        n = 40000 if kind == "fresh" else size // 65536 // 4
        command += ["--blockalign=64k", f"--size={total}", f"--number_ios={n}"]
    else:
        command += [f"--size={size}", "--time_based", f"--runtime={seconds}"]
    out = subprocess.run(command, capture_output=True, cwd=tempfile.gettempdir(), text=True)
    try:
        job = json.loads(out.stdout[out.stdout.index("{"):])["jobs"][0]
    except ValueError:
        raise SystemExit(f"bench: fio: {out.stderr}{out.stdout}") from None
    if job.get("error"):
        raise SystemExit(f"bench: fio: error {job['error']}: {out.stderr}")
    return job


def measure(server, workload, images, args):
    """(requests per second, p99 in µs, CPU µs per request, MiB), or None."""
    kind, _, pattern = workload.partition("-")
    if pattern != "copy" and pattern.partition("x")[0] not in PATTERNS:
        raise SystemExit(f"bench: there is no pattern '{pattern}'")
    path, fmt = images.get(kind)
    with tempfile.TemporaryDirectory(prefix="chaind-bench-") as tmp:
        sock = f"{tmp}/s"
        command = command_of(server, path, fmt, sock, args)
        if not command:
            return None
        running = Server(command, sock)
        try:
            before = running.cpu_seconds()
            if pattern == "copy":
                job = copy(sock, images.size, args.seconds, args.pki)
            else:
                job = fio(sock, kind, pattern, images.size, args.seconds, tls=args.pki)
            used, memory = running.cpu_seconds() - before, running.memory_mib()
        finally:
            running.stop()
    n = sum(side["total_ios"] for side in (job["read"], job["write"]))
    rate, p99 = rate_and_p99(job)
    return rate, p99, used / n * 1e6, memory


def rate_and_p99(job):
    """Requests per second, and the 99th percentile of their latency in µs."""
    sides = job["read"], job["write"]
    p99 = max(side["clat_ns"].get("percentile", {}).get("99.000000", 0) for side in sides) / 1000
    return sum(side["iops"] for side in sides), p99


def map_memory_case(images, args):
    """A working set that the maps hold, and one of four times that, on an image of 1 TiB."""
    budget = 32 * MIB
    covered = budget // 8 * 65536  # bytes of the disk whose L2 entries fill the budget
    path = images.path("tebibyte.qcow2")
    if not os.path.exists(path):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "1T")
    rates = {}
    for name, size in (("half of it", covered // 2), ("4 x", covered * 4)):
        results = []
        for _ in range(args.runs):
            with tempfile.TemporaryDirectory(prefix="chaind-bench-") as tmp:
                command = command_of("chaind", path, "qcow2", f"{tmp}/s", args)
                running = Server([*command[:1], "--map-memory", str(budget), *command[1:]], f"{tmp}/s")
                try:
                    fio(f"{tmp}/s", "tebibyte", "rr", size, args.seconds)  # fills the caches
                    job = fio(f"{tmp}/s", "tebibyte", "rr", size, args.seconds)
                    results.append((*rate_and_p99(job), running.memory_mib()))
                finally:
                    running.stop()
        rate, p99, memory = (statistics.median(column) for column in zip(*results))
        rates[name] = rate
        print(f"{'map-memory':14} {name:10} {rate:10.0f} {p99:8.0f} {'':10} {memory:6.1f}   "
              f"working set {size // GIB} GiB, --map-memory {budget // MIB} MiB", flush=True)
    print(f"{'map-memory':14} 4 x the budget keeps {rates['4 x'] / rates['half of it']:.2f} of the rate within it")


def slow_neighbour_case(images, args):
    """Export B while A of the same loop sits on a disk with 50 ms delays."""
    fast = images.get("raw")[0]
    alone, beside, slow_rates = [], [], []
    with tempfile.TemporaryDirectory(prefix="chaind-bench-") as tmp, \
            fuse_disk(f"{tmp}/mnt", "--filter=delay", "memory", "1T", "delay-read=50ms") as slow:
        sock = f"{tmp}/s"
        running = Server([args.chaind, "--log", "error", "--format", "raw", "--loops", "1", "--nbd", sock,
                          f"A={slow}", f"B={fast}"], sock)

        def load_slow():
            slow_rates.append(fio(sock, "raw", "rr", 1 << 40, args.seconds + 1, "A")["read"]["iops"])
        try:
            for _ in range(args.runs):
                alone.append(rate_and_p99(fio(sock, "raw", "rr1", images.size, args.seconds, "B")))
                thread = threading.Thread(target=load_slow)
                thread.start()
                time.sleep(0.5)
                beside.append(rate_and_p99(fio(sock, "raw", "rr1", images.size, args.seconds, "B")))
                thread.join()
        finally:
            running.stop()
    for name, results in (("B alone", alone), ("B beside A", beside)):
        rate, p99 = (statistics.median(column) for column in zip(*results))
        print(f"{'slow-neighbour':14} {name:10} {rate:10.0f} {p99:8.0f}", flush=True)
    factor = statistics.median(b[1] for b in beside) / statistics.median(a[1] for a in alone)
    print(f"{'slow-neighbour':14} beside A, which has {statistics.median(slow_rates):.0f} requests/s, "
          f"B's p99 is {factor:.2f} x alone")


CASES = {"map-memory": map_memory_case, "slow-neighbour": slow_neighbour_case}


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--chaind", default=f"{ROOT}/build/daemon/chaind")
    ap.add_argument("--dir", help="where images are made and kept (default: in /dev/shm, removed)")
    ap.add_argument("--size", type=int, default=512, metavar="MIB", help="of the data (512)")
    ap.add_argument("--servers", default="chaind,floor,nbdkit,qemu-nbd,qsd")
    ap.add_argument("--workloads", default=DEFAULT)
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--seconds", type=int, default=3, help="of each run")
    ap.add_argument("--direct", action="store_true")
    ap.add_argument("--tls", action="store_true")
    args = ap.parse_args()

    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = args.dir or tempfile.mkdtemp(prefix="chaind-bench-", dir=parent)
    os.makedirs(directory, exist_ok=True)
    images = Images(directory, args.size)
    args.pki = None
    try:
        if args.tls:
            folder = pathlib.Path(tempfile.mkdtemp(dir=directory))
            args.pki = Authority(folder / "pki").issue("server", "server").folder
        print(f"{'workload':14} {'server':10} {'requests/s':>10} {'p99 us':>8} {'CPU us/req':>10} "
              f"{'MiB':>6}   median of {args.runs}")
        for workload in args.workloads.split(","):
            if workload in CASES:
                try:
                    CASES[workload](images, args)
                except NoFuse as e:
                    print(f"{workload:14} left out: {e}", flush=True)
                continue
            results = {server: [] for server in args.servers.split(",")}
            for _ in range(args.runs):
                for server, list_of in results.items():
                    one = measure(server, workload, images, args)
                    if one:
                        list_of.append(one)
            for server, list_of in results.items():
                if list_of:
                    rate, p99, cpu, memory = (statistics.median(column) for column in zip(*list_of))
                    print(f"{workload:14} {server:10} {rate:10.0f} {p99:8.0f} {cpu:10.2f} {memory:6.1f}",
                          flush=True)
    finally:
        if not args.dir:
            shutil.rmtree(directory, ignore_errors=True)


main()

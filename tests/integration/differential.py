#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random load against a shadow. Each seed makes a backing chain with qemu-img (cluster size, refcount
width, subclusters, compression, snapshots, depth, direct I/O) and then reads, writes, zeroes, trims
and flushes it over two NBD connections, one of them with extended headers, 16 requests in flight, at
any alignment. A flat copy in memory says what every byte must be. Now and then everything is quiet and
flushed, and qemu-img looks at the live image (check -U, compare -U). After the daemon's end the image
must check clean, the backing layers must be untouched, and the internal snapshots must read as before.

After a TRIM whole clusters of a version 3 image must be zeros, and those of a version 2 image with a
backing file as before. Elsewhere each byte may be as before or zero: what a TRIM left is read back at
once and is fixed then.

Direct I/O needs a disk's file system: the work directory is made on one where there is one.

usage: differential.py [--chaind PATH] [--seed N] [--count N] [--ops N] [--time SECONDS]
"""
import argparse
import hashlib
import os
import random
import select
import shutil
import sys
import tempfile
import time
import traceback

import nbd

import extended
import harness
from harness import HANG, KIB, MIB, Daemon, check_image, qemu_img, run, same_content
from images import ALL_PROPERTIES, make_chain, properties, random_chain

IN_FLIGHT = 16
MAX_LENGTH = 3 * MIB


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


class Request:
    """One command in flight. `start`..`end` stays reserved until done() has looked at the result."""

    def __init__(self, kind, start, length):
        self.kind, self.start, self.end = kind, start, start + length
        self.buffer = None
        self.changes = kind in ("write", "zero", "trim")

    def conflicts(self, other):
        return (self.start < other.end and other.start < self.end and
                (self.changes or other.changes))

    def __str__(self):
        return f"{self.kind} {self.start}+{self.end - self.start}"


class Load:
    """The client: keeps requests in flight and the shadow in step."""

    def __init__(self, rng, uri, shadow, layers):
        self.rng, self.shadow, self.cluster = rng, shadow, layers[-1].cluster
        self.trim_rule = "hint" if layers[-1].fmt == "raw" else \
            "nothing" if layers[-1].version == 2 and len(layers) > 1 else "zeros"
        self.handles = [extended.Handle(uri), self.libnbd_handle(uri)]
        self.size = self.handles[0].get_size()
        assert self.size == len(shadow), f"size {self.size}, not {len(shadow)}"
        self.align = max(1, self.handles[0].get_block_size(nbd.SIZE_MINIMUM))
        self.flying = []
        self.failure = None
        self.hot = [rng.randrange(self.size) for _ in range(3)]
        self.counts = {}

    def libnbd_handle(self, uri):
        h = nbd.NBD()
        h.set_request_structured_replies(self.rng.random() < 0.9)
        h.add_meta_context("base:allocation")
        h.connect_uri(uri)
        h.set_strict_mode(0)
        return h

    # -- choosing

    def random_range(self, limit):
        rng = self.rng
        length = rng.choice((1, 512, 4 * KIB, 4 * KIB, 64 * KIB, self.cluster, 3 * self.cluster,
                             rng.randrange(1, 256 * KIB)))
        length = max(1, min(length, limit, self.size))
        if rng.random() < 0.5:  # a few places that all requests fight for
            start = rng.choice(self.hot) + rng.randrange(-4 * self.cluster, 4 * self.cluster + 1)
        else:
            start = rng.randrange(self.size)
        start = max(0, min(start, self.size - length))
        kind = rng.random()
        if kind < 0.4:  # whole clusters, and just beside them
            start = start // self.cluster * self.cluster
            length = max(1, length // self.cluster * self.cluster)
            if kind < 0.1:
                start, length = start + rng.randrange(-1, 2), length + rng.randrange(-1, 2)
        elif kind < 0.7:
            start = start // 512 * 512
        start = max(0, start) // self.align * self.align
        length = max(self.align, min(length, self.size - start) // self.align * self.align)
        return start, length if start + length <= self.size else self.align

    def choose(self):
        kind = self.rng.choices(("read", "write", "zero", "trim", "flush", "status"),
                                (35, 40, 9, 7, 2, 5))[0]
        if kind == "flush":
            return Request(kind, 0, 0)
        for _ in range(50):
            start, length = self.random_range(MAX_LENGTH)
            if start + length > self.size:
                continue
            request = Request(kind, start, length)
            if not any(request.conflicts(other) for other in self.flying):
                return request
        return None

    # -- doing

    def submit(self, request):
        rng = self.rng
        h = rng.choice(self.handles)
        n = request.end - request.start
        fua = nbd.CMD_FLAG_FUA if rng.random() < 0.05 else 0
        self.flying.append(request)
        self.counts[request.kind] = self.counts.get(request.kind, 0) + 1

        def completed(error):
            if not error.value or (request.kind == "zero" and request.fast and
                                   error.value in (95, 34)):  # ENOTSUP, as libnbd numbers it
                request.failed = bool(error.value)
                self.done(request)
            else:
                self.failure = self.failure or f"{request}: {os.strerror(error.value)}"
            return 1

        if request.kind == "read":
            request.buffer = bytearray(n)
            flags = nbd.CMD_FLAG_DF if rng.random() < 0.1 and n <= 64 * KIB and \
                h.get_structured_replies_negotiated() else 0
            h.aio_pread(request.buffer, request.start, completed, flags)
        elif request.kind == "write":
            request.data = rng.randbytes(n) if rng.random() < 0.8 else bytes([rng.randrange(256)]) * n
            request.buffer = bytearray(request.data)
            h.aio_pwrite(request.buffer, request.start, completed, fua)
        elif request.kind == "zero":
            request.fast = rng.random() < 0.1
            flags = fua | (nbd.CMD_FLAG_NO_HOLE if rng.random() < 0.3 else 0)
            flags |= nbd.CMD_FLAG_FAST_ZERO if request.fast else 0
            h.aio_zero(n, request.start, completed, flags)
        elif request.kind == "trim":
            h.aio_trim(n, request.start, completed, fua)
        elif request.kind == "readback":
            request.buffer = bytearray(n)
            h.aio_pread(request.buffer, request.start, completed)
        elif request.kind == "status" and h.can_meta_context("base:allocation"):
            request.extents = []
            request.one = rng.random() < 0.2
            h.aio_block_status(n, request.start,
                               lambda ctx, off, entries, err: request.extents.extend(entries) or 0,
                               completed, nbd.CMD_FLAG_REQ_ONE if request.one else 0)
        else:
            request.kind = "flush"
            h.aio_flush(completed)

    def done(self, request):
        """The request ended well: check it, or put it into the shadow."""
        self.flying.remove(request)
        start, end, shadow = request.start, request.end, self.shadow
        if request.kind == "read":
            self.compare(request, request.buffer, shadow[start:end])
        elif request.kind == "write":
            shadow[start:end] = request.data
        elif request.kind == "zero" and not request.failed:
            shadow[start:end] = bytes(end - start)
        elif request.kind == "trim":
            self.submit_later = getattr(self, "submit_later", [])
            again = Request("readback", start, end - start)
            again.changes = True  # nobody else may come between
            self.flying.append(again)
            self.submit_later.append(again)
        elif request.kind == "readback":
            got = request.buffer
            self.check_trimmed(request, got, shadow[start:end])
            shadow[start:end] = got
        elif request.kind == "status":
            self.check_status(request)

    def compare(self, request, got, want):
        if got == want:
            return
        at = next(i for i in range(len(want)) if got[i] != want[i])
        self.failure = self.failure or (f"{request}: byte {request.start + at} is {got[at]}, "
                                        f"not {want[at]}")

    def check_trimmed(self, request, got, old):
        first = -(-request.start // self.cluster) * self.cluster
        last = request.end if request.end == self.size else request.end // self.cluster * self.cluster
        if self.trim_rule == "zeros" and first < last:
            self.compare(Request("trimmed", first, last - first),
                         got[first - request.start:last - request.start], bytes(last - first))
        if self.trim_rule == "nothing" or any(g and g != o for g, o in zip(got, old)):
            self.compare(request, got, old)

    def check_status(self, request):
        """What is called a hole or zero must read as zeros."""
        at = request.start
        if not request.extents:
            self.failure = self.failure or f"{request}: no extent"
        if request.one and (len(request.extents) > 2 or at + request.extents[0] > request.end):
            self.failure = self.failure or f"{request}: not one extent inside it: {request.extents}"
        for length, flags in zip(request.extents[::2], request.extents[1::2]):
            end = min(at + length, request.end)
            if flags & nbd.STATE_ZERO and self.shadow[at:end].count(0) != end - at:
                self.failure = self.failure or f"{request}: {at}+{end - at} is not zero"
            at = end

    def poll(self):
        later = getattr(self, "submit_later", [])
        while later:
            request = later.pop()
            self.flying.remove(request)
            self.submit(request)
        poller = select.poll()
        by_fd = {}
        for h in self.handles:
            direction = h.aio_get_direction()
            mask = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | \
                   (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)
            by_fd[h.aio_get_fd()] = h
            poller.register(h.aio_get_fd(), mask)
        ready = poller.poll(HANG * 1000)
        if not ready:
            raise AssertionError(f"no answer for {HANG} s to: " + ", ".join(map(str, self.flying)))
        for fd, event in ready:
            h = by_fd[fd]
            direction = h.aio_get_direction()
            if event & (select.POLLIN | select.POLLHUP) and direction & nbd.AIO_DIRECTION_READ:
                h.aio_notify_read()
            elif event & select.POLLOUT and direction & nbd.AIO_DIRECTION_WRITE:
                h.aio_notify_write()
            if h.aio_is_dead():
                raise AssertionError("the server closed the connection")
        if self.failure:
            raise AssertionError(self.failure)

    def run(self, n):
        for _ in range(n):
            while len(self.flying) >= IN_FLIGHT:
                self.poll()
            request = self.choose()
            if request:
                self.submit(request)
            if self.rng.random() < 0.3:
                self.poll_if_flying()
        while self.flying:
            self.poll()
        self.handles[self.rng.randrange(2)].flush()

    def poll_if_flying(self):
        if self.flying:
            self.poll()

    def close(self):
        for h in self.handles:
            h.shutdown()


def look_from_outside(top, fmt, shadow, shadow_path, lazy):
    """qemu-img on the quiet, flushed, live image. Leaks are allowed here, corruption is not."""
    with open(shadow_path, "wb") as f:
        f.write(shadow)
    if fmt == "qcow2" and not lazy:
        done = run("qemu-img", "check", "-U", top, check=False)
        assert done.returncode in (0, 3), f"check -U: {done.stdout}{done.stderr}"
    same_content(top, shadow_path, fmt, "raw", "-U")


def one_seed(seed, n_ops, tmp):
    rng = random.Random(seed)
    layers = random_chain(seed)
    top = layers[-1]
    size = 8 * MIB + 512 * rng.randrange(20000)
    if top.fmt == "raw":
        size += rng.randrange(512)
    paths, snapshots = make_chain(rng, tmp, layers, size)
    below = [(p, digest(p)) for p in paths[:-1]]
    shadow_path = f"{tmp}/shadow.raw"
    qemu_img("convert", "-f", top.fmt, "-O", "raw", paths[-1], shadow_path)
    with open(shadow_path, "rb") as f:
        shadow = bytearray(f.read())
    shadow = (shadow + bytes(512))[:size]  # qemu-img rounds sizes to 512 bytes

    args = ["--format", top.fmt, "--map-memory", rng.choice(("1M", "32M"))]
    args += ["--direct"] if is_direct(seed) else []
    with Daemon(*args, paths[-1]) as daemon:
        assert has_direct_file(daemon, paths[-1]) == is_direct(seed)
        load = Load(rng, daemon.uri(), shadow, layers)
        for _ in range(4):
            load.run(n_ops // 4)
            look_from_outside(paths[-1], top.fmt, shadow, shadow_path, top.lazy)
        load.close()

    if top.fmt == "qcow2":
        check_image(paths[-1])
    same_content(paths[-1], shadow_path, top.fmt)
    for path, before in below:
        assert digest(path) == before, f"the backing layer {path} was changed"
    for name, raw in snapshots:
        qemu_img("convert", "-l", name, "-f", "qcow2", "-O", "raw", paths[-1], f"{tmp}/now.raw")
        same_content(f"{tmp}/now.raw", raw, "raw")
    return load.counts


def is_direct(seed):
    return seed // 20 % 2 == 1


def has_direct_file(daemon, path):
    """Has the daemon opened `path` with O_DIRECT?"""
    folder = f"/proc/{daemon.process.pid}"
    flags = 0
    for fd in os.listdir(f"{folder}/fd"):
        if os.readlink(f"{folder}/fd/{fd}") == os.path.realpath(path):
            with open(f"{folder}/fdinfo/{fd}", encoding="ascii") as f:
                flags |= next(int(line.split()[1], 8) for line in f if line.startswith("flags:"))
    return bool(flags & os.O_DIRECT)


def missing_properties(seeds):
    """What the chains of `seeds` do not cover, each property with direct I/O and without."""
    seen = {(is_direct(seed), *each) for seed in seeds for each in properties(seed)}
    return [f"{name} {value}{', direct' if direct else ''}" for name, values in ALL_PROPERTIES.items()
            for value in values for direct in (False, True) if (direct, name, value) not in seen]


def describe(seed):
    layers = random_chain(seed)
    return f"seed {seed}: " + " <- ".join(map(str, layers)) + (", direct" if is_direct(seed) else "")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--chaind", default=harness.chaind_path)
    ap.add_argument("--seed", type=int, default=1, help="the first one")
    ap.add_argument("--count", type=int, default=24, help="how many seeds; 0: until --time is over")
    ap.add_argument("--ops", type=int, default=1200, help="requests per seed")
    ap.add_argument("--time", type=float, help="start no seed after so many seconds")
    args = ap.parse_args()
    harness.chaind_path = os.path.abspath(args.chaind)
    if args.count >= 40:  # the least that covers everything
        missing = missing_properties(range(args.seed, args.seed + args.count))
        assert not missing, f"no chain has: {'; '.join(missing)}"
    work = harness.disk_directory()
    start, number, failed = time.monotonic(), 0, 0
    while not args.count or number < args.count:
        if args.time and time.monotonic() - start > args.time:
            break
        seed, number = args.seed + number, number + 1
        if is_direct(seed) and not work:
            print(f"ok {number} - {describe(seed)} # SKIP no file system of a disk to work on")
            continue
        tmp = tempfile.mkdtemp(prefix="chaind-diff-", dir=work)
        try:
            with harness.time_limit(300):
                os.chdir(tmp)  # where QEMU looks for data files
                counts = one_seed(seed, args.ops, tmp)
            print("# " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
            print(f"ok {number} - {describe(seed)}", flush=True)
        except Exception:
            failed += 1
            for line in traceback.format_exc().splitlines():
                print(f"# {line}")
            print(f"# again: {sys.argv[0]} --seed {seed} --count 1 --ops {args.ops}")
            print(f"not ok {number} - {describe(seed)}", flush=True)
        finally:
            os.chdir("/")
            if "CHAIND_TEST_KEEP" not in os.environ:
                shutil.rmtree(tmp, ignore_errors=True)
    print(f"1..{number}")
    return 1 if failed or not number else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 under load, again and again on the same image. After each kill qemu-img must find no
corruption (leaks are allowed), and after the next open each 4 KiB block must hold what a flush
confirmed, or something newer. A kill keeps the host's page cache: what a power cut loses on top of that
is the business of tests/crash.

usage: test-kill.py [--chaind PATH] [--seed N] [--rounds N] [--time SECONDS]
"""
import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback

import nbd

import harness
from harness import MIB, Daemon, check_image, qemu_img, run
from stamps import BLOCK, ZERO, State, stamped

SIZE = 8 * MIB
N_BLOCKS = SIZE // BLOCK

SHAPES = [  # name, options of the image, has a base
    ("64k", "cluster_size=64k", False),
    ("4k over a base", "cluster_size=4k", True),
    ("512, 1-bit refcounts", "cluster_size=512,refcount_bits=1", False),
    ("64k, subclusters over a base", "cluster_size=64k,extended_l2=on", True),
    ("64k, lazy refcounts", "cluster_size=64k,lazy_refcounts=on", False),
    ("2M over a base", "cluster_size=2M,refcount_bits=64", True),
]


def load(rng, uri, state, n_ops, kill):
    """Keeps 16 requests in flight, flushes now and then, and calls kill() in the middle of it."""
    h = nbd.NBD()
    h.connect_uri(uri)
    busy = set()   # blocks with a request in flight
    answered = {}  # block -> its newest entry that was answered

    def finished(block, entry):
        def callback(error):
            assert not error.value, f"error {error.value}"
            busy.remove(block)
            answered[block] = entry
            return 1
        return callback

    def flushed(before):
        def callback(error):
            assert not error.value, f"flush: error {error.value}"
            state.confirm(before)
            return 1
        return callback

    for i in range(n_ops):
        if rng.random() < 0.04:
            h.aio_flush(flushed(dict(answered)))
        block = rng.randrange(N_BLOCKS) if rng.random() < 0.5 else rng.randrange(64)
        if block in busy:
            continue
        stamp = ZERO
        if rng.random() < 0.85:
            stamp = state.new_stamp()
        entry = [stamp]
        busy.add(block)
        state.history[block].append(entry)
        if stamp:
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(stamped(stamp))), block * BLOCK,
                         finished(block, entry))
        else:
            h.aio_zero(BLOCK, block * BLOCK, finished(block, entry))
        while len(busy) >= 16:
            h.poll(10000)
    kill()


def verify(uri, state):
    """Reads everything; from now on that is what is there for sure. Blocks that a kill left half written
    are written anew."""
    h = nbd.NBD()
    h.connect_uri(uri)
    content = h.pread(SIZE, 0)
    for block, stamps in enumerate(state.check(content, "head")):
        if len(set(stamps)) > 1:
            h.pwrite(stamped(stamps[0]), block * BLOCK)
        state.history[block] = [[stamps[0]]]
    h.flush()
    h.shutdown()


def make_image(tmp, options, has_base):
    first = [ZERO] * N_BLOCKS
    if has_base:
        with open(f"{tmp}/base.raw", "wb") as f:
            for i in range(N_BLOCKS):
                first[i] = i % 5 and i + 1
                f.write(stamped(first[i]))
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", "base.raw", "-F", "raw",
                 f"{tmp}/a.qcow2")
    else:
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, f"{tmp}/a.qcow2", SIZE)
    return f"{tmp}/a.qcow2", first


def one_shape(shape, seed, rounds, deadline, tmp):
    _, options, has_base = shape
    image, first = make_image(tmp, options, has_base)
    state = State(first)
    done = 0
    for number in range(rounds):
        if deadline and time.monotonic() > deadline:
            break
        rng = random.Random(f"{seed}/{number}")
        daemon = Daemon("--log", "info", "--nbd", f"{tmp}/s", image)
        try:
            verify(daemon.uri(), state)
            load(rng, daemon.uri(), state, rng.randrange(20, 700), daemon.kill)
        except BaseException:
            print(f"# round {number} of seed {seed}; log of the daemon:", *daemon.lines, sep="\n#   ")
            daemon.kill()
            raise
        if "lazy" not in options:
            result = run("qemu-img", "check", image, check=False)
            assert result.returncode in (0, 3), \
                f"round {number}: qemu-img check: {result.stdout}{result.stderr}"
        done += 1
    with Daemon("--nbd", f"{tmp}/s", image) as daemon:
        verify(daemon.uri(), state)
    if run("qemu-img", "check", image, check=False).returncode == 3:
        qemu_img("check", "-r", "leaks", image)
    check_image(image)
    return done


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--chaind", default=harness.chaind_path)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--rounds", type=int, default=50, help="kills per shape of image")
    ap.add_argument("--time", type=float, help="begin no round after so many seconds")
    args = ap.parse_args()
    harness.chaind_path = args.chaind
    deadline = args.time and time.monotonic() + args.time
    failed = 0
    for number, shape in enumerate(SHAPES, 1):
        tmp = tempfile.mkdtemp(prefix="chaind-kill-")
        name = f"flushed data survives kill -9: {shape[0]}"
        try:
            done = one_shape(shape, args.seed, args.rounds, deadline, tmp)
            print(f"# {done} kills\nok {number} - {name}", flush=True)
        except Exception:
            failed += 1
            for line in traceback.format_exc().splitlines():
                print(f"# {line}")
            print(f"not ok {number} - {name} (seed {args.seed})", flush=True)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    print(f"1..{len(SHAPES)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

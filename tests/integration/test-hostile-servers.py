#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""NBD servers that break the protocol, lie, fall silent or go away, below a chain and as targets of jobs:
their own disk or job gets an error that names them, and other disks and commands notice nothing.

usage: test-hostile-servers.py [--chaind PATH] [WORD]...
"""
import contextlib
import os
import struct
import threading
import time

import nbd

from commits import BLOCK, end_of, guests, held
from harness import KIB, MIB, connect, main, qemu_img, qemu_io, says
from nbd_server import (CHANGES, CONTEXT, DATA, DONE, EIO, ENOSPC, ERROR, EXTENTS, FLUSH, HOLE, NONE, READ,
                        STATUS, TRIM, WRITE, ZEROES, Server)
from world import World

SIZE = 8 * MIB
QUERIES = ("query-named-block-nodes", "query-block-jobs", "query-jobs", "query-block-exports", "query-blockstats")


# -- misdeeds that fit each command -----------------------------------------------------------------

def says_error(c, request):
    c.error(request, EIO)
    return True


def says_no_space(c, request):
    c.error(request, ENOSPC)
    return True


def says_unknown_error(c, request):
    c.error(request, 0x7f)
    return True


def says_error_zero(c, request):
    c.error(request, 0)
    return True


def answers_somebody_else(c, request):
    request.cookie ^= 0x5555
    c.answer(request)
    return True


def sends_garbage(c, _):
    c.send(b"x" * 64)
    return True


def closes(_, __):
    return False


def closes_within_a_reply(c, request):
    c.chunk(request, DATA, bytes(100), length=8 + 4096)
    return False


def sends_an_unknown_chunk(c, request):
    c.chunk(request, 77, b"1234")
    return True


def sends_an_unknown_error_chunk(c, request):
    c.chunk(request, 0x8077, struct.pack(">IH", EIO, 0))
    return True


def sends_a_chunk_of_4_gib(c, request):
    c.chunk(request, DATA, bytes(64), length=0xffffffff)
    return True


def says_nothing_at_length(c, request):
    c.chunk(request, NONE, bytes(64), length=64 * KIB)
    return True


def message_beyond_its_chunk(c, request):
    c.chunk(request, ERROR, struct.pack(">IH", EIO, 0xffff) + b"x")
    return True


def error_beyond_the_disk(c, request):
    c.chunk(request, 0x8002, struct.pack(">IHQ", EIO, 0, 1 << 62))
    return True


ANY = [says_error, says_unknown_error, says_error_zero, answers_somebody_else, sends_garbage, closes,
       closes_within_a_reply, sends_an_unknown_chunk, sends_an_unknown_error_chunk, sends_a_chunk_of_4_gib,
       says_nothing_at_length, message_beyond_its_chunk, error_beyond_the_disk]


# -- of reads, and of block status ------------------------------------------------------------------

def answers_half_a_read(c, request):
    c.read_chunk(request, request.offset, request.length // 2)
    return True


def answers_a_read_without_data(c, request):
    c.chunk(request, NONE)
    return True


def answers_for_ever(c, request):
    while True:
        c.read_chunk(request, request.offset, request.length, flags=0)


def answers_beside_the_read(c, request):
    c.read_chunk(request, request.offset + request.length, request.length)
    return True


def answers_more_than_the_read(c, request):
    c.read_chunk(request, request.offset, request.length + 512)
    return True


def answers_a_hole_beyond_the_read(c, request):
    c.chunk(request, HOLE, struct.pack(">QI", request.offset, 0xffffffff))
    return True


def answers_without_structure(c, request):
    c.simple(request, 0, bytes(request.length))
    return True


OF_READS = [answers_half_a_read, answers_a_read_without_data, answers_for_ever, answers_beside_the_read,
            answers_more_than_the_read, answers_a_hole_beyond_the_read, answers_without_structure]


def extents(*pairs, context=CONTEXT):
    def misdeed(c, request):
        c.status_chunk(request, *pairs, context=context)
        return True
    misdeed.__name__ = f"extents of {pairs[:2]}, context {context}"
    return misdeed


def half_an_extent(c, request):
    c.chunk(request, EXTENTS, struct.pack(">II", CONTEXT, 5))
    return True


def answers_twice(c, request):
    c.chunk(request, EXTENTS, struct.pack(">III", CONTEXT, request.length, 0), flags=0)
    c.status_chunk(request, (request.length, 0))
    return True


OF_STATUS = [extents(), extents((0, 0)), extents((4096, 0), context=9), half_an_extent]
# These tell no lies about content, or none that counts.
HARMLESS_STATUS = [extents((0xffffffff, 0)), extents(*[(0xffffffff, 0)] * 100), answers_twice,
                   extents(*[(64 * KIB, i % 2) for i in range(9999)])]


# -- the scene --------------------------------------------------------------------------------------

@contextlib.contextmanager
def scene(tmp):
    """A daemon with one loop and an export that has nothing to do with any server."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "other", MIB)
    with World(tmp) as w:
        w.add("other", tmp / "other")
        w.export("other")
        w.other = connect(w.uri("other"))
        yield w
        w.other.shutdown()


def use_others(w):
    data = os.urandom(4096)
    w.other.pwrite(data, 64 * KIB)
    assert w.other.pread(4096, 64 * KIB) == data
    w.other.flush()
    for query in QUERIES:
        w.qmp.command(query)


def add_server(w, path, **options):
    w.qmp.command("blockdev-add", driver="nbd", node_name="far", server={"type": "unix", "path": str(path)},
                  **options)


@contextlib.contextmanager
def below(w, tmp, **options):
    """(server, guest): an image over what the server shows, full of 'f'."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "x", tmp / "top", SIZE)
    with Server(tmp / "far", SIZE) as server:
        server.content[:] = b"f" * SIZE
        add_server(w, tmp / "far", read_only=True, **options)
        w.add("top", tmp / "top", backing="far")
        w.export("top", name="top")
        guest = connect(w.uri("top"))
        yield server, guest
        server.arm(None, ())
        guest.shutdown()
        w.qmp.command("block-export-del", id="e-top")
        w.qmp.event("BLOCK_EXPORT_DELETED")
        for node in "top", "far":
            w.qmp.command("blockdev-del", node_name=node)


def read_fails(guest, what):
    try:
        guest.pread(64 * KIB, MIB)
    except nbd.Error as e:
        assert e.errnum == EIO, f"{what}: {e}"
        return
    raise AssertionError(f"{what}: the read went well")


def stream_fails(w, what):
    w.qmp.command("block-stream", job_id="j", device="top")
    done = end_of(w.qmp)
    assert "Input/output error" in done.get("error", ""), f"{what}: {done}"


# -- below a chain ----------------------------------------------------------------------------------

def test_reads(tmp):
    """Reads that a server below an image answers wrong fail, and so does a stream"""
    with scene(tmp) as w:
        for misdeed in ANY + OF_READS:
            with below(w, tmp) as (server, guest):
                server.arm(misdeed, [READ])
                read_fails(guest, misdeed.__name__)
                use_others(w)
                stream_fails(w, misdeed.__name__)


def test_status(tmp):
    """Block status that a server below an image answers wrong is an error, and not a map"""
    with scene(tmp) as w:
        for misdeed in ANY + OF_STATUS:
            with below(w, tmp) as (server, _):
                server.arm(misdeed, [STATUS])
                stream_fails(w, misdeed.__name__)
                use_others(w)
        for misdeed in HARMLESS_STATUS:
            with below(w, tmp) as (server, guest):
                server.arm(misdeed, [STATUS])
                assert guest.pread(64 * KIB, MIB) == b"f" * 64 * KIB
                got = []
                guest.block_status(SIZE, 0, lambda context, at, entries, error: got.extend(entries))
                assert got[0] > 0 and sum(got[::2]) <= SIZE, got
                use_others(w)


def test_a_byte_at_a_time(tmp):
    """A reply that comes in small pieces is a reply"""
    def in_pieces(c, request):
        data = struct.pack(">IHHQIQ", 0x668e33ef, DONE, DATA, request.cookie, 8 + request.length, request.offset)
        data += c.server.content[request.offset:request.offset + request.length]
        for at in range(0, len(data), 7):
            c.send(data[at:at + 7])
        return True
    with scene(tmp) as w, below(w, tmp) as (server, guest):
        server.arm(in_pieces, [READ])
        assert guest.pread(64 * KIB, MIB) == b"f" * 64 * KIB
        use_others(w)


def test_silent_below(tmp):
    """A server below an image that never answers holds up that image's reads, and nothing else"""
    end = threading.Event()
    with scene(tmp) as w, below(w, tmp) as (server, guest):
        server.arm(lambda c, request: end.wait(), [READ])
        cookie = guest.aio_pread(nbd.Buffer(4096), 0)
        server.misdone.wait()
        for _ in range(20):
            use_others(w)
        assert not guest.aio_command_completed(cookie)
        end.set()
        server.drop()
        try:
            while not guest.aio_command_completed(cookie):
                guest.poll(-1)
            raise AssertionError("the read went well")
        except nbd.Error as e:
            assert e.errnum == EIO, e


def test_shrinks(tmp):
    """A server whose export is smaller after a reconnect is refused by both sizes, and taken when it has the old one"""
    with scene(tmp) as w, below(w, tmp) as (server, guest):
        assert guest.pread(4096, SIZE - 4096) == b"f" * 4096
        server.size = SIZE // 2
        server.drop()
        while not any(f"an export of {SIZE // 2} bytes now, not of {SIZE}" in line for line in w.daemon.lines):
            read_fails(guest, "shrunk")
            use_others(w)
        server.size = SIZE
        while True:
            with contextlib.suppress(nbd.Error):
                assert guest.pread(4096, SIZE - 4096) == b"f" * 4096
                break
            time.sleep(0.05)


def test_lost_with_each_request(tmp):
    """A request that ends each connection fails after reconnect-delay, with few attempts until then"""
    with scene(tmp) as w:
        for misdeed in closes, sends_garbage:
            with below(w, tmp, reconnect_delay=2) as (server, guest):
                server.arm(misdeed, [READ])
                read_fails(guest, misdeed.__name__)
                use_others(w)
                assert len(server.connections) <= 4, len(server.connections)


# -- as a target ------------------------------------------------------------------------------------

@contextlib.contextmanager
def target(w, tmp):
    with Server(tmp / "far", SIZE) as server:
        server.content[:] = b"f" * SIZE
        add_server(w, tmp / "far")
        yield server
        server.arm(None, ())
        w.qmp.command("blockdev-del", node_name="far")


@contextlib.contextmanager
def source(tmp):
    """A disk with guests in its first half, data and a hole."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "top", SIZE)
    qemu_io(tmp / "top", f"write -P 7 {SIZE // 2} {SIZE // 4}")
    with scene(tmp) as w:
        w.add("top", tmp / "top")
        w.export("top", name="disk")
        with guests(w, "disk", 1, SIZE // 2 // BLOCK, 4) as all_guests:
            yield w, all_guests[0]


def start(w, job, **arguments):
    w.qmp.command(f"blockdev-{job}", job_id="j", device="top", target="far", sync="full", **arguments)


def start_in_step(w, guest, job, **arguments):
    with held([guest]):
        start(w, job, **arguments)
        w.qmp.event("BLOCK_JOB_READY")


def job_fails(w, job, misdeed, commands):
    what = f"{job}, {misdeed.__name__}, {commands}"
    done = end_of(w.qmp)
    why = "No space left on device" if misdeed is says_no_space else "Input/output error"
    assert why in done.get("error", "") and "far" in done["error"], f"{what}: {done}"
    use_others(w)


def writes_on(guest):
    before = guest.n_done
    while guest.n_done < before + 8:
        assert guest.is_alive(), guest.failure
        time.sleep(0.001)


def test_targets(tmp):
    """A mirror or backup to a server that answers wrong fails, says where, and its guest goes on"""
    with source(tmp) as (w, guest):
        for job in "mirror", "backup":
            for commands in [WRITE], [ZEROES, TRIM], [FLUSH], [STATUS]:
                if (job, commands) == ("mirror", [FLUSH]):
                    continue  # the next test
                for misdeed in [*ANY, says_no_space]:
                    with target(w, tmp) as server:
                        server.arm(misdeed, commands)
                        start(w, job)
                        job_fails(w, job, misdeed, commands)
                        writes_on(guest)


def test_targets_of_pivots(tmp):
    """A mirror that is ready, and whose target answers wrong from then on, does not take its guests there"""
    with source(tmp) as (w, guest):
        for mode in "background", "write-blocking":
            for commands in [FLUSH], [WRITE]:
                for misdeed in [*ANY, says_no_space]:
                    with target(w, tmp) as server:
                        start_in_step(w, guest, "mirror", copy_mode=mode)
                        server.arm(misdeed, commands)
                        if commands == [FLUSH]:
                            w.qmp.command("job-complete", id="j")
                        job_fails(w, "ready mirror", misdeed, commands)
                        writes_on(guest)


def silent_target(w, tmp, guest, job, is_ready, **arguments):
    """Cancelled, it ends although the server never answers."""
    end = threading.Event()
    with target(w, tmp) as server:
        if is_ready:
            start_in_step(w, guest, job, **arguments)
        server.arm(lambda c, request: end.wait() and False, CHANGES)
        if not is_ready:
            start(w, job, **arguments)
        server.misdone.wait()
        for _ in range(20):
            use_others(w)
        if job == "mirror" and arguments["copy_mode"] == "background":
            writes_on(guest)
        w.qmp.command("job-cancel", id="j")
        use_others(w)
        w.qmp.event("BLOCK_JOB_CANCELLED")
        writes_on(guest)
        assert not end.is_set()
        says(w.daemon.log(), "it does not answer, and is given up")
        end.set()


def test_silent_targets(tmp):
    """A job to a server that falls silent can be asked about and cancelled; its guest goes on then, at the latest"""
    with source(tmp) as (w, guest):
        for mode in "background", "write-blocking":
            for is_ready in False, True:
                silent_target(w, tmp, guest, "mirror", is_ready, copy_mode=mode)
        silent_target(w, tmp, guest, "backup", False)


if __name__ == "__main__":
    main(globals())

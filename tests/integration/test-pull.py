#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pull backups as libvirt and with it virtnbdbackup make them: a scratch image that is an overlay of the
disk, a backup of nothing into it, an export of the scratch image with a bitmap, all disks in one
transaction. The same commands go to qemu-storage-daemon, which has to give the same ($QSD, or the one in
$PATH). What may go wrong with readers and scratch images: test-pull-faults.py.

usage: test-pull.py [--chaind PATH] [WORD]...
"""
import contextlib
import random
import sys
import threading
import time

import nbd

from commits import BLOCK, guests
from harness import KIB, check_image, main
from pulls import (SIZE, Peer, add_disk, await_job, await_writes, check_moment, connect, pull, read_all,
                   worlds)


def act(kind, /, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in data.items()}}


# -- libvirt's commands ---------------------------------------------------------------------------

def create_scratch(w, tmp, disk, n):
    """blockdev-create, as a job; then the image over the disk's node."""
    path, storage = tmp / f"{disk}.scratch{n}", f"{disk}-s{n}-storage"
    path.touch()
    w.qmp.command("blockdev-add", driver="file", node_name=storage, filename=str(path),
                  auto_read_only=True, discard="unmap")
    w.qmp.command("blockdev-create", job_id=f"create-{storage}",
                  options={"driver": "qcow2", "file": storage, "size": SIZE,
                           "backing-file": str(tmp / disk), "backing-fmt": "qcow2"})
    await_job(w, f"create-{storage}", "concluded")
    w.qmp.command("job-dismiss", id=f"create-{storage}")
    w.qmp.command("blockdev-add", node_name=f"{disk}-s{n}-format", read_only=False, discard="unmap",
                  driver="qcow2", file=storage, backing=f"{disk}-format")


def backup_begin(w, tmp, disks, n, since=None):
    """virDomainBackupBegin, mode pull, with a checkpoint; `since`: the one before. While no client is inside,
    before the exports, the disks are what the copies of the moment must be."""
    for disk in disks:
        create_scratch(w, tmp, disk, n)
    actions = [act("block-dirty-bitmap-add", node=f"{d}-format", name=f"c{n}", persistent=True,
                   disabled=False) for d in disks]
    for d in disks:
        scratch = f"{d}-s{n}-format"
        if since is not None:
            actions += [act("block-dirty-bitmap-add", node=scratch, name=f"backup-{d}", persistent=False,
                            disabled=True, granularity=64 * KIB),
                        act("block-dirty-bitmap-merge", node=scratch, target=f"backup-{d}",
                            bitmaps=[{"node": f"{d}-format", "name": f"c{since}"}])]
        actions.append(act("blockdev-backup", device=f"{d}-format", job_id=f"backup-{scratch}",
                           target=scratch, sync="none", auto_finalize=True, auto_dismiss=False))
    w.qmp.command("transaction", actions=actions)
    for d in disks:
        bitmaps = {"bitmaps": [f"backup-{d}"]} if since is not None else {}
        w.qmp.command("block-export-add", type="nbd", id=f"libvirt-nbd-{d}", node_name=f"{d}-s{n}-format",
                      name=f"pull-{d}", writable=False, **bitmaps)


def backup_end(w, disks, n, stops_server):
    """virDomainAbortJob, and what libvirt does when the jobs have ended."""
    for d in disks:
        w.qmp.command("block-job-cancel", device=f"backup-{d}-s{n}-format", force=True)
    for d in disks:
        await_job(w, f"backup-{d}-s{n}-format", "concluded")
    if stops_server:
        w.qmp.command("nbd-server-stop")
    for d in disks:
        if not stops_server:
            w.qmp.command("block-export-del", id=f"libvirt-nbd-{d}", mode="hard")
            w.qmp.event("BLOCK_EXPORT_DELETED")
    while stops_server and w.qmp.command("query-block-exports"):
        time.sleep(0.01)
    for d in disks:
        w.qmp.command("job-dismiss", id=f"backup-{d}-s{n}-format")
        w.qmp.command("blockdev-del", node_name=f"{d}-s{n}-format")
        w.qmp.command("blockdev-del", node_name=f"{d}-s{n}-storage")


# -- reading --------------------------------------------------------------------------------------

def extents(h, context):
    found = []

    def take(_context, at, entries, _error):
        for length, flags in zip(entries[::2], entries[1::2]):
            found.append((at, length, flags))
            at += length

    while sum(length for _, length, _ in found) < SIZE:
        at = sum(length for _, length, _ in found)
        h.block_status(SIZE - at, at, lambda c, o, e, r: take(c, o, e, r) if c == context else None)
    return found


def pull_changed(w, disk, before):
    """What virtnbdbackup makes of the copy before, by the bitmap; and how much it reads."""
    h = connect(w, f"pull-{disk}", f"qemu:dirty-bitmap:backup-{disk}")
    data, n = bytearray(before), 0
    for at, length, flags in extents(h, f"qemu:dirty-bitmap:backup-{disk}"):
        if flags & 1:
            data[at:at + length] = h.pread(length, at)
            n += length
    h.shutdown()
    return bytes(data), n


def full_pull(w, tmp, disks, on, n):
    acked = {d: [dict(g.acked) for g in on[d]] for d in disks}
    backup_begin(w, tmp, disks, n)
    issued = {d: [dict(g.issued) for g in on[d]] for d in disks}
    copies = {}
    for d in disks:
        await_writes(on[d], 100)
        copies[d] = pull(w, tmp / "copy", f"pull-{d}")
        check_moment(on[d], copies[d], acked[d], issued[d])
        await_writes(on[d], 100)
        assert pull(w, tmp / "copy", f"pull-{d}") == copies[d]
    return copies


def test_libvirt(tmp):
    """libvirt's pull backups, one full and then incremental ones, of two disks at one moment, under guests"""
    disks = ("vda", "vdb")
    for w, folder in worlds(tmp):
        for d in disks:
            add_disk(w, folder, d)
        with contextlib.ExitStack() as stack:
            on = {d: stack.enter_context(guests(w, d, 2, SIZE // 4 // BLOCK, 4)) for d in disks}
            copies = full_pull(w, folder, disks, on, 0)
            backup_end(w, disks, 0, False)
            for n in (1, 2):
                await_writes(on["vda"], 200)
                backup_begin(w, folder, disks, n, since=n - 1)
                for d in disks:
                    await_writes(on[d], 200)
                    copies[d], n_read = pull_changed(w, d, copies[d])
                    assert 0 < n_read <= SIZE // 4
                    await_writes(on[d], 200)
                    assert pull(w, folder / "copy", f"pull-{d}") == copies[d], d
                if n == 1:
                    backup_end(w, disks, n, False)
        backup_end(w, disks, 2, True)
        names = {n["node-name"] for n in w.qmp.command("query-named-block-nodes", flat=True)}
        assert not any("-s" in name.replace("-storage", "") for name in names), names
        for d in disks:
            w.qmp.command("blockdev-del", node_name=f"{d}-format")
            check_image(folder / d)


# -- where readers and guests meet ----------------------------------------------------------------

class Writer(threading.Thread):
    """A guest that changes any bytes, most often around the borders of clusters."""

    def __init__(self, w, name, seed):
        super().__init__(daemon=True)
        self.uri, self.rng = w.uri(name), random.Random(seed)
        self.is_over, self.failure, self.n_done = False, None, 0

    def run(self):
        try:
            h = nbd.NBD()
            h.connect_uri(self.uri)
            while not self.is_over:
                off, length = pick(self.rng)
                what = self.rng.random()
                if what < 0.7:
                    h.pwrite(self.rng.randbytes(length), off)
                elif what < 0.85:
                    h.zero(length, off)
                else:
                    h.trim(length, off)
                self.n_done += 1
            h.shutdown()
        except nbd.Error as e:
            self.failure = e


def pick(rng):
    """An offset and a length, in sectors, that begins or ends near a border."""
    border = rng.randrange(1, SIZE // (64 * KIB)) * 64 * KIB
    off = max(0, border - 512 * rng.randrange(0, 24))
    return off, min(512 * rng.randrange(1, 200), SIZE - off)


@contextlib.contextmanager
def writers(w, name, n, seed):
    all_writers = [Writer(w, name, 100 * seed + i) for i in range(n)]
    for writer in all_writers:
        writer.start()
    try:
        yield all_writers
    finally:
        for writer in all_writers:
            writer.is_over = True
        for writer in all_writers:
            writer.join()
    assert not any(writer.failure for writer in all_writers), [writer.failure for writer in all_writers]


def read_at_random(w, name, wanted, n, seed):
    rng, h = random.Random(seed), connect(w, name)
    for _ in range(n):
        depth, cookies = rng.randrange(1, 6), []
        for _ in range(depth):
            off, length = pick(rng)
            buffer = nbd.Buffer(length)
            cookies.append((h.aio_pread(buffer, off), off, length, buffer))
        for cookie, off, length, buffer in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
            assert buffer.to_bytearray() == wanted[off:off + length], f"seed {seed}: {length} at {off}"
    h.shutdown()


def test_borders(tmp):
    """Reads and writes that cross the borders of clusters, side by side, of any length: the moment all the same"""
    for w, folder in worlds(tmp):
        add_disk(w, folder, "vda")
        rounds = 2 if isinstance(w, Peer) else 8
        for n in range(rounds):
            with writers(w, "vda", 2, n) as all_writers:
                await_writes(all_writers, 20)
            h = connect(w, "vda")
            wanted = read_all(h)
            h.shutdown()
            backup_begin(w, folder, ["vda"], n)
            with writers(w, "vda", 3, 1000 + n):
                read_at_random(w, "pull-vda", wanted, 60, n)
            assert pull(w, folder / "copy", "pull-vda") == wanted
            backup_end(w, ["vda"], n, False)


if __name__ == "__main__":
    sys.exit(main(globals()))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests of pull backups share: disks, scratch images and who reads the moment, in both ways of pulling,
and qemu-storage-daemon as a second world ($QSD, or the one in $PATH)."""
import os
import shutil
import subprocess
import time
import types

import nbd

from commits import BLOCK, Guest, create
from harness import HANG, KIB, MIB, await_listener, qemu_img, qemu_io, run
from qmp_client import Qmp
from world import World

SIZE = 8 * MIB
TOP = {"driver": "throttle", "throttle-group": "none"}  # what it costs to be able to put a filter in
QSD = os.environ.get("QSD") or shutil.which("qemu-storage-daemon")


class Peer(World):
    """The same as a World, of qemu-storage-daemon."""

    def __init__(self, tmp):
        self.tmp, sock = tmp, tmp / "peer.qmp"
        self.process = subprocess.Popen([QSD, "--chardev", f"socket,id=qmp,path={sock},server=on,wait=off",
                                         "--monitor", "chardev=qmp"])
        await_listener(sock)
        self.qmp = Qmp(sock, of_qemu=True)
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.qmp.command("quit")
        self.qmp.close()
        self.process.kill()
        self.process.wait()


def worlds(tmp):
    """Both, each in a directory of its own."""
    kinds = {"chaind": lambda d: World(d, "--loops", 2)}
    if QSD:
        kinds["qemu"] = Peer
    for name, make in kinds.items():
        (tmp / name).mkdir()
        with make(tmp / name) as w:
            yield w, tmp / name


def await_job(w, job, *statuses):
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        found = next((j for j in w.qmp.command("query-jobs") if j["id"] == job), None)
        if found and found["status"] in statuses:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{job} has not become {statuses}")


def connect(w, name, *contexts):
    h = nbd.NBD()
    for context in contexts:
        h.add_meta_context(context)
    h.connect_uri(w.uri(name))
    return h


def read_all(h):
    return b"".join(h.pread(MIB, at) for at in range(0, SIZE, MIB))


def pull(w, path, name):
    path.unlink(missing_ok=True)
    run("nbdcopy", w.uri(name), path)
    return path.read_bytes()


def check_moment(all_guests, data, acked, issued):
    """They go on writing meanwhile."""
    for guest, least, most in zip(all_guests, acked, issued):
        then = types.SimpleNamespace(blocks=guest.blocks, data=guest.data, issued=most)
        Guest.check(then, data, least)


def await_writes(all_guests, n):
    until = sum(g.n_done for g in all_guests) + n
    while sum(g.n_done for g in all_guests) < until:
        assert not any(g.failure for g in all_guests), [g.failure for g in all_guests]
        time.sleep(0.01)


def add_disk(w, tmp, disk):
    """As libvirt starts a machine with it; the machine is a client."""
    create(tmp / f"{disk}.base", SIZE)
    qemu_io(tmp / f"{disk}.base", f"write -P 7 {SIZE // 2} {SIZE // 4}")
    create(tmp / disk, None, tmp / f"{disk}.base")
    w.add(f"{disk}-below", tmp / f"{disk}.base", read_only=True)
    w.qmp.command("blockdev-add", driver="file", node_name=f"{disk}-storage", filename=str(tmp / disk))
    w.qmp.command("blockdev-add", driver="qcow2", node_name=f"{disk}-format", file=f"{disk}-storage",
                  backing=f"{disk}-below")
    w.qmp.command("block-export-add", type="nbd", id=f"e-{disk}", node_name=f"{disk}-format", name=disk,
                  writable=True)


def add_guest_disk(w, tmp):
    """The disk, full of data, with something over it that can be laid over a filter; returns what it shows.
    All that guests change there is to be saved: zeros would need no room in a scratch image."""
    add_disk(w, tmp, "vda")
    w.qmp.command("block-export-del", id="e-vda")
    w.qmp.event("BLOCK_EXPORT_DELETED")
    w.qmp.command("object-add", qom_type="throttle-group", id="none")
    w.qmp.command("blockdev-add", node_name="top", file="vda-format", **TOP)
    w.export("top", name="vda")
    h = connect(w, "vda")
    shown = b"".join(Guest.data(block, 1) for block in range(SIZE // BLOCK))
    h.pwrite(shown, 0)
    h.shutdown()
    return shown


def format_scratch(path):
    path.unlink(missing_ok=True)
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    return {"driver": "file", "filename": str(path), "discard": "unmap"}


class Pull:
    """`way`: "overlay", as libvirt does, or "access". The scratch image lies in the node `storage`."""

    def __init__(self, w, way, storage, **options):
        self.w, self.way = w, way
        below = {"backing": "vda-format"} if way == "overlay" else {}
        w.qmp.command("blockdev-add", driver="qcow2", node_name="scratch", file=storage, discard="unmap", **below)
        if way == "overlay":
            w.qmp.command("blockdev-backup", job_id="pull", device="vda-format", target="scratch", sync="none",
                          auto_dismiss=False, **options)
            w.export("scratch", name="pull", writable=False)
            return
        w.qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="vda-format",
                      target="scratch", **options)
        self.lay_over("cbw")
        w.qmp.command("blockdev-add", driver="snapshot-access", node_name="access", file="cbw", discard="unmap")
        w.export("access", name="pull", writable=True)

    def lay_over(self, node):
        self.w.qmp.command("blockdev-reopen", options=[{**TOP, "node-name": "top", "file": node}])

    def await_broken(self, wanted):
        """Reads fail from then on; the job has ended, where there is one."""
        while not reads_refused(self.w, wanted):
            time.sleep(0.05)
        if self.way == "overlay":
            assert "error" in await_job(self.w, "pull", "concluded")

    def end(self):
        w = self.w
        export = "e-scratch" if self.way == "overlay" else "e-access"
        if self.way == "overlay" and await_job(w, "pull", "running", "concluded")["status"] == "running":
            w.qmp.command("block-job-cancel", device="pull", force=True)
        w.qmp.command("block-export-del", id=export, mode="hard")
        while any(e["id"] == export for e in w.qmp.command("query-block-exports")):
            time.sleep(0.01)
        if self.way == "overlay":
            await_job(w, "pull", "concluded")
            w.qmp.command("job-dismiss", id="pull")
        else:
            w.qmp.command("blockdev-del", node_name="access")
            self.lay_over("vda-format")
            w.qmp.command("blockdev-del", node_name="cbw")
        w.qmp.command("blockdev-del", node_name="scratch")


def reads_refused(w, wanted):
    """How many are; all others give the moment."""
    h, n = connect(w, "pull"), 0
    for at in range(0, SIZE, 64 * KIB):
        try:
            assert h.pread(64 * KIB, at) == wanted[at:at + 64 * KIB], at
        except nbd.Error as e:
            assert e.errno in ("EPERM", "EIO", "ENOSPC"), e
            n += 1
    h.shutdown()
    return n


def in_both_ways(tmp):
    for way in ("access", "overlay"):
        folder = tmp / way
        folder.mkdir()
        with World(folder) as w:
            yield way, w, folder, add_guest_disk(w, folder)

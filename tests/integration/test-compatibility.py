#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What docs/compatibility.md says of clients: each is run against exports and monitors of chaind. Those
that are not installed are skipped.

usage: test-compatibility.py [--chaind PATH] [WORD]...
"""
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import nbd

from commits import content, create
from harness import KIB, MIB, Skip, await_listener, check_image, main, qemu_img, qemu_io, run, same_content
from qmp_client import Qmp
from world import World

SIZE = 16 * MIB
QSD = os.environ.get("QSD") or shutil.which("qemu-storage-daemon")


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"{program} is not installed")


def make_disk(w, tmp):
    """Two layers, exported as `disk`; what it shows is in tmp/shown."""
    create(tmp / "base", SIZE)
    qemu_io(tmp / "base", "write -P 1 0 4M", "write -P 2 12M 64k")
    create(tmp / "top", None, tmp / "base")
    qemu_io(tmp / "top", "write -P 3 2M 4M", "write -z 1M 64k")
    w.add("base", tmp / "base", read_only=True)
    w.add("top", tmp / "top", backing="base")
    w.qmp.command("block-dirty-bitmap-add", node="top", name="since", base_node="base")
    qemu_img("convert", "-U", "-O", "raw", tmp / "top", tmp / "shown")


def export(w, node, name, **options):
    w.qmp.command("block-export-add", type="nbd", id=name, node_name=node, name=name, **options)


def add_raw(w, path, name):
    qemu_img("create", "-q", "-f", "raw", path, SIZE)
    w.add(name, path, fmt="raw")
    export(w, name, name, writable=True)


# -- QEMU, with jobs of its own -------------------------------------------------------------------

@contextlib.contextmanager
def qemu(tmp, program=QSD, options=("--monitor", "chardev=qmp")):
    """A qemu-storage-daemon, or that program, as a QMP client sees it."""
    if not program:
        raise Skip("qemu-storage-daemon is not installed")
    sock = tmp / "qemu.sock"
    command = [program, "--chardev", f"socket,id=qmp,path={sock},server=on,wait=off", *options]
    with subprocess.Popen(command) as process:
        try:
            await_listener(sock)
            qmp = Qmp(sock, of_qemu=True)
            yield qmp
            qmp.command("quit")
        except BaseException:
            process.kill()
            raise


def add_nbd(qmp, w, export_name, node, **options):
    qmp.command("blockdev-add", driver="nbd", node_name=node, export=export_name,
                server={"type": "unix", "path": str(w.tmp / "nbd")}, **options)


def finish(qmp, job, is_ready=False):
    if is_ready:
        qmp.event("BLOCK_JOB_READY")
        qmp.command("job-complete", id=job)
    done = qmp.event("BLOCK_JOB_COMPLETED")
    assert done["device"] == job and "error" not in done, done
    while qmp.command("query-jobs"):
        time.sleep(0.01)


def test_qemu_copies(tmp):
    """QEMU mirrors one export to another, and backs one up to another, by jobs of its own"""
    with World(tmp) as w, qemu(tmp) as qmp:
        make_disk(w, tmp)
        export(w, "top", "disk", writable=True)
        for name in ("one", "two"):
            add_raw(w, tmp / name, name)
        for name in ("disk", "one", "two"):
            add_nbd(qmp, w, name, name)
        qmp.command("blockdev-mirror", job_id="j", device="disk", target="one", sync="full")
        finish(qmp, "j", is_ready=True)
        qmp.command("blockdev-backup", job_id="j", device="disk", target="two", sync="full")
        finish(qmp, "j")
    for name in ("one", "two"):
        run("cmp", tmp / name, tmp / "shown")


def test_qemu_reshapes(tmp):
    """QEMU fills an overlay of its own from an export, and commits another into one"""
    with World(tmp) as w, qemu(tmp) as qmp:
        make_disk(w, tmp)
        export(w, "top", "disk", writable=True)
        for name in ("filled", "pushed"):
            create(tmp / name, SIZE)
            qemu_io(tmp / name, "write -P 4 8M 1M")
        for name in ("filled", "pushed"):
            add_nbd(qmp, w, "disk", f"below-{name}", read_only=True, auto_read_only=True)
            qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=f"below-{name}",
                        file={"driver": "file", "filename": str(tmp / name)})
        qmp.command("block-stream", job_id="j", device="filled")
        finish(qmp, "j")
        qmp.command("blockdev-del", node_name="filled")
        shown = bytearray((tmp / "shown").read_bytes())
        shown[8 * MIB:9 * MIB] = b"\4" * MIB
        assert content(tmp / "filled", tmp / "raw") == shown
        qmp.command("blockdev-del", node_name="pushed")
        qmp.command("blockdev-del", node_name="below-pushed")
        add_nbd(qmp, w, "disk", "below")
        qmp.command("blockdev-add", driver="qcow2", node_name="pushed", backing="below",
                    file={"driver": "file", "filename": str(tmp / "pushed")})
        qmp.command("block-commit", job_id="j", device="pushed")
        finish(qmp, "j", is_ready=True)
    assert content(tmp / "top", tmp / "raw") == shown
    check_image(tmp / "top")


def test_qemu_machine(tmp):
    """The QEMU of a machine has a disk on an export, mirrors it to another, and goes on there"""
    need("qemu-system-x86_64")
    with World(tmp) as w:
        make_disk(w, tmp)
        export(w, "top", "disk", writable=True)
        add_raw(w, tmp / "one", "one")
        options = ["-M", "none", "-nodefaults", "-display", "none", "-mon", "chardev=qmp,mode=control",
                   "-drive", f"if=none,id=disk,format=raw,file={w.uri('disk')}"]
        with qemu(tmp, "qemu-system-x86_64", options) as qmp:
            qmp.command("drive-mirror", job_id="j", device="disk", target=w.uri("one"), sync="full", format="raw",
                        mode="existing")
            finish(qmp, "j", is_ready=True)
            qmp.command("human-monitor-command", command_line='qemu-io disk "write -P 9 15M 64k"')
        w.io("one", "read -P 9 15M 64k", "read -P 3 2M 4M", "write -P 0 15M 64k")
    run("cmp", tmp / "one", tmp / "shown")


def test_qemu_sees_bitmaps(tmp):
    """QEMU's programs see the bitmap of an export as they see their own, and the holes"""
    with World(tmp) as w:
        make_disk(w, tmp)
        export(w, "top", "disk", writable=True, bitmaps=["since"])
        name = f"driver=nbd,server.type=unix,server.path={tmp}/nbd,export=disk"
        maps = [json.loads(run("qemu-img", "map", "--output=json", "--image-opts", options).stdout)
                for options in (f"{name},x-dirty-bitmap=qemu:dirty-bitmap:since", name)]
        dirty = [(e["start"], e["length"]) for e in maps[0] if not e["data"]]
        assert dirty == [(MIB, 64 * KIB), (2 * MIB, 4 * MIB)], maps[0]
        data = [(e["start"], e["length"]) for e in maps[1] if e["data"]]
        assert sum(n for _, n in data) == 6 * MIB, maps[1]
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", w.uri("disk"), tmp / "copy")
    run("cmp", tmp / "copy", tmp / "shown")


# -- libnbd ---------------------------------------------------------------------------------------

def test_nbdcopy(tmp):
    """nbdcopy reads an export and writes one, over several connections; nbdinfo tells all contexts"""
    need("nbdcopy", "nbdinfo")
    with World(tmp) as w:
        make_disk(w, tmp)
        export(w, "top", "disk", bitmaps=["since"], allocation_depth=True, writable=True)
        add_raw(w, tmp / "one", "one")
        run("nbdcopy", "--connections=4", w.uri("disk"), tmp / "copy")
        run("nbdcopy", "--connections=4", w.uri("disk"), w.uri("one"))
        run("nbdcopy", tmp / "shown", w.uri("disk"))
        info = json.loads(run("nbdinfo", "--json", w.uri("disk")).stdout)["exports"][0]
        assert {"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:since"} \
            <= set(info["contexts"]), info
        for context in info["contexts"]:
            run("nbdinfo", f"--map={context}", w.uri("disk"))
    for name in ("copy", "one"):
        run("cmp", tmp / name, tmp / "shown")
    same_content(tmp / "top", tmp / "shown")


# -- nbdkit ---------------------------------------------------------------------------------------

def test_nbdkit(tmp):
    """nbdkit's nbd plugin passes an export on, under its filters; what is written comes down"""
    need("nbdkit", "nbdcopy")
    with World(tmp) as w:
        make_disk(w, tmp)
        export(w, "top", "disk", writable=True)
        inner = f"uri={w.uri('disk')}"
        copy = f"nbdcopy \"$uri\" {tmp}/copy && qemu-io -f raw -c 'write -P 7 0 64k' -c flush \"$uri\""
        run("nbdkit", "-U", "-", "--filter=cow", "nbd", inner, "--run", copy)
        run("cmp", tmp / "copy", tmp / "shown")
        run("nbdkit", "-U", "-", "--filter=retry", "--filter=readahead", "nbd", inner, "--run", copy)
        run("cmp", tmp / "copy", tmp / "shown")
        w.io("disk", "read -P 7 0 64k", "read -P 1 64k 64k")


# -- backup programs ------------------------------------------------------------------------------

def pulled(w, tmp):
    """The moment of the disk as libvirt lays it out for those who pull: a filter that saves what changes, a
    node that shows the moment, an export of it with the bitmap."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "scratch", SIZE)
    w.add("scratch", tmp / "scratch")
    w.qmp.command("object-add", qom_type="throttle-group", id="none")
    w.qmp.command("blockdev-add", node_name="guest", file="top", driver="throttle", throttle_group="none")
    export(w, "guest", "disk", writable=True)
    w.qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="top", target="scratch")
    w.qmp.command("blockdev-reopen", options=[{"driver": "throttle", "throttle-group": "none",
                                               "node-name": "guest", "file": "cbw"}])
    w.qmp.command("block-dirty-bitmap-disable", node="top", name="since")
    w.qmp.command("blockdev-add", driver="snapshot-access", node_name="access", file="cbw")
    export(w, "access", "sda", bitmaps=[{"node": "top", "name": "since"}])
    w.io("disk", "write -P 9 0 8M")  # a guest goes on


def test_pulled_by_extents(tmp):
    """A moment is pulled by qemu-img, by nbdcopy, and by bitmap over a copy of the layer below"""
    need("nbdcopy")
    with World(tmp) as w:
        make_disk(w, tmp)
        pulled(w, tmp)
        run("nbdcopy", w.uri("sda"), tmp / "copy")
        run("qemu-img", "convert", "-t", "writeback", "-f", "raw", "-O", "qcow2", w.uri("sda"), tmp / "image")
        h = nbd.NBD()
        h.add_meta_context("qemu:dirty-bitmap:since")
        h.connect_uri(w.uri("sda"))
        disk, extents = bytearray(content(tmp / "base", tmp / "raw")), []
        h.block_status(SIZE, 0, lambda _c, _o, entries, _e: extents.extend(zip(entries[::2], entries[1::2])))
        at = 0
        for length, is_dirty in extents:
            if is_dirty:
                disk[at:at + length] = h.pread(length, at)
            at += length
        h.shutdown()
    run("cmp", tmp / "copy", tmp / "shown")
    same_content(tmp / "image", tmp / "shown")
    assert at == SIZE and disk == (tmp / "shown").read_bytes()


def test_virtnbdbackup(tmp):
    """virtnbdbackup's own code reads the extents, full and incremental, and with them the disk"""
    try:
        from libvirtnbdbackup import nbdcli
        from libvirtnbdbackup.extenthandler import ExtentHandler
    except ImportError as e:
        raise Skip(f"virtnbdbackup is not installed: {e}") from e
    with World(tmp) as w:
        make_disk(w, tmp)
        pulled(w, tmp)
        for context, before in (("", bytes(SIZE)), ("qemu:dirty-bitmap:since", content(tmp / "base", tmp / "raw"))):
            kind = nbdcli.Unix("sda", context, str(tmp / "nbd"))
            client = nbdcli.client(kind).connect()
            disk = bytearray(before)
            for extent in ExtentHandler(client, kind).queryBlockStatus():
                step = client.maxRequestSize
                for at in range(extent.offset, extent.offset + extent.length if extent.data else 0, step):
                    n = min(step, extent.offset + extent.length - at)
                    disk[at:at + n] = client.nbd.pread(n, at)
            client.disconnect()
            assert disk == (tmp / "shown").read_bytes(), context or "full"


if __name__ == "__main__":
    sys.exit(main(globals()))

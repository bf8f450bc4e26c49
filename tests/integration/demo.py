#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`./dev demo`: chaind's main job on real input, in plain words. Makes a three-layer chain around a file
system with files of this machine, serves it, reads it back, writes to it, and has every image
checked by qemu-img. Each step is verified; the first surprise ends it with status 1.

usage: demo.py [--chaind PATH] [--keep]
"""
import argparse
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import time

import nbd

import harness
from demo_client import BUSY_SIZE, Writer, content_after, newest_number, read_all, show, title
from demo_disks import five_minutes
from harness import KIB, MIB, Daemon, qemu_img, run
from qmp_client import Qmp

SIZE = 96 * MIB
BLOCK = 64 * KIB
LONG_SIZE, LONG = 256 * MIB, {"a": 32 * MIB, "b": 96 * MIB, "c": 160 * MIB}  # what each layer has, where


def debugfs(image, *commands):
    """Changes an ext4 file system without mounting it, so that the demo needs no privileges."""
    for command in commands:
        run("debugfs", "-w", "-R", command, image)


def changed_blocks(old, new):
    """Offsets of the 64 KiB blocks in which two raw files of one size differ."""
    with open(old, "rb") as a, open(new, "rb") as b:
        offset = 0
        while True:
            x, y = a.read(BLOCK), b.read(BLOCK)
            if not y:
                return
            if x != y:
                yield offset, y
            offset += BLOCK


def add_layer(tmp, base, overlay, old, new):
    """A new overlay of `base` that turns the content `old` into `new`, written by qemu-io."""
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay, cwd=tmp)
    commands, n = [], 0
    for offset, _ in changed_blocks(tmp / old, tmp / new):
        piece = tmp / f"piece-{offset}"
        with open(tmp / new, "rb") as f:
            f.seek(offset)
            piece.write_bytes(f.read(BLOCK))
        commands += ["-c", f"write -q -s {piece} {offset} {BLOCK}"]
        n += 1
    run("qemu-io", "-f", "qcow2", *commands, tmp / overlay)
    for piece in tmp.glob("piece-*"):
        piece.unlink()
    print(f"  {overlay}: {n} blocks of 64 KiB differ from {base}")


def file_tree(tmp):
    """Some files of this machine: licences, headers, documents."""
    tree = tmp / "tree"
    tree.mkdir()
    for source in ("/usr/share/common-licenses", "/usr/include/linux", "/usr/lib/python3.11/json"):
        if os.path.isdir(source):
            shutil.copytree(source, tree / os.path.basename(source), symlinks=True)
    n = sum(len(files) for _, _, files in os.walk(tree))
    print(f"  {n} files of this machine, from /usr/share/common-licenses, /usr/include/linux, …")
    return tree


def make_chain(tmp):
    title("1. A disk with three layers")
    tree = file_tree(tmp)
    run("mkfs.ext4", "-q", "-F", "-L", "demo", "-d", tree, tmp / "base.raw", f"{SIZE // KIB}k")
    qemu_img("convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2", cwd=tmp)
    print(f"  base.qcow2: an ext4 file system with these files, compressed: "
          f"{os.path.getsize(tmp / 'base.qcow2') // KIB} KiB")

    shutil.copy(tmp / "base.raw", tmp / "monday.raw")
    (tmp / "note").write_text("written on monday\n" * 1000)
    debugfs(tmp / "monday.raw", f"write {tmp}/note monday.txt", "rm common-licenses/GPL-1")
    add_layer(tmp, "base.qcow2", "monday.qcow2", "base.raw", "monday.raw")

    shutil.copy(tmp / "monday.raw", tmp / "tuesday.raw")
    (tmp / "note").write_text("written on tuesday\n" * 20000)
    debugfs(tmp / "tuesday.raw", f"write {tmp}/note tuesday.txt", "mkdir new", "rm common-licenses/BSD")
    add_layer(tmp, "monday.qcow2", "tuesday.qcow2", "monday.raw", "tuesday.raw")
    print("  chain: base.qcow2 <- monday.qcow2 <- tuesday.qcow2")


def read_back(tmp, daemon):
    title("3. Reading it back")
    show("nbdinfo", daemon.uri())
    show("nbdcopy", daemon.uri(), tmp / "copy.raw")
    run("cmp", tmp / "copy.raw", tmp / "tuesday.raw")
    print(f"  All {SIZE // MIB} MiB are byte for byte what the three layers make together.")
    run("e2fsck", "-f", "-n", tmp / "copy.raw")
    text = run("debugfs", "-R", "cat monday.txt", tmp / "copy.raw").stdout
    assert text == "written on monday\n" * 1000
    print("  e2fsck finds the file system clean; monday.txt comes from the middle layer.")


def write(tmp, daemon):
    title("4. Writing through NBD")
    shutil.copy(tmp / "tuesday.raw", tmp / "now.raw")
    (tmp / "note").write_text("written through chaind\n" * 30000)
    debugfs(tmp / "now.raw", f"write {tmp}/note new/now.txt")
    h = nbd.NBD()
    h.connect_uri(daemon.uri())
    n = 0
    for offset, data in changed_blocks(tmp / "tuesday.raw", tmp / "now.raw"):
        h.pwrite(data, offset)
        n += 1
    h.flush()
    print(f"  {n} blocks written and flushed: now the file system also has new/now.txt.")
    run("nbdcopy", daemon.uri(), tmp / "copy.raw")
    run("cmp", tmp / "copy.raw", tmp / "now.raw")
    print("  Read back through NBD: all there.")
    h.shutdown()


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def check(tmp, below):
    title("5. Checking every image with qemu-img")
    for name in ("base.qcow2", "monday.qcow2", "tuesday.qcow2"):
        show("qemu-img", "check", tmp / name)
    show("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp / "tuesday.qcow2", tmp / "now.raw")
    for path, before in below.items():
        assert digest(path) == before, f"{path} was changed"
    print("  The two lower layers were not touched.")


def command(qmp, what, /, **arguments):
    words = ", ".join(f"{k.replace(chr(95), chr(45))}={v}" for k, v in arguments.items() if isinstance(v, str))
    print(f"  QMP: {what} {words}")
    return qmp.command(what, **arguments)


def old_state(tmp):
    title("7. An old state of the disk beside the live one")
    with Daemon("--qmp", tmp / "qmp") as daemon:
        qmp = Qmp(tmp / "qmp")
        command(qmp, "blockdev-add", driver="qcow2", node_name="disk",
                file={"driver": "file", "filename": str(tmp / "tuesday.qcow2")})
        qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp / "nbd")}})
        command(qmp, "block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
        command(qmp, "blockdev-snapshot-internal-sync", device="disk", name="before")
        live, old = (f"nbd+unix:///{name}?socket={tmp}/nbd" for name in ("disk", "before"))

        shutil.copy(tmp / "now.raw", tmp / "later.raw")
        debugfs(tmp / "later.raw", "rm monday.txt", "rm tuesday.txt")
        h = nbd.NBD()
        h.connect_uri(live)
        for offset, data in changed_blocks(tmp / "now.raw", tmp / "later.raw"):
            h.pwrite(data, offset)
        print("  Somebody deletes monday.txt and tuesday.txt on the live disk.")

        command(qmp, "blockdev-add", driver="qcow2", node_name="before", file="disk", snapshot="before")
        command(qmp, "block-export-add", type="nbd", id="before", node_name="before")
        run("nbdcopy", old, tmp / "copy.raw")
        run("cmp", tmp / "copy.raw", tmp / "now.raw")
        text = run("debugfs", "-R", "cat monday.txt", tmp / "copy.raw").stdout
        assert text == "written on monday\n" * 1000
        run("nbdcopy", live, tmp / "copy.raw")
        run("cmp", tmp / "copy.raw", tmp / "later.raw")
        print("  The export 'before' still has both files, at the same time as the live disk has not.")

        h.shutdown()
        command(qmp, "block-export-del", id="before")
        qmp.event("BLOCK_EXPORT_DELETED")
        command(qmp, "blockdev-del", node_name="before")
        command(qmp, "blockdev-snapshot-delete-internal-sync", device="disk", name="before")
    show("qemu-img", "check", tmp / "tuesday.qcow2")


def snapshot_under_load(tmp):
    title("8. A snapshot while a client writes")
    qemu_img("create", "-q", "-f", "qcow2", tmp / "busy.qcow2", BUSY_SIZE)
    with Daemon("--qmp", tmp / "qmp", "--nbd", tmp / "nbd", f"busy={tmp}/busy.qcow2") as daemon:
        qmp = Qmp(tmp / "qmp")
        writer = Writer(daemon.uri("busy"))
        writer.start()
        writer.wait_for(2000)
        before = writer.n
        command(qmp, "blockdev-snapshot-sync", node_name="busy", snapshot_node_name="top",
                snapshot_file=str(tmp / "top.qcow2"), format="qcow2")
        after = writer.n
        writer.wait_for(after + 2000)
        writer.enough.set()
        writer.join()
        print(f"  The client goes on and notices nothing: {writer.n} writes, the slowest took "
              f"{writer.slowest * 1000:.1f} ms.")

        command(qmp, "block-export-add", type="nbd", id="old", node_name="busy", name="old")
        old = read_all(f"nbd+unix:///old?socket={tmp}/nbd")
        moment = newest_number(old)
        assert before <= moment <= after + 1, f"{before} <= {moment} <= {after} + 1"
        assert old == content_after(moment), "the old layer is not the state of one moment"
        assert read_all(daemon.uri("busy")) == content_after(writer.n), "the live disk lacks writes"
        print(f"  The old layer is the disk as it was after write {moment}, whole; the live disk has "
              "them all.")
    for name in ("busy.qcow2", "top.qcow2"):
        show("qemu-img", "check", tmp / name)


def run_job(qmp, job, writer):
    """Waits for its end, completes it when it is ready, and tells how far it is and what the client
    notices."""
    writer.slowest, n_before, asked = 0, writer.n, False
    while True:
        infos = {info["device"]: info for info in qmp.command("query-block-jobs")}
        info = infos.get(job)
        if not info or info["status"] == "concluded":
            break
        print(f"    {info['status']:8} {info['offset'] // MIB:4} of {info['len'] // MIB:4} MiB")
        if info["status"] == "ready" and not asked:
            writer.wait_for(writer.n + 500)
            command(qmp, "job-complete", id=job)
            asked = True
        time.sleep(0.1)
    ended, = [e for e in qmp.command("query-jobs") if e["id"] == job]
    assert "error" not in ended, ended
    qmp.command("job-dismiss", id=job)
    writer.wait_for(writer.n + 500)
    print(f"  Done. Meanwhile the client wrote {writer.n - n_before} blocks, the slowest in "
          f"{writer.slowest * 1000:.1f} ms.")


def fill(path, letter):
    run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {ord(letter)} {LONG[letter]} 64M", path)


def shorter_chain(tmp):
    title("9. A chain made shorter while a client writes")
    images = [tmp / f"long{i}.qcow2" for i in range(4)]
    for i, image in enumerate(images):
        below = ["-b", str(images[i - 1]), "-F", "qcow2"] if i else []
        qemu_img("create", "-q", "-f", "qcow2", *below, image, LONG_SIZE)
        if i < 3:
            fill(image, "abc"[i])
    print(f"  Four layers: {' <- '.join(image.name for image in images)}")
    with Daemon("--qmp", tmp / "qmp", "--nbd", tmp / "nbd", f"long={images[3]}") as daemon:
        qmp = Qmp(tmp / "qmp")
        writer = Writer(daemon.uri("long"))
        writer.start()
        writer.wait_for(1000)
        print("  What the two layers in the middle have is pulled into the top:")
        command(qmp, "block-stream", job_id="pull", device="long", base=str(images[0]),
                auto_dismiss=False)
        run_job(qmp, "pull", writer)
        print("  Then the top is pushed into the base, which becomes the disk:")
        command(qmp, "block-commit", job_id="push", device="long", auto_dismiss=False)
        run_job(qmp, "push", writer)
        writer.enough.set()
        writer.join()
        h = nbd.NBD()
        h.connect_uri(daemon.uri("long"))
        assert h.pread(BUSY_SIZE, 0) == content_after(writer.n), "the disk lacks writes"
        for letter, offset in LONG.items():
            assert set(h.pread(32 * MIB, offset)) == {ord(letter)}, f"{letter} is not there"
        h.shutdown()
        print(f"  All {writer.n} writes are there, and what each layer had.")
    show("qemu-img", "info", "--backing-chain", images[0])
    show("qemu-img", "check", images[0])


def demo(tmp):
    make_chain(tmp)
    below = {tmp / n: digest(tmp / n) for n in ("base.qcow2", "monday.qcow2")}

    title("2. Serving it")
    print("  $ chaind tuesday.qcow2")
    with Daemon(tmp / "tuesday.qcow2") as daemon:
        print("    " + daemon.uri())
        for line in daemon.lines:
            print("    " + line)
        read_back(tmp, daemon)
        write(tmp, daemon)
    print("  SIGTERM: chaind flushed, released its locks and ended with status 0.")
    check(tmp, below)

    title("6. Without a daemon")
    show("nbdcopy", "--", "[", harness.chaind_path, tmp / "tuesday.qcow2", "]", tmp / "copy.raw")
    run("cmp", tmp / "copy.raw", tmp / "now.raw")
    print("  nbdcopy started chaind by itself, and it ended with the copy.")

    old_state(tmp)
    snapshot_under_load(tmp)
    shorter_chain(tmp)
    five_minutes(tmp)

    title("What this showed")
    print("  chaind opened a chain of three qcow2 images made by QEMU's tools, one of them compressed,\n"
          "  served the content that the layers make together, took writes into the top layer only,\n"
          "  kept an old state and showed it beside the live disk, put a snapshot under a client that\n"
          "  wrote all the time, made a chain of four one image under it, remembered a disk with its\n"
          "  points in time and backups, and left images that qemu-img finds clean and equal to what\n"
          "  was written.")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--chaind", default=harness.chaind_path)
    ap.add_argument("--keep", action="store_true", help="leave the images for a look")
    args = ap.parse_args()
    harness.chaind_path = os.path.abspath(args.chaind)
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="chaind-demo-"))
    try:
        demo(tmp)
    except AssertionError as e:
        print(f"\nThe demo failed: {e}", file=sys.stderr)
        return 1
    finally:
        if args.keep:
            print(f"  The images are in {tmp}")
        else:
            shutil.rmtree(tmp, ignore_errors=True)
    return 0


sys.exit(main())

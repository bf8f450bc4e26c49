#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes and exports made at run time: what clients read through them, what is shared and by whom it
is used, what happens to the files, the events. Replies word by word are in ../qmp.

usage: test-blockdev.py [--chaind PATH] [WORD]...
"""
import os
import threading

from harness import Daemon, check_image, connect, main, need_fuse_disk, qemu_img, run, says
from qmp_client import Qmp
from world import World, qemu_io

MIB = 1 << 20


def base_and_overlays(tmp, n):
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base", MIB)
    run("qemu-io", "-c", "write -P 0x11 0 512k", tmp / "base")
    for i in range(n):
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp / f"over{i}")


def test_many_overlays(tmp):
    """One base node under many overlays: each sees it below its own writes, and it stays until the last"""
    n = 24
    base_and_overlays(tmp, n)
    with World(tmp, "--loops", 2) as w:
        w.add("base", tmp / "base", read_only=True)
        for i in range(n):
            w.add(f"over{i}", tmp / f"over{i}", backing="base")
            w.export(f"over{i}")
        for i in range(n):
            w.io(f"over{i}", f"write -P {i + 1} 64k 64k", "read -P 0x11 0 64k")
        for i in range(n):
            w.io(f"over{i}", f"read -P {i + 1} 64k 64k", "read -P 0x11 128k 64k", "read -P 0 512k 512k",
                 read_only=True)
        says(w.qmp.error("blockdev-del", node_name="base"), "backing hd")
        for i in range(n):
            w.qmp.command("block-export-del", id=f"e-over{i}")
            w.qmp.command("blockdev-del", node_name=f"over{i}")
        w.qmp.command("blockdev-del", node_name="base")
        assert not w.nodes(), w.nodes()
    for i in range(n):
        check_image(tmp / f"over{i}")
    check_image(tmp / "base")


def test_base_is_not_written(tmp):
    """What lies below an overlay is not exported for writing, and an overlay of what is written is not"""
    base_and_overlays(tmp, 1)
    with World(tmp) as w:
        w.add("base", tmp / "base")
        w.add("over", tmp / "over0", backing="base")
        says(w.qmp.error("block-export-add", type="nbd", id="e", node_name="base", writable=True),
             "Permission conflict on node 'base'", "node 'over'")
        w.export("base", writable=False)
        w.qmp.command("blockdev-del", node_name="over")
        w.qmp.command("block-export-del", id="e-base")
        w.export("base")
        w.add("over", tmp / "over0", backing="base")
        says(w.qmp.error("block-export-add", type="nbd", id="e", node_name="over", writable=False),
             "Permission conflict on node 'base'", "block export 'e-base'")


def test_same_file(tmp):
    """A file that one node writes is refused to another, by the file's locks and by the file's node"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    with World(tmp) as w:
        w.qmp.command("blockdev-add", driver="file", node_name="file", filename=str(tmp / "disk"))
        w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="file")
        says(w.qmp.error("blockdev-add", driver="qcow2", node_name="again", file="file"),
             "Permission conflict on node 'file'")
        says(w.qmp.error("blockdev-add", driver="qcow2", node_name="again",
                         file={"driver": "file", "filename": str(tmp / "disk")}),
             str(tmp / "disk"), "in use")
        done = run("qemu-io", "-c", "write 0 64k", tmp / "disk", check=False)
        assert done.returncode != 0, done.stdout
        # Without a format in it the file is anybody's.
        w.qmp.command("blockdev-del", node_name="disk")
        run("qemu-io", "-c", "write -P 0x44 0 64k", tmp / "disk")
        w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="file")
        w.export("disk")
        w.io("disk", "read -P 0x44 0 64k")


def test_file_node(tmp):
    """A file's node is exported by itself, and locked while it is"""
    (tmp / "disk").write_bytes(b"\x55" * MIB)
    with World(tmp) as w:
        w.qmp.command("blockdev-add", driver="file", node_name="file", filename=str(tmp / "disk"))
        run("qemu-io", "-f", "raw", "-c", "read 0 64k", tmp / "disk")
        w.export("file")
        w.io("file", "read -P 0x55 0 1M", "write -P 0x66 0 64k")
        done = run("qemu-io", "-f", "raw", "-c", "write 0 64k", tmp / "disk", check=False)
        assert done.returncode != 0, done.stdout
    assert (tmp / "disk").read_bytes()[:65537] == b"\x66" * 65536 + b"\x55"


def test_deleted_is_written(tmp):
    """A deleted node was flushed, closed and unlocked: its file has everything"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    with World(tmp) as w:
        w.add("disk", tmp / "disk")
        w.export("disk")
        w.io("disk", "write -P 0x77 0 1M")
        w.qmp.command("block-export-del", id="e-disk")
        w.qmp.command("blockdev-del", node_name="disk")
        run("qemu-io", "-c", "read -P 0x77 0 1M", tmp / "disk")
        check_image(tmp / "disk")


def test_mode(tmp):
    """A node that became read-only lets others read its file, and becomes writable when they are gone"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    with World(tmp) as w:
        def reopen(**options):
            return {"options": [{"driver": "qcow2", "node-name": "disk", "file": "file",
                                 "backing": None, **options}]}

        reader = {"driver": "qcow2", "node-name": "reader", "file": "file", "read-only": True}
        w.qmp.command("blockdev-add", driver="file", node_name="file", filename=str(tmp / "disk"))
        w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="file")
        w.export("disk")
        w.io("disk", "write -P 0x21 0 64k")
        w.qmp.command("block-export-del", id="e-disk")
        says(w.qmp.error("blockdev-add", **reader), "Permission conflict on node 'file'")
        w.qmp.command("blockdev-reopen", **reopen(**{"read-only": True}))
        run("qemu-io", "-r", "-c", "read -P 0x21 0 64k", tmp / "disk")
        w.qmp.command("blockdev-add", **reader)
        says(w.qmp.error("blockdev-reopen", **reopen()), "Permission conflict on node 'file'")
        w.qmp.command("blockdev-del", node_name="reader")
        w.qmp.command("blockdev-reopen", **reopen())
        w.export("disk")
        w.io("disk", "read -P 0x21 0 64k", "write -P 0x22 0 64k")
    run("qemu-io", "-c", "read -P 0x22 0 64k", tmp / "disk")


def test_discard(tmp):
    """Discards are ignored unless they are let through; written zeroes are detected where it is wanted"""
    def blocks(name):
        return os.stat(tmp / name).st_blocks

    for name in "ignored", "passed", "zeroes":
        (tmp / name).write_bytes(b"\x11" * MIB)
    with World(tmp) as w:
        w.add("ignored", tmp / "ignored", "raw")
        w.add("passed", tmp / "passed", "raw", discard="unmap")
        w.add("zeroes", tmp / "zeroes", "raw", discard="unmap", detect_zeroes="unmap")
        before = {name: blocks(name) for name in w.nodes() if not name.startswith("#")}
        for name in before:
            w.export(name)
        w.io("ignored", "discard 0 1M", "read -P 0x11 0 1M")
        w.io("passed", "discard 0 1M")
        w.io("zeroes", "write -P 0 0 1M", "read -P 0 0 1M")
    assert blocks("ignored") == before["ignored"] > 0
    assert blocks("passed") < before["passed"]
    assert blocks("zeroes") < before["zeroes"]


def test_servers(tmp):
    """A server that was stopped is started again elsewhere; its clients were disconnected"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    with World(tmp) as w:
        w.add("disk", tmp / "disk")
        w.export("disk", name="one")
        import nbd
        client = nbd.NBD()
        client.connect_uri(w.uri("one"))
        client.pread(512, 0)
        says(w.qmp.error("block-export-del", id="e-disk"), "still in use")
        w.qmp.command("nbd-server-stop")
        assert w.qmp.event("BLOCK_EXPORT_DELETED") == {"id": "e-disk"}
        assert not (tmp / "nbd").exists()
        try:
            client.pread(512, 0)
            raise AssertionError("the client is still served")
        except nbd.Error:
            pass
        w.start("other")
        w.export("disk", name="two", description="a disk")
        says(run("nbdinfo", w.uri("two", "other")).stdout, "a disk")


def test_clients_that_just_came(tmp):
    """A client that was told it is in is in the way of a removal, on whichever loop its export is"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    with World(tmp) as w:
        w.qmp.command("object-add", qom_type="iothread", id="io")
        w.add("disk", tmp / "disk")
        w.export("disk", iothread="io")
        for _ in range(100):
            client = connect(w.uri("disk"))
            says(w.qmp.error("block-export-del", id="e-disk"), "still in use")
            client.shutdown()


def test_hard_removal(tmp):
    """An export with clients is removed when that is asked for, and its clients with it"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    with World(tmp) as w:
        import nbd
        w.add("disk", tmp / "disk")
        w.export("disk")
        client = nbd.NBD()
        client.connect_uri(w.uri("disk"))
        client.pwrite(b"\x12" * 512, 0)
        w.qmp.command("block-export-del", id="e-disk", mode="hard")
        assert w.qmp.event("BLOCK_EXPORT_DELETED") == {"id": "e-disk"}
        w.qmp.command("blockdev-del", node_name="disk")
        run("qemu-io", "-c", "read -P 0x12 0 512", tmp / "disk")


def test_many(tmp):
    """Hundreds of nodes and exports come, are told of, count, and go"""
    n = 300
    qemu_img("create", "-q", "-f", "qcow2", tmp / "image", MIB)
    image = (tmp / "image").read_bytes()
    with World(tmp, "--loops", 2) as w:
        for i in range(n):
            (tmp / f"disk{i}").write_bytes(image)
            w.add(f"disk{i}", tmp / f"disk{i}")
            w.export(f"disk{i}")
        assert len(w.nodes()) == 2 * n
        assert len(w.qmp.command("query-block-exports")) == n
        assert len(run("nbdinfo", "--list", w.uri("")).stdout.split("\nexport=")) == n + 1
        w.io("disk7", "write 0 64k", "read 0 4k")
        stats = {s["node-name"]: s["stats"]
                 for s in w.qmp.command("query-blockstats", query_nodes=True)}
        assert stats["disk7"]["wr_bytes"] == 65536 and stats["disk7"]["rd_bytes"] == 4096, stats
        assert stats["disk8"]["wr_bytes"] == 0
        for i in range(n):
            w.qmp.command("block-export-del", id=f"e-disk{i}")
            w.qmp.command("blockdev-del", node_name=f"disk{i}")
        assert not w.nodes() and not w.qmp.command("query-block-exports")


def test_command_line_disks(tmp):
    """FILE arguments are nodes and exports like others: told of, used by others, deleted"""
    base_and_overlays(tmp, 1)
    with Daemon("--qmp", tmp / "qmp", "--nbd", tmp / "nbd", f"disk={tmp / 'base'}", "--read-only"):
        q = Qmp(tmp / "qmp")
        assert [e["node-name"] for e in q.command("query-block-exports")] == ["disk"]
        q.command("blockdev-add", driver="qcow2", node_name="over", backing="disk",
                  file={"driver": "file", "filename": str(tmp / "over0")})
        q.command("block-export-add", type="nbd", id="e", node_name="over", writable=True)
        qemu_io(f"nbd+unix:///over?socket={tmp / 'nbd'}", "read -P 0x11 0 64k", "write 0 64k")
        q.command("block-export-del", id="disk")
        assert "backing hd" in q.error("blockdev-del", node_name="disk")
        q.close()


def test_beside_what_is_closed(tmp):
    """Nodes are added, and brought to one loop, while exports of other nodes are being closed"""
    (tmp / "raw").write_bytes(bytes(MIB))
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    with World(tmp, "--loops", 2) as w:
        for name, file in ("raw", "raw"), ("file", "disk"):
            w.qmp.command("blockdev-add", driver="file", node_name=name, filename=str(tmp / file))
        is_over, failures = threading.Event(), []

        def come_and_go():
            q = Qmp(tmp / "qmp")
            try:
                while not is_over.is_set():
                    q.command("block-export-add", type="nbd", id="e", node_name="raw")
                    q.command("block-export-del", id="e", mode="hard")
                    q.event("BLOCK_EXPORT_DELETED")
            except Exception as e:  # told at the end
                failures.append(e)
            q.close()

        others = threading.Thread(target=come_and_go)
        others.start()
        try:
            for _ in range(150):
                # On the loops in turn.
                w.qmp.command("blockdev-add", driver="null-co", node_name="base", size=MIB)
                w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="file", backing="base")
                w.qmp.command("blockdev-del", node_name="disk")
                w.qmp.command("blockdev-del", node_name="base")
        finally:
            is_over.set()
            others.join()
        assert not failures, failures


def test_corrupt(tmp):
    """Damage that a client meets is an event"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "disk", MIB)
    run("qemu-io", "-c", "write 0 64k", tmp / "disk")
    with open(tmp / "disk", "r+b") as f:
        f.seek(40)
        l1 = int.from_bytes(f.read(8), "big")
        f.seek(l1)
        l2 = int.from_bytes(f.read(8), "big") & ((1 << 56) - (1 << 9))
        f.seek(l2)
        f.write((1 << 63 | 0x200).to_bytes(8, "big"))  # not aligned to a cluster
    with World(tmp) as w:
        w.add("disk", tmp / "disk", read_only=True)
        w.export("disk", writable=False)
        done = run("qemu-io", "-r", "-f", "raw", "-c", "read 0 64k", w.uri("disk"), check=False)
        assert "rror" in done.stdout + done.stderr, done
        data = w.qmp.event("BLOCK_IMAGE_CORRUPTED")
        assert data["node-name"] == "disk" and data["fatal"] is True, data
        # Whoever has heard of it, and asks, is told the same.
        for n in w.qmp.command("query-named-block-nodes"):
            if n["node-name"] == "disk":
                assert n["image"]["format-specific"]["data"]["corrupt"] is True, n


def test_io_error(tmp):
    """What the host fails to read is an event, with the node and the reason"""
    with need_fuse_disk(tmp / "mnt", "--filter=error", "memory", "1M", "error-pread-rate=1") as path:
        with World(tmp) as w:
            w.add("disk", path, "raw", read_only=True)
            w.export("disk", writable=False)
            done = run("qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", w.uri("disk"), check=False)
            assert "rror" in done.stdout + done.stderr, done
            data = w.qmp.event("BLOCK_IO_ERROR")
            assert data["node-name"] == "disk" and data["operation"] == "read", data
            assert data["action"] == "report" and data["nospace"] is False, data


if __name__ == "__main__":
    main(globals())

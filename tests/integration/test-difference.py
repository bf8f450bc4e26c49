#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What differs between two points in time of a chain although no bitmap was there: a bitmap that is made
from the layers' metadata, for clients and for jobs.

usage: test-difference.py [--chaind PATH] [WORD]...
"""
import random
import time

import nbd

from commits import BLOCK, content, create, end_of, guests
from harness import KIB, MIB, check_image, main, qemu_img, qemu_io, run, same_content, says
from images import make_chain, random_chain
from world import World

SIZE = 16 * MIB
GUESTS = 4 * MIB


def make_disk(w, tmp, n=4):
    """base ← l1 ← l2 …: each writes, zeroes and discards at places of its own past the guests' part."""
    create(tmp / "base", SIZE)
    qemu_io(tmp / "base", f"write -P 9 {GUESTS} {SIZE - GUESTS}")
    w.add("base", tmp / "base", read_only=True)
    below = "base"
    for i in range(1, n + 1):
        create(tmp / f"l{i}", None, tmp / below)
        qemu_io(tmp / f"l{i}", f"write -P {i} {4 + 2 * i}M 512k", f"write -z {5 + 2 * i}M 128k",
                f"discard {5 * MIB + 2 * i * MIB + 512 * KIB} 64k")
        w.add(f"l{i}", tmp / f"l{i}", backing=below, read_only=i < n)
        below = f"l{i}"
    return below


def dirty_extents(uri, name):
    """What the context of that bitmap calls dirty: [(offset, length)]."""
    h = nbd.NBD()
    h.add_meta_context(f"qemu:dirty-bitmap:{name}")
    h.connect_uri(uri)
    found, at = [], 0

    def note(_context, offset, entries, _error):
        nonlocal at
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags:
                found.append((offset, length))
            offset += length
        at = offset

    while at < h.get_size():
        h.block_status(h.get_size() - at, at, note)
    h.shutdown()
    return found


def apply(below, above, extents):
    """What the lower one becomes with what is dirty of the other."""
    disk = bytearray(below[:len(above)].ljust(len(above), b"\0"))
    for off, length in extents:
        disk[off:off + length] = above[off:off + length]
    return bytes(disk)


def add_bitmap(w, node, base, **options):
    w.qmp.command("block-dirty-bitmap-add", node=node, name=f"since-{base}", base_node=base, **options)


def bitmap_of(w, node, name):
    return {b["name"]: b for b in w.nodes()[node].get("dirty-bitmaps", [])}[name]


def test_for_clients(tmp):
    """A client that knows QEMU's bitmaps sees what differs between any two layers, and no more"""
    with World(tmp, "--loops", 2) as w:
        top = make_disk(w, tmp)
        points = ["base", "l1", "l2", "l3", top]
        shown = {p: content(tmp / p, tmp / "raw") for p in points}
        for i, upper in enumerate(points):
            for lower in points[:i]:
                add_bitmap(w, upper, lower, disabled=True)
            if i:
                w.export(upper, writable=False, bitmaps=[f"since-{p}" for p in points[:i]])
            for lower in points[:i]:
                extents = dirty_extents(w.uri(upper), f"since-{lower}")
                assert apply(shown[lower], shown[upper], extents) == shown[upper], (lower, upper)
                n_layers = i - points.index(lower)
                assert sum(n for _, n in extents) <= n_layers * 704 * KIB, (lower, upper, extents)


def test_base_of_another_loop(tmp):
    """A base that was opened on another loop ends the chain as it does on its own"""
    with World(tmp, "--loops", 2) as w:
        top = make_disk(w, tmp, 1)
        add_bitmap(w, top, "base")
        assert bitmap_of(w, top, "since-base")["count"] == 704 * KIB, bitmap_of(w, top, "since-base")


def test_random_chains(tmp):
    """Formats, clusters and sizes of all kinds: what is not dirty is the same in both"""
    n_known = 0
    for seed in range(12):
        rng = random.Random(seed)
        layers = random_chain(seed)
        layers[-1].data_file = ""
        directory = tmp / str(seed)
        directory.mkdir()
        paths, _ = make_chain(rng, directory, layers, 6 * MIB + 512 * rng.randrange(4))
        with World(directory) as w:
            below = None
            for i, (path, layer) in enumerate(zip(paths, layers)):
                w.add(f"n{i}", path, fmt=layer.fmt, read_only=True, **({"backing": below} if below else {}))
                below = f"n{i}"
            if len(paths) < 2:
                continue
            lower = rng.randrange(len(paths) - 1)
            add_bitmap(w, below, f"n{lower}", disabled=True)
            w.export(below, writable=False, bitmaps=[f"since-n{lower}"])
            n_known += 1
            extents = dirty_extents(w.uri(below), f"since-n{lower}")
            w.export(f"n{lower}", writable=False)
            run("nbdcopy", w.uri(below), directory / "above.raw")
            run("nbdcopy", w.uri(f"n{lower}"), directory / "below.raw")
            above = (directory / "above.raw").read_bytes()
            assert apply((directory / "below.raw").read_bytes(), above, extents) == above, seed
    assert n_known > 5, n_known


def test_incremental_without_a_bitmap(tmp):
    """Under guests, an incremental backup over a copy of an old layer is the disk of its moment; the next
    one goes on from there"""
    with World(tmp) as w:
        top = make_disk(w, tmp)
        qemu_img("convert", "-U", "-O", "qcow2", tmp / "l2", tmp / "b0")
        w.export(top, name="disk")
        with guests(w, "disk", 2, GUESTS // BLOCK, 16) as all_guests:
            while sum(g.n_done for g in all_guests) < 500:
                time.sleep(0.01)
            add_bitmap(w, top, "l2", persistent=True)
            for i in (1, 2):
                create(tmp / f"b{i}", None, tmp / f"b{i - 1}")
                w.qmp.command("transaction", actions=[
                    {"type": "blockdev-snapshot-internal-sync", "data": {"device": top, "name": f"b{i}"}},
                    {"type": "drive-backup", "data": {
                        "device": top, "job-id": "j", "target": str(tmp / f"b{i}"), "mode": "existing",
                        "format": "qcow2", "sync": "incremental", "bitmap": "since-l2"}}])
                assert "error" not in end_of(w.qmp)
    for i in (1, 2):
        qemu_img("convert", "-l", f"snapshot.name=b{i}", "-O", "raw", tmp / top, tmp / "raw")
        same_content(tmp / f"b{i}", tmp / "raw")
        check_image(tmp / f"b{i}")
    data = int(run("du", "-k", tmp / "b1").stdout.split()[0]) * KIB
    assert data < GUESTS + 4 * MIB, data  # not the whole disk


def test_mirror_of_the_difference(tmp):
    """A mirror onto a copy of an old layer brings what differs, and clients go on with it"""
    with World(tmp) as w:
        top = make_disk(w, tmp)
        qemu_img("convert", "-U", "-O", "qcow2", tmp / "l1", tmp / "copy")
        w.export(top, name="disk")
        with guests(w, "disk", 2, GUESTS // BLOCK, 16) as all_guests:
            add_bitmap(w, top, "l1")
            w.qmp.command("drive-mirror", job_id="j", device=top, target=str(tmp / "copy"), node_name="copy",
                          mode="existing", format="qcow2", sync="bitmap", bitmap="since-l1",
                          bitmap_mode="on-success")
            w.qmp.event("BLOCK_JOB_READY")
            w.qmp.command("job-complete", id="j")
            done = end_of(w.qmp)
            assert "error" not in done, done
        w.qmp.command("blockdev-del", node_name=top)
    disk, above = content(tmp / "copy", tmp / "raw"), content(tmp / top, tmp / "raw")
    for g in all_guests:
        g.check(disk, g.acked)
    assert disk[GUESTS:] == above[GUESTS:]


def test_refused(tmp):
    """What is no layer below, a chain at which a job is at work, a transaction: refused, and no bitmap"""
    with World(tmp) as w:
        top = make_disk(w, tmp)
        arguments = {"node": top, "name": "b"}
        says(w.qmp.error("block-dirty-bitmap-add", base_node="nope", **arguments), "nope")
        says(w.qmp.error("block-dirty-bitmap-add", base_node=top, **arguments), "not a backing image")
        says(w.qmp.error("block-dirty-bitmap-add", node="l1", name="b", base_node="l2"), "not a backing image")
        says(w.qmp.error("transaction", actions=[{"type": "block-dirty-bitmap-add",
                                                  "data": {"base-node": "l1", **arguments}}]), "base-node")
        w.qmp.command("block-stream", job_id="j", device=top, speed=1)
        says(w.qmp.error("block-dirty-bitmap-add", base_node="l1", **arguments), "stream job 'j'")
        w.qmp.command("block-job-cancel", device="j", force=True)
        w.qmp.event("BLOCK_JOB_CANCELLED")
        while w.qmp.command("query-jobs"):
            time.sleep(0.01)
        assert not any("dirty-bitmaps" in n for n in w.nodes().values())
        add_bitmap(w, top, "l1")
        assert not bitmap_of(w, top, "since-l1")["busy"]
        w.qmp.command("block-dirty-bitmap-remove", node=top, name="since-l1")


def test_large(tmp):
    """Of a disk of 8 TiB only what changed costs anything"""
    create(tmp / "base", 8 << 40)
    create(tmp / "top", None, tmp / "base")
    qemu_io(tmp / "top", "write 0 64k", "write 7T 1M")
    with World(tmp) as w:
        w.add("base", tmp / "base", read_only=True)
        w.add("top", tmp / "top", backing="base")
        start = time.monotonic()
        add_bitmap(w, "top", "base")
        print(f"# {time.monotonic() - start:.3f} s")
        assert bitmap_of(w, "top", "since-base")["count"] == 64 * KIB + MIB


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs on file systems that share extents: nothing is copied where clusters allow, what is told of it is
true, and images that share are independent of each other.

usage: test-sharing.py [--chaind PATH] [WORD]...
"""
import disks
from harness import KIB, MIB, Skip, check_image, main, qemu_img, qemu_io, run
from world import World

SIZE = 64 * MIB
KINDS = (("mkfs.xfs", "-q"), ("mkfs.btrfs", "-q"))


def used_bytes(directory):
    run("sync", "-f", directory)
    return disks.used_bytes(directory)


def content(path, raw, fmt="qcow2"):
    qemu_img("convert", "-U", "-f", fmt, "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def on_each_kind(tmp, test):
    """`test(directory, tmp)` on each file system that can be had."""
    n_done, reasons = 0, []
    for mkfs in KINDS:
        place = tmp / mkfs[0]
        place.mkdir()
        try:
            with disks.file_system(place, 512 * MIB, *mkfs) as directory:
                test(directory, place)
                n_done += 1
        except Skip as e:
            reasons.append(str(e))
    if not n_done:
        raise Skip("; ".join(reasons))


def make_chain(directory, *names, options="cluster_size=64k"):
    """Each layer with half the disk of its own, the one in another place than the other."""
    for i, name in enumerate(names):
        over = ["-b", names[i - 1], "-F", "qcow2"] if i else []
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *over, name, SIZE,
            cwd=directory)
        qemu_io(directory / name, f"write -q -P {17 * i + 1} {i * SIZE // 4} {SIZE // 2}")
    run("sync", "-f", directory)


def add_chain(w, directory, *names):
    for i, name in enumerate(names):
        below = {"backing": names[i - 1]} if i else {}
        w.add(name, directory / name, read_only=i + 1 < len(names), **below)
    w.export(names[-1])


def finish(w, pending):
    """The job's counts, once it has done all its work; then its end."""
    while True:
        data = w.qmp.event("JOB_STATUS_CHANGE")
        if data["status"] == pending:
            break
    job, = w.qmp.command("query-block-jobs")
    counts = job["progress"]
    w.qmp.command("job-complete" if pending == "ready" else "job-finalize", id="j")
    if pending == "ready":
        while w.qmp.event("JOB_STATUS_CHANGE")["status"] != "pending":
            pass
        w.qmp.command("job-finalize", id="j")
    done = w.qmp.event("BLOCK_JOB_COMPLETED")
    assert "error" not in done, done
    return counts


def assert_shared(counts, least, directory, before):
    assert counts["copied"] == 0 and counts["shared"] == least, counts
    grown = used_bytes(directory) - before
    assert grown < least // 4, f"{grown} bytes more are used"


def stream_shares(directory, tmp):
    make_chain(directory, "base", "top")
    shown = content(directory / "top", tmp / "raw")
    before = used_bytes(directory)
    with World(tmp) as w:
        add_chain(w, directory, "base", "top")
        w.qmp.command("block-stream", job_id="j", device="top", auto_finalize=False)
        assert_shared(finish(w, "pending"), SIZE // 4, directory, before)
        w.io("top", f"write -q -P 99 {SIZE // 8} 64k")  # what is shared still
    base = content(directory / "base", tmp / "raw")
    assert base == bytes([1]) * (SIZE // 2) + bytes(SIZE // 2)
    shown = shown[:SIZE // 8] + bytes([99]) * 64 * KIB + shown[SIZE // 8 + 64 * KIB:]
    (directory / "base").unlink()
    assert content(directory / "top", tmp / "raw") == shown
    check_image(directory / "top")


def test_stream(tmp):
    """What a stream fills an image with is shared with the layers below, and only until it is written"""
    on_each_kind(tmp, stream_shares)


def commit_shares(directory, tmp):
    make_chain(directory, "base", "top")
    shown = content(directory / "top", tmp / "raw")
    before = used_bytes(directory)
    with World(tmp) as w:
        add_chain(w, directory, "base", "top")
        w.qmp.command("block-commit", job_id="j", device="top", auto_finalize=False)
        assert_shared(finish(w, "ready"), SIZE // 2, directory, before)
        w.io("top", f"write -q -P 99 {SIZE // 2} 64k")
    top = content(directory / "top", tmp / "raw")
    assert top == shown
    (directory / "top").unlink()
    shown = shown[:SIZE // 2] + bytes([99]) * 64 * KIB + shown[SIZE // 2 + 64 * KIB:]
    assert content(directory / "base", tmp / "raw") == shown
    check_image(directory / "base")


def test_commit(tmp):
    """A head is committed without a copy; what guests write to the base later is the base's alone"""
    on_each_kind(tmp, commit_shares)


def middle_shares(directory, tmp):
    make_chain(directory, "base", "middle", "top", options="cluster_size=64k,extended_l2=on")
    shown = content(directory / "top", tmp / "raw")
    before = used_bytes(directory)
    with World(tmp) as w:
        add_chain(w, directory, "base", "middle", "top")
        w.qmp.command("block-commit", job_id="j", device="top", top_node="middle",
                      base_node="base", auto_finalize=False)
        assert_shared(finish(w, "pending"), SIZE // 2, directory, before)
    (directory / "middle").unlink()
    assert content(directory / "top", tmp / "raw") == shown
    check_image(directory / "base")
    check_image(directory / "top")


def test_commit_of_the_middle(tmp):
    """The same of a layer in the middle, into subclusters"""
    on_each_kind(tmp, middle_shares)


def raw_shares(directory, tmp):
    run("qemu-img", "create", "-q", "-f", "raw", "base", SIZE, cwd=directory)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", "top", cwd=directory)
    qemu_io(directory / "top", f"write -q -P 5 {SIZE // 4} {SIZE // 2}", "write -q -P 6 3k 1k")
    shown = content(directory / "top", tmp / "raw")
    before = used_bytes(directory)
    with World(tmp) as w:
        w.add("base", directory / "base", "raw", read_only=True)
        w.add("top", directory / "top", backing="base")
        w.export("top")
        w.qmp.command("block-commit", job_id="j", device="top", auto_finalize=False)
        counts = finish(w, "ready")
        assert counts["copied"] == 0 and counts["shared"] == SIZE // 2 + 64 * KIB, counts
    (directory / "top").unlink()
    assert used_bytes(directory) - before < MIB
    assert (directory / "base").read_bytes() == shown


def test_raw(tmp):
    """Raw bases take clusters as they are"""
    on_each_kind(tmp, raw_shares)


def odd_pieces(directory, tmp):
    make_chain(directory, "base", "top", options="cluster_size=4k")
    run("qemu-img", "create", "-q", "-f", "qcow2", "base2", SIZE, cwd=directory)
    qemu_io(directory / "top", *[f"write -q -P {i % 250 + 1} {i * 131072 + 4096} {4096 * (1 + i % 9)}"
                                 for i in range(300)])
    shown = content(directory / "top", tmp / "raw")
    with World(tmp) as w:
        w.add("base", directory / "base2", read_only=True)
        w.add("middle", directory / "base", backing="base", read_only=True)
        w.add("top", directory / "top", backing="middle")
        w.export("top")
        w.qmp.command("block-commit", job_id="j", device="top", base_node="base",
                      auto_finalize=False)
        counts = finish(w, "ready")
        assert counts["copied"] and counts["shared"], counts
    assert content(directory / "base2", tmp / "raw") == shown
    check_image(directory / "base2")


def test_other_clusters(tmp):
    """Into larger clusters goes shared what fills them, and copied what does not"""
    on_each_kind(tmp, odd_pieces)


if __name__ == "__main__":
    main(globals())

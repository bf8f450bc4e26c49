#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compressed clusters that jobs copy stay compressed where both images compress alike: qemu-img makes
the chains, and finds each result whole, with the content that it must have, and no larger.

usage: test-compressed.py [--chaind PATH] [WORD]...
"""
import json
import random
import sys

import nbd

from guests import GuestThread
from harness import KIB, MIB, check_image, main, qemu_img, qemu_io, run, same_content
from world import World

SIZE = 4 * MIB + 128 * KIB
ALIKE = [  # options of source and target that compress alike
    ("cluster_size=64k", "cluster_size=64k"),
    ("cluster_size=64k,compression_type=zstd", "cluster_size=64k,compression_type=zstd"),
    ("cluster_size=4k", "cluster_size=4k,extended_l2=off,refcount_bits=1"),
    ("cluster_size=128k,compat=0.10", "cluster_size=128k,refcount_bits=64"),
    ("cluster_size=16k", "cluster_size=16k,extended_l2=on"),
    ("cluster_size=512", "cluster_size=512"),
    ("cluster_size=2M,compression_type=zstd", "cluster_size=2M,compression_type=zstd"),
]
UNLIKE = [
    ("cluster_size=64k", "cluster_size=4k"),
    ("cluster_size=64k", "cluster_size=64k,compression_type=zstd"),
]


def words(rng, size):
    """Bytes that compress, in part well, and some that do not."""
    out = bytearray()
    while len(out) < size:
        kind = rng.random()
        if kind < 0.1:
            out += bytes(rng.randrange(300_000))
        elif kind < 0.25:
            out += rng.randbytes(rng.randrange(150_000))
        else:
            out += b" ".join(b"%d" % rng.randrange(3000) for _ in range(rng.randrange(40_000)))
    return out[:size]


class Chain:
    """base ← middle ← top: base is compressed, middle has clusters of both kinds, top some."""

    def __init__(self, tmp, rng, options):
        self.tmp, self.rng = tmp, rng
        self.content = words(rng, SIZE)
        raw = tmp / "content"
        raw.write_bytes(self.content)
        order = rng.choice([[], ["-W", "-m", "4"]])
        qemu_img("convert", "-c", *order, "-f", "raw", "-O", "qcow2", "-o", options[0], raw,
                 tmp / "base")
        self.make("middle", "base", options[rng.randrange(2)])
        self.make("top", "middle", options[1])
        for off in rng.sample((0, 2 * MIB), rng.randrange(3)):
            self.write("middle", "-c", off, 2 * MIB)  # whole clusters, whatever their size
        for name in "middle", "middle", "top":
            self.write(name, "", rng.randrange(2 * KIB - 128) * KIB, rng.randrange(1, 128) * KIB)

    def make(self, name, below, options):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", below, "-F", "qcow2", name,
            cwd=self.tmp)

    def write(self, name, how, off, size):
        value = self.rng.randrange(1, 256)
        qemu_io(self.tmp / name, f"write -q {how} -P {value} {off} {size}")
        self.content[off:off + size] = bytes([value]) * size


class Guest(GuestThread):
    """Writes a little, here and there, and notes it."""

    def __init__(self, uri, content, seed):
        super().__init__()
        self.handle, self.rng, self.content = nbd.NBD(), random.Random(seed), content
        self.handle.connect_uri(uri)

    def one_request(self):
        size = self.rng.randrange(1, 40) * 512
        off = self.rng.randrange((SIZE - size) // 512) * 512
        data = bytes([self.rng.randrange(256)]) * size
        self.handle.pwrite(data, off)
        self.content[off:off + size] = data
        if self.rng.random() < 0.1:
            self.handle.flush()

    def stop(self):
        super().stop()
        self.handle.shutdown()


def open_chain(world):
    world.add("base", world.tmp / "base", read_only=True)
    world.add("middle", world.tmp / "middle", read_only=True, backing="base")
    world.add("top", world.tmp / "top", discard="unmap", backing="middle")
    world.export("top")


def wait_end(world, job):
    """Until the job has ended well; its last event."""
    if job in ("commit", "mirror"):
        world.qmp.event("BLOCK_JOB_READY")
        world.qmp.command("job-complete", id="j")
    data = world.qmp.event("BLOCK_JOB_COMPLETED")
    assert "error" not in data, data
    return data


def start(world, job, target_options, **more):
    """Starts the job; the file that has the content in the end."""
    if job == "stream":
        world.qmp.command("block-stream", job_id="j", device="top")
        return "top"
    if job == "commit":
        world.qmp.command("block-commit", job_id="j", device="top")
        return "base"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", target_options, world.tmp / "target", SIZE)
    world.add("target", world.tmp / "target", discard="unmap")
    world.qmp.command(f"blockdev-{job}", job_id="j", device="top", target="target", sync="full",
                      **more)
    return "target"


def run_job(tmp, job, options, seed, with_guest, **more):
    """One job on such a chain: the path of its result, which was compared."""
    rng = random.Random(seed)
    chain = Chain(tmp, rng, options)
    expected = chain.content if job != "backup" else bytes(chain.content)
    with World(tmp) as world:
        open_chain(world)
        guest = Guest(world.uri("top"), chain.content, seed) if with_guest else None
        if guest and job != "backup":
            guest.start()
        result = start(world, job, options[1], **more)
        if guest and job == "backup":
            guest.start()
        wait_end(world, job)
        if guest:
            guest.stop()
    (tmp / "expected").write_bytes(expected)
    check_image(tmp / result)
    same_content(tmp / result, tmp / "expected")
    return tmp / result


def n_compressed(path):
    return json.loads(qemu_img("check", "--output=json", path)).get("compressed-clusters", 0)


def clean(tmp):
    for path in list(tmp.iterdir()):
        path.unlink()


def all_jobs(tmp, options, seeds, with_guest):
    for number, pair in enumerate(options):
        for job in "stream", "commit", "mirror", "backup":
            for seed in seeds:
                # A commit goes the other way.
                way = pair[::-1] if job == "commit" else pair
                try:
                    yield pair, run_job(tmp, job, way, seed + 100 * number, with_guest)
                except AssertionError as e:
                    raise AssertionError(f"{job}, {pair}, seed {seed + 100 * number}: {e}") from e
                clean(tmp)


def test_alike(tmp):
    """each job takes compressed clusters as they are: the same content, and they are still compressed"""
    n = dict.fromkeys(ALIKE, 0)
    for pair, result in all_jobs(tmp, ALIKE, [1], False):
        if result.name != "base":
            n[pair] += n_compressed(result)
    assert all(n.values()), n


def test_unlike(tmp):
    """other clusters and other methods are inflated"""
    for pair, result in all_jobs(tmp, UNLIKE, [2], False):
        if result.name != "base":
            assert n_compressed(result) == 0, (pair, result)


def test_beside_guests(tmp):
    """guests write meanwhile: what they write is there, and nothing else has changed"""
    for _ in all_jobs(tmp, ALIKE, [3], True):
        pass


def test_size(tmp):
    """a compressed image that is streamed, committed, mirrored or backed up needs no more room than it did"""
    rng = random.Random(5)
    raw = tmp / "raw"
    raw.write_bytes(b"".join(b"%d " % rng.randrange(10**7) for _ in range(700_000))[:5 * MIB])
    for options in "cluster_size=64k", "cluster_size=64k,compression_type=zstd":
        for job in "stream", "commit", "mirror", "backup":
            name = {"commit": "top"}.get(job, "base")
            qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, tmp / name)
            size = (tmp / name).stat().st_size
            other = {"top": "base", "base": "top"}[name]
            qemu_img("create", "-q", "-f", "qcow2", "-o", options, tmp / other, 5 * MIB)
            run("qemu-img", "rebase", "-u", "-b", "base", "-F", "qcow2", "top", cwd=tmp)
            with World(tmp) as world:
                world.add("base", tmp / "base", read_only=True)
                world.add("top", tmp / "top", backing="base")
                if job in ("mirror", "backup"):
                    qemu_img("create", "-q", "-f", "qcow2", "-o", options, tmp / "target", 5 * MIB)
                    world.add("target", tmp / "target")
                    world.qmp.command(f"blockdev-{job}", job_id="j", device="top", target="target",
                                      sync="full")
                else:
                    world.qmp.command(f"block-{job}", job_id="j", device="top")
                done = wait_end(world, job)
            result = tmp / {"stream": "top", "commit": "base"}.get(job, "target")
            check_image(result)
            same_content(result, raw)
            # In another order it may end in the next cluster.
            assert result.stat().st_size <= size + 64 * KIB, (job, result.stat().st_size, size)
            assert done["len"] == done["offset"] == 5 * MIB, done  # progress is in bytes of the disk
            for path in list(tmp.iterdir()):
                if path != raw:
                    path.unlink()


def test_compress(tmp):
    """backups that compress, of what is compressed otherwise and of what is not, while guests write"""
    for number, pair in enumerate(ALIKE[:3] + UNLIKE):
        result = run_job(tmp, "backup", pair, 200 + number, True, compress=True)
        assert n_compressed(result) > 0, pair
        clean(tmp)


def test_kept_points(tmp):
    """a commit that keeps points in time fills them with clusters as they are"""
    chain = Chain(tmp, random.Random(6), ALIKE[0])
    chain.make("side", "base", "cluster_size=64k")
    for name in "base", "middle":
        qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp / name, tmp / f"{name}.was")
    with World(tmp, "--loops", "1") as world:
        open_chain(world)
        world.add("side", tmp / "side", backing="base")
        world.qmp.command("block-commit", job_id="j", device="top", top_node="middle", keep_points=True)
        wait_end(world, "stream")
    for name in "base", "side":
        check_image(tmp / name)
    same_content(tmp / "base", tmp / "middle.was")
    same_content(tmp / "side", tmp / "base.was")
    assert n_compressed(tmp / "side") > 0


if __name__ == "__main__":
    main(sys.modules[__name__].__dict__)

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""x-chain-plan: what removing points in time would move, need and free, against a count of clusters and
against what qemu-img then moves."""
import json
import random

from harness import KIB, Daemon, main, qemu_img, qemu_io, run
from qmp_client import Qmp

CLUSTER = 64 * KIB
N_CLUSTERS = 64


class Chain:
    """Layers l0 (the lowest), l1, …; `data[i]` and `zeros[i]` are the clusters that layer i has."""

    def __init__(self, tmp, n, rand, fmt="qcow2"):
        self.tmp, self.n, self.fmt = tmp, n, fmt
        self.data, self.zeros = [], []
        for i in range(n):
            below = ["-b", self.path(i - 1), "-F", "raw" if i == 1 and fmt == "raw" else "qcow2"] if i else []
            qemu_img("create", "-q", "-f", self.format(i), *below, self.path(i), N_CLUSTERS * CLUSTER)
            data = set(rand.sample(range(N_CLUSTERS), rand.randrange(4, 40)))
            zeros = set(rand.sample(range(N_CLUSTERS), 6)) - data if i and self.format(i) == "qcow2" else set()
            commands = [f"write -P {i + 1} {c * CLUSTER} {CLUSTER}" for c in sorted(data)]
            commands += [f"write -z -u {c * CLUSTER} {CLUSTER}" for c in sorted(zeros)]
            qemu_io(self.path(i), *commands, fmt=self.format(i))
            self.data.append(data)
            self.zeros.append(zeros)

    def path(self, i):
        return self.tmp / f"l{i}"

    def format(self, i):
        return self.fmt if i == 0 else "qcow2"

    def config(self, i):
        c = {"driver": self.format(i), "node-name": f"l{i}",
             "read-only": i + 1 < self.n, "file": {"driver": "file", "filename": str(self.path(i))}}
        if i and self.format(i) == "qcow2":
            c["backing"] = self.config(i - 1)
        return c

    def owned(self, i):
        return self.data[i] | self.zeros[i]

    def shown(self, first, end):
        """Clusters whose topmost owner among layers [first, end) has data there, and those with any owner."""
        data, owned = set(), set()
        for i in reversed(range(first, end)):
            data |= self.data[i] - owned
            owned |= self.owned(i)
        return data, owned

    def cost(self, first, end, stays):
        """(bytes of the commit, of the stream)"""
        committed, above = self.shown(stays + 1, end)
        streamed = self.shown(first, stays)[0] - above - self.owned(stays)
        return len(committed) * CLUSTER, len(streamed) * CLUSTER


def start(tmp, chain):
    d = Daemon("--qmp", tmp / "q")
    q = Qmp(tmp / "q")
    config = chain.config(chain.n - 1)
    q.command("blockdev-add", **{k.replace("-", "_"): v for k, v in config.items()})
    return d, q


def on_disk(path):
    return path.stat().st_blocks * 512


def check_group(chain, group, first, end):
    assert group["points"] == [f"l{i}" for i in range(first, end - 1)], group
    assert sorted(w["stays"] for w in group["ways"]) == [f"l{i}" for i in range(first, end)]
    for way in group["ways"]:
        stays = int(way["stays"][1:])
        commit, stream = chain.cost(first, end, stays)
        expected = []
        if stays + 1 < end:
            expected.append(("commit", commit, on_disk_of(chain, stays + 1, end)))
        if stays > first:
            expected.append(("stream", stream, on_disk_of(chain, first, stays)))
        assert [(s["job"], s["copy"], s["freed"]) for s in way["steps"]] == expected, (way, expected)
        assert way["copy"] == commit + stream
        assert way["freed"] == sum(freed for _, _, freed in expected)
        assert all(s["space"] <= s["copy"] + 20 * CLUSTER for s in way["steps"])
        for s in way["steps"]:
            if s["job"] == "commit":
                assert (s["device"], s["top-node"], s["base-node"]) == \
                    (f"l{chain.n - 1}", f"l{end - 1}", f"l{stays}"), s
            else:
                assert s["device"] == f"l{stays}" and s.get("base-node") == (f"l{first - 1}" if first else None), s
    copies = [w["copy"] for w in group["ways"] if "blocked" not in w]
    assert copies == sorted(copies), copies


def on_disk_of(chain, first, end):
    return sum(on_disk(chain.path(i)) for i in range(first, end))


def test_counts(tmp):
    """All points, some of them, in several groups: what each way moves is what a count of clusters says."""
    rand = random.Random(1)
    for number, fmt in enumerate(["qcow2", "raw", "qcow2"]):
        there = tmp / str(number)
        there.mkdir()
        chain = Chain(there, 7, rand, fmt)
        d, q = start(there, chain)
        with d:
            groups = q.command("x-chain-plan", device="l6")
            assert len(groups) == 1
            check_group(chain, groups[0], 0, 7)
            groups = q.command("x-chain-plan", device="l6", points=["l4", "l0", "l1"])
            assert len(groups) == 2
            check_group(chain, groups[0], 0, 3)
            check_group(chain, groups[1], 4, 6)
            assert q.command("x-chain-plan", device="l6", points=[]) == []
            assert q.command("x-chain-plan", device="l0") == []


def clusters(path):
    info = json.loads(run("qemu-img", "check", "--output=json", path).stdout)
    return info["allocated-clusters"]


def test_moved(tmp):
    """qemu-img rebases (a stream) and commits: the clusters that the layer gets are those of the plan."""
    chain = Chain(tmp, 3, random.Random(2))
    d, q = start(tmp, chain)
    with d:
        ways = q.command("x-chain-plan", device="l2", points=["l1"])[0]["ways"]
    by_stay = {w["stays"]: w["steps"][0] for w in ways}
    before = clusters(tmp / "l2"), on_disk(tmp / "l2")
    qemu_img("rebase", "-q", "-b", tmp / "l0", "-F", "qcow2", tmp / "l2")
    assert (clusters(tmp / "l2") - before[0]) * CLUSTER == by_stay["l2"]["copy"]
    assert on_disk(tmp / "l2") - before[1] <= by_stay["l2"]["space"]
    (tmp / "again").mkdir()
    chain = Chain(tmp / "again", 3, random.Random(2))
    before = on_disk(chain.path(1))
    qemu_img("commit", "-q", "-b", chain.path(1), chain.path(2))
    assert on_disk(chain.path(1)) - before <= by_stay["l1"]["space"]


def run_step(q, step):
    """The job of a step, with its arguments as they stand; what it moved."""
    arguments = {k: step[k] for k in ("device", "top-node", "base-node") if k in step}
    q.send({"execute": f"block-{step['job']}", "arguments": {"job-id": "j", "auto-dismiss": False, **arguments}})
    assert "return" in q.reply()
    if step["job"] == "commit" and step["top-node"] == step["device"]:
        q.event("BLOCK_JOB_READY")
        q.command("block-job-complete", device="j")
    assert "error" not in q.event("BLOCK_JOB_COMPLETED")
    job, = q.command("query-block-jobs")
    q.command("block-job-dismiss", id="j")
    return job["progress"]["copied"] + job["progress"]["shared"]


def test_done(tmp):
    """The jobs of each way of a plan, as they stand there, move what it says, and take no more space."""
    for points in (["l2"], ["l1", "l2"], ["l0", "l1"]):
        for number in range(len(points) + 1):
            there = tmp / f"{number}{''.join(points)}"
            there.mkdir()
            chain = Chain(there, 4, random.Random(5))
            d, q = start(there, chain)
            with d:
                way = q.command("x-chain-plan", device="l3", points=points)[0]["ways"][number]
                stays = chain.path(int(way["stays"][1:]))
                for step in way["steps"]:
                    before = on_disk(stays)
                    assert run_step(q, step) == step["copy"], step
                    assert on_disk(stays) - before <= step["space"], step


def test_blocked(tmp):
    """What others stand on is not to change, and is not freed."""
    chain = Chain(tmp, 4, random.Random(3))
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "l1", "-F", "qcow2", tmp / "branch")
    d, q = start(tmp, chain)
    with d:
        q.command("blockdev-add", driver="qcow2", node_name="branch", backing="l1",
                  file={"driver": "file", "filename": str(tmp / "branch")})
        group = q.command("x-chain-plan", device="l3")[0]
        blocked = {w["stays"]: w.get("blocked") for w in group["ways"]}
        assert blocked["l3"] is None and blocked["l2"] is None, blocked
        assert "node 'l1' would show something else" in blocked["l1"] and "'branch'" in blocked["l1"], blocked
        assert "node 'l1' would show something else" in blocked["l0"], blocked
        # The branch still needs l1 and what lies below it.
        way = next(w for w in group["ways"] if w["stays"] == "l3")
        assert way["freed"] == on_disk(tmp / "l2"), way
        assert [w["stays"] for w in group["ways"]][2:] in (["l1", "l0"], ["l0", "l1"])
        # The branch has points of its own.
        assert [g["points"] for g in q.command("x-chain-plan", device="branch")] == [["l0", "l1"]]


def test_refused(tmp):
    """What is no layer, and no point, is said."""
    chain = Chain(tmp, 2, random.Random(4))
    d, q = start(tmp, chain)
    with d:
        assert "nowhere" in q.error("x-chain-plan", device="nowhere")
        assert q.error("x-chain-plan", device="l1", points=["l1"]) == \
            "Node 'l1' shows the present, and is no point in time"
        assert q.error("x-chain-plan", device="l1", points=["x"]) == "Node 'x' is not a layer below 'l1'"
        # Nothing is held afterwards.
        q.command("x-chain-plan", device="l1")
        q.command("blockdev-del", node_name="l1")


def test_large(tmp):
    """A sparse disk of 30 TiB in 20 layers, while a guest may go on."""
    layers = 20
    for i in range(layers):
        below = ["-b", tmp / f"l{i - 1}", "-F", "qcow2"] if i else []
        qemu_img("create", "-q", "-f", "qcow2", *below, tmp / f"l{i}", 30 << 40)
        qemu_io(tmp / f"l{i}", f"write {i << 40} 64k", f"write {20 << 40} 64k")
    chain = Chain.__new__(Chain)
    chain.tmp, chain.n, chain.fmt = tmp, layers, "qcow2"
    d, q = start(tmp, chain)
    with d:
        ways = q.command("x-chain-plan", device="l19")[0]["ways"]
        # Each has a cluster of its own, and all have one at the same place.
        assert [w["copy"] for w in ways] == [(layers - 1) * CLUSTER] + [layers * CLUSTER] * (layers - 1), ways
        assert ways[0]["stays"] == "l19"


if __name__ == "__main__":
    main(globals())

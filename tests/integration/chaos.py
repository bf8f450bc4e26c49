#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything at once: two disks under guests that write, read and flush, while snapshots of both kinds,
views, dirty bitmaps, resizes and exports come and go in seeded order, streams and commits shorten the
chains, mirrors take the disks to other files and backups copy them, sometimes two at a time, to servers
and from servers that are killed and come back, with failing targets, kill -9 and restarts among them. What
must hold, at every moment:

- a guest reads what it wrote last; after a kill, what a flush confirmed or something newer;
- each kept point in time (external or internal snapshot) shows the disk of its moment, byte for byte the
  same from then on, and after a kill no less of it than was flushed since;
- a copy (a mirror that is let go, a backup, one by a bitmap over another) is the disk of its moment;
- a bitmap covers each block that was written while it was enabled;
- whenever all is quiet, and after each kill, qemu-img finds no corruption.

The order of commands repeats with the seed; that of the guests' requests among them does not.

usage: chaos.py [--chaind PATH] [--seed N] [--rounds N] [--verbs N] [--time SECONDS]
"""
import argparse
import json
import pathlib
import random
import shutil
import sys
import tempfile
import time
import traceback

import nbd

import chaos_copies
import chaos_remotes
import harness
from chaos_disks import Bitmap, Disk, KillNow, Point
from harness import MIB, Daemon, disk_directory, qemu_img, run
from qmp_client import Qmp
from stamps import BLOCK, ZERO, stamped

MAX_LAYERS = 7


class World:
    def __init__(self, tmp, seed):
        self.tmp, self.rng, self.verbs_rng = tmp, random.Random(seed), random.Random(f"{seed} verbs")
        self.daemon = self.qmp = None
        self.killed = False  # the last daemon was
        self.jobs = []  # that run
        self.beside = None  # what to do while the next job runs
        self.servers = []  # of chaos_remotes, that run
        self.disks = [Disk(self, i) for i in range(2)]
        self.counts = {}
        self.trace = []  # what was done

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.tmp / 'nbd'}"

    def start(self):
        for path in (self.tmp / "qmp", self.tmp / "nbd"):
            path.unlink(missing_ok=True)
        self.trace.append("start")
        self.daemon = Daemon("--qmp", self.tmp / "qmp", "--loops", 2)
        self.qmp = Qmp(self.tmp / "qmp")
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(self.tmp / "nbd")}})
        for disk in self.disks:
            self.qmp.command("blockdev-add", driver="qcow2", node_name=disk.head.stem,
                             file={"driver": "file", "filename": str(disk.head)})
            self.export(disk.head.stem, disk.name, writable=True)
            self.adopt_bitmaps(disk)

    def export(self, node, name, **options):
        self.qmp.command("block-export-add", type="nbd", id=name, node_name=node, name=name, **options)

    def unexport(self, name):
        self.qmp.command("block-export-del", id=name)
        while self.qmp.event("BLOCK_EXPORT_DELETED")["id"] != name:
            pass

    def node(self, name):
        return next(n for n in self.qmp.command("query-named-block-nodes", flat=True)
                    if n["node-name"] == name)

    def adopt_bitmaps(self, disk):
        """Those that were stored go on; those in use when the daemon was killed can only be removed."""
        there = {b["name"]: b for b in self.node(self.node_of(disk.head)).get("dirty-bitmaps", [])}
        for name, info in there.items():
            if info.get("inconsistent"):
                assert self.killed, f"{name} of {disk.name} is inconsistent"
                self.qmp.command("block-dirty-bitmap-remove", node=self.node_of(disk.head), name=name)
        kept = []
        for bitmap in disk.bitmaps:
            if bitmap.name in there and not there[bitmap.name].get("inconsistent"):
                kept.append(bitmap)
            elif bitmap.persistent:  # they are stored at the end, which a kill is not
                assert self.killed, f"{bitmap.name} of {disk.name} was not stored"
        disk.bitmaps = kept

    def quiet(self):
        """Ends the guests, then looks at everything."""
        for disk in self.disks:
            disk.guest.end()
        for disk in self.disks:
            for point in disk.points:
                point.flushed()
                point.check(self.tmp)
            self.check_bitmaps(disk)
            self.check_for_corruption(disk.head, "-U")

    def check_bitmaps(self, disk):
        for bitmap in disk.bitmaps:
            view = disk.new_name("map")
            self.export(self.node_of(disk.head), view, writable=True,
                        bitmaps=[{"node": self.node_of(disk.head), "name": bitmap.name}])
            out = run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{bitmap.name}", self.uri(view))
            dirty = set()
            for extent in json.loads(out.stdout):
                if extent["type"]:
                    first = extent["offset"] // BLOCK
                    dirty.update(range(first, (extent["offset"] + extent["length"] - 1) // BLOCK + 1))
            assert bitmap.must <= dirty, f"{bitmap.name} of {disk.name} misses blocks " \
                f"{sorted(bitmap.must - dirty)[:10]}"
            self.unexport(view)

    def check_for_corruption(self, path, *options):
        """Leaks are what a kill leaves. They are not repaired: `qemu-img check -r leaks` (7.2 and 10.0)
        drops the internal snapshots of an image that has bitmaps, too."""
        done = run("qemu-img", "check", *options, path, check=False)
        assert done.returncode in (0, 3), f"qemu-img check {path}: {done.stdout}{done.stderr}"

    def stop(self):
        self.killed = False
        self.trace.append("stop")
        self.qmp.close()
        self.daemon.stop()

    def kill(self):
        self.killed = True
        self.jobs, self.beside = [], None
        self.trace.append("kill")
        for disk in self.disks:
            disk.guest.killed = True
        self.daemon.kill()
        for disk in self.disks:
            disk.guest.end()
            disk.taking.clear()
        self.qmp.close()
        self.end_servers()
        for disk in self.disks:
            self.look_after_kill(disk)

    def end_servers(self):
        for server in list(self.servers):
            server.kill()

    def read_chain(self, disk):
        """From the images: a stream or a commit may have got to its end, or not."""
        chain = json.loads(qemu_img("info", "--backing-chain", "--output=json", disk.head))
        disk.layers = [pathlib.Path(image["filename"]) for image in reversed(chain)]
        for below, path in zip([None, *disk.layers], disk.layers):
            disk.below[path] = below

    def check_head(self, disk, path):
        qemu_img("convert", "-O", "raw", path, self.tmp / "head.raw")
        disk.state.check((self.tmp / "head.raw").read_bytes(), f"{path} after a kill")

    def holds(self, disk, path):
        """Whether guests had not left this file when the daemon was killed."""
        try:
            self.check_head(disk, path)
        except AssertionError:
            return False
        return True

    def look_after_kill(self, disk):
        if disk.target and not self.holds(disk, disk.head):
            disk.move_to(*disk.target)
        disk.target = None
        self.read_chain(disk)
        for path in disk.layers:
            if path != disk.layers[0] or "lazy" not in disk.shape:  # those are made new at the open
                self.check_for_corruption(path)
        self.check_head(disk, disk.head)
        for point in disk.points:
            point.check(self.tmp)

    def settle(self, disk):
        """After a kill: what is there now is there for sure; blocks that are there in part are written."""
        h = nbd.NBD()
        h.connect_uri(self.uri(disk.name))
        content = h.pread(len(disk.state.history) * BLOCK, 0)
        for block, stamps in enumerate(disk.state.check(content, disk.name)):
            if len(set(stamps)) > 1:
                h.pwrite(stamped(stamps[0]), block * BLOCK)
            disk.state.history[block] = [[stamps[0]]]
        disk.answered = {}
        h.flush()
        h.shutdown()
        for point in disk.points:
            point.answered = {}  # looked at already

    # -- verbs: each may happen while guests write; False: not now

    def moving_head(self, disks, run_command):
        points = [Point(disk, disk.head.stem, disk.head, False) for disk in disks]
        for disk in disks:
            with disk.lock:
                disk.bitmaps = []  # they stay with the layer that is no head any more
        run_command()
        for disk, point in zip(disks, points):
            point.taken(disk)
        return True

    def overlay(self, disk):
        return {"node-name": self.node_of(disk.head),
                "snapshot-file": str(self.tmp / f"{disk.new_name('layer')}.qcow2"),
                "snapshot-node-name": f"{disk.name}-layer{disk.n_made}"}

    def external(self, disk):
        if len(disk.layers) >= MAX_LAYERS:
            return False
        data = self.overlay(disk)
        self.moving_head([disk], lambda: self.qmp.command("blockdev-snapshot-sync", **data))
        disk.push(data["snapshot-file"])
        return True

    def external_prepared(self, disk):
        if len(disk.layers) >= MAX_LAYERS:
            return False
        data = self.overlay(disk)
        path, node = data["snapshot-file"], data["snapshot-node-name"]
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", disk.head, "-F", "qcow2", path,
                 len(disk.state.history) * BLOCK)
        self.qmp.command("blockdev-add", driver="qcow2", node_name=node, backing=None,
                         file={"driver": "file", "filename": path})
        self.moving_head([disk], lambda: self.qmp.command(
            "blockdev-snapshot", node=data["node-name"], overlay=node))
        disk.push(path)
        return True

    def external_all(self, _):
        if any(len(disk.layers) >= MAX_LAYERS for disk in self.disks):
            return False
        data = [self.overlay(disk) for disk in self.disks]
        self.moving_head(self.disks, lambda: self.qmp.command("transaction", actions=[
            {"type": "blockdev-snapshot-sync", "data": d} for d in data]))
        for disk, d in zip(self.disks, data):
            disk.push(d["snapshot-file"])
        return True

    def internal(self, disk):
        name = disk.new_name("internal")
        point = Point(disk, name, disk.head, True)
        self.qmp.command("blockdev-snapshot-internal-sync", device=self.node_of(disk.head), name=name)
        point.taken(disk)
        return True

    def forget_internal(self, disk):
        here = [p for p in disk.points if p.internal and p.path == disk.head]
        if not here:
            return False
        point = self.rng.choice(here)
        self.qmp.command("blockdev-snapshot-delete-internal-sync", device=self.node_of(disk.head), name=point.name)
        with disk.lock:
            disk.points.remove(point)
        return True

    def view(self, disk):
        """An internal snapshot beside the head that is being written."""
        here = [p for p in disk.points if p.internal and p.path == disk.head]
        if not here:
            return False
        point, node = self.rng.choice(here), disk.new_name("view")
        self.qmp.command("blockdev-add", driver="qcow2", node_name=node, file=self.node_of(disk.head),
                         snapshot=point.name)
        self.export(node, node, writable=False)
        h = nbd.NBD()
        h.connect_uri(self.uri(node))
        assert h.get_size() == len(point.state.history) * BLOCK
        point.state.check(h.pread(h.get_size(), 0), f"view of {point.name}")
        h.shutdown()
        self.unexport(node)
        self.qmp.command("blockdev-del", node_name=node)
        return True

    def add_bitmap(self, disk):
        if len(disk.bitmaps) >= 4:
            return False
        bitmap = Bitmap(disk.new_name("bitmap"), self.rng.random() < 0.5)
        disabled = self.rng.random() < 0.2
        self.qmp.command("block-dirty-bitmap-add", node=self.node_of(disk.head), name=bitmap.name,
                         persistent=bitmap.persistent, disabled=disabled,
                         granularity=self.rng.choice([512, 4096, 65536]))
        with disk.lock:
            bitmap.counts = not disabled
            disk.bitmaps.append(bitmap)
        return True

    def change_bitmap(self, disk):
        if not disk.bitmaps:
            return False
        bitmap = self.rng.choice(disk.bitmaps)
        verb = self.rng.choice(["remove", "clear", "enable", "disable"])
        with disk.lock:
            counts = {"remove": False, "clear": bitmap.counts, "enable": True, "disable": False}[verb]
            bitmap.begin()
            if verb != "enable":
                bitmap.backup = None
            if verb == "clear":
                bitmap.must = set()
            if verb == "remove":
                disk.bitmaps.remove(bitmap)
        self.qmp.command(f"block-dirty-bitmap-{verb}", node=self.node_of(disk.head), name=bitmap.name)
        bitmap.counts = counts
        return True

    def merge_bitmaps(self, disk):
        if len(disk.bitmaps) < 2:
            return False
        source, target = self.rng.sample(disk.bitmaps, 2)
        with disk.lock:
            must = set(source.must)
        self.qmp.command("block-dirty-bitmap-merge", node=self.node_of(disk.head), target=target.name,
                         bitmaps=[source.name])
        with disk.lock:
            target.must |= must
        return True

    def grow(self, disk):
        """The guest's connection keeps its size; the next one has the new one."""
        size = len(disk.state.history) * BLOCK
        if size >= 8 * MIB:
            return False
        size += self.rng.choice([BLOCK, 16 * BLOCK, 100 * BLOCK])
        self.qmp.command("block_resize", node_name=self.node_of(disk.head), size=size)
        with disk.lock:
            new = size // BLOCK - len(disk.state.history)
            disk.state.history += [[[ZERO]] for _ in range(new)]
        return True

    def reconnect(self, disk):
        disk.guest.end()
        disk.connect()
        return True

    def second_export(self, disk):
        name = disk.new_name("export")
        self.export(self.node_of(disk.head), name, writable=self.rng.random() < 0.5)
        h = nbd.NBD()
        h.connect_uri(self.uri(name))
        assert h.get_size() == len(disk.state.history) * BLOCK
        h.pread(min(h.get_size(), 1 * MIB), 0)
        h.shutdown()
        self.unexport(name)
        return True

    # -- jobs

    def node_of(self, path):
        """The name of the node of an image."""
        return next(n["node-name"] for n in self.qmp.command("query-named-block-nodes", flat=True)
                    if n["drv"] == "qcow2" and n["file"] == str(path))

    def job(self, command, disk, at_ready=None, may_fail=False, started=None, server=None, **arguments):
        """Runs it, with users' verbs in between; True if it did what it is for. `started` is called with
        guests at work, `at_ready` instead of completing it. A `server` that it needs is lost now and then."""
        job, rng = disk.new_name("job"), self.rng
        limited = rng.random() < 0.5
        if not self.jobs:
            self.qmp.events.clear()
        self.qmp.command(command, job_id=job, speed=MIB if limited else 0, **arguments)
        self.jobs.append(job)
        if started:
            started()
        will_cancel, will_kill = rng.random() < 0.2, rng.random() < 0.1
        beside, self.beside = self.beside, None
        if beside:
            beside()
        for _ in range(rng.randrange(4)):
            disk.guest.more(rng.randrange(1, 30))
            self.poke(job, rng.choice(["pause", "resume"]))
            if server and rng.random() < 0.5:
                server.lose()
        if will_kill:
            raise KillNow()
        if will_cancel:
            self.poke(job, "cancel")
        self.poke(job, "resume")
        self.try_command("block-job-set-speed", device=job, speed=0)
        completed = False
        while True:
            event = self.next_event(job)
            data = event["data"]
            if event["event"] == "BLOCK_JOB_COMPLETED":
                assert may_fail or "error" not in data, data
                completed = "error" not in data
            if event["event"] == "BLOCK_JOB_READY":
                for each in self.disks:
                    each.guest.more(rng.randrange(1, 60))
                at_ready(job) if at_ready else self.poke(job, "complete")
            if data.get("status") in ("paused", "standby"):  # an error of what may fail
                if server:
                    time.sleep(0.02)  # until it is there again
                self.poke(job, "resume")
            if data.get("status") == "null":
                self.jobs.remove(job)
                return completed

    def poke(self, job, verb):
        """It may have ended already, or be in a state that refuses it."""
        self.try_command(f"job-{verb}", id=job)

    def try_command(self, name, **arguments):
        self.qmp.send({"execute": name, "arguments": arguments})
        return self.qmp.reply()

    def next_event(self, job):
        """The next one that is about it; those of others wait for their turn."""
        while True:
            for i, event in enumerate(self.qmp.events):
                if job in (event["data"].get("id"), event["data"].get("device")):
                    return self.qmp.events.pop(i)
            line = self.qmp.line()
            assert line and "event" in line, line
            self.qmp.events.append(line)

    def drop_nodes(self, paths):
        """Nodes that were added by name stay until they are deleted, and use what they stand on."""
        for path in reversed(paths):
            for node in self.qmp.command("query-named-block-nodes", flat=True):
                if node["drv"] == "qcow2" and node["file"] == str(path):
                    self.try_command("blockdev-del", **{"node-name": node["node-name"]})

    def forget_points(self, disk, is_lost):
        with disk.lock:
            disk.points = [point for point in disk.points if not is_lost(point)]

    def has_snapshots(self, paths):
        return any(self.node(self.node_of(path))["image"].get("snapshots") for path in paths)

    def stream(self, disk, leaves_head=False):
        """Into the head or a layer in the middle, down to a base or all: every point stays."""
        n = len(disk.layers) - leaves_head
        if n < 2:
            return False
        top = self.rng.randrange(1, n)
        base = self.rng.randrange(-1, top - 1)
        if self.has_snapshots([disk.layers[top]]):
            return False  # refused: they stand on what is below, too
        arguments = {} if base < 0 else {"base_node": self.node_of(disk.layers[base])}
        if self.job("block-stream", disk, device=self.node_of(disk.layers[top]), **arguments):
            disk.below[disk.layers[top]] = disk.layers[base] if base >= 0 else None
            self.drop_nodes(disk.layers[base + 1:top])
            del disk.layers[base + 1:top]
        return True

    def commit(self, disk, keeps_points=False, keeps_top=False):
        """Into a base: what stood on it, and what was between, are points no more, unless they are kept."""
        n = len(disk.layers)
        if n < 2:
            return False
        top = self.rng.choice([n - 1, self.rng.randrange(1, n)])
        base = self.rng.randrange(top)
        base_path, top_path = disk.layers[base], disk.layers[top]
        is_active = top == n - 1 and not keeps_top
        if keeps_points and (is_active or self.has_snapshots(disk.layers[base + 1:])) or \
                keeps_top and self.has_snapshots([top_path]):
            return False  # refused: they have tables of their own, that show what is below, too
        kept = set(disk.layers[base + 1 if keeps_points else top + 1:])
        # Its own internal snapshots have tables of their own. What is above the top shows the same.
        self.forget_points(disk, lambda p: p.path not in kept and disk.stands_on(p.path, base_path) and not (
            p.path == base_path and p.internal) and not (p.path == top_path and not p.internal))
        with disk.lock:
            lost_bitmaps = disk.bitmaps if is_active else []
        keep = {"keep_points": keeps_points, "keep_top": keeps_top} if keeps_points or keeps_top else {}
        done = self.job("block-commit", disk, device=self.node_of(disk.head), base_node=self.node_of(base_path),
                        top_node=self.node_of(top_path), **keep)
        if not done:
            return True
        if keeps_top:
            top -= 1
            disk.below[top_path] = base_path
        for point in disk.points:
            if point.path == top_path and not point.internal and not keeps_top and not keeps_points:
                point.path = base_path
        if top < n - 1:
            disk.below[disk.layers[top + 1]] = base_path
        else:
            with disk.lock:
                disk.bitmaps = [b for b in disk.bitmaps if b not in lost_bitmaps]
        self.drop_nodes(disk.layers[base + 1:top + 1])
        del disk.layers[base + 1:top + 1]
        return True

    def commit_keep(self, disk):
        keeps_points = self.rng.random() < 0.6
        return self.commit(disk, keeps_points, keeps_top=not keeps_points or self.rng.random() < 0.3)

    VERBS = [external, external_prepared, external_all, internal, internal, forget_internal, view, view,
             add_bitmap, add_bitmap, change_bitmap, change_bitmap, merge_bitmaps, grow, reconnect,
             second_export, stream, stream, commit, commit, commit_keep, commit_keep, *chaos_copies.VERBS,
             *chaos_remotes.VERBS]

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def one_verb(self):
        self.rng = random.Random(self.verbs_rng.random())  # however much the one before needed of its own
        verb, disk = self.rng.choice(self.VERBS), self.rng.choice(self.disks)
        self.trace.append(f"{verb.__name__} {disk.name}")
        if verb(self, disk):
            self.count(verb.__name__)
        for each in self.disks:
            if each.guest.failure:
                raise each.guest.failure
            each.guest.more(self.rng.randrange(1, 60))


def one_round(tmp, seed, n_verbs):
    world = World(tmp, seed)
    try:
        for _ in range(4):
            world.start()
            for disk in world.disks:
                world.settle(disk)
                disk.connect()
            will_kill = world.verbs_rng.random() < 0.6
            try:
                for _ in range(n_verbs):
                    world.one_verb()
            except KillNow:
                will_kill = True
            if will_kill:
                world.kill()
            else:
                world.quiet()
                world.stop()
        world.start()
        for disk in world.disks:
            world.settle(disk)
        world.stop()
        for disk in world.disks:
            for path in disk.layers:
                world.check_for_corruption(path)
            for point in disk.points:
                point.check(tmp)
    except BaseException:
        if world.daemon:
            world.daemon.process.kill()
            world.daemon.process.wait()
            world.end_servers()
            print("# done:", ", ".join(world.trace))
            print(f"# the daemon ended with {world.daemon.process.returncode}; its log: {world.daemon.log()}")
        raise
    return world.counts


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--chaind", default=harness.chaind_path)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--rounds", type=int, default=10)
    ap.add_argument("--verbs", type=int, default=12, help="between one start of the daemon and its end")
    ap.add_argument("--time", type=float, help="begin no round after so many seconds")
    args = ap.parse_args()
    harness.chaind_path = args.chaind
    deadline = args.time and time.monotonic() + args.time
    failed, done, counts = 0, 0, {}
    for number in range(args.rounds):
        if deadline and time.monotonic() > deadline:
            break
        seed = f"{args.seed}/{number}"
        tmp = pathlib.Path(tempfile.mkdtemp(prefix="chaind-chaos-", dir=disk_directory()))
        done += 1
        try:
            for name, n in one_round(tmp, seed, args.verbs).items():
                counts[name] = counts.get(name, 0) + n
            print(f"ok {done} - chaos {seed}", flush=True)
        except Exception:
            failed += 1
            for line in traceback.format_exc().splitlines():
                print(f"# {line}")
            print(f"not ok {done} - chaos {seed} ({tmp} is kept)", flush=True)
            continue
        shutil.rmtree(tmp, ignore_errors=True)
    print("#", ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    print(f"1..{done}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disks of chaos.py, their guests, and what must hold of them: points in time and dirty bitmaps."""
import pathlib
import random
import threading
import time

import nbd

import harness
from harness import MIB, qemu_img
from stamps import BLOCK, ZERO, State, stamped

SIZE = 4 * MIB
IN_FLIGHT = 8
SHAPES = ["cluster_size=64k", "cluster_size=4k", "cluster_size=64k,extended_l2=on",
          "cluster_size=512,refcount_bits=16", "cluster_size=64k,lazy_refcounts=on"]


class Point:
    """A point in time. `history` is what its blocks may hold; once looked at, they hold that."""

    def __init__(self, disk, name, path, internal):
        self.name, self.path, self.internal = name, path, internal
        self.format = "qcow2"
        with disk.lock:
            self.answered = dict(disk.answered)  # this much is in it
            self.state = State([])
            self.state.history = [list(h) for h in disk.state.history]
            disk.taking.append(self)  # what is begun meanwhile may be in it

    def taken(self, disk):
        """The command has returned: what is begun from now on is not in it."""
        with disk.lock:
            disk.taking.remove(self)
            disk.points.append(self)

    def dropped(self, disk):
        """There will be none."""
        with disk.lock:
            disk.taking.remove(self)

    def flushed(self):
        self.state.confirm(self.answered)

    def check(self, folder):
        raw = folder / "point.raw"
        options = ["-l", f"snapshot.name={self.name}"] if self.internal else []
        qemu_img("convert", "-U", "-f", self.format, "-O", "raw", *options, self.path, raw)
        content = raw.read_bytes()
        found = self.state.check(content, f"point {self.name} of {self.path}")
        # A block that was under way may be there in part, and then stays so.
        self.state.history = [[[stamp] for stamp in dict.fromkeys(stamps)] for stamps in found]


class Bitmap:
    """A dirty bitmap of the disk's head, and the blocks that it must cover."""

    def __init__(self, name, persistent):
        self.name, self.persistent = name, persistent
        self.must = set()
        self.counts = False  # whether writes that begin now are noted for sure
        self.epoch = 0
        self.backup = None  # the file of a backup from which the disk differs only where it is dirty

    def begin(self):
        """What is under way may be noted or not; what was noted stays."""
        self.counts, self.epoch = False, self.epoch + 1


class Disk:
    def __init__(self, world, number):
        self.world, self.name = world, f"disk{number}"
        self.lock = threading.RLock()
        self.layers = [world.tmp / f"{self.name}.qcow2"]  # of the chain as it is, base first
        self.below = {self.layers[0]: None}  # of each file that has content of a point in time
        self.shape = world.rng.choice(SHAPES)
        qemu_img("create", "-q", "-f", "qcow2", "-o", self.shape, self.layers[0], SIZE)
        self.state = State([ZERO] * (SIZE // BLOCK))
        self.answered = {}  # block → its newest entry that was answered
        self.points, self.taking, self.bitmaps = [], [], []
        self.n_made = 0
        self.guest = None
        self.target = None  # the copy to which a job may take it, and its shape

    @property
    def size(self):
        return len(self.state.history) * BLOCK

    @property
    def head(self):
        return self.layers[-1]

    def new_name(self, kind):
        self.n_made += 1
        return f"{self.name}-{kind}{self.n_made}"

    def push(self, path):
        path = pathlib.Path(path)
        self.below[path] = self.head
        self.layers.append(path)

    def move_to(self, path, shape, below):
        """Its head is another file now, over the layer `below`, or nothing."""
        self.layers = [*self.layers[:self.layers.index(below) + 1 if below else 0], path]
        self.below[path] = below
        if not below:
            self.shape = shape
        with self.lock:
            self.bitmaps = []  # they stay with the old one

    def stands_on(self, path, base):
        """Whether what the file shows is in part what `base` shows."""
        while path is not None and path != base:
            path = self.below[path]
        return path is not None

    def connect(self):
        self.guest = Guest(self)
        self.guest.start()


class Guest(threading.Thread):
    """Keeps requests in flight until it is told to end; reads compare."""

    def __init__(self, disk):
        super().__init__(daemon=True)
        self.disk, self.rng = disk, random.Random(disk.world.rng.random())
        self.ending = self.killed = False
        self.failure = None
        self.busy = set()
        self.done = 0
        self.handle = nbd.NBD()
        self.handle.connect_uri(disk.world.uri(disk.name))
        self.n_blocks = self.handle.get_size() // BLOCK

    def run(self):
        try:
            while not self.ending:
                self.one_request()
                while len(self.busy) >= IN_FLIGHT and not self.ending:
                    self.handle.poll(100)
            while self.busy:
                self.handle.poll(1000)
            self.handle.flush()
            self.handle.shutdown()
        except nbd.Error as e:
            if not self.killed:
                self.failure = e
        except BaseException as e:
            self.failure = e

    def one_request(self):
        disk, rng = self.disk, self.rng
        with disk.lock:
            if rng.random() < 0.03:
                self.flush()
            block = rng.randrange(self.n_blocks if rng.random() < 0.5 else 64)
            if block in self.busy:
                return
            self.busy.add(block)
            if rng.random() < 0.3:
                self.read(block)
            else:
                self.write(block, ZERO if rng.random() < 0.15 else disk.state.new_stamp())

    def flush(self):
        disk = self.disk
        answered, points = dict(disk.answered), list(disk.points)

        def callback(error):
            with disk.lock:
                if not self.succeeded(error, "flush"):
                    return 1
                disk.state.confirm(answered)
                for point in points:
                    point.flushed()
            return 1
        self.handle.aio_flush(callback)

    def read(self, block):
        want = stamped(self.disk.state.history[block][-1][0])
        buffer = nbd.Buffer(BLOCK)

        def callback(error):
            self.busy.remove(block)
            self.done += 1
            if self.succeeded(error, f"read of block {block}") and buffer.to_bytearray() != want:
                self.fail(f"block {block} is not what was written last")
            return 1
        self.handle.aio_pread(buffer, block * BLOCK, callback)

    def write(self, block, stamp):
        disk, entry = self.disk, [stamp]
        for state in [disk.state, *(point.state for point in disk.taking)]:
            state.history[block].append(entry)
        noting = [(bitmap, bitmap.epoch) for bitmap in disk.bitmaps if bitmap.counts]

        def callback(error):
            with disk.lock:
                self.busy.remove(block)
                self.done += 1
                if not self.succeeded(error, f"write of block {block}"):
                    return 1
                disk.answered[block] = entry
                for bitmap, epoch in noting:
                    if bitmap.counts and bitmap.epoch == epoch:
                        bitmap.must.add(block)
            return 1
        if stamp:
            self.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(stamped(stamp))), block * BLOCK,
                                   callback)
        else:
            self.handle.aio_zero(BLOCK, block * BLOCK, callback)

    def succeeded(self, error, what):
        if error.value and not self.killed:
            self.fail(f"{what}: error {error.value}")
        return error.value == 0

    def fail(self, sentence):
        self.failure = self.failure or AssertionError(f"{self.disk.name}: {sentence}")
        self.ending = True

    def more(self, n):
        """Waits until it has done `n` more requests."""
        goal, deadline = self.done + n, time.monotonic() + harness.HANG
        while self.done < goal and self.is_alive():
            assert time.monotonic() < deadline, f"{self.disk.name}: the guest hangs"
            time.sleep(0.001)

    def end(self):
        self.ending = True
        self.join(harness.HANG)
        assert not self.is_alive(), f"{self.disk.name}: the guest does not end"
        if self.failure:
            raise self.failure


class KillNow(Exception):
    """The daemon is to be killed in the middle of a job."""

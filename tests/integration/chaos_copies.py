# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs of chaos.py that copy a disk to another file: mirrors, which take it there or are let go, and
backups, also by a bitmap over the one before. Some targets fail."""
from chaos_disks import SHAPES, KillNow, Point
from harness import qemu_img

MAX_BACKUPS = 5  # one over the other


class Target:
    """A new image, as a node while a job writes it."""
    format, server = "qcow2", None

    def __init__(self, world, disk, below=None, may_fail=False, node_below=None):
        self.world, self.disk, self.rng = world, disk, world.rng
        self.below, self.shape = below, world.rng.choice(SHAPES)
        if below:  # qemu-img makes no refcounts anew that an image needs
            self.shape = self.shape.replace(",lazy_refcounts=on", "")
        self.name = disk.new_name("copy")
        self.path = world.tmp / f"{self.name}.qcow2"
        over = ["-F", "qcow2", "-b", below] if below else []
        qemu_img("create", "-q", "-f", "qcow2", "-o", self.shape, *over, self.path, disk.size)
        self.fails = may_fail and self.rng.random() < 0.4
        backing = {"backing": node_below} if node_below else {}
        world.qmp.command("blockdev-add", driver="qcow2", node_name=self.name, file=self.file(), **backing)

    def file(self):
        file = {"driver": "file", "filename": str(self.path)}
        if not self.fails:
            return file
        self.once = self.rng.random() < 0.7
        rule = {"event": "none", "iotype": "write", "errno": self.rng.choice([5, 28]),
                "sector": self.rng.randrange(self.disk.size // 512), "once": self.once}
        return {"driver": "blkdebug", "image": file, "inject-error": [rule]}

    def arguments(self):
        arguments = {"device": self.world.node_of(self.disk.head), "target": self.name,
                     "x-verify": self.rng.random() < 0.3, "may_fail": self.fails, "server": self.server}
        if self.fails:
            # What fails for good would stop again for good.
            policies = ["report", "stop", "ignore"] if self.once else ["report"]
            arguments["on_target_error"] = self.rng.choice(policies)
        return arguments

    def close(self):
        self.world.try_command("blockdev-del", **{"node-name": self.name})
        if "lazy" not in self.shape:
            self.world.check_for_corruption(self.path)


def end_copy(target, point, is_done):
    """What was copied is there in its file."""
    disk = target.disk
    if point:
        point.format = target.format
    target.close()
    if not is_done:
        target.world.count("copies that failed" if target.fails else "cancelled copies")
        return
    disk.below[target.path] = target.below
    point.flushed()
    point.check(target.world.tmp)
    with disk.lock:
        disk.points.append(point)


# -- mirrors

def mirror_arguments(world):
    mode = world.rng.choice([None, "background", "write-blocking"])
    return {"copy_mode": mode} if mode else {}


def mirror(world, disk):
    run_mirror(world, disk, Target(world, disk, may_fail=True))
    return True


def run_mirror(world, disk, target):
    """Let go when it is ready: a copy of that moment."""
    point = None

    def at_ready(job):
        nonlocal point
        point = point or Point(disk, target.name, target.path, False)
        while world.try_command("block-job-cancel", device=job).get("error", {}).get("class") == "GenericError":
            world.poke(job, "resume")  # a target that is lost has it paused
    is_done = world.job("blockdev-mirror", disk, at_ready, sync="full", **target.arguments(),
                        **mirror_arguments(world))
    if point:
        point.dropped(disk)
    end_copy(target, point, is_done)


def mirror_pivot(world, disk):
    """The guests are taken to the copy, and what they leave is a point in time."""
    below = disk.layers[-2] if len(disk.layers) > 1 and world.rng.random() < 0.5 else None
    target = Target(world, disk, below, node_below=below and world.node_of(below))
    point = None

    def at_ready(job):
        nonlocal point
        disk.target = target.path, target.shape, below
        point = Point(disk, disk.head.stem, disk.head, False)
        world.poke(job, "complete")
        if world.rng.random() < 0.2:
            raise KillNow()
    is_done = world.job("blockdev-mirror", disk, at_ready, sync="top" if below else "full",
                        **target.arguments(), **mirror_arguments(world))
    disk.target = None
    if point:
        point.dropped(disk)
    if not is_done:
        target.close()
        return True
    old = disk.layers[len(disk.layers) - 1 if below else 0:]
    disk.move_to(target.path, target.shape, below)
    world.drop_nodes(old)
    point.flushed()  # it was closed
    with disk.lock:
        disk.points.append(point)
    return True


# -- backups

def run_backup(world, disk, target, bitmap, **arguments):
    """From its first moment on, what was dirty is in it, and what is written is not."""
    point = Point(disk, target.name, target.path, False)
    if bitmap:
        must, counted = set(bitmap.must), bitmap.counts
        bitmap.begin()
        bitmap.must = set()
        arguments.update(bitmap=bitmap.name)

    def started():
        point.dropped(disk)
        if bitmap:
            bitmap.counts = counted
    is_done = world.job("blockdev-backup", disk, started=started, **arguments, **target.arguments())
    if bitmap and is_done:
        bitmap.backup = target.path if counted else None
    elif bitmap:
        with disk.lock:
            bitmap.must |= must
    end_copy(target, point, is_done)


def backup(world, disk):
    """Of all; a bitmap, if there is one, is of what changes from then on."""
    if not disk.bitmaps:
        world.add_bitmap(disk)
    bitmap = world.rng.choice([None, *disk.bitmaps])
    run_backup(world, disk, Target(world, disk, may_fail=True), bitmap, sync="full",
               **({"bitmap_mode": "on-success"} if bitmap else {}))
    return True


def backup_top(world, disk):
    """Of the head alone, over what lies below it."""
    if len(disk.layers) < 2:
        return False
    below = disk.layers[-2]
    run_backup(world, disk, Target(world, disk, below, node_below=world.node_of(below)), None, sync="top")
    return True


def plain_backup(world, disk):
    run_backup(world, disk, Target(world, disk, may_fail=True), None, sync="full")
    return True


def stream_below(world, disk):
    return world.stream(disk, leaves_head=True)


def two_at_once(world, disk):
    """One job from its begin to its end while another one of the same chain runs. (A mirror allows no other
    job on its disk.)"""
    job = world.rng.choice([plain_backup, backup, backup_changed, mirror])
    beside = world.rng.choice([stream_below] if job is mirror else [plain_backup, backup_top, stream_below])
    world.beside = lambda: beside(world, disk) and world.count(f"{beside.__name__} beside {job.__name__}")
    world.trace.append(f"({beside.__name__} beside {job.__name__})")
    job(world, disk)
    world.beside = None  # there may have been no job
    return True


def bitmaps_since_backups(disk):
    return [b for b in disk.bitmaps if b.backup and depth(disk, b.backup) < MAX_BACKUPS]


def backup_changed(world, disk):
    """Over another backup, of what a bitmap says has changed since."""
    bitmaps = bitmaps_since_backups(disk)
    if not bitmaps:
        backup(world, disk)
        disk.guest.more(world.rng.randrange(1, 60))
        bitmaps = bitmaps_since_backups(disk)
    if not bitmaps:
        return False
    bitmap = world.rng.choice(bitmaps)
    run_backup(world, disk, Target(world, disk, bitmap.backup, may_fail=True), bitmap, sync="incremental")
    return True


def depth(disk, path):
    n = 0
    while path:
        path, n = disk.below[path], n + 1
    return n


VERBS = [mirror, mirror_pivot, backup, backup, backup_changed, backup_changed, backup_changed, backup_top,
         two_at_once, two_at_once]

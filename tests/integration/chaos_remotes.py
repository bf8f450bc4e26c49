# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs of chaos.py that need another server: copies of a disk to it, and copies of a disk whose lower
layer it has. It is killed in the middle, and comes back with what had been flushed."""
import subprocess
import time

from chaos_copies import Target, run_backup, run_mirror
from chaos_disks import SHAPES
from harness import Daemon, qemu_img
from stamps import BLOCK


class Server:
    """Another chaind, or an nbdkit that keeps to itself what it was not told to flush."""

    def __init__(self, world, name, path, kind="chaind", *options):
        self.world, self.rng, self.path, self.kind, self.options = world, world.rng, path, kind, options
        self.socket = world.tmp / f"{name}.sock"
        world.servers.append(self)
        self.start()

    def start(self):
        if self.kind == "chaind":
            self.daemon = Daemon("--nbd", self.socket, *self.options, f"x={self.path}")
            return
        ready = self.socket.with_suffix(".pid")
        for path in self.socket, ready:
            path.unlink(missing_ok=True)
        # Its cache calls holes what it has and the file has not.
        self.process = subprocess.Popen(["nbdkit", "-f", "-P", ready, "-U", self.socket, "--filter=noextents",
                                         "--filter=cache", "file", self.path, "cache=writeback"])
        while not ready.exists():
            time.sleep(0.01)

    def stop_now(self):
        if self.kind == "chaind" and not self.options:
            self.daemon.kill()
            return
        process = self.process if self.kind == "nbdkit" else self.daemon.process  # it shares what it has open
        process.kill()
        process.wait()

    def lose(self):
        """Guests may wait for it meanwhile."""
        self.stop_now()
        time.sleep(self.rng.random() * 0.1)
        self.start()
        self.world.count(f"losses of {self.kind}")

    def kill(self):
        self.stop_now()
        self.world.servers.remove(self)

    def node(self, **options):
        return {"driver": "nbd", "server": {"type": "unix", "path": str(self.socket)}, "export": "x", **options}


class RemoteTarget(Target):
    """The node is the server's export; the file is looked at when the server is gone."""
    fails = True

    def __init__(self, world, disk):
        self.world, self.disk, self.rng, self.below = world, disk, world.rng, None
        kind = self.rng.choice(["chaind", "nbdkit"])
        self.format = "qcow2" if kind == "chaind" else "raw"
        self.shape = self.rng.choice(SHAPES)
        self.name = disk.new_name("remote")
        self.path = world.tmp / f"{self.name}.{self.format}"
        options = ["-o", self.shape] if self.format == "qcow2" else []
        qemu_img("create", "-q", "-f", self.format, *options, self.path, disk.size)
        self.server = Server(world, self.name, self.path, kind)
        world.qmp.command("blockdev-add", node_name=self.name,
                          **self.server.node(**{"reconnect-delay": self.rng.choice([0, 100])}))

    def arguments(self):
        return {"device": self.world.node_of(self.disk.head), "target": self.name, "may_fail": True,
                "x-verify": self.rng.random() < 0.3, "server": self.server,
                "on_target_error": self.rng.choice(["stop", "stop", "report"])}

    def close(self):
        self.world.qmp.command("blockdev-del", node_name=self.name)
        self.server.kill()
        if self.format == "qcow2" and "lazy" not in self.shape:
            self.world.check_for_corruption(self.path)


def mirror_to_server(world, disk):
    run_mirror(world, disk, RemoteTarget(world, disk))
    return True


def backup_to_server(world, disk):
    run_backup(world, disk, RemoteTarget(world, disk), None, sync="full")
    return True


def copy_from_server(world, disk):
    """A chain over what the server shows becomes a chain without it: streamed, or copied elsewhere."""
    points = [p for p in disk.points if not p.internal and p.format == "qcow2" and p.path not in disk.layers]
    if not points:
        return False
    point, rng = world.rng.choice(points), world.rng
    name, size = disk.new_name("from"), len(point.state.history) * BLOCK
    server = Server(world, name, point.path, "chaind", "--read-only")
    path = copy = world.tmp / f"{name}.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "x", "-F", "raw", "-o", rng.choice(SHAPES[:4]), path, size)
    world.qmp.command("blockdev-add", node_name=f"{name}-far", read_only=True, **server.node(**{"reconnect-delay": 100}))
    world.qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=f"{name}-far",
                      file={"driver": "file", "filename": str(path)})
    is_stream = rng.random() < 0.5
    if is_stream:
        is_done = world.job("block-stream", disk, server=server, device=name)
    else:
        copy = world.tmp / f"{name}-copy.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", copy, size)
        world.qmp.command("blockdev-add", driver="qcow2", node_name=f"{name}-copy",
                          file={"driver": "file", "filename": str(copy)})
        is_done = world.job("blockdev-backup", disk, server=server, device=name, target=f"{name}-copy", sync="full")
        world.qmp.command("blockdev-del", node_name=f"{name}-copy")
    for node in name, f"{name}-far":
        world.qmp.command("blockdev-del", node_name=node)
    server.kill()
    if is_done:
        world.check_for_corruption(copy)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", copy, world.tmp / "from.raw")
        point.state.check((world.tmp / "from.raw").read_bytes(), f"copy {name} of {point.path}")
    for each in {path, copy}:
        each.unlink()
    return True


VERBS = [mirror_to_server, backup_to_server, copy_from_server]

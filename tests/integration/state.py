# SPDX-License-Identifier: LGPL-2.1-or-later
"""A chaind with a state directory, a monitor, and guests that write its disks and verify them."""
import pathlib
import random
import threading

import harness
from guests import GuestThread
from harness import KIB, Daemon, qemu_img
from qmp_client import Qmp

BLOCK = 4096


class Service(Daemon):
    """chaind --state TMP/state. `start()` after a kill or a stop runs it again. Disks keep what they
    show in `shadows` while guests write."""

    def __init__(self, tmp, *options, stops=False, **kwargs):
        self.tmp = tmp
        self.state = tmp / "state"
        if stops:
            self.path, harness.chaind_path = harness.chaind_path, harness.chaind_path + "-stops"
        try:
            super().__init__("--state", self.state, "--qmp", tmp / "qmp", "--nbd", tmp / "nbd",
                             *options, **kwargs)
        finally:
            if stops:
                harness.chaind_path = self.path
        self.qmp = Qmp(tmp / "qmp") if kwargs.get("ready", True) else None

    def command(self, name, /, **arguments):
        return self.qmp.command(name, **arguments)

    def error(self, name, /, **arguments):
        return self.qmp.error(name, **arguments)

    def disk(self, name):
        disk, = self.command("query-disks", name=name)
        return disk

    def lasting(self, name):
        """The same without the count of clients, who may be on their way out."""
        disk = self.disk(name)
        for export in disk["exports"]:
            del export["clients"]
        return disk

    def connect(self, name):
        import nbd
        h = nbd.NBD()
        h.connect_uri(self.uri_of(name))
        return h

    def uri_of(self, name):
        return f"nbd+unix:///{name}?socket={self.tmp}/nbd"

    def content(self, name):
        """All that an export shows."""
        h = self.connect(name)
        size = h.get_size()
        data = b"".join(h.pread(min(1 << 20, size - at), at) for at in range(0, size, 1 << 20))
        h.shutdown()
        return data

    def snapshot(self, disk, point, **more):
        return self.command("disk-snapshot", snapshots=[{"disk": disk, "point": point, **more}])

    def files(self):
        """What lies in the directory of images."""
        return {p.name for p in (self.state / "images").iterdir()}

    def write(self, name, blocks, seed, block=16 * KIB):
        """Fills so many blocks of an export, which the seed chooses, and flushes."""
        rand, h = random.Random(seed), self.connect(name)
        for _ in range(blocks):
            h.pwrite(rand.randbytes(block), rand.randrange(h.get_size() // block) * block)
        h.flush()
        h.shutdown()

    def idle(self):
        """Waits until no job runs."""
        while self.command("query-jobs"):
            threading.Event().wait(0.01)

    def ended(self, job):
        """Waits until the job is over; its entry of the history."""
        while True:
            for entry in self.command("query-job-history"):
                if entry["id"] == job:
                    return entry
            threading.Event().wait(0.01)

    def well(self, job):
        entry = self.ended(job)
        assert entry["result"] == "ok", entry
        return entry


class Guest(GuestThread):
    """Writes and verifies an export, whose content is `shadow` at the begin, until it is ended."""

    def __init__(self, service, name, seed=1, shadow=None):
        super().__init__()
        self.handle = service.connect(name)
        self.size = self.handle.get_size()
        self.shadow = bytearray(shadow or bytes(self.size))
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.start()

    def one_request(self):
        at = self.random.randrange(self.size // BLOCK) * BLOCK
        if self.random.random() < 0.3:
            data = self.handle.pread(BLOCK, at)
            assert data == self.shadow[at:at + BLOCK], f"block at {at} is not what was written"
        else:
            data = self.random.randbytes(16) * (BLOCK // 16)
            with self.lock:
                self.handle.pwrite(data, at)
                self.shadow[at:at + BLOCK] = data

    def still(self):
        """Holds it between two writes: a context in which the shadow is what the disk shows."""
        return self.lock

    def end(self, flush=True):
        """Stops it; what the disk shows then."""
        self.stop()
        if flush:
            self.handle.flush()
        self.handle.shutdown()
        return bytes(self.shadow)


def content_of(path, fmt="qcow2"):
    """What an image shows, as qemu-img sees it."""
    raw = pathlib.Path(str(path) + ".content")
    qemu_img("convert", "-U", "-f", fmt, "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Linux guest on an export: Debian's kernel under QEMU, its own NBD client over TCP, ext4 on the
device, files written, trimmed, checked and read again; then the host looks at the same files
through qemu-img, e2fsck and debugfs. `./dev packages` fetches what this needs below build-guest/."""
import glob
import os
import shutil
import subprocess
import threading

from harness import MIB, ROOT, Daemon, Skip, check_image, main, qemu_img, qemu_io, run
from qmp_client import Qmp

MODULES = ("virtio_pci", "virtio_net", "crc32c_generic", "crc32c_intel", "nbd", "ext4")
PROGRAMS = ("nbd-client", "mkfs.ext4", "e2fsck")
SIZE = 160 * MIB

INIT = """#!/bin/sh
# Runs the whole scenario in the guest; the host reads the console.
fail() { echo "GUEST-FAILED: $*"; poweroff -f; }
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /modules.order); do insmod /modules/$m.ko 2>/dev/null || echo "no $m"; done
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up || fail "no network"
nbd-client 10.0.2.2 PORT /dev/nbd0 -N disk -C 2 -t 60 || fail "nbd-client"
cat /sys/block/nbd0/size
mkfs.ext4 -q -E lazy_itable_init=0 /dev/nbd0 || fail "mkfs"
mkdir /m; mount -t ext4 -o discard /dev/nbd0 /m || fail "mount"
i=0
while [ $i -lt 60 ]; do
    dd if=/dev/urandom of=/m/file$i bs=$((i * 777 + 1)) count=7 2>/dev/null || fail "write $i"
    i=$((i + 1))
done
dd if=/dev/urandom of=/m/large bs=64k count=200 2>/dev/null || fail "large"
sync
rm /m/file1* ; cp /m/file20 /m/copy; mkdir /m/d; cp /m/file3* /m/d
dd if=/dev/urandom of=/m/large bs=4k count=300 seek=777 conv=notrunc 2>/dev/null
(cd /m && find . -type f ! -name sums | sort | xargs sha256sum >/sums && cp /sums sums) || fail "sums"
fstrim /m || fail "fstrim"
umount /m || fail "umount"
e2fsck -f -n /dev/nbd0 || fail "e2fsck"
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/nbd0 /m || fail "second mount"
(cd /m && sha256sum -c sums | grep -v ': OK$') && fail "content differs"
umount /m; nbd-client -d /dev/nbd0
echo GUEST-PASSED
poweroff -f
"""


def kernel():
    """(vmlinuz, directory of its modules)"""
    for base in (str(ROOT / "build-guest/kernel"), ""):
        for vmlinuz in sorted(glob.glob(f"{base}/boot/vmlinuz-*"), reverse=True):
            version = os.path.basename(vmlinuz)[len("vmlinuz-"):]
            modules = f"{base}/lib/modules/{version}"
            if glob.glob(f"{modules}/kernel/drivers/block/nbd.ko*") and \
                    os.path.exists(f"{modules}/modules.dep"):
                return vmlinuz, modules
    raise Skip("no Debian kernel with modules: ./dev packages fetches one into build-guest/")


def programs():
    for name in ("qemu-system-x86_64", "cpio", *PROGRAMS):
        if not shutil.which(name):
            raise Skip(f"{name} is not installed: ./dev packages installs it")
    busybox = "/bin/busybox"
    if not os.path.exists(busybox) or "static" not in run("file", "-L", busybox, check=False).stdout \
            and run("ldd", busybox, check=False).returncode == 0:
        raise Skip("busybox-static is not installed: ./dev packages installs it")
    return busybox


def module_files(modules):
    """The files of MODULES and all they need, in the order of loading."""
    needs, names = {}, {}
    with open(f"{modules}/modules.dep", encoding="ascii") as f:
        for line in f:
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
            names[os.path.basename(path).split(".")[0].replace("-", "_")] = path
    order = []

    def add(path):
        for other in reversed(needs[path]):
            add(other)
        if path not in order:
            order.append(path)
    for module in MODULES:
        if module in names:
            add(names[module])
    return order


def copy_program(root, path):
    """A program with its shared libraries."""
    shutil.copy(path, f"{root}/bin/")
    for word in run("ldd", path).stdout.split():
        if word.startswith("/"):
            os.makedirs(root + os.path.dirname(word), exist_ok=True)
            shutil.copy(word, root + word)


def make_initramfs(tmp, modules, port):
    busybox, root = programs(), f"{tmp}/root"
    for d in ("bin", "dev", "proc", "sys", "modules", "etc"):
        os.makedirs(f"{root}/{d}")
    shutil.copy(busybox, f"{root}/bin/busybox")
    for applet in run(busybox, "--list").stdout.split():
        if not os.path.exists(f"{root}/bin/{applet}"):
            os.symlink("busybox", f"{root}/bin/{applet}")
    for name in PROGRAMS:
        if os.path.islink(f"{root}/bin/{name}"):
            os.unlink(f"{root}/bin/{name}")
        copy_program(root, shutil.which(name))
    order = []
    for path in module_files(modules):
        name = os.path.basename(path).split(".")[0]
        order.append(name)
        target = f"{root}/modules/{os.path.basename(path)}"
        shutil.copy(f"{modules}/{path}", target)
        if target.endswith(".xz"):
            run("xz", "-d", target)
    with open(f"{root}/modules.order", "w", encoding="ascii") as f:
        f.write("\n".join(order))
    with open(f"{root}/init", "w", encoding="ascii") as f:
        f.write(INIT.replace("PORT", str(port)))
    os.chmod(f"{root}/init", 0o755)
    subprocess.run("find . | cpio -o -H newc --quiet | gzip -1 >../initramfs", shell=True, check=True,
                   cwd=root)
    return f"{tmp}/initramfs"


def boot(vmlinuz, initramfs):
    """Runs the guest to its end; returns what its console said. Emulated, as that works everywhere:
    a /dev/kvm inside a virtual machine may be there and not run anything."""
    done = run("qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults",
               "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", vmlinuz, "-initrd",
               initramfs, "-append", "console=ttyS0 quiet panic=-1 no_timer_check", "-nic",
               "user,model=virtio-net-pci", check=False, timeout=800)
    if "GUEST-PASSED" not in done.stdout and "GUEST-FAILED" not in done.stdout:
        raise AssertionError(f"the guest did not get through: {done.stdout[-3000:]}{done.stderr[-500:]}")
    return done.stdout


class Beside(threading.Thread):
    """Does something to the disk, turn by turn, while the guest goes on: until it is told to end, and has
    done each of its `kinds`."""
    kinds = {}

    def __init__(self, tmp):
        super().__init__(daemon=True)
        self.tmp, self.qmp, self.ending = tmp, Qmp(tmp / "qmp"), threading.Event()
        self.nodes, self.done, self.failure = ["disk"], [], None

    def run(self):
        i = 0
        try:
            while i < 200 and not (self.ending.wait(1) and set(self.done) == self.kinds):
                i += 1
                self.turn(i)
        except BaseException as e:
            self.failure = e

    def await_end(self):
        end = self.qmp.event("BLOCK_JOB_COMPLETED")
        assert "error" not in end, end
        while self.qmp.event("JOB_STATUS_CHANGE")["status"] != "null":
            pass

    def end(self):
        self.ending.set()
        self.join()
        self.qmp.close()
        if self.failure:
            raise self.failure
        assert set(self.done) == self.kinds, self.done


class Reshaper(Beside):
    """External snapshots of the disk, one after the other; and in between the chain is made shorter: by a
    stream into the head, by commits of the head and of a layer below it."""
    kinds = {"block-stream", "block-commit", "active commit"}

    def snapshot(self, node):
        self.qmp.command("blockdev-snapshot-sync", node_name=self.nodes[-1],
                         snapshot_file=str(self.tmp / f"{node}.qcow2"), snapshot_node_name=node)
        self.nodes.append(node)

    def job(self, command, leaves, is_active=False, **arguments):
        """Its layer `leaves` is deleted then."""
        self.qmp.command(command, job_id="j", device=self.nodes[-1], **arguments)
        if is_active:
            self.qmp.event("BLOCK_JOB_READY")
            self.qmp.command("job-complete", id="j")
        self.await_end()
        left = [n["node-name"] for n in self.qmp.command("query-named-block-nodes", flat=True)]
        assert leaves not in left, left  # what a snapshot made goes with its last user
        os.unlink(self.tmp / f"{leaves}.qcow2")
        self.nodes.remove(leaves)
        self.done.append(command if not is_active else "active commit")

    def turn(self, i):
        self.snapshot(f"layer{i}")
        if i % 4 == 1 and len(self.nodes) > 3:
            self.job("block-stream", self.nodes[-2], base_node=self.nodes[-3])
        elif i % 4 == 2:
            self.job("block-commit", self.nodes[-1], is_active=True, base_node=self.nodes[-2])
        elif i % 4 == 3 and len(self.nodes) > 3:
            self.job("block-commit", self.nodes[-2], top_node=self.nodes[-2], base_node=self.nodes[-3])


class Mover(Beside):
    """Mirrors of the disk to a new image, to which the guest is taken, over and over."""
    kinds = {"background", "write-blocking"}

    def turn(self, i):
        old, new, mode = self.nodes[-1], f"copy{i}", ("background", "write-blocking")[i % 2]
        qemu_img("create", "-q", "-f", "qcow2", self.tmp / f"{new}.qcow2", SIZE)
        self.qmp.command("blockdev-add", driver="qcow2", node_name=new,
                         file={"driver": "file", "filename": str(self.tmp / f"{new}.qcow2")})
        self.qmp.command("blockdev-mirror", job_id="j", device=old, target=new, sync="full", copy_mode=mode)
        self.qmp.event("BLOCK_JOB_READY")
        self.qmp.command("job-complete", id="j")
        self.await_end()
        if old in [n["node-name"] for n in self.qmp.command("query-named-block-nodes", flat=True)]:
            self.qmp.command("blockdev-del", node_name=old)
        check_image(self.tmp / f"{old}.qcow2")
        os.unlink(self.tmp / f"{old}.qcow2")
        self.nodes = [new]
        self.done.append(mode)


def run_guest(tmp, kind):
    """Beside that kind of work; then the host looks at what the guest has left."""
    vmlinuz, modules = kernel()
    programs()
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base.qcow2", SIZE)
    qemu_io(tmp / "base.qcow2", f"write -q -P 85 0 {SIZE}")  # old data that must not show through
    disk = tmp / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / "base.qcow2", "-F", "qcow2", disk)
    with Daemon("--qmp", tmp / "qmp", "--nbd", "127.0.0.1:0", f"disk={disk}") as d:
        port = d.uri("disk").split(":")[2].split("/")[0]
        beside = kind(tmp)
        beside.start()
        console = boot(vmlinuz, make_initramfs(tmp, modules, port))
        beside.end()
        assert "GUEST-PASSED" in console, console[-3000:]
    for node in beside.nodes:
        check_image(tmp / f"{node}.qcow2")
    qemu_img("convert", "-O", "raw", tmp / f"{beside.nodes[-1]}.qcow2", tmp / "disk.raw")
    run("e2fsck", "-f", "-n", tmp / "disk.raw")
    (tmp / "files").mkdir()
    run("debugfs", "-R", f"rdump / {tmp}/files", tmp / "disk.raw")
    checked = run("sha256sum", "-c", "--quiet", "sums", cwd=tmp / "files")
    assert checked.stdout == ""
    assert len((tmp / "files/sums").read_text().splitlines()) > 50


def test_linux_guest(tmp):
    """A Linux guest's files read right, in the guest and on the host, while its chain grows by snapshots,
    is streamed and committed."""
    run_guest(tmp, Reshaper)


def test_linux_guest_that_is_moved(tmp):
    """A Linux guest's files read right, in the guest and on the host, while its disk is mirrored to new
    images and it is taken there."""
    run_guest(tmp, Mover)


main(globals(), limit=900)

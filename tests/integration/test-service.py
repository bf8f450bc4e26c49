#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""chaind as a service: what it tells the service manager, over the real protocol."""
import re
import time

import nbd

import harness
from harness import HANG, MIB, Daemon, connect, main, qemu_img, says
from one_thread import Stopped, threads
from qmp_client import Qmp
from service_manager import NotifySocket


def image(tmp, name="a.qcow2", size="64M"):
    qemu_img("create", "-q", "-f", "qcow2", tmp / name, size)
    return tmp / name


def test_ready(tmp):
    """READY=1 comes once, when all exports answer, with a status."""
    notify = NotifySocket(tmp / "notify")
    disks = [f"d{i}={image(tmp, f'{i}.qcow2')}" for i in range(3)]
    with Daemon("--nbd", tmp / "s", *disks, ready=False, env=notify.env()) as d:
        ready = notify.wait(lambda m: m.get("READY") == "1")
        for i in range(3):  # at once, without waiting for the log
            assert connect(f"nbd+unix:///d{i}?socket={tmp}/s").get_size() == 64 * MIB
        assert notify.messages()[ready]["STATUS"] == "3 disks, 0 clients", notify.messages()
        d.ended_or_ready.wait()
    ready = [m for m in notify.messages() if "READY" in m]
    assert len(ready) == 1, ready


def test_stopping(tmp):
    """STOPPING=1 comes at the end, and more time is asked for while something is left to be closed."""
    notify = NotifySocket(tmp / "notify")
    with Daemon(image(tmp), env=notify.env()):
        notify.wait(lambda m: "READY" in m)
    stopping = notify.wait(lambda m: m.get("STOPPING") == "1")
    more = notify.wait(lambda m: "EXTEND_TIMEOUT_USEC" in m, after=stopping)
    message = notify.messages()[more]
    assert int(message["EXTEND_TIMEOUT_USEC"]) >= 10 * 1000000, message
    says(message["STATUS"], "stopping (Terminated), 1 disks to be closed")


def test_failed_start(tmp):
    """A start that fails tells why, the errno and the exit status, and never READY."""
    notify = NotifySocket(tmp / "notify")
    for args, status in ((["--nbd", tmp / "s", tmp / "absent.qcow2"], 1), (["--no-such-option"], 2)):
        d = Daemon(*args, ready=False, env=notify.env())
        assert d.wait() == status
        failed = notify.messages()[notify.wait(lambda m: m.get("EXIT_STATUS") == str(status))]
        assert int(failed["ERRNO"]) > 0, failed
        assert failed["STATUS"] in d.log(), (failed, d.log())
    assert not any("READY" in m for m in notify.messages()), notify.messages()


def test_status_of_clients(tmp):
    """The status counts clients that come and leave, and is told at most every 3 seconds."""
    notify = NotifySocket(tmp / "notify")
    with Daemon(image(tmp), env=notify.env()) as d:
        handles = [connect(d.uri()) for _ in range(5)]
        n = notify.wait_status("1 disk, 5 clients")
        for h in handles:
            h.shutdown()
        for _ in range(200):
            connect(d.uri()).shutdown()
        notify.wait_status("1 disk, 0 clients", after=n)
        times = [t for t, m in notify.told if "STATUS" in m and "EXTEND_TIMEOUT_USEC" not in m]
    # Not each interval: who reads them may come late to one, and in time to the next.
    assert len(times) <= (times[-1] - times[0]) / 3 + 2, times


def test_status_of_jobs(tmp):
    """The status names a job, its part and the time left, and whether it is paused."""
    notify = NotifySocket(tmp / "notify")
    harness.qemu_io(image(tmp), "write -P 1 0 64M")
    with Daemon("--qmp", tmp / "qmp", f"web={tmp}/a.qcow2", env=notify.env()):
        qmp = Qmp(tmp / "qmp")
        qmp.command("drive-backup", job_id="delete-7", device="web", target=str(tmp / "b.qcow2"),
                    sync="full", format="qcow2", speed=4 * MIB)
        n = notify.wait(lambda m: re.fullmatch(
            r"1 disk, 0 clients, delete-7 \d+% ETA \d+(s|m)", m.get("STATUS", "")))
        qmp.command("job-pause", id="delete-7")
        n = notify.wait(lambda m: re.fullmatch(
            r"1 disk, 0 clients, delete-7 \d+% paused", m.get("STATUS", "")), after=n)
        qmp.command("job-cancel", id="delete-7")
        notify.wait(lambda m: m.get("STATUS") == "1 disk, 0 clients", after=n)


def test_nothing_while_idle(tmp):
    """An idle daemon without a watchdog tells nothing, and no thread of it is woken up for that."""
    notify = NotifySocket(tmp / "notify")
    with Daemon(image(tmp), env=notify.env()) as d:
        notify.wait(lambda m: "READY" in m)
        time.sleep(6)  # for a timer of the start
        n, before = len(notify.messages()), switches(d.process.pid)
        time.sleep(4)
        assert switches(d.process.pid) == before, (before, switches(d.process.pid))
        assert len(notify.messages()) == n, notify.messages()


def switches(pid):
    """How often its loops were put to sleep, by the thread's number."""
    counts = {}
    for name in "loop-0", "control-0":
        for tid in threads(pid, name):
            with open(f"/proc/{pid}/task/{tid}/status") as f:
                counts[name] = int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", f.read(), re.M)[1])
    assert len(counts) == 2, counts
    return counts


def test_watchdog(tmp):
    """WATCHDOG=1 comes while all loops turn, idle ones too, and not while one of them hangs."""
    notify = NotifySocket(tmp / "notify")

    def pings():
        return sum("WATCHDOG" in m for m in notify.messages())

    def wait_pings(n):
        while pings() < n:
            time.sleep(0.01)
    disks = [f"d{i}={image(tmp, f'{i}.qcow2')}" for i in range(2)]
    with Daemon("--nbd", tmp / "s", "--loops", 2, *disks,
                env=notify.env(WATCHDOG_USEC="400000")) as d:
        wait_pings(3)
        for name in "loop-0", "loop-1", "control-0":
            with Stopped(*threads(d.process.pid, name)):
                deadline, before = time.monotonic() + HANG, -1
                while pings() > before:  # what was answered before is told
                    assert time.monotonic() < deadline, f"{name} hangs, and pings come"
                    before = pings()
                    time.sleep(1.2)
            wait_pings(before + 3)


def test_watchdog_of_another(tmp):
    """WATCHDOG_USEC for another process is ignored."""
    notify = NotifySocket(tmp / "notify")
    with Daemon(image(tmp), env=notify.env(WATCHDOG_USEC="100000", WATCHDOG_PID="1")):
        notify.wait(lambda m: "READY" in m)
        time.sleep(0.5)
    assert not any("WATCHDOG" in m for m in notify.messages()), notify.messages()


def test_failed_flush_at_the_end(tmp):
    """An end at which a disk could not be flushed tells so."""
    notify = NotifySocket(tmp / "notify")
    disk = image(tmp)
    harness.qemu_io(disk, "write 0 1M")
    with open(disk, "r+b") as f:  # the first L2 entry becomes one that is not aligned to a cluster
        f.seek(40)
        f.seek(int.from_bytes(f.read(8), "big"))
        l2 = int.from_bytes(f.read(8), "big") & 0x00fffffffffffe00
        f.seek(l2)
        f.write((1 << 63 | 0x200).to_bytes(8, "big"))
    d = Daemon(disk, env=notify.env())
    try:
        connect(d.uri()).pread(4096, 0)
    except nbd.Error:
        pass
    d.stop(expect=1)
    message = notify.messages()[notify.wait(lambda m: "ERRNO" in m)]
    assert message["EXIT_STATUS"] == "1", message
    says(message["STATUS"], "not everything could be flushed")




main(globals())

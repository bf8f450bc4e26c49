#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed service under a real systemd, as it is shipped: started, used, killed, hung, stopped.
The tests share a machine, which is the first one's; each leaves the service running."""
import atexit
import contextlib
import json
import pathlib
import re
import shutil
import tempfile
import threading
import time

import nbd

import harness
from harness import MIB, Skip, main, says
from machine import Machine
from one_thread import Stopped, threads

SERVICE = "chaind.service"
machines = []


def machine():
    """With the service enabled: what a package does, and then what its user does."""
    if not machines:
        tmp = pathlib.Path(tempfile.mkdtemp(prefix="chaind-machine-", dir=harness.disk_directory()))
        atexit.register(shutil.rmtree, tmp, ignore_errors=True)
        try:
            m = Machine(tmp)
        except Skip as why:
            machines.append(why)
        else:
            atexit.register(m.end)
            machines.append(m)
            m.run("systemd-sysusers")
            m.run("systemd-tmpfiles", "--create")
            m.run("journalctl", "--update-catalog")
            m.run("systemctl", "daemon-reload")
            m.run("systemctl", "enable", "--now", SERVICE)
            m.run("chainctl", "create", "web", "64M")
    if isinstance(machines[0], Skip):
        raise machines[0]
    return machines[0]


def connect(m, export="web"):
    """A client outside of the machine."""
    h = nbd.NBD()
    h.set_export_name(export)
    h.connect_unix(str(m.path("/run/chaind/nbd.sock")))
    return h


def pid_of(m):
    """Of the service, for this process."""
    inner = m.show(SERVICE, "MainPID")
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if text.startswith("Name:\tchaind\n") and re.search(rf"^NSpid:.*\s{inner}$", text, re.M):
                return int(status.parent.name)
    raise AssertionError(f"no process {inner}")


def drop_in(m, unit, text):
    """None: without one again."""
    m.path(f"/etc/systemd/system/{unit}.d").mkdir(parents=True, exist_ok=True)
    file = m.path(f"/etc/systemd/system/{unit}.d/test.conf")
    if text:
        file.write_text(text)
    else:
        file.unlink()
    m.run("systemctl", "daemon-reload")


def test_service(tmp):
    """Enabled as it is shipped, it runs as its own user without any privilege, and has a status."""
    m = machine()
    assert m.show(SERVICE, "ActiveState") == "active", m.journal("-u", SERVICE)
    status = pathlib.Path(f"/proc/{pid_of(m)}/status").read_text()
    uid = m.run("id", "-u", "chaind").stdout.strip()
    assert uid != "0" and re.search(rf"^Uid:\s+{uid}\s+{uid}\s+{uid}", status, re.M), status
    assert re.search(r"^CapEff:\s+0+$", status, re.M), status
    assert re.search(r"^Seccomp:\s+2$", status, re.M), status
    assert (m.path("/var/lib/chaind").stat().st_mode & 0o777) == 0o750
    m.wait(lambda: m.show(SERVICE, "StatusText"), lambda s: s == "1 disk, 0 clients")


def test_disks(tmp):
    """chainctl reaches it without an option, and disks are made, used, and changed under a client."""
    m = machine()
    uri = m.run("chainctl", "create", "db", "64M").stdout.strip()
    assert uri == "nbd+unix:///db?socket=/run/chaind/nbd.sock", uri
    m.run("qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "-c", "flush", uri)
    m.run("chainctl", "snapshot", "db@mon")
    m.run("qemu-io", "-f", "raw", "-c", "write -P 8 0 512k", uri)
    m.run("chainctl", "delete", "db@mon")
    out = m.run("qemu-io", "-f", "raw", "-c", "read -P 8 0 512k", "-c", "read -P 7 512k 512k", uri).stdout
    assert "failed" not in out, out
    m.run("chainctl", "remove", "db")


def test_others_are_kept_out(tmp):
    """A user outside the group chaind reaches neither socket; one inside reaches both."""
    m = machine()
    for group, status in ("nogroup", 8), ("chaind", 0):
        done = m.run("setpriv", "--reuid=nobody", f"--regid={group}", "--clear-groups",
                     "chainctl", "ls", check=False)
        assert done.returncode == status, (group, done.returncode, done.stderr)
    done = m.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "nbdinfo",
                 "nbd+unix:///web?socket=/run/chaind/nbd.sock", check=False)
    assert done.returncode == 1 and "ermission denied" in done.stderr, done.stderr


def test_own_directory_only(tmp):
    """The service writes nothing outside its directory, and a message says so."""
    m = machine()
    m.path("/srv/vm").mkdir(mode=0o777, parents=True, exist_ok=True)
    m.path("/srv/vm").chmod(0o777)
    m.run("qemu-img", "create", "-q", "-f", "qcow2", "/srv/vm/x.qcow2", "1M")
    m.path("/srv/vm/x.qcow2").chmod(0o666)
    done = m.run("chainctl", "add", "x", "/srv/vm/x.qcow2", check=False)
    assert done.returncode != 0
    says(done.stderr, "/srv/vm/x.qcow2", "Read-only file system", "chainctl pool add '/srv/vm'")
    for folder in ("/tmp", "/var/tmp"):  # what is written to its own would be gone with it
        done = m.run("chainctl", "backup", "web", f"{folder}/web.qcow2", check=False)
        assert done.returncode == 8, done
        says(done.stderr, f"{folder}/web.qcow2: Read-only file system")


def test_pool(tmp):
    """In a pool the service writes, and after its removal no more."""
    m = machine()
    pool, unfit = "/srv/my vm 100%", "/home/vm"
    m.path(pool).mkdir(parents=True)
    m.path(unfit).mkdir(parents=True)
    m.run("qemu-img", "create", "-q", "-f", "qcow2", f"{pool}/y.qcow2", "1M")
    m.path(f"{pool}/y.qcow2").chmod(0o666)
    assert m.run("chainctl", "add", "y", f"{pool}/y.qcow2", check=False).returncode != 0
    assert m.run("chainctl", "pool", "list").stdout.strip() in ("", "POOL")
    done = m.run("chainctl", "pool", "add", unfit, check=False)
    assert done.returncode == 2 and "/home" in done.stderr, done.stderr
    assert m.run("chainctl", "pool", "add", "/nowhere", check=False).returncode == 5
    says(m.run("chainctl", "pool", "add", pool).stdout, pool, "systemctl restart chaind.service")
    assert m.run("chainctl", "-H", "pool", "list").stdout == f"{pool}\n"
    assert m.path(pool).stat().st_mode & 0o7777 == 0o2775
    m.run("systemctl", "restart", SERVICE)
    m.run("chainctl", "add", "y", f"{pool}/y.qcow2")
    m.run("chainctl", "backup", "web", f"{pool}/web.qcow2")
    m.run("qemu-img", "check", f"{pool}/web.qcow2")
    m.run("chainctl", "remove", "y")
    m.run("chainctl", "pool", "remove", pool)
    assert m.run("chainctl", "pool", "remove", pool, check=False).returncode == 5
    m.run("systemctl", "restart", SERVICE)
    done = m.run("chainctl", "add", "y", f"{pool}/y.qcow2", check=False)
    says(done.stderr, "Read-only file system")
    done = m.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
                 "chainctl", "pool", "add", pool, check=False)
    assert done.returncode == 8 and "root" in done.stderr, done.stderr


def test_reload(tmp):
    """`systemctl reload` has the configuration read again, under a client; a wrong one changes nothing."""
    m = machine()
    conf = m.path("/usr/local/etc/chaind/chaind.conf")
    conf.parent.mkdir(parents=True, exist_ok=True)
    with Guest(m) as guest:
        guest.wait_more(5)
        pid = m.show(SERVICE, "MainPID")
        for text, level in ("[daemon]\nlog=debug\n", "debug"), ("[daemon]\nlog=nonsense\n", "debug"), \
                ("", "info"):
            conf.write_text(text)
            m.run("systemctl", "reload", SERVICE)
            m.wait(lambda: m.run("chainctl", "log-level").stdout.strip(), lambda s: s == level)
            m.wait(lambda: m.show(SERVICE, "ActiveState"), lambda s: s == "active")
        guest.wait_more(5)
        assert guest.n_connections == 1, guest.n_connections
        assert m.show(SERVICE, "MainPID") == pid
    says(m.journal("-u", SERVICE), "chaind.conf:2")
    conf.unlink()


def test_tcp(tmp):
    """chaind-tcp.socket is not enabled; once it is, clients connect over TCP to a service without network."""
    m = machine()
    if m.run("grep", "-q", "^0*1 ", "/proc/net/if_inet6", check=False).returncode:
        raise Skip("no IPv6 here")
    assert m.show("chaind-tcp.socket", "ActiveState") == "inactive"
    assert m.run("nbdinfo", "nbd://127.0.0.1/web", check=False).returncode != 0
    m.run("systemctl", "enable", "chaind-tcp.socket")
    m.run("systemctl", "restart", SERVICE)
    try:
        says(m.run("nbdinfo", "nbd://127.0.0.1/web").stdout, "export-size: 67108864")
        says(m.run("nbdinfo", "nbd://[::1]/web").stdout, "export-size: 67108864")
        assert m.show(SERVICE, "PrivateNetwork") == "yes"
        uris = m.run("chainctl", "info", "web").stdout
        says(uris, "nbd://127.0.0.1:10809/web")
    finally:
        m.run("systemctl", "disable", "--now", "chaind-tcp.socket")
        m.run("systemctl", "restart", SERVICE)
    assert m.run("nbdinfo", "nbd://127.0.0.1/web", check=False).returncode != 0


def test_queries(tmp):
    """chaind-query.socket is not enabled; once it is, everybody may look, and change nothing."""
    m = machine()

    def by_nobody(*words):
        return m.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "chainctl", *words,
                     check=False)
    assert by_nobody("ls").returncode == 8
    m.run("systemctl", "enable", "chaind-query.socket")
    m.run("systemctl", "restart", SERVICE)
    try:
        done = by_nobody("ls")
        assert done.returncode == 0 and "web" in done.stdout, (done.stdout, done.stderr)
        assert by_nobody("create", "mine", "1M").returncode == 8
        assert "mine" not in m.run("chainctl", "ls").stdout
    finally:
        m.run("systemctl", "disable", "--now", "chaind-query.socket")
        m.run("systemctl", "restart", SERVICE)
    assert by_nobody("ls").returncode == 8


def test_domain(tmp):
    """chaind@NAME.service is a daemon of its own, with its own disks and sockets."""
    m = machine()
    m.run("systemctl", "enable", "--now", "chaind@second.service")
    socket = "/run/chaind/second/control.sock"
    uri = m.run("chainctl", "--socket", socket, "create", "other", "8M").stdout.strip()
    assert uri == "nbd+unix:///other?socket=/run/chaind/second/nbd.sock", uri
    says(m.run("nbdinfo", uri).stdout, "export-size: 8388608")
    assert "other" not in m.run("chainctl", "ls").stdout
    assert m.path("/var/lib/chaind-second/chaind.db").exists()
    m.run("systemctl", "disable", "--now", "chaind@second.service")


class Guest:
    """A client that writes and reads without pause, and connects again when it is disconnected."""

    def __init__(self, m, export="web"):
        self.machine, self.export = m, export
        self.ended, self.n_done, self.n_connections = False, 0, 0
        self.fault = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            while not self.ended:
                with contextlib.suppress(nbd.Error):
                    h = connect(self.machine, self.export)
                    self.n_connections += 1
                    self.work(h)
        except BaseException as e:
            self.fault = e

    def work(self, h):
        flushed = None
        while not self.ended:
            data = bytes([self.n_done % 255 + 1]) * 4096
            h.pwrite(data, 0)
            h.flush()
            flushed = data
            got = h.pread(4096, 0)
            assert got == flushed, "what was flushed is not there"
            self.n_done += 1

    def wait_more(self, n):
        until = self.n_done + n
        while self.n_done < until:
            assert self.thread.is_alive(), self.fault
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended = True
        self.thread.join()
        assert not self.fault, self.fault


def test_restart_under_clients(tmp):
    """A restart with clients attached takes seconds; they connect again, and go on where they were."""
    m = machine()
    idle = connect(m)
    with Guest(m) as guest:
        guest.wait_more(10)
        begin = time.monotonic()
        m.run("systemctl", "restart", SERVICE)
        took = time.monotonic() - begin
        guest.wait_more(10)
        assert guest.n_connections == 2, guest.n_connections
    assert took < 60, f"{took:.1f} s"  # a slow machine takes longer
    assert m.show(SERVICE, "Result") == "success"
    del idle


def test_killed(tmp):
    """Killed, it is started again, and its clients go on."""
    m = machine()
    with Guest(m) as guest:
        guest.wait_more(10)
        before = int(m.show(SERVICE, "NRestarts"))
        m.run("systemctl", "kill", "-s", "KILL", SERVICE)
        guest.wait_more(10)
        assert int(m.show(SERVICE, "NRestarts")) == before + 1


def test_hung_loop(tmp):
    """With a loop that hangs it is ended by the watchdog, and started again; its clients go on."""
    m = machine()
    drop_in(m, SERVICE, "[Service]\nWatchdogSec=2\n")
    try:
        m.run("systemctl", "restart", SERVICE)
        with Guest(m) as guest:
            guest.wait_more(10)
            time.sleep(3)  # busy, but not hung
            before, pid = int(m.show(SERVICE, "NRestarts")), pid_of(m)
            with Stopped(*threads(pid, "loop-0")):
                m.wait(lambda: m.journal("-u", SERVICE), lambda log: "Watchdog timeout" in log, 30)
            m.wait(lambda: m.show(SERVICE, "NRestarts"), lambda n: int(n) == before + 1, 30)
            guest.wait_more(10)
    finally:
        drop_in(m, SERVICE, None)
        m.run("systemctl", "restart", SERVICE)


def entries(m, *match):
    """What the journal has, decoded."""
    return [json.loads(line) for line in m.journal("-o", "json", *match).splitlines()]


def test_journal(tmp):
    """Entries of the journal have fields and a number, of which the catalog says what it means."""
    m = machine()
    for e in entries(m, f"_SYSTEMD_UNIT={SERVICE}", "SYSLOG_IDENTIFIER=chaind", "MESSAGE=ready"):
        assert e["PRIORITY"] == "6" and e["_TRANSPORT"] == "journal", e
    assert entries(m, "MESSAGE=ready")
    m.run("chainctl", "create", "bad", "64M")
    connect(m, "bad").pwrite(b"x" * MIB, 0)
    m.run("systemctl", "stop", SERVICE)
    image, = m.path("/var/lib/chaind/images").glob("bad*")
    with open(image, "r+b") as f:  # the first L2 entry becomes one that is not aligned to a cluster
        f.seek(40)
        f.seek(int.from_bytes(f.read(8), "big"))
        l2 = int.from_bytes(f.read(8), "big") & 0x00fffffffffffe00
        f.seek(l2)
        f.write((1 << 63 | 0x200).to_bytes(8, "big"))
    m.run("systemctl", "start", SERVICE)
    try:
        connect(m, "bad").pread(4096, 0)
    except nbd.Error as e:
        assert e.errno == "EIO", e
    number = "f9442fd8c11c4f86a303175c63df8de8"
    e, = m.wait(lambda: entries(m, f"MESSAGE_ID={number}"), len)
    assert e["CHAIND_DISK"] == "bad" and e["CHAIND_NODE"] and e["PRIORITY"] == "3", e
    says(e["MESSAGE"], image.name)
    says(m.run("journalctl", "--no-pager", "-x", f"MESSAGE_ID={number}").stdout,
         "The image of disk bad is damaged", "qemu-img check")
    m.run("systemctl", "stop", SERVICE, check=False)
    e, = entries(m, "MESSAGE_ID=e20b9cb3ba9c48bf8b965c43ada94ef9")
    assert e["CHAIND_DISK"] == "bad", e
    image.unlink()
    m.run("systemctl", "start", SERVICE)
    e = entries(m, "MESSAGE_ID=59ba71b4849b4c6e89c91e5017562247")[-1]
    assert e["CHAIND_DISK"] == "bad", e
    m.run("chainctl", "remove", "bad")


def test_failed_start(tmp):
    """A start that fails says why where `systemctl status` shows it, and a wrong command line is not tried again."""
    m = machine()
    db = m.path("/var/lib/chaind/chaind.db")
    m.run("systemctl", "stop", SERVICE)
    content = db.read_bytes()
    drop_in(m, SERVICE, "[Service]\nRestart=no\n")
    try:
        db.write_bytes(b"x" * len(content))
        assert m.run("systemctl", "start", SERVICE, check=False).returncode == 1
        assert m.show(SERVICE, "ExecMainStatus") == "1"
        says(m.show(SERVICE, "StatusText"), "chaind.db")
        assert int(m.show(SERVICE, "StatusErrno")) > 0
    finally:
        db.write_bytes(content)
        drop_in(m, SERVICE, None)
        m.run("systemctl", "start", SERVICE)
    drop_in(m, SERVICE, "[Service]\nExecStart=\nExecStart=/usr/local/bin/chaind --no-such-option\n")
    try:
        assert m.run("systemctl", "restart", SERVICE, check=False).returncode == 1
        assert m.show(SERVICE, "ActiveState") == "failed"
        assert m.show(SERVICE, "ExecMainStatus") == "2"
    finally:
        drop_in(m, SERVICE, None)
        m.run("systemctl", "start", SERVICE)


main(globals())

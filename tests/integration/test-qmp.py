#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Monitors from outside: the wire, several clients, clients that do not read, the sockets, the end."""
import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess

import harness
from fuse_disk import write_script
from harness import Daemon, fails, main, need_fuse_disk, qemu_img, run, says
from qmp_client import Qmp


def image(path, size="10M"):
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    return path


def test_greeting(tmp):
    """The greeting names the version and offers no capabilities."""
    with Daemon("--qmp", tmp / "q"):
        greeting = Qmp(tmp / "q", negotiate=False).greeting
        assert greeting["capabilities"] == [], greeting
        assert sorted(greeting["version"]["qemu"]) == ["major", "micro", "minor"], greeting
        assert greeting["version"]["package"].startswith("chaind "), greeting


def test_empty(tmp):
    """A daemon with a monitor and no FILE runs until quit, and answers that before it ends."""
    d = Daemon("--qmp", tmp / "q")
    q = Qmp(tmp / "q")
    assert d.uris() == []
    q.send({"execute": "quit", "id": 7})
    assert q.line() == {"return": {}, "id": 7}
    assert q.line() is None
    assert d.wait() == 0
    assert not (tmp / "q").exists()


def test_sigterm(tmp):
    """SIGTERM ends all monitors, and status is 0."""
    d = Daemon("--qmp", tmp / "q", "--qmp", tmp / "r", image(tmp / "a.qcow2"))
    monitors = [Qmp(tmp / "q"), Qmp(tmp / "q"), Qmp(tmp / "r", negotiate=False)]
    d.stop()
    for q in monitors:
        while (line := q.line()) is not None:
            assert line["event"] == "BLOCK_EXPORT_DELETED", line


def test_mode(tmp):
    """Only the user may connect, whatever the umask; a stale socket is replaced, a live one is not."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp / "q"))
    with Daemon("--qmp", tmp / "q", preexec_fn=lambda: os.umask(0)):
        assert stat.S_IMODE(os.stat(tmp / "q").st_mode) == 0o600
        says(fails("--qmp", tmp / "q"), "another program listens")
        Qmp(tmp / "q").close()


def test_pipelined(tmp):
    """Many requests in one piece are answered in their order, each with its id."""
    with Daemon("--qmp", tmp / "q"):
        q = Qmp(tmp / "q")
        names = ["query-version", "nope", "query-commands"] * 200
        q.send("".join(json.dumps({"execute": n, "id": i}) for i, n in enumerate(names)).encode())
        for i, name in enumerate(names):
            reply = q.reply()
            assert reply["id"] == i and ("error" in reply) == (name == "nope"), reply


def test_half_closed(tmp):
    """A client that sends its commands and closes that direction gets all replies."""
    with Daemon("--qmp", tmp / "q"):
        q = Qmp(tmp / "q", negotiate=False)
        q.send(b"{'execute':'qmp_capabilities'}" + b"{'execute':'query-version'}" * 100)
        q.socket.shutdown(socket.SHUT_WR)
        n = 0
        while (reply := q.line()) is not None:
            assert "return" in reply, reply
            n += 1
        assert n == 101, n


def test_bytewise(tmp):
    """Requests that come byte by byte are the same requests."""
    with Daemon("--qmp", tmp / "q"):
        q = Qmp(tmp / "q")
        for byte in b'{"execute":\r\n "query-version"\n,"id":"\xc3\xa4{"}':
            q.send(bytes([byte]))
        assert q.reply()["id"] == "\u00e4{"


def test_events_to_all(tmp):
    """Each monitor that has negotiated is told of an event, before the reply of who caused it."""
    disk = image(tmp / "a.qcow2")
    with Daemon("--qmp", tmp / "q"):
        a, b, early = Qmp(tmp / "q"), Qmp(tmp / "q"), Qmp(tmp / "q", negotiate=False)
        a.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp / "n")}})
        a.command("blockdev-add", driver="qcow2", node_name="n",
                  file={"driver": "file", "filename": str(disk)})
        a.command("block-export-add", type="nbd", id="e", node_name="n")
        a.command("block-export-del", id="e")
        assert a.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
        assert b.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
        early.send({"execute": "qmp_capabilities"})
        assert early.line() == {"return": {}}
        assert early.events == []


def test_slow_reader(tmp):
    """A client that reads nothing is not served further, and nobody else notices."""
    with Daemon("--qmp", tmp / "q") as d:
        slow, other = Qmp(tmp / "q"), Qmp(tmp / "q")
        slow.socket.setblocking(False)
        request, sent = json.dumps({"execute": "query-qmp-schema"}).encode() * 50, 0
        # Until it is not taken any more: what is unread is bounded, and so is what is taken.
        silent = 0
        while silent < 50:
            try:
                sent += slow.socket.send(request)
                silent = 0
            except BlockingIOError:
                silent += 1
                other.command("query-version")
        assert sent < 64 << 20, sent
        rss = int(open(f"/proc/{d.process.pid}/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
        assert rss < 256 << 20, rss
        other.command("query-version")
        slow.close()
        other.command("query-version")


def test_deaf_at_the_end(tmp):
    """A client that reads nothing does not keep the daemon from ending."""
    d = Daemon("--qmp", tmp / "q")
    slow = Qmp(tmp / "q")
    slow.socket.setblocking(False)
    try:
        while True:
            slow.socket.send(json.dumps({"execute": "query-qmp-schema"}).encode() * 50)
    except BlockingIOError:
        pass
    d.stop()


def test_hostile(tmp):
    """Too deep, too large, and no JSON at all: refused, and the next request is served."""
    with Daemon("--qmp", tmp / "q"):
        q = Qmp(tmp / "q")
        for bad in (b"[" * 100000 + b"]" * 100000, b'{"execute":"' + b"x" * (5 << 20) + b'"}',
                    b'{"execute":"query-version","id":' + b"[" * 97 + b"]" * 97 + b"}",
                    b"\x00\x01\x02 ", b'{"execute":"a\nb"}'[:14], b"\xff" * 3):
            q.send(bad)
            assert "error" in q.reply()
        q.send(b'\xff{"execute":"query-version","id":' + b"[" * 90 + b"]" * 90 + b"}")
        while "return" not in (reply := q.reply()):
            pass
        assert str(reply["id"]).count("[") == 90


def test_leaves_within_a_request(tmp):
    """Clients that leave at any byte leave nothing behind."""
    with Daemon("--qmp", tmp / "q") as d:
        before = len(os.listdir(f"/proc/{d.process.pid}/fd"))
        request = b'{"execute":"qmp_capabilities"}{"execute":"query-commands"}'
        for n in range(len(request)):
            q = Qmp(tmp / "q", negotiate=False)
            q.send(request[:n])
            q.close()
        last = Qmp(tmp / "q")
        while len(os.listdir(f"/proc/{d.process.pid}/fd")) > before + 1:
            last.command("query-version")


def test_schema(tmp):
    """The schema is whole: each type that is referred to is there once, all commands are."""
    with Daemon("--qmp", tmp / "q"):
        q = Qmp(tmp / "q")
        schema = q.command("query-qmp-schema")
        names = [entry["name"] for entry in schema]
        assert len(names) == len(set(names))
        for entry in schema:
            used = [entry.get(k) for k in ("arg-type", "ret-type", "element-type")]
            used += [m["type"] for m in entry.get("members", ()) if entry["meta-type"] != "enum"]
            used += [v["type"] for v in entry.get("variants", ())]
            for name in used:
                assert name is None or name in names, (entry, name)
            if "tag" in entry:
                tag = next(m for m in entry["members"] if m["name"] == entry["tag"])
                values = next(e for e in schema if e["name"] == tag["type"])["values"]
                assert sorted(v["case"] for v in entry["variants"]) == sorted(values), entry
        commands = {c["name"] for c in q.command("query-commands")}
        assert commands == {e["name"] for e in schema if e["meta-type"] == "command"}


def test_many_nodes(tmp):
    """A query about many nodes does not hold up other monitors."""
    with Daemon("--qmp", tmp / "q") as d:
        asks, other = Qmp(tmp / "q"), Qmp(tmp / "q")
        for i in range(1500):
            other.command("blockdev-add", driver="null-co", node_name=f"n{i}")
        for query in ("query-named-block-nodes", "query-blockstats", "x-debug-query-block-graph"):
            is_before = False
            while not is_before:  # seen once, if it can be
                asks.send({"execute": query, "arguments":
                           {"query-nodes": True} if query == "query-blockstats" else {}})
                other.command("query-jobs")
                is_before = not select.select([asks.socket], [], [], 0)[0]
                result = asks.reply()["return"]
            assert len(result if isinstance(result, list) else result["nodes"]) == 1500
        d.stop()


def test_deep_chain(tmp):
    """What lies below each node of a deep chain is told with it, however large that is, up to a bound."""
    image(tmp / "l0", "1M")
    with Daemon("--qmp", tmp / "q", cwd=tmp) as d:
        q = Qmp(tmp / "q")

        def add(i, **more):
            q.command("blockdev-add", driver="qcow2", node_name=f"l{i}", read_only=True,
                      file={"driver": "file", "filename": f"l{i}"}, **more)
        qemu_img("create", "-q", "-f", "qcow2", "-b", "l0", "-F", "qcow2", "l1", cwd=tmp)
        add(0)
        for i in range(1, 460):
            if i > 1:
                os.link(tmp / "l1", tmp / f"l{i}")
            add(i, backing=f"l{i - 1}")
            if i == 300:
                nodes = q.command("query-named-block-nodes")
                top = next(node for node in nodes if node["node-name"] == "l300")
                assert len(nodes) == 2 * 301 and top["backing_file_depth"] == 300
                below = top["image"]
                for _ in range(300):
                    below = below["backing-image"]
                assert below["filename"] == "l0", below
        says(q.error("query-named-block-nodes"), '"flat": true')
        assert len(q.command("query-named-block-nodes", flat=True)) == 2 * 460
        d.stop()


@contextlib.contextmanager
def storage_that_hangs(tmp, *args):
    """A daemon, a monitor whose command waits for storage until the file `go` is there, another one."""
    wait = f'while [ ! -e {tmp}/go ]; do sleep 0.02; done; head -c "$3" /dev/zero'
    script = write_script(tmp / "storage", pread=f"echo >{tmp}/asked; {wait}")
    with need_fuse_disk(tmp / "mnt", "sh", script) as disk, Daemon("--qmp", tmp / "q", *args) as d:
        waits, other = Qmp(tmp / "q"), Qmp(tmp / "q")
        waits.send({"execute": "blockdev-add", "arguments": {
            "driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": disk}}})
        while not (tmp / "asked").exists():
            other.command("query-version")
        yield d, waits, other


def test_storage_that_hangs(tmp):
    """While a command waits for storage that does not answer, other monitors' queries are answered."""
    with storage_that_hangs(tmp) as (d, waits, other):
        for _ in range(20):
            for query in ("query-jobs", "query-named-block-nodes", "query-block-exports",
                          "query-block", "query-blockstats", "query-commands"):
                other.command(query)
        (tmp / "go").touch()
        assert "error" in waits.reply()  # zeros are no qcow2
        d.stop()


def test_server_stops_beside_storage_that_hangs(tmp):
    """The NBD server stops and starts while a command that changes the graph waits for storage."""
    args = "--nbd", tmp / "n", image(tmp / "a.qcow2")
    with storage_that_hangs(tmp, *args) as (d, waits, other):
        client = run("nbdinfo", "--size", f"nbd+unix:///?socket={tmp}/n")
        assert client.stdout.strip() == str(10 << 20)
        other.command("nbd-server-stop")
        assert other.event("BLOCK_EXPORT_DELETED")
        assert not (tmp / "n").exists() and other.command("query-block-exports") == []
        other.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp / "n")}})
        (tmp / "go").touch()
        assert "error" in waits.reply()
        d.stop()


def test_storage_that_hangs_at_the_end(tmp):
    """A command that waits for storage holds up the end, which the log says; it is still answered."""
    with storage_that_hangs(tmp) as (d, waits, other):
        d.process.send_signal(signal.SIGTERM)
        while "a command or job still runs" not in d.log():
            os.sched_yield()
        (tmp / "go").touch()
        assert "error" in waits.reply()
        assert waits.line() is None and other.line() is None
        assert d.wait() == 0


def test_stdio(tmp):
    """A monitor on standard input and output; its end leaves the daemon running."""
    requests = b'{"execute":"qmp_capabilities"}{"execute":"query-version"}{"execute":"quit"}'
    done = subprocess.run([harness.chaind_path, "--chardev", "stdio,id=s", "--monitor", "s",
                           str(image(tmp / "a.qcow2"))], input=requests, timeout=harness.HANG,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["QMP" in lines[0], *("return" in line for line in lines[1:4])] == [True] * 4, lines
    says(fails("--chardev", "stdio,id=s", "--monitor", "s", "--daemonize"), "stdio", "--daemonize")


def test_descriptors(tmp):
    """Monitors on sockets that the process was started with, listening and connected; and one that
    connects by itself."""
    listening, (ours, theirs) = socket.socket(socket.AF_UNIX), socket.socketpair()
    listening.bind(str(tmp / "l"))
    listening.listen()
    called = socket.socket(socket.AF_UNIX)
    called.bind(str(tmp / "c"))
    called.listen()
    args = []
    for i, backend in enumerate((f"fd={listening.fileno()},server=on", f"fd={theirs.fileno()}",
                                 f"path={tmp}/c")):
        args += ["--monitor", f"m{i}", "--chardev", f"socket,id=m{i},{backend}"]
    with Daemon(*args, pass_fds=(listening.fileno(), theirs.fileno())):
        theirs.close()
        for q in Qmp(tmp / "l"), Qmp(sock=ours), Qmp(sock=called.accept()[0]):
            q.command("query-version")
    assert (tmp / "l").exists(), "a socket that somebody else made was removed"


def test_tcp(tmp):
    """Monitors on TCP: several, each with several clients, on loopback addresses only."""
    args = []
    for i, host in enumerate(("127.0.0.1", "localhost")):
        args += ["--chardev", f"socket,id=t{i},host={host},port=0,server=on,wait=off",
                 "--monitor", f"chardev=t{i},mode=control"]
    with Daemon("--qmp", tmp / "q", *args):
        q = Qmp(tmp / "q")
        names = {c["label"]: c["filename"] for c in q.command("query-chardev")}
        assert sorted(names) == ["t0", "t1"], names
        clients = []
        for name in names.values():
            assert name.startswith("disconnected:tcp:") and name.endswith(",server=on"), names
            address = name.split(",")[0].split(":")[2:]
            clients += [Qmp(sock=socket.create_connection(address)) for _ in range(2)]
        for client in clients:
            client.command("query-version")
        assert all(c["frontend-open"] for c in q.command("query-chardev"))
        clients[0].command("blockdev-add", driver="null-co", node_name="n")
        clients[3].command("blockdev-del", node_name="n")
        taken = q.command("query-chardev")[0]["filename"].split(",")[0].split(":")[2]
        says(fails("--chardev", f"socket,id=t,host=127.0.0.1,port={taken},server=on", "--monitor",
                   "t"), "Address already in use")
    for host in "0.0.0.0", "::", "192.0.2.1":
        says(fails("--chardev", f"socket,id=t,host={host},port=0,server=on", "--monitor", "t"),
             host, "no loopback address")
    says(fails("--chardev", "socket,id=t,host=localhost,port=65536,server=on", "--monitor", "t"),
         "65536", "no port")


def test_descriptors_of_others(tmp):
    """A number that a client or an option gives is a descriptor of its own, once, or is refused."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp / "l"))
    listening.listen()
    ours, theirs = socket.socketpair()
    fd = listening.fileno()
    args = ["--qmp", tmp / "q", "--chardev", f"socket,id=m,fd={fd},server=on", "--monitor", "m"]
    with Daemon(*args, image(tmp / "a.qcow2"), pass_fds=(fd, theirs.fileno())) as d:
        q = Qmp(tmp / "q")
        q.command("nbd-server-stop")
        for number in range(200):  # the image, the sockets and loops of the daemon, and what is not
            sentence = q.error("nbd-server-start", addr={"type": "fd", "data": {"str": str(number)}})
            assert sentence in (
                f"File descriptor '{number}' is not a socket",
                f"File descriptor '{number}' is in use, or is none that the process was started with",
                f"descriptor {number} is not a listening stream socket"), sentence
        Qmp(tmp / "l").command("query-named-block-nodes")
        assert d.process.poll() is None

    def refusal(*words):
        done = run(harness.chaind_path, *words, check=False, pass_fds=(fd, theirs.fileno()))
        assert done.returncode == 1, done
        return done.stderr
    says(refusal(*args, "--chardev", f"socket,id=n,fd={fd},server=on"), "is in use")
    says(refusal("--chardev", f"socket,id=m,fd={theirs.fileno()},server=on"),
         "not a listening socket")


def test_daemonize(tmp):
    """--daemonize returns when all is served, --pidfile names the process; failures are told."""
    disk, pid_file = image(tmp / "a.qcow2"), tmp / "p"
    args = ("--daemonize", "--pidfile", pid_file, "--qmp", tmp / "q", "--nbd", tmp / "n")
    run(harness.chaind_path, *args, disk)
    pid = int(pid_file.read_text())
    q = Qmp(tmp / "q")
    run("nbdinfo", "--size", f"nbd+unix:///?socket={tmp}/n")
    second = run(harness.chaind_path, "--pidfile", pid_file, "--qmp", tmp / "q2", check=False)
    assert second.returncode == 1
    says(second.stderr, "PID file", "another process")
    q.command("quit")
    assert q.line() is None or q.line() is None
    while os.path.exists(f"/proc/{pid}") and pid_file.exists():
        os.sched_yield()
    assert not pid_file.exists()
    done = run(harness.chaind_path, *args, tmp / "nope", check=False)
    assert done.returncode == 1 and "nope" in done.stderr, done
    assert not pid_file.exists()


def test_qemu_qmp(tmp):
    """python's qemu.qmp talks to it, if it is there."""
    try:
        import asyncio
        from qemu.qmp import QMPClient
    except ImportError:
        raise harness.Skip("python's qemu.qmp is not installed") from None

    async def talk():
        client = QMPClient("test")
        await client.connect(str(tmp / "q"))
        version = await client.execute("query-version")
        await client.disconnect()
        return version

    with Daemon("--qmp", tmp / "q"):
        assert "qemu" in asyncio.run(talk())


main(globals())

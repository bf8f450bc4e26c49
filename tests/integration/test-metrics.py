#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics: the text is checked by the rules of Prometheus' format, and its numbers against QMP's."""
import contextlib
import http.client
import math
import os
import re
import socket
import threading
import time

import nbd

import harness
from harness import HANG, MIB, Daemon, connect, main, run, says
from qmp_client import Qmp
from state import Guest, Service

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
HEAD = re.compile(rf"# (HELP|TYPE) ({NAME}) (.*)")
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
PARTS = ("_bucket", "_sum", "_count")
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def labels_of(text):
    labels, at = {}, 0
    while at < len(text):
        match = LABEL.match(text, at)
        assert match, f"labels: {text[at:]!r}"
        name, value = match.groups()
        assert name not in labels, text
        labels[name] = re.sub(r'\\["\\n]', lambda m: ESCAPES[m.group()], value)
        at = match.end()
    return frozenset(labels.items())


class Metrics:
    """The text, checked: each family has its head, HELP and TYPE, before its samples, which stand
    together; no sample is there twice."""

    def __init__(self, text):
        assert text.endswith("\n")
        self.types, self.samples, self.helps = {}, {}, set()
        family = None
        for line in text[:-1].split("\n"):
            head = HEAD.fullmatch(line)
            if head and head[1] == "HELP":
                family = head[2]
                assert family not in self.helps, f"{family} comes again"
                assert not re.search(r"\\(?![\\n])", head[3]), line
                self.helps.add(family)
            elif head:
                assert head[2] == family and family not in self.types, line
                assert head[3] in ("counter", "gauge", "histogram"), line
                self.types[family] = head[3]
            else:
                self.add(family, line)
        for name, kind in self.types.items():
            assert (kind == "counter") == name.endswith("_total"), f"{name} is a {kind}"
            if kind == "histogram":
                self.check_histogram(name)

    def add(self, family, line):
        match = SAMPLE.fullmatch(line)
        assert match, f"not a sample: {line!r}"
        name, labels, value = match[1], labels_of(match[2] or ""), float(match[3])
        of = [family + part for part in PARTS] if self.types[family] == "histogram" else [family]
        assert name in of, f"{line}: in the family {family}"
        assert (name, labels) not in self.samples, f"twice: {line}"
        assert not math.isnan(value) and value >= 0, line
        self.samples[name, labels] = value

    def check_histogram(self, family):
        series = {}
        for (name, labels), value in self.samples.items():
            if name == family + "_bucket":
                le = dict(labels)["le"]
                series.setdefault(labels - {("le", le)}, []).append((float(le), value))
        for labels, buckets in series.items():
            assert buckets == sorted(buckets), f"{family}: {buckets}"
            assert [v for _, v in buckets] == sorted(v for _, v in buckets), "not cumulative"
            assert buckets[-1][0] == math.inf and buckets[-1][1] == self.samples[family + "_count", labels]
            assert (family + "_sum", labels) in self.samples
        counts = [labels for name, labels in self.samples if name == family + "_count"]
        assert len(counts) == len(series)

    def get(self, name, /, **labels):
        """The one sample that has these labels, perhaps among others."""
        found = [v for (n, of), v in self.samples.items() if n == name and labels.items() <= dict(of).items()]
        assert len(found) == 1, f"{name}{labels}: {found}"
        return found[0]

    def counters(self):
        return {key: v for key, v in self.samples.items()
                if key[0].endswith(("_total", *PARTS)) and not key[0].startswith("process_")}


class Connection(http.client.HTTPConnection):
    """HTTP by a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=HANG)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def ask(connection, method="GET", path="/metrics"):
    """Status and text."""
    with contextlib.closing(connection) as c:
        c.request(method, path)
        response = c.getresponse()
        assert response.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
        return response.status, response.read().decode()


def metrics(tmp):
    status, text = ask(Connection(tmp / "m.sock"))
    assert status == 200, text
    return Metrics(text)


def test_under_load(tmp):
    """Counters only grow while guests, a job and commands are at work, and end as QMP tells them"""
    with Service(tmp, "--metrics-listen", tmp / "m.sock") as s:
        for name in ("web", "db"):
            s.command("disk-create", name=name, size=64 * MIB)
        guests = [Guest(s, "web"), Guest(s, "db")]
        was = metrics(tmp).counters()
        for i in range(20):
            s.snapshot("web", f"p{i}")
            now = metrics(tmp)
            for key, value in was.items():
                assert now.counters()[key] >= value, key
            was = now.counters()
        for g in guests:
            g.end()
        while any(e["clients"] or e["in-flight"] for e in s.command("query-export-stats")):
            time.sleep(0.01)
        now = metrics(tmp)
        for export in s.command("query-export-stats"):
            of = {o["operation"]: o for o in export["operations"]}
            names = {"read": "read", "write": "written", "trim": "trimmed", "write-zeroes": "zeroed"}
            for operation, word in names.items():
                assert now.get(f"chaind_export_{word}_bytes_total", export=export["id"]) == \
                    of.get(operation, {"bytes": 0})["bytes"], (operation, export)
            for operation, o in of.items():
                labels = {"export": export["id"], "operation": operation}
                assert now.get("chaind_export_requests_total", **labels) == o["requests"]
                assert now.get("chaind_export_request_duration_seconds_count", **labels) == \
                    sum(o["latencies"])
                # The sum lies in the classes that were counted.
                low = sum(n * 2 ** (i - 1) for i, n in enumerate(o["latencies"]) if i) / 1e6
                high = sum(n * 2 ** i for i, n in enumerate(o["latencies"])) / 1e6
                total = now.get("chaind_export_request_duration_seconds_sum", **labels)
                assert low <= total <= high, (low, total, high)
        assert now.get("chaind_disk_layers", disk="web") == 21 and now.get("chaind_disk_points", disk="web") == 20
        assert now.get("chaind_disk_size_bytes", disk="db") == 64 * MIB
        assert now.get("chaind_disk_open", disk="db") == 1
        assert now.get("chaind_build_info") == 1 and now.get("process_open_fds") > 10
        assert now.get("chaind_thread_cpu_seconds_total", thread="control-0") >= 0
        for thread in (f"loop-{i}" for i in range(os.cpu_count())):
            turns, sleeps = (now.get(f"chaind_loop_{n}_total", thread=thread) for n in ("turns", "sleeps"))
            assert turns >= sleeps > 0, (thread, turns, sleeps)
            assert now.get("chaind_loop_requests_in_flight", thread=thread) == 0
        assert 0 < now.get("chaind_map_memory_bytes", use="tables") <= now.get("chaind_map_memory_limit_bytes")


def test_jobs_and_limits(tmp):
    """A job and limits are there while they are there"""
    with Service(tmp, "--metrics-listen", tmp / "m.sock") as s:
        s.command("disk-create", name="web", size=64 * MIB)
        h = s.connect("web")
        h.pwrite(b"x" * 8 * MIB, 0)
        h.shutdown()
        node = s.disk("web")["node-name"]
        s.command("drive-backup", job_id="b", device=node, target=str(tmp / "copy"), sync="full",
                  format="qcow2", speed=65536)
        s.qmp.send({"execute": "block_set_io_throttle", "arguments": {
            "id": "web", "bps": 0, "bps_rd": 5000, "bps_wr": 0, "iops": 70, "iops_rd": 0, "iops_wr": 0}})
        assert s.qmp.reply() == {"return": {}}
        m = metrics(tmp)
        assert m.get("chaind_job_status", job="b", type="backup", status="running") == 1
        assert 0 < m.get("chaind_job_done_bytes", job="b") < m.get("chaind_job_length_bytes", job="b")
        assert m.get("chaind_export_limit_bytes_per_second", export="web", direction="read") == 5000
        assert m.get("chaind_export_limit_requests_per_second", export="web") == 70
        s.command("job-cancel", id="b")
        s.idle()
        assert not [key for key in metrics(tmp).samples if key[0].startswith("chaind_job_")]


def test_lookups(tmp):
    """What is read first is a miss, and then hits, in tables and in maps; disks that go take none away"""
    with Service(tmp, "--metrics-listen", tmp / "m.sock") as s:
        s.command("disk-create", name="web", size=64 * MIB)
        s.snapshot("web", "p")

        def lookups():
            m = metrics(tmp)
            return [m.get(f"chaind_map_memory_{what}_total", use=use)
                    for use in ("tables", "maps") for what in ("misses", "hits")]
        h = s.connect("web")
        h.pwrite(b"x" * MIB, 0)
        h.pread(MIB, 8 * MIB)
        first = lookups()
        assert min(first) > 0, first
        for _ in range(50):
            h.pread(4096, 0)
            h.pread(4096, 8 * MIB)
        again = lookups()
        assert [again[0], again[2]] == [first[0], first[2]], (first, again)
        assert again[1] >= first[1] + 50 and again[3] >= first[3] + 50, (first, again)
        h.shutdown()
        s.command("disk-remove", name="web")
        assert all(now >= was for now, was in zip(lookups(), again))


def test_in_flight(tmp):
    """A loop tells of requests that it executes"""
    d = Daemon("--qmp", tmp / "qmp", "--metrics-listen", tmp / "m.sock", "--loops", "1",
               "--nbd-server", f"addr.type=unix,addr.path={tmp}/nbd")
    try:
        q = Qmp(tmp / "qmp")
        q.command("blockdev-add", driver="null-co", node_name="n", size=MIB, latency_ns=10 ** 12)
        q.command("block-export-add", type="nbd", id="e", node_name="n", name="e", writable=True)
        h = connect(f"nbd+unix:///e?socket={tmp}/nbd")
        for i in range(3):
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(512)), 512 * i)
        end = time.monotonic() + HANG
        while metrics(tmp).get("chaind_loop_requests_in_flight", thread="loop-0") != 3:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert metrics(tmp).get("chaind_loop_requests_in_flight", thread="control-0") == 0
    finally:
        d.kill()


def test_odd_names(tmp):
    """Whatever exports are called, the text can be read, and tells their names"""
    odd = ['we"ird', "back\\slash", "new\nline", "ü { } = ,", "", "\\n", 'a"} 1']
    with Daemon("--qmp", tmp / "qmp", "--metrics-listen", tmp / "m.sock",
                "--nbd-server", f"addr.type=unix,addr.path={tmp}/nbd") as d:
        q = Qmp(tmp / "qmp")
        q.command("blockdev-add", driver="null-co", node_name="n", size=MIB)
        for i, name in enumerate(odd):
            q.command("block-export-add", type="nbd", id=f"e{i}", node_name="n", name=name)
        m = metrics(tmp)
        for i, name in enumerate(odd):
            assert m.get("chaind_export_size_bytes", export=f"e{i}", name=name) == MIB
        d.stop()


def test_file(tmp):
    """The file is there whole or not at all, is written anew, and goes with the daemon"""
    path = tmp / "chaind.prom"
    with Service(tmp, "--metrics", path, "--metrics-interval", "1") as s:
        s.command("disk-create", name="web", size=MIB)
        while not path.exists():
            time.sleep(0.01)
        seen, end = set(), time.monotonic() + HANG
        while len(seen) < 3 and time.monotonic() < end:
            text = path.read_text()
            Metrics(text)
            seen.add(text)
        assert len(seen) == 3
        assert {p.name for p in tmp.iterdir() if "prom" in p.name} <= {path.name, path.name + ".tmp"}
    assert not path.exists() and not (tmp / "chaind.prom.tmp").exists()
    with Service(tmp, "--metrics", tmp / "no/where.prom", "--metrics-interval", "1") as s:
        time.sleep(2.5)
        log = [line for line in s.log().splitlines() if "metrics" in line]
        assert len(log) == 1 and "No such file" in log[0], log
        (tmp / "no").mkdir()
        while not (tmp / "no/where.prom").exists():
            time.sleep(0.01)


def test_http(tmp):
    """Other requests are refused, and clients that stay silent hold up nobody"""
    with Daemon("--qmp", tmp / "qmp", "--metrics-listen", tmp / "m.sock"):
        def new():
            return Connection(tmp / "m.sock")
        assert ask(new())[0] == ask(new(), path="/metrics?x=1")[0] == 200
        assert ask(new(), path="/")[0] == ask(new(), path="/metrics2")[0] == 404
        assert ask(new(), method="POST")[0] == 405
        silent = [new() for _ in range(3)]
        for c in silent:
            c.connect()
            c.sock.sendall(b"GET /met")
        for garbage in (b"\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics HTTP/1.1 x\r\n\r\n"):
            c = new()
            c.connect()
            c.sock.sendall(garbage)
            assert c.sock.recv(100).startswith(b"HTTP/1.1 400 "), garbage
            c.close()
        long = new()
        long.connect()
        with contextlib.suppress(OSError):
            long.sock.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 10000 + b"\r\n\r\n")
            assert long.sock.recv(100) == b""
        done = threading.Thread(target=lambda: [ask(new()) for _ in range(20)])
        done.start()
        done.join(HANG)
        assert not done.is_alive()


def test_addresses(tmp):
    """By TCP on loopback only"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Daemon("--qmp", tmp / "qmp", "--metrics-listen", f"127.0.0.1:{port}"):
        status, text = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=HANG))
        assert status == 200
        Metrics(text)
    done = run(harness.chaind_path, "--qmp", tmp / "q2", "--metrics-listen", f"0.0.0.0:{port}", check=False)
    assert done.returncode == 1, done
    says(done.stderr, "metrics", "loopback")


if __name__ == "__main__":
    main(globals())

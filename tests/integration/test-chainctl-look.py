#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""chainctl's maps, live figures and findings, and the verbs that move data, against qemu-img."""
import contextlib
import json
import os
import re
import shutil
import threading
import xml.etree.ElementTree

import chainctl
from chainctl import Terminal, daemon, plain
from harness import HANG, KIB, MIB, check_image, main, qemu_img, qemu_io, run, same_content, says
from qmp_client import Qmp

SIZE = 256 * MIB
PART = 4 * MIB  # what a word of cells of 64 KiB covers


def make_chain(tmp):
    """base ← mon ← web: 64 MiB of ones, 32 MiB of twos over the middle of them, a few threes."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base", SIZE)
    qemu_io(tmp / "base", f"write -P 1 0 {64 * MIB}")
    for below, name in (("base", "mon"), ("mon", "web")):
        qemu_img("create", "-q", "-f", "qcow2", "-b", tmp / below, "-F", "qcow2", tmp / name)
    qemu_io(tmp / "mon", f"write -P 2 {16 * MIB} {32 * MIB}", f"write -z {48 * MIB} {4 * MIB}")
    qemu_io(tmp / "web", f"write -P 3 {40 * MIB} {2 * MIB}", f"write -P 3 {200 * MIB} {64 * KIB}")


@contextlib.contextmanager
def served(tmp):
    make_chain(tmp)
    with daemon(tmp, f"web={tmp}/web") as (running, tool):
        yield running, tool


def shown_by_depth(image):
    """Of each layer, from the top: what of it qemu-img map sees, as {part: bytes}."""
    found = {}
    for extent in json.loads(qemu_img("map", "--output=json", "-U", image)):
        if not extent["data"]:
            continue
        off, end = extent["start"], extent["start"] + extent["length"]
        while off < end:
            stop = min(end, (off // PART + 1) * PART)
            parts = found.setdefault(extent["depth"], {})
            parts[off // PART] = parts.get(off // PART, 0) + stop - off
            off = stop
    return found


# -- maps -----------------------------------------------------------------------------------------

def test_map(tmp):
    """a map says of each part which layer owns what, as qemu-img map does"""
    with served(tmp) as (_, tool):
        found = tool.json("map", "web", "--parts", "64")
        assert set(found) == {"name", "size", "part-size", "layers"}, found.keys()
        assert (found["name"], found["size"], found["part-size"]) == ("web", SIZE, PART), found
        expected = shown_by_depth(tmp / "web")
        for depth, layer in enumerate(found["layers"]):
            assert set(layer) == {"node", "title", "filename", "data", "shown", "parts"}, layer.keys()
            parts = {i: n for i, n in enumerate(layer["parts"]) if n}
            assert parts == expected[depth], f"{layer['title']}: {parts}, not {expected[depth]}"
            assert layer["shown"] == sum(layer["parts"]) <= layer["data"], layer
        assert [layer["data"] for layer in found["layers"]] == [2 * MIB + 64 * KIB, 32 * MIB, 64 * MIB]


def test_map_in_a_terminal(tmp):
    """in a terminal it is a row for each layer that fits, dark where the layer is seen"""
    with served(tmp) as (_, tool):
        for columns in (60, 120):
            lines = plain(Terminal(tool, "map", "web", columns=columns).wait()).splitlines()
            assert all(len(line) <= columns for line in lines), lines
            head, mon, base = [re.search("▕(.*)▏", line)[1] for line in lines[1:4]]
            assert len(head) == len(mon) == len(base) > 10, lines
            middle = 24 * len(mon) // 256  # of MiB
            assert head[middle] == base[middle] == "·" and mon[middle] in "▓█", lines
            assert base[0] == "█" and base[-1] == "·", lines
        says(lines[-1], "0", "128 MiB", "256 MiB")


def test_page(tmp):
    """the page is one file with one picture, that is well-formed and refers to nothing else"""
    with served(tmp) as (_, tool):
        tool.run("map", "web", f"--html={tmp}/web.html")
        page = (tmp / "web.html").read_text("utf-8")
        assert page == tool.out("map", "web", "--html=-")
        assert page.startswith("<!DOCTYPE html>")
        assert not re.search(r"<script|<link|@import|url\(|src=|href=", page), "it refers to something"
        svg = xml.etree.ElementTree.fromstring(re.search(r"<svg.*</svg>", page, re.S)[0])
        name = "{http://www.w3.org/2000/svg}"
        layers = svg.findall(f"{name}g")
        assert len(layers) == 3
        width = float(svg.get("width"))
        for layer, share in zip(layers, (2 / 256, 30 / 256, 28 / 256)):
            ground, *rects = layer.findall(f"{name}rect")
            x, scale = float(ground.get("x")), float(ground.get("width"))
            assert rects and all(x <= float(r.get("x")) and
                                 float(r.get("x")) + float(r.get("width")) <= width for r in rects)
            dark = sum(float(r.get("width")) * (int(r.get("fill-opacity")[:-1]) - 20) / 80 for r in rects)
            assert abs(dark / scale - share) < 0.02, f"{dark / scale}, not {share}"
        photograph(tmp / "web.html", tmp / "web.png")


def photograph(page, picture):
    """Where there is a browser, it shows more than one colour."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        print("# no browser: the picture is checked as text only")
        return
    run(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}",
        "--window-size=1400,400", f"file://{page}")
    assert picture.stat().st_size > 5000, "the page looks empty"


# -- figures --------------------------------------------------------------------------------------

def test_top(tmp):
    """top counts what clients do in an interval, and how long it takes"""
    import nbd
    with served(tmp) as (_, tool):
        h = nbd.NBD()
        h.connect_uri(tool.json("info", "web")["uris"][0])
        is_over = threading.Event()

        def guest():
            while not is_over.is_set():
                h.pread(64 * KIB, 0)
        thread = threading.Thread(target=guest)
        thread.start()
        sample = json.loads(tool.out("top", "-n", "1", "-d", "0.5", "--output=json"))
        is_over.set()
        thread.join()
        row, = sample["disks"]
        assert set(sample) == {"seconds", "disks", "jobs"}, sample
        assert set(row) == {"name", "reads", "writes", "read-rate", "write-rate", "read-p50", "read-p99",
                            "write-p50", "write-p99", "flush-p99", "in-flight", "clients", "errors", "limit"}, row
        assert row["reads"] > 0 and abs(row["read-rate"] / row["reads"] / (64 * KIB) - 1) < 0.01, row
        assert 0 < row["read-p50"] <= row["read-p99"] and row["write-p50"] is None, row
        assert row["writes"] == 0 and row["clients"] == 1, row
        idle = json.loads(tool.out("top", "web", "-n", "1", "-d", "0.1", "--output=json"))
        assert idle["disks"][0]["reads"] == 0 and idle["disks"][0]["read-p99"] is None, idle
        says(tool.out("top", "-n", "1", "-d", "0.1"), "READ/s", "R p99", "web")
        h.shutdown()


# -- findings -------------------------------------------------------------------------------------

def kinds(tool, *args, status=0):
    done = tool.run("doctor", *args, "--output=json", status=status)
    findings = json.loads(done.stdout)
    for finding in findings:
        assert set(finding) == {"disk", "kind", "severity", "problem", "remedy"}, finding
    return [finding["kind"] for finding in findings]


def test_healthy(tmp):
    """of what is well the doctor says so"""
    with served(tmp) as (_, tool):
        assert kinds(tool, "--check") == []
        assert tool.out("doctor") == "nothing is wrong\n"


def test_missing(tmp):
    """a layer that was removed, or replaced, while it is used is told"""
    with served(tmp) as (_, tool):
        os.rename(tmp / "base", tmp / "elsewhere")
        assert kinds(tool, status=1) == ["missing"]
        shutil.copy(tmp / "elsewhere", tmp / "base")
        assert kinds(tool, status=1) == ["missing"]
        os.rename(tmp / "elsewhere", tmp / "base")
        assert kinds(tool) == []


def test_changed(tmp):
    """a layer that another program has changed is told"""
    with served(tmp) as (_, tool):
        with open(tmp / "base", "r+b") as f:
            f.truncate(os.path.getsize(tmp / "base") + MIB)
        assert kinds(tool, status=1) == ["changed"]


def test_leaks(tmp):
    """leaked clusters of a layer are counted when a check is asked for"""
    make_chain(tmp)
    # A reference more in the refcount block than anything uses, for a cluster past the end.
    with open(tmp / "base", "r+b") as f:
        f.seek(48)
        table = int.from_bytes(f.read(8), "big")
        f.seek(table)
        block = int.from_bytes(f.read(8), "big")
        n = os.path.getsize(tmp / "base") // (64 * KIB)
        f.seek(block + 2 * (n + 1))
        f.write(b"\0\1")
        f.truncate((n + 2) * 64 * KIB)
    with daemon(tmp, f"web={tmp}/web") as (_, tool):
        assert kinds(tool) == []
        assert kinds(tool, "--check") == ["leaks"]
        finding, = json.loads(tool.out("doctor", "-c", "--output=json"))
        says(finding["remedy"], "qemu-img check -r leaks", tmp / "base")
    remedy = finding["remedy"].split(": ", 1)[1].split()
    run(*remedy[:4], remedy[4].strip("'"))
    with daemon(tmp, f"web={tmp}/web") as (_, tool):
        assert kinds(tool, "--check") == [], "the command that was told mends it"


def test_bitmaps(tmp):
    """a bitmap that a crash has left in use is told, and removed on request"""
    make_chain(tmp)
    qemu_img("bitmap", "--add", "--enable", tmp / "web", "b")
    with daemon(tmp, f"web={tmp}/web") as (running, tool):
        assert kinds(tool) == []
        qemu_io(tool.json("info", "web")["uris"][0], "write 0 64k", "flush", fmt="raw")
        running.kill()
        os.remove(tmp / "control.sock")
        running.process.returncode = 0
    with daemon(tmp, f"web={tmp}/web") as (_, tool):
        assert kinds(tool) == ["bitmap"]
        says(tool.out("tree"), "bitmap b", "inconsistent")
        assert kinds(tool, "web", "--mend") == []
        assert kinds(tool) == []


# -- moving data ----------------------------------------------------------------------------------

def test_backup(tmp):
    """backup copies what the disk shows, waits for it, and leaves nothing behind"""
    with served(tmp) as (_, tool):
        tool.run("backup", "web", tmp / "copy.qcow2", "--verify")
        assert tool.json("jobs") == []
        qemu_img("compare", "-U", tmp / "web", tmp / "copy.qcow2")
        check_image(tmp / "copy.qcow2")
        says(tool.fails("backup", "nope", tmp / "x", status=5), "nope")


def test_flatten(tmp):
    """flatten takes the layers below out of the chain, and the content stays"""
    with served(tmp) as (_, tool):
        before = qemu_img("convert", "-U", "-O", "raw", tmp / "web", tmp / "before")
        result = tool.json("flatten", "web")
        assert result["result"] == "completed" and result["type"] == "stream", result
        assert [layer["title"] for layer in tool.json("map", "web")["layers"]] == ["head"], before
    same_content(tmp / "web", tmp / "before")


def test_commit(tmp):
    """commit merges the head into the layer below, and the disk goes on with that"""
    with served(tmp) as (_, tool):
        qemu_img("convert", "-U", "-O", "raw", tmp / "web", tmp / "before")
        tool.run("commit", "web")
        assert [layer["filename"] for layer in tool.json("ls")[0]["layers"]] == [
            str(tmp / "mon"), str(tmp / "base")]
    same_content(tmp / "mon", tmp / "before")


def test_mirror(tmp):
    """mirror moves the disk to another file while a client is connected"""
    with served(tmp) as (_, tool):
        qemu_img("convert", "-U", "-O", "raw", tmp / "web", tmp / "before")
        tool.run("mirror", "web", tmp / "new.qcow2")
        assert [layer["filename"] for layer in tool.json("ls")[0]["layers"]] == [str(tmp / "new.qcow2")]
    same_content(tmp / "new.qcow2", tmp / "before")


def test_async(tmp):
    """with --async the id is printed, and the job goes on"""
    with served(tmp) as (_, tool):
        job = tool.out("flatten", "web", "--async", "--speed", "8M").strip()
        assert [row["id"] for row in tool.json("jobs")] == [job]
        Qmp(tmp / "control.sock").command("block-job-set-speed", device=job, speed=0)
        tool.run("wait", job)


def test_latency_in_progress(tmp):
    """the progress line says by how much the guest's latency has changed"""
    import nbd
    with served(tmp) as (_, tool):
        h = nbd.NBD()
        h.connect_uri(tool.json("info", "web")["uris"][0])
        for _ in range(200):
            h.pread(4 * KIB, 0)
        terminal = Terminal(tool, "flatten", "web", "--speed", "8M")
        terminal.read_until("ETA")
        for _ in range(200):
            h.pread(4 * KIB, 0)
        terminal.read_until(r"guest p99 [+-][\d.]+ [um]s")
        terminal.type("\x03")
        says(terminal.wait(130), "still running as job flatten-1.")
        Qmp(tmp / "control.sock").command("block-job-set-speed", device="flatten-1", speed=0)
        tool.run("wait", "flatten-1")
        h.shutdown()


main(globals())

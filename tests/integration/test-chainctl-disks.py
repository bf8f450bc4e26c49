#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""chainctl with disks that the daemon remembers: the verbs, the lines of README.md and of chainctl(1)."""
import contextlib
import json
import os
import pathlib
import re
import shlex
import subprocess

import chainctl
from disks import file_system, used_bytes
from chainctl import Terminal, Tool
from harness import KIB, MIB, ROOT, Daemon, connect, main, qemu_img, qemu_io, run, says

PAGE = ROOT / "docs/chainctl.pod"


@contextlib.contextmanager
def remembering(tmp):
    with Daemon("--state", tmp / "state", "--qmp", tmp / "control.sock", "--nbd", tmp / "nbd.sock",
                cwd=tmp) as running:
        yield running, Tool(tmp / "control.sock")


def write(uri, pattern, offset=0):
    h = connect(uri)
    h.pwrite(bytes([pattern]) * 64 * KIB, offset)
    h.flush()
    h.shutdown()


def read(uri, offset=0):
    h = connect(uri)
    data = set(h.pread(64 * KIB, offset))
    h.shutdown()
    assert len(data) == 1, data
    return data.pop()


def test_create(tmp):
    """create makes a disk, prints its URI, and it is there after a restart"""
    with remembering(tmp) as (_, tool):
        uri = tool.out("create", "web", "64M").strip()
        write(uri, 7)
        says(tool.fails("create", "web", "64M", status=1), "web")
        tool.run("create", "db", "1G", tmp / "db.qcow2", "--no-export")
        assert os.path.exists(tmp / "db.qcow2") and tool.json("info", "db")["uris"] == []
    with remembering(tmp) as (_, tool):
        web, db = sorted(tool.json("ls"), key=lambda disk: disk["name"], reverse=True)
        assert (web["name"], web["size"], web["is-remembered"]) == ("web", 64 * MIB, True), web
        assert (db["name"], db["size"]) == ("db", 1 << 30), db
        assert read(web["uris"][0]) == 7
        assert tool.json("status")["disks"] == 2


def test_add(tmp):
    """add takes a chain by a relative name, and remove forgets it and leaves its files"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base.qcow2", 64 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp / "web.qcow2", cwd=tmp)
    with remembering(tmp) as (_, tool):
        done = run(chainctl.path, "add", "web", "web.qcow2", env=tool.env, cwd=tmp)
        assert done.stdout.startswith("nbd+unix:///web?"), done.stdout
        assert [layer["filename"] for layer in tool.json("info", "web")["layers"]] == [
            str(tmp / "web.qcow2"), str(tmp / "base.qcow2")]
        tool.run("remove", "web")
        assert tool.json("ls") == []
        assert (tmp / "web.qcow2").exists() and (tmp / "base.qcow2").exists()


def test_points(tmp):
    """snapshot keeps what a disk shows, under a name that tree, export and completion know"""
    with remembering(tmp) as (_, tool):
        uri = tool.out("create", "web", "64M").strip()
        write(uri, 1)
        tool.run("snapshot", "web@mon")
        write(uri, 2)
        disk = tool.json("info", "web")
        assert [layer["point"] for layer in disk["layers"]] == [None, "mon"], disk
        assert [point["name"] for point in disk["points"]] == ["mon"], disk
        says(tool.out("tree", "web"), "├─ head", "└─ @mon")
        old = tool.out("export", "web@mon").strip()
        assert (read(uri), read(old)) == (2, 1)
        assert [disk["name"] for disk in tool.json("ls")] == ["web"], "an export of a point is no disk"
        assert tool.out("complete", "--", "export", "w").splitlines() == ["web", "web@mon"]
        tool.run("export", "web@mon", "--stop")
        says(tool.fails("snapshot", "web@mon", status=1), "mon")
        says(tool.fails("snapshot", "web", status=2), "DISK@POINT")


def test_several_at_once(tmp):
    """snapshots of several disks are all made, or none"""
    with remembering(tmp) as (_, tool):
        for name in ("a", "b"):
            tool.run("create", name, "64M")
        tool.run("snapshot", "a@1", "b@1")
        tool.fails("snapshot", "a@2", "nope@2", status=5)
        assert [[p["name"] for p in disk["points"]] for disk in tool.json("ls")] == [["1"], ["1"]]


def three_points(tool):
    """web with points mon (4 pieces of ones) and tue (a piece of twos), and a piece of threes since."""
    uri = tool.out("create", "web", "64M").strip()
    for n in range(4):
        write(uri, 1, n * MIB)
    tool.run("snapshot", "web@mon")
    write(uri, 2)
    tool.run("snapshot", "web@tue")
    write(uri, 3, MIB)
    return uri


def test_plan(tmp):
    """delete --dry-run says what each way would copy, need and free, and changes nothing"""
    with remembering(tmp) as (_, tool):
        three_points(tool)
        before = tool.json("info", "web")["layers"]
        ways = tool.json("delete", "web@mon", "--dry-run")
        assert all({"way", "is-chosen", "copy", "space", "freed"} <= set(way) for way in ways), ways
        assert {way["way"]: (way["copy"], way["is-chosen"]) for way in ways} == {
            "commit": (64 * KIB, True), "stream": (192 * KIB, False)}, ways
        says(tool.out("delete", "web@mon", "--dry-run"), "commit", "stream", "64 KiB", "192 KiB")
        assert tool.json("info", "web")["layers"] == before
        says(tool.fails("delete", "web@wed", "--dry-run", status=5), "wed")
        says(tool.fails("delete", "nope@mon", "--dry-run", status=5), "nope")


def test_delete(tmp):
    """delete takes a point in time away, live, by either way, and the disk shows what it did"""
    with remembering(tmp) as (_, tool):
        uri = three_points(tool)
        for way, point in (("commit", "mon"), ("stream", "tue")):
            tool.run("delete", f"web@{point}", f"--way={way}")
            assert point not in [p["name"] for p in tool.json("info", "web")["points"]]
            assert (read(uri), read(uri, MIB), read(uri, 2 * MIB)) == (2, 3, 1)
        assert len(tool.json("info", "web")["layers"]) == 1
        assert tool.json("doctor") == []
        history = tool.json("jobs", "--history")
        assert [(job["disk"], job["result"]) for job in history] == [("web", "ok")] * 2, history
        tool.run("wait", history[0]["id"])
        says(tool.fails("delete", "web@mon", status=5), "mon")


def test_detach(tmp):
    """a delete shows what it does, goes on after Ctrl-C, and can be waited for by the name that was told"""
    with remembering(tmp) as (_, tool):
        uri = tool.out("create", "web", "64M").strip()
        for n in range(16):
            write(uri, 1, n * MIB)
        tool.run("snapshot", "web@mon")
        tool.run("snapshot", "web@tue")
        for n in range(8):
            write(uri, 2, n * MIB)
        terminal = Terminal(tool, "delete", "web@tue", "--way=stream", "--speed", "100k")
        terminal.wait()  # nothing to copy
        terminal = Terminal(tool, "delete", "web@mon", "--way=stream", "--speed", "100k")
        terminal.read_until(r"web → delete mon  \S*[█░]+\S*  +\d+%  [\d.]+/\d+ KiB")
        terminal.type("\x03")
        text = terminal.wait(130)
        job = re.search(r"still running as job (\S+)\.   chainctl wait \1  \|  chainctl cancel \1", text)[1]
        assert [row["id"] for row in tool.json("jobs")] == [job]
        assert tool.json("info", "web")["jobs"] == [job]
        tool.run("cancel", job)
        says(tool.fails("wait", job, status=1), "cancelled")
        assert [p["name"] for p in tool.json("info", "web")["points"]] == ["mon"]


def test_rollback(tmp):
    """rollback takes a disk back, keeps what it showed as a point, and leaves no client on it"""
    with remembering(tmp) as (_, tool):
        uri = three_points(tool)
        client = connect(uri)
        says(tool.fails("rollback", "web@mon", status=6), "client")
        client.shutdown()
        tool.run("rollback", "web@mon", "--keep-as", "mistake")
        assert (read(uri), read(uri, MIB)) == (1, 1)
        assert {"mon", "tue", "mistake"} == {p["name"] for p in tool.json("info", "web")["points"]}
        old = tool.out("export", "web@mistake").strip()
        assert (read(old), read(old, MIB)) == (2, 3)
        tool.run("export", "web@mistake", "--stop")
        assert tool.json("doctor") == [], "files of points beside the chain are no stray ones"


def test_clone(tmp):
    """a clone begins as the point, shares its layers, and its guest changes nothing of the other's"""
    with remembering(tmp) as (_, tool):
        uri = three_points(tool)
        clone = tool.out("clone", "web@mon", "test").strip()
        assert read(clone) == 1
        write(clone, 9)
        assert (read(uri), read(clone)) == (2, 9)
        shared = [layer["shared"] for layer in tool.json("info", "test")["layers"]]
        assert shared == [[], ["web"]], shared
        says(tool.out("tree", "test"), "shared with web")


def test_delete_at_a_branch(tmp):
    """What clones stand on keeps its layer, which goes when one is left"""
    with remembering(tmp) as (_, tool):
        uri = three_points(tool)
        clone = tool.out("clone", "web@mon", "test").strip()
        says(tool.run("delete", "web@mon").stderr, "the point is gone", "stays")
        layers = tool.json("info", "web")["layers"]
        assert [layer["point"] for layer in layers] == [None, "tue", None], layers
        name = f"web@{layers[2]['node']}"
        done = tool.run("delete", name, "--layer", status=1)
        says(done.stderr, "2 layers stand on it")
        tool.run("flatten", "test")
        tool.run("delete", name, "--layer")
        assert [layer["point"] for layer in tool.json("info", "web")["layers"]] == [None, "tue"]
        assert (read(uri), read(uri, MIB), read(clone), read(clone, MIB)) == (2, 3, 1, 1)


def test_backup(tmp):
    """backup remembers a checkpoint, and --since last copies only what has changed, over the first"""
    with remembering(tmp) as (_, tool):
        uri = tool.out("create", "web", "64M").strip()
        write(uri, 1)
        write(uri, 1, MIB)
        tool.run("backup", "web", tmp / "1.qcow2")
        write(uri, 2)
        tool.run("backup", "web", tmp / "2.qcow2", "--since", "last")
        assert len(tool.json("info", "web")["checkpoints"]) == 2
        assert b"1.qcow2" in (tmp / "2.qcow2").read_bytes()[:4096], "an image over the first backup"
        h = connect(uri)
        content = bytes(h.pread(2 * MIB, 0))
        h.shutdown()
        run("qemu-img", "convert", "-O", "raw", tmp / "2.qcow2", tmp / "2.raw")
        assert (tmp / "2.raw").read_bytes()[:2 * MIB] == content
        says(tool.fails("backup", "web", tmp / "3.qcow2", "--since", "never", status=5), "never")
        (tmp / "2.qcow2").unlink()
        plan = tool.json("backup", "web", tmp / "3.qcow2", "--since", "last", "--dry-run")
        says(plan["reason"], "2.qcow2", "is not there")
        assert plan["since"] == tool.json("info", "web")["checkpoints"][0]["name"], plan
        says(tool.out("backup", "web", tmp / "3.qcow2", "--since", "last", "-n"), "64 KiB", "is not there")
        assert not (tmp / "3.qcow2").exists()
        done = tool.run("backup", "web", tmp / "3.qcow2", "--since", "last")
        says(done.stderr, "is not there; copying what has changed since", "64 KiB at most")


def test_pull(tmp):
    """pull exports a moment, tells what has changed, and is a checkpoint when it is done"""
    with remembering(tmp) as (_, tool):
        uri = tool.out("create", "web", "64M").strip()
        write(uri, 1)
        done = tool.run("pull", "web", "--checkpoint", "one")
        says(done.stderr, "all is to be read")
        assert tool.json("doctor") == [], "what is needed as long as it is pulled is no stray file"
        write(uri, 2)
        assert read(done.stdout.strip()) == 1
        tool.run("pull", "web", "--done")
        write(uri, 3, MIB)
        done = tool.run("pull", "web", "--since", "last")
        says(done.stderr, "since 'one'", "qemu:dirty-bitmap:changed")
        says(tool.fails("pull", "web", "--done", "--drop", status=2), "exclude")
        tool.run("pull", "web", "--drop")
        says(tool.fails("pull", "web", "--done", status=5), "nobody pulls")
        assert [c["name"] for c in tool.json("info", "web")["checkpoints"]] == ["one"]


def test_reflink(tmp):
    """backup --reflink is a copy of the moment, without space of its own, and says where it cannot be"""
    with file_system(tmp, 512 * MIB, "mkfs.xfs", "-q") as directory, remembering(tmp) as (_, tool):
        uri = tool.out("create", "web", "64M", directory / "web.qcow2").strip()
        for n in range(16):
            write(uri, n + 1, n * MIB)
        run("sync", "-f", directory)
        before = used_bytes(directory)
        tool.run("backup", "web", directory / "copy.qcow2", "--reflink")
        write(uri, 99)
        assert used_bytes(directory) - before < 2 * MIB, used_bytes(directory) - before
        disk = tool.json("info", "web")
        assert not disk["points"] and len(disk["layers"]) == 1, disk
        says(tool.fails("backup", "web", tmp / "x.qcow2", "--reflink", status=1), "reflinks")
        assert not (tmp / "x.qcow2").exists() and not tool.json("info", "web")["points"]
        assert read(uri) == 99
        copy = tool.out("add", "copy", directory / "copy.qcow2").strip()
        assert [read(copy, n * MIB) for n in range(16)] == list(range(1, 17))
        tool.run("remove", "copy")
        tool.run("remove", "web")
        run("qemu-img", "check", directory / "copy.qcow2")


def test_flatten(tmp):
    """flatten shortens a chain; points stay"""
    with remembering(tmp) as (_, tool):
        uri = three_points(tool)
        tool.run("flatten", "web", "--depth", "2")
        assert len(tool.json("info", "web")["layers"]) == 2
        tool.run("flatten", "web")
        assert len(tool.json("info", "web")["layers"]) == 1
        assert (read(uri), read(uri, MIB), read(uri, 2 * MIB)) == (2, 3, 1)


def test_mirror(tmp):
    """mirror moves a disk to another file, and its points stay"""
    (tmp / "new").mkdir()
    with remembering(tmp) as (_, tool):
        uri = three_points(tool)
        old = tool.json("info", "web")["layers"][0]["filename"]
        tool.run("mirror", "web", tmp / "new")
        disk = tool.json("info", "web")
        assert disk["layers"][0]["filename"] == str(tmp / "new/web.qcow2") and len(disk["layers"]) == 1, disk
        assert not os.path.exists(old)
        assert (read(uri), read(uri, MIB), read(uri, 2 * MIB)) == (2, 3, 1)
        says(tool.out("tree", "web"), "mon", "tue")
        tool.run("rollback", "web@mon")
        assert read(uri, MIB) == 1


def test_migrate(tmp):
    """add --migrate brings here what another machine shows"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "old.qcow2", 64 * MIB)
    with Daemon("--nbd", tmp / "far", tmp / "old.qcow2"), remembering(tmp) as (_, tool):
        write(f"nbd+unix:///?socket={tmp}/far", 7)
        (tmp / "dir").mkdir()
        uri = tool.out("add", "web", f"nbd+unix:///?socket={tmp}/far", "-f", "raw", "--migrate",
                       "--directory", tmp / "dir").splitlines()[0]
        assert read(uri) == 7
        layers = tool.json("info", "web")["layers"]
        assert [layer["filename"] for layer in layers] == [str(tmp / "dir/web.qcow2")], layers


def test_commit(tmp):
    """commit merges the head into the layer below it"""
    with remembering(tmp) as (_, tool):
        uri = three_points(tool)
        tool.run("commit", "web")
        disk = tool.json("info", "web")
        assert [layer["point"] for layer in disk["layers"]] == [None, "mon"], disk
        assert (read(uri), read(uri, MIB), read(uri, 2 * MIB)) == (2, 3, 1)


def test_resize(tmp):
    """resize grows a disk, and shrinks it only if that is meant"""
    with remembering(tmp) as (_, tool):
        tool.run("create", "web", "64M")
        tool.run("resize", "web", "128M")
        assert tool.json("info", "web")["size"] == 128 * MIB
        says(tool.fails("resize", "web", "64M", status=2), "--shrink")
        assert tool.json("info", "web")["size"] == 128 * MIB


def test_unreferenced(tmp):
    """the doctor names images in the daemon's folder that no disk has"""
    with remembering(tmp) as (_, tool):
        tool.run("create", "web", "64M")
        assert tool.json("doctor") == []
        qemu_img("create", "-q", "-f", "qcow2", tmp / "state/images/stray.qcow2", MIB)
        finding, = tool.json("doctor")
        assert finding["kind"] == "unreferenced", finding
        says(finding["problem"], "stray.qcow2")
        says(finding["remedy"], f"chainctl add NAME '{tmp}/state/images/stray.qcow2', or rm ")


def test_not_open(tmp):
    """a disk whose layer is missing when the daemon starts is listed, and the doctor says why"""
    with remembering(tmp) as (_, tool):
        tool.run("create", "web", "64M")
        tool.run("create", "db", "64M")
        tool.run("snapshot", "web@mon")
        base = tool.json("info", "web")["layers"][1]["filename"]
    os.rename(base, tmp / "elsewhere")
    with remembering(tmp) as (_, tool):
        disks = {disk["name"]: disk for disk in tool.json("ls")}
        assert disks["db"]["problem"] is None and disks["web"]["problem"], disks
        says(tool.out("ls"), "web", "db")
        says(tool.out("tree", "web"), "not open: ", os.path.basename(base))
        done = tool.run("doctor", "--output=json", status=1)
        assert [(f["disk"], f["kind"]) for f in json.loads(done.stdout)] == [("web", "not-open")], (
            f"a file of a disk that is not open is no stray one: {done.stdout}")
    os.rename(tmp / "elsewhere", base)
    with remembering(tmp) as (_, tool):
        assert tool.json("doctor") == []


# -- documents ------------------------------------------------------------------------------------

def example_lines():
    page = PAGE.read_text("utf-8")
    examples = page.split("=head1 EXAMPLES\n")[1].split("=head1")[0]
    lines = [line.strip() for line in examples.splitlines() if line.startswith("    ")]
    assert len(lines) > 10, lines
    return lines


def test_examples(tmp):
    """the examples of chainctl(1) work, one after the other"""
    with remembering(tmp) as (_, tool):
        env = {**tool.env, "PATH": f"{os.path.dirname(chainctl.path)}:{os.environ['PATH']}"}
        for line in example_lines():
            done = subprocess.run(["bash", "-c", line], env=env, cwd=tmp, text=True, timeout=100,
                                  capture_output=True)
            assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"


def test_readme(tmp):
    """chainctl's lines of README.md work as printed there, one after the other"""
    readme = (ROOT / "README.md").read_text("utf-8").split("## As a service")[0]
    lines = [line.strip() for line in readme.splitlines() if line.startswith("    chainctl ")]
    assert len(lines) > 6, lines
    for folder in ("srv/vm", "mnt/nas"):
        (tmp / folder).mkdir(parents=True)
    qemu_img("create", "-q", "-f", "qcow2", tmp / "srv/vm/db.qcow2", 64 * MIB)
    with remembering(tmp) as (_, tool):
        env = {**tool.env, "PATH": f"{os.path.dirname(chainctl.path)}:{os.environ['PATH']}"}
        for line in lines:
            command = line.replace(" /srv/", f" {tmp}/srv/").replace(" /mnt/", f" {tmp}/mnt/")
            command = re.sub(r"^chainctl top\b", "chainctl top -n 1", command)
            done = subprocess.run(["bash", "-c", command], env=env, cwd=tmp, text=True, timeout=100,
                                  capture_output=True)
            assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"


def test_next_commands(tmp):
    """an error ends with chainctl's command that helps, where there is one, and has no words of QMP"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "l.qcow2", MIB)
    with remembering(tmp) as (_, tool):
        client = connect(tool.out("create", "web", "1M").strip())
        tool.out("snapshot", "web@mon")
        holder = subprocess.Popen(["qemu-io", tmp / "l.qcow2"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        assert b"read 512/512" in holder.stdout.readline() + holder.stdout.readline()
        try:
            for args, status, said in [
                    (("info", "db"), 5, "there is no disk 'db': 'chainctl ls' lists those there are"),
                    (("rollback", "db@mon"), 5,
                     "there is no disk 'db': 'chainctl ls' lists those there are"),
                    (("delete", "web@tue"), 5, "disk 'web' has no point in time 'tue': 'chainctl tree web' "
                                               "shows those there are"),
                    (("cancel", "x"), 5, "Job not found: 'chainctl jobs' lists those there are"),
                    (("add", "l", tmp / "no.qcow2"), 5,
                     f"cannot open {tmp}/no.qcow2: No such file or directory"),
                    (("rollback", "web@mon"), 6,
                     "let them disconnect, or disconnect them with --disconnect: 'chainctl tree' shows "
                     "who uses what"),
            ]:
                text = tool.fails(*args, status=status)
                assert text.rstrip("\n").endswith(said) and "query-" not in text, text
            text = tool.fails("add", "l", tmp / "l.qcow2", status=6)
            assert "qemu-io (pid" in text and "chainctl tree" not in text, text
            says(text, "or look at it with 'chaind --force-share'")
        finally:
            holder.kill()
            holder.wait()
        client.shutdown()


def test_page(tmp):
    """chainctl(1) names every verb and every option of it"""
    tool = Tool(tmp / "nobody.sock")
    page = re.sub(r"[A-Z]<([^<>]*)>", r"\1", PAGE.read_text("utf-8"))
    for verb in (line.split()[0] for line in tool.out().splitlines() if line.startswith("  ")):
        if verb == "help":
            continue
        assert re.search(rf"^=item {verb}( |$)", page, re.M), f"{verb} is not in the page"
        for option in re.findall(r"--([a-z-]+)", tool.out("help", verb).split("\nExamples")[0]):
            assert f"--{option}" in page, f"--{option} of {verb} is not in the page"


def test_bash_completion(tmp):
    """bash completes verbs, live disks and points, and values of options"""
    def complete(line):
        script = (f"source {ROOT}/daemon/ctl/completion/chainctl\n"
                  f"COMP_LINE={shlex.quote(line)}\n"
                  # As readline splits a line: at blanks, and around = and @.
                  f"COMP_WORDS=({' '.join(shlex.quote(w) for w in split(line))})\n"
                  "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n_chainctl\n"
                  'printf "%s\\n" "${COMPREPLY[@]}"')
        env = {**tool.env, "PATH": f"{os.path.dirname(chainctl.path)}:{os.environ['PATH']}"}
        return run("bash", "-c", script, env=env).stdout.split()

    def split(line):
        words = re.findall(r"[=@]+|[^\s=@]+", line)
        return words + [""] if line.endswith(" ") else words
    with remembering(tmp) as (_, tool):
        tool.run("create", "web", "64M")
        tool.run("snapshot", "web@mon")
        assert complete("chainctl snap") == ["snapshot"]
        assert complete("chainctl tree ") == ["web"]
        assert complete("chainctl export web@") == ["mon"], complete("chainctl export web@")
        assert complete("chainctl export web@m") == ["mon"]
        assert complete("chainctl ls --output=j") == ["json", "jsonl"]
        assert complete("chainctl ls --outp") == ["--output="]


main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""chainctl as people and scripts meet it: outputs, errors and exit statuses, jobs and their progress."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import chainctl
from chainctl import Terminal, Tool, daemon, plain
from harness import HANG, MIB, Skip, main, qemu_img, qemu_io, run, says
from qmp_client import Qmp

COMPLETION = pathlib.Path(__file__).resolve().parents[2] / "daemon/ctl/completion"
DISK_KEYS = {"name", "node", "size", "format", "read-only", "clients", "in-flight", "uris", "allocated",
             "exclusive", "bitmaps", "jobs", "layers", "is-remembered", "problem", "points",
             "checkpoints", "limits"}
LAYER_KEYS = {"node", "filename", "format", "size", "allocated", "point", "shared", "snapshots"}


def make_chain(tmp):
    """base ← mon ← web and db, all of 256 MiB."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "base", 256 * MIB)
    qemu_io(tmp / "base", f"write -P 1 0 {128 * MIB}")
    for below, name in (("base", "mon"), ("mon", "web"), ("mon", "db")):
        qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", tmp / name, cwd=tmp)
    qemu_io(tmp / "mon", f"write -P 2 {64 * MIB} {32 * MIB}")


def served(tmp):
    make_chain(tmp)
    return daemon(tmp, "web=web", "db=db")


def stream(tmp, job="j1", device="web", speed=8 * MIB):
    qmp = Qmp(tmp / "control.sock")
    qmp.command("block-stream", device=device, job_id=job, speed=speed)
    return qmp


# -- what it prints -------------------------------------------------------------------------------

def test_ls(tmp):
    """ls has the same content as a table, with tabs, as JSON and as JSON lines"""
    with served(tmp) as (_, tool):
        disks = tool.json("ls")
        assert [d["name"] for d in disks] == ["web", "db"], disks
        for disk in disks:
            assert set(disk) == DISK_KEYS, set(disk) ^ DISK_KEYS
            for layer in disk["layers"]:
                assert set(layer) == LAYER_KEYS, set(layer) ^ LAYER_KEYS
        assert [json.loads(line) for line in tool.out("ls", "--output=jsonl").splitlines()] == disks
        header, *rows = tool.out("ls").splitlines()
        assert header.split() == ["NAME", "SIZE", "ALLOCATED", "FORMAT", "LAYERS", "POINTS", "CLIENTS",
                                  "JOBS", "URI"], header
        assert [row.split()[:3] for row in rows] == [["web", "256", "MiB"], ["db", "256", "MiB"]], rows
        bare = [line.split("\t") for line in tool.out("ls", "-H").splitlines()]
        assert [row[:2] for row in bare] == [["web", str(256 * MIB)], ["db", str(256 * MIB)]], bare
        assert "\x1b" in tool.out("ls", "--color=always") and "\x1b" not in tool.out("ls")


def test_sharing(tmp):
    """the tree shows which layers two disks share, and what is a disk's own"""
    with served(tmp) as (_, tool):
        web, db = tool.json("ls")
        assert [layer["filename"] for layer in web["layers"]] == ["web", "mon", "base"], web
        assert [layer["shared"] for layer in web["layers"]] == [[], ["db"], ["db"]], web
        assert [layer["shared"] for layer in db["layers"]] == [[], ["web"], ["web"]], db
        assert web["exclusive"] == web["layers"][0]["allocated"], web
        assert web["allocated"] == sum(layer["allocated"] for layer in web["layers"]), web
        lines = tool.out("tree", "web").splitlines()
        assert len(lines) == 4, lines
        says(lines[0], "web", "256 MiB qcow2", "0 clients", web["uris"][0])
        says(lines[1], "├─ head", " web")
        says(lines[2], "├─", "32", "mon", "shared with db")
        says(lines[3], "└─ base", "128", "base", "shared with db")


def test_clients(tmp):
    """a client that connects is counted, in the tree and by status"""
    import nbd
    with served(tmp) as (_, tool):
        h = nbd.NBD()
        h.connect_uri(tool.json("info", "web")["uris"][0])
        assert tool.json("info", "web")["clients"] == 1
        assert tool.json("info", "db")["clients"] == 0
        says(tool.out("tree", "web"), ", 1 client ")
        status = tool.json("status")
        assert set(status) == {"state", "socket", "version", "disks", "exports", "clients", "in-flight", "jobs",
                               "log-level"}, status
        assert (status["state"], status["exports"], status["clients"]) == ("up", 2, 1), status
        h.shutdown()


def test_names(tmp):
    """what a file's name could do to a terminal is made harmless"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a\x1b[31mb", MIB)
    with daemon(tmp, "x=a\x1b[31mb") as (_, tool):
        says(tool.out("tree"), "a\\x1b[31mb")
        assert "\x1b" not in tool.out("tree")
        assert tool.json("tree")[0]["layers"][0]["filename"] == "a\x1b[31mb"


def test_log_level(tmp):
    """log-level shows and changes how much the daemon logs"""
    with served(tmp) as (_, tool):
        assert tool.out("log-level") == "info\n"
        assert tool.out("log-level", "debug") == ""
        assert tool.json("log-level") == {"level": "debug"}
        tool.fails("log-level", "loud", status=2)


def test_events(tmp):
    """events come as they happen, one a line"""
    with served(tmp) as (_, tool):
        process = subprocess.Popen([chainctl.path, "events", "-n", "2", "--output=jsonl"], text=True,
                                   stdout=subprocess.PIPE, env=tool.env)
        deadline = time.monotonic() + HANG
        while process.poll() is None and time.monotonic() < deadline:
            qmp = stream(tmp, speed=0)
            qmp.event("BLOCK_JOB_COMPLETED")
            qmp.close()
        lines = [json.loads(line) for line in process.stdout]
        assert process.wait(HANG) == 0 and len(lines) == 2, lines
        assert all(set(line) == {"event", "data", "timestamp"} for line in lines), lines


# -- what it refuses ------------------------------------------------------------------------------

def test_no_daemon(tmp):
    """without a daemon the status is 4, and the error says what to do"""
    tool = Tool(tmp / "nobody.sock")
    for verb in (["status"], ["ls"], ["wait", "1"], ["top"]):
        error = tool.fails(*verb, status=4)
        says(error, tmp / "nobody.sock", "No such file", "--socket", "CHAIND_SOCKET")
    says(tool.fails("ls", "-s", "/nowhere/x", status=4), "/nowhere/x")


def test_denied(tmp):
    """a socket that one may not use is told apart from none"""
    if os.geteuid() == 0:
        from harness import Skip
        raise Skip("root may use every socket")
    with served(tmp) as (_, tool):
        os.chmod(tmp / "control.sock", 0)
        says(tool.fails("ls", status=8), "control.sock")


def test_usage(tmp):
    """what cannot be meant has status 2, names the word, and where to read on"""
    tool = Tool(tmp / "nobody.sock")
    for words, part in ((["lss"], "did you mean 'ls'"), (["xyzzy"], "chainctl help"),
                        (["wait"], "JOB is missing"), (["info", "a", "b"], "'b' is one word too many"),
                        (["ls", "--bogus"], "--bogus"), (["ls", "--output=xml"], "table, json, jsonl"),
                        (["wait", "-t", "soon", "1"], "seconds"), (["info", "web@mon"], "point in time"),
                        (["--output=json"], "no verb"), (["info", ""], "DISK is empty"),
                        (["help", "nothing"], "no verb 'nothing'")):
        says(tool.fails(*words, status=2), part)


def test_not_found(tmp):
    """what is not there has status 5, and the error says where to look"""
    with served(tmp) as (_, tool):
        says(tool.fails("info", "nope", status=5), "'nope'", "chainctl ls")
        says(tool.fails("wait", "nope", status=5), "'nope'", "chainctl jobs")
        says(tool.fails("cancel", "nope", status=5), "chainctl jobs")


def test_help(tmp):
    """every verb has a help with examples, that needs no daemon and fits 80 columns"""
    tool = Tool(tmp / "nobody.sock")
    page = tool.out()
    assert page == tool.out("help") == tool.out("--help")
    verbs = [line.split()[0] for line in page.splitlines() if line.startswith("  ")]
    assert {"ls", "tree", "jobs", "wait", "cancel", "status", "events", "log-level"} <= set(verbs), verbs
    for verb in verbs:
        text = tool.out("help", verb)
        assert text == tool.out(verb, "--help") == tool.out(verb, "-h")
        says(text, f"usage: chainctl {verb}", "\nExamples\n", f"chainctl {verb}")
        long = [line for line in text.splitlines() + page.splitlines() if len(line) > 80]
        assert not long, long


def test_common_options(tmp):
    """options of every verb may come before it"""
    with served(tmp) as (_, tool):
        assert json.loads(tool.out("--output", "json", "ls")) == tool.json("ls")
        assert Tool("/nowhere").json("-s", tmp / "control.sock", "ls") == tool.json("ls")


# -- jobs -----------------------------------------------------------------------------------------

def test_jobs(tmp):
    """jobs and wait tell of a job, and of its result"""
    with served(tmp) as (_, tool):
        assert tool.json("jobs") == []
        says(tool.run("jobs").stderr, "no jobs")
        stream(tmp)
        job, = tool.json("jobs")
        while job["status"] == "created" or not job["total"]:
            job, = tool.json("jobs")
        assert {"id", "type", "status", "done", "total", "percent", "rate"} <= set(job), job
        assert (job["id"], job["type"], job["status"]) == ("j1", "stream", "running"), job
        assert job["total"] <= 128 * MIB, "bytes that need no copy are counted"
        assert tool.json("info", "web")["jobs"] == ["j1"] and tool.json("info", "db")["jobs"] == []
        says(tool.out("tree", "web"), "job j1  stream  running")
        Qmp(tmp / "control.sock").command("block-job-set-speed", device="j1", speed=0)
        result = tool.json("wait", "j1")
        assert {"id", "type", "result", "done", "seconds"} == set(result), result
        assert result["result"] == "completed", result
        assert tool.json("jobs") == []


def test_wait_time(tmp):
    """wait -t ends with status 3, and the job goes on"""
    with served(tmp) as (_, tool):
        qmp = stream(tmp)
        says(tool.run("wait", "-t", "0.3", "j1", status=3).stderr, "still running as job j1")
        assert [job["status"] for job in tool.json("jobs")] == ["running"]
        qmp.command("block-job-set-speed", device="j1", speed=0)
        tool.run("wait", "j1")


def test_cancel(tmp):
    """a cancelled job fails its waiter"""
    with served(tmp) as (_, tool):
        stream(tmp)
        waiter = subprocess.Popen([chainctl.path, "wait", "j1"], text=True, env=tool.env,
                                  stderr=subprocess.PIPE)
        while not tool.json("jobs")[0]["done"]:
            pass
        tool.run("cancel", "j1")
        error = waiter.communicate(timeout=HANG)[1]
        assert waiter.returncode == 1, error
        says(error, "j1", "cancelled")


def test_no_space(tmp):
    """who waits for a job that finds no space has status 7, also when it comes after the end"""
    with served(tmp) as (_, tool):
        qmp = Qmp(tmp / "control.sock")
        size = tool.json("info", "web")["size"]
        qmp.command("blockdev-add", driver="blkdebug", node_name="full",
                    image={"driver": "null-co", "size": size},
                    inject_error=[{"event": "none", "iotype": "write", "errno": 28, "once": False}])
        qmp.command("blockdev-backup", device="web", target="full", job_id="j1", sync="full")
        for _ in range(2):
            says(tool.fails("wait", "j1", status=7), "job j1 failed: No space left on device", "make room")


def test_progress(tmp):
    """on a terminal the progress is one line with bar, percent, bytes, rate and time left"""
    with served(tmp) as (_, tool):
        qmp = stream(tmp, speed=16 * MIB)
        terminal = Terminal(tool, "wait", "j1")
        line = terminal.read_until(r"stream j1  \S*█[█░]*\S*  +\d+%  [\d.]+/\d+ MiB  [\d.]+ MiB/s  ETA 0:\d\d")
        assert len(plain(line)) < chainctl.COLUMNS
        qmp.command("block-job-set-speed", device="j1", speed=0)
        text = terminal.wait()
        says(text, "stream j1: done, ")
        assert text.count("\n") == 1, f"more than one line: {text!r}"


def test_narrow(tmp):
    """a narrow terminal has a shorter line, never a broken one"""
    with served(tmp) as (_, tool):
        qmp = stream(tmp, speed=16 * MIB)
        for columns in (24, 40, 60):
            terminal = Terminal(tool, "wait", "-t", "0.8", "j1", columns=columns)
            text = terminal.wait(3)
            drawn = [plain(part) for part in text.split("\r\x1b[K")[1:]]
            drawn[-1] = drawn[-1].split("\r\n")[0]
            assert drawn and all("j1" in part and len(part) < columns for part in drawn), drawn
        qmp.command("block-job-set-speed", device="j1", speed=0)


def test_detach(tmp):
    """Ctrl-C ends the waiting with status 130, says how to go on, and the job goes on"""
    with served(tmp) as (_, tool):
        qmp = stream(tmp)
        terminal = Terminal(tool, "wait", "j1")
        terminal.read_until("%")
        terminal.type("\x03")
        text = terminal.wait(130)
        says(text, "still running as job j1.   chainctl wait j1  |  chainctl cancel j1")
        *_, line, last = plain(text).split("\r\x1b[K")[-1].splitlines()
        assert "^C" not in line and "%" in line and last.startswith("^C  still running"), text
        assert [job["status"] for job in tool.json("jobs")] == ["running"]
        qmp.command("block-job-set-speed", device="j1", speed=0)


def test_plain_progress(tmp):
    """without a terminal SIGUSR1 prints a line of progress, without bar or colours"""
    with served(tmp) as (_, tool):
        qmp = stream(tmp)
        waiter = subprocess.Popen([chainctl.path, "wait", "j1"], text=True, env=tool.env,
                                  stderr=subprocess.PIPE)
        with open(f"/proc/{waiter.pid}/status", encoding="ascii") as status:
            while True:  # until it catches the signal
                status.seek(0)
                caught = next(line for line in status.read().splitlines() if line.startswith("SigCgt"))
                if int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1:
                    break
        waiter.send_signal(signal.SIGUSR1)
        line = waiter.stderr.readline()
        assert line.startswith("stream j1: ") and "%" in line and "MiB" in line, line
        assert "\x1b" not in line and "█" not in line, line
        qmp.command("block-job-set-speed", device="j1", speed=0)
        assert waiter.wait(HANG) == 0 and waiter.stderr.read() == ""


# -- completion -----------------------------------------------------------------------------------

def test_complete(tmp):
    """completion offers verbs, options, choices, and live names"""
    def complete(*words):
        return tool.out("complete", "--", *words).splitlines()
    with served(tmp) as (_, tool):
        assert complete("l") == ["ls", "limit", "log-level"], complete("l")
        assert complete("tree", "") == ["web", "db"]
        assert complete("tree", "w") == ["web"]
        assert complete("tree", "web", "") == []
        assert complete("wait", "--t") == ["--timeout="]
        assert complete("ls", "--output=j") == ["json", "jsonl"]
        assert complete("ls", "--output", "t") == ["table"]
        assert complete("log-level", "w") == ["warning"]
        assert complete("ls", "--socket=") == ["FILES"]
        qmp = stream(tmp)
        assert complete("cancel", "") == ["j1"]
        qmp.command("block-job-set-speed", device="j1", speed=0)
    assert complete("tree", "") == [], "no daemon"


# What zsh's completion calls, as far as the script needs it: prints what would be offered.
ZSH = """
compadd() {
    while [[ $1 == -* ]]; do
        [[ $1 == -S ]] && shift
        [[ $1 == -- ]] && { shift; break }
        shift
    done
    (( $# == 0 )) || print -rl -- "$@"
}
compset() { }
_files() { print FILES }
words=("$@") CURRENT=$# PREFIX=$argv[-1]
complete_it() { source $COMPLETION }
complete_it
"""


def test_complete_in_shells(tmp):
    """zsh and fish offer what chainctl says, with and without the name of an option before it"""
    def fish(*words):
        line = " ".join(words)
        return run("fish", "--no-config", "-c", f"source {COMPLETION}/chainctl.fish; complete -C '{line}'",
                   env=env).stdout.split("\n")[:-1]

    def zsh(*words):
        return run("zsh", "-f", "-c", ZSH, "zsh", *words,
                   env={**env, "COMPLETION": COMPLETION / "_chainctl"}).stdout.split("\n")[:-1]
    shells = [shell for shell in (fish, zsh) if shutil.which(shell.__name__)]
    if not shells:
        raise Skip("neither zsh nor fish is installed")
    with served(tmp) as (_, tool):
        env = {**tool.env, "PATH": f"{os.path.dirname(chainctl.path)}:{os.environ['PATH']}", "HOME": tmp}
        for complete in shells:
            assert complete("chainctl", "lo") == ["log-level"], complete("chainctl", "lo")
            assert sorted(complete("chainctl", "tree", "")) == ["db", "web"]
            assert complete("chainctl", "wait", "--t") == ["--timeout="]
            assert complete("chainctl", "nonsense", "") == []
        if fish in shells:
            assert fish("chainctl", "ls", "--output=j") == ["--output=json", "--output=jsonl"]
        if zsh in shells:
            assert zsh("chainctl", "ls", "--output=j") == ["json", "jsonl"]
            assert zsh("chainctl", "create", "web", "1G", "") == ["FILES"]


main(globals())

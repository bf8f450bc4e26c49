#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sockets for queries only, and who it was that changed something."""
import json
import os
import pathlib
import socket
import stat
import subprocess
import sys

from chainctl import Tool, path as chainctl_path
from harness import MIB, Daemon, Skip, main, says
from qmp_client import Qmp
from state import Service

NOBODY = 65534

# Whoever runs it as another user: prints the replies to some commands, each on a line.
CLIENT = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
f = s.makefile("rw")
print(f.readline().strip())
for command in ["qmp_capabilities"] + sys.argv[2:]:
    f.write(json.dumps(json.loads(command) if command[0] == "{" else {"execute": command}))
    f.flush()
    print(f.readline().strip())
"""


def as_nobody(*command):
    """Runs it as that user; the finished process."""
    if os.geteuid():
        raise Skip("only root becomes another user")
    for directory in pathlib.Path(command[0]).resolve().parents:
        if not directory.stat().st_mode & 0o001:
            raise Skip(f"others may not run {command[0]}: {directory} is closed to them")
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
                          user=NOBODY, group=NOBODY, extra_groups=[],
                          env={**os.environ, "CHAIND_SOCKET": os.environ.get("CHAIND_SOCKET", "")})


def open_to_all(tmp):
    """What lies in it is for others, too."""
    for directory in tmp.parents:
        if not directory.stat().st_mode & 0o001:
            raise Skip(f"{directory} is closed to others")
    os.chmod(tmp, 0o711)


def test_read_only(tmp):
    """A socket for queries takes each query and refuses each other command, with its reason"""
    with Service(tmp, "--qmp-read-only", tmp / "query.sock") as s:
        s.command("disk-create", name="web", size=MIB)
        query = Qmp(tmp / "query.sock")
        assert stat.S_IMODE(os.stat(tmp / "query.sock").st_mode) == 0o660
        assert query.command("query-disks") == s.command("query-disks")
        every = {c["name"] for c in s.command("query-commands")}
        reads = {c["name"] for c in query.command("query-commands")}
        assert reads < every
        assert {n for n in every if n.startswith("query-")} <= reads
        for name in sorted(every - reads):
            query.send({"execute": name})
            error = query.reply()["error"]
            assert error["class"] == "GenericError" and error["reason"] == "denied", (name, error)
            says(error["desc"], name, "for queries only")
        assert "qom-get" not in reads and "quit" not in reads and "transaction" not in reads
        # Events come here, too, and several clients may be there.
        other = Qmp(tmp / "query.sock")
        s.command("disk-remove", name="web")
        assert query.event("BLOCK_EXPORT_DELETED") == other.event("BLOCK_EXPORT_DELETED") == {"id": "web"}
        says(s.error("object-add", qom_type="bogus", id="x"), "bogus")


def test_bounded(tmp):
    """Clients of a socket for queries leave room for those that may change something"""
    with Daemon("--qmp", tmp / "qmp", "--qmp-read-only", tmp / "q"):
        readers = []
        for _ in range(70):
            s = socket.socket(socket.AF_UNIX)
            s.connect(str(tmp / "q"))
            readers.append(s)
        for s in readers[:64]:
            assert s.recv(1)
        readers[64].settimeout(0.2)
        try:
            greeted = readers[64].recv(1)
        except TimeoutError:
            greeted = None
        assert not greeted, "one too many is served"
        assert Qmp(tmp / "qmp").command("query-version")
        readers[0].close()
        readers[64].settimeout(None)
        assert readers[64].recv(1)


def test_who(tmp):
    """The log says which other user has changed something, and says nothing of queries"""
    with Daemon("--qmp", tmp / "qmp") as d:
        open_to_all(tmp)
        os.chmod(tmp / "qmp", 0o666)
        add = '{"execute": "object-add", "arguments": {"qom-type": "throttle-group", "id": "g"}}'
        done = as_nobody(sys.executable, "-c", CLIENT, tmp / "qmp", "query-jobs", add, add)
        assert done.stdout.count('"return"') == 3 and '"error"' in done.stdout, (done.stdout, done.stderr)
        Qmp(tmp / "qmp").command("object-del", id="g")
        log = [line for line in d.log().splitlines() if " by uid " in line]
        assert len(log) == 2, log
        says(log[0], f"object-add by uid {NOBODY} (pid ")
        says(log[1], "refused, or failed")


def test_allowed(tmp):
    """Of those who can connect, only users and groups of the configuration may use a control socket"""
    (tmp / "c.conf").write_text(
        f"[control a]\npath = {tmp}/a\nmode = 0666\nallow-uid = root\n"
        f"[control b]\npath = {tmp}/b\nmode = 0666\nallow-uid = root\nallow-gid = {NOBODY}\n"
        f"[control c]\npath = {tmp}/c\nmode = 0666\nread-only = yes\n")
    with Daemon("--config", tmp / "c.conf") as d:
        open_to_all(tmp)
        done = as_nobody(sys.executable, "-c", CLIENT, tmp / "a")
        refusal = json.loads(done.stdout.splitlines()[0])["error"]
        assert refusal["reason"] == "denied", refusal
        says(refusal["desc"], f"uid {NOBODY}", "may not use this socket")
        says(d.log(), f"uid {NOBODY} (pid ", "is turned away from 'unix:", "/a'")
        os.environ["CHAIND_SOCKET"] = str(tmp / "a")
        done = as_nobody(chainctl_path, "status")
        assert done.returncode == 8, done
        says(done.stderr, "is for others")
        done = as_nobody(sys.executable, "-c", CLIENT, tmp / "b", "query-jobs")
        assert done.stdout.count('"return"') == 2, done
        done = as_nobody(sys.executable, "-c", CLIENT, tmp / "c", "query-jobs", "quit")
        assert done.stdout.count('"return"') == 2 and done.stdout.count('"denied"') == 1, done
        for name in "abc":
            Qmp(tmp / name).command("query-version")


def test_chainctl(tmp):
    """chainctl asks at the socket for queries where it may not use the control socket"""
    with Service(tmp, "--qmp-read-only", tmp / "query.sock") as s:
        s.command("disk-create", name="web", size=MIB)
        open_to_all(tmp)
        os.chmod(tmp / "query.sock", 0o666)
        os.environ["CHAIND_SOCKET"] = str(tmp / "qmp")
        done = as_nobody(chainctl_path, "ls", "-H")
        assert done.returncode == 0 and done.stdout.startswith("web\t"), done
        done = as_nobody(chainctl_path, "remove", "web")
        assert done.returncode == 8, done
        says(done.stderr, "disk-remove", "for queries only")
        os.unlink(tmp / "query.sock")
        done = as_nobody(chainctl_path, "ls")
        assert done.returncode == 8, done
        says(done.stderr, "may not be used by this user")
        tool = Tool(tmp / "qmp")
        assert tool.json("ls")[0]["name"] == "web"


if __name__ == "__main__":
    main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same scripts against qemu-storage-daemon and chaind: same replies, same events in the same
order, same output of the programs that look at the images, errors included. What differs on purpose
stands in the file `differences`, each with its reason; a difference that is met no more fails, too.

A script is a file NAME.qmp beside this one. Each program gets an empty directory as its working
directory, so names of files are relative. Lines of a script:

    # text              a comment; the first one is the script's title
    since VERSION       before anything else: an older QEMU cannot do that, so nothing is compared
    args --blockdev …   more of the command line (before the first command; words as in a shell)
    {"execute": …}      a command, over several lines up to its last brace; its reply is awaited
    {…}*                a command that no reply is awaited for
    raw TEXT            bytes for the monitor as they are, with \\n and \\xNN; no reply is awaited
    reply               awaits a reply (after `raw`, after {…}*)
    monitor NAME        another client from here on, which connects when it is new; the first is qmp
    wait EVENT [TEXT]   until such an event came, with TEXT in its JSON; also one that came before
    only KEY…           of the next reply, of each object at its top, keep only these members
    sorted              of the next reply, the list in no particular order
    unseen              of the next reply or output, nothing but whether it succeeded
    early               the next reply stands before the events that came before it: which comes
                        first is a matter of time
    $ COMMAND           a shell command; its output and status are compared
    end                 waits until the program ends by itself, and compares what it says; then it
                        can be started again (otherwise the script sends quit at its end)

The program starts at the first line that needs it.

Normalised: times of events, names that were made up (#block123), the working directory, the order of
events after quit, how far a job had come that is cancelled, and how much it knew of.

usage: side-by-side.py [--chaind PATH] [--qemu PATH] [--show] [NAME]...

QSD=PATH in the environment is the same as --qemu.
"""
import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
HANG = 200  # seconds after which something hangs, and is not merely slow
chaind_path = os.environ.get("CHAIND", str(HERE.parents[1] / "build/daemon/chaind"))
qemu_path = os.environ.get("QSD", "qemu-storage-daemon")


PID_FILE = ".pid"


def command_line(program, monitors):
    """QEMU has one client a monitor, so each gets a socket of its own. Its pid file appears when its
    monitors take clients; one that comes earlier is greeted twice, or not answered."""
    words = [qemu_path if program == "qemu" else chaind_path, "--pidfile", PID_FILE]
    for i, name in enumerate(monitors):
        words += ["--chardev", f"socket,id=qmp{i},path={name}.sock,server=on,wait=off",
                  "--monitor", f"chardev=qmp{i}"]
    return words


class Bad(Exception):
    """A script that makes no sense, or a program that hangs or cannot be started."""


# -- scripts --------------------------------------------------------------------------------------

def parse(path):
    """[(verb, argument)] of a script."""
    steps, text = [], ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if text or line.startswith("{"):
            text += line + "\n"
            body, star = (text.rstrip()[:-1], "*") if text.rstrip().endswith("*") else (text, "")
            try:
                json.loads(body)
            except ValueError:
                continue
            steps.append(("send" + star, body.strip()))
            text = ""
        elif line.strip() and not line.startswith("#"):
            verb, _, rest = line.partition(" ")
            if verb not in ("args", "raw", "reply", "monitor", "wait", "only", "sorted", "unseen",
                            "early", "$", "end", "since"):
                raise Bad(f"{path.name}:{number}: {verb} is no verb of a script")
            steps.append((verb, rest))
    if text:
        raise Bad(f"{path.name}: a command is not complete: {text}")
    return steps


def title(path):
    return path.read_text("utf-8").splitlines()[0].lstrip("# ").rstrip(".")


# -- a program ------------------------------------------------------------------------------------

class Monitor:
    def __init__(self, directory, path, deadline):
        # Relative, because the path of a socket is short.
        here = os.getcwd()
        os.chdir(directory)
        try:
            while True:
                self.socket = socket.socket(socket.AF_UNIX)
                try:
                    self.socket.connect(path)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    self.socket.close()
                    if deadline():
                        raise Bad("the monitor's socket cannot be connected to")
        finally:
            os.chdir(here)
        self.socket.settimeout(HANG)
        self.bytes = b""
        self.events = []  # that came, and were not waited for

    def receive(self):
        """The next line as JSON, or None at the end."""
        while b"\n" not in self.bytes:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            except TimeoutError:
                raise Bad("no line from the monitor") from None
            if not data:
                if self.bytes:
                    raise Bad(f"the monitor ended within a line: {self.bytes}")
                return None
            self.bytes += data
        line, self.bytes = self.bytes.split(b"\n", 1)
        if not line.endswith(b"\r"):
            raise Bad(f"a line without CRLF: {line}")
        return json.loads(line)


class Player:
    """Plays a script against one program and writes down what came of it."""

    def __init__(self, program, steps):
        self.program, self.steps = program, steps
        self.transcript = []
        self.directory = tempfile.mkdtemp(prefix="qmp-")
        self.made_up = {}
        self.monitors = {}
        self.filters = []
        names = ["qmp", *(rest for verb, rest in steps if verb == "monitor" and rest != "qmp")]
        self.first_words = command_line(program, dict.fromkeys(names))
        self.command_line = list(self.first_words)
        self.process = None
        self.log = open(os.path.join(self.directory, ".log"), "w+", encoding="utf-8")

    def start(self):
        self.process = subprocess.Popen(self.command_line, cwd=self.directory,
                                        stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log)

    # What is written down.

    def write(self, kind, text):
        self.transcript.append(f"{kind} {text}")

    def normal(self, text):
        def number(match):
            names = self.made_up.setdefault(match[0], f"#made-up-{len(self.made_up)}")
            return names
        text = text.replace(self.directory, "DIR")
        return re.sub(r"#[a-z]+\d+", number, text)

    def write_json(self, kind, value):
        self.write(kind, self.normal(json.dumps(value, sort_keys=True)))

    def filtered(self, reply):
        value = reply.get("return")
        for verb, rest in self.filters:
            if verb == "unseen" and "return" in reply:
                value = "unseen"
            elif verb == "only":
                keys = rest.split()
                def keep(item):
                    return ({k: v for k, v in item.items() if k in keys}
                            if isinstance(item, dict) else item)
                value = [keep(v) for v in value] if isinstance(value, list) else keep(value)
            elif verb == "sorted" and isinstance(value, list):
                value = sorted(value, key=lambda v: json.dumps(v, sort_keys=True))
        self.filters = []
        return {**reply, "return": value} if "return" in reply else reply

    # What comes from the monitor.

    def take_line(self, monitor):
        """The next line, an event written down already."""
        line = monitor.receive()
        if line and "QMP" in line and self.program == "qemu":
            line = monitor.receive()  # greeted twice
        if line is None:
            return None
        if self.program == "chaind" and "error" in line:
            line["error"].pop("reason", None)  # an extension, for chainctl's exit status
        if "event" in line:
            del line["timestamp"]
            if line["event"] == "BLOCK_JOB_CANCELLED":
                del line["data"]["offset"], line["data"]["len"]
            self.write_json("*", line)
            monitor.events.append(line)
        return line

    def take_reply(self, monitor):
        n = len(self.transcript)
        is_early = ("early", "") in self.filters
        while True:
            line = self.take_line(monitor)
            if line is None:
                self.write("<", "the monitor ended")
                return
            if "event" not in line:
                self.write_json("<", self.filtered(line))
                if is_early:
                    self.transcript.insert(n, self.transcript.pop())
                return

    def wait_event(self, monitor, name, text):
        while True:
            for i, event in enumerate(monitor.events):
                if event["event"] == name and text in json.dumps(event):
                    del monitor.events[:i + 1]
                    return
            if self.take_line(monitor) is None:
                raise Bad(f"the monitor ended without the event {name} {text}")

    def open_monitor(self, name="qmp"):
        if not self.process:
            self.start()
        if name not in self.monitors:
            start = time.monotonic()

            def is_late():
                return self.process.poll() is not None or time.monotonic() - start > HANG
            while not os.path.exists(f"{self.directory}/{PID_FILE}"):
                if is_late():
                    raise Bad("the program does not come up")
                time.sleep(0.001)
            monitor = Monitor(self.directory, f"{name}.sock", is_late)
            greeting = monitor.receive()
            self.monitors[name] = monitor
            if "QMP" not in greeting:
                raise Bad(f"no greeting: {greeting}")
        return self.monitors[name]

    def run_shell(self, command):
        done = subprocess.run(command, shell=True, cwd=self.directory, text=True, timeout=HANG,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, errors="replace",
                              stderr=subprocess.STDOUT)
        self.write("$", command)
        is_unseen = any(verb == "unseen" for verb, _ in self.filters)
        self.filters = []
        for line in () if is_unseen else done.stdout.splitlines():
            self.write(" ", self.normal(line))
        if done.returncode:
            self.write("$", f"status {done.returncode}")

    def quit(self):
        """Ends the program, and sees what the first monitor is told until then."""
        first = self.open_monitor()
        for name, monitor in self.monitors.items():
            if name != "qmp":
                monitor.socket.close()
        self.step(first, "send*", '{"execute": "quit"}')
        n = len(self.transcript)
        while self.take_line(first) is not None:
            pass
        # All ends at the same time.
        self.transcript[n:] = sorted(self.transcript[n:])
        self.write("=", f"status {self.process.wait(HANG)}")

    def see_end(self):
        """What a program says that ends by itself."""
        if not self.process:
            self.start()
        self.write("!", shlex.join(self.command_line[len(self.first_words):]))
        status = self.process.wait(HANG)
        self.log.seek(0)
        for line in self.log:
            line = re.sub("^(\\S*qemu-storage-daemon|chaind): ", "PROGRAM: ", line.rstrip("\n"))
            self.write(" ", self.normal(line))
        self.write("=", f"status {status}")
        self.log.truncate(0)
        self.log.seek(0)
        self.process, self.command_line = None, list(self.first_words)

    def step(self, monitor, verb, rest):
        """The monitor from here on; None: the first."""
        if verb == "args":
            self.command_line += shlex.split(rest)
        elif verb == "$":
            self.run_shell(rest)
        elif verb in ("only", "sorted", "unseen", "early"):
            self.filters.append((verb, rest))
        elif verb == "end":
            self.see_end()
        elif verb == "monitor":
            return self.open_monitor(rest)
        else:
            monitor = monitor or self.open_monitor()
            self.talk(monitor, verb, rest)
        return monitor

    @staticmethod
    def send(monitor, data):
        """What is sent to a program that has ended or hung up is lost; what it says then shows that."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            monitor.socket.sendall(data)

    def talk(self, monitor, verb, rest):
        if verb in ("send", "send*"):
            self.write(">", " ".join(rest.split()))
            self.send(monitor, rest.encode())
        elif verb == "raw":
            self.write(">", rest)
            data = rest.encode("latin-1").decode("unicode_escape").encode("latin-1")
            self.send(monitor, data)
        elif verb == "wait":
            name, _, text = rest.partition(" ")
            self.wait_event(monitor, name, text)
        if verb in ("send", "reply"):
            self.take_reply(monitor)

    def play(self):
        try:
            monitor = None
            for verb, rest in self.steps:
                monitor = self.step(monitor, verb, rest)
            if self.steps[-1][0] != "end":
                self.quit()
        except BaseException:
            print("".join(f"# {self.program}: {line}\n" for line in self.transcript[-12:]), end="")
            self.log.seek(0)
            print("".join(f"#   {line}" for line in self.log), end="")
            raise
        finally:
            if self.process and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for monitor in self.monitors.values():
                monitor.socket.close()
            self.log.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        return self.transcript


# -- differences ----------------------------------------------------------------------------------

class Difference:
    """qemu or chaind: what to search for in a line of that transcript; None: there is no line."""

    def __init__(self, scripts, reason):
        self.scripts, self.reason = scripts, reason
        self.qemu = self.chaind = None
        self.is_met = False

    def covers(self, script, qemu, chaind):
        if script not in self.scripts and "*" not in self.scripts:
            return False
        for pattern, line in ((self.qemu, qemu), (self.chaind, chaind)):
            if (pattern is None) != (line is None) or pattern and not re.search(pattern, line):
                return False
        return True


def read_differences(path):
    """Paragraphs: `SCRIPT…: reason`, the reason's further lines indented, then `qemu REGEX` and
    `chaind REGEX` (either may be missing). SCRIPT@VERSION: only beside that version of QEMU, such as
    7 or 10."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word in ("qemu", "chaind"):
            setattr(found[-1], word, rest)
        elif line.startswith(" "):
            found[-1].reason += " " + line.strip()
        else:
            scripts, _, reason = line.partition(":")
            if not reason.strip():
                raise Bad(f"differences: no reason: {line}")
            found.append(Difference(scripts.split(), reason.strip()))
    return found


def of_version(differences, version):
    """Those that may be met beside that version, without it in their names."""
    kept = []
    for difference in differences:
        pairs = [script.partition("@") for script in difference.scripts]
        difference.scripts = [script for script, _, only in pairs if only in ("", version)]
        if difference.scripts:
            kept.append(difference)
    return kept


def qemu_version():
    """The major version; None: there is no such program."""
    if not shutil.which(qemu_path):
        return None
    out = subprocess.run([qemu_path, "--version"], stdout=subprocess.PIPE, text=True, check=True)
    return re.search(r"version (\d+)", out.stdout)[1]


def compare(script, qemu, chaind, differences):
    """The lines that differ without a reason."""
    wrong = []
    i = j = 0
    while i < len(qemu) or j < len(chaind):
        a = qemu[i] if i < len(qemu) else None
        b = chaind[j] if j < len(chaind) else None
        if a == b:
            i, j = i + 1, j + 1
            continue
        for difference in differences:
            both = difference.qemu is not None and difference.chaind is not None
            left, right = difference.qemu is not None, difference.chaind is not None
            if both and a is not None and b is not None and difference.covers(script, a, b) or \
               not both and left and a is not None and difference.covers(script, a, None) or \
               not both and right and b is not None and difference.covers(script, None, b):
                difference.is_met = True
                i, j = i + left, j + right
                break
        else:
            before = qemu[i - 1] if 0 < i <= len(qemu) else "the start"
            wrong.append(f"after {before}\nqemu:   {a}\nchaind: {b}")
            i, j = i + 1, j + 1
    return wrong


# -- the run --------------------------------------------------------------------------------------

def since_version(path):
    return max([int(rest) for verb, rest in parse(path) if verb == "since"], default=0)


def run_script(path, differences, show):
    steps = [step for step in parse(path) if step[0] != "since"]
    qemu, chaind = Player("qemu", steps).play(), Player("chaind", steps).play()
    if show:
        print("\n".join(f"# {line}" for line in chaind))
    wrong = compare(path.stem, qemu, chaind, differences)
    if wrong:
        raise AssertionError("\n".join(wrong))


def main():
    global chaind_path, qemu_path
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--chaind")
    ap.add_argument("--qemu")
    ap.add_argument("--show", action="store_true", help="print chaind's transcripts")
    ap.add_argument("names", nargs="*")
    args = ap.parse_args()
    if args.chaind:
        chaind_path = os.path.abspath(args.chaind)
    qemu_path = args.qemu or qemu_path
    version = qemu_version()
    if not version:
        print(f"1..0 # SKIP {qemu_path} is not installed")
        return 0
    differences = of_version(read_differences(HERE / "differences"), version)
    scripts = [p for p in sorted(HERE.glob("*.qmp")) if not args.names or p.stem in args.names]
    failed = 0
    for n, path in enumerate(scripts, 1):
        try:
            since = since_version(path)
            if int(version) < since:
                print(f"ok {n} - {path.stem} # SKIP QEMU can do that since version {since}")
                continue
            run_script(path, differences, args.show)
            print(f"ok {n} - {path.stem}: {title(path)}", flush=True)
        except (AssertionError, Bad, OSError, ValueError, subprocess.TimeoutExpired):
            print("".join(f"# {line}\n" for line in traceback.format_exc().splitlines()), end="")
            print(f"not ok {n} - {path.stem}: {title(path)}", flush=True)
            failed += 1
    n = len(scripts)
    if not args.names:
        n += 1
        stale = [d for d in differences if not d.is_met]
        for difference in stale:
            print(f"# not met: {' '.join(difference.scripts)}: {difference.reason}")
        failed += bool(stale)
        print(f"{'not ' if stale else ''}ok {n} - each line of differences is met")
    print(f"1..{n}")
    return 1 if failed or not scripts else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stand-in for systemd that speaks its protocols: it reads what a service tells (sd_notify(3)), and
starts one with listening sockets that have names (sd_listen_fds(3))."""
import socket
import sys
import threading
import time

from harness import HANG, Daemon


class NotifySocket:
    """What was told, as [(seconds since the begin, {KEY: value})]."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.path = str(path)
        self.begin = time.monotonic()
        self.told = []
        self.news = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        while True:
            message = dict(line.split("=", 1) for line in self.socket.recv(65536).decode().split("\n"))
            with self.news:
                self.told.append((time.monotonic() - self.begin, message))
                self.news.notify_all()

    def env(self, **more):
        return {"NOTIFY_SOCKET": self.path, **more}

    def messages(self):
        with self.news:
            return [message for _, message in self.told]

    def index(self, is_it):
        return next((i for i, m in enumerate(self.messages()) if is_it(m)), None)

    def wait(self, is_it, after=0, timeout=HANG):
        """The number of the first message from `after` on that is the one."""
        def find():
            return next((i for i in range(after, len(self.told)) if is_it(self.told[i][1])), None)
        with self.news:
            found = self.news.wait_for(lambda: find() is not None, timeout)
            assert found, f"not told in {timeout} s: {self.told}"
            return find()

    def wait_status(self, text, after=0):
        return self.wait(lambda m: text in m.get("STATUS", ""), after)


START = """
import fcntl, os, sys
n, names = int(sys.argv[1]), sys.argv[2]
given = [int(fd) for fd in sys.argv[3:3 + n]]
copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in given]
for fd in given:
    os.set_inheritable(fd, False)
for i, fd in enumerate(copies):
    os.dup2(fd, 3 + i)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(n))
if names:
    os.environ["LISTEN_FDNAMES"] = names
os.execv(sys.argv[3 + n], sys.argv[3 + n:])
"""


def activated(sockets, *args, names=None, **kwargs):
    """A chaind that was given sockets; `names`: of each, or none are told."""
    fds = [s.fileno() for s in sockets]
    launcher = [sys.executable, "-c", START, str(len(fds)), ":".join(names or ()), *map(str, fds)]
    return Daemon(*args, launcher=launcher, pass_fds=fds, **kwargs)


def listening(path):
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(path))
    s.listen(16)
    return s

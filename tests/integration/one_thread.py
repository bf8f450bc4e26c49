# SPDX-License-Identifier: LGPL-2.1-or-later
"""One thread of a process that stands still, as one that hangs."""
import ctypes
import os

from harness import Skip

WALL = 0x40000000  # linux/wait.h: threads, too


def threads(pid, name):
    """The numbers of its threads with a name."""
    tids = [int(t) for t in os.listdir(f"/proc/{pid}/task")]
    return [t for t in tids if open(f"/proc/{pid}/task/{t}/comm").read().strip() == name]


class Stopped:
    """One thread of a process that stands still, as one that hangs."""
    SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17

    def __init__(self, tid):
        self.tid = tid
        self.libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(self, request):
        if self.libc.ptrace(request, self.tid, None, None) < 0:
            raise Skip(f"ptrace is not allowed: {os.strerror(ctypes.get_errno())}")

    def __enter__(self):
        self.ptrace(self.SEIZE)
        self.ptrace(self.INTERRUPT)
        os.waitpid(self.tid, WALL)

    def __exit__(self, *_):
        if self.libc.ptrace(self.DETACH, self.tid, None, None) < 0:
            os.waitpid(self.tid, WALL)  # it was killed meanwhile, and is gone only now

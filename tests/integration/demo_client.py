# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the chapters of the demo share: how they print, and a client that writes all the time."""
import sys
import threading
import time

import nbd

import harness
from harness import KIB, MIB, run

BUSY_SIZE, BUSY_BLOCK = 32 * MIB, 4 * KIB


def title(text):
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def show(*args, **options):
    """Prints a command and its output, indented; returns that."""
    print("  $ " + " ".join(str(a) for a in args))
    out = run(*args, **options)
    for line in (out.stdout + out.stderr).rstrip().splitlines():
        print("    " + line)
    return out.stdout


class Writer(threading.Thread):
    """Writes numbered blocks one after the other, each to a place that its number gives."""

    def __init__(self, uri):
        super().__init__()
        self.uri, self.n, self.slowest, self.enough = uri, 0, 0, threading.Event()

    @staticmethod
    def place(number):
        return number * 7919 % (BUSY_SIZE // BUSY_BLOCK)

    def run(self):
        h = nbd.NBD()
        h.connect_uri(self.uri)
        while not self.enough.is_set():
            number = self.n + 1
            start = time.monotonic()
            h.pwrite(number.to_bytes(8, "little") * (BUSY_BLOCK // 8), self.place(number) * BUSY_BLOCK)
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.n = number
        h.flush()
        h.shutdown()

    def wait_for(self, number):
        deadline = time.monotonic() + harness.HANG
        while self.n < number:
            assert self.is_alive() and time.monotonic() < deadline, "the client has stopped writing"
            time.sleep(0.01)


def newest_number(content):
    """Of the writes that a busy disk shows."""
    return max(int.from_bytes(content[at:at + 8], "little") for at in range(0, len(content), BUSY_BLOCK))


def content_after(n_writes):
    """What a busy disk shows after so many of a Writer's writes."""
    content = bytearray(BUSY_SIZE)
    for number in range(1, n_writes + 1):
        at = Writer.place(number) * BUSY_BLOCK
        content[at:at + BUSY_BLOCK] = number.to_bytes(8, "little") * (BUSY_BLOCK // 8)
    return bytes(content)


def read_all(uri):
    """What a busy disk shows."""
    h = nbd.NBD()
    h.connect_uri(uri)
    content = h.pread(BUSY_SIZE, 0)
    h.shutdown()
    return content

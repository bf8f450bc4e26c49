# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks of blocks full of their stamps: what a block may hold after a crash, and must hold before one."""
import struct

BLOCK = 4096
SECTOR = 512
ZERO = 0  # the stamp of a block that reads as zeros


def stamped(stamp):
    """A block full of its stamp; 0 is a block of zeros."""
    return struct.pack(">Q", stamp) * (BLOCK // 8)


def stamps_of(block):
    """The stamps of its sectors. A write that nobody confirmed may be there in part."""
    stamps = []
    for at in range(0, BLOCK, SECTOR):
        sector = block[at:at + SECTOR]
        stamp, = struct.unpack(">Q", sector[:8])
        assert sector == stamped(stamp)[:SECTOR], \
            f"a sector is torn: it begins with {sector[:16].hex()} and ends with {sector[-16:].hex()}"
        stamps.append(stamp)
    return stamps


class State:
    """What was written to each block, oldest first. The first entry of a block's history is there for
    sure; any later one may be. Entries are told from their like by identity."""

    def __init__(self, first):
        self.history = [[[stamp]] for stamp in first]
        self.next_stamp = 1 << 32

    def new_stamp(self):
        self.next_stamp += 1
        return self.next_stamp

    def confirm(self, entries):
        """What was there before `entries` (block → entry) is no more."""
        for block, entry in entries.items():
            history = self.history[block]
            here = [i for i, e in enumerate(history) if e is entry]
            if here:  # a later one may have been quicker
                del history[:here[0]]

    def check(self, content, what):
        """Each block of `content` holds what its history allows; returns the stamps of its sectors."""
        found = []
        for block, history in enumerate(self.history):
            allowed = {entry[0] for entry in history}
            stamps = stamps_of(content[block * BLOCK:(block + 1) * BLOCK])
            for stamp in stamps:
                assert stamp in allowed, f"{what}: block {block} has stamp {stamp:#x}, " \
                    f"not one of {[hex(s) for s in sorted(allowed)]}"
            found.append(stamps)
        return found

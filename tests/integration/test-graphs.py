#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Graphs of nodes that are no mere chain: images behind filters and in parts of files, which grow and
are locked as they would be otherwise.

usage: test-graphs.py [--chaind PATH] [WORD]...
"""
from harness import MIB, check_image, main, qemu_img, run
from world import World

GROUP = {"qom-type": "throttle-group", "id": "group", "limits": {"iops-total": 1000000}}


def file_of(path):
    return {"driver": "file", "filename": str(path)}


FILTERS = {
    "throttle": lambda below: {"driver": "throttle", "throttle-group": "group", "file": below},
    "copy-on-read": lambda below: {"driver": "copy-on-read", "file": below},
    "blkdebug": lambda below: {"driver": "blkdebug", "image": below},
}


def test_grows(tmp):
    """An image behind any filter grows as it would in the file itself"""
    with World(tmp) as w:
        w.qmp.command("object-add", **GROUP)
        for name, over in FILTERS.items():
            path = tmp / f"{name}.qcow2"
            qemu_img("create", "-q", "-f", "qcow2", path, 8 * MIB)
            w.qmp.command("blockdev-add", driver="qcow2", node_name=name, discard="unmap",
                          file=over(file_of(path)))
            w.export(name)
            w.io(name, "write -P 0x11 0 3M", "write -P 0x22 5M 1M", "write -z 1M 64k", "discard 2M 128k",
                 "flush", "read -P 0x11 0 1M", "read -P 0 1M 64k", "read -P 0x22 5M 1M")
            assert path.stat().st_size > 4 * MIB
            w.qmp.command("block-export-del", id=f"e-{name}")
            w.qmp.command("blockdev-del", node_name=name)
            run("qemu-io", "-c", "read -P 0x11 64k 960k", "-c", "read -P 0x22 5M 1M", path)
            check_image(path)


def test_locked(tmp):
    """A file behind a filter is locked as long as the filter is used, and no longer"""
    path = tmp / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, MIB)

    def is_locked():
        return run("qemu-io", "-c", "write 0 64k", path, check=False).returncode != 0

    with World(tmp) as w:
        w.qmp.command("object-add", **GROUP)
        w.qmp.command("blockdev-add", **file_of(path), node_name="file")
        w.qmp.command("blockdev-add", **FILTERS["throttle"]("file"), node_name="one")
        assert not is_locked()
        w.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file="one")
        assert is_locked()
        w.qmp.command("blockdev-del", node_name="disk")
        assert not is_locked()
        w.export("one")
        assert is_locked()
        w.qmp.command("block-export-del", id="e-one")
        assert not is_locked()
        # What another program made longer meanwhile is seen.
        w.export("one")
        w.io("one", f"read 0 {path.stat().st_size}")


main(globals())

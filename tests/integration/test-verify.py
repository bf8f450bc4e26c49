#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""x-verify: mirrors and backups that read back what they have written, to targets that keep it, and to
servers that do not.

usage: test-verify.py [--chaind PATH] [WORD]...
"""
import contextlib
import json
import shutil
import subprocess
import time

from commits import BLOCK, content, create, guests
from harness import KIB, MIB, Skip, check_image, main, qemu_img, qemu_io, random_file, run, same_content, says
from world import World

SIZE = 16 * MIB
GUESTS = 4 * MIB


def make_disk(w, tmp, *options):
    """Data, compressed clusters, zeros and holes; guests have the begin."""
    random_file(tmp / "plain", SIZE)
    with open(tmp / "plain", "r+b") as f:
        f.write(bytes(GUESTS))
        f.seek(10 * MIB)
        f.write(b"same" * MIB)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", tmp / "plain", tmp / "base")
    create(tmp / "top", None, tmp / "base")
    qemu_io(tmp / "top", "write -P 3 6M 1M", "write -z 8M 1M", "write -P 4 15M 100k")
    w.add("top", tmp / "top")
    w.export("top", name="disk")


def start(w, command, target, **arguments):
    w.qmp.command(command, job_id="j", device="top", target=str(target),
                  **{"sync": "full", "x_verify": True, **arguments})


def end(w, is_mirror):
    while is_mirror and (jobs := w.qmp.command("query-jobs")):
        if jobs[0]["status"] == "ready":
            w.qmp.command("block-job-cancel", device="j")
            break
        time.sleep(0.01)
    done = w.qmp.event("BLOCK_JOB_COMPLETED")
    while w.qmp.command("query-jobs"):
        time.sleep(0.01)
    return done


@contextlib.contextmanager
def server(tmp, *plugin):
    if not shutil.which("nbdkit"):
        raise Skip("nbdkit is not installed")
    sock = tmp / "server.sock"
    with subprocess.Popen(["nbdkit", "-f", "-U", sock, *plugin]) as process:
        try:
            while not sock.exists():
                time.sleep(0.02)
            yield f"nbd+unix:///?socket={sock}"
        finally:
            process.terminate()
    sock.unlink(missing_ok=True)


def test_good_targets(tmp):
    """Files, images and servers that keep what they are told: the copy is one, compressed ones too, while
    guests write"""
    with World(tmp) as w:
        make_disk(w, tmp)
        n = 0
        with guests(w, "disk", 2, GUESTS // BLOCK, 8):
            for command in ("drive-mirror", "drive-backup"):
                for arguments in ({"format": "qcow2"}, {"format": "raw"},
                                  {"format": "qcow2", "compress": True} if "backup" in command
                                  else {"format": "qcow2", "copy_mode": "write-blocking"}):
                    n += 1
                    start(w, command, tmp / f"t{n}", **arguments)
                    done = end(w, "mirror" in command)
                    assert "error" not in done, done
    disk = content(tmp / "top", tmp / "raw")
    for i, fmt in enumerate(("qcow2", "raw", "qcow2") * 2, 1):
        assert content(tmp / f"t{i}", tmp / "raw", fmt)[GUESTS:] == disk[GUESTS:], i
        if fmt == "qcow2":
            check_image(tmp / f"t{i}")


def test_compressed(tmp):
    """Clusters that the job compresses are compared by what they show, the disk's last one too"""
    with World(tmp) as w:
        make_disk(w, tmp)
        start(w, "drive-backup", tmp / "t", format="qcow2", compress=True)
        done = end(w, False)
        assert "error" not in done, done
    assert json.loads(run("qemu-img", "check", "--output=json", tmp / "t").stdout)["compressed-clusters"] > 16
    same_content(tmp / "t", tmp / "top", "qcow2", "qcow2")


def expect_failure(w, uri, **arguments):
    for command in ("drive-mirror", "drive-backup"):
        start(w, command, uri, mode="existing", format="raw", **arguments)
        done = w.qmp.event("BLOCK_JOB_COMPLETED")
        says(done["error"], "is not what was written there")
        while w.qmp.command("query-jobs"):
            time.sleep(0.01)
        assert w.qmp.command("query-block-exports")[0]["node-name"] == "top"


def test_server_that_forgets(tmp):
    """A server that drops what it is sent: the job fails and says where; without x-verify it does not"""
    with World(tmp) as w, server(tmp, "null", str(SIZE)) as uri:
        make_disk(w, tmp)
        start(w, "drive-mirror", uri, mode="existing", format="raw", x_verify=False)
        assert "error" not in end(w, True)
        expect_failure(w, uri)


def test_server_that_keeps_old_data(tmp):
    """A server whose zeros are none: found where nothing but zeros is copied"""
    script = ["eval", f"get_size=echo {SIZE}", "pread=head -c $3 /dev/zero | tr '\\0' x", "pwrite=cat >/dev/null",
              "zero=exit 0", "can_write=exit 0", "can_zero=exit 0"]
    with World(tmp) as w, server(tmp, *script) as uri:
        create(tmp / "top", SIZE)
        w.add("top", tmp / "top")
        w.export("top", name="disk")
        expect_failure(w, uri)


if __name__ == "__main__":
    main(globals())

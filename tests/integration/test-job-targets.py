#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The target of each job fails: a write or a flush, with EIO or ENOSPC, once or for good, under each policy.
Users hear what failed and where, a guest beside it notices nothing, and the disk shows what it did.

usage: test-job-targets.py [--chaind PATH] [WORD]...
"""
import commits
from harness import KIB, MIB, check_image, main, qemu_io, run, says
from world import World

SIZE = 4 * MIB
ERRNOS = {5: "Input/output error", 28: "No space left on device"}
POLICIES = ("report", "stop", "enospc", "ignore")

# Command, arguments, name of its policy, node that is written, whether its user completes it.
JOBS = {
    "mirror": ("blockdev-mirror", {"device": "top", "target": "copy", "sync": "full"}, "on-target-error", "copy", True),
    "backup": ("blockdev-backup", {"device": "top", "target": "copy", "sync": "full"}, "on-target-error", "copy", False),
    "active": ("block-commit", {"device": "top", "base-node": "base"}, "on-error", "base", True),
    "commit": ("block-commit", {"device": "top", "top-node": "middle", "base-node": "base", "backing-file": "base"},
               "on-error", "base", False),
    "stream": ("block-stream", {"device": "top"}, "on-error", "top", False),
}


class Case:
    """One job, and one fault of the node that it writes."""

    def __init__(self, tmp, job, operation, errno, policy, once):
        self.tmp, self.job, self.operation, self.errno, self.policy, self.once = tmp, job, operation, errno, policy, once
        self.command, self.arguments, self.policy_name, self.target, self.completes = JOBS[job]

    def __str__(self):
        return f"{self.job}: {self.operation}, {ERRNOS[self.errno]}, {self.policy}, once={self.once}"

    def is_asked(self):
        """Do the job's users say what becomes of it? A flush at the end of a job that guests do not write beside
        has nothing to try again."""
        return self.operation == "write" or self.completes

    def action(self):
        if self.policy == "enospc":
            return "stop" if self.errno == 28 else "report"
        return self.policy

    def ends_well(self):
        is_over = self.action() == "report" or (self.job == "stream" and self.action() == "ignore")
        return self.once and self.is_asked() and not is_over

    def make(self):
        self.tmp.mkdir()
        commits.create(self.tmp / "base", SIZE)
        commits.create(self.tmp / "middle", None, self.tmp / "base")
        commits.create(self.tmp / "top", None, self.tmp / "middle")
        commits.create(self.tmp / "copy", SIZE)
        for i, name in enumerate(("base", "middle", "top")):
            qemu_io(self.tmp / name, f"write -q -P {i + 1} {i * 512}k 1M")
        self.shown = commits.content(self.tmp / "top", self.tmp / "raw")

    def add(self, w, name, below=None):
        """The node that is written fails above its format, so nothing of it is broken for good."""
        options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(self.tmp / name)}, "discard": "unmap",
                   "read-only": name in ("base", "middle")}
        if below:
            options["backing"] = below
        if name == self.target:
            rule = {"event": "none", "iotype": self.operation, "errno": self.errno, "once": self.once}
            if name == "top":  # a stream fills the image, whatever lies over it
                options["file"] = {"driver": "blkdebug", "image": options["file"], "inject-error": [rule]}
            else:
                options = {"driver": "blkdebug", "image": options, "inject-error": [rule],
                           "read-only": options["read-only"]}
        w.qmp.command("blockdev-add", **{"node-name": name, **options})

    def start(self, w):
        self.add(w, "base")
        self.add(w, "middle", "base")
        self.add(w, "top", "middle")
        self.add(w, "copy")
        w.export("top", name="disk")
        w.qmp.command(self.command, **{"job-id": "j", self.policy_name: self.policy, **self.arguments})

    def hear(self, w):
        event = w.qmp.event("BLOCK_JOB_ERROR")
        assert event == {"device": "j", "operation": "write", "action": self.action()}, event
        if self.action() != "stop":
            return
        while w.qmp.event("JOB_STATUS_CHANGE")["status"] not in ("paused", "standby"):
            pass
        job, = w.qmp.command("query-block-jobs")
        assert job["paused"] and job["io-status"] == ("nospace" if self.errno == 28 else "failed"), job
        w.io("disk", "read -q -P 3 1M 1M", "read -q -P 1 0 512k")
        w.qmp.command("job-resume", id="j")

    def cancel(self, w):
        """Whoever tries again for good is told again, until its user gives up."""
        self.hear(w)
        w.qmp.event("BLOCK_JOB_ERROR")
        w.qmp.command("block-job-cancel", device="j", force=True)
        w.qmp.event("BLOCK_JOB_CANCELLED")
        commits.await_status(w.qmp, "j", "null")

    def drive(self, w):
        is_late = self.operation == "flush"
        if self.completes and (is_late or self.ends_well()):
            if not is_late:
                self.hear(w)
            w.qmp.event("BLOCK_JOB_READY")
            w.qmp.command("job-complete", id="j")
        if self.is_asked() and not self.once and self.action() in ("stop", "ignore"):
            self.cancel(w)
            return
        if self.is_asked() and (is_late or not self.completes or not self.ends_well()):
            self.hear(w)
        end = commits.end_of(w.qmp)
        if self.ends_well():
            assert "error" not in end, end
        else:
            says(end["error"], ERRNOS[self.errno], self.target)

    def is_broken(self):
        """A file whose flush has failed is written no more."""
        return self.job == "stream" and self.operation == "flush"

    def check(self, w):
        w.io("disk", "read -q -P 3 1M 1M", "read -q -P 2 512k 512k", "read -q -P 1 0 512k")
        if not self.is_broken():
            w.io("disk", "write -q -P 9 3M 64k")

    def check_files(self):
        is_pivoted = self.ends_well() and self.completes
        head = self.target if is_pivoted else "top"
        if self.is_broken():
            run("qemu-img", "check", "-q", "-r", "leaks", self.tmp / head)
        check_image(self.tmp / head)
        written = b"" if self.is_broken() else bytes([9]) * 64 * KIB
        expected = self.shown[:3 * MIB] + written + self.shown[3 * MIB + len(written):]
        assert commits.content(self.tmp / head, self.tmp / "raw") == expected
        if self.ends_well() and self.job == "backup":
            assert commits.content(self.tmp / "copy", self.tmp / "raw") == self.shown

    def run(self):
        self.make()
        w = World(self.tmp)
        try:
            self.start(w)
            self.drive(w)
            self.check(w)
            w.daemon.process.terminate()  # what cannot be flushed is told then
            w.daemon.wait()
        finally:
            w.qmp.close()
            if w.daemon.process.poll() is None:
                w.daemon.kill()
        self.check_files()


def run_cases(tmp, job, onces=(True, False)):
    n = 0
    for operation in ("write", "flush"):
        for errno in ERRNOS:
            for policy in POLICIES:
                for once in onces:
                    case = Case(tmp / str(n), job, operation, errno, policy, once)
                    try:
                        case.run()
                    except BaseException:
                        print(f"# {case}")
                        raise
                    n += 1
    print(f"# {n} cases")


def test_mirror(tmp):
    """What a mirror writes to"""
    run_cases(tmp, "mirror")


def test_backup(tmp):
    """What a backup writes to"""
    run_cases(tmp, "backup")


def test_active_commit(tmp):
    """The base of a head that is committed"""
    run_cases(tmp, "active")


def test_commit(tmp):
    """The base of a layer in the middle that is committed"""
    run_cases(tmp, "commit")


def test_stream(tmp):
    """The image that a stream fills, which guests write, too: once, for after that it is broken"""
    run_cases(tmp, "stream", (True,))


if __name__ == "__main__":
    main(globals())

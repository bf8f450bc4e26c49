# SPDX-License-Identifier: LGPL-2.1-or-later
"""gdb commands for fibers. Load with `source chaind-gdb.py` in a gdb that is attached to a program of
this project, or looks at its core file:

    fibers              every fiber of every loop: name, state, where it waits, address
    fiber-bt ADDRESS    the stack of one suspended fiber (a running program only, not a core file)

Loops are found through the threads that run them. The saved registers lie where fiber-switch.S puts them.
"""
import gdb

STATES = {0: "queued", 1: "running", 2: "suspended", 3: "ended"}
# From the saved stack pointer upwards.
SAVED = {"x86-64": ["r15", "r14", "r13", "r12", "rbx", "rbp", "rip"]}


def loops():
    """Every Loop * that some frame of some thread names, each once."""
    found = {}
    before = gdb.selected_thread()
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        frame = gdb.newest_frame()
        while frame is not None:
            if frame.name() in ("loop_run", "host_wait"):
                try:
                    loop = frame.read_var("loop")
                    if not loop.is_optimized_out and loop.type.code == gdb.TYPE_CODE_PTR:
                        found[int(loop)] = loop.cast(gdb.lookup_type("Loop").pointer())
                except ValueError:
                    pass
            frame = frame.older()
    if before is not None:
        before.switch()
    return list(found.values())


class Fibers(gdb.Command):
    """fibers: list every fiber of every loop."""

    def __init__(self):
        super().__init__("fibers", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        all_loops = loops()
        if not all_loops:
            raise gdb.GdbError("no thread is inside loop_run() or host_wait()")
        for loop in all_loops:
            print(f"loop {hex(int(loop))}: {int(loop['n_fibers'])} fibers")
            fiber = loop["fibers"]
            while int(fiber):
                state = STATES.get(int(fiber["state"]), "?")
                where = fiber["where"]
                waits = f" in {where.string()}" if state == "suspended" and int(where) else ""
                cancelled = ", cancelled" if fiber["is_cancelled"] else ""
                print(f"  {hex(int(fiber))}  {fiber['name'].string():20} {state}{waits}{cancelled}")
                fiber = fiber["next"]


class FiberBt(gdb.Command):
    """fiber-bt ADDRESS: the stack of a suspended fiber."""

    def __init__(self):
        super().__init__("fiber-bt", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        arch = gdb.selected_frame().architecture().name()
        names = SAVED.get("x86-64" if "x86-64" in arch else arch)
        if not names:
            raise gdb.GdbError(f"the layout of saved registers is not known for {arch}")
        fiber = gdb.parse_and_eval(argument).cast(gdb.lookup_type("Fiber").pointer())
        if STATES.get(int(fiber["state"])) == "running":
            raise gdb.GdbError("it is running: use bt in its thread")
        word = gdb.lookup_type("unsigned long")
        saved = fiber["context"].cast(word.pointer())
        gdb.newest_frame().select()
        before = {n: int(gdb.parse_and_eval(f"(unsigned long)${n}")) for n in names + ["rsp"]}
        try:
            for i, name in enumerate(names):
                gdb.execute(f"set ${name} = {int(saved[i])}")
            gdb.execute(f"set $rsp = {int(fiber['context']) + 8 * len(names)}")
            gdb.execute("backtrace")
        finally:
            for name, value in before.items():
                gdb.execute(f"set ${name} = {value}")


Fibers()
FiberBt()

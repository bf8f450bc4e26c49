#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client that speaks as python's qemu.qmp does, which is not always installed: asyncio, one line a
message, requests without newlines, ids of its own for each, several commands under way at once, events
in between, and ends at any moment."""
import asyncio
import itertools
import json
import os
import socket
import struct

import harness
from harness import Daemon, HANG, main, qemu_img
from qmp_client import Qmp

LINE_BYTES = 10 << 20  # qemu.qmp's limit of a line


class Client:
    """Replies go to those who wait for their id; what is no reply of anybody is an event."""

    def __init__(self):
        self.pending, self.events, self.numbers = {}, [], itertools.count()
        self.other_replies = []

    async def connect(self, path):
        self.reader, self.writer = await asyncio.open_unix_connection(str(path), limit=LINE_BYTES)
        greeting = await self.receive()
        assert set(greeting) == {"QMP"} and set(greeting["QMP"]) == {"version", "capabilities"}
        assert isinstance(greeting["QMP"]["version"], dict), greeting
        capabilities = greeting["QMP"]["capabilities"]
        assert isinstance(capabilities, list), greeting
        arguments = {"enable": ["oob"]} if "oob" in capabilities else {}
        self.send({"execute": "qmp_capabilities", "arguments": arguments})
        assert await self.receive() == {"return": {}}
        self.task = asyncio.create_task(self.dispatch())
        return self

    async def receive(self):
        try:
            line = await asyncio.wait_for(self.reader.readline(), HANG)
        except ConnectionResetError:  # it ended with requests that it had not read
            line = b""
        if not line:
            return None
        assert line.endswith(b"\r\n") and line.count(b"\n") == 1, line
        message = json.loads(line)
        assert isinstance(message, dict), message
        return message

    async def dispatch(self):
        while (message := await self.receive()) is not None:
            if "event" in message:
                assert set(message) <= {"event", "data", "timestamp"}, message
                assert set(message["timestamp"]) == {"seconds", "microseconds"}, message
                self.events.append(message)
                continue
            assert ("return" in message) != ("error" in message), message
            name = message.get("id")
            if isinstance(name, str) and name in self.pending:
                self.pending.pop(name).set_result(message)
            else:
                self.other_replies.append(message)
        for future in self.pending.values():
            future.set_exception(ConnectionError("the monitor ended"))

    def send(self, message):
        self.writer.write(json.dumps(message, separators=(",", ":")).encode())

    async def execute(self, command, **arguments):
        name = f"__qmp#{next(self.numbers):05d}"
        message = {"execute": command, "id": name}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.pending[name] = asyncio.get_running_loop().create_future()
        future = self.pending[name]
        self.send(message)
        await self.writer.drain()
        return await asyncio.wait_for(future, HANG)

    async def close(self):
        self.writer.close()
        await self.writer.wait_closed()
        await self.task


def talk(function):
    """A test that is a coroutine, with a daemon and its monitor's path."""
    def test(tmp):
        with Daemon("--qmp", tmp / "q", "--nbd", tmp / "n") as d:
            asyncio.run(function(tmp, d))
            assert d.process.poll() is None
    test.__doc__ = function.__doc__
    return test


@talk
async def test_many_at_once(tmp, d):
    """Commands that are under way at once are each answered, in their order, also from two clients."""
    a, b = await Client().connect(tmp / "q"), await Client().connect(tmp / "q")
    replies = await asyncio.gather(*(c.execute("blockdev-add", driver="null-co", node_name=f"{n}{i}")
                                     for i in range(100) for n, c in (("a", a), ("b", b))))
    assert all(reply["return"] == {} for reply in replies)
    order = [int(reply["id"][-5:]) for reply in replies[::2]]
    assert order == sorted(order), order
    nodes = await a.execute("query-named-block-nodes", flat=True)
    assert len(nodes["return"]) == 200
    refused = await asyncio.gather(*(a.execute("blockdev-del", node_name=f"x{i}") for i in range(50)))
    assert all(reply["error"]["class"] == "GenericError" for reply in refused)
    await asyncio.gather(a.close(), b.close())


@talk
async def test_ids(tmp, d):
    """Any id comes back as it went; an error before it was seen has none."""
    c = await Client().connect(tmp / "q")
    ids = ["", "ä\U0001f600\n", 0, -1, 1 << 62, 1.5, -1e-7, True, False, None, [], [1, ["x"]], {},
           {"a": {"b": [None]}}]
    for sent in ids:
        c.send({"execute": "query-version", "id": sent})
        c.send({"execute": "nope", "id": sent})
        c.send({"execute": "query-version", "arguments": {"x": 1}, "id": sent})
        c.send({"execute": 5, "id": sent})
        c.send({"exec-oob": "query-version", "id": sent})
    c.send({"execute": "query-version"})
    c.writer.write(b'{"id": 7, "execute"}')
    assert "return" in await c.execute("query-version")
    expected = [sent for sent in ids for _ in range(5)]
    assert len(c.other_replies) == len(expected) + 2
    for sent, reply in zip(expected, c.other_replies):
        assert type(reply["id"]) is type(sent) and reply["id"] == sent, (sent, reply)
    assert all("id" not in reply for reply in c.other_replies[-2:]), c.other_replies[-2:]
    await c.close()


@talk
async def test_oob(tmp, d):
    """oob is not offered; who enables it all the same, or uses it, is refused and may go on."""
    reader, writer = await asyncio.open_unix_connection(str(tmp / "q"))
    await reader.readline()

    async def ask(message):
        writer.write(json.dumps(message).encode())
        return json.loads(await reader.readline())
    enable = {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}
    assert (await ask(enable))["error"]["desc"] == "Capabilities not available: oob"
    assert (await ask({"execute": "query-version"}))["error"]["class"] == "CommandNotFound"
    assert "return" in await ask({"execute": "qmp_capabilities", "arguments": {"enable": []}})
    assert (await ask({"exec-oob": "query-version"}))["error"]["desc"] == \
        "QMP input member 'exec-oob' is unexpected"
    assert "return" in await ask({"execute": "query-version"})
    writer.close()


@talk
async def test_events_in_order(tmp, d):
    """Events come to all clients in one order, those of a command before its reply."""
    clients = [await Client().connect(tmp / "q") for _ in range(3)]
    a = clients[0]
    await a.execute("blockdev-add", driver="null-co", node_name="n")
    for i in range(30):
        await a.execute("block-export-add", type="nbd", id=f"e{i}", node_name="n", name=f"e{i}")
    for i in range(30):
        assert "return" in await clients[i % 3].execute("block-export-del", id=f"e{i}")
        assert len(clients[i % 3].events) == i + 1, clients[i % 3].events
    for c in clients:
        await c.execute("query-version")
        assert [e["data"]["id"] for e in c.events] == [f"e{i}" for i in range(30)], c.events
        assert c.events == a.events
        await c.close()


@talk
async def test_line_ends(tmp, d):
    """Requests may end in nothing, LF, CRLF or blanks, and lie over several lines."""
    c = await Client().connect(tmp / "q")
    for end in "", "\n", "\r\n", "\r\n\r\n", "  \t ", "\n \n":
        c.writer.write((json.dumps({"execute": "query-version", "id": end}, indent=4)
                        .replace("\n", "\r\n") + end).encode())
    await c.execute("query-version")
    assert [reply["id"] for reply in c.other_replies] == ["", "\n", "\r\n", "\r\n\r\n", "  \t ", "\n \n"]
    assert all("return" in reply for reply in c.other_replies)
    await c.close()


def test_abrupt_end(tmp):
    """A client that is gone with replies pending leaves nothing behind; what it began takes effect."""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    with Daemon("--qmp", tmp / "q") as d:
        stays = Qmp(tmp / "q")
        n_open = len(os.listdir(f"/proc/{d.process.pid}/fd"))
        for i in range(40):
            q = Qmp(tmp / "q")
            add = {"execute": "blockdev-add", "arguments": {
                "driver": "qcow2", "node-name": f"n{i}", "read-only": True,
                "file": {"driver": "file", "filename": str(tmp / "a.qcow2")}}}
            requests = [add] + [{"execute": "query-qmp-schema"}] * (i % 4 * 10)
            q.send("".join(map(json.dumps, requests)).encode())
            if i % 2:  # a reset, and not an end after what was sent
                q.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            q.close()
        names = {f"n{i}" for i in range(40)}
        deadline = harness.time.monotonic() + HANG
        while {n["node-name"] for n in stays.command("query-named-block-nodes")} & names != names:
            assert harness.time.monotonic() < deadline
        for name in names:
            stays.command("blockdev-del", node_name=name)
        while len(os.listdir(f"/proc/{d.process.pid}/fd")) > n_open:
            assert harness.time.monotonic() < deadline
            stays.command("query-version")
        d.stop()


def test_quit_beside_others(tmp):
    """quit is answered; every client sees the end after all replies that are due."""
    async def ask():
        a, b = await Client().connect(tmp / "q"), await Client().connect(tmp / "q")
        pending = [asyncio.ensure_future(b.execute("query-qmp-schema")) for _ in range(5)]
        await asyncio.sleep(0)
        assert (await a.execute("quit"))["return"] == {}
        for done in await asyncio.gather(*pending, return_exceptions=True):
            assert isinstance(done, ConnectionError) or "return" in done, done
        await asyncio.gather(a.task, b.task)
    d = Daemon("--qmp", tmp / "q")
    asyncio.run(ask())
    assert d.wait() == 0


if __name__ == "__main__":
    main(globals())

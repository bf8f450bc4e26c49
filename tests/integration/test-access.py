#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may use which export: users and groups of unix sockets, addresses, and what TLS has verified."""
import json
import os
import sys

from harness import Daemon, Skip, main, qemu_img, run
from pki import make_keys

NOBODY = 65534


def serve(tmp, text):
    for name in ("web", "db"):
        qemu_img("create", "-q", "-f", "qcow2", tmp / f"{name}.qcow2", "1M")
    (tmp / "c.conf").write_text(text)
    tmp.chmod(0o755)
    return Daemon("--config", tmp / "c.conf", f"web={tmp}/web.qcow2", f"db={tmp}/db.qcow2")


TRY = """
import json, os, socket, sys
import nbd
uri, uid, gid, groups, source = json.loads(sys.argv[1])
if gid is not None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)

def handle():
    h = nbd.NBD()
    h.set_opt_mode(True)
    if source:
        s = socket.socket()
        s.bind((source, 0))
        s.connect((uri.split("//")[1].split(":")[0], int(uri.rsplit(":", 1)[1])))
        h.connect_socket(s.detach())
    else:
        h.set_uri_allow_local_file(True)
        h.connect_uri(uri)
    return h

seen, usable = [], []
handle().opt_list(lambda name, description: seen.append(name) or 0)
for name in ("web", "db"):
    h = handle()
    h.set_export_name(name)
    try:
        h.opt_go()
        h.pread(512, 0)
        usable.append(name)
    except nbd.Error as e:
        h = handle()
print(json.dumps([sorted(seen), sorted(usable)]))
"""


def what(uri, uid=None, gid=None, groups=(), source=None):
    """What a client of that user, or that address, sees listed and may use."""
    if uid is not None and os.getuid():
        raise Skip("only root can become another user")
    done = run(sys.executable, "-c", TRY, json.dumps([uri, uid, gid, list(groups), source]))
    seen, usable = json.loads(done.stdout)
    assert seen == usable, f"listed {seen}, usable {usable}"
    return usable


def unix(tmp):
    return f"nbd+unix:///?socket={tmp}/s"


def on(tmp):
    return f"[listen a]\naddress = {tmp}/s\nmode = 0666\n"


def test_everybody(tmp):
    """without a policy everybody may use everything"""
    with serve(tmp, on(tmp)):
        assert what(unix(tmp)) == ["db", "web"]
        assert what(unix(tmp), NOBODY, NOBODY) == ["db", "web"]


def test_uid(tmp):
    """an export is for the users that are named, and always for root"""
    with serve(tmp, on(tmp) + f"[export web]\nallow-uid = {NOBODY}; 1234\n"):
        assert what(unix(tmp), NOBODY, NOBODY) == ["db", "web"]
        assert what(unix(tmp), 1234, 1) == ["db", "web"]
        assert what(unix(tmp), 1235, NOBODY) == ["db"]
        assert what(unix(tmp)) == ["db", "web"]


def test_gid(tmp):
    """an export is for members of groups, the first one and others"""
    with serve(tmp, on(tmp) + "[export *]\nallow-gid = 4321\n[export db]\nallow-uid = 77\n"):
        assert what(unix(tmp), 1000, 4321) == ["db", "web"]
        assert what(unix(tmp), 1000, 1000, [5, 4321]) == ["db", "web"]
        assert what(unix(tmp), 1000, 1000, [5]) == []
        assert what(unix(tmp), 77, 1000) == ["db"]


def test_address(tmp):
    """an export is for clients from ranges of addresses"""
    text = "[listen a]\naddress = 127.0.0.1:0\n[export web]\nallow-address = 127.0.0.2; 10.0.0.0/8\n"
    with serve(tmp, text) as d:
        uri = "nbd://127.0.0.1:" + d.uris()[0].split(":")[2].split("/")[0]
        assert what(uri, source="127.0.0.1") == ["db"]
        assert what(uri, source="127.0.0.2") == ["db", "web"]
        assert what(uri, source="127.0.0.3") == ["db"]


def test_unix_is_no_address(tmp):
    """an export for addresses only is not for clients of unix sockets"""
    with serve(tmp, on(tmp) + "[export web]\nallow-address = 0.0.0.0/0; ::/0\n"):
        assert what(unix(tmp), NOBODY, NOBODY) == ["db"]


def test_tls(tmp):
    """an export is for who TLS says a client is"""
    keys = make_keys(tmp / "keys", "alice", "bob")
    text = (f"[listen a]\naddress = 127.0.0.1:0\ntls-psk = {keys}/keys.psk\n"
            "[export web]\nallow-tls = ali*; carol\n")
    with serve(tmp, text) as d:
        port = d.uris()[0].split(":")[2].split("/")[0]

        def uri(user):
            return f"nbds://{user}@127.0.0.1:{port}/?tls-psk-file={keys}/keys.psk"
        assert what(uri("alice")) == ["db", "web"]
        assert what(uri("bob")) == ["db"]


def test_refusal(tmp):
    """who may not use an export is told so, and qemu-img too"""
    with serve(tmp, on(tmp) + "[export web]\nallow-uid = 1234\n"):
        if os.getuid():
            raise Skip("only root can become another user")
        done = run("qemu-img", "info", f"nbd+unix:///web?socket={tmp}/s", check=False,
                   user=NOBODY, group=NOBODY, extra_groups=[])
        assert done.returncode and "this export is not for you" in done.stderr, done.stderr


main(globals())

#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration's files: what is checked, what wins, when they are read."""
import grp
import os

import chainctl
from harness import ROOT, Daemon, Skip, connect, fails, main, qemu_img, run, says
from pki import Authority, make_keys
from qmp_client import Qmp
import harness

PAGE = ROOT / "docs/chaind.conf.pod"


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_check_right(tmp):
    """--check-config names each file that is right, and exits 0."""
    file = write(tmp / "c.conf", "[daemon]\nloops = 2\n")
    drop_in = write(tmp / "c.conf.d/10.conf", "[daemon]\nlog = debug\n")
    done = run(harness.chaind_path, "--check-config", "--config", file)
    assert done.stdout == f"{file}: ok\n{drop_in}: ok\n", done.stdout
    assert done.stderr == "", done.stderr


def test_check_wrong(tmp):
    """--check-config names each mistake of all files with its line, and exits 1."""
    file = write(tmp / "c.conf", "[daemon]\nlops = 2\nlog = loud\n")
    drop_in = write(tmp / "c.conf.d/10.conf", "\n[demon]\n")
    done = run(harness.chaind_path, "--check-config", "--config", file, check=False)
    assert done.returncode == 1 and done.stdout == "", done
    says(done.stderr, f"chaind: {file}:2: [daemon] has no 'lops': did you mean 'loops'?",
         f"chaind: {file}:3: 'log' is error, warning, info or debug, not 'loud'",
         f"chaind: {drop_in}:2: there is no section 'demon': did you mean 'daemon'?")


def test_check_nothing(tmp):
    """--check-config says where it has found nothing, and exits 0"""
    script = f"mount -t tmpfs none /usr/local/etc && mount -t tmpfs none /etc && {harness.chaind_path} --check-config"
    done = run("unshare", "-m", "sh", "-c", script, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        raise Skip("this machine has no mount namespaces for us")
    assert done.returncode == 0, done
    says(done.stdout, "there is neither /", "/chaind.conf nor anything in ", "the defaults hold")
    done = run(harness.chaind_path, "--check-config", "--service", "--config", "none")
    assert done.stdout == "no configuration is asked for: the defaults hold\n", done.stdout


def test_no_start_with_mistakes(tmp):
    """With a mistake in its files the daemon does not start, and opens nothing."""
    file = write(tmp / "c.conf", f"[daemon]\nstate = {tmp}/state\nlops = 2\n")
    says(fails("--config", file, status=2), f"{file}:3: ", "'loops'")
    assert not (tmp / "state").exists()


def test_state_from_file(tmp):
    """A file says where disks are remembered, and then no FILE is needed."""
    file = write(tmp / "c.conf", f"[daemon]\nstate = {tmp}/state\nlog = debug\n")
    with Daemon("--config", file):
        assert (tmp / "state/chaind.db").exists()


def test_command_line_wins(tmp):
    """What the command line says wins over the files."""
    file = write(tmp / "c.conf", f"[daemon]\nstate = {tmp}/of-the-file\n")
    with Daemon("--state", tmp / "of-the-line", "--config", file):
        assert (tmp / "of-the-line/chaind.db").exists()
        assert not (tmp / "of-the-file").exists()


def test_nothing_to_serve(tmp):
    """A configuration with nothing to serve is told so."""
    says(fails("--config", write(tmp / "c.conf", "[daemon]\nlog = info\n"), status=2), "no FILE")


def test_file_must_be_there(tmp):
    """A file that was named must be there; 'none' names none."""
    says(fails("--config", tmp / "c.conf", status=2), f"{tmp}/c.conf: cannot be read: No such file")
    says(fails("--config", "none", status=2), "no FILE")


# -- sections -------------------------------------------------------------------------------------

def check(file, text):
    """What --check-config says of a file with that text, without its name."""
    write(file, text)
    done = run(harness.chaind_path, "--check-config", "--config", file, check=False)
    return done.stderr.replace(f"chaind: {file}", "").splitlines()


def test_sections(tmp):
    """mistakes in and between the keys of sections are named with their line"""
    file = tmp / "c.conf"
    for text, said in [
            ("[listen a]\n", ":1: [listen a] needs 'address'"),
            ("[listen]\naddress = :1\n", ":1: 'listen' needs a name: write [listen NAME]"),
            ("[control a]\npath = x\n", ":2: 'path' is an absolute path, not 'x'"),
            ("[listen a]\naddress = :1\n[listen b]\naddress = :1\n",
             ":4: [listen b] has the 'address' of [listen a]: remove one of the two"),
            ("[listen a]\naddress = :x\n",
             ":2: 'address' is an absolute path, HOST:PORT, [IPV6]:PORT or :PORT, not ':x'"),
            ("[listen a]\naddress = :1\nmode = 888\n",
             ":3: 'mode' is a mode in octal, such as 0660, not '888'"),
            ("[listen a]\naddress = :1\nowner = nobody-of-that-name\n",
             ":3: 'owner' is a user of this machine, by name or number, not 'nobody-of-that-name'"),
            ("[listen a]\naddress = :1\ntls = require\n",
             ":3: 'tls' needs tls-certificates or tls-psk"),
            ("[listen a]\naddress = :1\ntls-verify-peer = yes\n",
             ":3: 'tls-verify-peer' needs tls-certificates"),
            ("[daemon]\nmetrics-listen = localhost:http\n",
             ":2: 'localhost:http': the port must be a number from 0 to 65535, such as 10809; for a "
             "file name with a colon write ./NAME"),
            ("[throttle-group a]\nbps = 1M\niops = 5\nwrite-iops = 5\n",
             ":3: 'iops' is for both directions: leave it, or the others"),
            ("[throttle-group a]\nread-bps = 1000T\n",
             ":2: 'read-bps' is a size from 0 to 900T, such as 64M, not '1000T'"),
            ("[throttle-group a]\n[export w*]\nthrottle-group = b\n",
             ":3: 'throttle-group': there is no [throttle-group b]"),
            ("[export a]\nallow-address = 10.0.0.1/8\n",
             ":2: 'allow-address' is ranges of addresses, such as '10.1.0.0/16; 2001:db8::1', not "
             "'10.0.0.1/8'"),
    ]:
        assert check(file, text) == [said], check(file, text)


def test_files_of_tls(tmp):
    """certificates, keys and lists that cannot be used are named with the line of their key"""
    file = tmp / "c.conf"
    good = Authority(tmp / "good").issue("server", "server").folder
    old = Authority(tmp / "old").issue("server", "server", valid=False).folder
    keys = make_keys(tmp / "keys", "alice") / "keys.psk"
    broken = write(tmp / "broken.psk", f"# of the lab\n\n{keys.read_text()}bob:no-hex\n")
    listed = write(tmp / "list.json", '{"policy": "deny"}')
    garbled = write(tmp / "garbled.json", '{"policy": "perhaps"}')
    head = f"[listen a]\naddress = {tmp}/a\n"
    for keys_of_tls, said in [
            (f"tls-certificates = {good}\n", None),
            (f"tls-certificates = {tmp}/absent\n",
             f":3: Unable to access credentials {tmp}/absent/ca-cert.pem: No such file or directory"),
            (f"tls-certificates = {old}\n", ":3: The server certificate "
             f"{old}/server-cert.pem has expired"),
            (f"tls-psk = {keys}\ntls-authz = {listed}\n", None),
            (f"tls-psk = {tmp}/absent\n",
             f":3: Unable to access credentials {tmp}/absent: No such file or directory"),
            (f"tls-psk = {broken}\n",
             f":3: {broken}:4: a line is USER:KEY, with the key in hexadecimal digits, as psktool "
             "writes it"),
            (f"tls-psk = {keys}\ntls-authz = {garbled}\n",
             f":4: Unable to read '{garbled}': a policy is 'allow' or 'deny'"),
            (f"tls-psk = {tmp}/absent\ntls-authz = {tmp}/absent\ntls = off\n", None),
    ]:
        said = [said] if said else []
        assert check(file, head + keys_of_tls) == said, check(file, head + keys_of_tls)
    two = f"{head}tls-psk = {tmp}/x\n[listen b]\naddress = {tmp}/b\ntls-certificates = {tmp}/y\n"
    assert len(check(file, two)) == 2, check(file, two)


def test_tls_off(tmp):
    """what is said of TLS does not matter where it is off"""
    file = write(tmp / "c.conf", f"[daemon]\nstate = {tmp}/state\n[listen a]\naddress = {tmp}/a\n"
                                 f"tls-psk = {tmp}/p\ntls-authz = {tmp}/l\ntls = off\n")
    with Daemon("--config", file):
        assert (tmp / "a").exists()


def test_section_taken_back(tmp):
    """a drop-in takes a section back by an empty value"""
    file = write(tmp / "c.conf", f"[daemon]\nstate = {tmp}/state\n[listen a]\naddress = {tmp}/a\n")
    with Daemon("--config", file):
        assert (tmp / "a").exists()
    write(tmp / "c.conf.d/10.conf", f"[listen a]\naddress =\n[listen b]\naddress = {tmp}/b\n")
    with Daemon("--config", file):
        assert (tmp / "b").exists() and not (tmp / "a").exists()


def test_control(tmp):
    """sockets for commands are where the files say, with their permissions; --qmp replaces them"""
    file = write(tmp / "c.conf", f"[control a]\npath = {tmp}/a\n"
                                 f"[control b]\npath = {tmp}/b\nmode = 0660\n"
                                 "read-only = yes\n")
    with Daemon("--config", file):
        for name, mode in (("a", 0o600), ("b", 0o660)):
            assert (tmp / name).stat().st_mode & 0o777 == mode
        Qmp(tmp / "a").command("set-log-level", level="debug")
        Qmp(tmp / "b").error("set-log-level", level="info")
    with Daemon("--config", file, "--qmp", tmp / "q"):
        Qmp(tmp / "q").close()
        assert not (tmp / "a").exists() and not (tmp / "b").exists()


def test_group(tmp):
    """a socket gets the group that the file says"""
    if os.getuid():
        raise Skip("only root gives files away")
    group = grp.getgrall()[-1]
    file = write(tmp / "c.conf", f"[control a]\npath = {tmp}/a\ngroup = {group.gr_name}\n"
                                 f"[listen b]\naddress = {tmp}/b\ngroup = {group.gr_gid}\n"
                                 f"owner = 1234\n")
    with Daemon("--config", file):
        assert (tmp / "a").stat().st_gid == group.gr_gid
        assert ((tmp / "b").stat().st_uid, (tmp / "b").stat().st_gid) == (1234, group.gr_gid)


def test_files_and_listeners(tmp):
    """a FILE is served on the sockets of the files, and its URIs are printed"""
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    file = write(tmp / "c.conf", f"[listen a]\naddress = {tmp}/s\n"
                                 "[listen b]\naddress = 127.0.0.1:0\n")
    with Daemon("--config", file, tmp / "a.qcow2") as d:
        assert len(d.uris()) == 2, d.uris()
        for uri in d.uris():
            connect(uri).shutdown()


def test_service(tmp):
    """the service has sockets and disks at its places, where chainctl finds it, without any file"""
    script = ("set -e; mount -t tmpfs none /run; mount -t tmpfs none /var/lib; "
              f"{harness.chaind_path} --service --config none & p=$!; "
              "for i in $(seq 1000); do [ -S /run/chaind/control.sock ] && break; sleep 0.01; done; "
              f"unset CHAIND_SOCKET; {chainctl.path} create web 1M; {chainctl.path} ls -H; "
              "stat -c '%a %n' /run/chaind/*; ls /var/lib/chaind; kill $p; wait $p")
    if os.getuid():
        raise Skip("only root mounts file systems")
    done = run("unshare", "-m", "bash", "-c", script, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        raise Skip("this machine has no mount namespaces for us")
    says(done.stdout, "nbd+unix:///web?socket=/run/chaind/nbd.sock", "660 /run/chaind/control.sock",
         "660 /run/chaind/nbd.sock", "chaind.db")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


# -- the manual -----------------------------------------------------------------------------------

def test_reference(tmp):
    """chaind.conf(5) describes every key as the program has it"""
    page = PAGE.read_text("utf-8")
    part = page.split("=for comment What follows is written by chaind --config-reference.\n\n")[1]
    assert part.split("=for comment So far.\n")[0] == run(harness.chaind_path,
                                                         "--config-reference").stdout


def examples():
    """path -> text, of the files in chaind.conf(5)'s EXAMPLES; and the lines that commands print."""
    page = PAGE.read_text("utf-8").split("=head1 EXAMPLES\n")[1].split("=head1")[0]
    files, printed, path = {}, [], None
    for line in page.splitlines():
        if line.startswith("    # /"):
            path = line[6:]
            files[path] = ""
        elif line.startswith("    "):
            if line.startswith("    $ "):
                path = None
            elif path:
                files[path] += line[4:] + "\n"
            else:
                printed.append(line[4:])
        elif line:
            path = None
        elif path:
            files[path] += "\n"
    assert len(files) == 4 and len(printed) == 4, (files, printed)
    return files, printed


def test_examples(tmp):
    """the examples of chaind.conf(5) are right, and do what they say"""
    files, printed = examples()
    qemu_img("create", "-q", "-f", "qcow2", tmp / "a.qcow2", "1M")
    here = {"/run/chaind": tmp, "/etc/chaind": tmp / "etc", ":10809": "127.0.0.1:0",
            "group = kvm": f"group = {os.getgid()}", "group = adm": f"group = {os.getgid()}",
            "allow-gid = kvm": "allow-gid = 4321"}

    def local(text):
        for known, mine in here.items():
            text = text.replace(known, str(mine))
        return text
    here["/etc/pki/chaind"] = Authority(tmp / "pki").issue("server", "server").issue(
        "client", "client").folder
    for path, text in files.items():
        (tmp / "etc/chaind.conf.d").mkdir(parents=True, exist_ok=True)
        write(tmp / local(path), local(text))
    main_file = tmp / "etc/chaind.conf"
    done = run(harness.chaind_path, "--check-config", "--config", main_file)
    assert done.stdout.splitlines() == [local(line) for line in printed], done.stdout
    with Daemon("--config", main_file, f"lab-1={tmp}/a.qcow2") as d:
        Qmp(tmp / "control.sock").close()
        [uri] = [u for u in d.uris() if u.startswith("nbds://")]
        run("nbdinfo", uri.replace("127.0.0.1", "localhost"))
        if os.getuid():
            raise Skip("only root can become another user, to be refused")
        tmp.chmod(0o755)
        denied = run("nbdinfo", f"nbd+unix:///lab-1?socket={tmp}/nbd.sock", check=False,
                     user=65534, group=os.getgid(), extra_groups=[])
        says(denied.stderr, "server replied with error to opt_go request")


main(globals())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Authorities, certificates and shared keys, in directories as QEMU and nbdkit lay them out, made by
certtool and psktool."""
from harness import need_program, run


class Authority:
    """Keys are RSA: QEMU's checks want certificates that encrypt keys."""

    def __init__(self, folder, name="authority"):
        need_program("certtool")
        folder.mkdir()
        self.folder = folder
        self.template("ca", f"cn = {name}\nca\ncert_signing_key\nexpiration_days = 30\n")
        self.key("ca")
        run("certtool", "--generate-self-signed", "--load-privkey", folder / "ca-key.pem",
            "--template", folder / "ca.cfg", "--outfile", folder / "ca-cert.pem")

    def template(self, name, text):
        (self.folder / f"{name}.cfg").write_text(text)

    def key(self, name):
        run("certtool", "--generate-privkey", "--key-type=rsa", "--bits=2048",
            "--outfile", self.folder / f"{name}-key.pem")

    def issue(self, role, name, valid=True, host="localhost"):
        """ROLE-cert.pem and ROLE-key.pem: "server" or "client"."""
        days = ("expiration_days = 20\n" if valid else
                'activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2020-02-01 00:00:00"\n')
        self.template(role, f"cn = {name}\ndns_name = {host}\n{days}"
                            f"tls_www_{role}\nsigning_key\nencryption_key\n")
        self.key(role)
        run("certtool", "--generate-certificate", "--load-privkey", self.folder / f"{role}-key.pem",
            "--load-ca-certificate", self.folder / "ca-cert.pem",
            "--load-ca-privkey", self.folder / "ca-key.pem", "--template", self.folder / f"{role}.cfg",
            "--outfile", self.folder / f"{role}-cert.pem")
        return self


def make_keys(folder, *users):
    """keys.psk in a new directory."""
    need_program("psktool")
    folder.mkdir()
    for user in users:
        run("psktool", "-u", user, "-p", folder / "keys.psk")
    return folder

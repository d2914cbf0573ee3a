"""A real sshd on loopback with throwaway keys, for the tests of `ssh` devices."""

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
Subsystem sftp internal-sftp
"""


@dataclass
class Sshd:
    folder: Path
    port: int
    process: subprocess.Popen

    @property
    def keys(self):
        """The keys of a [runner] that reaches it."""
        return {"host": "127.0.0.1", "port": self.port, "key": str(self.folder / "user"),
                "known_hosts": str(self.folder / "known_hosts")}  # fmt: skip

    def runner(self, **more):
        """A [runner] table."""
        values = {"device": "ssh", **self.keys, **more}
        return "\n".join(f"{k} = {v!r}".replace("True", "true") for k, v in values.items())

    def stop(self):
        self.process.kill()
        self.process.wait()


def missing():
    """What must be installed, or ""."""
    return "" if shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") else "openssh-server"


def start(folder):
    """Make keys and start it; only what it made itself is trusted by it and it by its users."""
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it gives its rights up
    public = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    other = (folder / "other.pub").read_text().split()[:2]
    (folder / "wrong_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(other)}\n")
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    command = [shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"), "-D", "-e", "-f", folder / "config"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Sshd(folder, port, process)
        time.sleep(0.1)
    process.kill()
    raise RuntimeError((folder / "log").read_text())

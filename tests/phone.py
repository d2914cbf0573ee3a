"""A phone on loopback: a root without Python and /usr, in which `adbd.py` serves the real adb client."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgedl.devices import sysroot

APPLETS = ("sh", "cat", "chmod", "df", "env", "kill", "ls", "mkdir", "mktemp", "rm", "sleep", "tar", "true", "uname")
PACKAGES = {"adb": "adb", "busybox": "busybox-static", "qemu-aarch64": "qemu-user", "ldd": "libc-bin"}


@dataclass
class Phone:
    root: Path
    process: subprocess.Popen
    serial: str

    @property
    def folder(self):
        """The one that may be written in."""
        return self.root / "data" / "local" / "tmp"

    def unplug(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def missing():
    """What must be installed, or ""."""
    return ", ".join(package for tool, package in PACKAGES.items() if shutil.which(tool) is None)


def make_root(root):
    """Everything but what adb brings; the processor is QEMU, with its own libraries below /emulator."""
    binaries, emulator, folder = root / "system" / "bin", root / "emulator", root / "data" / "local" / "tmp"
    for path in (binaries, emulator, folder, root / "dev", root / "proc"):
        path.mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), binaries / "busybox")
    for name in APPLETS:
        (binaries / name).symlink_to("busybox")
    (binaries / "getprop").write_text('#!/system/bin/sh\n[ "$1" = ro.boot.qemu ] && echo 1\ntrue\n')
    qemu = shutil.which("qemu-aarch64")
    shutil.copy(qemu, emulator / "qemu-aarch64")
    for line in subprocess.run(["ldd", qemu], capture_output=True, text=True, check=True).stdout.splitlines():
        for word in line.split():
            if word.startswith("/"):
                shutil.copy(word, emulator / Path(word).name)
    loader = next(p.name for p in emulator.iterdir() if p.name.startswith("ld-linux"))
    sysroot._describe_machine(emulator / "view", sysroot.plan("qemu-arm64").core["cortex-a72"], is_64_bit=True)
    start = f"/emulator/{loader} --library-path /emulator /emulator/qemu-aarch64 -cpu cortex-a72 -L /emulator/view"
    (emulator / "run").write_text(f'#!/system/bin/sh\nexec {start} "$@"\n')
    for path in (emulator / "run", binaries / "getprop"):
        path.chmod(0o755)
    os.mknod(root / "dev" / "null", 0o20666, os.makedev(1, 3))
    (root / "dev" / "null").chmod(0o666)
    os.chown(folder, 2000, 2000)
    for path in (root, *root.parents[:3]):  # the shell's user has to come through
        path.chmod(path.stat().st_mode | 0o755)


def start(root):
    """Serve it; `root` as `make_root` made it."""
    command = [sys.executable, Path(__file__).parent / "adbd.py", root]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return Phone(root, process, f"127.0.0.1:{process.stdout.readline().strip()}")

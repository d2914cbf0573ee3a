"""Instructions of an inference on an emulated core: QEMU's plugin, compiled on demand, and what it wrote."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from edgedl.devices import sysroot
from edgedl.errors import EdgedlError, InputError

SOURCE = Path(__file__).parent / "counter.c"
WARMUP = 3
REPEATS = 3
_LINE = re.compile(r"^edgedl (\d+)((?: \w+=\d+)+)$", re.MULTILINE)


def plugin() -> Path:
    """The compiled plugin. Raises InputError where there is no compiler."""
    text = SOURCE.read_bytes()
    made = sysroot.folder("counter") / f"{hashlib.sha256(text).hexdigest()[:16]}.so"
    if made.exists():
        return made
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        message = "gcc, which compiles the counter, is not on this machine. Try: sudo apt-get install gcc libc6-dev"
        raise InputError(message)
    made.parent.mkdir(parents=True, exist_ok=True)
    part = made.with_suffix(f".{os.getpid()}")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(part), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        message = f"{compiler} does not compile {SOURCE}: {done.stderr.strip().splitlines()[-1:]}"
        raise EdgedlError(message)
    part.rename(made)
    return made


def read(log: str) -> list[dict[str, int]]:
    """Instructions by class of each marked inference, `total` among them."""
    found = []
    for number, classes in _LINE.findall(log):
        if number != "0":
            found.append({k: int(v) for k, v in (pair.split("=") for pair in classes.split())})
    return found

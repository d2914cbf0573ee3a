"""An Arm core emulated by QEMU: it runs the shipped runtimes on the sysroot's Linux, over this machine's files.

Outputs and instruction counts are those of that core's code; its time says nothing, and none is given.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgedl import agent, worker
from edgedl.devices import counting, sysroot
from edgedl.devices.local import ChildDevice
from edgedl.errors import EdgedlError, InputError, WorkerError
from edgedl.types import Count, Gives, Method


@dataclass(frozen=True, kw_only=True)
class Options:
    """`cpu` is a core of the sysroot for `architecture`, by default its first."""

    architecture: str = "aarch64"
    cpu: str | None = None


class Qemu:
    """Cores of `qemu-aarch64` and `qemu-arm`."""

    options = Options

    def gives(self, options: Options) -> Gives:  # noqa: ARG002
        """Outputs."""
        return "outputs"

    def missing(self, options: Options) -> str:
        """The command that sets the sysroot up, or installs QEMU."""
        name = sysroot.of_machine(options.architecture)
        if not sysroot.is_built(name):
            return f"edgedl devices setup {name}"
        if shutil.which(sysroot.plan(name).emulator) is None:
            return "sudo apt-get install qemu-user"
        return ""

    def board(self, options: Options) -> None:
        """None: each is an emulator of its own."""

    def open(self, options: Options) -> QemuDevice:
        """A core of the options, or the first of the sysroot."""
        name = sysroot.of_machine(options.architecture)
        return QemuDevice(name, options.cpu or next(iter(sysroot.plan(name).core)))


class QemuDevice(ChildDevice):
    """One emulated core. A child process answers calls; a count takes one of its own."""

    def __init__(self, name: str, core: str) -> None:
        self.core, self._plan = core, sysroot.plan(name)
        self.emulator = f"{self._plan.emulator} {_version(self._plan.emulator)}"
        root, built = sysroot.as_core(name, core), sysroot.folder(name) / "sysroot"
        self._qemu = [self._plan.emulator, "-cpu", core, "-L", str(root)]
        self._python = str(sysroot.python(name, root))
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            "PYTHONHOME": str(root / "usr"),
            "PYTHONPATH": f"{built / 'site'}:{root / 'usr/lib/python3/dist-packages'}",
            "PYTHONHASHSEED": "0",  # so that counts repeat
            "OPENBLAS_NUM_THREADS": "1",
        }
        child = worker.pool().start(f"{name}-{core}", [*self._qemu, self._python], self._environment)
        super().__init__(f"an emulated {core}, {self.emulator}", Method.EMULATED, child)

    def count(self, request: Mapping[str, Any], timeout_s: float) -> Count:
        """Instructions of one inference, the last of some that are the same from the second on."""
        if request["threads"] != 1:
            message = f"threads must be 1, got {request['threads']}: more of them wait for each other in loops"
            raise InputError(message)
        folder = worker.pool().scratch("count")
        log, asked = folder / "plugin.log", {"warmup": counting.WARMUP, "repeats": counting.REPEATS}
        wanted = {"verb": "count", "kwargs": {**request, **asked}}
        (folder / "request.json").write_text(json.dumps(wanted), encoding="utf-8")
        observed = ["-plugin", str(counting.plugin()), "-d", "plugin", "-D", str(log)]
        self._once([*self._qemu, *observed, self._python, agent.__file__, str(folder)], timeout_s)
        reply = json.loads((folder / "reply.json").read_text(encoding="utf-8"))
        if error := reply.get("error"):
            raise worker.crossed(error, during="count")
        counts = counting.read(log.read_text())
        if len(counts) != counting.REPEATS:
            message = f"{self.emulator}: the counter saw {len(counts)} inferences of {counting.REPEATS}"
            raise EdgedlError(message)
        total = counts[-1].pop("total")
        runtime = request["runtime"]
        version = self.call("info", {"runtimes": [runtime]}, timeout_s)["runtimes"][runtime]["version"]
        return Count(
            instructions=total,
            classes=counts[-1],
            core=self.core,
            emulator=self.emulator,
            runtime=f"{runtime} {version}",
            resolver=request.get("resolver"),
            threads=request["threads"],
            inference=counting.WARMUP + counting.REPEATS,
        )

    def _once(self, command: list[str], timeout_s: float) -> None:
        tied = agent.tied(command)  # whatever becomes of edgedl, no emulator goes on
        try:
            done = subprocess.run(tied, env=self._environment, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired as e:
            message = f"{self.name} did not end in {timeout_s:g} s while instructions were counted"
            raise WorkerError(message) from e
        if done.returncode != 0:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            message = (
                f"{self.name} ended with {done.returncode} while instructions were counted: {' | '.join(said[-3:])}"
            )
            raise WorkerError(message)


def _version(emulator: str) -> str:
    """`7.2.22`, from the first line of --version. Raises InputError."""
    try:
        said = subprocess.run([emulator, "--version"], capture_output=True, text=True, timeout=60).stdout
    except OSError as e:
        message = f"{emulator}: not on this machine. Try: sudo apt-get install qemu-user"
        raise InputError(message) from e
    return next((word for word in said.split() if word[:1].isdigit()), "?")

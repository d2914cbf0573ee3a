"""The device `firmware`: an emulated Cortex-M that counts the instructions of an inference and gives no outputs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import agent
from edgedl.errors import InputError
from edgedl.types import Count, Gives, Method
from edgedl_bakenn import emulation
from edgedl_bakenn.emulation import MACHINES, Generated

PACKAGES = {
    "qemu-system-arm": "qemu-system-arm",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "gcc": "gcc libc6-dev",
}
HELIUM = ("mps3-an547",)


@dataclass(frozen=True, kw_only=True)
class Options:
    """`machine` is a board of qemu-system-arm."""

    machine: str

    def __post_init__(self) -> None:
        if self.machine not in (*MACHINES, *HELIUM):
            message = f"machine: {self.machine!r} is none of {', '.join(MACHINES)}"
            raise ValueError(message)


class Firmware:
    """Cortex-M cores of `qemu-system-arm`: instructions alone."""

    options = Options

    def gives(self, options: Options) -> Gives:  # noqa: ARG002
        """Instructions."""
        return "instructions"

    def missing(self, options: Options) -> str:
        """The packages to install, or that no code is generated for this core."""
        if options.machine in HELIUM:
            return "bakenn plans CMSIS-NN for the DSP extension, not for the Helium of a Cortex-M55"
        packages = [package for tool, package in PACKAGES.items() if shutil.which(tool) is None]
        return f"sudo apt-get install {' '.join(packages)}" if packages else ""

    def board(self, options: Options) -> None:
        """None: each is an emulator of its own."""

    def open(self, options: Options) -> FirmwareDevice:
        """The core of that board."""
        return FirmwareDevice(options.machine)


class FirmwareDevice:
    """One emulated core. Each count builds a firmware of its own, in a folder that is gone afterwards."""

    method = Method.EMULATED

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self.name = f"an emulated {MACHINES[machine].core}, {emulation.version()}"

    def push(self, path: Path, sha256: str) -> str:  # noqa: ARG002
        """The same path: files are read here."""
        return str(path)

    def call(self, verb: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:  # noqa: ARG002
        """Raises InputError: no agent runs on a microcontroller."""
        message = f"{self.name} counts instructions, it has no {verb}"
        raise InputError(message)

    def close(self) -> None:
        """Nothing is left."""

    def count(self, request: Mapping[str, Any], timeout_s: float) -> Count:
        """Instructions of an inference on the first sample, by C function."""
        if request["threads"] != 1:
            message = f"threads must be 1, got {request['threads']}: a Cortex-M has one core"
            raise InputError(message)
        # by this name the next edgedl removes it, where this one is killed
        with tempfile.TemporaryDirectory(prefix=f"edgedl-{os.getpid()}-firmware-") as folder:
            made = emulation.generate(Path(request["artifact"]), Path(folder), timeout_s)
            found = emulation.run(made, self._machine, _codes(request, made), Path(folder), timeout_s)
        left_out = f", without {', '.join(made.left_out)}" if made.left_out else ""
        return Count(
            instructions=found.total,
            classes=found.functions,
            core=MACHINES[self._machine].core,
            emulator=emulation.version(),
            runtime=f"{made.generator}, {found.compiler}{left_out}",
            resolver=made.kernels,
            threads=1,
            inference=emulation.INFERENCES,
        )


def _codes(request: Mapping[str, Any], made: Generated) -> bytes:
    """The first sample as the int8 codes that the C takes."""
    (name,), (path,) = request["inputs"], request["inputs"].values()
    values = np.load(path, mmap_mode="r")[:1].astype(np.float32)
    scale, zero_point = request["quantization"][name]
    if request.get("straight") and scale:
        values = (values - zero_point[0]) * scale[0]
    return bytes(agent.quantize(values, made.input_scale, made.input_zero_point, np.int8).tobytes())

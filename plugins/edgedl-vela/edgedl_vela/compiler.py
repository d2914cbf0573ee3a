"""Vela as a command in a process of its own: the compiled file, its summary, what it left to the CPU and why."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl.errors import InputError, UnsupportedError
from edgedl_vela import graph

TIMEOUT_S = 600
CONFIG = "Arm/vela.ini"
KNOWN = re.compile(r"ethos-u(55-(32|64|128|256)|65-(256|512)|85-(128|256|512|1024|2048))")
WARNING = re.compile(r"^Warning .*operator: (?P<op>\w+), ofm: '(?P<tensor>.*)'\n(?P<why>(?:.+\n?)*)", re.MULTILINE)
NPU = "ethos-u"  # the custom op that holds a command stream


@dataclass(frozen=True, kw_only=True)
class CpuOperator:
    """An operator that stays on the CPU: its name, the tensor it gives, its place in the file before Vela.

    `index` is None where tensors go by other names there; `why` is Vela's reason, "" where it gave none.
    """

    name: str
    tensor: str
    index: int | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """`summary` are the columns of Vela's summary, as it names them."""

    path: Path
    summary: dict[str, str]
    cpu: tuple[CpuOperator, ...]
    npu_operators: int


def compile_for(accelerator: Mapping[str, Any], source: Path, folder: Path) -> Compiled:
    """Compile a .tflite into `folder`.

    Raises InputError where no Ethos-U is named, UnsupportedError where Vela refuses the file.
    """
    options = ["--accelerator-config", _name(accelerator), "--output-dir", str(folder)]
    if "system_config" in accelerator:
        options += ["--config", CONFIG]
    for key in ("system_config", "memory_mode"):
        if key in accelerator:
            options += [f"--{key.replace('_', '-')}", accelerator[key]]
    command = [sys.executable, "-c", "from ethosu.vela.vela import main; main()", str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    made = sorted(folder.glob("*_vela.tflite"))
    if done.returncode or not made:
        died = f"it was killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else ""
        message = f"{source}: Vela refuses it: {died or _reason(done.stdout + done.stderr)}"
        raise UnsupportedError(message)
    names = graph.operators(made[0])
    places = {tensor: i for i, (_, tensor) in enumerate(graph.operators(source))}
    told = {m["tensor"]: _shortened(m["why"]) for m in WARNING.finditer(done.stdout)}
    cpu = tuple(
        CpuOperator(name=name, tensor=tensor, index=places.get(tensor), why=told.get(tensor, ""))
        for name, tensor in names
        if name != NPU
    )
    return Compiled(path=made[0], summary=_summary(folder), cpu=cpu, npu_operators=len(names) - len(cpu))


def _name(accelerator: Mapping[str, Any]) -> str:
    name = str(accelerator.get("name", ""))
    if not KNOWN.fullmatch(name):
        message = (
            f"vela: the target's [accelerator] must be an Ethos-U as Vela names it, such as ethos-u55-128, "
            f"got {name!r}; name a profile that has one with --target"
        )
        raise InputError(message)
    return name


def _reason(said: str) -> str:
    """The last error of Vela, without the trace of its Python."""
    found = re.findall(r"(?:Error|Failed)[^\n]*(?:\n - [^\n]*)?", said)
    return " ".join(found[0].split()) if found else (said.strip().splitlines() or ["no reason given"])[-1]


def _shortened(why: str) -> str:
    """A reason in one line, without the tensor's name, which may be long and is told elsewhere."""
    return re.sub(r" \([^()]*\)", "", " ".join(why.split()).removeprefix("Reason: "))


def _summary(folder: Path) -> dict[str, str]:
    with next(folder.glob("*_summary_*.csv")).open(newline="") as file:
        return dict(next(csv.DictReader(file)))

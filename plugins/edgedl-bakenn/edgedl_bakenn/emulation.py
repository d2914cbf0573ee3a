"""From a .tflite to a count: bakenn in a child, arm-none-eabi-gcc, qemu-system-arm with the counter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgedl import agent
from edgedl.errors import EdgedlError, InputError, UnsupportedError, WorkerError

HERE = Path(__file__).parent
INFERENCES = 3
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
OPTIMIZATION = "-O3"  # what CMSIS-NN's README recommends
SMALL = 0.01  # functions with a smaller share are told together
OTHER = "other"
_LINE = re.compile(r"^edgedl (\d+)((?: [\w.$]+=\d+)+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A board of QEMU's: its core, and where program and data lie, 4 MB each."""

    core: str
    rom: int
    ram: int


# https://www.qemu.org/docs/master/system/arm/mps2.html, and the application notes of Arm that it names.
MACHINES = {
    "mps2-an386": Machine(core="cortex-m4", rom=0x00000000, ram=0x20000000),
    "mps2-an500": Machine(core="cortex-m7", rom=0x00000000, ram=0x20000000),
    "mps2-an505": Machine(core="cortex-m33", rom=0x10000000, ram=0x38000000),
}


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The C of a file: what to compile, what made it, and the operators that it leaves out."""

    sources: list[str]
    include: list[str]
    generator: str
    kernels: str
    left_out: list[str]
    input_scale: float
    input_zero_point: int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Instructions of one inference, all and by C function; `output` are its int8 codes."""

    total: int
    functions: dict[str, int]
    compiler: str
    output: bytes


def generate(source: Path, folder: Path, timeout_s: float) -> Generated:
    """Write the C into `folder`. Raises UnsupportedError for what bakenn refuses, or dies of."""
    command = [sys.executable, "-m", "edgedl_bakenn.generating", str(source), str(folder / "c")]
    try:
        said = _run(command, folder, timeout_s, "bakenn")
    except WorkerError as e:
        raise UnsupportedError(str(e)) from e
    told = json.loads(said.splitlines()[-1])
    if "refused" in told:
        raise UnsupportedError(told["refused"])
    return Generated(**told["made"])


def run(made: Generated, machine: str, sample: bytes, folder: Path, timeout_s: float) -> Counted:
    """Compile and run it. Raises InputError where it does not fit the board, WorkerError where a tool fails."""
    board = MACHINES[machine]
    codes = ", ".join(str(code - 256 if code > 127 else code) for code in sample)
    header = f"enum {{ INFERENCES = {INFERENCES} }};\nstatic const int8_t sample[] = {{ {codes} }};\n"
    (folder / "sample.h").write_text(header)
    memory = f"ROM (rx) : ORIGIN = {board.rom:#x}, LENGTH = 4M\nRAM (rw) : ORIGIN = {board.ram:#x}, LENGTH = 4M\n"
    (folder / "memory.ld").write_text(f"MEMORY\n{{\n{memory}}}\n")
    elf, counter, log, said = (folder / name for name in ("firmware.elf", "counter.so", "counter.log", "said"))
    _compile(made, board.core, elf, folder, timeout_s)
    _run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(counter), str(HERE / "counter.c")], folder, timeout_s, "gcc")
    semihosting = [
        "-chardev",
        f"file,id=said,path={said}",
        "-semihosting-config",
        "enable=on,target=native,chardev=said",
    ]
    observed = ["-plugin", str(counter), "-d", "plugin", "-D", str(log)]
    command = [EMULATOR, "-M", machine, "-display", "none", *semihosting, *observed, "-kernel", str(elf)]
    _run(command, folder, timeout_s, f"an emulated {board.core}")
    counts = [_functions(line) for number, line in _LINE.findall(log.read_text()) if int(number) % 2]
    if len(counts) != INFERENCES:
        message = f"{EMULATOR}: the counter saw {len(counts)} inferences of {INFERENCES}"
        raise EdgedlError(message)
    total = counts[-1].pop("total")
    return Counted(
        total=total,
        functions=_large(counts[-1], total),
        compiler=f"gcc {_version(COMPILER)} {OPTIMIZATION}",
        output=bytes.fromhex(said.read_text()),
    )


def _compile(made: Generated, core: str, elf: Path, folder: Path, timeout_s: float) -> None:
    flags = [f"-mcpu={core}", "-mthumb", "-mfloat-abi=soft", OPTIMIZATION, "-ffunction-sections", "-fdata-sections"]
    places = [f"-I{path}" for path in (*made.include, str(folder))]
    link = ["-nostartfiles", "-Wl,--gc-sections", f"-L{folder}", "-T", str(HERE / "firmware.ld"), "-o", str(elf)]
    command = [COMPILER, *flags, *places, str(HERE / "firmware.c"), *made.sources, *link]
    try:
        _run(command, folder, timeout_s, COMPILER)
    except WorkerError as e:
        if "overflowed" in str(e) or "are left for the stack" in str(e):
            message = f"the firmware does not fit the 4 MB of program or of data that QEMU's board has: {e}"
            raise InputError(message) from e
        raise


def _functions(line: str) -> dict[str, int]:
    return {name: int(count) for name, count in (pair.split("=") for pair in line.split())}


def _large(functions: dict[str, int], total: int) -> dict[str, int]:
    """The functions with a share worth telling, most first; the rest of `total` together."""
    ordered = sorted(functions.items(), key=lambda item: -item[1])
    large = {name: count for name, count in ordered if count >= SMALL * total and name != OTHER}
    rest = total - sum(large.values())
    return large | ({OTHER: rest} if rest else {})


def _run(command: Sequence[str], folder: Path, timeout_s: float, what: str) -> str:
    """What it prints. Raises WorkerError with its last words where it fails, InputError where it is not there."""
    if shutil.which(command[0]) is None:
        message = f"{command[0]}: not on this machine, or no program"
        raise InputError(message)
    tied = agent.tied(list(command))  # whatever becomes of edgedl, no emulator goes on
    try:
        done = subprocess.run(tied, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as e:
        message = f"{what} did not end in {timeout_s:g} s"
        raise WorkerError(message) from e
    if done.returncode != 0:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        wrong = [line for line in said if "overflowed" in line or "left for the stack" in line] or said[-3:]
        message = f"{what} ended with {done.returncode}: {' | '.join(wrong)}"
        raise WorkerError(message)
    return done.stdout


@cache
def version() -> str:
    """The emulator with its version."""
    return f"{EMULATOR} {_version(EMULATOR)}"


@cache
def _version(program: str) -> str:
    """`12.2.1`, from what --version prints first. Raises InputError."""
    found = shutil.which(program)
    if found is None:
        message = f"{program}: not on this machine"
        raise InputError(message)
    said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return next((word for word in said.split() if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)), "?")

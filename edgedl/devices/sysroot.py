"""The foreign Linux that an emulated core runs: what belongs in it, where it lies, and the machine it believes to be.

FOLDER/NAME/sysroot/root     the unpacked Debian packages
FOLDER/NAME/sysroot/site     the wheels of the runtimes
FOLDER/NAME/sysroot/built.json   what was fetched, with hashes; there when all of it is
FOLDER/NAME/cores/CORE       root again, with the /proc and /sys of a machine with that core
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from edgedl import model_file, toml
from edgedl.errors import InputError

PLANS = Path(__file__).parent / "sysroots"
CORES = 4  # of the machine that the runtimes see; QEMU's threads are the host's


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One file of the Python package index."""

    requirement: str
    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Core:
    """What /proc/cpuinfo tells of a core; ARM is the implementer."""

    part: int
    features: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One `sysroots/*.toml`."""

    machine: str
    emulator: str
    debian: str
    triplet: str
    loader: str
    python: str
    platforms: tuple[str, ...]
    packages: tuple[str, ...]
    library_folders: tuple[str, ...] = ()  # below usr/lib/TRIPLET, where Debian makes links as it installs
    wheel: tuple[Wheel, ...]
    core: dict[str, Core] = field(default_factory=dict)


def names() -> tuple[str, ...]:
    """The sysroots that can be set up."""
    return tuple(sorted(path.stem for path in PLANS.glob("*.toml")))


@cache
def plan(name: str) -> Plan:
    """What goes into a sysroot. Raises InputError."""
    if name not in names():
        near = toml.did_you_mean(name, names())
        message = f"no such device to set up: {name!r}{near}; allowed: {', '.join(names())}"
        raise InputError(message)
    path = PLANS / f"{name}.toml"
    return toml.build(Plan, toml.parse(path), str(path))


def of_machine(machine: str) -> str:
    """The sysroot for an architecture, as `uname -m` and profiles call it. Raises InputError."""
    known = {plan(name).machine: name for name in names()}
    if machine not in known:
        message = f"[cpu] architecture {machine!r}: QEMU's user mode stands in for {', '.join(known)} here"
        raise InputError(message)
    return known[machine]


def folder(name: str) -> Path:
    """Where a sysroot and what is made for it lie: an absolute path, since links and emulators lead there."""
    return Path(os.environ.get("EDGEDL_DEVICES_FOLDER") or model_file.cache_folder() / "devices").absolute() / name


def fingerprint(name: str) -> str:
    """Which plan a sysroot was built by."""
    return hashlib.sha256((PLANS / f"{name}.toml").read_bytes()).hexdigest()


def is_built(name: str) -> bool:
    """Whether all of it is there, by today's plan."""
    built = folder(name) / "sysroot" / "built.json"
    return built.exists() and json.loads(built.read_text(encoding="utf-8"))["plan"] == fingerprint(name)


def python(name: str, root: Path) -> Path:
    """Its Python, below `root`."""
    return root / "usr" / "bin" / f"python{plan(name).python}"


def as_core(name: str, core: str) -> Path:
    """The root that a core sees, made where it is missing. Raises InputError for a core that no one described."""
    known = plan(name).core
    if core not in known:
        message = f"[runner] cpu {core!r}{toml.did_you_mean(core, known)} is not one of {name}: {', '.join(known)}"
        raise InputError(message)
    base = folder(name)
    view = base / "cores" / f"{core}-{fingerprint(name)[:8]}"
    if not view.exists():
        part = base / "cores" / f"{core}.{os.getpid()}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for own in (base / "sysroot" / "root").iterdir():
            (part / own.name).symlink_to(own)
        _describe_machine(part, known[core], is_64_bit=plan(name).machine == "aarch64")
        try:
            part.rename(view)
        except OSError:  # another process made it meanwhile
            shutil.rmtree(part)
            if not view.exists():
                raise
    return view


def _describe_machine(root: Path, core: Core, *, is_64_bit: bool) -> None:
    """The files by which litert and onnxruntime learn what they run on; without them both end with an abort."""
    (root / "proc").mkdir(parents=True)
    about = "\n".join(
        (
            "processor\t: {0}",
            "BogoMIPS\t: 108.00",
            f"Features\t: {core.features}",
            "CPU implementer\t: 0x41",
            f"CPU architecture: {8 if is_64_bit else 7}",
            "CPU variant\t: 0x0",
            f"CPU part\t: 0x{core.part:x}",
            "CPU revision\t: 3",
            "\n",
        )
    )
    (root / "proc" / "cpuinfo").write_text("".join(about.format(i) for i in range(CORES)))
    cpus = root / "sys" / "devices" / "system" / "cpu"
    every = f"0-{CORES - 1}"
    for i in range(CORES):
        ids = {"physical_package_id": "0", "core_id": str(i), "cluster_id": "0", "thread_siblings_list": str(i)}
        shared = dict.fromkeys(("core_siblings_list", "cluster_cpus_list", "package_cpus_list"), every)
        _write(cpus / f"cpu{i}" / "topology", ids | shared)
        _write(cpus / f"cpu{i}" / "cpufreq", {"cpuinfo_max_freq": "1500000", "cpuinfo_min_freq": "600000"})
        for at, (level, kind, size, owners) in enumerate(
            (("1", "Data", "32K", str(i)), ("1", "Instruction", "48K", str(i)), ("2", "Unified", "1024K", every))
        ):
            known = {"level": level, "type": kind, "size": size, "shared_cpu_list": owners}
            _write(cpus / f"cpu{i}" / "cache" / f"index{at}", known)
    _write(cpus, {"possible": every, "present": every, "online": every, "kernel_max": str(CORES - 1)})


def _write(folder_: Path, values: dict[str, str]) -> None:
    folder_.mkdir(parents=True, exist_ok=True)
    for name, text in values.items():
        (folder_ / name).write_text(f"{text}\n")

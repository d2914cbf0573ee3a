"""Device profiles: facts with their source, read from `targets/*.toml` or a user's own file.

Every number and version in a profile is covered by a `source`: that of its own table, or else the nearest one around
it, up to the top of the file. A source is a URL, or a document or measurement with its number, version or year.
`[runner]` is the user's set-up, so it needs none. Budgets are refused: they are the user's, not the device's.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from edgedl import toml
from edgedl.errors import InputError
from edgedl.toml import Within
from edgedl.types import Target, TargetRuntime

_FOLDERS = (Path(__file__).parent / "profiles", Path(__file__).parents[1] / "targets")  # in the wheel; in a checkout
_BUDGET = re.compile(r"(^|_)(budget|limit|gate|drop|latency|accuracy|arena)(_|$)|^max_.*_(bytes|ms)$|_ms$")
_SOURCE = re.compile(r"https?://\S+\.\S+|\d")

_Count = Annotated[int, Within("[1, inf)")]


@dataclass(frozen=True, kw_only=True)
class _Runtime:
    format: str | None = None
    minimum: str | None = None
    resolver: Literal["builtin", "xnnpack", "gpu", "npu"] | None = None
    fallback: tuple[Literal["builtin", "xnnpack", "gpu"], ...] = ()
    tolerance: dict[Literal["int8_lsb", "float"], Annotated[float, Within("[0, inf)")]] = field(default_factory=dict)
    io_dtypes: tuple[str, ...] = ()
    delegates: tuple[Literal["nnapi", "coreml"], ...] = ()
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    core: str
    cores: _Count | None = None
    clock_hz: _Count | None = None


@dataclass(frozen=True, kw_only=True)
class _Cpu:
    architecture: str | None = None
    core: str | None = None
    cores: _Count | None = None
    clock_hz: _Count | None = None
    clusters: tuple[_Cluster, ...] = ()
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Memory:
    ram_bytes: _Count | None = None
    contiguous_ram_bytes: _Count | None = None
    flash_bytes: _Count | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.ram_bytes and self.contiguous_ram_bytes and self.contiguous_ram_bytes > self.ram_bytes:
            message = f"contiguous_ram_bytes {self.contiguous_ram_bytes} is more than ram_bytes {self.ram_bytes}"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class _Accelerator:
    kind: Literal["gpu", "npu", "dsp"]
    name: str
    system_config: str | None = None  # of Vela's Arm/vela.ini, for an Ethos-U
    memory_mode: str | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """The keys of a profile. With `facts = "operating-system"`, cpu and memory come from the running machine."""

    name: str
    source: str = ""
    facts: Literal["operating-system"] | None = None
    formats: tuple[str, ...]
    io: Literal["float", "int8", "uint8", "int16"] = "float"
    runtime: dict[str, _Runtime] = field(default_factory=dict)
    cpu: _Cpu | None = None
    memory: _Memory | None = None
    accelerator: _Accelerator | None = None
    runner: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.formats:
            message = "formats is empty; name what runs there, such as 'tflite'"
            raise ValueError(message)
        for name, runtime in self.runtime.items():
            if runtime.format not in (None, *self.formats):
                message = f"[runtime.{name}] format {runtime.format!r} is not in formats: {', '.join(self.formats)}"
                raise ValueError(message)
        if self.runner and not isinstance(self.runner.get("device"), str):
            message = "[runner] needs device, the name of a device plugin, such as 'qemu' or 'ssh'"
            raise ValueError(message)


def listing() -> tuple[str, ...]:
    """The ids of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def load(id_or_path: str) -> Target:
    """The profile of a shipped id, or of a path to a user's own .toml. Raises InputError."""
    path = _find(id_or_path)
    raw = toml.parse(path)
    if found := _findings(raw, str(path)):
        more = f" (and {len(found) - 1} more: edgedl targets check {path})" if found[1:] else ""
        raise InputError(found[0] + more)
    profile = toml.build(_Profile, raw, str(path))
    machine = _operating_system() if profile.facts else {}
    return Target(
        id=path.stem,
        name=profile.name,
        source=profile.source or "; ".join(dict.fromkeys(_sources(raw))),
        formats=profile.formats,
        io=profile.io,
        runtimes=tuple(TargetRuntime(name=n, **_stated(r)) for n, r in profile.runtime.items()),
        cpu=machine.get("cpu", {}) | _stated(profile.cpu),
        memory=machine.get("memory", {}) | _stated(profile.memory),
        accelerator=_stated(profile.accelerator),
        runner=profile.runner,
    )


def check(path: Path) -> list[str]:
    """What is wrong with a profile, one message each; empty when it is sound. Raises InputError where it is no TOML."""
    return _findings(toml.parse(path), str(path))


def _findings(raw: dict[str, Any], where: str) -> list[str]:
    found: list[str] = []
    facts = _without_budgets(raw, where, found)
    return found + toml.problems(_Profile, facts, where) + list(_unsourced(facts, (), "", where))


def _without_budgets(table: dict[str, Any], where: str, found: list[str], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table without the keys that only a user can set, which go to `found`."""
    facts = {}
    for key, value in table.items():
        if _BUDGET.search(key):
            found.append(
                f"{where}: {_at(path)}{key} is a budget, and a profile states facts of a device; "
                "give it on the command line or in a pipeline file instead"
            )
        elif isinstance(value, dict) and key != "runner":
            facts[key] = _without_budgets(value, where, found, (*path, key))
        else:
            facts[key] = value
    return facts


def _unsourced(table: Mapping[str, Any], path: tuple[str, ...], source: str, where: str) -> Iterator[str]:
    """A message for each number or version that no source covers."""
    own = table.get("source")
    source = own if isinstance(own, str) and own else source
    for key, value in table.items():
        if key == "source" or (not path and key in ("name", "runner")):
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _unsourced(item, (*path, key), source, where)
            elif _is_figure(item) and not _SOURCE.search(source):
                has = f"the source {source!r}" if source else "no source"
                yield (
                    f"{where}: {_at(path)}{key} = {item} has {has}; a source is a URL, or a document with its number, "
                    "version or year: give one in this table or at the top of the file"
                )


def _is_figure(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\d+(\.\w+)*", value) is not None  # a version
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(path: tuple[str, ...]) -> str:
    return f"[{'.'.join(path)}]: " if path else ""


def _sources(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if key == "source":
            yield value
        elif isinstance(value, dict):
            yield from _sources(value)


def _stated(facts: Any) -> dict[str, Any]:
    """The fields of a dataclass that say something; nested ones likewise."""
    if facts is None:
        return {}
    stated = {f.name: getattr(facts, f.name) for f in fields(facts)}
    stated = {k: tuple(map(_stated, v)) if k == "clusters" else v for k, v in stated.items()}
    return {k: v for k, v in stated.items() if v not in (None, "", (), {})}


def _folder() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    message = f"no device profiles beside edgedl: neither {_FOLDERS[0]} nor {_FOLDERS[1]} exists; install edgedl again"
    raise InputError(message)


def _find(id_or_path: str) -> Path:
    path = _folder() / f"{id_or_path}.toml"
    if id_or_path in listing():
        return path
    if id_or_path.endswith(".toml") or os.sep in id_or_path:
        return Path(id_or_path)
    near = toml.did_you_mean(id_or_path, listing())
    message = f"no such target: {id_or_path!r}{near}; allowed: {', '.join(listing())}, or a path to your own .toml"
    raise InputError(message)


def _operating_system() -> dict[str, dict[str, Any]]:
    """CPU and memory of the running machine, as far as it states them; `cores` counts hardware threads."""
    source = f"{platform.system()} {platform.release()}"
    cpu: dict[str, Any] = {"architecture": platform.machine(), "core": _core_name(), "cores": os.cpu_count()}
    clock = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if clock.exists():
        cpu["clock_hz"] = int(clock.read_text()) * 1000
    memory: dict[str, Any] = {"source": source}
    if hasattr(os, "sysconf"):  # not on Windows
        memory["ram_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": {k: v for k, v in cpu.items() if v} | {"source": source}, "memory": memory}


def _core_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor()

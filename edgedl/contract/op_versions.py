"""Operators and their versions against the releases of runtimes, from the table that scripts/op_tables.py makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgedl import toml
from edgedl.errors import InputError
from edgedl.types import ArtifactInfo, Check, Method, OpInfo, Verdict

TABLE = Path(__file__).with_name("op_tables.json")
OTHER_FORMAT = {"onnxruntime": "onnx"}  # the rest of the table runs .tflite files
SHOWN = 3  # findings in a `why`
DENSE_DYNAMIC = 12  # FULLY_CONNECTED from here on: weights per channel, activations quantized as it runs


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release of a runtime as the table knows it: `name` of it, `release` in the table, `pinned` by whom asked."""

    runtime: str
    release: str
    pinned: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An operator that a release lacks: its highest version there (0: it has none), the first release that has it."""

    op: OpInfo
    highest: int
    since: str | None

    def as_text(self, runtime: str) -> str:
        """Operator, index, tensor, and the cheapest way out."""
        place = f"operator {self.op.index}, {self.op.name}"
        version = f" version {self.op.version}" if self.op.version is not None else ""
        tensor = f" (gives {self.op.outputs[0]!r})" if self.op.outputs else ""
        has = f"at most version {self.highest} there" if self.highest else "not there"
        return f"{place}{version}{tensor}: {has}; {_fix(self, runtime)}"


def check_versions(
    info: ArtifactInfo,
    pins: Mapping[str, str | None],
    *,
    target: str | None,
    minimums: Mapping[str, str | None] | None = None,
) -> Check:
    """The check `op_versions`: how many operators the pinned releases lack, and an ONNX IR version too new for them.

    `pins` are the user's, in place of a profile's `minimums`. Where none is pinned it fails if every runtime lacks some
    in its newest release. A runtime without a table is told of and does not count. A file whose operators cannot be
    read is not judged: unchecked under a pin of the user's.
    """
    if not info.ops:
        return _unread(info, pins, target)
    said, count, judged = [], 0, False
    newest: list[int] = []
    for runtime, pin in {**(minimums or {}), **pins}.items():
        if not _runs(runtime, info.format):
            continue  # pins may be given for several artifacts at once
        if runtime not in _tables():
            said.append(f"{runtime}: no table of its releases")
            continue
        if pin is None:
            said.append(_oldest(info, runtime))
            newest.append(len(_lacks(info, runtime, latest(runtime))))
            continue
        release = at(runtime, pin)
        if release is None:
            said.append(f"{runtime} {pin} is older than what the table knows, {_tables()[runtime]['releases'][0]}")
            continue
        judged = True
        found = _lacks(info, runtime, release)
        count += len(found)
        said.append(_told(found, Release(runtime=runtime, release=release, pinned=pin), info.ops))
    if not judged and newest and all(newest):
        count, judged = min(newest), True
    verdict = (Verdict.FAIL if count else Verdict.PASS) if judged else Verdict.INFO
    return Check(
        name="op_versions",
        target=target,
        measured=count if judged else None,
        limit=0 if judged else None,
        unit="count",
        method=Method.STATIC,
        verdict=verdict,
        why="; ".join(said) or f"no runtime of {info.format} files is named",
    )


def _unread(info: ArtifactInfo, pins: Mapping[str, str | None], target: str | None) -> Check:
    is_asked = any(pin is not None and _runs(runtime, info.format) for runtime, pin in pins.items())
    advice = (
        "; check the .onnx it was made from, with onnx installed: pip install onnx" if info.format == "onnx" else ""
    )
    return Check(
        name="op_versions",
        target=target,
        limit=0 if is_asked else None,
        unit="count",
        method=Method.STATIC,
        verdict=Verdict.UNCHECKED if is_asked else Verdict.INFO,
        why=f"the operators of this file cannot be read{advice}",
    )


def _runs(runtime: str, format_: str) -> bool:
    """Whether a runtime takes files of a format, as far as the table knows it."""
    return runtime not in _tables() or OTHER_FORMAT.get(runtime, "tflite") == format_


def parse_pins(texts: Sequence[str]) -> dict[str, str]:
    """`litert=2.1.0` and the like. Raises InputError."""
    pins = {}
    for text in texts:
        name, _, version = text.partition("=")
        if name not in _tables():
            near = toml.did_you_mean(name, _tables())
            message = f"--runtime-version: no runtime {name!r}{near}; allowed: {', '.join(_tables())}"
            raise InputError(message)
        if not re.match(r"\d", version):
            message = f"--runtime-version: {name}=VERSION is needed, such as {name}={latest(name)}, got {text!r}"
            raise InputError(message)
        pins[name] = version
    return pins


def latest(runtime: str) -> str:
    """The newest release that the table knows."""
    return str(_tables()[runtime]["releases"][-1])


def at(runtime: str, version: str) -> str | None:
    """The release in the table that a version is judged by: itself, or the nearest older one; None if all are newer."""
    older = [r for r in _tables()[runtime]["releases"] if _key(r) <= _key(version)]
    return older[-1] if older else None


def lacking(ops: Sequence[OpInfo], runtime: str, release: str) -> list[Finding]:
    """The operators that a release does not have in their version. Custom ops are another check's."""
    return [
        Finding(op=op, highest=_highest(op, runtime, release) or 0, since=_since(op, runtime))
        for op in ops
        if not _has(op, runtime, release) and _is_own(op.name, runtime)
    ]


def floors(info: ArtifactInfo) -> dict[str, str | None]:
    """The oldest release of each runtime of the format that is known to run the file; None where none known does.

    What the table cannot tell is not in it: of operators whose versions the file does not say, and custom ones.
    """
    if not info.ops or any(op.version is None for op in info.ops):
        return {}
    runtimes = [name for name in _tables() if OTHER_FORMAT.get(name, "tflite") == info.format]
    return {name: _floor(info, name) for name in runtimes if all(_is_own(op.name, name) for op in info.ops)}


def newest(releases: Iterable[str | None]) -> str:
    """The newest of some releases; an empty text where there is none."""
    return max(filter(None, releases), key=_key, default="")


def _floor(info: ArtifactInfo, runtime: str) -> str | None:
    table = _tables()[runtime]
    needed = [_since(op, runtime) for op in info.ops]
    if any("." in op.name for op in info.ops):
        needed.append(table["told_since"])  # an older release does not tell of operators outside of the opset
    if version := _ir_version(info, runtime):
        needed.append(_ir_since(version, runtime))
    return None if None in needed else newest(needed)


def _lacks(info: ArtifactInfo, runtime: str, release: str) -> list[str]:
    """What a release does not take of a file, in words: its ONNX IR version, then operators."""
    found = [finding.as_text(runtime) for finding in lacking(info.ops, runtime, release)]
    version = _ir_version(info, runtime)
    highest = (_value(_tables()[runtime]["ir_version"], release) or 0) if version else 0
    if highest < version:
        since = _ir_since(version, runtime)
        fix = f"fix: ship {runtime} {since} or later" if since else "no release known takes it: export it anew"
        found.insert(0, f"IR version {version}: at most {highest} there; {fix}")
    return found


def _ir_version(info: ArtifactInfo, runtime: str) -> int:
    """The ONNX IR version of a file; 0 where it has none or the table tells nothing of them."""
    return (info.metadata.get("ir_version") or 0) if "ir_version" in _tables()[runtime] else 0


def _ir_since(version: int, runtime: str) -> str | None:
    """The first release that takes an ONNX IR version."""
    table = _tables()[runtime]
    return next((r for r in table["releases"] if (_value(table["ir_version"], r) or 0) >= version), None)


def _told(found: list[str], release: Release, ops: Sequence[OpInfo]) -> str:
    name = f"{release.runtime} {release.release}"
    if _key(release.release) != _key(release.pinned):
        name += f" (the nearest known below {release.pinned})"
    if not found and not _tells(release.runtime, release.release):
        return f"{name} takes the opset; it does not list its operators"
    if not found:
        return f"{name} has all {len(ops)} operators"
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{name} lacks {'; '.join(found[:SHOWN])}{more}"


def _oldest(info: ArtifactInfo, runtime: str) -> str:
    """From which release on a runtime has all operators, for whoever has not said which one the app has."""
    for release in _tables()[runtime]["releases"]:
        if not _lacks(info, runtime, release):
            return f"{runtime} has all operators from {release} on; no version is pinned"
    return f"{runtime} {latest(runtime)}, the newest known, lacks {_lacks(info, runtime, latest(runtime))[0]}"


def _fix(finding: Finding, runtime: str) -> str:
    ways = []
    if finding.op.name == "FULLY_CONNECTED" and (finding.op.version or 0) == DENSE_DYNAMIC:
        ways.append(
            "export it with edgedl, or with converter."
            "_experimental_disable_per_channel_quantization_for_dense_layers = True"
        )
    if runtime == "onnxruntime" and finding.highest:
        ways.append(f"export with --opset {finding.highest}")
    if finding.since:
        ways.append(f"ship {runtime} {finding.since} or later")
    return "fix: " + ", or ".join(ways) if ways else "no release known has it: replace the layer"


def _has(op: OpInfo, runtime: str, release: str) -> bool:
    highest = _highest(op, runtime, release)
    return highest is None or highest >= max(1, op.version or 1)


def _highest(op: OpInfo, runtime: str, release: str) -> int | None:
    """The highest version that a release has; None: any, 0: none."""
    table = _tables()[runtime]
    if not _tells(runtime, release):
        return _value(table["opset"], release) if "." not in op.name else None
    own = _value(table["ops"].get(op.name, []), release)
    if own is None and "opset" in table and "." not in op.name:
        return _value(table["opset"], release)
    return own


def _tells(runtime: str, release: str) -> bool:
    """Whether a release lists its operators; an older one tells only its opset."""
    return _key(release) >= _key(_tables()[runtime]["told_since"])


def _value(turns: list[list[Any]], release: str) -> int | None:
    value: int | None = 0
    for since, held in turns:
        if _key(since) <= _key(release):
            value = held
    return value


def _since(op: OpInfo, runtime: str) -> str | None:
    """The first release from which on all have it."""
    first = None
    for release in _tables()[runtime]["releases"]:
        first = (first or release) if _has(op, runtime, release) else None
    return first


def _is_own(name: str, runtime: str) -> bool:
    """Whether an operator is a builtin of the format, rather than a custom op of the user's."""
    return runtime == "onnxruntime" or re.fullmatch(r"[A-Z0-9_]+", name) is not None


@cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return tables


@cache
def _key(release: str) -> tuple[int, ...]:
    """Numbers in their order, 2.1 as 2.1.0; a date may be given in part, as dev20240624 for dev20240624135632."""
    numbers = [int(n.ljust(14, "0") if len(n) >= 4 else n) for n in re.findall(r"\d+", release)]
    return (*numbers, *[0] * (3 - len(numbers)))

"""The latency of a model on a processor, with its interval, or why it is refused. Needs numpy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgedl.errors import InputError, UnsupportedError
from edgedl.latency import operators, platforms
from edgedl.latency.evaluation import half_width
from edgedl.latency.features import FEATURES, Memory, features, foreign, is_known
from edgedl.latency.fitted import FORMAT, MODELS, covariance_of
from edgedl.latency.hierarchy import Costs
from edgedl.latency.operators import Operator
from edgedl.latency.platforms import Platform
from edgedl.types import Method, Target

ALIASES = {"tflite-runtime": "litert", "x-linux-ai": "litert"}  # names of one runtime over the years and vendors
BEYOND = 8  # times smaller or larger, in multiply-accumulates, than any model with a figure: refused
WIDEST = 3  # times the prediction, either way: where the interval is wider, the prediction says nothing


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model would run. `runtime` may name a version as `x-cube-ai@8.1`; `threads` None is as published."""

    runtime: str
    core: str
    clock_hz: float | None
    threads: int | None = None
    ram_bytes: float | None = None
    flash_bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One model there: times in ms, `low` to `high` the 90 % interval; all None where `refused` says why.

    `macs_per_clock_ms` is what multiply-accumulates and clock alone would say: the baseline.
    """

    model: str
    latency_ms: float | None = None
    low: float | None = None
    high: float | None = None
    method: Method = Method.PREDICTED
    refused: str | None = None
    macs_per_clock_ms: float | None = None
    target: str | None = None
    runtime: str
    core: str
    clock_hz: float | None
    basis: str = ""


@cache
def load(path: Path = MODELS) -> dict[str, Any]:
    """The models in a file that scripts/fit_latency.py wrote. Raises InputError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        message = f"{path}: cannot be read as latency models ({getattr(e, 'strerror', None) or e})"
        raise InputError(message) from e
    if (
        not isinstance(found, dict)
        or found.get("format") != FORMAT
        or list(found.get("features", ())) != list(FEATURES)
    ):
        message = f"{path}: no latency models of this version of edgedl; write them again with scripts/fit_latency.py"
        raise InputError(message)
    return found


def has_figures(models: dict[str, Any], runtime: str) -> bool:
    """Whether any figure tells about a runtime, `NAME` or `NAME@VERSION`."""
    name = runtime.partition("@")[0]
    return any(e["runtime"] == ALIASES.get(name, name) for fit in models["fits"] for e in fit["entries"])


def places(target: Target, runtime: str | None = None, threads: int | None = None) -> tuple[Place, ...]:
    """The fastest core of a target with each of its runtimes, or with the one named."""
    cores = target.cpu.get("clusters") or (target.cpu,)
    fastest = max(cores, key=lambda c: c.get("clock_hz", 0))
    memory = target.memory
    names = [runtime] if runtime else [r.name for r in target.runtimes if r.format in (None, "tflite")]
    return tuple(
        Place(
            runtime=name,
            core=fastest.get("core", ""),
            clock_hz=fastest.get("clock_hz"),
            threads=threads or (1 if fastest.get("cores") == 1 else None),
            ram_bytes=memory.get("contiguous_ram_bytes", memory.get("ram_bytes")),
            flash_bytes=memory.get("flash_bytes"),
        )
        for name in names
    )


def predict_first(models: dict[str, Any], name: str, table: Sequence[Operator], where: Sequence[Place]) -> Prediction:
    """The model at the first place with a prediction, else the first place's refusal."""
    found = [predict(models, name, table, place) for place in where]
    none = Prediction(model=name, runtime="", core="", clock_hz=None, refused="the profile names no runtime for TFLite")
    return next((p for p in found if p.refused is None), found[0] if found else none)


def predict(models: dict[str, Any], name: str, table: Sequence[Operator], place: Place) -> Prediction:
    """The model of that name and operators, there."""
    empty = Prediction(model=name, runtime=place.runtime, core=place.core, clock_hz=place.clock_hz)
    if not place.core or place.clock_hz is None:
        return replace(empty, refused="the profile states no core or no clock: cpu.core and cpu.clock_hz")
    try:
        found, fit = _entries(models, place, operators.precision(table))
        entry = found[0]
        macs = sum(op.macs for op in table)
        empty = replace(empty, runtime=f"{entry['runtime']}@{entry['version']}", basis=_basis(found),
                        macs_per_clock_ms=1e3 * entry["cycles_per_mac"] * macs / place.clock_hz)  # fmt: skip
        _check_alike(table, macs, fit["macs"])
    except UnsupportedError as e:
        return replace(empty, refused=str(e))
    platform = platforms.PLATFORMS[fit["platform"]]
    counts = features(table, _memory(platform, place), platform.depth_step)
    cycles, deviation, share = _costs(entry).predict(counts)
    factor = math.exp(half_width(fit["deviations"], deviation))
    if factor > WIDEST:
        most = list(FEATURES)[int(share.argmax())]
        return replace(empty, refused=f"too far from the models with figures: the interval would be a factor of "
                       f"{factor:.1f} either way; most of the time goes to {FEATURES[most]}")  # fmt: skip
    milliseconds = 1e3 / place.clock_hz
    copied = dict.fromkeys(op.op for op in table if not is_known(op))
    newer = [_costs(other).predict(counts)[0] for other in found[1:]]
    return replace(
        empty,
        basis=empty.basis + (f"; counted as a copy: {', '.join(copied)}" if copied else ""),
        latency_ms=cycles * milliseconds,
        low=min([cycles / factor, *newer]) * milliseconds,
        high=max([cycles * factor, *newer]) * milliseconds,
    )


def _costs(entry: dict[str, Any]) -> Costs:
    return Costs(
        log_cycles=np.array(entry["log_cycles"]),
        covariance=covariance_of(entry["covariance"]),
        variance=entry["variance"],
    )


def _entries(models: dict[str, Any], place: Place, precision: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The costs for a place, and the fit they come from. Raises UnsupportedError where no figures tell them.

    Where no version is asked for, newer ones than the first follow, which have too few figures to be it.
    """
    name, _, version = place.runtime.lower().partition("@")
    name = ALIASES.get(name, name)
    found = [(entry, fit) for fit in models["fits"] for entry in fit["entries"]]
    for key, wanted, what in (
        ("runtime", name, f"no published figures for runtime {name}"),
        ("core", place.core.lower(), f"no published figures of {name} on {place.core}"),
        ("version", version or None, f"no published figures of {name} {version}"),
        ("precision", precision, f"no published figures, or too few, of {name} in {precision or 'no stated type'}"),
        ("threads", place.threads, f"no published figures of {name} with {place.threads} thread(s)"),
    ):
        known = list(dict.fromkeys(str(entry[key]) for entry, _ in found))
        if wanted is not None:
            found = [(entry, fit) for entry, fit in found if _is(entry[key], wanted)]
        if not found:
            message = f"{what}; there are some for {key} {', '.join(known)}"
            raise UnsupportedError(message)
    first, fit = next((pair for pair in found if pair[0]["default"]), found[0])
    return [first, *(entry for entry, _ in found if entry["newer"] and not version)], fit


def _is(known: str | int, wanted: str | int) -> bool:
    """Whether they name the same; figures of version 8.1 are those of 8.1.0 too."""
    return wanted == known or str(wanted).startswith(f"{known}.")


def _check_alike(table: Sequence[Operator], macs: int, measured: Sequence[int]) -> None:
    """Raises UnsupportedError for a model outside of what figures tell about."""
    unknown = foreign(table)
    if unknown:
        message = f"no published figures tell what {unknown} costs"
        raise UnsupportedError(message)
    if not measured[0] / BEYOND <= macs <= measured[1] * BEYOND:
        message = (
            f"{macs:,} multiply-accumulates are far from those of the models with figures, "
            f"{measured[0]:,} to {measured[1]:,}"
        )
        raise UnsupportedError(message)
    for op in table:
        counted = operators.count_macs(op.op, op.inputs, op.weights, op.outputs)
        if op.op in operators.WEIGHTED and abs(op.macs - counted) > 0.01 * counted:
            message = f"a {op.op} has {op.macs:,} multiply-accumulates in the table and {counted:,} by its shapes"
            raise UnsupportedError(message)


def _memory(platform: Platform, place: Place) -> Memory:
    """The memories of the place as far as they are known, else those that the figures were taken with."""
    usual = platform.memory
    if math.isinf(usual.ram_bytes):
        return usual
    ram, flash = place.ram_bytes or usual.ram_bytes, place.flash_bytes or usual.flash_bytes
    return replace(usual, ram_bytes=ram, flash_bytes=flash)


def _basis(found: Sequence[dict[str, Any]]) -> str:
    """What the prediction rests on, for a reader."""
    entry, *newer = found
    name = f"{entry['runtime']} {entry['version']}, {entry['precision']}, {entry['threads']} thread(s)"
    if entry["figures"]:
        told = f"{entry['figures']} figures of {entry['families']} families, all versions"
        text = f"{name}: {told}, on {', '.join(entry['boards'])}"
    else:
        text = f"{name}: figures of other cores, carried to {entry['core']} by what other runtimes gain or lose there"
    if newer:
        return (
            f"{text}; the interval reaches to version {', '.join(e['version'] for e in newer)}, which has few figures"
        )
    return text

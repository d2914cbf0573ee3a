"""Latency, load and memory of artifacts on this machine: each in a fresh child, their timed runs interleaved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import artifacts, devices, targets, worker
from edgedl.agent import saturates
from edgedl.errors import InputError
from edgedl.types import Artifact, Target, TensorSpec, to_json
from edgedl.validation import device_benchmark
from edgedl.validation.evaluate import Setting, request
from edgedl.worker import Child

HOST = "host"
ROUNDS = 5
FIRST_WARMUP = 10


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one artifact took. `low` and `high` are the range of the rounds' medians; times in ms."""

    artifact: Artifact
    setting: Setting
    load_ms: float
    first_inference_ms: float
    latency_ms: float
    latency_p90_ms: float
    low: float
    high: float
    peak_rss_bytes: int | None  # None: of a runtime in another process
    repeats: int
    host_load: float  # runnable processes before the first round (1-minute average)

    @property
    def batch(self) -> int:
        """The samples of one inference; a free size counts as 1."""
        return max((spec.shape[0] or 1 for spec in self.artifact.inputs if spec.shape), default=1)

    def as_json(self, target: str | None = None) -> dict[str, Any]:
        """The row that `edgedl benchmark --json` prints."""
        return {
            "artifact": str(self.artifact.path),
            "format": self.artifact.format,
            "scheme": self.artifact.scheme,
            "runtime": self.setting.runtime.name,
            "resolver": self.setting.resolver,
            "target": target,
            "threads": self.setting.threads,
            "batch": self.batch,
            "load_ms": self.load_ms,
            "first_inference_ms": self.first_inference_ms,
            "latency_ms": self.latency_ms,
            "latency_p90_ms": self.latency_p90_ms,
            "spread_ms": [self.low, self.high],
            "peak_rss_bytes": self.peak_rss_bytes,
            "size_bytes": self.artifact.size_bytes,
            "repeats": self.repeats,
            "method": "measured-host",
            "notes": list(self.notes()),
        }

    def notes(self) -> tuple[str, ...]:
        """What makes this figure hard to trust."""
        cores = os.cpu_count() or 1
        found = []
        if self.host_load > cores:
            found.append(f"this machine was busy: load {self.host_load:.1f} on {cores} cores")
        if self.setting.runtime.name == "onnxruntime" and self.artifact.scheme.startswith("static_") and saturates():
            found.append(
                f"{self.artifact.path.name} was run and timed in float between its integers: this processor has no"
                " VNNI, and onnxruntime's own integer kernels are quicker here but overflow; a session of yours needs"
                " session.disable_quant_qdq = 1 for the same answers"
            )
        return tuple(found)


def measure(entries: Sequence[tuple[Artifact, Setting, Mapping[str, Path]]], *, repeats: int = 100) -> list[Timing]:
    """Time the first sample of each entry's inputs: `repeats` inferences in rounds, the artifacts taking turns."""
    load = os.getloadavg()[0]
    a_round = max(1, repeats // ROUNDS)
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(worker.fresh(setting.runtime.name, artifacts.interpreter_of(setting.runtime)))
            for _, setting, _ in entries
        ]
        _warm(children, [setting for _, setting, _ in entries])
        requests = [request(*entry) | {"stop": 1, "repeats": a_round} for entry in entries]
        rounds: list[list[dict[str, Any]]] = [[] for _ in entries]
        for number in range(ROUNDS):
            for child, asked, found in zip(children, requests, rounds, strict=True):
                warmup = FIRST_WARMUP if number == 0 else 2
                found.append(child.call("run", asked | {"warmup": warmup}))
    return [_timing(*entry[:2], found, load) for entry, found in zip(entries, rounds, strict=True)]


def _warm(children: Sequence[Child], settings: Sequence[Setting]) -> None:
    """Let all of them import their runtime, at once: an import is no part of the time that a file takes to load."""
    asked = zip(children, settings, strict=True)
    started = [worker.begin(partial(c.call, "info", artifacts.probe(s.runtime))) for c, s in asked]
    for each in started:
        each.result()


def _timing(artifact: Artifact, setting: Setting, rounds: list[dict[str, Any]], load: float) -> Timing:
    milliseconds = [np.array(r["nanoseconds"]) / 1e6 for r in rounds]
    together = np.concatenate(milliseconds)
    medians = [float(np.median(m)) for m in milliseconds]
    return Timing(
        artifact=artifact,
        setting=setting,
        load_ms=rounds[0]["load_ms"],
        first_inference_ms=rounds[0]["first_inference_ms"],
        latency_ms=float(np.median(together)),
        latency_p90_ms=float(np.percentile(together, 90)),
        low=min(medians),
        high=max(medians),
        peak_rss_bytes=max((r["peak_rss_bytes"] for r in rounds if r["peak_rss_bytes"] is not None), default=None),
        repeats=len(together),
        host_load=load,
    )


def run(
    files: Sequence[Path], profiles: Sequence[Target], *, runtime: str | None, threads: int, repeats: int, seed: int
) -> dict[str, Any]:
    """What `edgedl benchmark --json` prints: a row an artifact, ratios to the first, and what to beware of."""
    read = [artifacts.read(file)[0] for file in files]
    settings = [Setting(runtime=artifacts.runtime_for(a.format, runtime), threads=threads) for a in read]
    drawn = [random_inputs(a, seed) for a in read]
    timings = measure(list(zip(read, settings, drawn, strict=True)), repeats=repeats)
    on_devices, said = device_benchmark.rows(
        list(zip(read, drawn, strict=True)), profiles, runtime=runtime, threads=threads, repeats=repeats
    )
    told = {row["target"] for row in on_devices}
    comparison = [compare(timings[0], t) for t in timings[1:]]
    slower = [c for c in comparison if c["comparable"] and c["latency_ratio"] > 1]
    notes = [f"{c['artifact']} is {c['latency_ratio']:.2f}x slower than {c['reference']}" for c in slower]
    notes += [f"{c['artifact']} and {c['reference']}: not comparable, {c['why']}" for c in comparison if c["why"]]
    notes += [_unmeasured(p) for p in profiles if p.id not in (HOST, *told)] + said
    host = targets.load(HOST)
    return {
        "machine": to_json({"cpu": host.cpu, "memory": host.memory}),
        "results": [t.as_json(HOST if any(p.id == HOST for p in profiles) else None) for t in timings] + on_devices,
        "comparison": comparison,
        "notes": [*notes, *dict.fromkeys(n for t in timings for n in t.notes())],
    }


def _unmeasured(target: Target) -> str:
    missing = devices.place_of(target)[1]
    todo = f" ({missing})" if missing else ""
    return f"target {target.id}: nothing here measures it{todo}; these are this machine's ms"


def random_inputs(artifact: Artifact, seed: int) -> dict[str, Path]:
    """One seeded sample an input: any number that its type can hold, real ones in [0, 1). Raises InputError."""
    rng, folder, found = np.random.default_rng(seed), worker.pool().scratch("random"), {}
    for i, spec in enumerate(artifact.inputs):
        dtype = _drawable(spec, artifact.path)
        shape = [1, *(size or 1 for size in spec.shape[1:])]
        if dtype.kind in "iu" and not spec.scale:
            values: Any = rng.integers(0, 2, shape)  # an index or a mask: small enough for any table
        elif dtype.kind in "iu":
            limits = np.iinfo(dtype)
            codes = rng.integers(limits.min, limits.max, shape, endpoint=True)
            values = codes if artifact.lineage.embedded else (codes - spec.zero_point[0]) * spec.scale[0]
        else:
            values = rng.random(shape, np.float32)
        found[spec.name] = folder / f"{i}.npy"
        np.save(found[spec.name], values.astype(dtype if artifact.lineage.embedded else np.float32))
    return found


def _drawable(spec: TensorSpec, path: Path) -> np.dtype[Any]:
    """The type of an input that random samples can be drawn for. Raises InputError."""
    if not spec.shape:
        message = f"{path}: input {spec.name!r} has no axes; to be timed here it needs a first one, the batch"
        raise InputError(message)
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:  # a type that numpy lacks
        dtype = np.dtype(object)
    if dtype.kind not in "biuf":
        message = f"{path}: input {spec.name!r} has type {spec.dtype}; random samples are bool, int, uint or float"
        raise InputError(message)
    return dtype


def compare(first: Timing, second: Timing) -> dict[str, Any]:
    """The ratio of two medians, second to first; "not comparable" where the rounds' drift exceeds the difference.

    Inferences of unlike batches have no ratio.
    """
    difference = abs(second.latency_ms - first.latency_ms)
    drift = max(first.high - first.low, second.high - second.low)
    alike = first.batch == second.batch
    why = "" if drift < difference else "the drift between rounds exceeds the difference"
    if not alike:
        why = f"batches of {first.batch} and {second.batch} samples"
    return {
        "artifact": str(second.artifact.path),
        "reference": str(first.artifact.path),
        "latency_ratio": second.latency_ms / first.latency_ms if alike else None,
        "size_ratio": second.artifact.size_bytes / first.artifact.size_bytes,
        "comparable": not why,
        "why": why,
    }

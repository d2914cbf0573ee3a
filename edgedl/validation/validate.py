"""Artifact and reference on the same samples -> Report: accuracy, parity, size, latency, one set of checks a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import artifacts, contract, targets
from edgedl.contract.op_versions import check_versions
from edgedl.errors import InputError
from edgedl.types import Check, Method, Metric, Report, Target, Verdict, to_json
from edgedl.validation import accuracy, benchmark, cases, estimates, on_device, parity, predicted
from edgedl.validation.accuracy import Judged
from edgedl.validation.benchmark import HOST, Timing
from edgedl.validation.cases import BENCHMARK_REPEATS, Case, Request
from edgedl.validation.evaluate import Setting
from edgedl.validation.on_device import Ran

OF_OUTPUTS = {  # the checks of outputs that a limit may be set for, and why there may be none
    "worst_class_drop": "it takes one answer a sample that is right or wrong: the metric top1 or binary, and targets",
    "flips": "no output is an answer that could change",
    "max_abs": "nothing here measures it",
    "max_lsb": "no output has quantization steps",
}


def validate(request: Request) -> Report:
    """Run both on every sample and judge. Raises InputError where data, model and artifact do not fit each other."""
    case, notes = cases.read(request)
    timings = _timings(case)
    checks: list[Check] = []
    details: dict[str, Any] = {}
    for target in request.targets or (None,):
        setting, said = cases.setting(request, case.artifact, target)
        notes += said
        told, said = estimates.checks(case.artifact, target, request.gates, case.inputs) if target else ([], [])
        notes += said
        ran = case.ran[cases.key(setting)]
        if target and not (ran.figures and ran.figures.times):
            told += predicted.latency(
                case.info, target, request.gates, runtime=request.runtime, threads=request.threads
            )
        if ran.refused or ran.lost:
            checks.append(_does_not_run(target, setting, ran))
        if ran.outputs:
            found, described = _judge(case, ran.outputs, target)
            details = details or described
            notes += described.get("notes", ())
            checks += on_device.relabelled(found, ran)
        static = contract.static_checks(target, case.artifact, case.info, request.runtime_versions) if target else []
        limited = {c.name for c in static if c.limit is not None}  # by the target, where the user sets none
        figures = _figures(case, target, timings, ran, {c.name for c in told})
        checks += [*told, *(c for c in figures if c.limit is not None or c.name not in limited), *static]
        notes += ran.notes(target.id) if target else ()
    if request.runtime_versions and not request.targets:
        checks.append(check_versions(case.info, request.runtime_versions, target=None))
    notes += [*_slower(case, timings), *(n for t in timings for n in t.notes())]
    return Report(
        artifact=str(request.artifact),
        reference=request.reference,
        data=request.data,
        targets=tuple(t.id for t in request.targets),
        checks=tuple(checks),
        details=details | _facts(case, timings) | {"notes": list(dict.fromkeys(notes))},
    )


def _does_not_run(target: Target | None, setting: Setting, ran: Ran) -> Check:
    """A file that the runtime refuses has failed; what a device is not there to show is unchecked."""
    return Check(
        name="runs",
        target=target.id if target else None,
        method=Method.MEASURED_HOST if ran.refused else Method.STATIC,
        verdict=Verdict.FAIL if ran.refused else Verdict.UNCHECKED,
        why=f"{setting.runtime.name}: {ran.refused}" if ran.refused else ran.lost,
    )


def _judge(case: Case, outputs: Mapping[str, Path], target: Target | None) -> tuple[list[Check], dict[str, Any]]:
    checks: list[Check] = []
    details: dict[str, Any] = {}
    where = target.id if target else None
    many = len(case.artifact.outputs) > 1
    groups, slices = (_names(case, extra) for extra in ("group", "slice"))
    parities: list[dict[str, Any]] = []
    notes: list[str] = []
    for output, metric, _ in case.judges:
        spec = next(s for s in case.artifact.outputs if s.name == output)
        judged = Judged(
            name=output,
            reference=np.load(case.reference[output], mmap_mode="r"),
            artifact=np.load(outputs[output], mmap_mode="r"),
            targets=np.load(case.targets[output], mmap_mode="r") if metric else None,
            spec=parity.on_its_grid(spec, case.info),
            labels=case.dataset.labels or case.artifact.lineage.labels,
            groups=groups,
            slices=slices,
        )
        _check_shapes(case, judged)
        prefix = f"{output}." if many else ""
        has_answers = getattr(metric, "unit", "") == "fraction" if metric else not case.request.metrics
        agreed = accuracy.agreement(
            judged, case.request.gates, prefix=prefix, target=where, has_answers=has_answers,
            threshold=_threshold(judged, metric),
        )  # fmt: skip
        is_broken = any(c.name == f"{prefix}nonfinite" for c in agreed.checks)  # no metric can judge that
        if metric and not is_broken:
            with accuracy.about(f"{case.request.data}: output {output!r}"):
                found = accuracy.compare(
                    judged, metric, case.request.gates, prefix=prefix, target=where, seed=case.request.seed
                )
            checks += found.checks
            notes += found.notes
            details = details or found.details
        checks += [c for c in agreed.checks if c.name not in {k.name for k in checks}]
        parities.append(agreed.details["parity"])
    found_names = {c.name.rpartition(".")[2] for c in checks}
    checks += [
        case.request.gates.check(name, None, method=Method.STATIC, target=where, why=why)
        for name, why in OF_OUTPUTS.items()
        if name in case.request.gates.limits and name not in found_names
    ]
    if case.request.gates.max_drop is not None and not any(metric for _, metric, _ in case.judges):
        checks.append(
            Check(
                name="accuracy_drop",
                target=where,
                method=Method.MEASURED_HOST,
                verdict=Verdict.UNCHECKED,
                why=f"the data has no targets to hold --max-drop {case.request.gates.max_drop} against",
            )
        )
    return checks, details | {"parity": parities, "notes": notes}


def _names(case: Case, extra: str) -> NDArray[Any] | None:
    """One name a sample, where the data has them. Raises InputError."""
    if extra not in case.dataset.extras:
        return None
    found = np.asarray(case.dataset.open(extra))
    if found.size != len(found):
        message = f"{case.request.data}: {extra}: one name a sample is needed, got shape {found.shape}"
        raise InputError(message)
    return found.reshape(-1)


def _threshold(judged: Judged, metric: Metric | None) -> float | None:
    """Above which a value is part of the answer: that of sigmoid metrics, but where they take the highest class."""
    if judged.artifact.size > len(judged.artifact) and not getattr(metric, "multilabel", False):
        return None
    return getattr(metric, "threshold", None)


def _check_shapes(case: Case, judged: Judged) -> None:
    if judged.reference.shape != judged.artifact.shape:
        message = (
            f"output {judged.name!r}: {case.request.artifact} gives shape {judged.artifact.shape}, "
            f"{case.request.reference} gives {judged.reference.shape}; they are not the same network"
        )
        raise InputError(message)


def _timings(case: Case) -> list[Timing]:
    """This machine's figures for the artifact, and for what stands beside it."""
    setting, _ = cases.setting(case.request, case.artifact, None)
    entries = [(case.artifact, setting, case.inputs)]
    if case.beside is not None:
        own = Setting(runtime=artifacts.runtime_for(case.beside.format), threads=setting.threads)
        entries.append((case.beside, own, case.reference_inputs))
    return benchmark.measure(entries, repeats=BENCHMARK_REPEATS)


def _figures(case: Case, target: Target | None, timings: Sequence[Timing], ran: Ran, known: set[str]) -> list[Check]:
    """Sizes anywhere; times and memory where they were measured, else unchecked under a limit and left out without."""
    gates, where = case.request.gates, target.id if target else None
    checks = [
        gates.check(name, value, method=Method.STATIC, target=where)
        for name, value in (
            ("size_bytes", case.artifact.size_bytes),
            ("compressed_bytes", case.artifact.compressed_bytes),
        )
    ]
    if where in (None, HOST):
        mine = timings[0]
        spread = {"low": mine.low, "high": mine.high}
        why = f"{mine.setting.runtime.name}, {mine.setting.threads} thread(s), {mine.repeats} inferences"
        figures: tuple[tuple[str, float | None, dict[str, Any]], ...] = (
            ("load_ms", mine.load_ms, {}),
            ("first_inference_ms", mine.first_inference_ms, {}),
            ("latency_ms", mine.latency_ms, spread),
            ("latency_p90_ms", mine.latency_p90_ms, {}),
            ("peak_rss_bytes", mine.peak_rss_bytes, {}),
        )
        shared: dict[str, Any] = {"method": Method.MEASURED_HOST, "target": where}
        told = [figure for figure in figures if figure[1] is not None]
        checks += [gates.check(name, value, why=why, **shared, **more) for name, value, more in told]
    checks += on_device.checks(ran.figures, gates, where)
    measured = {c.name for c in checks} | known | OF_OUTPUTS.keys()
    why = f"nothing here can measure it on {where}" if where else "nothing here measures it"
    return checks + [
        gates.check(name, None, method=Method.STATIC, target=where, why=why)
        for name in gates.limits
        if name not in measured
    ]


def _slower(case: Case, timings: Sequence[Timing]) -> list[str]:
    if len(timings) < 2:
        return []
    found = benchmark.compare(timings[1], timings[0])
    if found["comparable"] and found["latency_ratio"] > 1:
        own = str(timings[1].artifact.path) == case.request.reference
        beside = case.request.reference if own else f"the float export of {case.request.reference}"
        return [f"{case.request.artifact} is slower than {beside} here: {found['latency_ratio']:.2f}x the time"]
    return []


def _facts(case: Case, timings: Sequence[Timing]) -> dict[str, Any]:
    entries = list(zip(timings, ("artifact", "reference"), strict=False))
    lineage = to_json(case.artifact.lineage)
    lineage.pop("calibration_hashes")
    return {
        "sizes": [
            {"name": (a := t.artifact).path.name, "format": a.format, "scheme": a.scheme, "size_bytes": a.size_bytes,
             "compressed_bytes": a.compressed_bytes, "role": role}
            for t, role in entries
        ],
        "latency": [
            {"name": t.artifact.path.name, "runtime": t.setting.runtime.name, "median_ms": t.latency_ms,
             "p90_ms": t.latency_p90_ms, "low": t.low, "high": t.high, "method": "measured-host",
             "threads": t.setting.threads, "batch": t.batch, "role": role}
            for t, role in entries
        ],
        "data_sha256": case.dataset.sha256,
        "machine": to_json({"cpu": (host := targets.load(HOST)).cpu, "memory": host.memory}),
        "lineage": lineage,
    }  # fmt: skip

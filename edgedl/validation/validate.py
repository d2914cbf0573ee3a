"""Artifact and reference on the same samples -> Report: accuracy, parity, size, latency, one set of checks a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import artifacts, contract, data, exporting, model_file, preprocessing, targets, toml, worker
from edgedl.contract.op_versions import check_versions
from edgedl.data import Dataset
from edgedl.devices import Place
from edgedl.errors import EdgedlError, InputError
from edgedl.model_file import ModelFile
from edgedl.types import (
    Artifact,
    ArtifactInfo,
    Check,
    Method,
    Metric,
    Report,
    Scheme,
    Target,
    TensorSpec,
    Verdict,
    to_json,
)
from edgedl.validation import (
    accuracy,
    benchmark,
    estimates,
    evaluate,
    metrics,
    on_device,
    parity,
    predicted,
    provenance,
)
from edgedl.validation.accuracy import Judged
from edgedl.validation.benchmark import HOST, Timing
from edgedl.validation.evaluate import Setting
from edgedl.validation.gates import Gates
from edgedl.validation.on_device import Ran
from edgedl.validation.settings import setting_for

BENCHMARK_REPEATS = 100


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is compared with what, on which data, under which limits, for which targets."""

    artifact: Path
    reference: str
    data: str
    metrics: tuple[str, ...] = ()  # [OUTPUT=]NAME
    gates: Gates = field(default_factory=Gates)
    targets: tuple[Target, ...] = ()
    runtime: str | None = None
    runtime_versions: Mapping[str, str] = field(default_factory=dict)  # that the app ships, by runtime
    threads: int = 1
    seed: int = 0
    trust: bool = False
    custom_objects: str | None = None


Key = tuple[str, str | None, Place | None]  # runtime, kernels, device


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Everything that is the same for every target."""

    request: Request
    artifact: Artifact
    info: ArtifactInfo
    dataset: Dataset
    inputs: dict[str, Path]  # for the artifact
    ran: dict[Key, Ran]  # what it gave
    reference: dict[str, Path]  # the outputs of the reference
    targets: dict[str, Path]  # what is right, by output
    judges: tuple[tuple[str, Metric | None, str], ...]  # output, metric, why it was chosen
    beside: Artifact | None = None  # what size and latency are compared with
    reference_inputs: dict[str, Path] = field(default_factory=dict)


def validate(request: Request) -> Report:
    """Run both on every sample and judge. Raises InputError where data, model and artifact do not fit each other."""
    case, notes = _case(request)
    timings = _timings(case)
    checks: list[Check] = []
    details: dict[str, Any] = {}
    for target in request.targets or (None,):
        setting, said = _setting(request, case.artifact, target)
        notes += said
        told, said = estimates.checks(case.artifact, target, request.gates, case.inputs) if target else ([], [])
        notes += said
        ran = case.ran[_key(setting)]
        if target and not (ran.figures and ran.figures.timing):
            told += predicted.latency(case.info, target, request.gates)
        if ran.refused:
            checks.append(_does_not_run(target, setting, ran.refused))
        else:
            found, described = _judge(case, ran.outputs, target)
            details = details or described
            checks += on_device.relabelled(found, ran)
        checks += [*told, *_figures(case, target, timings, ran, {c.name for c in told})]
        notes += ran.notes(target.id) if target else ()
        if target:
            checks += contract.static_checks(target, case.artifact, case.info, request.runtime_versions)
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


def _case(request: Request) -> tuple[Case, list[str]]:
    is_artifact = artifacts.format_of(Path(request.reference)) is not None
    if not is_artifact and not model_file.is_known(request.reference, trust=request.trust):
        worker.warm()  # TensorFlow loads while the data is read
    artifacts.runtime_for(artifacts.require_format(request.artifact), request.runtime)  # refused before any work
    reading = worker.begin(lambda: artifacts.read(request.artifact))  # while the data is read
    loaded = data.load(request.data)
    artifact, info = reading.result()
    dataset = data.in_order_of(loaded, artifact.lineage.labels)
    names = data.input_names(dataset, artifact.inputs)
    left = evaluate.left_to_the_app(artifact, dataset)
    bound = data.bind(data.prepare(dataset, left, names), artifact.inputs, artifact.outputs)
    whole = bound if left == dataset.ops else None
    running = worker.begin(lambda: _run(request, artifact, bound.inputs))  # while the reference is loaded
    source = artifacts.read(Path(request.reference))[0] if is_artifact else _model(request)
    beside, said = _beside(source, artifact)
    if isinstance(source, Artifact):
        reference, fed = _artifact_reference(source, dataset, names)
    else:
        reference, fed = _model_reference(source, dataset, names, whole)
    paired = _pair(reference, artifact.outputs, request)
    right = _right(dataset, artifact, bound.targets, bound.inputs)
    judges, chosen = _judges(request, artifact, right, bound.targets)
    case = Case(
        request=request, artifact=artifact, info=info, dataset=dataset, inputs=bound.inputs, reference=paired,
        ran=running.result(), targets=right, judges=judges, beside=beside, reference_inputs=fed,
    )  # fmt: skip
    return case, [
        *chosen,
        *said,
        *provenance.other_preprocessing(artifact, dataset, left),
        *provenance.other_labels(artifact, loaded, dataset),
        *provenance.overlap(artifact, dataset, names),
    ]


def _run(request: Request, artifact: Artifact, inputs: Mapping[str, Path]) -> dict[Key, Ran]:
    """The artifact's outputs with the kernels, and on the device, of each target."""
    wanted = {_key(s): s for s in (_setting(request, artifact, target)[0] for target in request.targets or (None,))}
    chosen = not request.targets or request.runtime is not None
    ran = on_device.run_all(artifact, list(wanted.values()), inputs, repeats=BENCHMARK_REPEATS, chosen=chosen)
    return dict(zip(wanted, ran, strict=True))


def _key(setting: Setting) -> Key:
    return setting.runtime.name, setting.resolver, setting.place


def _does_not_run(target: Target | None, setting: Setting, why: str) -> Check:
    where = target.id if target else None
    return Check(
        name="runs",
        target=where,
        method=Method.MEASURED_HOST,
        verdict=Verdict.FAIL,
        why=f"{setting.runtime.name}: {why}",
    )


def _artifact_reference(
    other: Artifact, dataset: Dataset, names: Sequence[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Its outputs, and what it was fed."""
    bound = data.bind(
        data.prepare(dataset, evaluate.left_to_the_app(other, dataset), names), other.inputs, other.outputs
    )
    setting = Setting(runtime=artifacts.runtime_for(other.format))
    return evaluate.outputs(other, setting, bound.inputs), bound.inputs


def _model(request: Request) -> ModelFile:
    return model_file.open_model(
        request.reference, trust=request.trust, custom_objects=request.custom_objects, loaded=False
    )


def _model_reference(
    model: ModelFile, dataset: Dataset, names: Sequence[str], bound: data.Bound | None
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Its outputs, and what it was fed: `bound` where that is all preprocessed."""
    fitted = bound or data.bind(data.prepare(dataset, dataset.ops, names), model.inputs, model.outputs)
    inputs = dict(zip([s.name for s in model.inputs], fitted.inputs.values(), strict=True))
    if set(inputs) == set(fitted.inputs):
        inputs = fitted.inputs
    ops = preprocessing.to_json((*dataset.applied, *dataset.ops))
    return model.predict(inputs, key=f"{dataset.sha256} {to_json(ops)}"), inputs


def _beside(reference: Artifact | ModelFile, artifact: Artifact) -> tuple[Artifact | None, list[str]]:
    """What size and latency are compared with: the reference, or its unquantized export; why, where there is none."""
    if isinstance(reference, Artifact):
        return reference, []
    if artifact.scheme == Scheme.FP32:
        return None, []
    names = [spec.name for spec in reference.inputs]
    own = sorted(artifact.inputs, key=lambda s: names.index(s.name) if s.name in names else -1)  # else by place
    shapes = {name: tuple(int(v or 1) for v in s.shape) for name, s in zip(names, own, strict=False)}
    try:
        return exporting.kept_export(reference, artifact.format, shapes=shapes), []
    except EdgedlError as e:
        return None, [f"no float {artifact.format} to compare size and latency with: {e}"]


def _pair(reference: dict[str, Path], outputs: Sequence[TensorSpec], request: Request) -> dict[str, Path]:
    """The reference's outputs under the artifact's names: by name, or by place where there are as many."""
    wanted = [s.name for s in outputs]
    if set(reference) == set(wanted):
        return reference
    if len(reference) != len(wanted):
        message = (
            f"{request.artifact} has outputs {', '.join(wanted)}, {request.reference} has {', '.join(reference)}; "
            "they must have the same ones"
        )
        raise InputError(message)
    return dict(zip(wanted, reference.values(), strict=True))


def _right(
    dataset: Dataset, artifact: Artifact, found: Mapping[str, Path], inputs: Mapping[str, Path]
) -> dict[str, Path]:
    """Targets by output; an autoencoder's is its input."""
    right = dict(found)
    for spec in artifact.outputs:
        for own in artifact.inputs:
            if "y" not in dataset.arrays and spec.name not in right and spec.shape[1:] == own.shape[1:]:
                right[spec.name] = inputs[own.name]
    return right


def _judges(
    request: Request, artifact: Artifact, right: Mapping[str, Path], given: Mapping[str, Path]
) -> tuple[tuple[tuple[str, Metric | None, str], ...], list[str]]:
    """The metrics the user named, or one for each output that has targets; and what was chosen for the user."""
    outputs = {s.name: s for s in artifact.outputs}
    if request.metrics:
        named = [_named(text, outputs, right) for text in request.metrics]
        return tuple((output, metrics.resolve(name), "") for output, name in named), []
    judges, notes = [], []
    for spec in artifact.outputs:
        array = np.load(given[spec.name], mmap_mode="r") if spec.name in given else None
        name, why = metrics.default_metric(tuple(spec.shape), array, _input_shape(artifact))
        judges.append((spec.name, metrics.resolve(name) if name else None, why))
        notes.append(f"output {spec.name!r}: metric {name or 'none'} ({why})")
    return tuple(judges), notes


def _input_shape(artifact: Artifact) -> tuple[int | None, ...] | None:
    return tuple(artifact.inputs[0].shape) if len(artifact.inputs) == 1 else None


def _named(text: str, outputs: Mapping[str, TensorSpec], right: Mapping[str, Path]) -> tuple[str, str]:
    output, _, name = text.rpartition("=")
    output = output or next(iter(outputs))
    if output not in outputs:
        message = f"--metric: no output {output!r}{toml.did_you_mean(output, outputs)}; allowed: {', '.join(outputs)}"
        raise InputError(message)
    if output not in right:
        message = f"--metric {text}: the data has no targets for output {output!r}; name an array {output!r}, or y"
        raise InputError(message)
    return output, name


def _setting(request: Request, artifact: Artifact, target: Target | None) -> tuple[Setting, list[str]]:
    return setting_for(artifact, target, runtime=request.runtime, threads=request.threads)


def _judge(case: Case, outputs: Mapping[str, Path], target: Target | None) -> tuple[list[Check], dict[str, Any]]:
    checks: list[Check] = []
    details: dict[str, Any] = {}
    where = target.id if target else None
    many = len(case.artifact.outputs) > 1
    groups, slices = (
        np.asarray(case.dataset.open(n)) if n in case.dataset.extras else None for n in ("group", "slice")
    )
    parities = []
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
        has_answers = metric is None or getattr(metric, "unit", "") == "fraction"
        agreed = accuracy.agreement(judged, case.request.gates, prefix=prefix, target=where, has_answers=has_answers)
        is_broken = any(c.name == f"{prefix}nonfinite" for c in agreed.checks)  # no metric can judge that
        if metric and not is_broken:
            with accuracy.about(f"{case.request.data}: output {output!r}"):
                found = accuracy.compare(
                    judged, metric, case.request.gates, prefix=prefix, target=where, seed=case.request.seed
                )
            checks += found.checks
            details = details or found.details
        checks += [c for c in agreed.checks if c.name not in {k.name for k in checks}]
        parities.append(agreed.details["parity"])
    if case.request.gates.max_drop is not None and not any(metric for _, metric, _ in case.judges):
        checks.append(Check(name="accuracy_drop", target=where, method=Method.MEASURED_HOST,
                            verdict=Verdict.UNCHECKED, why="the data has no targets"))  # fmt: skip
    return checks, details | {"parity": parities}


def _check_shapes(case: Case, judged: Judged) -> None:
    if judged.reference.shape != judged.artifact.shape:
        message = (
            f"output {judged.name!r}: {case.request.artifact} gives shape {judged.artifact.shape}, "
            f"{case.request.reference} gives {judged.reference.shape}; they are not the same network"
        )
        raise InputError(message)


def _timings(case: Case) -> list[Timing]:
    """This machine's figures for the artifact, and for what stands beside it."""
    setting, _ = _setting(case.request, case.artifact, None)
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
        figures: tuple[tuple[str, float, dict[str, Any]], ...] = (
            ("load_ms", mine.load_ms, {}),
            ("first_inference_ms", mine.first_inference_ms, {}),
            ("latency_ms", mine.latency_ms, spread),
            ("latency_p90_ms", mine.latency_p90_ms, {}),
            ("peak_rss_bytes", mine.peak_rss_bytes, {}),
        )
        shared: dict[str, Any] = {"method": Method.MEASURED_HOST, "target": where}
        checks += [gates.check(name, value, why=why, **shared, **more) for name, value, more in figures]
    checks += on_device.checks(ran.figures, gates, where)
    measured = {c.name for c in checks} | known | {"worst_class_drop", "flips", "max_abs", "max_lsb"}
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
        beside = "its float parent" if timings[1].artifact.scheme == Scheme.FP32 else case.request.reference
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
             "threads": t.setting.threads, "role": role}
            for t, role in entries
        ],
        "data_sha256": case.dataset.sha256,
        "machine": to_json({"cpu": (host := targets.load(HOST)).cpu, "memory": host.memory}),
        "lineage": lineage,
    }  # fmt: skip

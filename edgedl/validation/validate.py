"""Artifact and reference on the same samples -> Report: accuracy, parity, size, latency, one set of checks a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import artifacts, data, exporting, model_file, preprocessing, targets, toml, worker
from edgedl.data import Dataset
from edgedl.errors import EdgedlError, InputError
from edgedl.model_file import ModelFile
from edgedl.preprocessing.op import Op
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
from edgedl.validation import accuracy, benchmark, evaluate, metrics
from edgedl.validation.accuracy import Judged
from edgedl.validation.benchmark import HOST, Timing
from edgedl.validation.evaluate import Setting
from edgedl.validation.gates import Gates

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
    threads: int = 1
    seed: int = 0
    trust: bool = False
    custom_objects: str | None = None


Outputs = dict[tuple[str, str | None], dict[str, Path]]  # by runtime and kernels, then by name


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Everything that is the same for every target."""

    request: Request
    artifact: Artifact
    info: ArtifactInfo
    dataset: Dataset
    inputs: dict[str, Path]  # for the artifact
    outputs: Outputs  # what it gave
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
        found, described = _judge(case, case.outputs[_key(setting)], target)
        details = details or described
        checks += [*found, *_figures(case, target, timings)]
        if target:
            checks += targets.static_checks(target, case.artifact, case.info)
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
    dataset = data.load(request.data)
    artifact, info = reading.result()
    names = data.input_names(dataset, artifact.inputs)
    left = evaluate.left_to_the_app(artifact, dataset)
    bound = data.bind(data.prepare(dataset, left, names), artifact.inputs, artifact.outputs)
    whole = bound if left == dataset.ops else None
    outputs = worker.begin(lambda: _outputs(request, artifact, bound.inputs))  # while the reference is loaded
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
        outputs=outputs.result(), targets=right, judges=judges, beside=beside, reference_inputs=fed,
    )  # fmt: skip
    return case, [*chosen, *said, *_other_preprocessing(case, left), *_overlap(case, names)]


def _outputs(request: Request, artifact: Artifact, inputs: Mapping[str, Path]) -> Outputs:
    """The artifact's outputs with the kernels of each target."""
    found: Outputs = {}
    for target in request.targets or (None,):
        setting, _ = _setting(request, artifact, target)
        if _key(setting) not in found:
            found[_key(setting)] = evaluate.outputs(artifact, setting, inputs)
    return found


def _key(setting: Setting) -> tuple[str, str | None]:
    return setting.runtime.name, setting.resolver


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
    shapes = {s.name: tuple(int(v or 1) for v in s.shape) for s in artifact.inputs}
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
    """The runtime and kernels that come nearest to the target's, and what the user should know of the difference."""
    format_, threads = artifact.format, request.threads
    if request.runtime or target is None:
        return Setting(runtime=artifacts.runtime_for(format_, request.runtime), threads=threads), []
    offered = [r for r in target.runtimes if r.format in (None, format_)]
    for found in offered:
        if found.name in artifacts.runtimes(format_):
            runtime = artifacts.runtime_for(format_, found.name)
            return Setting(runtime=runtime, resolver=found.resolver, threads=threads), []
    runtime = artifacts.runtime_for(format_)
    resolver = offered[0].resolver if offered else None
    named = offered[0].name if offered else "no runtime for this format"
    kernels = f"{runtime.name} with {resolver} kernels" if resolver else runtime.name
    note = f"target {target.id}: outputs are those of {kernels} on this machine, in place of {named}"
    return Setting(runtime=runtime, resolver=resolver, threads=threads), [note]


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
            spec=spec,
            labels=case.dataset.labels or case.artifact.lineage.labels,
            groups=groups,
            slices=slices,
        )
        _check_shapes(case, judged)
        prefix = f"{output}." if many else ""
        if metric:
            with accuracy.about(f"{case.request.data}: output {output!r}"):
                found = accuracy.compare(
                    judged, metric, case.request.gates, prefix=prefix, target=where, seed=case.request.seed
                )
            checks += found.checks
            details = details or found.details
        has_answers = metric is None or getattr(metric, "unit", "") == "fraction"
        parity = accuracy.agreement(judged, case.request.gates, prefix=prefix, target=where, has_answers=has_answers)
        checks += [c for c in parity.checks if c.name not in {k.name for k in checks}]
        parities.append(parity.details["parity"])
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


def _figures(case: Case, target: Target | None, timings: Sequence[Timing]) -> list[Check]:
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
    measured = {c.name for c in checks} | {"worst_class_drop", "flips", "max_abs", "max_lsb"}
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


def _other_preprocessing(case: Case, left: Sequence[Op]) -> list[str]:
    """Whether the data is preprocessed in another way than the artifact was exported with."""
    wanted = to_json(case.artifact.lineage.preprocessing)
    here = to_json(preprocessing.to_json((*case.dataset.applied, *left)))
    if case.artifact.lineage.data_sha256 is None or wanted == here:
        return []
    told = f"{case.dataset.source} does {here or 'nothing'}"
    return [f"the artifact was exported for data preprocessed by {wanted or 'nothing'}; {told}"]


def _overlap(case: Case, names: Sequence[str]) -> list[str]:
    """Whether the artifact was calibrated on samples that it is judged on."""
    calibrated = set(case.artifact.lineage.calibration_hashes)
    if not calibrated:
        return []
    here = data.sample_hashes([case.dataset.arrays[name] for name in names])
    shared = calibrated.intersection(here)
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(calibrated)} calibration samples are in this data: its figures flatter the artifact"
    ]


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

"""The one look: DATA -> train -> MODEL -> export -> ARTIFACT -> validate -> REPORT -> package -> PACKAGE.

Every arrow is one function, one command of the same name, and can be called alone. Paths are strings or Paths;
errors are those of `edgedl.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from edgedl import (
    artifacts,
    data,
    exporting,
    inspection,
    model_file,
    packaging,
    preprocessing,
    readers,
    reporting,
    stepwise,
    targets,
    training,
    worker,
)
from edgedl.contract.op_versions import parse_pins
from edgedl.errors import InputError
from edgedl.latency import requests as latency
from edgedl.latency.fitted import MODELS
from edgedl.types import Artifact, ExportOptions, Report, Scheme, Target, Verdict, to_json
from edgedl.validation import benchmark as benchmarking
from edgedl.validation import estimates, layerwise, planning, statistics, tripwire
from edgedl.validation.cases import Request
from edgedl.validation.gates import Gates, parse_limits
from edgedl.validation.validate import validate as run_validation

StrPath = str | Path


def train(
    *,
    model: str,
    data: StrPath,
    out: StrPath,
    evaluation: StrPath | None = None,
    epochs: int = 30,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    patience: int = 5,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Train an architecture by name, or what `module:function` returns, and write it. The facts of the run."""
    return training.train_to(
        Path(out),
        model=model,
        source=str(data),
        evaluation=str(evaluation) if evaluation else None,
        options={
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "patience": patience or None,
            "seed": seed,
        },
        force=force,
    )


def inspect(
    file: StrPath,
    *,
    target: str | None = None,
    runtime_versions: Sequence[str] = (),
    diff: StrPath | None = None,
    trust: bool = False,
    custom_objects: str | None = None,
) -> dict[str, Any]:
    """What is in a model or an artifact; with `target` its static checks, with `diff` what another file has instead."""
    loading: dict[str, Any] = {"trust": trust, "custom_objects": custom_objects}
    profile, pins = targets.load(target) if target else None, parse_pins(runtime_versions)
    found = inspection.inspect(Path(file), target=profile, pins=pins, **loading)
    if found["kind"] == "model" and (profile or pins):
        message = f"{file}: is a model, and targets and runtimes take artifacts; export it first with edgedl export"
        raise InputError(message)
    if profile and found["kind"] == "artifact":
        told, notes = estimates.checks(artifacts.read(Path(file))[0], profile, Gates())
        found["checks"] += to_json(told)
        found["notes"] += notes
    if diff:
        found["diff"] = inspection.difference(found, inspection.inspect(Path(diff), target=None, **loading))
    return found


def compress(
    model: Any,
    recipe: Any,
    data: Any = None,
    *,
    out: StrPath | None = None,
    evaluation: StrPath | None = None,
    overrides: Sequence[str] = (),
    target: str | None = None,
    seed: int = 0,
    force: bool = False,
    trust: bool = False,
    custom_objects: str | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> Any:
    """Compress a model by a recipe. From file to file: the table's rows as facts. A keras.Model gives a new one.

    In a notebook `model` is the user's own model, `data` x or (x, y) arrays, by name where there are several.
    """
    profile = targets.load(target) if target else None
    if not isinstance(model, (str, Path)):
        from edgedl.compression import notebook

        if out or evaluation:
            message = "compress: out and evaluation are for model files; a model object gives a new one, to be saved"
            raise InputError(message)
        return notebook.compress(model, recipe, data, overrides=overrides, seed=seed, target=profile, said=said)
    if data is not None and not isinstance(data, (str, Path)):
        message = "compress: a model file takes data from a file or folder; give arrays with a model object"
        raise InputError(message)
    if out is None:
        message = "compress: name the model to write with out="
        raise InputError(message)
    artifacts.check_output(Path(out), force=force, inputs=(model, data, evaluation))
    artifacts.check_model_output(Path(out))
    return stepwise.compress(
        stepwise.Request(
            model=str(model),
            recipe=str(recipe),
            overrides=tuple(overrides),
            data=str(data) if data else None,
            evaluation=str(evaluation) if evaluation else None,
            target=str(Path(target).absolute()) if target and Path(target).is_file() else target,
            seed=seed,
            trust=trust,
            custom_objects=custom_objects,
        ),
        Path(out),
        said,
    )


def export(
    model: StrPath,
    out: StrPath,
    *,
    format_: str | None = None,
    scheme: str | None = None,
    target: str | None = None,
    calibration_data: StrPath | None = None,
    samples: int = 200,
    io: Literal["float", "int8", "uint8", "int16"] | None = None,
    shapes: Sequence[str] = (),
    opset: int | None = None,
    embed_preprocessing: bool = False,
    slim: bool = True,
    labels: StrPath | None = None,
    seed: int = 0,
    force: bool = False,
    trust: bool = False,
    custom_objects: str | None = None,
) -> Artifact:
    """Write a model in a format, quantized by a scheme, with its sidecar `OUT.edgedl.json`.

    Without a scheme it is the one that the model carries, else fp32.
    """
    if samples < 1:
        message = f"samples must be 1 or more, got {samples}"
        raise InputError(message)
    path, asked, sizes = Path(out), Scheme.parse(scheme) if scheme else None, _shapes(shapes)
    exporter = exporting.exporter_for(format_, path, asked)
    profile = targets.load(target) if target else None
    if profile and exporter.format not in (*profile.formats, *(r.name for r in profile.runtimes)):
        message = f"target {profile.id} takes {', '.join(profile.formats)}, not {exporter.format}"
        raise InputError(message)
    artifacts.check_output(path, force=force, inputs=(model, calibration_data, labels))
    loading = {"path": str(model), "trust": trust, "custom_objects": custom_objects}
    if Path(model).exists():
        worker.ahead("edgedl.models:describe", loading, child=model_file.CHILD)  # while the data is read
    dataset = data.load(str(calibration_data)) if calibration_data else None
    source = model_file.open_model(str(model), trust=trust, custom_objects=custom_objects)
    chosen = exporting.choose_scheme(source, exporter, asked, calibrated=calibration_data is not None)
    named = _labels(labels)
    exporting.check_labels(source, named, str(labels))
    named = named or tuple(artifacts.read_sidecar(Path(model)).get("labels", ()))
    calibration = exporting.calibrate(
        source,
        dataset,
        samples=samples,
        seed=seed,
        draw=chosen.is_static and not source.scheme,
        embed=embed_preprocessing,
        labels=named,
        shapes=sizes,
    )
    options = ExportOptions(
        io=io or (profile.io if profile and chosen.is_static else "float"),
        shapes=sizes,
        seed=seed,
        embed_preprocessing=calibration.embedded,
        preprocessing=tuple(preprocessing.to_json(calibration.left)),
        labels=calibration.labels,
        opset=opset,
        accelerator=profile.accelerator if profile else {},
        slim=slim,
        trust=trust,
        custom_objects=custom_objects,
    )
    with artifacts.staged(path, force=force) as part:
        made = exporting.make(source, exporter, part, scheme=chosen, calibration=calibration, options=options)
        artifacts.write_sidecar(part, to_json(replace(made, path=Path(path.name))))
    return replace(made, path=path)


def validate(
    artifact: StrPath,
    *,
    reference: StrPath,
    data: StrPath,
    metrics: Sequence[str] = (),
    max_drop: str | None = None,
    gate: statistics.Gate = "prove",
    limits: Sequence[str] = (),
    targets: Sequence[str] = (),
    runtime: str | None = None,
    runtime_versions: Sequence[str] = (),
    threads: int | None = None,
    seed: int = 0,
    trust: bool = False,
    custom_objects: str | None = None,
) -> Report:
    """Compare an artifact with its reference, a model or another artifact, on data; judge by the user's limits.

    `threads` of one inference are 1 where it runs, and as published where its latency is predicted.
    """
    return run_validation(
        Request(
            artifact=Path(artifact),
            reference=str(reference),
            data=str(data),
            metrics=tuple(metrics),
            gates=Gates(max_drop=max_drop, gate=gate, limits=parse_limits(limits)),
            targets=_profiles(targets),
            runtime=runtime,
            runtime_versions=parse_pins(runtime_versions),
            threads=threads,
            seed=seed,
            trust=trust,
            custom_objects=custom_objects,
        )
    )


def plan(data: StrPath, *, max_drop: str | None, metrics: Sequence[str] = ()) -> dict[str, Any]:
    """How many samples the gate needs before it can decide; runs nothing but the reading of the data."""
    return planning.plan(str(data), Gates(max_drop=max_drop), metrics)


def benchmark(
    files: Sequence[StrPath],
    *,
    targets: Sequence[str] = (),
    runtime: str | None = None,
    threads: int = 1,
    repeats: int = 200,
    seed: int = 0,
    gate: StrPath | None = None,
    predict: StrPath | None = None,
    core: str | None = None,
    clock_hz: float | None = None,
    latency_models: StrPath | None = None,
    threads_as_published: bool = True,
) -> dict[str, Any]:
    """Time artifacts on this machine on seeded random input, taking turns; ratios are to the first.

    A target whose device is there has a row of its own. `gate` is an earlier result, whose instructions are the limit.
    On other targets latency is predicted; so are, with nothing measured, the models in the table of operators
    `predict`, and anything on a `core` at `clock_hz`.
    """
    paths = [Path(f) for f in files]
    asked = latency.Request(
        files=tuple(paths),
        table=Path(predict) if predict else None,
        targets=_profiles(targets),
        core=core,
        clock_hz=clock_hz,
        runtime=runtime,
        threads=None if threads_as_published else threads,
        models=Path(latency_models) if latency_models else MODELS,
    )
    if asked.is_alone or clock_hz:
        if gate:
            message = (
                f"--gate {gate}: judges counted instructions, and nothing is run here; leave it out, or else "
                "--predict, --core, --clock-hz and a --runtime that only figures tell about"
            )
            raise InputError(message)
        return {"predictions": to_json(latency.answer(asked))}
    if gate:
        tripwire.judge([], Path(gate))  # refused before anything runs
    found = benchmarking.run(paths, asked.targets, runtime=runtime, threads=threads, repeats=repeats, seed=seed)
    predictions = to_json(latency.answer(asked))
    found |= {"predictions": predictions} if predictions else {}
    if gate:
        pairs = [(str(path), target.id) for path in paths for target in asked.targets]
        found["gate"] = tripwire.judge(found["results"], Path(gate), pairs)
    return found


def package(
    artifact: StrPath,
    *,
    platforms: Sequence[str],
    out: StrPath,
    data: StrPath | None = None,
    labels: StrPath | None = None,
    report: StrPath | None = None,
    card: StrPath | None = None,
    targets: Sequence[str] = (),
    name: str | None = None,
    version: str | None = None,
    previous: StrPath | None = None,
    sign: StrPath | None = None,
    seed: int = 0,
    force: bool = False,
    said: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Pack an artifact for each platform into the folder `out`."""
    request = packaging.Request(
        artifact=Path(artifact),
        platforms=tuple(platforms),
        out=Path(out),
        data=str(data) if data else None,
        labels=Path(labels) if labels else None,
        report=Path(report) if report else None,
        card=Path(card) if card else None,
        sign=Path(sign) if sign else None,
        targets=tuple(targets),
        name=name,
        version=version,
        previous=Path(previous) if previous else None,
        seed=seed,
        force=force,
    )
    return packaging.pack(request, said)


def verify(package: StrPath, *, key: StrPath | None = None) -> dict[str, Any]:
    """Whether a package is what its manifest says, its signer's where a key is named, and gives its golden outputs."""
    return packaging.verify(Path(package), Path(key) if key else None)


def diff(before: StrPath, after: StrPath, *, max_drop: str | None = None) -> dict[str, Any]:
    """What changed from one package to the next, judged by `max_drop`; `note` is a release note in Markdown."""
    return packaging.compare(Path(before), Path(after), max_drop=max_drop)


def diff_model(
    model: StrPath,
    artifacts: Sequence[StrPath],
    *,
    data: StrPath,
    targets: Sequence[str] = (),
    seed: int = 0,
    trust: bool = False,
    custom_objects: str | None = None,
) -> dict[str, Any]:
    """What of a model each artifact keeps: a validation without limits, and the signal that is left at each layer."""
    opened = model_file.open_model(str(model), trust=trust, custom_objects=custom_objects, loaded=False)
    compared = [layerwise.compare(opened, Path(artifact), str(data), seed) for artifact in artifacts]
    reports = [
        validate(
            artifact, reference=model, data=data, targets=targets, seed=seed, trust=trust, custom_objects=custom_objects
        )
        for artifact in artifacts
    ]
    found = [
        {
            "artifact": str(artifact),
            "report": reporting.as_json(report),
            "layers": layers,
            "notes": report.details["notes"],
        }
        for artifact, report, layers in zip(artifacts, reports, compared, strict=True)
    ]
    verdict = Verdict.worst([report.verdict for report in reports])
    return {"verdict": verdict.value, "model": str(model), "data": str(data), "artifacts": found}


def keygen(key: StrPath) -> Path:
    """Write a private key to sign packages with, and beside it the public one, whose path is returned."""
    return packaging.generate_key(Path(key))


def exit_code(verdict: Verdict, on_inconclusive: str = "fail") -> int:
    """0 pass, 6 fail, 7 inconclusive or unchecked; `warn` and `pass` let an inconclusive one go."""
    if verdict is Verdict.INCONCLUSIVE and on_inconclusive != "fail":
        return 0
    return {Verdict.FAIL: 6, Verdict.UNCHECKED: 7, Verdict.INCONCLUSIVE: 7}.get(verdict, 0)


def _profiles(names: Sequence[str]) -> tuple[Target, ...]:
    return tuple(targets.load(name) for name in names)


def _labels(file: StrPath | None) -> tuple[str, ...]:
    return readers.read_labels(Path(file)) if file else ()


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`image=1,32,32,3` and the like, by input name. Raises InputError."""
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError as e:
            message = f"--shape: NAME=1,H,W,C is needed, got {text!r}"
            raise InputError(message) from e
    return shapes

"""A recipe done step by step, each step in the TensorFlow child, kept, and measured beside the original.

A step's model lies in the cache under the hash of everything that went into it, so that a recipe whose last steps were
changed, or a run that was killed, goes on where it can.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import (
    __version__,
    artifacts,
    data,
    exporting,
    latency_goal,
    model_file,
    preprocessing,
    recipes,
    targets,
    worker,
)
from edgedl.data import Bound, Dataset
from edgedl.errors import EdgedlError, UnsupportedError
from edgedl.latency import prediction, requests
from edgedl.model_file import ModelFile
from edgedl.recipes import Recipe
from edgedl.types import Artifact, Lineage, Scheme, Target, to_json
from edgedl.validation import benchmark, metrics
from edgedl.validation.benchmark import Timing
from edgedl.validation.evaluate import Setting

FORMAT = "tflite"  # what size and latency are told in
REPEATS = 50
LEAST_GAIN = 0.02  # smaller changes are noise or padding
LONG_MACS = 1e11  # of all forward passes: ResNet8 on 8,000 images, 5 to 10 seconds on two cores


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compress, how, with which data, and what it is judged on; `target` is an id or an absolute path."""

    model: str
    recipe: str
    overrides: tuple[str, ...] = ()
    data: str | None = None
    evaluation: str | None = None
    target: str | None = None
    seed: int = 0
    trust: bool = False
    custom_objects: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: the model after a step (`step` "original" before the first). Fractions, bytes, ms.

    `score` is of the `metric`, in its `unit`; `latency_ms` is measured on this machine, that of a target predicted.
    """

    step: str
    parameters: int
    zeros: float
    macs: int | None
    metric: str = ""
    unit: str = ""
    score: float | None = None
    drop: float | None = None
    low: float | None = None
    high: float | None = None
    size_bytes: int | None = None
    compressed_bytes: int | None = None
    latency_ms: float | None = None
    target_latency_ms: float | None = None
    seconds: float = 0.0
    gains: str = ""
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Doing:
    request: Request
    recipe: Recipe
    arrays: dict[str, Any] | None
    samples: int
    judged: Dataset | None
    judged_as: Bound | None  # the same by the model's own names
    target: Target | None
    said: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    artifacts: list[Artifact | None] = field(default_factory=list)


def compress(request: Request, out: Path, said: Callable[[str], None]) -> dict[str, Any]:
    """Write the compressed model and its sidecar to `out`; the rows of the table. Raises what its steps raise."""
    recipe = recipes.load(request.recipe, request.overrides)
    request = replace(request, recipe=str(recipes.copied(request.recipe, worker.pool().scratch("recipe"))))
    worker.warm()
    labels = tuple(artifacts.read_sidecar(Path(request.model)).get("labels", ()))
    judged = dataset = data.in_order_of(data.load(request.data), labels) if request.data else None
    if request.evaluation:
        judged = data.in_order_of(data.load(request.evaluation), labels or (dataset.labels if dataset else ()))
    original = _opened(request, Path(request.model))
    bound = _bound(original, dataset) if dataset else None
    doing = _Doing(
        request=request,
        recipe=recipe,
        arrays=_arrays(bound) if bound else None,
        samples=dataset.count if dataset else 0,
        judged=judged,
        judged_as=bound if judged is dataset or judged is None else _bound(original, judged),
        target=targets.load(request.target) if request.target else None,
        said=said,
    )
    for step in recipe.steps:
        if step.training is not None:
            labelled = None if doing.arrays is None else bool(doing.arrays["targets"])
            recipes.check_data(step.training, step.where, labelled=labelled)
    _measure(doing, "original", original, original, 0.0, _unjudged(doing, original))
    model, chain = original, [__version__, original.sha256, _sha256(doing.arrays), request.seed]
    if doing.target:
        chain.append(repr(doing.target))
    for number, step in enumerate(recipe.steps):
        chain.append(repr(replace(step, where="")))
        model, told = _step(doing, number, model, original, chain)
        _measure(doing, f"{number + 1} {step.compressor}", model, original, told["seconds"], told["notes"])
    told = {"recipe": recipe.name, "sha256": model.sha256, "rows": doing.rows}
    with artifacts.staged(out, force=True) as part:
        part.write_bytes(model.path.read_bytes())
        lineage = Lineage(
            model_sha256=original.sha256,
            ancestors=artifacts.ancestors(original.path, original.sha256),
            recipe=recipe.name,
            scheme=model.scheme or "",
            data_sha256=dataset.sha256 if dataset else None,
            preprocessing=tuple(preprocessing.to_json((*dataset.applied, *dataset.ops))) if dataset else (),
            labels=labels or (dataset.labels if dataset else ()),
            seed=request.seed,
            versions=artifacts.versions(*model_file.FRAMEWORKS),
        )
        artifacts.write_sidecar(part, to_json(told | {"path": out.name, "labels": lineage.labels, "lineage": lineage}))
    return told | {"path": str(out)}


def _opened(request: Request, path: Path) -> ModelFile:
    return model_file.open_model(str(path), trust=request.trust, custom_objects=request.custom_objects)


def _bound(model: ModelFile, dataset: Dataset) -> Bound:
    """The data by the model's own names, with all preprocessing done."""
    ready = data.prepare(dataset, dataset.ops, data.input_names(dataset, model.inputs))
    return data.bind(ready, model.inputs, model.outputs)


def _arrays(bound: Bound) -> dict[str, Any]:
    """What the child is given of the data."""
    parts = {"inputs": bound.inputs, "targets": bound.targets}
    return {part: {name: str(path) for name, path in files.items()} for part, files in parts.items()}


def _sha256(arrays: dict[str, Any] | None) -> str:
    """Of what the steps are given: all samples, preprocessed, and their classes as the model numbers them."""
    digest = hashlib.sha256()
    for kind, files in (arrays or {}).items():
        for name, path in files.items():
            digest.update(f"{kind} {name} {data.file_sha256(Path(path))}\n".encode())
    return digest.hexdigest()


def _step(
    doing: _Doing, number: int, model: ModelFile, original: ModelFile, chain: Sequence[Any]
) -> tuple[ModelFile, dict[str, Any]]:
    """The model after a step, from the cache where the same was done before, and what the step told."""
    request = doing.request
    place, made = model_file.place("compress", *chain), worker.pool().scratch("step") / "model.keras"
    told_file = place / "told.json"
    if told_file.exists() and request.custom_objects is None:
        doing.said(f"step {number + 1}: done before, taken from the cache")
        told = json.loads(told_file.read_text(encoding="utf-8"))
        shutil.copyfile(place / made.name, made)
        model_file.used(place)
        told["notes"] = [n.replace(told["where"], doing.recipe.steps[number].where) for n in told["notes"]]
        return _opened(request, made), told
    place.mkdir(parents=True, exist_ok=True)
    overrides, notes = _goal_met(doing, number, model, original, made.with_name("tried.keras"))
    doing.said(f"step {number + 1} ...")
    told = _child(doing, number, model, original, made, folder=place / "checkpoint", more=overrides)
    told |= {"notes": [*notes, *told["notes"]], "where": doing.recipe.steps[number].where}
    written = made.with_name(told_file.name)
    written.write_text(json.dumps(told), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    model_file.store({file.name: file for file in (made, written)}, place)
    return _opened(request, made), told


def _child(
    doing: _Doing,
    number: int,
    model: ModelFile,
    original: ModelFile,
    out: Path,
    *,
    more: Sequence[str],
    folder: Path | None = None,
) -> dict[str, Any]:
    """Do a step in the child, with `more` overrides; without a `folder` for checkpoints it is a try, untrained."""
    request = doing.request
    arguments = {
        "model": str(model.path),
        "teacher": str(original.path),
        "recipe": request.recipe,
        "overrides": [*request.overrides, *more],
        "number": number,
        "data": doing.arrays,
        "out": str(out),
        "folder": str(folder) if folder else None,
        "seed": request.seed,
        "target": request.target,
        "trust": request.trust,
        "custom_objects": request.custom_objects,
    }
    onednn = folder is not None and _is_long(doing, number, model)
    onednn = onednn and all(m.facts["trains_with_onednn"] for m in (model, original))
    return model_file.train("edgedl.compression.child:step", arguments, onednn=onednn)


def _is_long(doing: _Doing, number: int, model: ModelFile) -> bool:
    """Whether a step trains for so long that a second TensorFlow, which takes seconds to start, pays."""
    training = doing.recipe.steps[number].training
    return training is not None and training.epochs * doing.samples * (model.facts["macs"] or 0) >= LONG_MACS


def _goal_met(
    doing: _Doing, number: int, model: ModelFile, original: ModelFile, tried: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The overrides that turn a step's latency goal into one of MACs, found by trying, and a note; or nothing."""
    step = doing.recipe.steps[number]
    goal = getattr(getattr(step.options, "goal", None), "latency", None)
    if goal is None:
        return (), ()

    def exported(file: ModelFile) -> Artifact:
        artifact, trouble = _exported(file)
        if artifact is None:
            message = f"{step.where}: goal latency cannot be measured: {trouble[0]}"
            raise UnsupportedError(message)
        return artifact

    before = exported(model)

    def override(share: float) -> str:
        return f"{number + 1}.goal={{ macs = {share} }}"

    def latency_of(share: float) -> float:
        doing.said(f"step {number + 1}: trying {share:.1%} of the MACs ...")
        _child(doing, number, model, original, tried, more=(override(share), f"{number + 1}.iterations=1"))
        now, then = _timings(exported(_opened(doing.request, tried)), before)
        return now.latency_ms / then.latency_ms

    share, left = latency_goal.macs_for(goal, latency_of, step.where)
    note = (
        f"{step.where}: goal latency {goal:g}: timed on this machine, {left:.2f} of it is left with {share:.1%} of the "
        f"MACs; goal = {{ macs = {share:g} }} repeats this step anywhere"
    )
    return (override(share),), (note,)


def _measure(
    doing: _Doing, name: str, model: ModelFile, original: ModelFile, seconds: float, notes: Sequence[str]
) -> None:
    artifact, trouble = _exported(model)
    doing.artifacts.append(artifact)
    before = doing.artifacts[-2] if len(doing.artifacts) > 1 else None
    timings = _timings(*(a for a in (artifact, before) if a is not None)) if artifact else []
    there, refused = _on_target(doing, artifact)
    quicker = False
    if len(timings) > 1:
        told = benchmark.compare(timings[1], timings[0])
        quicker = told["comparable"] and _smaller(1.0, told["latency_ratio"])
    row = Row(
        step=name,
        parameters=model.facts["parameters"],
        zeros=model.facts["zeros"],
        macs=model.facts["macs"],
        size_bytes=artifact.size_bytes if artifact else None,
        compressed_bytes=artifact.compressed_bytes if artifact else None,
        latency_ms=timings[0].latency_ms if timings else None,
        target_latency_ms=there,
        seconds=seconds,
        notes=(*notes, *trouble, *refused),
        **_judged(doing, model, original),
    )
    doing.rows.append(replace(row, gains=_gains(doing.rows[-1], row, quicker=quicker)) if doing.rows else row)


def _gains(before: Row, after: Row, *, quicker: bool) -> str:
    """What a step gained, in words: less to flash and run, less for a store to send, a better score, or nothing.

    A score is better where the whole interval of what was lost lies below what was lost before.
    """
    named = {"file": "size_bytes", "MACs": "macs", "download": "compressed_bytes"}
    smaller = {word: _smaller(getattr(before, name), getattr(after, name)) for word, name in named.items()}
    better = before.drop is not None and after.high is not None and after.high < before.drop
    told = smaller | {"latency": quicker, "score": better}
    won = [word for word in ("file", "MACs", "latency", "download", "score") if told[word]]
    if won == ["download"]:
        return "download alone: the file on flash and its time stay"
    return ", ".join(won) or "nothing on this target"


def _smaller(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after < before * (1 - LEAST_GAIN)


def _exported(model: ModelFile) -> tuple[Artifact | None, tuple[str, ...]]:
    try:
        return exporting.kept_export(model, FORMAT, Scheme(model.facts.get("scheme") or Scheme.FP32)), ()
    except EdgedlError as e:
        return None, (f"no {FORMAT} file to measure: {e}",)


def _timings(*files: Artifact) -> list[Timing]:
    """Their latencies on this machine, one taken in turn with the other."""
    setting = Setting(runtime=artifacts.runtime_for(FORMAT))
    entries = [(a, setting, benchmark.random_inputs(a, 0)) for a in files]
    return benchmark.measure(entries, repeats=REPEATS)


def _on_target(doing: _Doing, artifact: Artifact | None) -> tuple[float | None, tuple[str, ...]]:
    """Its latency on the target, predicted from published figures; else None, and why, said once."""
    target = doing.target
    if artifact is None or target is None or target.id == requests.HOST:
        return None, ()
    found = requests.of_artifact("", artifacts.describe(artifact.path), prediction.places(target))
    why = f"no latency on {target.id}: {found.refused}"
    said = not found.refused or any(why in row.notes for row in doing.rows)
    return found.latency_ms, () if said else (why,)


def _unjudged(doing: _Doing, model: ModelFile) -> tuple[str, ...]:
    """A note where there is data but nothing to judge a model by."""
    if doing.judged is None or doing.judged_as is None or doing.judged_as.targets:
        return ()
    has, outputs = ", ".join(doing.judged.arrays), ", ".join(spec.name for spec in model.outputs)
    single = " (or y)" if len(model.outputs) == 1 else ""
    return (f"no score: {doing.judged.source} has no targets for output {outputs}{single}; it has {has}",)


def _judged(doing: _Doing, model: ModelFile, original: ModelFile) -> dict[str, Any]:
    """Score, drop and its 95 % interval on the first output that has targets."""
    dataset, bound = doing.judged, doing.judged_as
    if dataset is None or bound is None:
        return {}
    for before, after in zip(original.outputs, model.outputs, strict=True):
        if before.name not in bound.targets:
            continue
        targets = np.load(bound.targets[before.name], mmap_mode="r")
        name, _ = metrics.default_metric(tuple(before.shape), targets, codes=metrics.holds_classes(before))
        key = f"{dataset.sha256} {dataset.applied} {dataset.ops}"
        reference = np.load(original.predict(bound.inputs, key=key)[before.name], mmap_mode="r")
        inputs = dict(zip([s.name for s in model.inputs], bound.inputs.values(), strict=True))
        artifact = np.load(model.predict(inputs, key=key)[after.name], mmap_mode="r")
        metric = metrics.resolve(name or "mae")
        found = metrics.compare(metric, reference, artifact, targets, seed=doing.request.seed)
        told = {"metric": metric.name, "unit": getattr(metric, "unit", ""), "score": found.artifact, "drop": found.drop}
        return told | {"low": float(found.interval.low), "high": float(found.interval.high)}
    return {}

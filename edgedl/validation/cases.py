"""What a validation judges, the same for every target: artifact, data, the reference's outputs, what is right.

Everything is read, bound and run here, as much of it at once as can be; judging is `validate`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgedl import artifacts, data, exporting, model_file, preprocessing, toml, worker
from edgedl.data import Dataset
from edgedl.devices import Place
from edgedl.errors import EdgedlError, InputError
from edgedl.model_file import ModelFile
from edgedl.types import Artifact, ArtifactInfo, Metric, Scheme, Target, TensorSpec, to_json
from edgedl.validation import evaluate, metrics, on_device, provenance
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
    threads: int | None = None  # of one inference; None: 1 where it runs, as published where it is predicted
    seed: int = 0
    trust: bool = False
    custom_objects: str | None = None


Key = tuple[str, str | None, str | None, Place | None]  # runtime, kernels, those of times alone, device


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


def read(request: Request) -> tuple[Case, list[str]]:
    """The case, and what the user should hear of it. Raises InputError where its parts do not fit each other."""
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
    ready = data.prepare(dataset, left, names)
    bound = data.bind(ready, artifact.inputs, artifact.outputs)
    whole = bound if left == dataset.ops else None
    running = worker.begin(lambda: _run(request, artifact, bound.inputs))  # while the reference is loaded
    source = artifacts.read(Path(request.reference))[0] if is_artifact else _model(request)
    beside, said = _beside(source, artifact)
    if isinstance(source, Artifact):
        reference, fed = _artifact_reference(source, dataset, names)
    else:
        reference, fed = _model_reference(source, dataset, names, whole)
    paired = _pair(reference, artifact.outputs, request)
    right = _right(dataset, artifact, bound.targets, names, whole)
    judges, chosen = _judges(request, artifact, right, bound.targets)
    case = Case(
        request=request, artifact=artifact, info=info, dataset=replace(dataset, extras=ready.extras),
        inputs=bound.inputs, reference=paired, ran=running.result(), targets=right, judges=judges, beside=beside,
        reference_inputs=fed,
    )  # fmt: skip
    return case, [
        *chosen,
        *said,
        *(provenance.other_model(artifact, source) if isinstance(source, ModelFile) else ()),
        *provenance.other_preprocessing(artifact, dataset, left),
        *provenance.other_labels(artifact, loaded, dataset),
        *provenance.overlap(artifact, dataset, names),
    ]


def _run(request: Request, artifact: Artifact, inputs: Mapping[str, Path]) -> dict[Key, Ran]:
    """The artifact's outputs with the kernels, and on the device, of each target."""
    wanted = {key(s): s for s in (setting(request, artifact, target)[0] for target in request.targets or (None,))}
    chosen = not request.targets or request.runtime is not None
    ran = on_device.run_all(
        artifact, list(wanted.values()), inputs, repeats=BENCHMARK_REPEATS, chosen=chosen,
        alone=len(request.targets) < 2,
    )  # fmt: skip
    return dict(zip(wanted, ran, strict=True))


def key(setting: Setting) -> Key:
    """What two targets must have in common to share outputs."""
    return setting.runtime.name, setting.resolver, setting.delegate, setting.place


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
    if len(fitted.inputs) != len(model.inputs):
        takes, own = (", ".join(part) for part in ([s.name for s in model.inputs], fitted.inputs))
        message = f"the reference takes the inputs {takes}, the artifact {own}; they must have as many"
        raise InputError(message)
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
    dataset: Dataset, artifact: Artifact, found: Mapping[str, Path], names: Sequence[str], whole: data.Bound | None
) -> dict[str, Path]:
    """Targets by output; an autoencoder's is its input, preprocessed whole (`whole` where the artifact eats that)."""
    left = [s for s in artifact.outputs if s.name not in found and "y" not in dataset.arrays]
    alike = {s.name: [own.name for own in artifact.inputs if own.shape[1:] == s.shape[1:]] for s in left}
    own = {output: inputs[0] for output, inputs in alike.items() if inputs}
    if not own:
        return dict(found)
    bound = whole or data.bind(data.prepare(dataset, dataset.ops, names), artifact.inputs, ())
    return {**found, **{output: bound.inputs[name] for output, name in own.items()}}


def _judges(
    request: Request, artifact: Artifact, right: Mapping[str, Path], given: Mapping[str, Path]
) -> tuple[tuple[tuple[str, Metric | None, str], ...], list[str]]:
    """The metrics the user named, or one for each output that has targets; and what was chosen for the user."""
    outputs = {s.name: s for s in artifact.outputs}
    if request.metrics:
        named = [_named(text, outputs, right) for text in request.metrics]
        judged = [(output, metrics.resolve(name), "") for output, name in named]
        return (*judged, *((name, None, "") for name in outputs if name not in dict(named))), []
    judges, notes = [], []
    for spec in artifact.outputs:
        array = np.load(given[spec.name], mmap_mode="r") if spec.name in given else None
        own = _input_shape(artifact) if spec.name in right else None
        name, why = metrics.default_metric(tuple(spec.shape), array, own, codes=metrics.holds_classes(spec))
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


def setting(request: Request, artifact: Artifact, target: Target | None) -> tuple[Setting, list[str]]:
    """How the artifact is run for a target. Instructions alone are counted only where they have a limit."""
    return setting_for(
        artifact, target, runtime=request.runtime, threads=request.threads or 1,
        counted="instructions" in request.gates.limits,
    )  # fmt: skip

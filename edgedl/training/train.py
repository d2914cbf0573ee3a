"""Child side of `edgedl train`: files in, a .keras file and the facts of the run out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import fitting
from edgedl.errors import InputError
from edgedl.fitting import FitOptions
from edgedl.fitting.losses import ends_in
from edgedl.fitting.samples import TrainingData
from edgedl.models.saving import save
from edgedl.models.tensors import specs
from edgedl.training import architectures, builders, tasks
from edgedl.types import TensorSpec, to_json

if TYPE_CHECKING:
    import keras


def train(
    model: str, data: dict[str, Any], evaluation: dict[str, Any] | None, out: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Train `model`, an architecture's name or `module:function`, and write it to `out`, which the caller renames.

    `data` and `evaluation` are {"inputs": {name: .npy}, "targets": {name: .npy}, "labels": [...], "count": n},
    `options` the fields of FitOptions. Raises InputError: what is wrong in which file, at which sample.
    """
    chosen = _options(options)
    raw = _opened(data)
    labels = tuple(data.get("labels") or ())
    fitting.set_seed(chosen.seed)
    network, notes = _build(model, raw, labels)
    fitting.require_functional(network)
    if chosen.loss is None and getattr(network, "compiled", False) and network.loss:
        chosen = dataclasses.replace(chosen, loss=_compiled_loss(network))
        notes.append("loss taken from the model's compile(); its optimizer is not used")
    copies = model == architectures.AUTOENCODER or _copies(network, raw, chosen.loss)
    bound = _bound(raw, network, notes, copies=copies)
    judged = _bound(_opened(evaluation), network, notes, copies=copies) if evaluation else None
    classes = tasks.class_counts(network, bound)
    for part in filter(None, (bound, judged)):
        tasks.check_same_kind(bound, part)
        tasks.check_classes(part, classes, labels)
    result = fitting.fit(network, bound, chosen, evaluation=judged)
    save(network, Path(out))
    return {
        "parameters": int(network.count_params()),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "history": result.history,
        "evaluation": result.evaluation,
        "seconds": result.seconds,
        "device": ", ".join(result.devices),
        "seed": chosen.seed,
        "classes": classes,
        "notes": to_json([*notes, *result.notes]),
    }


def _options(options: Mapping[str, Any]) -> FitOptions:
    allowed = [f.name for f in dataclasses.fields(FitOptions)]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        message = f"unknown training options: {', '.join(unknown)}; allowed: {', '.join(allowed)}"
        raise InputError(message)
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    return FitOptions(**values)


def _opened(data: Mapping[str, Any]) -> TrainingData:
    """The files, which must all have `count` finite samples; class numbers come as shape (count,)."""
    opened = TrainingData.open(data["inputs"], data["targets"])
    for name, array in (*opened.inputs.items(), *opened.targets.items()):
        if len(array) != data["count"]:
            path = (data["inputs"] | data["targets"])[name]
            message = f"{name} ({path}): has {len(array)} samples, the data has {data['count']}"
            raise InputError(message)
    if not opened.inputs or not data["count"]:
        message = "the data has no samples to train on"
        raise InputError(message)
    tasks.check_finite(opened)
    targets = {n: a.reshape(-1) if tasks.is_numbering(a) else a for n, a in opened.targets.items()}
    return dataclasses.replace(opened, targets=targets)


def _build(name: str, data: TrainingData, labels: tuple[str, ...]) -> tuple[keras.Model, list[str]]:
    """The network and what the user should hear about it."""
    if ":" in name:
        shapes = {n: a.shape[1:] for n, a in data.inputs.items()}
        counts = {n: tasks.classes_of(a, labels) for n, a in data.targets.items()}
        return builders.from_function(name, _only(shapes), _only(counts)), []
    if len(data.inputs) != 1 or len(data.targets) > 1:
        message = (
            f"{name} has one input and one output, the data has inputs {', '.join(data.inputs)} and targets "
            f"{', '.join(data.targets) or '(none)'}; use module:function"
        )
        raise InputError(message)
    array = next(iter(data.inputs.values()))
    affine = tasks.standardizing(array)
    if name == architectures.AUTOENCODER:
        head = architectures.Head(units=int(array.shape[-1]), activation="linear", affine=affine.inverse)
    elif data.targets:
        head = tasks.head_for(*next(iter(data.targets.items())), labels)
    else:
        message = f"{name} needs targets (y), the data has none; only {architectures.AUTOENCODER} trains without"
        raise InputError(message)
    notes = ["the model takes raw values: it begins by bringing them to mean 0 and deviation 1 of the training data"]
    return architectures.build(name, array.shape[1:], head, affine), notes


def _only(values: dict[str, Any]) -> Any:
    """The value where there is one, else the dict by name."""
    return next(iter(values.values())) if len(values) == 1 else values


def _compiled_loss(model: keras.Model) -> Any:
    """What compile() was given, by output name where it is a list."""
    names = [spec.name for spec in specs(model)[1]]
    return dict(zip(names, model.loss, strict=True)) if isinstance(model.loss, (list, tuple)) else model.loss


def _copies(model: keras.Model, data: TrainingData, loss: Any) -> bool:
    """Whether the model learns its own input: one input, one output of its shape, and no targets that fit.

    Class numbers fit a softmax, and whatever has a loss of its own.
    """
    takes, gives = specs(model)
    if not len(takes) == len(gives) == 1 or takes[0].shape != gives[0].shape:
        return False
    classified = loss is not None or ends_in(model.outputs[0], "softmax")
    shapes = [gives[0].shape[1:], *([gives[0].shape[1:-1], (*gives[0].shape[1:-1], 1)] if classified else [])]
    return not any(a.shape[1:] in shapes for a in data.targets.values())


def _bound(data: TrainingData, model: keras.Model, notes: list[str], *, copies: bool) -> TrainingData:
    """The arrays by the model's own names: the same name, or the only input and the only target whatever its name.

    A model that `copies` learns its input.
    """
    takes, gives = specs(model)
    everything = {**data.inputs, **data.targets}
    inputs = {spec.name: _array(spec, len(takes), data.inputs, everything, "input") for spec in takes}
    for spec in takes:
        _check_shape(spec, inputs[spec.name])
    if copies:
        note = "the model gives back what it gets: it learns its own input" + (
            f"; not used: {', '.join(data.targets)}" if data.targets else ""
        )
        if note not in notes:
            notes.append(note)
        return TrainingData(inputs=inputs, targets={gives[0].name: inputs[takes[0].name]})
    targets = {spec.name: _array(spec, len(gives), data.targets, everything, "output") for spec in gives}
    used = {id(a) for a in (*inputs.values(), *targets.values())}
    unused = [name for name, a in everything.items() if id(a) not in used]
    if unused:
        notes.append(f"not used, as the model has nothing of that name: {', '.join(unused)}")
    return TrainingData(inputs=inputs, targets=targets)


def _array(
    spec: TensorSpec, count: int, part: Mapping[str, tasks.Array], everything: Mapping[str, tasks.Array], kind: str
) -> tasks.Array:
    if spec.name in everything:
        return everything[spec.name]
    if count == 1 and len(part) == 1:
        return next(iter(part.values()))
    message = f"no array for the model's {kind} {spec.name!r}; the data has {', '.join(everything)}"
    raise InputError(message)


def _check_shape(spec: TensorSpec, array: tasks.Array) -> None:
    wanted, got = spec.shape[1:], array.shape[1:]
    if len(wanted) == len(got) and all(w in (None, g) for w, g in zip(wanted, got, strict=True)):
        return
    shown = ", ".join("any" if w is None else str(w) for w in wanted)
    message = f"input {spec.name!r} takes samples of shape ({shown}), the data has {got}"
    raise InputError(message)

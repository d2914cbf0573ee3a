"""What the data asks for: classes, several labels or numbers, and the values that a model may be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl.data import slices
from edgedl.errors import InputError
from edgedl.fitting.losses import ends_in
from edgedl.fitting.samples import TrainingData
from edgedl.models.tensors import specs
from edgedl.training.architectures import Affine, Head

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
STATISTICS_SAMPLES = 4096


def classes_of(target: Array, labels: Sequence[str]) -> int:
    """How many values an output for these targets has: classes where they are whole numbers a sample."""
    if is_numbering(target):
        return max(len(labels), int(target.max()) + 1)
    return int(np.prod(target.shape[1:], dtype=np.int64))


def is_numbering(target: Array) -> bool:
    """Whether there is one whole number a sample: # (n,) or (n, 1)."""
    return target.dtype.kind in "iub" and target.size == len(target)


def head_for(name: str, target: Array, labels: Sequence[str]) -> Head:
    """The output that learns these targets. Raises InputError for a shape that no built-in architecture gives."""
    units = classes_of(target, labels)
    if is_numbering(target):
        if not labels and units > len(target):
            message = (
                f"{_file(name, target)}: whole numbers are classes, and 0 to {units - 1} in {len(target)} samples "
                "are too many; store amounts as floats"
            )
            raise InputError(message)
        return Head(units=units)
    if target.ndim > 2:
        message = (
            f"{_file(name, target)}: built-in architectures give (classes) or (numbers) a sample, "
            f"the targets have {target.shape[1:]}; use module:function"
        )
        raise InputError(message)
    sample = target[:STATISTICS_SAMPLES].reshape(len(target[:STATISTICS_SAMPLES]), -1)
    if units > 1 and np.isin(sample, (0, 1)).all():
        return Head(units=units, activation="softmax" if (sample.sum(1) == 1).all() else "sigmoid")
    return Head(units=units, activation="linear", affine=standardizing(target).inverse)


def standardizing(array: Array, seed: int = 0) -> Affine:
    """To mean 0 and deviation 1 over a seeded draw of samples: one value for images, else one a channel or feature."""
    rows = np.random.default_rng(seed).permutation(len(array))[:STATISTICS_SAMPLES]
    sample = np.asarray(array[np.sort(rows)], np.float64)
    if sample.ndim == 1:
        sample = sample[:, None]
    axes = tuple(range(sample.ndim if sample.ndim > 3 else sample.ndim - 1))
    mean, deviation = np.atleast_1d(sample.mean(axes)), np.atleast_1d(sample.std(axes))
    return Affine.standardizing([float(m) for m in mean], [float(d) for d in deviation])


def check_finite(data: TrainingData) -> None:
    """Raises InputError for NaN and infinity."""
    for name, array in (*data.inputs.items(), *data.targets.items()):
        for start, stop in slices(array) if array.dtype.kind == "f" else ():
            _refuse(name, array, start, ~np.isfinite(array[start:stop]), "finite numbers")


def check_same_kind(data: TrainingData, evaluation: TrainingData) -> None:
    """Raises InputError where the evaluation data has other targets: numbers for classes, or another shape."""
    for name, array in data.targets.items():
        other = evaluation.targets[name]
        if other.shape[1:] != array.shape[1:] or (other.dtype.kind == "f") != (array.dtype.kind == "f"):
            shown = [f"{a.dtype} of shape {a.shape[1:]} a sample" for a in (other, array)]
            message = f"{_file(name, other)}: the evaluation data has {shown[0]}, the training data {shown[1]}"
            raise InputError(message)


def class_counts(model: keras.Model, data: TrainingData) -> dict[str, int]:
    """The number of classes of each output whose targets are class numbers; a single sigmoid has two."""
    counts = {}
    for spec, tensor in zip(specs(model)[1], model.outputs, strict=True):
        if spec.name not in data.targets:
            continue
        target, last = data.targets[spec.name], spec.shape[-1] or 0
        numbers = target.shape[:-1] if target.ndim == len(spec.shape) and target.shape[-1] == 1 else target.shape
        if np.issubdtype(target.dtype, np.integer) and last > 1 and len(numbers) == len(spec.shape) - 1:
            counts[spec.name] = int(last)
        elif is_numbering(target) and last == 1 and ends_in(tensor, "sigmoid"):
            counts[spec.name] = 2
    return counts


def check_classes(data: TrainingData, classes: Mapping[str, int], labels: Sequence[str]) -> None:
    """Raises InputError for class numbers that an output lacks, and for labels of another number.

    `classes` holds the number of classes of each output that gives them; `labels` are of the only one.
    """
    for name, count in classes.items():
        if len(classes) == 1 and labels and len(labels) != count:
            message = f"output {name!r} gives {count} classes, the data names {len(labels)} labels; make them agree"
            raise InputError(message)
        target = data.targets[name]
        for start, stop in slices(target):
            block = target[start:stop]
            _refuse(name, target, start, (block < 0) | (block >= count), f"classes 0 to {count - 1}")


def _refuse(name: str, array: Array, start: int, bad: Array, allowed: str) -> None:
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
    if rows.size:
        sample = start + int(rows[0])
        values = np.asarray(array[sample])
        found = values.reshape(-1)[np.flatnonzero(bad.reshape(len(bad), -1)[rows[0]])[0]]
        message = f"{_file(name, array)}: sample {sample} holds {found}; allowed: {allowed}"
        raise InputError(message)


def _file(name: str, array: Array) -> str:
    file = getattr(array, "filename", None)
    return f"{name} ({file})" if file else name

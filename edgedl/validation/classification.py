"""Metrics of classes: single label, binary and multi-label.

Multi-class metrics take the highest score, so logits and probabilities are one. Metrics of a sigmoid output compare
with a threshold: 0.5 on probabilities; outputs outside [0, 1] are refused, and `NAME_logits` compares them with 0.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.validation.metrics import Corpus, Sums, check_numbers
from edgedl.validation.statistics import Floats, Score

Array = NDArray[Any]
Labels = NDArray[np.intp]

_SLACK = 0.01  # a sigmoid dequantized from int8 may end a step beyond 1


def class_labels(outputs: Array, targets: Array) -> Labels:
    """Targets as class indices of shape outputs.shape[:-1]: from labels, axes of 1 aside, or one-hot rows.

    Raises InputError naming the first sample whose label is no class of the output's last axis.
    """
    check_numbers(outputs, targets)
    classes = outputs.shape[-1]
    if targets.shape == outputs.shape and classes > 1:
        odd = np.abs(targets.sum(axis=-1) - 1) > 1e-3
        if odd.any():
            message = f"targets: sample {np.argwhere(odd)[0][0]} is no one-hot row: it must add up to 1"
            raise InputError(message)
        return np.asarray(targets.argmax(axis=-1))
    if _spread(targets.shape) == _spread(outputs.shape[:-1]):  # but for axes of 1
        targets = targets.reshape(outputs.shape[:-1])
    if targets.shape != outputs.shape[:-1]:
        message = (
            f"targets: shape {targets.shape} does not fit outputs {outputs.shape}; "
            f"give class labels {outputs.shape[:-1]} or one-hot rows {outputs.shape}"
        )
        raise InputError(message)
    check_labels(targets, classes)
    return targets.astype(np.intp)


def _spread(shape: tuple[int, ...]) -> list[int]:
    return [*shape[:1], *(size for size in shape[1:] if size != 1)]


def check_labels(targets: Array, classes: int) -> None:
    """Raise InputError naming the first sample that has a label other than 0 to classes - 1."""
    wrong = (targets < 0) | (targets >= classes)
    if targets.dtype.kind == "f":
        wrong |= targets != np.floor(targets)
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0])
        message = f"targets: label {targets[where]:g} at sample {where[0]} is out of range; allowed: 0 to {classes - 1}"
        raise InputError(message)


def above_threshold(outputs: Array, threshold: float, name: str) -> NDArray[np.bool_]:
    """Where sigmoid outputs say yes."""
    if threshold > 0:
        outside = (outputs < -_SLACK) | (outputs > 1 + _SLACK)
        if outside.any():
            where = tuple(np.argwhere(outside)[0])
            message = (
                f"metric {name}: output {outputs[where]:g} at sample {where[0]} is no probability; "
                f"for logits choose {name}_logits"
            )
            raise InputError(message)
    above: NDArray[np.bool_] = outputs > threshold
    return above


def _binary(outputs: Array, targets: Array, threshold: float, name: str) -> tuple[Labels, Labels]:
    """Predicted and true labels, 0 or 1, both of shape (samples,), of one sigmoid output."""
    check_numbers(outputs, targets)
    if outputs.size != len(outputs) or targets.size != len(outputs):
        message = f"metric {name}: needs one output and one target a sample, got {outputs.shape} and {targets.shape}"
        raise InputError(message)
    true = targets.reshape(-1)
    check_labels(true, 2)
    return above_threshold(outputs.reshape(-1), threshold, name).astype(np.intp), true.astype(np.intp)


def _predictions(outputs: Array, targets: Array, threshold: float, name: str) -> tuple[Labels, Labels, int]:
    """Predicted and true labels of any classifier, in one row, and the number of classes."""
    if outputs.size == len(outputs):
        return *_binary(outputs, targets, threshold, name), 2
    true = class_labels(outputs, targets)
    return outputs.argmax(axis=-1).reshape(-1), true.reshape(-1), outputs.shape[-1]


def ratio(above: Floats, below: Floats) -> Floats:
    """The quotient, and 0 where nothing was counted."""
    return np.asarray(np.divide(above, below, out=np.zeros(np.shape(below)), where=np.asarray(below) > 0))


class TopK:
    """Whether the label is among the k highest scores; positions (a step, a pixel) are averaged in each sample.

    Of equal scores the lower index comes first, as in argmax: quantized outputs often tie.
    """

    unit = "fraction"
    higher_is_better = True
    per_sample = True

    def __init__(self, k: int = 1) -> None:
        self.k = k
        self.name = f"top{k}"

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape (samples,). Raises InputError."""
        if outputs.ndim < 2 or outputs.shape[-1] <= self.k:
            message = f"metric {self.name}: needs more than {self.k} classes, got outputs {outputs.shape}"
            raise InputError(message)
        labels = class_labels(outputs, targets)
        if self.k == 1:
            right: NDArray[np.bool_] = outputs.argmax(axis=-1) == labels
        else:
            own = np.take_along_axis(outputs, labels[..., None], axis=-1)
            earlier = np.arange(outputs.shape[-1]) < labels[..., None]
            right = ((outputs > own) | ((outputs == own) & earlier)).sum(axis=-1) < self.k
        return np.asarray(right.reshape(len(right), -1).mean(axis=1))


TOP5 = TopK(5)


class Thresholded:
    """What the metrics of sigmoid outputs share."""

    name = ""
    threshold = 0.5

    def on_logits(self) -> Self:
        """This metric with its threshold at 0."""
        self.name += "_logits"
        self.threshold = 0.0
        return self


class Binary(Thresholded):
    """Accuracy of one sigmoid output against targets of 0 and 1."""

    name = "binary"
    unit = "fraction"
    higher_is_better = True
    per_sample = True

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape (samples,). Raises InputError."""
        predicted, true = _binary(outputs, targets, self.threshold, self.name)
        return np.asarray(predicted == true, np.float64)


class _Macro(Thresholded, Corpus):
    """A mean over the classes that occur in targets or predictions; of one sigmoid output, class 1 alone."""

    def of(self, right: Floats, predicted: Floats, actual: Floats) -> Floats:
        """The value of each class from its counts."""
        raise NotImplementedError

    def weighted(self, outputs: Array, targets: Array) -> Score:
        """The score as a function of weights (resamples, samples)."""
        predicted, true, classes = _predictions(outputs, targets, self.threshold, self.name)
        positions = len(true) // len(outputs)
        single = outputs.size == len(outputs)

        def score(weights: Floats) -> Floats:
            values = np.empty(len(weights))
            for i, row in enumerate(weights):
                counts = tally(predicted, true, classes, np.repeat(row, positions) if positions > 1 else row)
                value = self.of(*counts)
                values[i] = value[1] if single else value[counts[1] + counts[2] > 0].mean()
            return values

        return score


def tally(predicted: Labels, true: Labels, classes: int, weights: Floats | None) -> tuple[Floats, Floats, Floats]:
    """How often each class was predicted rightly, predicted, and true: three of shape (classes,)."""
    hits = np.bincount(true, weights=(predicted == true) * (1.0 if weights is None else weights), minlength=classes)
    said, actual = (np.bincount(x, weights=weights, minlength=classes).astype(np.float64) for x in (predicted, true))
    return np.asarray(hits, np.float64), said, actual


class Precision(_Macro):
    """Right predictions of a class over all predictions of it; 0 for a class never predicted."""

    name = "precision"

    def of(self, right: Floats, predicted: Floats, actual: Floats) -> Floats:  # noqa: ARG002
        """Shape (classes,)."""
        return ratio(right, predicted)


class Recall(_Macro):
    """Right predictions of a class over all samples of it; 0 for a class without samples."""

    name = "recall"

    def of(self, right: Floats, predicted: Floats, actual: Floats) -> Floats:  # noqa: ARG002
        """Shape (classes,)."""
        return ratio(right, actual)


class F1(_Macro):
    """The harmonic mean of precision and recall of each class."""

    name = "f1"

    def of(self, right: Floats, predicted: Floats, actual: Floats) -> Floats:
        """Shape (classes,)."""
        return ratio(2 * right, predicted + actual)


def per_class(outputs: Array, targets: Array, threshold: float = 0.5) -> dict[str, Floats]:
    """Columns `precision`, `recall`, `f1` and `support` (samples), each of shape (classes,)."""
    predicted, true, classes = _predictions(outputs, targets, threshold, "f1")
    right, said, actual = tally(predicted, true, classes, None)
    return {
        "precision": ratio(right, said),
        "recall": ratio(right, actual),
        "f1": ratio(2 * right, said + actual),
        "support": actual,
    }


def confusion(outputs: Array, targets: Array, threshold: float = 0.5) -> NDArray[np.int64]:
    """Counts (classes, classes): rows are true classes, columns predicted ones."""
    predicted, true, classes = _predictions(outputs, targets, threshold, "f1")
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes).astype(np.int64)


class Auc(Corpus):
    """The area under the ROC curve, ties counting one half (Hanley and McNeil, Radiology 143:29-36, 1982).

    Two classes give one curve; more give the mean over classes of one against the rest, which compares scores between
    samples: there logits and probabilities differ, so give what the app ranks by. Classes absent are left out.
    """

    name = "auc"

    def weighted(self, outputs: Array, targets: Array) -> Score:
        """The score as a function of weights (resamples, samples). Raises InputError where there is but one class."""
        if outputs.size == len(outputs):
            check_numbers(outputs, targets)
            if targets.size != len(outputs):
                message = f"metric auc: needs one target a sample, got outputs {outputs.shape}, targets {targets.shape}"
                raise InputError(message)
            check_labels(targets.reshape(-1), 2)
            curves = [(outputs.reshape(-1), targets.reshape(-1) == 1)]
        elif outputs.ndim == 2:
            labels = class_labels(outputs, targets)
            if outputs.shape[1] == 2:
                curves = [(outputs[:, 1].astype(np.float64) - outputs[:, 0], labels == 1)]
            else:
                curves = [(outputs[:, k], labels == k) for k in range(outputs.shape[1])]
        else:
            message = f"metric auc: needs outputs (samples,) or (samples, classes), got {outputs.shape}"
            raise InputError(message)
        parts = [_area(scores, positive) for scores, positive in curves if 0 < positive.sum() < len(positive)]
        if not parts:
            message = "metric auc: needs targets of at least two classes"
            raise InputError(message)

        def score(weights: Floats) -> Floats:
            areas = np.array([part(weights) for part in parts])
            known = np.isfinite(areas)
            total = np.where(known, areas, 0.0).sum(axis=0)
            count = known.sum(axis=0)
            return np.where(count > 0, total / np.maximum(count, 1), np.nan)

        return score


def _area(scores: Array, positive: NDArray[np.bool_]) -> Score:
    """The area as a function of weights (resamples, samples); NaN where a resample lacks one side."""
    order = np.argsort(scores, kind="stable")
    yes, no = order[positive[order]], order[~positive[order]]
    lower = np.searchsorted(scores[no], scores[yes], side="left")
    not_higher = np.searchsorted(scores[no], scores[yes], side="right")

    def area(weights: Floats) -> Floats:
        by_sample = np.ascontiguousarray(weights.T, np.float32)  # whole numbers, exact up to 16 million samples
        below = np.zeros((len(no) + 1, len(weights)), np.float32)
        np.cumsum(by_sample[no], axis=0, out=below[1:])
        drawn = by_sample[yes]
        won = np.einsum("ij,ij->j", drawn, below[lower] + below[not_higher], dtype=np.float64) / 2
        pairs = drawn.sum(axis=0, dtype=np.float64) * below[-1]
        return np.asarray(np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan))

    return area


def _multilabel(outputs: Array, targets: Array, threshold: float, name: str) -> tuple[Array, Array]:
    check_numbers(outputs, targets)
    if outputs.ndim < 2 or outputs.shape != targets.shape:
        message = f"metric {name}: needs outputs and targets (samples, labels), got {outputs.shape} and {targets.shape}"
        raise InputError(message)
    check_labels(targets, 2)
    rows = len(outputs), -1
    return above_threshold(outputs, threshold, name).reshape(rows), (targets == 1).reshape(rows)


class MultilabelF1(Thresholded, Sums):
    """Micro F1 of several sigmoid outputs: all labels of all samples in one count."""

    name = "multilabel_f1"
    multilabel = True

    def terms(self, outputs: Array, targets: Array) -> Floats:
        """Labels said and true, said, true: shape (samples, 3)."""
        said, true = _multilabel(outputs, targets, self.threshold, self.name)
        return np.asarray(np.stack([(said & true).sum(axis=1), said.sum(axis=1), true.sum(axis=1)], axis=1), np.float64)

    def combine(self, sums: Floats) -> Floats:
        """Shape (resamples,)."""
        return ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2])


class MultilabelExact(Thresholded):
    """Whether all sigmoid outputs of a sample are right."""

    name = "multilabel_exact"
    multilabel = True
    unit = "fraction"
    higher_is_better = True
    per_sample = True

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape (samples,). Raises InputError."""
        said, true = _multilabel(outputs, targets, self.threshold, self.name)
        return np.asarray((said == true).all(axis=1).astype(np.float64))

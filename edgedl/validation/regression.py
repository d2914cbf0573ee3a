"""Metrics of real values: errors, explained variance, and the angle between embeddings.

Shapes of outputs and targets are equal, but for axes of length 1. Large arrays are read in slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.validation.metrics import Sums, check_numbers
from edgedl.validation.parity import slices
from edgedl.validation.statistics import Floats

Array = NDArray[Any]
ROUNDING = 1e-9  # of a sum of squares


def _each(outputs: Array, targets: Array, function: Callable[[Floats, Floats], Floats]) -> Floats:
    """`function` of both as float64 (samples, values), slice by slice. Raises InputError where shapes differ."""
    check_numbers(outputs, targets)
    axes = tuple(tuple(size for size in array.shape[1:] if size != 1) for array in (outputs, targets))
    if axes[0] != axes[1]:
        message = f"outputs {outputs.shape} and targets {targets.shape} must have one shape; classes are whole numbers"
        raise InputError(message)
    parts = []
    for part in slices(len(outputs), 8 * 4 * outputs[:1].size):
        rows = part.stop - part.start, -1
        parts.append(
            function(
                np.asarray(outputs[part], np.float64).reshape(rows), np.asarray(targets[part], np.float64).reshape(rows)
            )
        )
    return np.concatenate(parts)


class MeanAbsoluteError:
    """The mean absolute error of each sample, in the unit of the targets."""

    name = "mae"
    unit = "target"
    higher_is_better = False
    per_sample = True

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape (samples,). Raises InputError."""
        return _each(outputs, targets, lambda o, t: np.asarray(np.abs(o - t).mean(axis=1)))


class MeanSquaredError:
    """The mean squared error of each sample: of an autoencoder, its reconstruction error against the input."""

    name = "mse"
    unit = "target^2"
    higher_is_better = False
    per_sample = True

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape (samples,). Raises InputError."""
        return _each(outputs, targets, lambda o, t: np.asarray(((o - t) ** 2).mean(axis=1)))


class Cosine:
    """The cosine of the angle between output and target of each sample; with a zero vector 0, or 1 if both are."""

    name = "cosine"
    unit = "cosine"
    higher_is_better = True
    per_sample = True

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape (samples,). Raises InputError."""

        def cosine(o: Floats, t: Floats) -> Floats:
            lengths = np.linalg.norm(o, axis=1), np.linalg.norm(t, axis=1)
            product = lengths[0] * lengths[1]
            both_zero = (lengths[0] == 0) & (lengths[1] == 0)
            dot = np.einsum("ij,ij->i", o, t)
            return np.where(product > 0, dot / np.where(product > 0, product, 1.0), both_zero.astype(np.float64))

        return _each(outputs, targets, cosine)


class RootMeanSquaredError(Sums):
    """The root of the mean squared error over all samples, in the unit of the targets."""

    name = "rmse"
    unit = "target"
    higher_is_better = False

    def terms(self, outputs: Array, targets: Array) -> Floats:
        """Squared error and 1: shape (samples, 2)."""
        errors = _each(outputs, targets, lambda o, t: np.asarray(((o - t) ** 2).mean(axis=1)))
        return np.stack([errors, np.ones_like(errors)], axis=1)

    def combine(self, sums: Floats) -> Floats:
        """Shape (resamples,)."""
        return np.asarray(np.sqrt(sums[:, 0] / sums[:, 1]))


class R2(Sums):
    """The share of the targets' variance that is explained, averaged over outputs; 1 is perfect, below 0 useless."""

    name = "r2"
    unit = "r2"

    def terms(self, outputs: Array, targets: Array) -> Floats:
        """1, then squared errors, centred targets, and their squares: shape (samples, 1 + 3 * values).

        Raises InputError where a target is constant.
        """
        rows = len(targets), -1
        centre = np.asarray(targets, np.float64).reshape(rows).mean(axis=0) if targets.size else 0.0

        def squares(o: Floats, t: Floats) -> Floats:
            centred = t - centre
            return np.concatenate([np.ones((len(o), 1)), (o - t) ** 2, centred, centred**2], axis=1)

        terms = _each(outputs, targets, squares)
        if not (np.split(terms[:, 1:], 3, axis=1)[2].sum(axis=0) > 0).all():
            message = "metric r2: a target is the same for all samples, so there is no variance to explain"
            raise InputError(message)
        return terms

    def combine(self, sums: Floats) -> Floats:
        """Shape (resamples,); NaN for a resample whose targets are constant."""
        error, total, square = np.split(sums[:, 1:], 3, axis=1)
        spread = square - total**2 / sums[:, :1]
        varies = spread > ROUNDING * square
        return np.asarray((1 - error / np.where(varies, spread, np.nan)).mean(axis=1))

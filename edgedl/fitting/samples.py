"""Samples to train on: memory-mapped arrays, read a batch at a time, split and shuffled by their positions."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Samples along axis 0, by the model's input and output names; `rows` are those that count (None: all)."""

    inputs: Mapping[str, Array]
    targets: Mapping[str, Array]
    rows: Array | None = None

    @classmethod
    def open(cls, inputs: Mapping[str, str | Path], targets: Mapping[str, str | Path]) -> TrainingData:
        """The .npy files, memory-mapped: a batch is read when it is its turn."""
        maps = [{name: np.load(path, mmap_mode="r") for name, path in part.items()} for part in (inputs, targets)]
        return cls(inputs=maps[0], targets=maps[1])

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values()))) if self.rows is None else len(self.rows)

    def take(self, positions: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs and targets of these samples, in memory; what was mapped for them is let go again."""
        rows = positions if self.rows is None else self.rows[positions]
        taken = [{name: a[rows] for name, a in part.items()} for part in (self.inputs, self.targets)]
        for array in (*self.inputs.values(), *self.targets.values()):
            _let_go(array)
        return taken[0], taken[1]

    def drawn(self, most: int, seed: int) -> TrainingData:
        """All samples, or `most` of them, drawn with the seed."""
        if self.count <= most:
            return self
        rows = np.arange(self.count) if self.rows is None else self.rows
        chosen = np.sort(np.random.default_rng([seed, 5]).permutation(self.count)[:most])
        return TrainingData(inputs=self.inputs, targets=self.targets, rows=rows[chosen])

    def split(self, fraction: float, seed: int) -> tuple[TrainingData, TrainingData]:
        """What is left, and the share held out: drawn with the seed, in proportion where the targets are classes."""
        held = _held_out(self, fraction, np.random.default_rng([seed, 1]))
        rows = np.arange(self.count) if self.rows is None else self.rows
        rest = np.setdiff1d(np.arange(self.count), held)
        kept, taken = (TrainingData(inputs=self.inputs, targets=self.targets, rows=rows[p]) for p in (rest, held))
        return kept, taken


def _let_go(array: Array) -> None:
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def batches(order: Array, batch_size: int) -> list[Array]:
    """Batches of nearly equal size, none above `batch_size`: no tail of one sample upsets batch statistics."""
    if not len(order):
        message = "no samples to train on or to evaluate"
        raise InputError(message)
    return np.array_split(order, math.ceil(len(order) / batch_size))


def _held_out(data: TrainingData, fraction: float, generator: np.random.Generator) -> Array:
    """Positions of the share that is held out, sorted."""
    wanted = max(1, round(data.count * fraction))
    if wanted >= data.count:
        message = f"{data.count} samples cannot be split for early stopping; give evaluation data or leave patience out"
        raise InputError(message)
    order = generator.permutation(data.count)
    labels = next((a for a in data.targets.values() if a.dtype.kind in "iu" and a.size == len(a)), None)
    if labels is not None:
        rows = order if data.rows is None else data.rows[order]
        by_class = np.argsort(np.asarray(labels).reshape(-1)[rows], kind="stable")
        order = order[by_class]  # every k-th of them takes each class in proportion
    return np.sort(order[np.linspace(0, data.count - 1, wanted).round().astype(np.int64)])

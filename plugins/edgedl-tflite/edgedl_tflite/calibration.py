"""Samples for the exporter: the calibration folder, memory-mapped, or seeded ones where no data was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl.agent import progress
from edgedl.errors import InputError
from edgedl.types import TensorSpec
from edgedl_tflite.embedding import BYTES, Affine

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Raw values, one array (samples, ...) an input, in the order of the model's inputs. `specs` have fixed shapes."""

    specs: tuple[TensorSpec, ...]
    arrays: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    @property
    def batch(self) -> int:
        """The model's fixed batch."""
        return self.specs[0].shape[0] or 1

    def batches(self) -> Iterator[list[Array]]:
        """Every sample, in batches of the model's size; the last batch reaches back, or around where there are few."""
        for start in range(0, len(self), self.batch):
            first = max(0, min(start, len(self) - self.batch))
            rows = [i % len(self) for i in range(first, first + self.batch)]
            yield [np.asarray(a[rows[0] : rows[0] + 1] if len(rows) == 1 else a[rows]) for a in self.arrays]

    def pick(self, count: int) -> Samples:
        """`count` samples spread over all."""
        rows = np.unique(np.linspace(0, len(self) - 1, count).astype(int))
        return Samples(specs=self.specs, arrays=tuple(np.asarray(a[rows]) for a in self.arrays))


def read(folder: Path, specs: Sequence[TensorSpec]) -> Samples:
    """The samples in `folder`, one `<input>.npy` each. Raises InputError: a file or samples missing, a wrong shape."""
    arrays = []
    for spec in specs:
        path = folder / f"{spec.name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as e:
            message = f"{path}: calibration data for input {spec.name!r} cannot be read ({type(e).__name__}: {e})"
            raise InputError(message) from e
        if array.ndim == 0 or array.shape[1:] != spec.shape[1:] or not len(array):
            message = (
                f"{path}: calibration data has shape {array.shape}; input {spec.name!r} takes {spec.shape[1:]} each"
            )
            raise InputError(message)
        arrays.append(array)
    counts = {s.name: len(a) for s, a in zip(specs, arrays, strict=True)}
    if len(set(counts.values())) > 1:
        message = f"{folder}: the inputs have different numbers of calibration samples: {counts}"
        raise InputError(message)
    return Samples(specs=tuple(specs), arrays=tuple(arrays))


def seeded(
    model: keras.Model, specs: Sequence[TensorSpec], affines: Mapping[int, Affine], seed: int, count: int
) -> Samples:
    """Random samples that the model can take: normal floats, bytes where they are raw, indices where it embeds."""
    import keras

    embeddings = [x.input_dim for x in model._flatten_layers() if isinstance(x, keras.layers.Embedding)]
    rng = np.random.default_rng(seed)
    arrays = []
    for i, spec in enumerate(specs):
        shape, dtype = (count, *(n or 1 for n in spec.shape[1:])), np.dtype(spec.dtype)
        affine = affines.get(i)
        if embeddings:
            array: Array = rng.integers(0, min(embeddings), shape)
        elif affine is not None and affine.dtype in BYTES:
            low, high = BYTES[affine.dtype]
            array = rng.integers(low, high + 1, shape)
        elif dtype.kind == "f":
            array = rng.standard_normal(shape)
        else:
            array = rng.integers(0, 2, shape)
        arrays.append(array.astype(affine.dtype if affine else dtype))
    return Samples(specs=tuple(specs), arrays=tuple(arrays))


def feed(samples: Samples, outside: Mapping[int, Affine]) -> Iterator[dict[str, Array]]:
    """What the converter calibrates on, batch by batch; `outside` steps are not in the graph and applied here."""
    for n, batch in enumerate(samples.batches()):
        progress("calibrating", n * samples.batch, len(samples))
        yield {f"input_{i}": values for i, values in enumerate(ready(batch, samples.specs, outside))}
    progress("calibrating", len(samples), len(samples))


def ready(batch: Sequence[Array], specs: Sequence[TensorSpec], affines: Mapping[int, Affine]) -> list[Array]:
    """A batch of raw values as the inputs of the model, or of its graph where that holds part of the steps."""
    made = []
    for i, (values, spec) in enumerate(zip(batch, specs, strict=True)):
        floats = affines[i].apply(values.astype(np.float32)) if i in affines else values
        made.append(floats.astype(spec.dtype))
    return made

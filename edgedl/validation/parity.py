"""How far an artifact's outputs are from the reference's, read in slices of memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.types import ArtifactInfo, TensorSpec

_SLICE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The agreement of two outputs over the same samples.

    `max_abs` and `mean_abs` are in units of the output, `max_lsb` and `mean_lsb` in steps of the artifact's scale
    (None without one). `differing` is the share of values that differ: in steps where there is a scale, else exactly.
    `flips` counts samples whose answer differs (None where there is none, see `compare`). `nonfinite` counts values
    that are NaN or infinite on one side or both; they differ, and are left out of the other figures.
    `worst_sample` is the first sample with `max_abs`.
    """

    samples: int
    values: int
    max_abs: float
    mean_abs: float
    worst_sample: int
    differing: float
    nonfinite: int
    max_lsb: int | None = None
    mean_lsb: float | None = None
    flips: int | None = None

    @property
    def flip_share(self) -> float | None:
        """The share of samples whose answer differs."""
        return None if self.flips is None else self.flips / self.samples


def slices(samples: int, sample_bytes: int, budget_bytes: int = _SLICE_BYTES) -> Iterator[slice]:
    """Slices over axis 0 that hold about `budget_bytes` each, one sample at least."""
    step = max(1, budget_bytes // max(1, sample_bytes))
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


def on_its_grid(spec: TensorSpec, info: ArtifactInfo) -> TensorSpec:
    """A float output with the steps of the integers that it is made of, where the file says them."""
    steps = info.metadata.get("output_steps", {}).get(spec.name)
    if spec.scale or not steps:
        return spec
    return replace(
        spec, dtype=steps["dtype"], scale=tuple(steps["scale"]), zero_point=tuple(int(z) for z in steps["zero_point"])
    )


def is_finite(values: NDArray[np.generic]) -> bool:
    """Whether no value is NaN or infinite."""
    parts = slices(len(values), values[:1].nbytes)
    return all(bool(np.isfinite(np.asarray(values[part], np.float64)).all()) for part in parts)


def compare(
    artifact: NDArray[np.generic],
    reference: NDArray[np.generic],
    spec: TensorSpec | None = None,
    *,
    threshold: float | None = None,
) -> Parity:
    """The parity of two outputs of one shape, samples on axis 0.

    An answer is the highest of (samples, classes), or with a `threshold` which values of a sample are above it.

    `spec` describes the artifact's quantized output: its scale and zero point, and the integer dtype that saturates.
    The artifact may hold its codes (an integer dtype) or the numbers they stand for; the reference holds numbers, and
    is put on the artifact's grid to count steps. Raises InputError on shapes that differ and on several scales.
    """
    if artifact.shape != reference.shape or artifact.ndim == 0 or artifact.size == 0:
        message = (
            f"parity needs two outputs of one shape, got artifact {artifact.shape} and reference {reference.shape}"
        )
        raise InputError(message)
    grid = _grid(artifact, spec)
    values = artifact.size // len(artifact)
    answers = (artifact.ndim == 2 and values > 1) or (threshold is not None and values == 1)
    totals = _Totals(flips=0 if answers else None, threshold=threshold)
    for part in slices(len(artifact), 4 * 8 * values):
        codes, numbers = _both(artifact[part], grid)
        totals.add(part.start, numbers, codes, np.asarray(reference[part], np.float64), grid)
    return totals.result(len(artifact), artifact.size, grid is not None)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    scale: float
    zero_point: int
    low: float
    high: float

    def codes(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        codes: NDArray[np.float64] = np.clip(np.rint(numbers / self.scale) + self.zero_point, self.low, self.high)
        return codes


def _grid(artifact: NDArray[np.generic], spec: TensorSpec | None) -> _Grid | None:
    if spec is None or not spec.scale:
        return None
    if len(spec.scale) != 1 or len(spec.zero_point) > 1 or spec.scale[0] <= 0:
        message = f"output {spec.name!r}: parity in LSB needs one positive scale and zero point, got {len(spec.scale)}"
        raise InputError(message)
    dtype = artifact.dtype if artifact.dtype.kind in "iu" else np.dtype(spec.dtype)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    return _Grid(
        scale=spec.scale[0],
        zero_point=spec.zero_point[0] if spec.zero_point else 0,
        low=limits.min if limits else -np.inf,
        high=limits.max if limits else np.inf,
    )


def _both(part: NDArray[np.generic], grid: _Grid | None) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Codes (None without a grid) and numbers of a slice of the artifact's output."""
    values = np.asarray(part, np.float64)
    if grid is None:
        return None, values
    if part.dtype.kind in "iu":
        return values, (values - grid.zero_point) * grid.scale
    return grid.codes(values), values


@dataclass(kw_only=True)
class _Totals:
    """What is summed over the slices."""

    flips: int | None
    threshold: float | None
    max_abs: float = 0.0
    sum_abs: float = 0.0
    worst: int = 0
    differing: int = 0
    nonfinite: int = 0
    max_lsb: float = 0.0
    sum_lsb: float = 0.0

    def add(
        self,
        start: int,
        numbers: NDArray[np.float64],
        codes: NDArray[np.float64] | None,
        reference: NDArray[np.float64],
        grid: _Grid | None,
    ) -> None:
        usable = np.isfinite(numbers) & np.isfinite(reference)
        broken = usable.size - int(np.count_nonzero(usable))
        difference = np.abs(np.where(usable, numbers, 0.0) - np.where(usable, reference, 0.0))
        highest = float(difference.max())
        if highest > self.max_abs:
            self.max_abs = highest
            self.worst = start + int(difference.argmax()) // (difference.size // len(difference))
        self.sum_abs += float(difference.sum())
        steps = difference
        if codes is not None and grid is not None:
            steps = np.abs(np.where(usable, codes, 0.0) - np.where(usable, grid.codes(reference), 0.0))
            self.max_lsb = max(self.max_lsb, float(steps.max()))
            self.sum_lsb += float(steps.sum())
        self.differing += int(np.count_nonzero(steps)) + broken
        self.nonfinite += broken
        if self.flips is not None:
            changed = self._answers(numbers) != self._answers(reference)
            self.flips += int(np.count_nonzero(changed.any(axis=1)))

    def _answers(self, values: NDArray[np.float64]) -> NDArray[np.generic]:
        rows = values.reshape(len(values), -1)
        return rows.argmax(axis=1)[:, None] if self.threshold is None else rows > self.threshold

    def result(self, samples: int, values: int, quantized: bool) -> Parity:
        finite = max(1, values - self.nonfinite)
        return Parity(
            samples=samples,
            values=values,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / finite,
            worst_sample=self.worst,
            differing=self.differing / values,
            nonfinite=self.nonfinite,
            max_lsb=int(self.max_lsb) if quantized else None,
            mean_lsb=self.sum_lsb / finite if quantized else None,
            flips=self.flips,
        )

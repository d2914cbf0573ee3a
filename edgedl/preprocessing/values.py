"""Steps on each value: cast, scale, normalize."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgedl.errors import InputError
from edgedl.preprocessing.op import Array, Op, Shape, as_type, choice, key, number, numbers

_DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Cast(Op):
    """The same numbers in another type; integers are rounded half up and saturate."""

    op = "cast"
    dtype: str = key(choice(*_DTYPES))

    def apply(self, batch: Array) -> Array:
        """Of the type asked for."""
        return as_type(batch, self.dtype)

    def out_dtype(self, dtype: str) -> str:  # noqa: ARG002
        """The type asked for."""
        return self.dtype


@dataclass(frozen=True, kw_only=True)
class Scale(Op):
    """x * factor + offset."""

    op = "scale"
    factor: float = key(number())
    offset: float = key(number(), default=0.0)

    def apply(self, batch: Array) -> Array:
        """In float32."""
        return batch.astype(np.float32, copy=False) * np.float32(self.factor) + np.float32(self.offset)


@dataclass(frozen=True, kw_only=True)
class Normalize(Op):
    """(x - mean) / std, with one number or one a channel."""

    op = "normalize"
    mean: float | tuple[float, ...] = key(numbers)
    std: float | tuple[float, ...] = key(numbers)

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {len(x) for x in (self.mean, self.std) if isinstance(x, tuple)}
        if len(lengths) > 1:
            message = f"mean and std must have as many channels as each other, got {self.mean} and {self.std}"
            raise InputError(message)
        if np.min(self.std) <= 0:
            message = f"std must be > 0, got {self.std}"
            raise InputError(message)

    @property
    def channels(self) -> int | None:
        """How many channels the numbers are for; None for any."""
        return next((len(x) for x in (self.mean, self.std) if isinstance(x, tuple)), None)

    def apply(self, batch: Array) -> Array:
        """In float32."""
        values = batch.astype(np.float32, copy=False) - np.asarray(self.mean, np.float32)
        return np.asarray(values / np.asarray(self.std, np.float32))

    def out_shape(self, shape: Shape) -> Shape:
        """The same. Raises InputError where the last axis has other channels."""
        if self.channels is not None and (not shape or shape[-1] not in (None, self.channels)):
            message = f"mean and std are for {self.channels} channels, got shape {shape}"
            raise InputError(message)
        return shape

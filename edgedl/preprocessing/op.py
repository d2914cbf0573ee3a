"""What every step is, and the checks of its keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError

Array = NDArray[Any]
Shape = tuple[int | None, ...]
Number = float | tuple[float, ...]


class Op:
    """One step: a frozen dataclass whose fields are the keys of its table."""

    op: ClassVar[str]

    def __post_init__(self) -> None:
        """Raise InputError where a field is out of its range."""
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if not (value is None and f.default is None):
                object.__setattr__(self, f.name, f.metadata["check"](f.name, value))

    def apply(self, batch: Array) -> Array:
        """The batch after this step; its sample shape has passed `out_shape`."""
        raise NotImplementedError

    def out_shape(self, shape: Shape) -> Shape:
        """The sample shape after this step. Raises InputError where it does not fit."""
        return shape

    def out_dtype(self, dtype: str) -> str:  # noqa: ARG002
        """The type after this step."""
        return "float32"


def integer(low: int) -> Callable[[str, Any], int]:
    """A check for whole numbers from `low` up."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            message = f"{name} must be a whole number >= {low}, got {value!r}"
            raise InputError(message)
        return value

    return check


def number(low: float = -math.inf) -> Callable[[str, Any], float]:
    """A check for finite numbers from `low` up."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
            allowed = "a finite number" if low == -math.inf else f"a number >= {low:g}"
            message = f"{name} must be {allowed}, got {value!r}"
            raise InputError(message)
        return float(value)

    return check


def numbers(name: str, value: Any) -> Number:
    """A number, or a tuple with one a channel. Raises InputError."""
    if not isinstance(value, (list, tuple)):
        return number()(name, value)
    if not value:
        message = f"{name} must be a number or a list with one a channel, got an empty list"
        raise InputError(message)
    return tuple(number()(name, x) for x in value)


def choice(*allowed: str) -> Callable[[str, Any], str]:
    """A check for one of a closed set."""

    def check(name: str, value: Any) -> str:
        if value not in allowed:
            message = f"{name} must be one of {', '.join(allowed)}, got {value!r}"
            raise InputError(message)
        return str(value)

    return check


def flag(name: str, value: Any) -> bool:
    """True or false. Raises InputError."""
    if not isinstance(value, bool):
        message = f"{name} must be true or false, got {value!r}"
        raise InputError(message)
    return value


def key(check: Callable[[str, Any], Any], **default: Any) -> Any:
    """A field of an op: its check, and a default if it may be left out."""
    return field(metadata={"check": check}, **default)


def as_type(values: Array, dtype: str) -> Array:
    """`values` as `dtype`; integers are rounded half up, floor(x + 0.5), and saturate."""
    target = np.dtype(dtype)
    if target.kind == "f" or values.dtype == target:
        return values.astype(target, copy=False)
    if values.dtype.kind == "f":
        wide = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
        values = np.floor(wide + wide.dtype.type(0.5)).astype(np.float64)
    limits = np.iinfo(target)
    return np.clip(values, limits.min, limits.max).astype(target)

"""Steps on images: resize, crop, grayscale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.preprocessing.op import Array, Op, Shape, as_type, choice, integer, key


def _check_image(shape: Shape) -> None:
    if len(shape) not in (2, 3):
        message = f"needs images (height, width) or (height, width, channels), got shape {shape}"
        raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class Resize(Op):
    """Images of another size."""

    op = "resize"
    height: int = key(integer(1))
    width: int = key(integer(1))
    method: str = key(choice("bilinear", "nearest"), default="bilinear")

    def apply(self, batch: Array) -> Array:
        """Of the type of `batch`."""
        if batch.shape[1:3] == (self.height, self.width):
            return batch
        if self.method == "nearest":
            rows, columns = (
                np.minimum((np.arange(new, dtype=np.float32) + np.float32(0.5)) * _ratio(old, new), old - 1).astype(int)
                for old, new in ((batch.shape[1], self.height), (batch.shape[2], self.width))
            )
            return np.asarray(batch[:, rows[:, None], columns])
        y0, y1, down = _neighbours(batch.shape[1], self.height)
        x0, x1, right = _neighbours(batch.shape[2], self.width)
        tail = (1,) * (batch.ndim - 3)

        def along_width(rows: NDArray[np.intp]) -> Array:
            lines = batch[:, rows].astype(np.float32, copy=False)
            left = lines[:, :, x0]
            return np.asarray(left + (lines[:, :, x1] - left) * right.reshape(-1, *tail))

        top, bottom = along_width(y0), along_width(y1)
        return as_type(top + (bottom - top) * down.reshape(-1, 1, *tail), str(batch.dtype))

    def out_shape(self, shape: Shape) -> Shape:
        """(height, width) and the channels. Raises InputError."""
        _check_image(shape)
        return (self.height, self.width, *shape[2:])

    def out_dtype(self, dtype: str) -> str:
        """That of the image."""
        return dtype


def _ratio(old: int, new: int) -> np.float32:
    return np.float32(np.float32(old) / np.float32(new))


def _neighbours(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each new pixel the two old ones and how far it lies between them."""
    half = np.float32(0.5)
    source = (np.arange(new, dtype=np.float32) + half) * _ratio(old, new) - half
    below = np.floor(source)
    first, second = np.maximum(below, 0).astype(np.intp), np.minimum(np.ceil(source), old - 1).astype(np.intp)
    return first, second, source - below


@dataclass(frozen=True, kw_only=True)
class Crop(Op):
    """A part of each image: the box at `top`, `left`, or the centre."""

    op = "crop"
    height: int = key(integer(1))
    width: int = key(integer(1))
    top: int | None = key(integer(0), default=None)
    left: int | None = key(integer(0), default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.top is None) != (self.left is None):
            message = "top and left go together; leave both out for the centre"
            raise InputError(message)

    def apply(self, batch: Array) -> Array:
        """A view into `batch`."""
        top = (batch.shape[1] - self.height) // 2 if self.top is None else self.top
        left = (batch.shape[2] - self.width) // 2 if self.left is None else self.left
        return batch[:, top : top + self.height, left : left + self.width]

    def out_shape(self, shape: Shape) -> Shape:
        """(height, width) and the channels. Raises InputError where the image is smaller than the box."""
        _check_image(shape)
        for name, size, start, there in (
            ("height", self.height, self.top or 0, shape[0]),
            ("width", self.width, self.left or 0, shape[1]),
        ):
            if there is not None and start + size > there:
                message = f"{name} {size} from {start} on does not fit into {there} pixels"
                raise InputError(message)
        return (self.height, self.width, *shape[2:])

    def out_dtype(self, dtype: str) -> str:
        """That of the image."""
        return dtype


@dataclass(frozen=True, kw_only=True)
class Grayscale(Op):
    """The luma of RGB images, with one channel left."""

    op = "grayscale"

    def apply(self, batch: Array) -> Array:
        """Of the type of `batch`."""
        red, green, blue = (batch[..., k : k + 1].astype(np.float32, copy=False) for k in range(3))
        luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
        return as_type(luma, str(batch.dtype))

    def out_shape(self, shape: Shape) -> Shape:
        """(height, width, 1). Raises InputError unless there are three channels."""
        if len(shape) != 3 or shape[2] != 3:
            message = f"needs RGB images (height, width, 3), got shape {shape}"
            raise InputError(message)
        return (*shape[:2], 1)

    def out_dtype(self, dtype: str) -> str:
        """That of the image."""
        return dtype

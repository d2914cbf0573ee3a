"""The closed set of preprocessing steps, and the arithmetic that an app must repeat to the letter.

All arithmetic is float32 unless said otherwise, in the order written. Steps that give integers round half up,
floor(x + 0.5), and saturate. Samples are on axis 0 of a batch, and a sample shape leaves that axis out: images are
(height, width) or (height, width, channels), signals (time) or (time, channels).

    cast       dtype
               The same numbers in another type.
    resize     height, width, method
               On each axis source = (i + 0.5) * (old / new) - 0.5. bilinear: a + (b - a) * (source - floor(source)),
               first along the width, then along the height, where a is the pixel at floor(source) and b the one at
               ceil(source), both clamped to the image. nearest: the pixel floor((i + 0.5) * (old / new)). As
               tf.image.resize without antialias; keeps the type.
    crop       height, width, top, left
               Without top and left the centre: top = (old height - height) // 2, left likewise.
    grayscale  0.299 R + 0.587 G + 0.114 B (BT.601), one channel; keeps the type.
    scale      factor, offset
               x * factor + offset
    normalize  mean, std
               (x - mean) / std, with one number or one a channel (the last axis).
    window     length, step, pad
               The pieces [k * step, k * step + length) of a signal, each a sample of its own; a rest is dropped.
               A shorter signal gets zeros at its end where pad is true, and is refused otherwise.
    mfcc       sample_rate_hz, frame_length, frame_step, coefficients and more
               See `edgedl.preprocessing.signals.Mfcc`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgedl.errors import InputError
from edgedl.preprocessing.images import Crop, Grayscale, Resize
from edgedl.preprocessing.op import Array, Op, Shape
from edgedl.preprocessing.signals import Mfcc, Window
from edgedl.preprocessing.values import Cast, Normalize, Scale

OPS: dict[str, type[Op]] = {o.op: o for o in (Cast, Resize, Crop, Grayscale, Scale, Normalize, Window, Mfcc)}


def parse(tables: Sequence[Mapping[str, Any]], where: str) -> tuple[Op, ...]:
    """The steps of `[[preprocess]]` tables. Raises InputError naming `where`, step and key."""
    return tuple(_parse_step(i, table, where) for i, table in enumerate(tables, 1))


def to_json(ops: Sequence[Op]) -> tuple[dict[str, Any], ...]:
    """Tables that `parse` reads back; keys that were left out stay out."""
    tables = []
    for op in ops:
        values = {f.name: getattr(op, f.name) for f in dataclasses.fields(op)}  # type: ignore[arg-type]
        table = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
        tables.append({"op": op.op, **table})
    return tuple(tables)


def apply(ops: Sequence[Op], batch: Array) -> Array:
    """The batch, samples on axis 0, after all steps; `window` makes more samples. Raises InputError naming the step."""
    for i, op in enumerate(ops, 1):
        _fit(i, op, batch.shape[1:])
        batch = op.apply(batch)
    return batch


def output_shape(ops: Sequence[Op], shape: Shape, dtype: str) -> tuple[Shape, str]:
    """The sample shape (axis 0 left out, None where a size is free) and type after all steps. Raises InputError."""
    for i, op in enumerate(ops, 1):
        shape, dtype = _fit(i, op, shape), op.out_dtype(dtype)
    return shape, dtype


def samples_per_input(ops: Sequence[Op], shape: Shape) -> int:
    """How many samples one input of this sample shape becomes: repeat its target and group as often."""
    count = 1
    for i, op in enumerate(ops, 1):
        after = _fit(i, op, shape)
        if isinstance(op, Window):
            if shape[0] is None:
                message = f"preprocess step {i} (window): the length of the signal is not known"
                raise InputError(message)
            count *= op.count(shape[0])
        shape = after
    return count


def split_embeddable(ops: Sequence[Op]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """What is left to the app, and the last steps that fold into the model: scale, normalize, cast to float32."""
    first = len(ops)
    while first and _is_affine(ops[first - 1]):
        first -= 1
    return tuple(ops[:first]), tuple(ops[first:])


def affine(embedded: Sequence[Op], channels: int) -> tuple[Array, Array]:
    """Factor and offset, float32 (channels,), with model input = raw * factor + offset for the steps of `embedded`.

    Computed in float64 and rounded once. Raises InputError on a step that cannot be folded, or other channels.
    """
    factor, offset = np.ones(channels), np.zeros(channels)
    for i, op in enumerate(embedded, 1):
        if not _is_affine(op):
            message = f"{op.op} cannot be folded into a model; allowed: scale, normalize, cast to float32"
            raise InputError(message)
        _fit(i, op, (channels,))
        if isinstance(op, Scale):
            factor, offset = factor * op.factor, offset * op.factor + op.offset
        elif isinstance(op, Normalize):
            factor, offset = factor / np.asarray(op.std), (offset - np.asarray(op.mean)) / np.asarray(op.std)
    return factor.astype(np.float32), offset.astype(np.float32)


def _is_affine(op: Op) -> bool:
    return isinstance(op, (Scale, Normalize)) or op == Cast(dtype="float32")


def _parse_step(number: int, table: Mapping[str, Any], where: str) -> Op:
    name = table.get("op")
    if not isinstance(name, str) or name not in OPS:
        message = f"{where}: preprocess step {number}: op must be one of {', '.join(OPS)}, got {name!r}"
        raise InputError(message)
    place = f"{where}: preprocess step {number} ({name})"
    fields = dataclasses.fields(OPS[name])  # type: ignore[arg-type]
    allowed = ", ".join(f.name for f in fields) or "none"
    values = {k: v for k, v in table.items() if k != "op"}
    unknown = [k for k in values if k not in {f.name for f in fields}]
    if unknown:
        message = f"{place}: unknown key {unknown[0]!r}; allowed: {allowed}"
        raise InputError(message)
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        message = f"{place}: {missing[0]} is missing; keys: {allowed}"
        raise InputError(message)
    try:
        return OPS[name](**values)
    except InputError as e:
        message = f"{place}: {e}"
        raise InputError(message) from e


def _fit(number: int, op: Op, shape: Shape) -> Shape:
    try:
        return op.out_shape(shape)
    except InputError as e:
        message = f"preprocess step {number} ({op.op}): {e}"
        raise InputError(message) from e

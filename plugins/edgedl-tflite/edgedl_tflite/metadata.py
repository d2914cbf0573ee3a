"""TFLite Metadata, the flatbuffer `TFLITE_METADATA` inside a .tflite file, and the label file zipped behind it.

The schema is metadata_schema.fbs 1.1.0 of tensorflow/tflite-support. No installed package carries classes for it, so
the few tables in use are written slot by slot; a slot is a field's place in its table, a union takes two:

    ModelMetadata         name 0, subgraph_metadata 3, min_parser_version 7
    SubGraphMetadata      input_tensor_metadata 2, output_tensor_metadata 3, associated_files 4
    TensorMetadata        name 0, content 3, process_units 4, associated_files 6
    Content               content_properties 0 (type) and 1;  ImageProperties: color_space 0
    ProcessUnit           options 0 (type) and 1;             NormalizationOptions: mean 0, std 1
    AssociatedFile        name 0, type 2
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ENTRY = "TFLITE_METADATA"
IDENTIFIER = b"M001"
MIN_PARSER_VERSION = "1.0.0"  # every field written here is of the first schema
LABELS_FILE = "labels.txt"
FEATURE, IMAGE = 1, 2  # union ContentProperties
NORMALIZATION = 1  # union ProcessUnitOptions
RGB = 1
TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS = 2, 3


@dataclass(frozen=True, kw_only=True)
class TensorMetadata:
    """What is said of one tensor: the app feeds (x - mean) / std, one value or one a channel; `labels` names a file."""

    name: str
    image: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What the metadata says: `labels` names a file of value labels where no output has one value a label."""

    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    labels: str | None = None


# ---- writing ------------------------------------------------------------------------------------------------------


def build(metadata: ModelMetadata) -> bytes:
    """The flatbuffer, identifier M001."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    sides = [_vector(builder, [_tensor(builder, t) for t in s]) for s in (metadata.inputs, metadata.outputs)]
    files = _files(builder, metadata.labels, TENSOR_VALUE_LABELS)
    subgraph = _table(builder, 8, {2: sides[0], 3: sides[1], 4: files})
    subgraphs = _vector(builder, [subgraph])
    name, version = builder.CreateString(metadata.name), builder.CreateString(MIN_PARSER_VERSION)
    builder.Finish(_table(builder, 8, {0: name, 3: subgraphs, 7: version}), IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: Any, tensor: TensorMetadata) -> int:
    files = _files(builder, tensor.labels, TENSOR_AXIS_LABELS)
    units = None
    if tensor.mean:
        mean = builder.CreateNumpyVector(np.asarray(tensor.mean, np.float32))
        std = builder.CreateNumpyVector(np.asarray(tensor.std, np.float32))
        options = _table(builder, 2, {0: mean, 1: std})
        units = _vector(builder, [_table(builder, 2, {1: options}, {0: NORMALIZATION})])
    properties = _table(builder, 2, {}, {0: RGB}) if tensor.image else _table(builder, 0, {})
    content = _table(builder, 3, {1: properties}, {0: IMAGE if tensor.image else FEATURE})
    return _table(builder, 7, {0: builder.CreateString(tensor.name), 3: content, 4: units, 6: files})


def _files(builder: Any, name: str | None, kind: int) -> int | None:
    if name is None:
        return None
    return _vector(builder, [_table(builder, 4, {0: builder.CreateString(name)}, {2: kind})])


def _table(builder: Any, slots: int, offsets: Mapping[int, int | None], bytes_: Mapping[int, int] | None = None) -> int:
    builder.StartObject(slots)
    for slot, offset in offsets.items():
        if offset is not None:
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, value in (bytes_ or {}).items():
        builder.PrependUint8Slot(slot, value, 0)
    place: int = builder.EndObject()
    return place


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    place: int = builder.EndVector()
    return place


def append_labels(model: bytes, labels: Sequence[str]) -> bytes:
    """`model` with labels.txt, one a line, zipped behind it, where tflite-support looks for associated files."""
    packed = io.BytesIO(model)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(labels) + "\n")  # ZipInfo: a fixed date, same bytes
    return packed.getvalue()


# ---- reading ------------------------------------------------------------------------------------------------------


class _Table:
    """A table at a place in a buffer, its fields by slot."""

    def __init__(self, data: bytes, place: int) -> None:
        from flatbuffers.table import Table

        self._table = Table(data, place)

    def _field(self, slot: int) -> int | None:
        offset = self._table.Offset(4 + 2 * slot)
        return self._table.Pos + offset if offset else None

    def byte(self, slot: int) -> int:
        place = self._field(slot)
        return self._table.Bytes[place] if place else 0

    def string(self, slot: int) -> str | None:
        place = self._field(slot)
        return self._table.String(place).decode("utf-8", "replace") if place else None

    def table(self, slot: int) -> _Table | None:
        place = self._field(slot)
        return _Table(self._table.Bytes, self._table.Indirect(place)) if place else None

    def tables(self, slot: int) -> list[_Table]:
        offset = self._table.Offset(4 + 2 * slot)
        if not offset:
            return []
        start, count = self._table.Vector(offset), self._table.VectorLen(offset)
        return [_Table(self._table.Bytes, self._table.Indirect(start + 4 * i)) for i in range(count)]

    def floats(self, slot: int) -> tuple[float, ...]:
        offset = self._table.Offset(4 + 2 * slot)
        if not offset:
            return ()
        start, count = self._table.Vector(offset), self._table.VectorLen(offset)
        return struct.unpack_from(f"<{count}f", self._table.Bytes, start)


def parse(data: bytes) -> ModelMetadata:
    """What a TFLITE_METADATA flatbuffer says. Raises ValueError where it is damaged."""
    if data[4:8] != IDENTIFIER:
        message = f"the identifier is {data[4:8]!r}, not {IDENTIFIER!r}"
        raise ValueError(message)
    try:
        root = _Table(data, struct.unpack_from("<I", data)[0])
        subgraph = next(iter(root.tables(3)), None)
        return ModelMetadata(
            name=root.string(0) or "",
            inputs=tuple(_parse_tensor(t) for t in subgraph.tables(2)) if subgraph else (),
            outputs=tuple(_parse_tensor(t) for t in subgraph.tables(3)) if subgraph else (),
            labels=_parse_files(subgraph, 4) if subgraph else None,
        )
    except (struct.error, IndexError, OverflowError, MemoryError, TypeError) as e:
        message = f"it does not hold together ({type(e).__name__}: {e})"
        raise ValueError(message) from e


def _parse_tensor(table: _Table) -> TensorMetadata:
    content = table.table(3)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in table.tables(4):
        options = unit.table(1)
        if unit.byte(0) == NORMALIZATION and options:
            mean, std = options.floats(0), options.floats(1)
    return TensorMetadata(
        name=table.string(0) or "",
        image=content is not None and content.byte(0) == IMAGE,
        mean=mean,
        std=std,
        labels=_parse_files(table, 6),
    )


def _parse_files(table: _Table, slot: int) -> str | None:
    labels = (TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS)
    return next((f.string(0) for f in table.tables(slot) if f.byte(2) in labels), None)


def read_labels(file: bytes, name: str) -> tuple[str, ...]:
    """The lines of the associated file `name` behind a model; none where it is not there."""
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            return tuple(archive.read(name).decode("utf-8", "replace").splitlines())
    except (zipfile.BadZipFile, KeyError):
        return ()

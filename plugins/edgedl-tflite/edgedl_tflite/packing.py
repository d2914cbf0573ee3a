"""A flatbuffer builder that writes equal things once: every reader follows offsets, and two may lead to one place."""

from __future__ import annotations

import hashlib
from typing import Any

import flatbuffers
from flatbuffers import number_types


class SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """Equal strings, vectors of numbers and tables are written once, and the fields of a table without gaps.

    Generated `Pack` code works with it unchanged. A quantized network repeats the zero points of every kernel and bias,
    the shapes and scales of its activations, and the options of its operators.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.head: int
        self._places: dict[Any, int] = {}  # what is written, and its offset from the end
        self._fields: dict[int, tuple[Any, Any]] = {}  # slot -> (type, value) of the table begun
        self._vector: tuple[int, int, int] | None = None  # offset before it, bytes, alignment

    def CreateString(self, s: str | bytes, encoding: str = "utf-8", errors: str = "strict") -> int:  # noqa: N802
        """The place of a string."""
        content = s if isinstance(s, bytes) else s.encode(encoding, errors)
        if content not in self._places:
            self._vector = None
            self._places[content] = super().CreateString(content)
        return self._places[content]

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803
        """Begin a vector. Its numbers may turn out to be there already."""
        self._vector = (self.Offset(), 4 + elemSize * numElems, alignment)
        place: int = super().StartVector(elemSize, numElems, alignment)
        return place

    def PrependUOffsetTRelative(self, off: int) -> None:  # noqa: N802
        """Write an element that points elsewhere."""
        self._vector = None  # equal bytes at two places mean two things: these count from where they stand
        super().PrependUOffsetTRelative(off)

    def EndVector(self, numElems: int | None = None) -> int:  # noqa: N802, N803
        """The place of the vector; one that is there already is taken back."""
        place: int = super().EndVector(numElems)
        if self._vector is None:
            return place
        before, size, alignment = self._vector
        digest = hashlib.sha256(self.Bytes[self.head : self.head + size]).digest()
        first = self._places.setdefault((alignment, digest), place)
        if first != place:
            self.head = len(self.Bytes) - before
        return first

    def StartObject(self, numfields: int) -> None:  # noqa: N802
        """Begin a table."""
        self.Prep(4, 0)  # every table of a kind at the same remainder, so that they share one vtable
        super().StartObject(numfields)
        self._fields = {}

    def PrependSlot(self, flags: Any, o: int, x: Any, d: Any) -> None:  # noqa: N802
        """Keep a field until the table ends."""
        if x != d:
            self._fields[o] = (flags, x)

    def PrependUOffsetTRelativeSlot(self, o: int, x: int, d: int) -> None:  # noqa: N802
        """Keep a field that points elsewhere."""
        self.PrependSlot(number_types.UOffsetTFlags, o, x, d)

    def EndObject(self) -> int:  # noqa: N802
        """The place of the table: an equal one, or written now, fields of one size side by side."""
        key = frozenset((slot, flags, value) for slot, (flags, value) in self._fields.items())
        if key in self._places:
            self.nested, self.current_vtable = False, None
            return self._places[key]
        for slot, (flags, value) in sorted(self._fields.items(), key=lambda f: (f[1][0].bytewidth, f[0])):
            if flags is number_types.UOffsetTFlags:
                self.PrependUOffsetTRelative(value)
            else:
                self.Prepend(flags, value)
            self.Slot(slot)
        place: int = super().EndObject()
        self._places[key] = place
        return place

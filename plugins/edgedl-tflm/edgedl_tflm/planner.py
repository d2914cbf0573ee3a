"""TFLM's memory plan: which bytes live when, and how many the greedy planner needs for them.

https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/docs/memory_management.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgedl_tflm import graph

ALIGNMENT = 16  # bytes, MicroArenaBufferAlignment()


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """`size_bytes` that are in use from step `first` to step `last`; step i runs operator i - 1."""

    size_bytes: int
    first: int
    last: int


def planned_bytes(buffers: Sequence[Buffer]) -> int:
    """The height of the greedy plan: the largest first, each at the lowest gap among those that live with it."""
    placed: list[tuple[int, Buffer]] = []  # by offset
    for _, buffer in sorted(enumerate(buffers), key=lambda e: (-e[1].size_bytes, -e[0])):  # later ones first on a tie
        offset = 0
        for start, other in placed:
            if other.first > buffer.last or buffer.first > other.last:
                continue
            if start - offset >= buffer.size_bytes:
                break
            offset = max(offset, start + other.size_bytes)
        place = sum(start <= offset for start, _ in placed)
        placed.insert(place, (offset, buffer))
    return max((start + b.size_bytes for start, b in placed), default=0)


def tensors(model: Any) -> list[Buffer]:
    """The activations of a model with one subgraph, as TFLM's allocation info has them; variables are persistent."""
    only = model.subgraphs[0]
    end = len(only.operators)
    first, last = dict.fromkeys(_places(only.inputs), 0), {}
    for step, op in enumerate(only.operators, 1):
        for i in _places(op.outputs):
            first.setdefault(i, step)
        last.update(dict.fromkeys(_places(op.inputs), step))
    last.update(dict.fromkeys(_places(only.outputs), end))
    found = []
    for i, tensor in enumerate(only.tensors):
        if i in first and not tensor.isVariable and not graph.is_constant(model, tensor):
            size = aligned(graph.size_bytes(tensor))
            found.append(Buffer(size_bytes=size, first=first[i], last=last.get(i, first[i])))
    return found


def scratch(sizes: Mapping[int, int]) -> list[Buffer]:
    """Scratch by operator index, in use while that operator runs."""
    return [Buffer(size_bytes=aligned(size), first=i + 1, last=i + 1) for i, size in sizes.items() if size]


def aligned(size_bytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _places(side: Any) -> list[int]:
    return [int(i) for i in side if i >= 0] if side is not None else []

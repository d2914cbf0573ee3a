"""The arena of a file in TFLM: measured here on x86, predicted for a Cortex-M."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedl_tflm import cmsis_nn, graph, interpreter, planner

# The kernels of Espressif that ask for scratch, which grows with their releases:
# https://github.com/espressif/esp-nn/blob/master/include/esp_nn_esp32s3.h
ESP_NN = {"CONV_2D", "DEPTHWISE_CONV_2D", "SOFTMAX"}
TOTAL = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Bytes on x86: activations with the reference kernels' scratch, what lives for good, the least that works."""

    tensors: int
    persistent: int
    smallest: int


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Bytes on a 32-bit core. `low` to `high` is the range; `scratch` what the optimized kernels add to `tensors`.

    Of what lives for good, pointers and the structures that hold them shrink to half on 32 bits, numbers do not, so
    that it is between half and all of that of x86, plus the sums that kernels keep. `unknown` are operators whose
    scratch is not counted.
    """

    tensors: int
    scratch: int
    persistent: int
    low: int
    high: int
    largest: str = ""
    unknown: tuple[str, ...] = ()


def measure(content: bytes) -> Arena:
    """Run one inference on zeros and read the allocator's record, then look for the smallest arena that works.

    Raises RuntimeError where TFLM does not run the file.
    """
    running = interpreter.start_large(content)
    run(running, content)
    with interpreter.logged() as log:
        running.print_allocations()
    found = {m[1]: int(m[2]) for line in log.lines if (m := TOTAL.search(line))}
    smallest = _smallest(content, found["total"])
    return Arena(tensors=found["head"], persistent=found["tail"], smallest=smallest)


def run(running: Any, content: bytes) -> None:
    """One inference on zeros."""
    inputs, _ = graph.ends(graph.read(content))
    for at in inputs.values():
        detail = running.get_input_details(at)
        running.set_input(np.zeros(detail["shape"], detail["dtype"]), at)
    running.invoke()


def _smallest(content: bytes, low_bytes: int) -> int:
    """The least arena that is enough, to 16 bytes. Planning takes room of its own, which is free again afterwards."""
    low, high = low_bytes - planner.ALIGNMENT, 2 * low_bytes + 4096
    while high - low > planner.ALIGNMENT:
        middle = (low + high) // 2
        if interpreter.works(content, middle):
            high = middle
        else:
            low = middle
    return high


def predict(content: bytes, arena: Arena, core: str | None) -> Predicted:
    """The arena on a core of the Cortex-M family; of any other, that of the reference kernels."""
    model = graph.read(content)
    if len(model.subgraphs) > 1 or core not in cmsis_nn.CORES:
        names = {graph.op_name(model, op) for g in model.subgraphs for op in g.operators or []}
        names &= ESP_NN if (core or "").startswith("xtensa") else names
        return _predicted(arena, scratch=0, sums=0, largest="", unknown=tuple(sorted(names)))
    ops = model.subgraphs[0].operators
    wanted = {i: cmsis_nn.needs(model, op, core) for i, op in enumerate(ops)}
    scratch = {i: need.scratch for i, need in wanted.items()}
    buffers = planner.tensors(model)
    added = planner.planned_bytes([*buffers, *planner.scratch(scratch)]) - planner.planned_bytes(buffers)
    unknown = sorted({graph.op_name(model, op) for op in ops} & cmsis_nn.UNKNOWN)
    return _predicted(
        arena,
        scratch=added,
        sums=sum(planner.aligned(need.persistent) for need in wanted.values()),
        largest=_largest(model, scratch),
        unknown=tuple(unknown),
    )


def _predicted(arena: Arena, *, scratch: int, sums: int, largest: str, unknown: tuple[str, ...]) -> Predicted:
    planned = arena.tensors + max(0, scratch)
    return Predicted(
        tensors=arena.tensors,
        scratch=max(0, scratch),
        persistent=arena.persistent + sums,
        low=planned + arena.persistent // 2 + sums,
        high=max(planned + arena.persistent + sums, arena.smallest + max(0, scratch) + sums),
        largest=largest,
        unknown=unknown,
    )


def _largest(model: Any, scratch: Mapping[int, int]) -> str:
    """The operator with the largest scratch: `3,840 bytes in operator 2, CONV_2D`."""
    if not any(scratch.values()):
        return ""
    index = max(scratch, key=lambda i: scratch[i])
    return f"{scratch[index]:,} bytes in operator {index}, {graph.op_name(model, model.subgraphs[0].operators[index])}"

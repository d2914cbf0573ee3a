"""What TFLM tells of a file: the arena, and how far its kernels are from litert's, as checks of edgedl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl.errors import UnsupportedError
from edgedl.types import Check, Method
from edgedl_tflm import agreement, arena


def figures(path: str, target: dict[str, Any], inputs: Mapping[str, str], straight: bool) -> list[Check]:
    """`arena_bytes` for the target's core, predicted, with its range; with `inputs` also `kernels_max_abs`.

    Where an NPU takes operators, their memory is the compiler's affair, and no arena is told.

    Raises UnsupportedError where TFLM does not run the file on these inputs.
    """
    try:
        has_npu = target["accelerator"].get("kind") == "npu"
        checks = [] if has_npu else [_arena(Path(path).read_bytes(), target)]
        if inputs:
            checks.append(_kernels(Path(path), target, inputs, straight))
    except (RuntimeError, ValueError) as e:
        message = f"{path}: TFLM does not run it: {e}"
        raise UnsupportedError(message) from e
    return checks


def _arena(content: bytes, target: dict[str, Any]) -> Check:
    found = arena.measure(content)
    core = target["cpu"].get("core")
    told = arena.predict(content, found, core)
    return Check(
        name="arena_bytes",
        target=target["id"],
        measured=told.tensors + told.scratch + told.persistent,
        low=told.low,
        high=None if told.unknown else told.high,
        unit="bytes",
        method=Method.PREDICTED,
        why=_why(found, told, core or "the board's"),
    )


def _why(found: arena.Arena, told: arena.Predicted, core: str) -> str:
    scratch = f"scratch of {core} kernels {told.scratch:,}" + (f" (most: {told.largest})" if told.largest else "")
    if told.unknown:
        scratch = f"scratch of {core} kernels is not known for {', '.join(told.unknown)}"
    return (
        f"tensors {told.tensors:,}, {scratch}, persistent {told.persistent:,} with 64-bit pointers; "
        f"the smallest that works on x86 is {found.smallest:,}"
    )


def _kernels(path: Path, target: dict[str, Any], inputs: Mapping[str, str], straight: bool) -> Check:
    found = agreement.compare(path, {name: Path(p) for name, p in inputs.items()}, straight=straight)
    return Check(
        name="kernels_max_lsb" if found.quantized else "kernels_max_abs",
        target=target["id"],
        measured=found.largest,
        unit="LSB" if found.quantized else "",
        method=Method.MEASURED_HOST,
        why=found.as_text(),
    )

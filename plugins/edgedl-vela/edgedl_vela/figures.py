"""What Vela tells of a file on an NPU, as checks of edgedl."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl.types import Check, Method
from edgedl_vela import compiler, graph
from edgedl_vela.compiler import Compiled, CpuOperator

SHOWN = 3
KIB = 1024
UNNAMED = "<unnamed>"  # as Vela calls a tensor that the file holds without a name


def figures(path: str, target: dict[str, Any], inputs: Mapping[str, str], straight: bool) -> list[Check]:  # noqa: ARG001
    """`cpu_fallback_ops`, with reasons; of what the NPU runs, Arm's estimates of SRAM, flash or DRAM, and cycles.

    DRAM holds activations beside the weights where the SRAM is the NPU's own (`Dedicated_Sram`).

    Raises UnsupportedError where Vela refuses the file.
    """
    names = [name for name, _ in graph.operators(Path(path))]
    if compiler.NPU in names:
        return [_compiled_already(names, target["id"])]
    with tempfile.TemporaryDirectory() as folder:
        made = compiler.compile_for(target["accelerator"], Path(path), Path(folder))
        compiled_bytes = made.path.stat().st_size
    where = f"{made.summary['accelerator_configuration']}, {made.summary['system_config']}"
    estimate = {"target": target["id"], "method": Method.VENDOR_ESTIMATE}
    flash, dram = _bytes(made, "on_chip_flash") + _bytes(made, "off_chip_flash"), _bytes(made, "dram")
    file = f"Vela, {where}; the compiled file has {compiled_bytes:,} bytes"
    left = Check(
        name="cpu_fallback_ops", target=target["id"], measured=len(made.cpu), unit="count", method=Method.STATIC,
        why=_left(made),
    )  # fmt: skip
    if not made.npu_operators:
        return [left]
    return [
        left,
        Check(name="npu_sram_bytes", measured=_bytes(made, "sram"), unit="bytes", why=f"Vela, {where}", **estimate),
        *(Check(name=name, measured=used, unit="bytes", why=file, **estimate)
          for name, used in (("npu_flash_bytes", flash), ("npu_dram_bytes", dram)) if used),
        Check(name="npu_cycles", measured=float(made.summary["cycles_total"]), unit="count",
              why=_time(made, where), **estimate),
    ]  # fmt: skip


def _compiled_already(names: list[str], target: str) -> Check:
    left = [name for name in names if name != compiler.NPU]
    why = f"Vela has compiled it already; on the CPU: {', '.join(left) or 'nothing'}"
    return Check(
        name="cpu_fallback_ops", target=target, measured=len(left), unit="count", method=Method.STATIC, why=why
    )


def _bytes(made: Compiled, area: str) -> float:
    return round(float(made.summary[f"{area}_memory_used"]) * KIB)


def _time(made: Compiled, where: str) -> str:
    clock_hz = float(made.summary["core_clock"])
    milliseconds = 1e3 * float(made.summary["cycles_total"]) / clock_hz
    besides = " The CPU's operators are not in it." if made.cpu else ""
    return f"Arm's estimate for {where}: {milliseconds:.3g} ms at {clock_hz / 1e6:g} MHz.{besides}"


def _left(made: Compiled) -> str:
    """Operators by name and reason, with their places, the tensor that the first of them gives, and a way out."""
    if not made.cpu:
        return f"all on the NPU, in {made.npu_operators} command stream(s)"
    groups: dict[tuple[str, str], list[CpuOperator]] = {}
    for op in made.cpu:
        groups.setdefault((op.name, op.why), []).append(op)
    texts = [_group(*key, ops) for key, ops in list(groups.items())[:SHOWN]]
    more = f"; and {len(groups) - SHOWN} more kinds" if len(groups) > SHOWN else ""
    return f"on the CPU: {'; '.join(texts)}{more}{_fix(made)}"


def _group(name: str, why: str, ops: list[CpuOperator]) -> str:
    places = [str(op.index) for op in ops if op.index is not None]
    where = f"operator {', '.join(places)}, " if places else ""
    tensor = "" if ops[0].tensor == UNNAMED else f" (gives {ops[0].tensor!r})"
    return f"{where}{name}{tensor}" + (f": {why}" if why else "")


def _fix(made: Compiled) -> str:
    if any("Float" in op.why for op in made.cpu):
        return ". Fix: export with --scheme int8 --io int8"
    if {op.name for op in made.cpu} <= {"QUANTIZE", "DEQUANTIZE"}:
        return ". Fix: export with --io int8"
    return ""

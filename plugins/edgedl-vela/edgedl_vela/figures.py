"""What Vela tells of a file on an NPU, as checks of edgedl."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl.types import Check, Method
from edgedl_vela import compiler
from edgedl_vela.compiler import Compiled

SHOWN = 3
KIB = 1024


def figures(path: str, target: dict[str, Any], inputs: Mapping[str, str], straight: bool) -> list[Check]:  # noqa: ARG001
    """`cpu_fallback_ops`, with reasons, and Arm's estimates: `npu_sram_bytes`, `npu_flash_bytes`, `npu_cycles`.

    Raises UnsupportedError where Vela refuses the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = compiler.compile_for(target["accelerator"], Path(path), Path(folder))
        compiled_bytes = made.path.stat().st_size
    where = f"{made.summary['accelerator_configuration']}, {made.summary['system_config']}"
    estimate = {"target": target["id"], "method": Method.VENDOR_ESTIMATE}
    sram, flash = _bytes(made, "sram"), _bytes(made, "on_chip_flash") + _bytes(made, "off_chip_flash")
    flash += _bytes(made, "dram")  # where a system configuration has DRAM in its place
    return [
        Check(name="cpu_fallback_ops", target=target["id"], measured=len(made.cpu), unit="count",
              method=Method.STATIC, why=_left(made)),
        Check(name="npu_sram_bytes", measured=sram, unit="bytes", why=f"Vela, {where}", **estimate),
        Check(name="npu_flash_bytes", measured=flash, unit="bytes",
              why=f"Vela, {where}; the compiled file has {compiled_bytes:,} bytes", **estimate),
        Check(name="npu_cycles", measured=float(made.summary["cycles_total"]), unit="count",
              why=_time(made, where), **estimate),
    ]  # fmt: skip


def _bytes(made: Compiled, area: str) -> float:
    return round(float(made.summary[f"{area}_memory_used"]) * KIB)


def _time(made: Compiled, where: str) -> str:
    clock_hz = float(made.summary["core_clock"])
    milliseconds = 1e3 * float(made.summary["cycles_total"]) / clock_hz
    besides = " The CPU's operators are not in it." if made.cpu else ""
    return f"Arm's estimate for {where}: {milliseconds:.3g} ms at {clock_hz / 1e6:g} MHz.{besides}"


def _left(made: Compiled) -> str:
    if not made.cpu:
        return f"all on the NPU, in {made.npu_operators} command stream(s)"
    texts = [f"{op.name} (gives {op.tensor!r})" + (f": {op.why}" if op.why else "") for op in made.cpu[:SHOWN]]
    more = f"; and {len(made.cpu) - SHOWN} more" if len(made.cpu) > SHOWN else ""
    return f"on the CPU: {'; '.join(texts)}{more}"

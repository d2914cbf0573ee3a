"""How far instructions of an inference are from published milliseconds: measured once, told beside them."""

from __future__ import annotations

import csv
import statistics
from functools import cache
from pathlib import Path

FIGURES = Path(__file__).parent / "data" / "instructions.csv"  # scripts/measure_instructions.py writes it
TRIPWIRE = "instructions are a tripwire, not a speed"


def cycles_per_instruction(core: str) -> dict[str, float]:
    """By network, for a core that there are published milliseconds of the same kernels for."""
    return {
        row["model"]: float(row["latency_ms"]) * 1e-3 * float(row["clock_hz"]) / int(row["instructions"])
        for row in _rows(core)
    }


def beside(core: str) -> str:
    """What to tell beside the instructions on a core."""
    found = cycles_per_instruction(core)
    if not found:
        return f"{TRIPWIRE}: no published milliseconds of the same kernels on a {core} to set them beside"
    published = _rows(core)[0]["published"]
    low, middle, high = min(found.values()), statistics.median(found.values()), max(found.values())
    return (
        f"{TRIPWIRE}: published times of {len(found)} networks of MLPerf Tiny ({published}) are "
        f"{low:.2f} to {high:.2f} cycles an instruction on a {core}, median {middle:.2f}"
    )


@cache
def _rows(core: str) -> list[dict[str, str]]:
    with FIGURES.open(encoding="utf-8", newline="") as f:
        return [row for row in csv.DictReader(f) if row["core"] == core]

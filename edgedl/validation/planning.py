"""How many samples a gate needs, said before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgedl import data
from edgedl.errors import InputError
from edgedl.validation import metrics, statistics
from edgedl.validation.gates import Gates

CHANGED_ANSWERS = (0.005, 0.01, 0.02, 0.05)  # shares seen between a float network and its int8 form
EXPECTED = 0.02


def plan(source: str, gates: Gates, names: Sequence[str] = ()) -> dict[str, Any]:
    """Samples by the share of answers that quantization changes, if it loses nothing; and how many there are.

    Raises InputError without a largest drop, and for metrics by which a sample is not right or wrong.
    """
    for name in names:
        metric = metrics.resolve(name.rpartition("=")[2])
        if not metric.per_sample or getattr(metric, "unit", "") != "fraction":
            message = f"--plan: counts answers that are right or wrong, as of top1 and binary; {name} is no such metric"
            raise InputError(message)
    tolerance = gates.tolerance("fraction", "accuracy")
    if tolerance is None:
        message = "--plan: name the loss that is allowed with --max-drop"
        raise InputError(message)
    have = data.load(source).count
    rows = [
        {"changed_answers": share, "samples": statistics.samples_needed(share / 2, share / 2, tolerance)}
        for share in CHANGED_ANSWERS
    ]
    needed = next(row["samples"] for row in rows if row["changed_answers"] == EXPECTED)
    return {"max_drop": tolerance, "have": have, "samples": needed, "rows": rows}

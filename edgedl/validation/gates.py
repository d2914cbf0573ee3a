"""What the user allows: the largest drop, the gate, and upper limits by check name; and the verdicts they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgedl import toml
from edgedl.errors import InputError
from edgedl.types import Check, Method, Verdict
from edgedl.validation import statistics
from edgedl.validation.metrics import Comparison
from edgedl.validation.statistics import Gate

UNITS = {
    "size_bytes": "bytes",
    "compressed_bytes": "bytes",
    "peak_rss_bytes": "bytes",
    "arena_bytes": "bytes",
    "load_ms": "ms",
    "first_inference_ms": "ms",
    "latency_ms": "ms",
    "latency_p90_ms": "ms",
    "instructions": "count",
    "cpu_fallback_ops": "count",
    "flips": "count",
    "worst_class_drop": "fraction",
    "max_abs": "",
    "max_lsb": "LSB",
}


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The user's limits. `max_drop` is "0.5pp" or a number in the metric's unit; `limits` are upper ones by check."""

    max_drop: str | None = None
    gate: Gate = "prove"
    limits: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a `max_drop` that is no number, before anything runs. Raises InputError."""
        if self.max_drop is not None:
            self._number("0.5pp, or a number in the metric's unit,")

    def tolerance(self, unit: str, metric: str) -> float | None:
        """The largest drop allowed in the metric's unit. Raises InputError."""
        if self.max_drop is None:
            return None
        allowed = "0.5pp or 0.005" if unit == "fraction" else f"a number in the unit of {metric}"
        value, is_points = self._number(allowed)
        if unit == "fraction" and value >= (100 if is_points else 1):
            meant = "" if is_points else f", which is {100 * value:g} pp; {value:g} points are {value:g}pp"
            message = f"--max-drop: {allowed} is needed, got {self.max_drop!r}{meant}"
            raise InputError(message)
        if is_points and unit != "fraction":
            message = f"--max-drop: {allowed} is needed, got {self.max_drop!r}"
            raise InputError(message)
        return value / 100 if is_points else value

    def _number(self, allowed: str) -> tuple[float, bool]:
        """The number in `max_drop`, and whether it is in percentage points."""
        text = (self.max_drop or "").strip()
        try:
            value = float(text.removesuffix("pp"))
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            message = f"--max-drop: {allowed} is needed, got {self.max_drop!r}"
            raise InputError(message)
        return value, text.endswith("pp")

    def check(
        self,
        name: str,
        measured: float | None,
        *,
        method: Method,
        target: str | None,
        low: float | None = None,
        high: float | None = None,
        why: str = "",
    ) -> Check:
        """One figure against its limit: unchecked where a limit is set and nothing was measured."""
        limit = self.limits.get(name)
        if limit is None:
            verdict = Verdict.INFO
        elif measured is None:
            verdict = Verdict.UNCHECKED
        elif (measured if low is None else low) > limit:
            verdict = Verdict.FAIL
        else:
            verdict = Verdict.PASS if (measured if high is None else high) <= limit else Verdict.INCONCLUSIVE
        if verdict is Verdict.INCONCLUSIVE:
            why = why or "the spread of the measurement holds the limit"
        return Check(
            name=name, target=target, measured=measured, low=low, high=high, limit=limit, unit=UNITS[name],
            method=method, verdict=verdict, why=why,
        )  # fmt: skip

    def drop(self, name: str, comparison: Comparison, unit: str, target: str | None) -> Check:
        """The loss against `max_drop`, by its two one-sided 95 % bounds."""
        tolerance = self.tolerance(unit, name.removesuffix("_drop"))
        verdict, why = Verdict.INFO, comparison.method
        if tolerance is not None:
            bounds = comparison.bounds
            verdict = statistics.decide(self.gate, float(bounds.low), float(bounds.high), tolerance)
            if verdict is Verdict.INCONCLUSIVE:
                counts = comparison.counts
                needed = statistics.samples_to_decide(bounds, comparison.samples, tolerance, counts=counts)
                more = f"some {needed:,} samples would decide" if needed else "no number of samples would decide"
                why = (
                    f"{comparison.samples:,} samples cannot tell: the one-sided 95 % bounds "
                    f"{_shown(float(bounds.low), unit)} and {_shown(float(bounds.high), unit)} "
                    f"hold the limit; {more}"
                )
        return Check(
            name=name,
            target=target,
            measured=comparison.drop,
            low=float(comparison.interval.low),
            high=float(comparison.interval.high),
            limit=tolerance,
            unit=unit,
            method=Method.MEASURED_HOST,
            verdict=verdict,
            why=why,
        )


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.2f} pp" if unit == "fraction" else f"{value:.4g}"


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """`latency_ms=2` and the like. Raises InputError."""
    limits = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in UNITS:
            near = toml.did_you_mean(name, UNITS)
            message = f"--limit: no check {name!r}{near}; allowed: {', '.join(UNITS)}"
            raise InputError(message)
        try:
            limits[name] = float(number)
        except ValueError:
            limits[name] = math.nan
        if not math.isfinite(limits[name]):
            message = f"--limit: {name}=NUMBER is needed, got {text!r}"
            raise InputError(message)
    return limits

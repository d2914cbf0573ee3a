"""Numbers with their units, and a report as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgedl.types import Check, Report, Verdict

if TYPE_CHECKING:
    from rich.table import Table

# unit -> (factor, label, decimals). "fraction" is 0..1; "fraction_difference" is a difference of two of them.
FIXED: dict[str, tuple[float, str, int]] = {
    "fraction": (100.0, "%", 2),
    "fraction_difference": (100.0, "pp", 2),
    "%": (1.0, "%", 2),
    "pp": (1.0, "pp", 2),
    "x": (1.0, "x", 2),
}
MILLISECONDS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
ABSENT = "–"  # noqa: RUF001 - an en dash is the typographer's "no value"
STYLES = {
    Verdict.FAIL: "bold red",
    Verdict.UNCHECKED: "bold magenta",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.PASS: "bold green",
    Verdict.INFO: "dim",
}


def number(value: float | None, unit: str = "") -> str:
    """`value` with its unit, for people: 18.2 kB, 86.60 %, 0.26 pp, 0.31 ms. None gives a dash.

    `unit` is one of `fraction` (0.866 -> 86.60 %), `fraction_difference` (0.0026 -> 0.26 pp), `%`, `pp`, `x`, `bytes`,
    `s`, `ms`, `us`, `ns`; any other word is written after the number.
    """
    if value is None or math.isnan(value):
        return ABSENT
    factor, label, decimals = _scale(unit, abs(value))
    return f"{_digits(value * factor, decimals)} {label}".rstrip()


def interval(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """`value` and its interval on one scale: 0.26 pp [-0.10, 0.62]. Without bounds the same as `number`."""
    if value is None or low is None or high is None:
        return number(value, unit)
    return f"{number(value, unit)} {bounds(value, low, high, unit)}"


def bounds(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """The interval alone, on the scale of `value`: [-0.10, 0.62]. Without bounds a dash."""
    if low is None or high is None:
        return ABSENT
    factor, _, decimals = _scale(unit, max(abs(low), abs(high)) if value is None else abs(value))
    return f"[{_digits(low * factor, decimals)}, {_digits(high * factor, decimals)}]"


def ratio(value: float | None, reference: float | None) -> str | None:
    """How many times the reference: 0.31x. None where there is nothing to divide by."""
    if value is None or not reference:
        return None
    times = value / reference
    return f"{times:.2f}x" if times < 10 else f"{times:.1f}x"


def title(metric: str) -> str:
    """A metric's name as a heading: Accuracy, MAE, Top 5."""
    return ACRONYMS.get(metric, metric.replace("_", " ").capitalize())


def unit_of_difference(unit: str) -> str:
    """The unit that `number` takes for a difference: of fractions in percentage points."""
    return "fraction_difference" if unit == "fraction" else unit


def unit_of(check: Check) -> str:
    """The unit that `number` takes for a check."""
    return unit_of_difference(check.unit) if check.name.endswith("_drop") else check.unit


def measured(check: Check) -> str:
    """The figure of a check without its interval; `not measured` where a limit asked for one."""
    if check.measured is None:
        return ABSENT if check.limit is None else "not measured"
    return number(check.measured, unit_of(check))


def limit(check: Check) -> str:
    """The limit of a check with its direction where the name tells it: ≤ 1.00 pp."""
    if check.limit is None:
        return ABSENT
    own = check.name.rpartition(".")[2]  # of several outputs each writes `output.name`
    is_cost = own.endswith(("_drop", "_bytes", "_ms")) or own in COSTS
    return ("≤ " if is_cost else "") + number(check.limit, unit_of(check))


ACRONYMS = {"auc": "AUC", "mae": "MAE", "rmse": "RMSE", "mse": "MSE", "miou": "mIoU"}
COSTS = {  # checks whose limit is the most that is allowed
    "flips",
    "instructions",
    "max_abs",
    "max_lsb",
    "nonfinite",
    "golden",
    "cpu_fallback_ops",
    "op_versions",
    "unsupported_ops",
}


def is_judged(report: Report) -> bool:
    """Whether any check counts; a report without one proves nothing."""
    return any(check.verdict is not Verdict.INFO for check in report.checks)


def worst_first(checks: Sequence[Check]) -> list[Check]:
    """The checks that count, worst first, then those for information; otherwise in their own order."""
    order = list(Verdict)
    return sorted(checks, key=lambda check: order.index(check.verdict))


def merged(checks: Sequence[Check]) -> list[Check]:
    """One check where several targets have the same figure and verdict: `target` names them all, `why` each reason."""
    rows: dict[Check, list[Check]] = {}
    for check in checks:
        rows.setdefault(replace(check, target=None, why=""), []).append(check)
    return [replace(same[0], target=_targets(same) or None, why=_reasons(same)) for same in rows.values()]


def _targets(checks: Sequence[Check]) -> str:
    return ", ".join(filter(None, (check.target for check in checks)))


def _reasons(checks: Sequence[Check]) -> str:
    """Their `why`; where it differs, each with the targets that it is of."""
    reasons: dict[str, list[Check]] = {}
    for check in checks:
        reasons.setdefault(check.why, []).append(check)
    if len(reasons) == 1:
        return checks[0].why
    return "; ".join(f"{_targets(same)}: {why}" for why, same in reasons.items() if why)


def tables(report: Report) -> list[Any]:
    """What rich prints of a report in 100 columns: verdict, every check, and why those that do not pass do not."""
    from rich.text import Text

    parts: list[Any] = [_headline(report), _checks(report)]
    for check in worst_first(merged(report.checks)):
        if check.why and check.verdict not in (Verdict.PASS, Verdict.INFO):
            where = f" on {check.target}" if check.target else ""
            parts.append(Text.assemble((f"{check.name}{where}: ", STYLES[check.verdict]), check.why))
    return parts


def _headline(report: Report) -> Any:
    from rich.text import Text

    samples = (report.details.get("accuracy") or {}).get("samples")
    counted = f" ({samples:,} samples)" if samples else ""
    verdict, style = report.verdict.value.upper(), STYLES[report.verdict]
    if not is_judged(report):
        verdict, style = "NOT JUDGED, no limit was set", STYLES[Verdict.INFO]
    against = f"  {report.artifact} against {report.reference} on {report.data}{counted}"
    return Text.assemble((verdict, style), against)


def _checks(report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shows_target = any(check.target for check in report.checks)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("check", no_wrap=True)
    if shows_target:
        grid.add_column("target", overflow="fold")
    grid.add_column("measured", justify="right", no_wrap=True)
    grid.add_column("limit", justify="right", no_wrap=True)
    grid.add_column("method", no_wrap=True)
    grid.add_column("verdict", no_wrap=True)
    for check in worst_first(merged(report.checks)):
        measured = interval(check.measured, check.low, check.high, unit_of(check))
        verdict = check.verdict.value if check.verdict is Verdict.INFO else check.verdict.value.upper()
        cells = [check.name, *([check.target or ""] if shows_target else []), measured, limit(check)]
        texts = [Text(cell) for cell in [*cells, check.method.value]]
        grid.add_row(*texts, Text(verdict, style=STYLES[check.verdict]))
    return grid


def _scale(unit: str, size: float) -> tuple[float, str, int | None]:
    """Factor, label and decimals for numbers of about `size`; decimals None means four significant digits."""
    if unit in FIXED:
        return FIXED[unit]
    if unit in ("bytes", "B"):
        return _decimal_bytes(size)
    if unit in MILLISECONDS:
        return _time(MILLISECONDS[unit], size)
    return 1.0, "" if unit == "count" else unit, None


def _decimal_bytes(size: float) -> tuple[float, str, int]:
    for factor, label in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * factor:
            return 1 / factor, label, _decimals(size / factor)
    return 1.0, "B", 0


def _time(milliseconds: float, size: float) -> tuple[float, str, int]:
    size_ms = size * milliseconds
    if size_ms >= 10_000:
        return milliseconds / 1e3, "s", _decimals(size_ms / 1e3)
    if 0 < size_ms < 0.1:  # two digits that mean something, and the same unit as its neighbours
        return milliseconds, "ms", 1 - math.floor(math.log10(size_ms))
    return milliseconds, "ms", _decimals(size_ms)


def _decimals(size: float) -> int:
    return 0 if size >= 99.95 else 1 if size >= 9.995 else 2


def _digits(value: float, decimals: int | None) -> str:
    if decimals is None:
        whole = float(value).is_integer() and abs(value) < 1e15
        return f"{int(value):,}" if whole else f"{value:.4g}".replace("e-0", "e-")
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text

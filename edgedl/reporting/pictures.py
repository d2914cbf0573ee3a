"""Which pictures a report has: its checks and details turned into the rows of `figures`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgedl.reporting import figures, text, views
from edgedl.types import Check, Report


def differences(reports: Sequence[Report]) -> list[str]:
    """Intervals against their limits, a picture a unit; with several reports each shows its first metric only."""
    rows: dict[tuple[str, float], list[figures.Difference]] = {}
    for report, name in zip(reports, views.names(reports), strict=True):
        lost = [c for c in text.merged(report.checks) if c.name.endswith("_drop") and c.measured is not None]
        first = views.drop(report)
        shown = lost if len(reports) == 1 else [first] if first else []
        for check in shown:
            targets = (check.target or "").split(", ")
            where = check.target if len(targets) == 1 else f"{len(targets)} targets"
            label = f"{check.name} on {where}" if where else check.name
            axis = _axis(check, views.metric(report)[0])
            rows.setdefault(axis, []).append(_difference(check, label if len(reports) == 1 else name, axis[1]))
    return [
        figures.differences(found, unit=unit, alt="; ".join(f"{row.label}: {row.text}" for row in found))
        for (unit, _), found in rows.items()
    ]


def sizes(reports: Sequence[Report]) -> str | None:
    """File and download of the reference and every artifact, as bars with ratios."""
    reference, others = _merged(reports, "sizes")
    groups = []
    for entry in [*([reference] if reference else []), *others]:
        found = [
            figures.Bar(
                value=entry[key],
                text=_beside(word, entry[key], "bytes", reference.get(key) if reference else None, entry is reference),
                is_main=key == "size_bytes",
            )
            for key, word in (("size_bytes", "file"), ("compressed_bytes", "download"))
            if entry.get(key) is not None
        ]
        if found:
            groups.append(_group(entry, ("format", "scheme"), found))
    return _bars("Size", groups)


def latency(reports: Sequence[Report]) -> str | None:
    """Median and 90th percentile of the reference and every artifact; ratios where method, threads and batch agree."""
    reference, others = _merged(reports, "latency")
    groups = []
    for entry in [*([reference] if reference else []), *others]:
        base = reference if reference and views.is_comparable(entry, reference) else {}
        found = [
            figures.Bar(
                value=entry[key],
                text=_beside(word, entry[key], "ms", base.get(key), entry is reference),
                is_main=key == "median_ms",
                low=entry.get("low") if key == "median_ms" else None,
                high=entry.get("high") if key == "median_ms" else None,
            )
            for key, word in (("median_ms", "median"), ("p90_ms", "p90"))
            if entry.get(key) is not None
        ]
        if found:
            groups.append(_group(entry, ("runtime", "threads", "method"), found))
    return _bars("Latency", groups)


def confusion(report: Report) -> list[dict[str, Any]]:
    """The confusion matrices, before and after, with what each shows in words."""
    found = report.details.get("confusion") or {}
    drawn = []
    for key, title in (("reference", "Before: the reference"), ("artifact", "After: the artifact")):
        matrix = found.get(key)
        if not matrix:
            continue
        right, total = sum(matrix[i][i] for i in range(len(matrix))), sum(map(sum, matrix))
        caption = f"{title}, {right:,} of {total:,} on the diagonal"
        drawn.append(
            {"caption": caption, "svg": figures.confusion(matrix, views.class_names(report), alt=f"{caption}.")}
        )
    return drawn


def _axis(check: Check, metric: str) -> tuple[str, float]:
    """What the axis of a drop is called, and the factor from the check's unit to the axis."""
    if text.unit_of(check) == "fraction_difference":
        return "percentage points", 100.0
    return check.unit or metric, 1.0


def _difference(check: Check, label: str, factor: float) -> figures.Difference:
    low, high, limit = (None if v is None else v * factor for v in (check.low, check.high, check.limit))
    return figures.Difference(
        label=f"{label} · {check.verdict.value}",
        text=text.interval(check.measured, check.low, check.high, text.unit_of(check)),
        value=(check.measured or 0.0) * factor,
        low=low,
        high=high,
        limit=limit,
        verdict=check.verdict,
    )


def _merged(reports: Sequence[Report], key: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The first reference and the others of all reports, each once."""
    reference: dict[str, Any] | None = None
    others: list[dict[str, Any]] = []
    for report in reports:
        found, rest = views.entries(report, key)
        reference = reference or found
        others.extend(entry for entry in rest if entry not in others and entry != reference)
    return reference, others


def _beside(word: str, value: float, unit: str, base: float | None, is_reference: bool) -> str:
    times = None if is_reference else text.ratio(value, base)
    return f"{word} {text.number(value, unit)}" + (f" · {times}" if times else "")


def _group(entry: dict[str, Any], keys: Sequence[str], bars: Sequence[figures.Bar]) -> figures.BarGroup:
    known = [_words(key, entry[key]) for key in keys if entry.get(key)]
    return figures.BarGroup(label=str(entry["name"]), detail=", ".join(known), bars=tuple(bars))


def _words(key: str, value: Any) -> str:
    return f"{value} thread{'s' if value != 1 else ''}" if key == "threads" else str(value)


def _bars(what: str, groups: Sequence[figures.BarGroup]) -> str | None:
    if not groups:
        return None
    alt = "; ".join(f"{group.label}: {', '.join(bar.text for bar in group.bars)}" for group in groups)
    return figures.bars(groups, alt=f"{what}. {alt}")

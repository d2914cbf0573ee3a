"""What the page says about a report, as plain values for the template: words, rows, and None for what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from edgedl.reporting import text
from edgedl.types import Check, Report, Verdict, to_json

BADGES = {
    Verdict.FAIL: ("✕", "Fail"),
    Verdict.UNCHECKED: ("?", "Unchecked"),
    Verdict.INCONCLUSIVE: ("~", "Inconclusive"),
    Verdict.PASS: ("✓", "Pass"),
    Verdict.INFO: ("", "Info"),
}
MEANINGS = {
    Verdict.FAIL: "At least one check is outside its limit.",
    Verdict.UNCHECKED: "A limit was set that nothing here can measure, so this is no pass.",
    Verdict.INCONCLUSIVE: "The data does not decide whether every limit holds.",
    Verdict.PASS: "Every check with a limit is inside it.",
    Verdict.INFO: "No limit was set, so nothing was judged.",
}
LISTED = 12  # of a longer list, the first so many are written out
CONFUSED_PAIRS = 8


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline figure: what it is, its value, and what it is to be read against."""

    label: str
    value: str
    lines: tuple[str, ...] = ()


def clean(report: Report) -> Report:
    """The report with `details` as JSON has it and None for figures that are not finite: no picture shows those."""
    names = ("measured", "low", "high", "limit")
    checks = tuple(replace(c, **finite({name: getattr(c, name) for name in names})) for c in report.checks)
    return replace(report, checks=checks, details=finite(to_json(report.details)))


def finite(value: Any) -> Any:
    """`value` with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def badge(*reports: Report) -> dict[str, str]:
    """The worst verdict as sign, word and sentence; without a limit nothing was judged."""
    judged = any(text.is_judged(report) for report in reports)
    verdict = Verdict.worst([report.verdict for report in reports]) if judged else Verdict.INFO
    sign, word = BADGES[verdict]
    return {
        "kind": verdict.value,
        "sign": sign,
        "word": word if verdict is not Verdict.INFO else "Not judged",
        "meaning": MEANINGS[verdict],
    }


def names(reports: Sequence[Report]) -> list[str]:
    """What the page calls each artifact: its file name, its whole path where two share one."""
    short = [PurePath(report.artifact).name for report in reports]
    return [name if short.count(name) == 1 else r.artifact for name, r in zip(short, reports, strict=True)]


def find(report: Report, *names: str) -> Check | None:
    """The first measured check with one of these names."""
    return next((c for c in report.checks if c.name in names and c.measured is not None), None)


def tiles(report: Report) -> list[Tile]:
    """The headline figures: score, what was lost, size, latency, agreement."""
    found = [_score(report), _loss(report), _size(report), _latency(report), _agreement(report)]
    return [tile for tile in found if tile is not None]


def metric(report: Report) -> tuple[str, str]:
    """Name and unit of the metric."""
    described = report.details.get("metric") or {}
    return described.get("name", "accuracy"), described.get("unit", "fraction")


def drop(report: Report) -> Check | None:
    """The check on what the artifact lost by the first metric."""
    first = find(report, f"{metric(report)[0]}_drop", "accuracy_drop")
    return first or next((c for c in report.checks if c.name.endswith("_drop") and c.measured is not None), None)


def scores(report: Report) -> list[dict[str, str]]:
    """Reference, artifact and difference, each with its interval."""
    accuracy, unit = report.details.get("accuracy") or {}, metric(report)[1]
    difference = text.unit_of_difference(unit)
    rows = (("reference", "Reference", unit), ("artifact", "Artifact", unit), ("drop", "Lost", difference))
    return [
        {
            "name": name,
            "value": text.number(values.get("value"), row_unit),
            "bounds": text.bounds(values.get("value"), values.get("low"), values.get("high"), row_unit),
        }
        for key, name, row_unit in rows
        if (values := accuracy.get(key))
    ]


def confidence(report: Report) -> str:
    """How sure the interval of the difference is: `95 %`, where the validation says so."""
    level = ((report.details.get("accuracy") or {}).get("drop") or {}).get("confidence")
    return f"{level * 100:.4g} % " if level else ""


def entries(report: Report, key: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The reference and the others of `details[key]`: by `role`, else the first of several is the reference."""
    found = list(report.details.get(key) or ())
    marked = [entry for entry in found if entry.get("role") == "reference"]
    if not marked and len(found) > 1 and not any("role" in entry for entry in found):
        marked = found[:1]
    reference = marked[0] if marked else None
    return reference, [entry for entry in found if entry is not reference]


def is_comparable(entry: Mapping[str, Any], reference: Mapping[str, Any] | None) -> bool:
    """Whether a ratio of two latencies means anything: same method, threads and batch."""
    keys = ("method", "threads", "batch")
    return reference is not None and all(entry.get(key) == reference.get(key) for key in keys)


def class_names(report: Report) -> list[str]:
    """The labels of the confusion matrices, numbers where there are none."""
    confusion = report.details.get("confusion") or {}
    matrix = confusion.get("artifact") or confusion.get("reference") or []
    return [str(label) for label in confusion.get("labels") or range(len(matrix))]


def pairs(report: Report) -> list[dict[str, Any]]:
    """The confusions that the artifact makes most often, with how often the reference makes them."""
    confusion = report.details.get("confusion") or {}
    before, after = confusion.get("reference"), confusion.get("artifact") or []
    labels = class_names(report)
    rows = [
        {"true": labels[i], "predicted": labels[j], "before": before[i][j] if before else None, "after": count}
        for i, line in enumerate(after)
        for j, count in enumerate(line)
        if i != j and count
    ]
    return sorted(rows, key=lambda row: (-row["after"], row["before"] or 0))[:CONFUSED_PAIRS]


def per_class(report: Report) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class before and after, the greatest loss of recall first."""
    rows = []
    for entry in report.details.get("per_class") or ():
        before, after = entry.get("reference") or {}, entry.get("artifact") or {}
        change = None
        if before.get("recall") is not None and after.get("recall") is not None:
            change = after["recall"] - before["recall"]
        rows.append({**entry, "reference": before, "artifact": after, "change": change})
    return sorted(
        rows, key=lambda row: (0.0 if row["change"] is None else row["change"], row["artifact"].get("recall") or 0)
    )


def parity(report: Report) -> list[dict[str, Any]]:
    """How far the outputs are from the reference's, one entry an output."""
    found = report.details.get("parity") or []
    return [dict(found)] if isinstance(found, Mapping) else list(found)


PARITY_TITLES = {
    "max_abs": "largest difference",
    "mean_abs": "mean difference",
    "differing": "values that differ",
    "agreement": "same answer",
}


def parity_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how far each output is from the reference's, whatever the validation measured."""
    found = parity(report)
    keys = list(dict.fromkeys(key for entry in found for key in entry))
    header = [PARITY_TITLES.get(key, key.replace("_", " ").replace("lsb", "LSB")) for key in keys]
    return header, [[_cell(key, entry.get(key)) for key in keys] for entry in found]


def facts(mapping: Mapping[str, Any] | None) -> list[tuple[str, list[str]]]:
    """A nested mapping as names and lines; empty values are left out, long lists cut with their length."""
    rows: list[tuple[str, list[str]]] = []
    for key, value in (mapping or {}).items():
        if value in (None, "", [], {}, ()):
            continue
        name = str(key).replace("_", " ").replace("sha256", "SHA-256")
        if isinstance(value, Mapping):
            rows.append((name, [f"{k}: {_plain(v)}" for k, v in value.items()]))
        elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping) for v in value):
            rows.append((name, [_plain(v) for v in value]))
        else:
            rows.append((name, [_plain(value)]))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(_plain(v) for v in value[:LISTED])
        return f"{shown}, … ({len(value):,} in all)" if len(value) > LISTED else shown
    return str(value)


def _cell(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return text.number(value, "fraction" if key in ("agreement", "differing") else "count")


def _score(report: Report) -> Tile | None:
    name, unit = metric(report)
    accuracy = report.details.get("accuracy") or {}
    artifact, reference = accuracy.get("artifact") or {}, accuracy.get("reference") or {}
    check = find(report, name, "accuracy")
    value = artifact.get("value", check.measured if check else None)
    if value is None:
        return None
    lines = [f"reference {text.number(reference['value'], unit)}"] if reference.get("value") is not None else []
    if accuracy.get("samples"):
        lines.append(f"on {accuracy['samples']:,} samples")
    return Tile(label=text.title(name), value=text.number(value, unit), lines=tuple(lines))


def _loss(report: Report) -> Tile | None:
    check = drop(report)
    if check is None:
        return None
    unit = text.unit_of(check)
    lines = []
    if check.low is not None:
        bounds = text.bounds(check.measured, check.low, check.high, unit).replace(", ", ",\u00a0")  # on one line
        lines.append(f"{confidence(report)}interval {bounds}")
    if check.limit is not None:
        lines.append(f"limit {text.number(check.limit, unit)}")
    return Tile(label="Lost", value=text.number(check.measured, unit), lines=tuple(lines))


def _size(report: Report) -> Tile | None:
    reference, others = entries(report, "sizes")
    check = find(report, "size_bytes")
    own = others[0] if others else {"size_bytes": check.measured if check else None}
    if own.get("size_bytes") is None:
        return None
    lines = []
    if reference and (times := text.ratio(own["size_bytes"], reference.get("size_bytes"))):
        lines.append(f"{times} of {text.number(reference['size_bytes'], 'bytes')}")
    if own.get("compressed_bytes") is not None:
        lines.append(f"{text.number(own['compressed_bytes'], 'bytes')} to download")
    return Tile(label="File", value=text.number(own["size_bytes"], "bytes"), lines=tuple(lines))


def _latency(report: Report) -> Tile | None:
    reference, others = entries(report, "latency")
    check = find(report, "latency_ms")
    fallback: dict[str, Any] = {"median_ms": check.measured, "method": check.method.value} if check else {}
    own: dict[str, Any] = others[0] if others else fallback
    if own.get("median_ms") is None:
        return None
    lines = [" · ".join(str(own[key]) for key in ("runtime", "method") if own.get(key))]
    if (
        reference
        and is_comparable(own, reference)
        and (times := text.ratio(own["median_ms"], reference.get("median_ms")))
    ):
        lines.insert(0, f"{times} of {text.number(reference['median_ms'], 'ms')}")
    return Tile(label="Median latency", value=text.number(own["median_ms"], "ms"), lines=tuple(lines))


def _agreement(report: Report) -> Tile | None:
    found = parity(report)
    if not found or found[0].get("agreement") is None:
        return None
    lines = ["same answer as the reference"]
    return Tile(label="Agreement", value=text.number(found[0]["agreement"], "fraction"), lines=tuple(lines))

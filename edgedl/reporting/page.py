"""One or several reports as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from edgedl.errors import InputError
from edgedl.reporting import figures, pictures, text, views
from edgedl.types import Check, Method, Report

TEMPLATE = Path(__file__).with_name("report.html.j2")
NEEDS = ("jinja2", "matplotlib")
CLASSES_SHOWN = 15  # the rest of a long per-class table folds away
METHODS = {
    Method.MEASURED_DEVICE: "measured on the target itself",
    Method.MEASURED_HOST: "measured on the machine that wrote this report; says nothing of another device's speed",
    Method.EMULATED: "run on an emulated CPU: instructions, bytes and numerics, never time",
    Method.VENDOR_ESTIMATE: "calculated by the vendor's own tool",
    Method.PREDICTED: "predicted by a model, with the interval of that prediction",
    Method.STATIC: "read off the file or computed from outputs, the same on every machine",
}
TITLES = {
    "accuracy": "Accuracy of the artifact",
    "accuracy_reference": "Accuracy of the reference",
    "accuracy_drop": "Accuracy lost",
    "max_abs": "Largest difference of outputs",
    "max_lsb": "Largest difference in LSB",
    "mcnemar_p": "McNemar's p",
    "nonfinite": "NaN or infinite outputs",
    "flips": "Answers that changed",
    "worst_class_drop": "Accuracy lost, worst class",
    "size_bytes": "File size",
    "compressed_bytes": "Download size",
    "arena_bytes": "Peak arena",
    "load_ms": "Load time",
    "first_inference_ms": "First inference",
    "latency_ms": "Median latency",
    "latency_p90_ms": "90th percentile latency",
    "peak_rss_bytes": "Peak memory",
    "instructions": "Instructions per inference",
    "cpu_fallback_ops": "Ops that fall back to the CPU",
    "format": "Format that the target takes",
    "io": "Types of inputs and outputs",
    "unsupported_ops": "Ops that the target lacks",
    "op_versions": "Op versions the runtime lacks",
}


def require() -> None:
    """Say now, before the work, that the page cannot be drawn. Raises InputError with the command that mends it."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        message = f"report.html: {' and '.join(missing)} not installed. Try: pip install 'edgedl[report]'"
        raise InputError(message)


def warm() -> None:
    """Import ahead what the page is drawn with, where it is installed."""
    if all(find_spec(name) for name in NEEDS):
        import jinja2  # noqa: F401
        import matplotlib.backends.backend_svg
        import matplotlib.figure  # noqa: F401


def render(reports: Report | Sequence[Report]) -> str:
    """The page of one report, or of several under a comparison. Raises InputError without matplotlib or jinja2."""
    require()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    many = [views.clean(report) for report in ([reports] if isinstance(reports, Report) else reports)]
    if not many:
        message = "report.html: there is no report to show; validate at least one artifact"
        raise InputError(message)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    numbers = count(1)
    environment.filters |= {
        "number": text.number,
        "thousands": lambda value: text.number(value, "count"),
        # figures.py escapes every label
        "picture": lambda svg: Markup(figures.numbered(svg, next(numbers))),  # noqa: S704
    }
    names = views.names(many)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=f"{views.badge(*many)['word']}: {', '.join(names)}",
        views=[_view(report, name, place) for place, (report, name) in enumerate(zip(many, names, strict=True), 1)],
        comparison=_comparison(many) if len(many) > 1 else None,
        methods=[(method.value, METHODS[method]) for method in Method if _uses(many, method)],
        version=version("edgedl"),
    )


def _view(report: Report, name: str, place: int) -> dict[str, Any]:
    details = report.details
    _, others = views.entries(report, "latency")
    return {
        "id": f"report-{place}",
        "name": name,
        "report": report,
        "badge": views.badge(report),
        "tiles": views.tiles(report),
        "metric": text.title(views.metric(report)[0]),
        "metric_unit": views.metric(report)[1],
        "scores": views.scores(report),
        "confidence": views.confidence(report),
        "differences": pictures.differences([report]),
        "is_limited": any(c.limit is not None for c in report.checks if c.name.endswith("_drop")),
        "sizes": pictures.sizes([report]),
        "latency": pictures.latency([report]),
        "latency_notes": [entry["note"] for entry in others if entry.get("note")],
        "confusion": pictures.confusion(report),
        "pairs": views.pairs(report),
        "checks": _checks(report),
        "per_class": views.per_class(report),
        "shown": CLASSES_SHOWN,
        "slices": details.get("slices") or [],
        "parity": views.parity_table(report),
        "machine": views.facts(details.get("machine")),
        "lineage": views.facts(details.get("lineage")),
        "notes": list(details.get("notes") or ()),
    }


def _checks(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "check": check,
            "title": _check_title(check.name),
            "measured": text.measured(check),
            "exact": _exact(check),
            "bounds": text.bounds(check.measured, check.low, check.high, text.unit_of(check)),
            "limit": text.limit(check),
            "sign": views.BADGES[check.verdict][0],
            "word": views.BADGES[check.verdict][1],
        }
        for check in text.worst_first(text.merged(report.checks))
    ]


def _exact(check: Check) -> str:
    """The bytes behind a rounded size."""
    return f"{check.measured:,.0f} B" if check.unit == "bytes" and (check.measured or 0) >= 1000 else ""


def _check_title(name: str) -> str:
    """A check's name in words; of several outputs each writes `output.name`."""
    output, _, own = name.rpartition(".")
    if own in TITLES:
        return f"{TITLES[own]}, {output}" if output else TITLES[own]
    for suffix, words in (("_drop", "{} lost"), ("_reference", "{} of the reference")):
        if name.endswith(suffix):
            return words.format(text.title(name.removesuffix(suffix)))
    return text.title(name)


def _comparison(reports: Sequence[Report]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for place, (report, name) in enumerate(zip(reports, views.names(reports), strict=True), 1):
        lost = views.drop(report)
        rows.append(
            {
                "id": f"report-{place}",
                "name": name,
                "badge": views.badge(report),
                "tiles": {tile.label: tile for tile in views.tiles(report)},
                "lost": text.interval(lost.measured, lost.low, lost.high, text.unit_of(lost)) if lost else text.ABSENT,
            }
        )
    columns = list(dict.fromkeys(label for row in rows for label in row["tiles"] if label != "Lost"))
    return {
        "badge": views.badge(*reports),
        "rows": rows,
        "columns": columns,
        "differences": pictures.differences(reports),
        "sizes": pictures.sizes(reports),
        "latency": pictures.latency(reports),
    }


def _uses(reports: Sequence[Report], method: Method) -> bool:
    return any(check.method is method for report in reports for check in report.checks)

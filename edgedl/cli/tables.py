"""rich tables of what is no report: inspections, benchmarks, plans, profiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.tree import Tree

from edgedl.reporting import checks_from_json
from edgedl.reporting.text import ABSENT, interval, measured, number, title, unit_of_difference
from edgedl.types import to_json

DIFFERENCE = ("accuracy", "accuracy_reference", "accuracy_drop", "flips", "size_bytes", "compressed_bytes", "max_abs")
MOST_OPERATORS = 20  # in a table of what they add


def inspection(found: dict[str, Any]) -> list[Table]:
    """Facts, tensors, then layers of a model or operators of an artifact."""
    facts = Table(show_header=False, title=found["path"], title_justify="left")
    for key in ("format", "scheme", "keras_version", "sha256"):
        if found.get(key):
            facts.add_row(key, str(found[key]))
    for key, unit in (
        ("size_bytes", "bytes"),
        ("compressed_bytes", "bytes"),
        ("parameters", "count"),
        ("macs", "count"),
    ):
        if found.get(key) is not None:
            facts.add_row(key, number(found[key], unit))
    for dtype, held in found.get("weight_bytes", {}).items():
        facts.add_row(f"weights {dtype}", number(held, "bytes"))
    tables = [facts, _tensors(found)]
    if found["kind"] == "model":
        tables.append(_layers(found))
    elif found.get("ops"):
        tables.append(_ops(found))
    if found.get("checks"):
        tables.append(_checks(found["checks"]))
    if found.get("diff"):
        tables.append(_difference(found["diff"]))
    return tables


def layers(found: dict[str, Any]) -> Table:
    """Where an artifact parts from its model: its operators, those that add most noise first."""
    facts: dict[str, str] = {}
    for check in checks_from_json(found["report"]["checks"]):
        if check.name in DIFFERENCE:
            facts.setdefault(check.name, measured(check))  # of several targets that of the first
    title = f"{found['artifact']}: {', '.join(f'{name} {figure}' for name, figure in facts.items())}"
    table = Table("operator", "", "layer", "signal to noise", "noise added", title=title, title_justify="left")
    rows = sorted(found["layers"], key=lambda row: -row["added_noise"])
    for row in rows[:MOST_OPERATORS]:
        ratio = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
        table.add_row(str(row["index"]), row["op"], row["layer"], ratio, number(row["added_noise"], "fraction"))
    if len(rows) > MOST_OPERATORS:
        table.caption = f"{len(rows) - MOST_OPERATORS} more with --json"
    return table


def _tensors(found: dict[str, Any]) -> Table:
    table = Table("", "name", "type", "shape", "scale", "zero point")
    for kind in ("inputs", "outputs"):
        for spec in found[kind]:
            shape = ", ".join("any" if s is None else str(s) for s in spec["shape"])
            scale, zero = (", ".join(f"{v:.6g}" for v in spec[k]) for k in ("scale", "zero_point"))
            table.add_row(kind[:-1], spec["name"], spec["dtype"], f"({shape})", scale, zero)
    return table


def _layers(found: dict[str, Any]) -> Table:
    table = Table("layer", "class", "output", "parameters", "MACs")
    for layer in found["layers"]:
        cells = (number(layer["parameters"], "count"), number(layer["macs"], "count"))
        table.add_row(layer["name"], layer["class"], str(layer["output_shape"]), *cells)
    return table


def _ops(found: dict[str, Any]) -> Table:
    table = Table("operator", "version", "count")
    counted = Counter((op["name"], op["version"]) for op in found["ops"])
    for (name, version), count in sorted(counted.items(), key=lambda item: -item[1]):
        table.add_row(name, "" if version is None else str(version), str(count))
    return table


def _checks(checks: list[dict[str, Any]]) -> Table:
    table = Table("check", "target", "measured", "verdict")
    table.add_column("why", overflow="fold")
    for check in checks:
        measured = number(check["measured"], check["unit"] or "count") if check["measured"] is not None else ""
        table.add_row(check["name"], check["target"], measured, check["verdict"], check["why"])
    return table


def _difference(diff: dict[str, Any]) -> Table:
    table = Table("", "here", diff["path"])
    for key, (before, after) in {**diff["facts"], **diff["ops"]}.items():
        table.add_row(key, str(before), str(after))
    return table


def benchmark(found: dict[str, Any]) -> list[Table]:
    """Times here, with ratios to the first artifact, and what each needs besides; then what devices and gate tell."""
    if "results" not in found:
        return []
    here = [row for row in found["results"] if row["method"] == "measured-host"]
    threads = ", ".join(sorted({str(row["threads"]) for row in here}))
    times = _figures("runtime", "latency", "p90", "ratio", title=f"threads: {threads}")
    needs = _figures("load", "first inference", "peak memory", "size")
    ratios = {c["artifact"]: c["latency_ratio"] for c in found["comparison"]}  # None: unlike batches
    for row in here:
        low, high = row["spread_ms"]
        times.add_row(
            row["artifact"],
            row["runtime"],
            interval(row["latency_ms"], low, high, "ms"),
            number(row["latency_p90_ms"], "ms"),
            ABSENT if (ratio := ratios.get(row["artifact"], 1.0)) is None else f"{ratio:.2f}x",
        )
        needs.add_row(
            row["artifact"],
            number(row["load_ms"], "ms"),
            number(row["first_inference_ms"], "ms"),
            number(row["peak_rss_bytes"], "bytes"),
            number(row["size_bytes"], "bytes"),
        )
    return [times, needs, *_on_devices([r for r in found["results"] if r not in here]), *_gate(found.get("gate"))]


def predictions(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Predicted latency with its interval, beside what multiply-accumulates and clock alone say."""
    if not rows:
        return []
    table = Table(title="predicted, 90 % intervals", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                  show_edge=False)  # fmt: skip
    table.add_column("model", overflow="fold")
    table.add_column("where", overflow="fold")
    table.add_column("latency", justify="right", no_wrap=True)
    table.add_column("MACs per clock", justify="right", no_wrap=True)
    table.add_column("runtime", overflow="fold")
    for row in rows:
        clock = f" at {row['clock_hz'] / 1e6:g} MHz" if row["clock_hz"] else ""
        plain = number(row["macs_per_clock_ms"], "ms") if row["macs_per_clock_ms"] else ""
        told = interval(row["latency_ms"], row["low"], row["high"], "ms") if not row["refused"] else "refused"
        place = row["target"] or f"{row['core']}{clock}"
        table.add_row(row["model"], place, told, plain, row["refused"] or row["runtime"])
    return [table]


def _on_devices(rows: list[dict[str, Any]]) -> list[Table]:
    """Instructions and times by target."""
    if not rows:
        return []
    table = _figures("target", "instructions", "latency", "method")
    for row in rows:
        counted = f"{row['instructions']:,}" if row.get("instructions") else ""
        latency = number(row["latency_ms"], "ms") if row["latency_ms"] is not None else ""
        table.add_row(row["artifact"], row["target"], counted, latency, row["method"])
    return [table]


def _gate(gate: dict[str, Any] | None) -> list[Table]:
    """Instructions against the baseline's."""
    if gate is None:
        return []
    table = _figures("target", "baseline", "now", "verdict", title=f"instructions against {gate['baseline']}")
    table.add_column("why", overflow="fold")
    for e in gate["entries"]:
        before = "" if e["baseline"] is None else f"{e['baseline']:,}"
        now = "" if e["measured"] is None else f"{e['measured']:,}"
        table.add_row(e["artifact"], e["target"], before, now, e["verdict"], e["why"])
    return [table, *([gate["why"]] if gate["why"] else [])]


def _figures(*headings: str, title: str | None = None) -> Table:
    """A row an artifact; its path may fold, the figures may not."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("artifact", overflow="fold")
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="left" if heading == "runtime" else "right")
    return table


def plan_table(planned: dict[str, Any]) -> Table:
    """Samples needed by the share of answers that change."""
    title = f"to prove a loss of at most {100 * planned['max_drop']:g} pp where there is none"
    table = Table("answers that change", "samples needed", title=f"{title}; the data has {planned['have']:,}")
    for row in planned["rows"]:
        table.add_row(f"{row['changed_answers']:.1%}", f"{row['samples']:,}" if row["samples"] else "no number")
    return table


def tree(noun: Any) -> Tree:
    """A dataclass as a tree of its facts."""
    facts = to_json(noun)
    root = Tree(str(facts.pop("id", "")))
    _grow(root, facts)
    return root


def _grow(branch: Tree, facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            _grow(branch.add(key), value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                _grow(branch.add(f"{key}: {item.get('name', item.get('core', ''))}"), item)
        elif value not in (None, "", [], {}):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            branch.add(f"{key}: {shown}")


def compression(rows: list[Any]) -> list[Any]:
    """A row a step: what the model is after it, beside the original; then what each step gained, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("step", no_wrap=True)
    metric = title(rows[0].metric) if rows[0].metric else "score"
    there = ["on target"] if any(row.target_latency_ms is not None for row in rows) else []
    for heading in ("params", "zeros", "MACs", metric, "lost", "file", "download", "latency", *there, "time"):
        table.add_column(heading, no_wrap=True, justify="right")
    for row in rows:
        is_judged = row.drop is not None and row is not rows[0]
        table.add_row(
            row.step,
            _short(row.parameters),
            f"{row.zeros:.0%}",
            _short(row.macs),
            number(row.score, row.unit) if row.score is not None else "",
            interval(row.drop, row.low, row.high, unit_of_difference(row.unit)) if is_judged else "",
            number(row.size_bytes, "bytes"),
            number(row.compressed_bytes, "bytes"),
            number(row.latency_ms, "ms"),
            *(number(row.target_latency_ms, "ms") for _ in there),
            f"{row.seconds:.0f} s",
        )
    return [table, *(f"{row.step} gained: {row.gains}" for row in rows[1:])]


def _short(count: int | None) -> str:
    """A count in thousands or millions: 78.7 k, 12.5 M."""
    if count is None:
        return "?"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)

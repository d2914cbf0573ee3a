"""The release note of a package, from its comparison with the one before, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgedl.reporting import text

PARTS = ("class", "slice")  # of the data, whose check is NAME.class_drop
LISTED = 5  # of the classes and slices that changed, the first so many are written out


def render(found: Mapping[str, Any]) -> str:
    """The note: a heading, and a line for everything that changed; what did not change is not in it."""
    before, after = found["before"], found["after"]
    lines = [
        *(f"**Breaking:** {line}" for line in found["interface"]),
        *_file(before, after),
        *_figures(found["figures"]),
        *_quality(found["checks"]),
        *_runtimes(found["runtimes"]),
        *_ops(found["ops"]),
    ]
    since = before["version"] if before["name"] == after["name"] else f"{before['name']} {before['version']}"
    body = [f"- {line}" for line in lines] or ["- No change."]
    return "\n".join([f"## {after['name']} {after['version']}", f"Since {since}:", *body]) + "\n"


def _file(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if before["sha256"] == after["sha256"]:
        yield "The model is the same file."
    elif before["scheme"] != after["scheme"]:
        yield f"Scheme: {before['scheme']} to {after['scheme']}."


def _figures(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in figures:
        old, new = row["before"], row["after"]
        if old != new:
            on = f" on {row['target']}" if row["target"] else ""
            change = f" ({(new - old) / old:+.1%})" if old else ""
            values = " to ".join(_told(row["unit"], old, new))
            yield f"{row['name']}{on}: {values}{change}, {row['method']}."


def _told(unit: str, *values: float) -> list[str]:
    """Numbers for people; to the last digit where they look alike otherwise."""
    short = [text.number(value, unit) for value in values]
    return short if len(set(short)) > 1 else [f"{value:,} {unit}" for value in values]


def _quality(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The metric, then the classes and slices that got worse, then how many got better."""
    measured = [c for c in checks if c["measured"] is not None]
    parts = [c for c in measured if c["name"].rpartition(".")[2].removesuffix("_drop") in PARTS]
    for check in measured:
        if check not in parts:
            yield f"{check['name'].removesuffix('_drop')}: {check['why']} ({_signed(check)})."
    worse, better = ([c for c in parts if sign * c["measured"] > 0] for sign in (1, -1))
    for check in worse[:LISTED]:
        failed = ", **beyond the limit**" if check["verdict"] == "fail" else ""
        yield f"Worse: {check['why']} ({_signed(check)}{failed})."
    if worse[LISTED:]:
        yield f"Worse as well: {len(worse) - LISTED} more classes or slices."
    if better:
        yield f"Better: {len(better)} of {len(parts)} classes and slices."
    for check in checks:
        if check["measured"] is None and check["name"] != "version":
            yield f"Not compared: {check['why']}."


def _signed(check: Mapping[str, Any]) -> str:
    """The change of a score, so that what a drop calls positive is less."""
    change = -check["measured"]
    return f"{'+' if change > 0 else ''}{text.number(change, text.unit_of_difference(check['unit']))}"


def _runtimes(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield f"Oldest runtime, {row['name']}: {row['before'] or 'none known'} to {row['after'] or 'none known'}."


def _ops(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        version = f" version {row['version']}" if row["version"] is not None else ""
        yield f"Operator {row['name']}{version}: {row['before']} to {row['after']}."

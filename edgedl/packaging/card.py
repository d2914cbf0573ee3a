"""The model card: what a person says of the model in a .toml, and with the facts of the manifest as MODEL_CARD.md.

The parts are those of Mitchell et al., Model Cards for Model Reporting (arXiv:1810.03993), as far as they are known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import reporting, toml
from edgedl.reporting import text

FILE = "MODEL_CARD.md"
LICENSE = re.compile(r"[A-Za-z0-9.+()-]+( [A-Za-z0-9.+()-]+)*")
UNSTATED = "Not stated; say it in a card file: `edgedl package --card CARD.toml`."
MOST_ROWS = 50


@dataclass(frozen=True, kw_only=True)
class Card:
    """The keys of a card file. `license` is an SPDX expression, such as Apache-2.0 or LicenseRef-Proprietary."""

    purpose: str | None = None
    data: str | None = None
    limits: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not LICENSE.fullmatch(self.license):
            message = (
                f"license must be an SPDX expression, such as Apache-2.0 (spdx.org/licenses), got {self.license!r}"
            )
            raise ValueError(message)


def read(path: Path) -> Card:
    """The card in a .toml. Raises InputError: an unknown key, no text, no SPDX expression."""
    return toml.build(Card, toml.parse(path), str(path))


def render(found: Mapping[str, Any]) -> str:
    """MODEL_CARD.md from a manifest."""
    card, artifact = found["card"], found["artifact"]
    parts = [
        f"# {found['name']} {found['version']}",
        f"`{artifact['file']}`: {artifact['format']}, {artifact['scheme'] or 'scheme unknown'}, "
        f"{artifact['size_bytes']:,} bytes ({artifact['compressed_bytes']:,} under zlib).",
        f"License: {found['license'] or UNSTATED}",
        f"## Purpose\n{card['purpose'] or UNSTATED}",
        f"## Data\n{card['data'] or UNSTATED}" + _fingerprint(found["lineage"]),
        f"## Inputs and outputs\n{_tensors(found)}",
        f"## Results\n{_results(found['results'])}",
        f"## Limits\n{card['limits'] or UNSTATED}",
        f"## Where it comes from\n{_lineage(found)}",
    ]
    return "\n\n".join(parts) + "\n"


def _fingerprint(lineage: Mapping[str, Any]) -> str:
    known = lineage.get("data_sha256")
    count = lineage.get("calibration_samples")
    return f"\n\nCalibrated on {count} samples of data with SHA-256 `{known}`." if known and count else ""


def _tensors(found: Mapping[str, Any]) -> str:
    rows = [
        [side, f"`{spec['name']}`", spec["dtype"], ", ".join("any" if n is None else str(n) for n in spec["shape"])]
        for side, specs in (("input", found["inputs"]), ("output", found["outputs"]))
        for spec in specs
    ]
    said = [_table(("", "name", "type", "shape"), rows)]
    for key, title in (
        ("preprocessing", "The app does before"),
        ("embedded", "The model does itself"),
        ("postprocessing", "The app does after"),
    ):
        steps = "; ".join(_step(step) for step in found[key])
        said.append(f"{title}: {steps or 'none stated'}.")
    if found["labels"]:
        shown = ", ".join(found["labels"][:MOST_ROWS])
        said.append(f"{len(found['labels'])} labels: {shown}{_more(found['labels'])}.")
    return "\n\n".join(said)


def _step(step: Mapping[str, Any]) -> str:
    values = ", ".join(f"{key} {value}" for key, value in step.items() if key != "op")
    return f"{step.get('op')} ({values})" if values else str(step.get("op"))


def _results(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "Not validated; name a validation: `edgedl package --report REPORT.json`."
    rows = [
        [c.name, text.interval(c.measured, c.low, c.high, text.unit_of(c)), c.method, c.target or "", c.verdict]
        for c in reporting.checks_from_json(results["checks"])
    ]
    data, reference = (Path(results[key]).name for key in ("data", "reference"))
    said = [
        f"Measured on `{data}` against `{reference}`: {results['verdict']}.",
        _table(("check", "measured", "method", "target", "verdict"), rows),
        *_parts(results),
    ]
    return "\n\n".join(said)


def _parts(results: Mapping[str, Any]) -> Iterator[str]:
    unit = (results["metric"] or {}).get("unit", "")
    if classes := sorted(results["classes"], key=lambda row: row["recall"] or 0.0):
        rows = [
            [
                row["label"],
                row["support"],
                *(text.number(row.get(k), "fraction") for k in ("recall", "precision", "f1")),
            ]
            for row in classes[:MOST_ROWS]
        ]
        yield f"Classes, worst first{_more(classes)}:"
        yield _table(("class", "samples", "recall", "precision", "F1"), rows)
    if slices := sorted(results["slices"], key=lambda row: row["value"] or 0.0):
        rows = [[row["slice"], row["samples"], text.number(row["value"], unit)] for row in slices[:MOST_ROWS]]
        yield f"Slices{_more(slices)}:"
        yield _table(("slice", "samples", (results["metric"] or {}).get("name", "metric")), rows)


def _lineage(found: Mapping[str, Any]) -> str:
    lineage = found["lineage"]
    rows = [
        ("parent model", lineage.get("model_sha256")),
        ("recipe", lineage.get("recipe")),
        ("scheme", lineage.get("scheme")),
        ("artifact", found["artifact"]["sha256"]),
        ("made with", ", ".join(f"{name} {version}" for name, version in lineage.get("versions", {}).items())),
        ("golden outputs of", f"{found['runtime']['name']} {found['runtime']['version']}"),
        ("runs on", _runtimes(found["runtime"])),
    ]
    return "\n".join(f"- {name}: `{value}`" for name, value in rows if value)


def _runtimes(runtime: Mapping[str, Any]) -> str:
    """The oldest release of each runtime that is known to have every operator."""
    return ", ".join(
        f"{name} {release} or newer" if release else f"no known {name}" for name, release in runtime["minimums"].items()
    )


def _more(rows: Sequence[Any]) -> str:
    return f" ({MOST_ROWS} of {len(rows)})" if len(rows) > MOST_ROWS else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of Markdown; what would end a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)

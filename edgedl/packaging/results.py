"""What a validation measured, as a manifest carries it: checks with their methods, classes and slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedl import reporting
from edgedl.errors import InputError
from edgedl.types import Artifact, Report, to_json


def find(path: Path, artifact: Artifact) -> Report:
    """The report of a report.json that is about an artifact of this size, made from this model.

    Raises InputError where there is none.
    """
    reports = reporting.read(path)
    about = next((report for report in reports if _is_about(report, artifact)), None)
    if about is None:
        named = ", ".join(sorted({report.artifact for report in reports}))
        message = (
            f"{path}: is about {named}, of another size or from another model than {artifact.path}; "
            "validate this artifact and name that report"
        )
        raise InputError(message)
    return about


def _is_about(report: Report, artifact: Artifact) -> bool:
    sizes = {"size_bytes": artifact.size_bytes, "compressed_bytes": artifact.compressed_bytes}
    said = [c for c in report.checks if c.name in sizes and c.measured is not None]
    model = report.details.get("lineage", {}).get("model_sha256")
    ours = artifact.lineage.model_sha256
    return all(c.measured == sizes[c.name] for c in said) and not (model and ours and model != ours)


def summary(report: Report) -> dict[str, Any]:
    """`results` of a manifest: what was measured on the artifact; what was measured on its reference stays behind."""
    details = report.details
    classes = [
        {"label": row["label"], "support": row["support"], **(row.get("artifact") or {"recall": None})}
        for row in details.get("per_class") or ()
    ]
    slices = [
        {"slice": row["slice"], "samples": row["samples"], "value": row["artifact"]}
        for row in details.get("slices") or ()
    ]
    found: dict[str, Any] = reporting.views.finite(
        to_json({
            "data": report.data,
            "data_sha256": details.get("data_sha256"),
            "reference": report.reference,
            "verdict": report.verdict,
            "samples": (details.get("accuracy") or {}).get("samples"),
            "metric": details.get("metric"),
            "checks": report.checks,
            "classes": classes,
            "slices": slices,
        })
    )  # fmt: skip
    return found

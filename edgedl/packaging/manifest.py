"""manifest.json: what is in a package, as data. The schema is `edgedl/schemas/package_manifest.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgedl import artifacts, data
from edgedl.packaging import schema
from edgedl.types import Artifact, TensorSpec, to_json

NAME = "manifest.json"
LABELS = "labels.txt"
PREPROCESSING = "preprocessing.json"
REPORT = "report.json"
VERSION = "1.0"
MOST_PROBLEMS = 10


def build(
    artifact: Artifact, *, name: str, version: str, golden: Mapping[str, Any], runtime: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The manifest of a content folder that is complete but for it; `artifact.path` lies in it."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found: dict[str, Any] = to_json({
        "manifest_version": VERSION,
        "name": name,
        "version": version,
        "artifact": {
            "file": artifact.path.name,
            "format": artifact.format,
            "scheme": artifact.scheme,
            "sha256": artifact.sha256,
            "size_bytes": artifact.size_bytes,
            "compressed_bytes": artifact.compressed_bytes,
        },
        "inputs": artifact.inputs,
        "outputs": artifact.outputs,
        "labels": artifact.lineage.labels,
        "preprocessing": artifact.lineage.preprocessing,
        "embedded": artifact.lineage.embedded,
        "golden": golden,
        "runtime": runtime,
        "report": REPORT if REPORT in files else None,
        "lineage": artifact.lineage,
        "files": {place: data.file_sha256(path) for place, path in files.items()},
    })  # fmt: skip
    return found


def write(value: Any, path: Path) -> None:
    """JSON as every file of a package has it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of an unpacked package, and what does not hold in it, a line each."""
    path = folder / NAME
    if not path.is_file():
        return {}, [f"{NAME} is missing"]
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        return {}, [f"{NAME} is not readable as JSON: {e}"]
    said = found.get("manifest_version") if isinstance(found, dict) else None
    if isinstance(said, str) and said.partition(".")[0] != VERSION.partition(".")[0]:
        return {}, [f"{NAME} has version {said[:20]!r}, this edgedl reads 1.x; upgrade edgedl"]
    problems = schema.problems(found, schema.load("package_manifest")) or _contradictions(found)
    return found, [f"{NAME}: {p}" for p in problems[:MOST_PROBLEMS]]


def _refuse(text: str) -> NoReturn:
    message = f"{text} is no number of JSON"
    raise ValueError(message)


def _contradictions(found: dict[str, Any]) -> list[str]:
    """What the parts of a manifest that follows the schema say against each other."""
    golden, files = found["golden"], found["files"]
    problems = []
    named = [found["artifact"]["file"], *golden["inputs"].values(), *golden["outputs"].values(), found["report"]]
    problems += [f"{file[:80]!r} is not among the files" for file in named if file is not None and file not in files]
    if files.get(found["artifact"]["file"]) != found["artifact"]["sha256"]:
        problems.append("artifact.sha256 is not the one among the files")
    for side, parts in (("inputs", ("inputs",)), ("outputs", ("outputs", "tolerance"))):
        names = sorted(spec["name"] for spec in found[side])
        wrong = [part for part in parts if sorted(golden[part]) != names]
        problems += [f"golden.{part} is for {sorted(golden[part])}, {side} are {names}" for part in wrong]
    for key in ("labels", "preprocessing", "embedded"):
        if found[key] != found["lineage"].get(key, []):
            problems.append(f"{key} is not that of lineage")
    return problems + labels_problems(found["labels"], artifacts.specs_from_json(found["outputs"]))


def labels_problems(labels: Sequence[str], outputs: Sequence[TensorSpec]) -> list[str]:
    """Why labels do not fit the outputs: none has one value a label (two labels also go with one value)."""
    broken = [i for i, label in enumerate(labels, 1) if "\n" in label or "\r" in label]
    if broken:
        return [f"label {broken[0]} holds a line break"]
    sizes = [spec.shape[-1] if len(spec.shape) > 1 else 1 for spec in outputs]
    if not labels or None in sizes or len(labels) in sizes or (len(labels) == 2 and 1 in sizes):
        return []
    shown = ", ".join(f"{spec.name!r} has {size}" for spec, size in zip(outputs, sizes, strict=True))
    return [f"{len(labels)} labels do not fit the outputs: {shown} value(s)"]

"""manifest.json: what is in a package, as data. The schema is `edgedl/schemas/package_manifest.json`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from edgedl import artifacts, data
from edgedl.packaging import schema
from edgedl.packaging.card import Card
from edgedl.types import Artifact, ArtifactInfo, Lineage, Target, TensorSpec, to_json

NAME = "manifest.json"
SIGNATURE = "manifest.intoto.jsonl"
LABELS = "labels.txt"
PREPROCESSING = "preprocessing.json"
REPORT = "report.json"
VERSION = "1.0"
MOST_PROBLEMS = 10
MOST_DIGITS = 20  # of a whole number: those of 64 bits


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a manifest says beside the artifact: of the package, its evidence and what it is for."""

    name: str
    version: str
    golden: Mapping[str, Any]
    runtime: Mapping[str, Any]
    logits: Collection[str] = ()  # outputs that are no probabilities
    targets: Sequence[Target] = ()
    results: Mapping[str, Any] | None = None
    card: Card = field(default_factory=Card)


def draft(artifact: Artifact, info: ArtifactInfo, facts: Facts) -> dict[str, Any]:
    """All of the manifest but `files` and `package`."""
    found: dict[str, Any] = to_json({
        "manifest_version": VERSION,
        "name": facts.name,
        "version": facts.version,
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
        "postprocessing": postprocessing(artifact.outputs, artifact.lineage.labels, facts.logits),
        "golden": facts.golden,
        "runtime": facts.runtime,
        "ops": operators(info),
        "targets": [_target(target, artifact.format) for target in facts.targets],
        "results": facts.results,
        "license": facts.card.license,
        "card": {"purpose": facts.card.purpose, "data": facts.card.data, "limits": facts.card.limits},
        "report": REPORT if facts.results else None,
        "lineage": _lineage(artifact.lineage),
    })  # fmt: skip
    return found


def _lineage(lineage: Lineage) -> dict[str, Any]:
    """All but which samples it was calibrated on: the sidecar has them, and every app would carry the list."""
    found: dict[str, Any] = to_json(lineage)
    del found["calibration_hashes"]
    return found | {"calibration_samples": len(found.pop("calibration_ids"))}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): data.file_sha256(path) for path in files}


def postprocessing(
    outputs: Sequence[TensorSpec], labels: Sequence[str], logits: Collection[str]
) -> list[dict[str, Any]]:
    """What the app does with real-valued outputs: the class is the largest of as many values as there are labels.

    One value for two labels is the probability of the second, or its logit, which is 0 at a probability of one half.
    """
    steps: list[dict[str, Any]] = []
    for spec in outputs:
        values = spec.shape[-1] if len(spec.shape) > 1 else None
        if labels and values == len(labels):
            steps.append({"output": spec.name, "op": "argmax", "axis": -1})
        elif len(labels) == 2 and values == 1:
            steps.append({"output": spec.name, "op": "threshold", "above": 0.0 if spec.name in logits else 0.5})
    return steps


def operators(info: ArtifactInfo) -> list[dict[str, Any]]:
    """The operators of the artifact with their versions and how many there are."""
    counted = Counter((op.name, op.version) for op in info.ops)
    rows = sorted(counted.items(), key=lambda row: (row[0][0], row[0][1] or 0))
    return [{"name": name, "version": version, "count": count} for (name, version), count in rows]


def _target(target: Target, format_: str) -> dict[str, Any]:
    """What the app's side needs of a device profile: its accelerator, and the runtimes that take the format."""
    runtimes = [
        {"name": r.name, "minimum": r.minimum, "resolver": r.resolver, "fallback": r.fallback}
        for r in target.runtimes
        if r.format in (None, format_)
    ]
    return {"id": target.id, "name": target.name, "accelerator": target.accelerator, "runtimes": runtimes}


def write(value: Any, path: Path) -> None:
    """JSON as every file of a package has it: on one line, since it travels in every app."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def locate(tree: Path) -> tuple[Path | None, list[str]]:
    """The folder of an unpacked package that holds the content: the one with a manifest; or why there is none."""
    found = sorted(tree.rglob(NAME))
    if len(found) == 1 and found[0].is_file():
        return found[0].parent, []
    if not found:
        return None, [f"{NAME} is missing"]
    return None, [f"{len(found)} files are called {NAME}, one is allowed"]


def read(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest in the folder of the content, and what does not hold in it, a line each."""
    try:
        found = _loaded((folder / NAME).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        return {}, [f"{NAME} is not readable as JSON: {e}"]
    said = found.get("manifest_version") if isinstance(found, dict) else None
    if isinstance(said, str) and said.partition(".")[0] != VERSION.partition(".")[0]:
        return {}, [f"{NAME} has version {said[:20]!r}, this edgedl reads 1.x; upgrade edgedl"]
    problems = schema.problems(found, schema.load("package_manifest")) or _contradictions(found)
    return found, [f"{NAME}: {p}" for p in problems[:MOST_PROBLEMS]]


def parse(text: bytes) -> dict[str, Any] | None:
    """A manifest that follows the schema, else None."""
    try:
        found = _loaded(text)
    except (ValueError, RecursionError):
        return None
    return None if schema.problems(found, schema.load("package_manifest")) else found


def _loaded(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, RecursionError; also for what is no number of JSON or has no end."""
    return json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_real)


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        message = f"a number of {len(text)} digits"
        raise ValueError(message)
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:40])


def _refuse(text: str) -> NoReturn:
    message = f"{text} is no number that can be read"
    raise ValueError(message)


def _contradictions(found: dict[str, Any]) -> list[str]:
    """What the parts of a manifest that follows the schema say against each other."""
    golden, files = found["golden"], found["files"]
    problems = []
    others = [file for one in golden["runtimes"].values() for file in one["outputs"].values()]
    named = [
        found["artifact"]["file"],
        *golden["inputs"].values(),
        *golden["outputs"].values(),
        *others,
        found["report"],
    ]
    problems += [f"{file[:80]!r} is not among the files" for file in named if file is not None and file not in files]
    if files.get(found["artifact"]["file"]) != found["artifact"]["sha256"]:
        problems.append("artifact.sha256 is not the one among the files")
    for side, parts in (("inputs", ("inputs",)), ("outputs", ("outputs", "tolerance"))):
        names = sorted(spec["name"] for spec in found[side])
        wrong = [part for part in parts if sorted(golden[part]) != names]
        problems += [f"golden.{part} is for {sorted(golden[part])}, {side} are {names}" for part in wrong]
    outputs = sorted(spec["name"] for spec in found["outputs"])
    for name, one in golden["runtimes"].items():
        wrong = [part for part in ("outputs", "tolerance") if sorted(one[part]) != outputs]
        at = f"golden.runtimes.{name[:80]!r}"
        problems += [f"{at}.{part} is for {sorted(one[part])}, outputs are {outputs}" for part in wrong]
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

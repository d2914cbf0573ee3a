"""What is in a file: a model or an artifact, and what another one has instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl import artifacts, contract, model_file
from edgedl.contract.op_versions import check_versions
from edgedl.types import Target, to_json

COMPARED = ("format", "scheme", "size_bytes", "compressed_bytes", "parameters", "macs", "inputs", "outputs")


def inspect(
    path: Path,
    *,
    target: Target | None,
    pins: Mapping[str, str] | None = None,
    trust: bool = False,
    custom_objects: str | None = None,
) -> dict[str, Any]:
    """JSON-able: `kind` "artifact" or "model", then its facts; for an artifact on a target, the static checks.

    `pins` are the releases of runtimes that its operators are checked against, in place of the target's.
    """
    if artifacts.format_of(path) is None:
        model = model_file.open_model(str(path), trust=trust, custom_objects=custom_objects)
        return {"kind": "model", "path": str(path), "size_bytes": _size_bytes(path), **model.facts}
    artifact, info = artifacts.read(path)
    found = {"kind": "artifact", **to_json(info), **to_json(artifact)}
    checks = contract.static_checks(target, artifact, info, pins) if target else []
    if pins and not target:
        checks = [check_versions(info, pins, target=None)]
    if checks:
        found["checks"] = to_json(checks)
    return found


def difference(found: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What changes from the file inspected first to the second: `facts` as [before, after], `ops` as counts by name.

    A model, or a file whose operators cannot be read, has no counts to compare.
    """
    facts = {
        key: [found.get(key), other.get(key)]
        for key in COMPARED
        if (key in found or key in other) and found.get(key) != other.get(key)
    }
    before, after = (Counter(op["name"] for op in f.get("ops", ())) for f in (found, other))
    changed = [name for name in sorted(before | after) if before and after and before[name] != after[name]]
    return {"path": other["path"], "facts": facts, "ops": {name: [before[name], after[name]] for name in changed}}


def _size_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size

"""The bill of materials: CycloneDX 1.6 for machine learning (ECMA-424), sbom.cdx.json.

Without a date and with an identity that follows from the content, so that the same package has the same one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

FILE = "sbom.cdx.json"
VERSION = "1.6"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:edgedl:package:v1")
DATA, PARENT = "calibration-data", "parent-model"


def build(found: Mapping[str, Any]) -> dict[str, Any]:
    """The bill of materials of a package, from its manifest."""
    identity = f"{found['name']} {found['version']} {found['artifact']['sha256']}"
    tools = [
        {"type": "application" if name == "edgedl" else "library", "name": name, "version": version}
        for name, version in sorted(found["lineage"].get("versions", {}).items())
    ]
    runtime = {
        "type": "library",
        "bom-ref": "runtime",
        "name": found["runtime"]["name"],
        "version": found["runtime"]["version"],
        "scope": "optional",
        "description": "Gave the golden outputs; the app brings a runtime of its own.",
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, identity)}",
        "version": 1,
        "metadata": {"tools": {"components": tools}, "component": _model(found)},
        "components": [*_data(found), runtime],
        "dependencies": [{"ref": "model", "dependsOn": [c["bom-ref"] for c in [*_data(found), runtime]]}],
    }


def _model(found: Mapping[str, Any]) -> dict[str, Any]:
    lineage, artifact = found["lineage"], found["artifact"]
    stated = {
        "format": artifact["format"],
        "scheme": artifact["scheme"],
        "recipe": lineage.get("recipe"),
        "seed": str(lineage.get("seed", 0)),
    }
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": found["name"],
        "version": found["version"],
        "hashes": [_sha256(artifact["sha256"])],
        "modelCard": _card(found),
        "properties": [{"name": f"edgedl:{key}", "value": value} for key, value in stated.items() if value],
    }
    if found["license"]:
        model["licenses"] = [{"expression": found["license"]}]
    if parent := lineage.get("model_sha256"):
        ancestor = {"type": "machine-learning-model", "bom-ref": PARENT, "name": PARENT, "hashes": [_sha256(parent)]}
        model["pedigree"] = {"ancestors": [ancestor]}
    return model


def _card(found: Mapping[str, Any]) -> dict[str, Any]:
    card, datasets = found["card"], [{"ref": part["bom-ref"]} for part in _data(found)]
    considerations = {
        "useCases": [card["purpose"]] if card["purpose"] else [],
        "technicalLimitations": [card["limits"]] if card["limits"] else [],
    }
    parameters = {side: [{"format": _format(spec)} for spec in found[side]] for side in ("inputs", "outputs")}
    return {
        "modelParameters": parameters | ({"datasets": datasets} if datasets else {}),
        "quantitativeAnalysis": {"performanceMetrics": _metrics(found["results"])},
        "considerations": {key: value for key, value in considerations.items() if value},
    }


def _metrics(results: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Every figure with its method and target in the name: CycloneDX has no place for them."""
    if results is None:
        return []
    figures = []
    for check in results["checks"]:
        if check["measured"] is None:
            continue
        kind = " ".join(filter(None, (check["name"], check.get("unit"), f"({check['method']})")))
        row: dict[str, Any] = {"type": kind, "value": repr(check["measured"])}
        if check.get("target"):
            row["slice"] = f"target {check['target']}"
        if check.get("low") is not None and check.get("high") is not None:
            row["confidenceInterval"] = {"lowerBound": repr(check["low"]), "upperBound": repr(check["high"])}
        figures.append(row)
    classes = [("recall", f"class {row['label']}", row["recall"]) for row in results["classes"]]
    name = (results["metric"] or {}).get("name", "metric")
    parts = classes + [(name, f"slice {row['slice']}", row["value"]) for row in results["slices"]]
    return figures + [
        {"type": kind, "slice": part, "value": repr(value)} for kind, part, value in parts if value is not None
    ]


def _data(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data that the artifact was calibrated on, where it was."""
    known = found["lineage"].get("data_sha256")
    said = found["card"]["data"]
    if not known and not said:
        return []
    part: dict[str, Any] = {"type": "data", "bom-ref": DATA, "name": DATA}
    if known:
        part["hashes"] = [_sha256(known)]
    if said:
        part["description"] = said
    return [part]


def _format(spec: Mapping[str, Any]) -> str:
    shape = ", ".join("any" if n is None else str(n) for n in spec["shape"])
    return f"{spec['name']}: {spec['dtype']} ({shape})"


def _sha256(value: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": value}

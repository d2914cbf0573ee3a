"""What a package tells of its model: manifest, model card, bill of materials, in agreement with each other."""

import json

import jsonschema
import pytest
from packages import manifest_of, report_of, text_of

from edgedl import packaging, pipeline, reporting
from edgedl.errors import InputError
from edgedl.packaging import bom, card, manifest, schema
from edgedl.reporting.text import ABSENT

CARD = """
purpose = "Tells three shapes apart."
data = "Drawings of 20 people."
limits = "Not for photographs."
license = "Apache-2.0 WITH LLVM-exception"
"""


@pytest.fixture(scope="module")
def package(tflites, tmp_path_factory):
    """int8.tflite with labels, a report, a card and a target."""
    folder = tmp_path_factory.mktemp("evidence")
    artifact = tflites / "int8.tflite"
    (folder / "l.txt").write_text("round\nsq|uare\nother\n")
    (folder / "card.toml").write_text(CARD)
    (folder / "r.json").write_text(json.dumps(reporting.as_json(report_of(artifact), details=True)))
    (made,) = pipeline.package(
        artifact, platforms=["zip"], out=folder / "out", labels=folder / "l.txt", report=folder / "r.json",
        card=folder / "card.toml", targets=["pixel-8", "nucleo-h743zi2"],
    )  # fmt: skip
    return made


def test_manifest_carries_the_evidence(package):
    found = manifest_of(package)
    jsonschema.Draft202012Validator(schema.load("package_manifest")).validate(found)
    assert packaging.verify(package)["findings"] == []
    results = found["results"]
    assert (results["verdict"], results["samples"], results["data_sha256"]) == ("unchecked", 40, "d" * 64)
    assert results["classes"][1] == {"label": "sq|uare", "support": 12, "recall": 0.75, "precision": 0.5, "f1": 0.6}
    assert results["slices"] == [{"slice": "night", "samples": 9, "value": 0.7}]
    assert {c["name"]: c["method"] for c in results["checks"]}["arena_bytes"] == "emulated"
    assert found["license"] == "Apache-2.0 WITH LLVM-exception"
    assert found["card"] == {
        "purpose": "Tells three shapes apart.", "data": "Drawings of 20 people.", "limits": "Not for photographs.",
    }  # fmt: skip
    assert found["postprocessing"] == [{"output": found["outputs"][0]["name"], "op": "argmax", "axis": -1}]
    assert {op["name"] for op in found["ops"]} == {"CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"}
    assert [t["id"] for t in found["targets"]] == ["pixel-8", "nucleo-h743zi2"]
    assert {r["name"] for t in found["targets"] for r in t["runtimes"]} == {"litert", "tflm"}


def test_card_says_what_is_known(package):
    text = text_of(package, "MODEL_CARD.md")
    for line in (
        "# int8 1.0.0", "Tells three shapes apart.", "Drawings of 20 people.", "Not for photographs.",
        "License: Apache-2.0 WITH LLVM-exception", "Measured on `d.npz` against `m.keras`: unchecked.",
        "| accuracy_drop | 1.00 pp [-1.00, 3.00] | measured-host |  | pass |",
        "| arena_bytes | 2.42 kB | emulated | nucleo | info |",
        f"| latency_ms | {ABSENT} | static | nucleo | unchecked |",
        "| sq\\|uare | 12 | 75.00 % | 50.00 % | 60.00 % |", "| night | 9 | 70.00 % |",
        "3 labels: round, sq|uare, other.", "argmax (output", "| input | `image` | int8 | any, 8, 8, 1 |",
    ):  # fmt: skip
        assert line in text, line
    assert text.index("| other |") < text.index("| sq\\|uare |") < text.index("| round |")  # the worst first
    assert "\n\n\n" not in text


def test_card_says_what_is_not_known(tflites, tmp_path):
    (made,) = pipeline.package(tflites / "float.tflite", platforms=["zip"], out=tmp_path)
    text, found = text_of(made, "MODEL_CARD.md"), manifest_of(made)
    assert text.count("Not stated; say it in a card file: `edgedl package --card CARD.toml`.") == 4
    assert "Not validated; name a validation: `edgedl package --report REPORT.json`." in text
    assert (found["results"], found["license"], found["report"], found["targets"]) == (None, None, None, [])
    assert found["postprocessing"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("purpos = 'x'", r"card\.toml: unknown key 'purpos' \(did you mean 'purpose'\?\); allowed: purpose, data"),
        ("purpose = 3", r"card\.toml: purpose must be a string, got 3"),
        ("license = 'do what you want!'", r"card\.toml: license must be an SPDX expression, such as Apache-2\.0"),
        ("license = ''", r"license must be an SPDX expression"),
        ("purpose", r"card\.toml: is no TOML"),
    ],
)
def test_card_file_that_is_none_is_refused(tflites, tmp_path, text, message):
    (tmp_path / "card.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        pipeline.package(tflites / "float.tflite", platforms=["zip"], out=tmp_path / "out", card=tmp_path / "card.toml")
    assert not (tmp_path / "out").exists()


def _validate_bom(text):
    json_validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="needs: pip install 'cyclonedx-python-lib[json-validation]'"
    )
    from cyclonedx.schema import SchemaVersion

    error = json_validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, str(error)[:500]


def test_bill_of_materials_follows_cyclonedx(package, tflites, tmp_path):
    text = text_of(package, "sbom.cdx.json")
    _validate_bom(text)
    (bare,) = pipeline.package(tflites / "float.tflite", platforms=["zip"], out=tmp_path)
    _validate_bom(text_of(bare, "sbom.cdx.json"))
    found = json.loads(text)
    model = found["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "int8", "1.0.0")
    assert model["hashes"] == [{"alg": "SHA-256", "content": manifest_of(package)["artifact"]["sha256"]}]
    assert model["licenses"] == [{"expression": "Apache-2.0 WITH LLVM-exception"}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "arena_bytes bytes (emulated)", "value": "2416", "slice": "target nucleo"} in metrics
    assert {"type": "recall", "slice": "class round", "value": "0.9"} in metrics
    assert {"type": "accuracy", "slice": "slice night", "value": "0.7"} in metrics
    assert not any(m["type"].startswith("latency_ms") for m in metrics)  # what was not measured
    assert "timestamp" not in found["metadata"]
    assert json.loads(text_of(bare, "sbom.cdx.json"))["serialNumber"] != found["serialNumber"]


def test_bill_of_materials_has_data_parent_and_tools(package):
    found = manifest_of(package)
    found["lineage"] |= {"model_sha256": "a" * 64, "data_sha256": "b" * 64, "versions": {"edgedl": "1", "keras": "3"}}
    made = bom.build(found)
    _validate_bom(json.dumps(made))
    model = made["metadata"]["component"]
    assert model["pedigree"]["ancestors"][0]["hashes"][0]["content"] == "a" * 64
    assert made["components"][0]["hashes"][0]["content"] == "b" * 64
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": made["components"][0]["bom-ref"]}]
    tools = {t["name"]: t["type"] for t in made["metadata"]["tools"]["components"]}
    assert tools == {"edgedl": "application", "keras": "library"}


def test_files_of_every_platform_are_those_that_the_manifest_names(package):
    found = manifest_of(package)
    assert {bom.FILE, card.FILE, manifest.LABELS, manifest.PREPROCESSING, manifest.REPORT} <= set(found["files"])

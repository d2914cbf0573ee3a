"""The shipped JSON Schemas: valid, consistent with the nouns, and strict."""

from __future__ import annotations

import copy
import dataclasses
import json
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from edgedl import devices, plugins, reporting, targets, types
from edgedl.cli import COMMANDS
from edgedl.latency.prediction import Prediction
from edgedl.stepwise import Row
from edgedl.types import Artifact, Check, Lineage, Method, Report, TensorSpec, Verdict, to_json

SCHEMAS = {
    Path(str(file)).stem: json.loads(file.read_text(encoding="utf-8"))
    for file in files("edgedl").joinpath("schemas").iterdir()
    if file.name.endswith(".json")
}
SHA = "0123456789abcdef" * 4
TENSOR = TensorSpec(name="image", dtype="int8", shape=(1, 8, 8, None), scale=(0.5,), zero_point=(-128,))
LINEAGE = Lineage(
    model_sha256=SHA,
    calibration_ids=(3, 1),
    preprocessing=({"op": "cast"},),
    labels=("a", "b"),
    versions={"keras": "3"},
)
ARTIFACT = Artifact(
    path=Path("out/int8.tflite"), format="tflite", scheme="static_wi8_ai8", sha256=SHA,
    size_bytes=9, compressed_bytes=8,
    inputs=(TENSOR,), outputs=(TENSOR,), lineage=LINEAGE, notes=("4 tensors stay float",),
)  # fmt: skip
CHECK = Check(name="size_bytes", measured=9, limit=10, unit="bytes", method=Method.STATIC, verdict=Verdict.PASS)
REPORT = Report(
    artifact="int8.tflite", reference="m.keras", data="d.npz", targets=("host",), checks=(CHECK,),
    details={
        "metric": {"name": "accuracy", "unit": "fraction", "higher_is_better": True, "output": "probabilities"},
        "accuracy": {"reference": {"value": 0.9, "low": 0.8, "high": 1.0}, "artifact": {"value": 0.9},
                     "drop": {"value": 0.0, "low": -0.1, "high": 0.1, "confidence": 0.95}, "samples": 40},
        "confusion": {"labels": ["a", "b"], "reference": [[20, 0], [4, 16]], "artifact": [[20, 0], [4, 16]]},
        "per_class": [{"label": "a", "support": 20, "artifact": {},
                       "reference": {"precision": 0.8, "recall": 1.0, "f1": 0.9}}],
        "slices": [{"slice": "night", "samples": 7, "reference": 0.9, "artifact": 0.8, "drop": 0.1}],
        "parity": [{"output": "probabilities", "max_abs": 0.1, "mean_abs": 0.01, "max_lsb": 2, "agreement": 1.0}],
        "sizes": [{"name": "int8.tflite", "role": "artifact", "format": "tflite", "scheme": "fp32",
                   "size_bytes": 9, "compressed_bytes": 8}],
        "latency": [{"name": "int8.tflite", "runtime": "litert", "median_ms": 0.1, "p90_ms": 0.2, "low": 0.1,
                     "high": 0.2, "method": "measured-host", "threads": 1}],
        "machine": {"cpu": {"cores": 2}}, "lineage": to_json(LINEAGE), "notes": ["n"],
    },
)  # fmt: skip
ROW = {
    "artifact": "int8.tflite", "format": "tflite", "runtime": "litert", "target": None, "threads": 1, "load_ms": 1.0,
    "first_inference_ms": 0.5, "latency_ms": 0.1, "latency_p90_ms": 0.2, "spread_ms": [0.1, 0.2],
    "peak_rss_bytes": 10**7, "method": "measured-host", "repeats": 100, "notes": [],
}  # fmt: skip
COUNTED = {
    "artifact": "int8.tflite", "format": "tflite", "runtime": "litert", "target": "raspberry-pi-4", "threads": 1,
    "latency_ms": None, "method": "emulated", "instructions": 9, "instruction_classes": {"simd_fp": 9}, "notes": [],
    "core": "cortex-a72", "emulator": "qemu-aarch64 7", "runtime_version": "litert 2", "inference": 6, "device": "d",
}  # fmt: skip
PREDICTED = to_json(Prediction(model="m", latency_ms=2.0, low=1.5, high=3.0, macs_per_clock_ms=2.5, target="t",
                               runtime="tflm@2.3", core="cortex-m4", clock_hz=80e6, basis="4 figures"))  # fmt: skip
MANIFEST = {
    "manifest_version": "1.0", "name": "digits", "version": "1.0.0",
    "artifact": {"file": "model.tflite", "format": "tflite", "scheme": "fp32", "sha256": SHA,
                 "size_bytes": 9, "compressed_bytes": 8},
    "inputs": [to_json(TENSOR)], "outputs": [to_json(TENSOR)], "labels": ["a"],
    "preprocessing": [{"op": "cast"}], "embedded": [],
    "golden": {"inputs": {"image": "golden/image.npy"}, "outputs": {"probabilities": "golden/probabilities.npy"},
               "tolerance": {"probabilities": {"unit": "lsb", "value": 1}}, "samples": 2, "source": "random",
               "runtimes": {"x": {"version": "1", "outputs": {"probabilities": "golden/x.npy"},
                                  "tolerance": {"probabilities": {"unit": "lsb", "value": 3}}}}},
    "files": {"model.tflite": SHA}, "runtime": {"name": "litert", "minimum": "2.3.0"}, "report": None,
    "lineage": to_json(LINEAGE), "postprocessing": [{"output": "probabilities", "op": "argmax", "axis": -1}],
    "ops": [{"name": "CONV_2D", "version": 3, "count": 2}], "license": "MIT",
    "targets": [{"id": "pixel-8", "name": "Pixel 8", "accelerator": {"kind": "gpu", "name": "Mali"},
                 "runtimes": [{"name": "litert", "minimum": None, "resolver": "gpu", "fallback": ["xnnpack"]}]}],
    "results": {"data": "d.npz", "data_sha256": None, "reference": "m.keras", "verdict": "pass", "samples": 40,
                "metric": {"name": "accuracy", "unit": "fraction", "higher_is_better": True, "output": "p"},
                "checks": [to_json(CHECK)], "classes": [{"label": "a", "support": 20, "recall": 1.0}],
                "slices": [{"slice": "night", "samples": 7, "value": 0.8}]},
    "card": {"purpose": "reads digits", "data": None, "limits": None},
    "package": {"platform": "android", "files": {"AndroidManifest.xml": SHA}},
}  # fmt: skip
IDENTITY = {"package": "a.zip", "name": "digits", "version": "1.0.0", "scheme": "fp32", "sha256": SHA}
EXAMPLES = {
    "validation": [reporting.as_json(REPORT), reporting.as_json([REPORT, REPORT])],
    "report": [reporting.as_json(REPORT, details=True), reporting.as_json([REPORT, REPORT], details=True)],
    "benchmark": [{"machine": {}, "results": [ROW], "notes": [], "comparison": [
        {"artifact": "a", "reference": "b", "latency_ratio": 0.3, "size_ratio": 0.3, "comparable": True, "why": ""}]},
        {"results": [ROW, COUNTED], "gate": {
            "baseline": "b.json", "growth_limit": 0.01, "verdict": "fail", "why": "", "entries": [
                {"artifact": "a", "target": "t", "measured": 3, "baseline": 2, "growth": 0.5, "verdict": "fail",
                 "why": "more"}]}},
        {"results": [ROW], "predictions": [PREDICTED]},
        {"predictions": [PREDICTED, {**PREDICTED, "latency_ms": None, "low": None, "high": None, "refused": "far"}]}],
    "export": [to_json(ARTIFACT)],
    "inspect": [{"kind": "artifact", "format": "tflite", "inputs": [to_json(TENSOR)],
                 "ops": [to_json(types.OpInfo(index=0, name="ADD"))]}],
    "package_manifest": [MANIFEST],
    "package": [{"packages": ["out/digits-1.0.0.zip"]}],
    "verify": [{"verdict": "fail", "findings": ["model.tflite: hash differs"], "checks": [to_json(CHECK)]}],
    "keygen": [{"key": "key", "public_key": "key.pub"}],
    "diff": [{"verdict": "pass", "before": IDENTITY, "after": IDENTITY, "interface": ["inputs: x instead of y"],
              "runtimes": [{"name": "litert", "before": None, "after": "2.3.0"}],
              "ops": [{"name": "ADD", "version": None, "before": 0, "after": 1}],
              "figures": [{"name": "size_bytes", "target": None, "unit": "bytes", "method": "static", "before": 9,
                           "after": 8}], "checks": [to_json(CHECK)], "note": "## digits 1.1.0"}],
    "layers": [{"verdict": "pass", "model": "m.keras", "data": "d.npz", "artifacts": [
        {"artifact": "a.tflite", "report": reporting.as_json(REPORT), "layers": [
            {"index": 3, "op": "CONV_2D", "tensor": "x/y", "layer": "y", "sqnr_db": None, "added_noise": 0.0}],
         "notes": ["n"]}]}],
    "targets": [{"targets": [to_json(targets.load("host"))]}, to_json(targets.load("host")),
                {"file": "my.toml", "findings": ["x"]}],
    "devices": [{"devices": devices.overview()}, {"name": "qemu-arm64", "folder": "cache"}],
    "plugins": [{"plugins": [{"group": "exporters", "name": "tflite", "distribution": "edgedl-tflite",
                             "version": "0.1"}]}],
    "doctor": [{"python": "3.11.7", "problems": ["runtime x: gone"], "packages": {"keras": "3.15.1"}, "free_bytes": 7,
                "runtimes": [{"name": "x", "version": None, "why": "gone"}],
                "exporters": [{"name": "y", "schemes": []}]}],
    "plan": [{"max_drop": 0.01, "have": 360, "samples": 541, "rows": [{"changed_answers": 0.02, "samples": 541}]}],
    "train": [{"path": "m.keras", "epochs": 3, "seed": 0, "history": {"loss": [1.0, 0.5]}, "notes": []}],
    "compress": [{"path": "out.keras", "recipe": "fold", "sha256": SHA, "rows": [
        to_json(Row(step="original", parameters=9, zeros=0.0, macs=None)),
        to_json(Row(step="1 fold", parameters=7, zeros=0.5, macs=6, metric="top1", unit="fraction", score=0.9,
                    drop=-0.1, low=-0.2, high=0.1, size_bytes=9, compressed_bytes=8, latency_ms=0.1, notes=("n",)))]}],
    "demo": [{"verdict": "pass", "exit_code": 0, "folder": "demo", "steps": ["train"], "report": "demo/report.html",
              "package": "demo/package/digits-1.0.0.zip", "verified": "pass"}],
    "run": [{"verdict": "pass", "folder": "run", "report": "run/report.html", "exit_code": 0,
             "steps": ["export-1", "validate-1"]}],
    "page": [{"files": ["run/report.html"]}],
}  # fmt: skip


def _accepts(name, value):
    Draft202012Validator(SCHEMAS[name]).validate(json.loads(json.dumps(value, allow_nan=False)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_valid_and_has_an_example(name):
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == f"urn:edgedl:schema:{name}"
    assert SCHEMAS[name]["title"]
    assert EXAMPLES[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_schema_that_names_it(command):
    assert any(f"`edgedl {command} " in schema["title"] for schema in SCHEMAS.values())


@pytest.mark.parametrize(("name", "example"), [(n, e) for n, examples in EXAMPLES.items() for e in examples])
def test_schema_accepts_its_example(name, example):
    _accepts(name, example)


@pytest.mark.parametrize("name", EXAMPLES)
def test_schema_refuses_each_required_key_missing(name):
    example, schema = EXAMPLES[name][0], SCHEMAS[name]
    if "$ref" in schema:
        schema = schema["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    required = (
        schema.get("required") or schema["oneOf"][0].get("required") or SCHEMAS[name]["$defs"]["report"]["required"]
    )
    for key in required:
        with pytest.raises(ValidationError):
            _accepts(name, {k: v for k, v in example.items() if k != key})


@pytest.mark.parametrize(
    "name", ["validation", "report", "benchmark", "export", "package", "targets", "plugins", "page", "compress", "demo"]
)
def test_schema_refuses_an_unknown_key(name):
    with pytest.raises(ValidationError):
        _accepts(name, EXAMPLES[name][0] | {"surprise": 1})


def test_schemas_write_a_shared_definition_the_same_way():
    seen = {}
    for name, schema in SCHEMAS.items():
        for key, definition in schema.get("$defs", {}).items():
            if key == "report":  # with details in report.json, without in validation.json
                continue
            if name == "package_manifest":  # its readers let unknown keys in
                definition = definition | {"additionalProperties": False}
            assert seen.setdefault(key, definition) == definition, (name, key)
    assert len(seen) > 10


def test_the_demo_answers_as_run_does_and_with_its_package():
    demo, run = (SCHEMAS[name] for name in ("demo", "run"))
    assert set(demo["properties"]) - set(run["properties"]) == {"package", "verified"}
    assert set(run["required"]) <= set(demo["required"])


@pytest.mark.parametrize(
    ("key", "schema", "noun"),
    [
        ("check", "report", types.Check), ("lineage", "export", types.Lineage), ("artifact", "export", types.Artifact),
        ("tensor", "export", types.TensorSpec), ("op", "inspect", types.OpInfo), ("target", "targets", types.Target),
        ("runtime", "targets", types.TargetRuntime), ("row", "compress", Row),
    ],
)  # fmt: skip
def test_schema_definitions_have_the_fields_of_the_nouns(key, schema, noun):
    assert list(SCHEMAS[schema]["$defs"][key]["properties"]) == [f.name for f in dataclasses.fields(noun)]


def test_schema_enumerations_are_those_of_the_code():
    definitions = SCHEMAS["report"]["$defs"]
    assert definitions["verdict"]["enum"] == list(Verdict)
    assert definitions["method"]["enum"] == list(Method)
    groups = SCHEMAS["plugins"]["properties"]["plugins"]["items"]["properties"]["group"]["enum"]
    assert groups == list(plugins.GROUPS)


def test_schema_of_a_report_refuses_an_unknown_method_and_a_figure_without_one():
    good = reporting.as_json(REPORT, details=True)
    for change in ({"method": "guessed"}, {"verdict": "fine"}, {"measured": "fast"}, {"surprise": 1}):
        bad = copy.deepcopy(good)
        bad["checks"][0] |= change
        with pytest.raises(ValidationError):
            _accepts("report", bad)
    bad = copy.deepcopy(good)
    del bad["checks"][0]["method"]
    with pytest.raises(ValidationError):
        _accepts("report", bad)


def test_schema_of_a_report_types_its_details_and_lets_new_ones_in():
    good = reporting.as_json(REPORT, details=True)
    _accepts("report", good | {"details": good["details"] | {"quantile": [1]}})
    for key, value in (
        ("confusion", {"labels": ["a"], "artifact": [[0.5]]}),
        ("sizes", [{"size_bytes": 3}]),
        ("notes", "one"),
    ):
        with pytest.raises(ValidationError):
            _accepts("report", good | {"details": good["details"] | {key: value}})


def test_schema_of_a_manifest_lets_what_a_later_version_adds_in():
    _accepts("package_manifest", MANIFEST | {"signature": "...", "inputs": [to_json(TENSOR) | {"layout": "NHWC"}]})


def test_schema_of_a_manifest_is_of_the_keywords_that_verify_knows():
    from edgedl.packaging import schema

    def walk(node):
        assert set(node) <= schema.KEYWORDS | schema.TALK
        for key in ("properties", "$defs"):
            for child in node.get(key, {}).values():
                walk(child)
        for key in {"items", "additionalProperties"} & set(node):
            walk(node[key])

    walk(SCHEMAS["package_manifest"])
    found = json.loads(json.dumps(MANIFEST))
    assert schema.problems(found, SCHEMAS["package_manifest"]) == []
    assert schema.problems(found | {"manifest_version": "2.0"}, SCHEMAS["package_manifest"])


def test_schema_of_a_manifest_needs_whole_hashes():
    with pytest.raises(ValidationError):
        _accepts("package_manifest", MANIFEST | {"files": {"model.tflite": "abc"}})


def test_schema_of_the_targets_fits_every_shipped_profile():
    _accepts("targets", {"targets": [to_json(targets.load(name)) for name in targets.listing()]})

"""Packing: what is in a package, that it is the same bytes twice, and what is refused."""

import json
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from packages import manifest_of

from edgedl import artifacts, packaging, pipeline, plugins, worker
from edgedl.data import file_sha256
from edgedl.errors import InputError, PluginError, UnsupportedError
from edgedl.packaging import golden, manifest, schema
from edgedl.types import AgentRuntime, Artifact, Lineage, TensorSpec, to_json

LABELS = ("round", "square", "other")
SCALE = {"op": "scale", "factor": 0.5, "offset": 1.0}


@pytest.fixture(scope="module")
def files(tflites):
    return tflites


@pytest.fixture(scope="module")
def package(files, tmp_path_factory):
    """int8.tflite with labels, packed."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return _pack(files / "int8.tflite", folder / "out", labels=str(folder / "labels.txt"))


def _pack(artifact, out, **given):
    (path,) = pipeline.package(artifact, platforms=["zip"], out=out, **given)
    return path


def _sidecar(artifact, folder, **lineage):
    """A copy of the artifact with a sidecar of this lineage."""
    copied = Path(shutil.copy(artifact, folder))
    found, _ = artifacts.read(copied)
    found = replace(found, scheme="static_wi8_ai8", lineage=replace(found.lineage, **lineage))
    manifest.write(to_json(found), artifacts.sidecar_path(copied))
    return copied


def _array(package, name):
    with zipfile.ZipFile(package) as archive, archive.open(name) as f:
        return np.load(f)


def test_pack_manifest_says_what_the_artifact_is(files, package):
    found = manifest_of(package)
    jsonschema.Draft202012Validator(schema.load("package_manifest")).validate(found)
    content = (files / "int8.tflite").read_bytes()
    assert package.name == "int8-1.0.0.zip"
    assert found["artifact"]["file"] == "int8.tflite"
    assert found["artifact"]["size_bytes"] == len(content)
    assert found["artifact"]["sha256"] == file_sha256(files / "int8.tflite")
    (spec,) = found["inputs"]
    assert (spec["name"], spec["dtype"], spec["shape"][1:]) == ("image", "int8", [8, 8, 1])
    assert spec["scale"][0] == pytest.approx(1 / 255, rel=0.02)
    assert found["labels"] == list(LABELS)
    assert (found["runtime"]["name"], found["runtime"]["minimum"]) == ("litert", "1.0.0")
    assert found["runtime"]["minimums"].keys() == {"litert", "tflite-runtime", "tflm"}
    with zipfile.ZipFile(package) as archive:
        assert archive.read("int8.tflite") == content
        assert archive.read("labels.txt").decode() == "round\nsquare\nother\n"
        assert sorted(found["files"]) == sorted(set(archive.namelist()) - {"manifest.json"})


def test_pack_twice_gives_the_same_bytes(files, package, tmp_path):
    again = _pack(files / "int8.tflite", tmp_path / "a", labels=str(package.parents[1] / "labels.txt"))
    assert again.read_bytes() == package.read_bytes()
    other = _pack(files / "int8.tflite", tmp_path / "b", seed=1)
    assert not np.array_equal(_array(other, "golden/input_0.npy"), _array(package, "golden/input_0.npy"))


def test_pack_stores_the_model_where_it_can_be_mapped(files, package):
    with zipfile.ZipFile(package) as archive:
        entry = archive.getinfo("int8.tflite")
    header = package.read_bytes()[entry.header_offset :][:30]
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_bytes + extra_bytes
    mapped = np.memmap(package, mode="r", offset=start, shape=entry.file_size)
    assert start % 64 == 0
    assert bytes(mapped) == (files / "int8.tflite").read_bytes()


def test_pack_golden_outputs_are_what_the_artifact_gives(files, package):
    from ai_edge_litert.interpreter import Interpreter

    inputs, outputs = _array(package, "golden/input_0.npy"), _array(package, "golden/output_0.npy")
    spec = manifest_of(package)["inputs"][0]
    scale, zero_point = spec["scale"][0], spec["zero_point"][0]
    assert inputs.dtype == np.float32
    assert inputs.min() == pytest.approx((-128 - zero_point) * scale, abs=3 * scale)
    assert inputs.max() == pytest.approx((127 - zero_point) * scale, abs=3 * scale)
    model = Interpreter(str(files / "int8.tflite"))
    model.allocate_tensors()
    (into,), (out,) = model.get_input_details(), model.get_output_details()
    for sample, golden_output in zip(inputs, outputs, strict=True):
        model.set_tensor(into["index"], np.rint(sample[None] / scale + zero_point).astype(np.int8))
        model.invoke()
        codes = model.get_tensor(out["index"]).astype(np.float32)
        real = (codes - out["quantization"][1]) * out["quantization"][0]
        assert np.allclose(real[0], golden_output, atol=1e-7)
    assert len(np.unique(outputs)) > 1


def test_pack_draws_golden_inputs_from_the_data_after_its_preprocessing(files, data, tmp_path):
    step = 'op = "scale"\nfactor = 0.00390625\n'
    (tmp_path / "d.toml").write_text(
        f'data = "{data}/test.npz"\nlabels = ["a", "b", "c"]\n[[preprocess]]\nop = "cast"\ndtype = "float32"\n'
        f"[[preprocess]]\n{step}"
    )
    made = _pack(files / "int8.tflite", tmp_path / "out", data=str(tmp_path / "d.toml"), seed=3)
    found = manifest_of(made)
    assert [s["op"] for s in found["preprocessing"]] == ["cast", "scale"]
    assert found["lineage"]["preprocessing"] == found["preprocessing"]
    assert found["labels"] == ["a", "b", "c"]
    assert found["golden"]["source"] == "data"
    samples = np.load(data / "test.npz")["x"].astype(np.float32) * np.float32(0.00390625)
    drawn = _array(made, "golden/input_0.npy")
    assert len(drawn) == 4
    assert all((samples == one).all(axis=(1, 2, 3)).any() for one in drawn)
    assert packaging.verify(made)["verdict"] == "pass"


def test_pack_feeds_a_model_with_preprocessing_inside_the_raw_samples(files, data, tmp_path):
    artifact = _sidecar(files / "pixels.tflite", tmp_path, embedded=(SCALE,))
    (tmp_path / "d.toml").write_text(
        f'data = "{data}/test.npz"\n[[preprocess]]\nop = "scale"\nfactor = 0.5\noffset = 1.0\n'
    )
    made = _pack(artifact, tmp_path / "out", data=str(tmp_path / "d.toml"))
    drawn, found = _array(made, "golden/input_0.npy"), manifest_of(made)
    assert drawn.dtype == np.uint8
    assert all((np.load(data / "test.npz")["x"] == one).all(axis=(1, 2, 3)).any() for one in drawn)
    assert (found["embedded"], found["preprocessing"]) == ([SCALE], [])
    assert found["artifact"]["scheme"] == "static_wi8_ai8"
    assert packaging.verify(made)["verdict"] == "pass"
    with pytest.raises(InputError, match=r"pixels.tflite: has the preprocessing .*scale.* inside.*name the \.toml"):
        _pack(artifact, tmp_path / "out", data=str(data / "test.npz"))


def test_pack_refuses_other_preprocessing_than_the_artifact_was_exported_with(files, data, tmp_path):
    artifact = _sidecar(files / "int8.tflite", tmp_path, preprocessing=(SCALE,))
    (tmp_path / "d.toml").write_text(f'data = "{data}/test.npz"\n[[preprocess]]\nop = "scale"\nfactor = 0.25\n')
    with pytest.raises(InputError, match=r"was exported with the preprocessing .*0\.5.* the data says .*0\.25"):
        _pack(artifact, tmp_path / "out", data=str(tmp_path / "d.toml"))
    made = _pack(artifact, tmp_path / "out")
    with zipfile.ZipFile(made) as archive:
        assert json.loads(archive.read("preprocessing.json")) == {"preprocessing": [SCALE], "embedded": []}


def test_pack_takes_several_inputs_and_outputs(files, tmp_path):
    made = _pack(files / "two.tflite", tmp_path, name="two-heads", version="2.1.0-rc.1")
    found = manifest_of(made)
    assert made.name == "two-heads-2.1.0-rc.1.zip"
    assert sorted(found["golden"]["inputs"]) == ["left", "right"]
    assert sorted(found["golden"]["outputs"]) == sorted(spec["name"] for spec in found["outputs"])
    assert len(found["outputs"]) == 2
    done = packaging.verify(made)
    assert done["verdict"] == "pass"
    golden_of = {f"{spec['name']}.golden" for spec in found["outputs"]}
    assert {c["name"] for c in done["checks"] if "golden" in c["name"]} == golden_of


def test_pack_needs_data_where_a_size_is_free(files, tmp_path):
    with pytest.raises(InputError, match=r"input 'image' has free sizes, \[None, None, None, 1\]; name samples"):
        _pack(files / "open.tflite", tmp_path)
    np.savez(tmp_path / "d.npz", x=np.ones((9, 6, 5, 1), np.float32))
    assert packaging.verify(_pack(files / "open.tflite", tmp_path, data=str(tmp_path / "d.npz")))["verdict"] == "pass"


@pytest.mark.parametrize("name", ["8bit", "a/b", "../up", "two words", "trailing.", "ünnamed", "x" * 65, "-x"])
def test_pack_refuses_names_that_are_none(files, tmp_path, name):
    with pytest.raises(InputError, match="is no name of a package: at most 64 letters"):
        _pack(files / "int8.tflite", tmp_path, name=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["1", "1.2", "v1.2.3", "1.02.3", "1.2.3/..", "1.2.3+x", "latest"])
def test_pack_refuses_versions_that_are_none(files, tmp_path, version):
    with pytest.raises(InputError, match=r"is no version: MAJOR\.MINOR\.PATCH is needed"):
        _pack(files / "int8.tflite", tmp_path, version=version)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\nb\n", r"2 labels do not fit the outputs: '\w+' has 3 value"),
        (b"a\n\nc\n", "line 2 is empty"),
        (b"\n", "no labels; one name a line"),
        (b"a\nb\n\xff\n", "labels cannot be read: 'utf-8'"),
    ],
)
def test_pack_refuses_labels_that_do_not_fit(files, tmp_path, text, message):
    (tmp_path / "l.txt").write_bytes(text)
    with pytest.raises(InputError, match=message):
        _pack(files / "int8.tflite", tmp_path / "out", labels=str(tmp_path / "l.txt"))
    assert not (tmp_path / "out").exists()


def test_pack_reads_labels_of_windows_and_those_of_the_artifact(files, tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\nc")
    made = _pack(files / "int8.tflite", tmp_path, labels=str(tmp_path / "l.txt"))
    assert manifest_of(made)["labels"] == ["a", "b", "c"]
    artifact = _sidecar(files / "int8.tflite", tmp_path, labels=LABELS)
    assert manifest_of(_pack(artifact, tmp_path / "own"))["labels"] == list(LABELS)


def test_labels_of_two_classes_fit_one_value():
    one, free = (TensorSpec(name="p", dtype="float32", shape=(1, n)) for n in (1, None))
    assert manifest.labels_problems(["no", "yes"], [one]) == []
    assert manifest.labels_problems(["a", "b", "c"], [free]) == []
    assert manifest.labels_problems(["a", "b", "c"], [one]) != []
    assert manifest.labels_problems(["a\nb", "c"], [one]) == ["label 1 holds a line break"]


def _report(size, model="a" * 64):
    check = {
        "name": "size_bytes", "target": None, "measured": size, "low": None, "high": None, "limit": None,
        "unit": "bytes", "method": "static", "verdict": "info", "why": "",
    }  # fmt: skip
    head = {"verdict": "pass", "artifact": "x.tflite", "reference": "x.keras", "data": "d.npz", "targets": []}
    return head | {"checks": [check], "details": {"lineage": {"model_sha256": model}}}


def test_pack_takes_the_report_of_this_artifact_alone(files, tmp_path):
    artifact = _sidecar(files / "int8.tflite", tmp_path, model_sha256="a" * 64)
    size = artifact.stat().st_size
    path = tmp_path / "r.json"
    for bad in (_report(size + 1), _report(size, "b" * 64)):
        path.write_text(json.dumps(bad))
        with pytest.raises(InputError, match=r"r\.json: is about x\.tflite, of another size or from another model"):
            _pack(artifact, tmp_path / "out", report=str(path))
    path.write_text("{}")
    with pytest.raises(InputError, match=r"r\.json: no report\.json of edgedl"):
        _pack(artifact, tmp_path / "out", report=str(path))
    path.write_text(json.dumps({"verdict": "pass", "reports": [_report(1), _report(size)]}))
    made = _pack(artifact, tmp_path / "out", report=str(path))
    assert manifest_of(made)["report"] == "report.json"
    with zipfile.ZipFile(made) as archive:
        assert json.loads(archive.read("report.json")) == json.loads(path.read_text())


def test_pack_overwrites_only_when_forced(files, tmp_path):
    made = _pack(files / "float.tflite", tmp_path / "out")
    made.write_text("precious")
    with pytest.raises(InputError, match=r"float-1\.0\.0\.zip: exists; --force overwrites it"):
        _pack(files / "float.tflite", tmp_path / "out")
    assert made.read_text() == "precious"
    assert _pack(files / "float.tflite", tmp_path / "out", force=True).stat().st_size > 1000
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["float-1.0.0.zip"]


def test_pack_refuses_a_file_or_a_folder_in_nowhere_as_output(files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file; -o names the folder"):
        _pack(files / "float.tflite", tmp_path / "file")
    with pytest.raises(InputError, match="no such folder"):
        _pack(files / "float.tflite", tmp_path / "a" / "b")


def test_pack_refuses_an_unknown_platform(files, tmp_path, cli):
    done = cli("package", files / "float.tflite", "--platform", "toaster", "-o", tmp_path / "out")
    assert done.code == 4
    assert "no plugin provides packager 'toaster'; installed: " in done.err
    assert "zip" in done.err
    assert not (tmp_path / "out").exists()


def test_pack_refuses_outputs_that_are_not_finite(files, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.full((4, 8, 8, 1), 3e38, np.float32))
    with pytest.raises(InputError, match=r"float\.tflite: output '\w+' is not finite on the golden samples"):
        _pack(files / "float.tflite", tmp_path / "out", data=str(tmp_path / "d.npz"))


def _onnx(path, kind, op="Identity", sequence=False, width=4):
    """An .onnx file of one operator from x, of this ONNX type, to y, of the same or a sequence of it."""
    onnx = pytest.importorskip("onnx", reason="needs: pip install onnx onnxruntime")
    helper, kind = onnx.helper, getattr(onnx.TensorProto, kind)
    x = helper.make_tensor_value_info("x", kind, (1, width))
    y = (helper.make_tensor_sequence_value_info if sequence else helper.make_tensor_value_info)("y", kind, (1, width))
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (
            "STRING",
            {},
            "input 'x' is string; golden samples are bool, int8, .*float64: export the model without its text",
        ),
        ("BFLOAT16", {}, "input 'x' is bfloat16; .* or with a cast to one of these"),
        (
            "FLOAT",
            {"op": "SequenceConstruct", "sequence": True},
            r"output 'y' is seq\(tensor\(float\)\); .*ZipMap part",
        ),
    ],
)
def test_pack_refuses_tensors_that_are_no_numbers_of_numpy(tmp_path, kind, given, told):
    path = _onnx(tmp_path / "m.onnx", kind, **given)
    with pytest.raises(UnsupportedError, match=rf"m\.onnx: {told}"):
        _pack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["BOOL", "FLOAT16", "DOUBLE"])
def test_pack_takes_every_number_of_numpy(tmp_path, kind):
    package = _pack(_onnx(tmp_path / "m.onnx", kind), tmp_path / "out")
    assert manifest_of(package)["inputs"][0]["dtype"] in golden.NUMBERS


@pytest.mark.parametrize(("op", "above"), [("Sigmoid", 0.5), ("Log", 0.0)])
def test_pack_tells_a_logit_from_a_probability_by_the_golden_outputs(tmp_path, op, above):
    np.savez(tmp_path / "d.npz", x=np.linspace(0.1, 0.9, 12, dtype=np.float32)[:, None])
    (tmp_path / "l.txt").write_text("no\nyes\n")
    path = _onnx(tmp_path / "m.onnx", "FLOAT", op, width=1)
    made = _pack(path, tmp_path / "out", data=str(tmp_path / "d.npz"), labels=str(tmp_path / "l.txt"))
    assert manifest_of(made)["postprocessing"] == [{"output": "y", "op": "threshold", "above": above}]


def test_golden_samples_are_few_and_small():
    artifact = replace(_artifact(), inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 300, 300, 3)),))
    assert golden.from_seed(artifact, 0).arrays["x"].shape == (1, 300, 300, 3)
    artifact = replace(_artifact(), inputs=(TensorSpec(name="x", dtype="int32", shape=(1, 20)),))
    ids = golden.from_seed(artifact, 0).arrays["x"]
    assert (ids.shape, ids.dtype, set(np.unique(ids))) == ((4, 20), np.int32, {0, 1})


def test_golden_random_inputs_are_raw_values_where_preprocessing_is_inside():
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 50, 1))
    artifact = _artifact()
    inside = replace(artifact.lineage, embedded=({"op": "scale", "factor": 1 / 255, "offset": 0.0},))
    raw = golden.from_seed(replace(artifact, inputs=(spec,), lineage=inside), 0).arrays["x"]
    assert 0 <= raw.min() < 20
    assert 235 < raw.max() <= 255


def _artifact():
    return Artifact(
        path=Path("x.tflite"), format="tflite", scheme="fp32", sha256="", size_bytes=1, compressed_bytes=1,
        inputs=(), outputs=(), lineage=Lineage(),
    )  # fmt: skip


def test_golden_difference_counts_steps_or_shares():
    quantized = TensorSpec(name="y", dtype="int8", shape=(1, 2), scale=(0.5,), zero_point=(0,))
    plain = TensorSpec(name="y", dtype="float32", shape=(1, 2))
    a, b = np.array([[1.0, 4.0]], np.float32), np.array([[1.0, 3.0]], np.float32)
    assert golden.difference(quantized, "lsb", a, b) == 2
    assert golden.difference(plain, "relative", a, b) == 0.25
    assert golden.difference(plain, "relative", a, b[:, :1]) == np.inf
    assert golden.difference(plain, "relative", a, np.array([[1.0, np.nan]], np.float32)) == np.inf
    assert golden.tolerance(quantized, "static_wi8_ai8", "litert") == {"unit": "lsb", "value": 1}
    assert (
        golden.tolerance(plain, "fp32", "litert")["value"]
        < golden.tolerance(plain, "static_wi8_ai8", "x")["value"]
        < 0.02
    )
    assert golden.tolerance(replace(plain, dtype="int64"), "fp32", "tflite-runtime") == {"unit": "lsb", "value": 0}


def test_runtime_that_does_not_start_is_passed_over_or_named(monkeypatch):
    broken = AgentRuntime(name="litert", format="x", module="m", install="pip install litert-of-x")
    working = AgentRuntime(name="onnxruntime", format="x", module="m", install="pip install onnxruntime")
    offered = {"litert": broken, "onnxruntime": working}
    versions = {"litert": None, "onnxruntime": "1.0"}
    monkeypatch.setattr(artifacts, "runtimes", lambda format_: list(offered))
    monkeypatch.setattr(plugins, "load", lambda group, name: offered[name])
    monkeypatch.setattr(
        worker, "call", lambda verb, kwargs, **_: {
            "runtimes": {n: {"version": versions[n], "why": f"ImportError: {n}"} for n in kwargs["runtimes"]}
        },
    )  # fmt: skip
    assert golden.runtime_for("x", "litert") == (working, "1.0")
    versions["onnxruntime"] = None
    with pytest.raises(PluginError, match=r"litert: ImportError: litert; onnxruntime: .*Try: pip install onnxruntime"):
        golden.runtime_for("x", "litert")

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from edgedl.errors import InputError
from edgedl.types import TensorSpec
from edgedl_onnx.describe import describe
from edgedl_onnx.runtimes import ONNXRUNTIME


def test_runtime_names_its_describe():
    assert (ONNXRUNTIME.name, ONNXRUNTIME.format, ONNXRUNTIME.module) == ("onnxruntime", "onnx", "onnxruntime")
    assert ONNXRUNTIME.describe == f"{describe.__module__}:{describe.__name__}"


def test_describe_says_what_is_in_the_file(export):
    info = describe(str(export("cnn", "static_wi8_ai8", io="int8", labels=("a", "b")).path))
    (image,) = info.inputs
    assert (image.name, image.dtype, image.shape) == ("image", "int8", (1, 12, 12, 3))
    assert 0 < image.scale[0] < 1
    assert len(image.zero_point) == 1
    assert info.outputs[0].scale == (1 / 256,)
    assert info.outputs[0].zero_point == (-128,)
    model = onnx.load(export("cnn", "static_wi8_ai8", io="int8", labels=("a", "b")).path)
    said = {"scheme": "static_wi8_ai8", "labels": ["a", "b"], "output_steps": {}, "ir_version": model.ir_version}
    assert info.metadata == said
    assert [o.name for o in info.ops].count("Conv") == 3
    assert {o.version for o in info.ops} == {17}
    assert info.weight_bytes["int8"] >= 16 * (27 + 9 + 144 + 10)


def test_a_float_output_has_the_steps_of_the_integers_it_is_made_of(export):
    softmax = {"dtype": "int8", "scale": [1 / 256], "zero_point": [-128]}
    found = describe(str(export("cnn", "static_wi8_ai8").path)).metadata["output_steps"]
    (steps,) = found.values()
    assert steps in (softmax, softmax | {"dtype": "uint8", "zero_point": [0]})
    assert describe(str(export("cnn", "fp32").path)).metadata["output_steps"] == {}


def test_quantization_is_found_in_files_of_other_tools(export, tmp_path):
    model = onnx.load(export("cnn", "static_wi8_ai8", io="uint8").path)
    said = describe(str(export("cnn", "static_wi8_ai8", io="uint8").path)).inputs
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    assert describe(str(tmp_path / "foreign.onnx")).inputs == said


@pytest.mark.parametrize(("as_nodes", "zero_point"), [(False, None), (True, None), (True, 3)])
def test_quantization_is_found_without_a_zero_point_and_in_constant_nodes(tmp_path, as_nodes, zero_point):
    values = [onnx.numpy_helper.from_array(np.float32(0.5), "s")]
    if zero_point is not None:
        values.append(onnx.numpy_helper.from_array(np.uint8(zero_point), "z"))
    nodes = [onnx.helper.make_node("Constant", [], [v.name], value=v) for v in values] if as_nodes else []
    nodes.append(onnx.helper.make_node("QuantizeLinear", ["x", *(v.name for v in values)], ["y"]))
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, ["batch", 3])
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [] if as_nodes else values)
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    (output,) = describe(str(tmp_path / "m.onnx")).outputs
    assert (output.scale, output.zero_point) == ((0.5,), (zero_point or 0,))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no JSON", "a JSON object is needed, got 'no JSON'"),
        ('["x"]', r"a JSON object is needed, got \['x'\]"),
        ('{"x": 3}', r"'x' needs \[scales, zero points\], lists of equally many numbers, scales above 0, got 3"),
        ('{"x": {"scale": [0.5]}}', r"'x' needs .*, got \{'scale': \[0.5\]\}"),
        ('{"x": [[0.5]]}', r"'x' needs .*, got \[\[0.5\]\]"),
        ('{"x": [[0.5], [0, 1]]}', r"'x' needs .*, got \[\[0.5\], \[0, 1\]\]"),
        ('{"x": [[0.5], ["a"]]}', r"'x' needs .*, got \[\[0.5\], \['a'\]\]"),
        ('{"x": [[NaN], [0]]}', r"'x' needs .*, got \[\[nan\], \[0\]\]"),
    ],
)
def test_damaged_quantization_metadata_gives_one_line(tmp_path, text, why):
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, [1, 3]) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.helper.set_model_props(model, {"edgedl.quantization": text})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=rf"m\.onnx: damaged metadata edgedl\.quantization: {why}; export it again"):
        describe(str(tmp_path / "m.onnx"))


def test_weights_in_another_file_are_refused_with_the_command_that_brings_them_in(export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = onnx.load(export("cnn").path)
    onnx.save(model, "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=200)
    with pytest.raises(InputError, match=r"m\.onnx: its weights lie in weights\.bin, .* is one file\. Store") as caught:
        describe("m.onnx")
    command = str(caught.value).partition("python -c ")[2].strip('"')
    subprocess.run([sys.executable, "-c", command], check=True)
    assert describe("whole.onnx").inputs == describe(str(export("cnn").path)).inputs


def test_free_sizes_are_none(tmp_path):
    shown = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 3]) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", shown[:1], shown[1:])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    assert describe(str(tmp_path / "m.onnx")).inputs == (TensorSpec(name="x", dtype="float32", shape=(None, 3)),)


def test_describe_needs_onnxruntime_alone_and_reads_ort_files(export):
    for result in (export("two", labels=("a",)), export("two", out="m.ort", labels=("a",))):
        code = (
            "import sys; sys.modules['onnx'] = None; import importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'onnx' else find(name, *a)\n"
            "from edgedl_onnx.describe import describe\n"
            f"info = describe({str(result.path)!r})\n"
            "print(sorted(s.name for s in info.inputs), info.ops, info.metadata['labels'])\n"
            "assert 'tensorflow' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "['ant', 'zebra'] () ['a']", done.stderr


def test_files_that_are_no_onnx_give_one_line(export, tmp_path):
    whole = export("cnn").path.read_bytes()
    flipped = bytearray(whole)
    flipped[1] ^= 0xFF
    cases = {
        "text.onnx": b"this is a text\n",
        "empty.onnx": b"",
        "truncated.onnx": whole[: len(whole) // 2],
        "flipped.onnx": bytes(flipped),
        "text.ort": b"this is a text, and a long one at that",
        "empty.ort": b"",
        "truncated.ort": export("cnn", out="m.ort").path.read_bytes()[:1000],
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: onnxruntime does not load it: \S") as caught:
            describe(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"missing\.onnx: no such file"):
        describe(str(tmp_path / "missing.onnx"))

"""NNAPI and Core ML: how many operators they leave to the CPU, for targets that name them."""

import onnx
import pytest
from onnx import TensorProto, helper

from edgedl.errors import UnsupportedError
from edgedl_onnx.mobile import figures


def write(path, *middle, batch=1):
    names = ["x", *(f"t{i}" for i in range(len(middle) - 1)), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(middle)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 4, 4, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def checks(path, *delegates):
    runtimes = [{"name": "onnxruntime", "delegates": delegates}]
    return {c.name: c for c in figures(str(path), {"id": "phone", "runtimes": runtimes}, {}, False)}


def test_operators_that_a_delegate_takes_are_not_counted(tmp_path):
    found = checks(write(tmp_path / "m.onnx", "Relu", "Sigmoid"), "nnapi", "coreml")
    assert {name: c.measured for name, c in found.items()} == {"coreml_cpu_ops": 0, "nnapi_cpu_ops": 0}
    assert found["nnapi_cpu_ops"].why == "2 of 2 operators in 1 partition(s)"


def test_one_that_it_leaves_is_named_and_splits_the_graph(tmp_path):
    found = checks(write(tmp_path / "m.onnx", "Relu", "Erf", "Relu"), "nnapi")
    assert list(found) == ["nnapi_cpu_ops"]
    assert found["nnapi_cpu_ops"].measured == 1
    assert found["nnapi_cpu_ops"].why == (
        "2 of 3 operators in 2 partition(s); not taken: ai.onnx:Erf; each change of device costs time, one partition "
        "is best"
    )


def test_free_sizes_are_not_taken(tmp_path):
    found = checks(write(tmp_path / "m.onnx", "Relu", batch="batch"), "nnapi")
    assert found["nnapi_cpu_ops"].measured == 1
    assert "1 whose sizes are not known, export with --shape" in found["nnapi_cpu_ops"].why


def test_an_ort_file_is_refused():
    with pytest.raises(UnsupportedError, match=r"m\.ort: .* on an \.onnx file"):
        checks("m.ort", "nnapi")

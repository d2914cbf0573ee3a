"""TFLM on published models: its planner to the byte, and where its kernels part from litert's builtin ones."""

import numpy as np
import pytest

pytestmark = pytest.mark.real
FILES = {
    "ic/pretrainedResnet_quant.tflite": ("2, CONV_2D", 32),
    "kws/kws_ref_model.tflite": ("", 0),
    "ad/ad01_int8.tflite": ("9, FULLY_CONNECTED", 1),
}


@pytest.mark.parametrize("name", FILES)
def test_the_planner_gives_the_head_that_tflm_allocates(shared, name):
    from edgedl_tflm import arena, graph, planner

    content = (shared / "mlperf_tiny" / name).read_bytes()
    assert planner.planned_bytes(planner.tensors(graph.read(content))) == arena.measure(content).tensors


@pytest.mark.parametrize("name", FILES)
def test_kernels_agree_or_the_operator_is_named(shared, tmp_path, name):
    from ai_edge_litert.interpreter import Interpreter

    from edgedl_tflm import agreement

    path = shared / "mlperf_tiny" / name
    interpreter = Interpreter(str(path))
    (detail,) = interpreter.get_input_details()
    codes = np.random.default_rng(0).integers(-128, 128, (16, *detail["shape"][1:])).astype(np.int8)
    np.save(tmp_path / "x.npy", codes)
    found = agreement.compare(path, {detail["name"]: tmp_path / "x.npy"}, straight=True)
    operator, largest = FILES[name]
    assert found.largest <= largest
    assert set(found.operators) == ({operator} if operator else set())
    assert (operator in found.as_text()) is True

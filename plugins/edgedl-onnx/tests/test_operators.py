from __future__ import annotations

import math
from operator import add, mul, truediv

import numpy as np
import onnx
import pytest

from edgedl.agent import OnnxModel
from edgedl.errors import UnsupportedError
from edgedl_onnx.convert import _gelu_exact, _gelu_tanh


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("lstm", "fp32"),
        ("lstm", "dynamic_wi8_afp32"),
        ("lstm_unrolled", "static_wi8_ai8"),
        ("gru", "fp32"),
        ("gru", "fp16"),
        ("gru_unrolled", "static_wi8_ai8"),
        ("gelu", "fp32"),
        ("gelu", "static_wi8_ai8"),
        ("conv1d", "fp32"),
        ("conv1d", "static_wi8_ai8"),
        ("attention", "fp32"),
        ("attention", "static_wi8_ai8"),
        ("hard_silu", "static_wi8_ai8"),
        ("hard_sigmoid", "fp32"),
        ("tokens", "static_wi8_ai8"),
        ("decoder", "static_wi8_ai8"),
    ],
)
def test_layer_goes_through_and_agrees(export, name, scheme):
    result = export(name, scheme)
    last = result.notes[-1]
    assert last.startswith("agrees with the TFLite file on 16 random inputs")
    assert float(last.rpartition(" ")[2]) <= (1e-4 if scheme in ("fp32", "fp16") else 0.1)


def test_lstm_forgets_one_sample_before_the_next(export):
    model = OnnxModel({"artifact": str(export("lstm").path)}, {})
    values = np.random.default_rng(0).standard_normal((1, 12, 6)).astype(np.float32)
    answers = []
    for _ in range(2):
        model.feed([values])
        answers.append(model.invoke()[0])
    assert np.array_equal(*answers)


def test_int8_attention_runs_on_integer_kernels(export):
    assert any(n.startswith("8 of 8 ") for n in export("attention", "static_wi8_ai8").notes)


@pytest.mark.parametrize(("formula", "at_one"), [(_gelu_exact, 0.8413447460685429), (_gelu_tanh, 0.8411919906082768)])
def test_gelu_formulas(formula, at_one):
    # x * Phi(x) with Phi(1) of a table of the normal distribution, and its tanh form
    ops = {"Erf": math.erf, "Tanh": math.tanh, "Div": truediv, "Mul": mul, "Add": add}
    got = formula(lambda kind, *inputs: ops[kind](*inputs), lambda value: value, 1.0)
    assert got == pytest.approx(at_one, abs=1e-12)


def test_an_activation_that_tf2onnx_drops_is_refused_by_name(export):
    with pytest.raises(UnsupportedError, match=r"cannot do these TFLite ops: CONV_2D\+RELU_N1_TO_1 \(1\)"):
        export("hard_tanh")


def test_an_op_of_a_newer_opset_is_refused_by_name(export):
    with pytest.raises(UnsupportedError, match=r"ops: HardSwish \(1\) \(ONNX opset 13\)"):
        export("hard_silu", opset=13)


def test_nothing_but_onnx_ops_is_in_the_file(export):
    model = onnx.load(export("attention").path)
    assert {n.domain for n in model.graph.node} == {""}


def test_tf2onnx_logs_and_warnings_stay_inside(export, caplog, recwarn):
    export("gelu")
    with pytest.raises(UnsupportedError):
        export("hard_silu", opset=13)  # tf2onnx logs an error, and its interpreter warns
    assert not caplog.records
    assert not recwarn.list

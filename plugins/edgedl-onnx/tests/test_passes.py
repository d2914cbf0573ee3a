"""The graph passes on ONNX graphs written by hand, against onnxruntime running them as they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgedl.agent import saturates
from edgedl_onnx import dynamic, graphs, qdq, unsigned

F = TensorProto.FLOAT


def model(nodes, inputs, outputs, values, opset=17):
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()]
    shown = [[helper.make_tensor_value_info(n, t, s) for n, t, s in each] for each in (inputs, outputs)]
    graph = helper.make_graph([helper.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in nodes], "g", *shown)
    graph.initializer.extend(constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto, **feeds):
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def ops(proto):
    return [n.op_type for n in proto.graph.node]


Q, DQ = "QuantizeLinear", "DequantizeLinear"
SCALES = {"s": np.float32(0.05), "z": np.int8(-7)}


def test_shift_moves_whole_groups_and_changes_no_value():
    proto = model(
        [
            (Q, ["x", "s", "z"], ["xq"]),
            ("Transpose", ["xq"], ["xt"], {"perm": [1, 0]}),
            ("Concat", ["xt", "c"], ["both"], {"axis": 0}),
            (DQ, ["both", "s", "z"], ["y"]),
        ],
        [("x", F, [2, 3])],
        [("y", F, [5, 2])],
        SCALES | {"c": np.array([[-128, 127], [0, -7]], np.int8)},
    )
    x = np.random.default_rng(0).normal(0, 5, (2, 3)).astype(np.float32)
    before = run(proto, x=x)
    unsigned.shift_activations(proto)
    assert {a.dtype for a in graphs.arrays(proto.graph).values() if a.size == 4} == {np.dtype(np.uint8)}
    assert graphs.arrays(proto.graph)["z:unsigned"] == 121
    np.testing.assert_array_equal(run(proto, x=x), before)


def test_shift_keeps_int8_inputs_and_outputs_with_a_conversion_beside_them():
    proto = model(
        [("Transpose", ["x"], ["t"], {"perm": [1, 0]}), (DQ, ["t", "s", "z"], ["r"]), (Q, ["r", "s", "z"], ["y"])],
        [("x", TensorProto.INT8, [2, 3])],
        [("y", TensorProto.INT8, [3, 2])],
        SCALES,
    )
    x = np.array([[-128, -7, 0], [1, 100, 127]], np.int8)
    unsigned.shift_activations(proto)
    assert ops(proto).count(Q) == 3  # after the input, the old one, before the output
    np.testing.assert_array_equal(run(proto, x=x)[0], x.T)


def test_shift_leaves_weights_and_what_other_ops_compute_on():
    proto = model(
        [
            (DQ, ["w", "s", "zero"], ["wr"]),
            ("MatMul", ["x", "wr"], ["y"]),
            (Q, ["x", "s", "z"], ["q"]),
            ("Abs", ["q"], ["a"]),
            (DQ, ["a", "s", "z"], ["b"]),
        ],
        [("x", F, [1, 2])],
        [("y", F, [1, 2]), ("b", F, [1, 2])],
        SCALES | {"w": np.array([[1, 2], [3, 4]], np.int8), "zero": np.int8(0)},
    )
    before = proto.SerializeToString()
    unsigned.shift_activations(proto)
    assert proto.SerializeToString() == before


def test_16_bit_activations_become_unsigned_too():
    proto = model(
        [(Q, ["x", "s", "z"], ["q"]), (DQ, ["q", "s", "z"], ["y"])],
        [("x", F, [2])],
        [("y", F, [2])],
        {"s": np.float32(0.01), "z": np.int16(5)},
    )
    unsigned.shift_activations(proto)
    qdq.mark_16_bit(proto)
    assert graphs.arrays(proto.graph)["z:unsigned"] == 32773
    assert {n.domain for n in proto.graph.node} == {"com.microsoft"}
    options = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    y = options.run(None, {"x": np.array([1.234, -3.0], np.float32)})[0]
    assert np.allclose(y, [1.23, -3.0], atol=1e-6)


def clamped(kind, bounds, zero_point, weight=1.0):
    values = {"s": np.float32(0.1), "z": np.uint8(zero_point), "w": np.full((2, 2), weight, np.float32)}
    values |= {name: np.float32(v) for name, v in bounds.items()}
    return model(
        [
            ("MatMul", ["x", "w"], ["h"]),
            (kind, ["h", *bounds], ["c"]),
            (Q, ["c", "s", "z"], ["q"]),
            (DQ, ["q", "s", "z"], ["y"]),
        ],
        [("x", F, [50, 2])],
        [("y", F, [50, 2])],
        values,
    )


def test_clamps_that_saturation_does_are_dropped_and_the_others_split_off():
    x = np.random.default_rng(0).uniform(-20, 20, (50, 2)).astype(np.float32)
    cases = [
        ("Relu", {}, 0, False),
        ("Relu", {}, 100, True),
        ("Clip", {"low": 0.0, "high": 25.5}, 0, False),
        ("Clip", {"low": 0.0, "high": 6.04}, 0, True),
        ("Clip", {"low": -1.02, "high": 3.07}, 90, True),
    ]
    for kind, bounds, zero_point, stays in cases:
        proto = clamped(kind, bounds, zero_point)
        before = run(proto, x=x)
        qdq.settle_clamps(proto.graph)
        assert (kind in ops(proto)) == stays
        assert ops(proto)[:2] == ["MatMul", Q]  # what an integer kernel is made of
        np.testing.assert_array_equal(run(proto, x=x), before)


def test_average_pools_round_ties_as_tflite_does():
    # AveragePool of reference/integer_ops/pooling.h: (sum +- count / 2) / count, ties away from zero, on signed codes
    codes = np.random.default_rng(0).integers(-128, 40, (200, 1, 2, 2)).astype(np.int8)
    sums = codes.astype(int).sum(axis=(1, 2, 3))
    expected = np.sign(sums) * ((np.abs(sums) + 2) // 4)
    assert np.mean(np.rint(sums / 4) != expected) > 0.05  # what plain rounding gets wrong
    for zero_point, right in ((-128, sums <= 0), (0, sums > -1000)):
        proto = model(
            [
                (DQ, ["x", "s", "z"], ["r"]),
                ("AveragePool", ["r"], ["p"], {"kernel_shape": [2, 2]}),
                (Q, ["p", "s", "z"], ["y"]),
            ],
            [("x", TensorProto.INT8, [200, 1, 2, 2])],
            [("y", TensorProto.INT8, [200, 1, 1, 1])],
            {"s": np.float32(0.0371), "z": np.int8(zero_point)},
        )
        qdq.settle_ties(proto.graph)
        got = run(proto, x=codes)[0].reshape(-1)
        np.testing.assert_array_equal(got[right], expected[right])
        assert np.abs(got - expected).max() <= 1


def test_identity_pairs_go_and_real_requantizations_stay():
    for scale, left in ((0.05, [Q, DQ]), (0.07, [Q, DQ, Q, DQ])):
        proto = model(
            [
                (Q, ["x", "s", "z"], ["a"]),
                (DQ, ["a", "s", "z"], ["b"]),
                (Q, ["b", "s2", "z2"], ["c"]),
                (DQ, ["c", "s2", "z2"], ["y"]),
            ],
            [("x", F, [4])],
            [("y", F, [4])],
            SCALES | {"s2": np.float32(scale), "z2": np.int8(-7)},
        )
        x = np.array([-9, -0.03, 0.08, 9], np.float32)
        before = run(proto, x=x)
        qdq.drop_identity_pairs(proto.graph)
        assert ops(proto) == left
        np.testing.assert_array_equal(run(proto, x=x), before)


def test_dynamic_products_run_on_integers_with_their_float_bias():
    rng = np.random.default_rng(0)
    most = 63 if saturates() else 127  # pairs of products must fit 16 bits on x86 without VNNI
    values = {
        "w": rng.integers(-most, most + 1, (8, 4)).astype(np.int8),
        "ws": rng.uniform(0.01, 0.02, 4).astype(np.float32),
        "wz": np.zeros(4, np.int8),
        "b": rng.normal(0, 10, 4).astype(np.float32),
    }
    proto = model(
        [
            ("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            (DQ, ["q", "s", "z"], ["xr"]),
            (DQ, ["w", "ws", "wz"], ["wr"], {"axis": 1}),
            ("DynamicQuantizeLinear", ["b"], ["bq", "bs", "bz"]),
            (DQ, ["bq", "bs", "bz"], ["br"]),
            ("Gemm", ["xr", "wr", "br"], ["y"]),
        ],
        [("x", F, [1, 8])],
        [("y", F, [1, 4])],
        values,
    )
    x = rng.normal(0, 1, (1, 8)).astype(np.float32)
    dynamic.integer_products(proto.graph)
    assert "MatMulInteger" in ops(proto)
    assert ops(proto).count("DynamicQuantizeLinear") == 1
    # DynamicQuantizeLinear of the ONNX operator specification, then exact arithmetic
    scale = (max(0, x.max()) - min(0, x.min())) / 255
    zero = np.clip(np.rint(-min(0, x.min()) / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    expected = codes * scale @ (values["w"] * values["ws"].astype(np.float64)) + values["b"]
    assert np.allclose(run(proto, x=x)[0], expected, rtol=1e-5)


def test_open_weights_computes_what_dequantize_does():
    values = {"w": np.arange(-6, 6, dtype=np.int8).reshape(4, 3), "ws": np.array([0.1, 0.2, 0.3], np.float32)}
    proto = model(
        [(DQ, ["w", "ws", "wz"], ["wr"], {"axis": 1}), ("MatMul", ["x", "wr"], ["y"])],
        [("x", F, [1, 4])],
        [("y", F, [1, 3])],
        values | {"wz": np.zeros(3, np.int8)},
    )
    x = np.ones((1, 4), np.float32)
    before = run(proto, x=x)
    dynamic.open_weights(proto.graph)
    assert ops(proto) == ["Cast", "Mul", "MatMul"]
    np.testing.assert_array_equal(run(proto, x=x), before)


def test_half_is_kept_only_where_it_is_exact():
    exact, other = np.linspace(0, 1, 65, dtype=np.float32), np.full(65, 0.1, np.float32)
    proto = model(
        [("Add", ["x", "exact"], ["h"]), ("Add", ["h", "other"], ["y"])],
        [("x", F, [65])],
        [("y", F, [65])],
        {"exact": exact, "other": other},
    )
    before = run(proto, x=exact)
    graphs.store_half(proto.graph)
    assert sorted(graphs.weight_bytes(proto).items()) == [("float16", 130), ("float32", 260)]
    np.testing.assert_array_equal(run(proto, x=exact), before)


def test_equal_constants_are_merged_and_inner_names_never_meet_the_users():
    proto = model(
        [("Add", ["t0", "a"], ["h"]), ("Add", ["h", "b"], ["k"]), ("Mul", ["k", "unlike"], ["t1"])],
        [("t0", F, [2])],
        [("t1", F, [2])],
        {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32), "unlike": np.ones((1, 2), np.float32)[0] * 3},
    )
    x = np.array([1, 2], np.float32)
    before = run(proto, t0=x)
    graphs.merge_initializers(proto.graph)
    graphs.shorten(proto.graph)
    assert len(proto.graph.initializer) == 2
    np.testing.assert_array_equal(run(proto, t0=x), before)


def test_drop_defaults_leaves_out_what_is_so_anyway_and_nothing_else():
    same = {"kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "group": 1}
    other = {"kernel_shape": [3, 3], "strides": [2, 1], "dilations": [1, 1], "pads": [1, 0, 0, 0], "group": 1}
    proto = model(
        [
            ("Conv", ["x", "w"], ["a"], same),
            ("Conv", ["a", "w"], ["b"], other),
            ("Flatten", ["b"], ["c"], {"axis": 2}),
            ("Gemm", ["c", "m"], ["y"], {"transA": 0, "transB": 1, "alpha": 1.0}),
        ],
        [("x", F, [1, 1, 7, 7])],
        [("y", F, [1, 2])],
        {"w": np.linspace(-1, 1, 9, dtype=np.float32).reshape(1, 1, 3, 3), "m": np.ones((2, 6), np.float32)},
    )
    x = np.random.default_rng(0).normal(0, 1, (1, 1, 7, 7)).astype(np.float32)
    before = run(proto, x=x)
    graphs.drop_defaults(proto)
    assert [[a.name for a in n.attribute] for n in proto.graph.node] == [
        ["kernel_shape"],
        ["kernel_shape", "pads", "strides"],
        ["axis"],
        ["transB"],
    ]
    np.testing.assert_array_equal(run(proto, x=x), before)

"""Small int8 .tflite files written field by field, without TensorFlow: a convolution, then a dense layer."""

import numpy as np
from ai_edge_litert import schema_py_generated as fb

SIDE, CHANNELS, KINDS = 8, 4, 3


def small_model(
    path, *, dense_version=1, scale=0.05, conv_scale=0.1, op="FULLY_CONNECTED", float_output=False, named=True, seed=0,
    side=SIDE,
):  # fmt: skip
    """image (1, side, side, 1) int8 -> CONV_2D 3x3, 4 channels -> `op` -> kind (1, 3) int8, or float. The path."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (CHANNELS, 3, 3, 1)).astype(np.int8)
    dense = rng.integers(-127, 128, (KINDS, side * side * CHANNELS)).astype(np.int8)
    arrays = [weights, np.zeros(CHANNELS, np.int32), dense, np.zeros(KINDS, np.int32)]
    buffers = [fb.BufferT(), *(fb.BufferT(data=np.frombuffer(a.tobytes(), np.uint8)) for a in arrays)]
    tensors = [
        _tensor("image", (1, side, side, 1), "INT8", [scale]),
        _tensor("conv/weights", weights.shape, "INT8", [0.01] * CHANNELS, buffer=1),
        _tensor("conv/bias", (CHANNELS,), "INT32", [scale * 0.01] * CHANNELS, buffer=2),
        _tensor("conv", (1, side, side, CHANNELS), "INT8", [conv_scale]),
        _tensor("dense/weights", dense.shape, "INT8", [0.002], buffer=3),
        _tensor("dense/bias", (KINDS,), "INT32", [0.1 * 0.002], buffer=4),
        _tensor("kind", (1, KINDS), "INT8", [0.2]),
    ]
    conv = fb.Conv2DOptionsT()
    conv.strideH = conv.strideW = conv.dilationHFactor = conv.dilationWFactor = 1
    operators = [
        _operator(0, [0, 1, 2], [3], fb.BuiltinOptions.Conv2DOptions, conv),
        _operator(1, [3, 4, 5], [6], fb.BuiltinOptions.FullyConnectedOptions, fb.FullyConnectedOptionsT()),
    ]
    codes, end = [_code("CONV_2D", 3), _code(op, dense_version)], 6
    if float_output:
        tensors.append(_tensor("real", (1, KINDS), "FLOAT32", []))
        operators.append(_operator(2, [6], [7], fb.BuiltinOptions.DequantizeOptions, fb.DequantizeOptionsT()))
        codes, end = [*codes, _code("DEQUANTIZE", 2)], 7
    graph = fb.SubGraphT(tensors=tensors, inputs=np.int32([0]), outputs=np.int32([end]), operators=operators)
    model = fb.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers, description="crafted")
    if named:
        ends = [fb.TensorMapT(name=n, tensorIndex=i) for n, i in (("image", 0), ("kind", end))]
        model.signatureDefs = [fb.SignatureDefT(inputs=ends[:1], outputs=ends[1:], signatureKey="serving_default")]
    from edgedl_tflite import flatbuffer

    path.write_bytes(flatbuffer.write(model))
    return path


def images(count, seed=0, side=SIDE):
    """x (count, side, side, 1) float32 in the range of the model's input."""
    return np.random.default_rng(seed).uniform(-6, 6, (count, side, side, 1)).astype(np.float32)


def _tensor(name, shape, dtype, scale, buffer=0):
    quantization = fb.QuantizationParametersT(
        scale=np.float32(scale), zeroPoint=np.zeros(len(scale), np.int64), quantizedDimension=0
    )
    type_ = getattr(fb.TensorType, dtype)
    return fb.TensorT(name=name, shape=np.int32(shape), type=type_, buffer=buffer, quantization=quantization)


def _operator(code, inputs, outputs, kind, options):
    return fb.OperatorT(
        opcodeIndex=code,
        inputs=np.int32(inputs),
        outputs=np.int32(outputs),
        builtinOptionsType=kind,
        builtinOptions=options,
    )


def _code(name, version):
    builtin = getattr(fb.BuiltinOperator, name)
    return fb.OperatorCodeT(builtinCode=builtin, deprecatedBuiltinCode=min(builtin, 127), version=version)


def float_model(path, seed=0):
    """row (1, 4) float32 -> FULLY_CONNECTED -> out (1, 3) float32. Returns the path."""
    from edgedl_tflite import flatbuffer

    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((KINDS, 4)).astype(np.float32), rng.standard_normal(KINDS).astype(np.float32)]
    buffers = [fb.BufferT(), *(fb.BufferT(data=np.frombuffer(a.tobytes(), np.uint8)) for a in arrays)]
    tensors = [
        _tensor("row", (1, 4), "FLOAT32", []),
        _tensor("weights", (KINDS, 4), "FLOAT32", [], buffer=1),
        _tensor("bias", (KINDS,), "FLOAT32", [], buffer=2),
        _tensor("out", (1, KINDS), "FLOAT32", []),
    ]
    dense = _operator(0, [0, 1, 2], [3], fb.BuiltinOptions.FullyConnectedOptions, fb.FullyConnectedOptionsT())
    graph = fb.SubGraphT(tensors=tensors, inputs=np.int32([0]), outputs=np.int32([3]), operators=[dense])
    ends = [fb.TensorMapT(name=n, tensorIndex=i) for n, i in (("row", 0), ("out", 3))]
    signature = fb.SignatureDefT(inputs=ends[:1], outputs=ends[1:], signatureKey="serving_default")
    codes = [_code("FULLY_CONNECTED", 1)]
    model = fb.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers, signatureDefs=[signature])
    path.write_bytes(flatbuffer.write(model))
    return path

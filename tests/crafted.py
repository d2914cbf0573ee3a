"""Small int8 .tflite files written field by field, without TensorFlow: a convolution, then a dense layer."""

import numpy as np
from ai_edge_litert import schema_py_generated as fb

SIDE, CHANNELS, KINDS = 8, 4, 3


def small_model(
    path, *, dense_version=1, scale=0.05, conv_scale=0.1, op="FULLY_CONNECTED", float_output=False, named=True, seed=0,
    side=SIDE, batch=1,
):  # fmt: skip
    """image (batch, side, side, 1) int8 -> CONV_2D 3x3, 4 channels -> `op` -> kind (batch, 3) int8, or float. Path."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (CHANNELS, 3, 3, 1)).astype(np.int8)
    dense = rng.integers(-127, 128, (KINDS, side * side * CHANNELS)).astype(np.int8)
    arrays = [weights, np.zeros(CHANNELS, np.int32), dense, np.zeros(KINDS, np.int32)]
    buffers = [fb.BufferT(), *(fb.BufferT(data=np.frombuffer(a.tobytes(), np.uint8)) for a in arrays)]
    tensors = [
        _tensor("image", (batch, side, side, 1), "INT8", [scale]),
        _tensor("conv/weights", weights.shape, "INT8", [0.01] * CHANNELS, buffer=1),
        _tensor("conv/bias", (CHANNELS,), "INT32", [scale * 0.01] * CHANNELS, buffer=2),
        _tensor("conv", (batch, side, side, CHANNELS), "INT8", [conv_scale]),
        _tensor("dense/weights", dense.shape, "INT8", [0.002], buffer=3),
        _tensor("dense/bias", (KINDS,), "INT32", [0.1 * 0.002], buffer=4),
        _tensor("kind", (batch, KINDS), "INT8", [0.2]),
    ]
    conv = fb.Conv2DOptionsT()
    conv.strideH = conv.strideW = conv.dilationHFactor = conv.dilationWFactor = 1
    operators = [
        _operator(0, [0, 1, 2], [3], fb.BuiltinOptions.Conv2DOptions, conv),
        _operator(1, [3, 4, 5], [6], fb.BuiltinOptions.FullyConnectedOptions, fb.FullyConnectedOptionsT()),
    ]
    codes, end = [_code("CONV_2D", 3), _code(op, dense_version)], 6
    if float_output:
        tensors.append(_tensor("real", (batch, KINDS), "FLOAT32", []))
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


def strided_model(path, *, middle="RESHAPE"):
    """image (1, 8, 8, 2) -> CONV_2D of stride 2, padded on one side -> RESHAPE without options -> dense -> SOFTMAX.

    With `middle` MEAN the dense layer gets the mean of the image alone; with another, what that makes of all of it.
    """
    rng = np.random.default_rng(0)
    weights, dense = (
        rng.integers(-127, 128, shape).astype(np.int8) for shape in ((4, 3, 3, 2), (3, 4 if middle == "MEAN" else 64))
    )
    arrays = [
        weights,
        np.int32([300, -200, 0, 9]),
        np.int32([1, 2] if middle == "MEAN" else [1, 64]),
        dense,
        np.zeros(3, np.int32),
    ]
    tensors = [
        _tensor("image", (1, 8, 8, 2), "INT8", [2**-4]),
        _tensor("w", weights.shape, "INT8", [2**-6, 2**-5, 2**-7, 2**-6], buffer=1),
        _tensor("b", (4,), "INT32", [2**-10, 2**-9, 2**-11, 2**-10], buffer=2),
        _tensor("conv", (1, 4, 4, 4), "INT8", [2**-3]),
        fb.TensorT(name="to", shape=np.int32([2]), type=fb.TensorType.INT32, buffer=3),
        _tensor("flat", (1, dense.shape[1]), "INT8", [2**-3]),
        _tensor("v", dense.shape, "INT8", [2**-9], buffer=4),
        _tensor("c", (3,), "INT32", [2**-12], buffer=5),
        _tensor("kind", (1, 3), "INT8", [2**-2]),
        _tensor("share", (1, 3), "INT8", [1 / 256]),
    ]
    tensors[9].quantization.zeroPoint = np.int64([-128])
    tensors[0].shapeSignature = np.int32([-1, 8, 8, 2])
    conv, softmax = fb.Conv2DOptionsT(), fb.SoftmaxOptionsT()
    conv.strideH = conv.strideW = 2
    conv.dilationHFactor = conv.dilationWFactor = 1
    softmax.beta = 1.0
    options = fb.BuiltinOptions
    operators = [
        _operator(0, [0, 1, 2], [3], options.Conv2DOptions, conv),
        _operator(1, [3, 4] if middle in ("RESHAPE", "MEAN") else [3], [5], options.NONE, None),
        _operator(2, [5, 6, 7], [8], options.FullyConnectedOptions, fb.FullyConnectedOptionsT()),
        _operator(3, [8], [9], options.SoftmaxOptions, softmax),
    ]
    codes = [_code(n, v) for n, v in (("CONV_2D", 3), (middle, 1), ("FULLY_CONNECTED", 4), ("SOFTMAX", 2))]
    graph = fb.SubGraphT(tensors=tensors, inputs=np.int32([0]), outputs=np.int32([9]), operators=operators)
    buffers = [fb.BufferT(), *(fb.BufferT(data=np.frombuffer(a.tobytes(), np.uint8)) for a in arrays)]
    from edgedl_tflite import flatbuffer

    path.write_bytes(flatbuffer.write(fb.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers)))
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

"""An int8 .tflite as C: `python -m edgedl_bakenn.generating MODEL FOLDER` writes it and tells about it as JSON.

In a process of its own, for what the file may do to the compiler. What keeps bakenn from a file that it could compile
is mended first: a free batch is 1, a RESHAPE has its shape in its options and stands before FULLY_CONNECTED, and the
ends that no kernel of CMSIS-NN computes are left out.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

from edgedl.errors import EdgedlError, UnsupportedError
from edgedl_tflite import flatbuffer

NAME = "model"
COVERED = (
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "AVERAGE_POOL_2D", "MAX_POOL_2D", "RESHAPE",
)  # fmt: skip
WITH_BIAS, WITHOUT_BIAS = 4, 6  # the versions of FULLY_CONNECTED in int8 that bakenn knows; older ones mean the same
ENDS = ("QUANTIZE", "DEQUANTIZE", "SOFTMAX")


def generate(source: Path, folder: Path) -> dict[str, Any]:
    """Write the C into `folder`; what `emulation.Generated` holds. Raises UnsupportedError."""
    import bakenn
    from bakenn.backend.cmsis_nn import bundle
    from bakenn.backend.portable_c.families import conv

    # bakenn gives CMSIS-NN no convolution whose padding differs from side to side, as SAME with a stride of 2 has. Its
    # kernels take the padding before and the size of the output, and TFLM hands them just that; the outputs are tested.
    conv._symmetric_padding = lambda padding: True  # noqa: ARG005
    model = flatbuffer.read(source.read_bytes())
    left_out = _mend(model)
    options = bakenn.CBackendOptions(
        target=bakenn.CORTEX_M4, kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY, enable_cmsis_nn=True
    )
    try:
        made = bakenn.compile_tflite(flatbuffer.write(model), folder, name=NAME, backend_options=options).artifacts
    except bakenn.CompileError as e:
        message = f"bakenn: {e}"
        raise UnsupportedError(message) from e
    sources = (made.model_source, made.weights_source, made.kernels_source, *made.support_sources)
    graph = model.subgraphs[0]
    quantization = graph.tensors[graph.inputs[0]].quantization
    return {
        "sources": [str(path) for path in sources],
        "include": [str(made.output_dir), *(str(path) for path in made.support_include_dirs)],
        "generator": f"bakenn {bakenn.__version__}",
        "kernels": f"CMSIS-NN {bundle.CMSIS_NN_VERSION}",
        "left_out": left_out,
        "input_scale": float(quantization.scale[0]),
        "input_zero_point": int(quantization.zeroPoint[0]),
    }


def _mend(model: Any) -> list[str]:
    """Make the model one that bakenn reads; the operators left out at its ends. Raises UnsupportedError."""
    graph = model.subgraphs[0]
    left_out: list[str] = []
    while graph.operators and flatbuffer.op_name(model, graph.operators[0]) in ENDS:
        op = graph.operators.pop(0)
        graph.inputs, left_out = list(op.outputs), [*left_out, flatbuffer.op_name(model, op)]
    while graph.operators and flatbuffer.op_name(model, graph.operators[-1]) in ENDS:
        op = graph.operators.pop()
        graph.outputs, left_out = list(op.inputs), [*left_out, flatbuffer.op_name(model, op)]
    names = [flatbuffer.op_name(model, op) for op in graph.operators]
    if other := sorted(set(names) - set(COVERED)):
        message = f"bakenn reads {', '.join(COVERED)}, and not {', '.join(other)}"
        raise UnsupportedError(message)
    if len(model.subgraphs) != 1 or len(graph.inputs) != 1 or len(graph.outputs) != 1:
        message = "bakenn takes one graph with one input and one output"
        raise UnsupportedError(message)
    if any(flatbuffer.dtype_name(graph.tensors[i].type) != "int8" for i in (graph.inputs[0], graph.outputs[0])):
        message = "bakenn takes int8 files; export with --scheme int8"
        raise UnsupportedError(message)
    for tensor in graph.tensors:
        tensor.shapeSignature = None
    for op, name in list(zip(graph.operators, names, strict=True)):
        if name == "RESHAPE" and op.builtinOptions is None:
            _say_shape(op, graph.tensors[op.outputs[0]].shape)
        elif name == "FULLY_CONNECTED":
            has_bias = len(op.inputs) > 2 and op.inputs[2] >= 0
            op.opcodeIndex = flatbuffer.add_operator_code(model, name, WITH_BIAS if has_bias else WITHOUT_BIAS)
            _flatten(model, op)
    model.signatureDefs = None
    return left_out


def _say_shape(op: Any, shape: Any) -> None:
    op.builtinOptions = flatbuffer.schema().ReshapeOptionsT()
    op.builtinOptions.newShape = [int(size) for size in shape]
    op.builtinOptionsType = flatbuffer.schema().BuiltinOptions.ReshapeOptions


def _flatten(model: Any, op: Any) -> None:
    """Put a RESHAPE before a FULLY_CONNECTED that takes more than rows: TFLite's converter leaves it out."""
    graph = model.subgraphs[0]
    before = graph.tensors[op.inputs[0]]
    if len(before.shape) == 2:
        return
    flat = copy.copy(before)
    flat.name, flat.shape = b"flat of " + flatbuffer.text(before.name).encode(), [1, math.prod(before.shape)]
    graph.tensors.append(flat)
    reshape = flatbuffer.schema().OperatorT(
        opcodeIndex=flatbuffer.add_operator_code(model, "RESHAPE", 1),
        inputs=[op.inputs[0]],
        outputs=[len(graph.tensors) - 1],
    )
    _say_shape(reshape, flat.shape)
    graph.operators.insert(graph.operators.index(op), reshape)
    op.inputs = [reshape.outputs[0], *op.inputs[1:]]


if __name__ == "__main__":
    try:
        print(json.dumps({"made": generate(Path(sys.argv[1]), Path(sys.argv[2]))}))
    except EdgedlError as error:
        print(json.dumps({"refused": str(error)}))

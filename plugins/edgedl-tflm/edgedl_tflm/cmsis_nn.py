"""What CMSIS-NN's kernels need beside the tensors: scratch, and sums kept for good, as its own size functions say.

The formulas are those of `arm_*_get_buffer_size_dsp` and `_mve` of CMSIS-NN 7, and which of them TFLM asks for is in
its kernels: https://github.com/ARM-software/CMSIS-NN/tree/main/Source (ConvolutionFunctions, FullyConnectedFunctions,
PoolingFunctions) and https://github.com/tensorflow/tflite-micro/tree/main/tensorflow/lite/micro/kernels/cmsis_nn.
Where a compiler or a shape makes a difference, the larger figure is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgedl_tflm import graph

DSP = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m35p")
MVE = ("cortex-m52", "cortex-m55", "cortex-m85")
PLAIN = ("cortex-m0", "cortex-m0+", "cortex-m3", "cortex-m23")
CORES = (*DSP, *MVE, *PLAIN)
MVE_DEPTHWISE_BLOCK = 124  # CH_IN_BLOCK_MVE
FAST_S16_COLUMNS = 512
SAME = 0  # Padding.SAME
# Kernels with scratch of their own whose size is not told here.
UNKNOWN = frozenset({"TRANSPOSE_CONV", "SVDF", "BATCH_MATMUL", "UNIDIRECTIONAL_SEQUENCE_LSTM", "TRANSPOSE"})


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes of an operator beyond the tensors: `scratch` while it runs, `persistent` for good."""

    scratch: int = 0
    persistent: int = 0


def needs(model: Any, op: Any, core: str) -> Needs:
    """What an operator on int8 or int16 activations needs on a core; nothing for any other operator."""
    only = model.subgraphs[0]
    tensors = [only.tensors[i] for i in op.inputs if i >= 0]
    dtype = graph.dtype(tensors[0]) if tensors else ""
    if dtype not in ("int8", "int16"):
        return Needs()
    output = only.tensors[op.outputs[0]]
    name, vectors = graph.op_name(model, op), core in MVE
    if name == "CONV_2D":
        return Needs(scratch=_conv(op, tensors, output, dtype, core))
    if name == "DEPTHWISE_CONV_2D":
        return Needs(scratch=_depthwise(op, tensors, output, dtype, core))
    if name == "AVERAGE_POOL_2D" and core in DSP:
        return Needs(scratch=4 * graph.shape(tensors[0])[3])
    if name == "FULLY_CONNECTED" and dtype == "int8" and vectors:
        return Needs(persistent=4 * graph.shape(tensors[1])[0])  # sums of the rows of constant weights
    return Needs()


def _conv(op: Any, tensors: list[Any], output: Any, dtype: str, core: str) -> int:
    _, kernel_h, kernel_w, depth = graph.shape(tensors[1])
    options = op.builtinOptions
    columns = kernel_h * kernel_w * depth
    dilated = options.dilationHFactor > 1 or options.dilationWFactor > 1
    if dtype == "int16":
        return 4 * columns if core in DSP and columns < FAST_S16_COLUMNS and not dilated else 0
    if kernel_h == kernel_w == 1 and not any(_padding(options, tensors, output)):
        return 4 * depth if core in DSP else 0
    return 4 * 16 * -(-columns // 16) if core in MVE else 4 * 4 * -(-columns // 4)


def _depthwise(op: Any, tensors: list[Any], output: Any, dtype: str, core: str) -> int:
    batch, _, _, depth = graph.shape(tensors[0])
    _, kernel_h, kernel_w, depth_out = graph.shape(tensors[1])
    options = op.builtinOptions
    dilated = options.dilationHFactor > 1 or options.dilationWFactor > 1
    if core in PLAIN or batch != 1 or dilated or depth != depth_out:
        return 0
    window = kernel_h * kernel_w
    if dtype == "int16":
        return 8 * depth * window + 8 if core in MVE else 2 * depth * window
    if core in MVE:
        return 4 * MVE_DEPTHWISE_BLOCK * window
    small = (kernel_h, kernel_w) == (3, 3) and max(_padding(options, tensors, output)) <= 1
    return 0 if small else 2 * depth * window


def _padding(options: Any, tensors: list[Any], output: Any) -> tuple[int, int]:
    """Rows above and columns to the left that SAME adds."""
    if options.padding != SAME:
        return 0, 0
    (_, height, width, _), (_, out_h, out_w, _) = graph.shape(tensors[0]), graph.shape(output)
    _, kernel_h, kernel_w, _ = graph.shape(tensors[1])
    rows = (out_h - 1) * options.strideH + (kernel_h - 1) * options.dilationHFactor + 1 - height
    columns = (out_w - 1) * options.strideW + (kernel_w - 1) * options.dilationWFactor + 1 - width
    return max(0, rows) // 2, max(0, columns) // 2

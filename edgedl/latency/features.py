"""What an operator makes a processor do, counted: the columns that a latency model has a cost for.

A convolution copies a patch of its input for each output position (im2col), multiplies, and requantizes each output;
Lai, Suda, Chandra, "CMSIS-NN", arXiv:1801.06601, section 3. So one cost each for the elements copied, the
multiply-accumulates and the outputs; 1x1 convolutions copy nothing, depthwise ones reuse nothing. Its fast kernels
take input depths that are a multiple of 4 (arm_convolve_HWC_q7_fast), so that a first layer over RGB costs more a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgedl.latency.operators import WEIGHTED, Operator

if TYPE_CHECKING:
    from edgedl.types import Array

FEATURES = {
    "conv_macs": "multiply-accumulates of convolutions larger than 1x1",
    "shallow_macs": "the same where the input's depth does not fit the fast kernels",
    "conv_gather": "elements that these copy together (im2col)",
    "conv_out": "elements that these write",
    "pointwise_macs": "multiply-accumulates of 1x1 convolutions",
    "pointwise_in": "elements that these read",
    "pointwise_out": "elements that these write",
    "depthwise_macs": "multiply-accumulates of depthwise convolutions",
    "depthwise_out": "elements that these write",
    "dense_macs": "multiply-accumulates of fully connected layers",
    "elementwise": "elements added, multiplied, clipped",
    "pool": "elements that pooling reads",
    "reduce": "elements that a reduction (mean over axes) reads",
    "copy": "elements copied: pad, concatenate, resize, quantize",
    "exponential": "elements of softmax, logistic, tanh",
    "operators": "operators that do something",
    "weights": "weights read",
    "streamed": "elements in and out of operators that outgrow the cache",
    "spilled": "elements in and out of operators that outgrow the RAM on the chip",
    "flash_macs": "multiply-accumulates of a model whose weights outgrow the flash on the chip",
}
NAMES = tuple(FEATURES)
_BY_ELEMENTS = {
    "elementwise": "ADD MUL SUB DIV MAXIMUM MINIMUM RELU RELU6 RELU_N1_TO_1 PRELU LEAKY_RELU HARD_SWISH "
    "SQUARED_DIFFERENCE ABS NEG SQRT",
    "pool": "AVERAGE_POOL_2D MAX_POOL_2D",
    "reduce": "MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD ARG_MAX ARG_MIN",
    "copy": "PAD PADV2 MIRROR_PAD CONCATENATION QUANTIZE DEQUANTIZE CAST TRANSPOSE TILE SPLIT SPLIT_V SLICE "
    "STRIDED_SLICE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR PACK UNPACK GATHER GATHER_ND SPACE_TO_DEPTH "
    "DEPTH_TO_SPACE",
    "exponential": "SOFTMAX LOG_SOFTMAX LOGISTIC TANH",
}
_CLASS_OF = {op: name for name, ops in _BY_ELEMENTS.items() for op in ops.split()}
_CONTROL = frozenset({"WHILE", "IF", "CALL_ONCE"})  # they run other graphs, as often as the data says
_FREE = frozenset({"RESHAPE", "SHAPE", "SQUEEZE", "EXPAND_DIMS"})  # a view, or known before the first inference


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Sizes in bytes beyond which data comes from somewhere slower; inf where that is all one."""

    cache_bytes: float
    ram_bytes: float
    flash_bytes: float


def features(operators: Sequence[Operator], memory: Memory, depth_step: int = 1) -> Array:
    """The counts of one inference, shape (len(NAMES),), float64. Operators that `foreign` names count as copies.

    Fast convolutions take input depths that are a multiple of `depth_step`.
    """
    found = dict.fromkeys(NAMES, 0.0)
    size = 4 if any(op.dtype == "float32" and op.macs for op in operators) else 1
    outgrows_flash = size * sum(math.prod(op.weights) for op in operators if op.weights) > memory.flash_bytes
    for op in operators:
        if _is_free(op):
            continue
        moved = _elements(op.inputs) + _elements(op.outputs)
        found["operators"] += 1
        found["weights"] += _elements(op.weights)
        for name, count in _work(op, depth_step).items():
            found[name] += count
        if moved * size > memory.ram_bytes:
            found["spilled"] += moved
        elif moved * size > memory.cache_bytes:
            found["streamed"] += moved
        if outgrows_flash:
            found["flash_macs"] += op.macs
    return np.array([found[name] for name in NAMES])


def _is_free(op: Operator) -> bool:
    """Views, and integer arithmetic on shapes, which is done before the first inference."""
    works = op.op in _CONTROL or op.op in ("ARG_MAX", "ARG_MIN")
    return op.op in _FREE or (op.dtype in ("int32", "int64") and not works)


def _work(op: Operator, depth_step: int) -> dict[str, float]:
    out = _elements(op.outputs)
    if op.op == "CONV_2D" and len(op.weights) == 4:
        channels, height, width, depth = op.weights
        gathered = out / max(1, channels) * height * width * depth
        if height == width == 1:
            return {"pointwise_macs": op.macs, "pointwise_in": gathered, "pointwise_out": out}
        steps = "shallow_macs" if depth % depth_step else "conv_macs"
        return {steps: op.macs, "conv_gather": gathered, "conv_out": out}
    if op.op == "DEPTHWISE_CONV_2D":
        return {"depthwise_macs": op.macs, "depthwise_out": out}
    if op.op == "FULLY_CONNECTED":
        return {"dense_macs": op.macs}
    return {_CLASS_OF.get(op.op, "copy"): max(out, _elements(op.inputs))}


def _elements(shape: Sequence[int]) -> int:
    return math.prod(shape) if shape else 0


def foreign(operators: Sequence[Operator], *, share: float = 0.01) -> str:
    """The first operator that no figure tells the cost of and that does not vanish beside the rest; "" for none.

    It vanishes when it has no weights, runs no other graph and moves at most `share` of the elements that the model
    moves.
    """
    moved = [(op, _elements(op.inputs) + _elements(op.outputs)) for op in operators]
    least = share * sum(count for _, count in moved)
    for op, count in moved:
        if not is_known(op) and (op.macs or op.weights or op.op in _CONTROL or count > least):
            return op.op
    return ""


def is_known(op: Operator) -> bool:
    """Whether its kind has a cost."""
    return _is_free(op) or op.op in WEIGHTED or op.op in _CLASS_OF

"""Weight-only int4: a float file whose weights litert-quantizer stores in half a byte, dequantized as it runs.

A kernel that is int4 codes times max |w| / 7 of its channel already, as the step `quantize` leaves it, keeps its codes:
litert-quantizer's own scale is the same.
"""

from __future__ import annotations

import re

import numpy as np

from edgedl.errors import PluginError
from edgedl_tflite import flatbuffer

TOP = 7  # the largest code
ON_GRID = 1e-3  # of a code, by which a weight that is one may miss it
KERNELS = ("CONV_2D", "FULLY_CONNECTED")  # whose weights, the second operand, have their output channels first


def quantize(file: bytes, *, carried: bool) -> bytes:
    """The float .tflite `file` with int4 weights, one scale a channel. Raises PluginError without litert-quantizer.

    With `carried` those alone that are int4 codes already: the model says what stays float.
    """
    try:
        from litert_quantizer import qtyping, quantizer, recipe_manager
    except ImportError as e:
        message = "weight_only_wi4_afp32 needs litert-quantizer. Try: pip install 'edgedl-tflite[export]'"
        raise PluginError(message) from e
    scopes = _chosen(file) if carried else [".*"]
    if not scopes:
        return file
    recipe = recipe_manager.RecipeManager()
    for scope in scopes:
        recipe.add_weight_only_config(scope, qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=4)
    made = quantizer.Quantizer(file)
    made.load_quantization_recipe(recipe.get_quantization_recipe())
    return bytes(made.quantize().quantized_model)


def _chosen(file: bytes) -> list[str]:
    """The operators whose weights are int4 codes already, as the regular expressions that litert-quantizer takes."""
    model, found = flatbuffer.read(file), []
    for graph, op in flatbuffer.operators(model):
        if flatbuffer.op_name(model, op) not in KERNELS:
            continue
        tensor = graph.tensors[op.inputs[1]]
        data = flatbuffer.constant(model, tensor)
        if data is None or flatbuffer.dtype_name(tensor.type) != "float32":
            continue
        weights = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape[0], -1)
        codes = TOP * weights / np.maximum(np.abs(weights).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        if np.abs(codes - np.rint(codes)).max() < ON_GRID:
            found.append(f"^{re.escape(flatbuffer.text(graph.tensors[op.outputs[0]].name))};$")
    return found

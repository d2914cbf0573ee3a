"""Weight-only int4: a float file whose weights litert-quantizer stores in half a byte, dequantized as it runs.

A kernel that is int4 codes times max |w| / 7 of its channel already, as the step `quantize` leaves it, keeps its codes:
litert-quantizer's own scale is the same.
"""

from __future__ import annotations

from edgedl.errors import PluginError


def quantize(file: bytes) -> bytes:
    """The float .tflite `file` with int4 weights, one scale a channel. Raises PluginError without litert-quantizer."""
    try:
        from litert_quantizer import quantizer, recipe
    except ImportError as e:
        message = "weight_only_wi4_afp32 needs litert-quantizer. Try: pip install 'edgedl-tflite[export]'"
        raise PluginError(message) from e
    made = quantizer.Quantizer(file)
    made.load_quantization_recipe(recipe.weight_only_wi4_afp32())
    return bytes(made.quantize().quantized_model)

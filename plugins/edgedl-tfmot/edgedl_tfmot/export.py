"""In TFMOT's process: a quantization-aware model as the int8 .tflite that only TFMOT's own path can write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(quantized: Any, graph: Mapping[str, Any], path: Path) -> None:
    """Convert with the ranges that were trained, batch 1, float inputs and outputs, the model's own names."""
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.model = quantized

    module = Module()
    specs = [tf.TensorSpec((1, *s["shape"][1:]), s["dtype"], s["name"]) for s in graph["inputs"]]

    @tf.function(input_signature=specs)  # type: ignore[untyped-decorator]
    def serve(*inputs: Any) -> dict[str, Any]:
        answers = quantized(list(inputs), training=False)
        flat = answers if isinstance(answers, (list, tuple)) else [answers]
        return {o["name"]: a for o, a in zip(graph["outputs"], flat, strict=True)}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(converter.convert())

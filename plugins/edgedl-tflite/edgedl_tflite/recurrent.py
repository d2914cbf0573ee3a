"""LSTM, GRU and their kin for static schemes: the converter's calibration dies on loops, so they are unrolled."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from edgedl import graph
from edgedl.errors import UnsupportedError

if TYPE_CHECKING:
    import keras

MAX_STEPS = 256  # 128 steps convert in some 10 s and take one operator group each
LOOPS = ("While", "StatelessWhile")


def loops(graph: Any) -> list[str]:
    """The names of the loops in a TensorFlow function graph, nested functions included."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return sorted({n.name for n in nodes if n.op in LOOPS})


def layer_of(model: keras.Model, loop: str) -> str:
    """The layer that a loop such as `functional_1/lstm_1/while` comes from, else the loop's own name."""
    names = {layer.name for layer in model._flatten_layers()}
    parts = loop.split("/")[::-1]  # the innermost first
    stems = [re.sub(r"_\d+$", "", part) for part in parts]
    return next((n for pair in zip(parts, stems, strict=True) for n in pair if n in names), loop)


def refuse_stateful(model: keras.Model) -> None:
    """Raises UnsupportedError for a layer that carries its state from one call to the next."""
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            message = (
                f"layer {layer.name!r} is stateful: a .tflite file would answer by what it saw before. "
                "Build the model with stateful=False"
            )
            raise UnsupportedError(message)


def unroll(model: keras.Model) -> tuple[keras.Model, tuple[str, ...]]:
    """A flat model with copies of the weights whose recurrent layers are unrolled, and the names of these layers.

    Everything with an `unroll` option is made anew, inside Bidirectional and TimeDistributed too. Nested models are
    walked through on the sizes of this one. Raises UnsupportedError where a sequence is free or longer than MAX_STEPS.
    """
    flat = graph.flattened(model)
    walked = graph.Graph.of(flat)
    made: dict[str, graph.Replacement] = {}
    for name, layer in walked.layers.items():
        if not getattr(layer, "weights", ()):
            continue
        config = layer.get_config()
        if _set_unroll(config):
            for call in walked.calls_of(name):
                _check_steps(layer, call.inputs[0].shape)  # behind it may come a mask and initial states
            made[name] = graph.Replacement(layer=type(layer).from_config(config), weights=layer.get_weights())
    return graph.rebuild(flat, made), tuple(made)


def _set_unroll(config: Any) -> bool:
    """Set every `unroll` in a layer's configuration, however deep; whether there was one."""
    if isinstance(config, dict):
        own = config.get("unroll") is False
        if own:
            config["unroll"] = True
        return sum(_set_unroll(v) for v in config.values()) + own > 0
    return isinstance(config, (list, tuple)) and sum(_set_unroll(v) for v in config) > 0


def _check_steps(layer: Any, shape: tuple[Any, ...]) -> None:
    import keras

    sizes = shape[1:3] if isinstance(layer, keras.layers.TimeDistributed) else shape[1:2]
    if None in sizes:
        message = f"layer {layer.name!r} runs over a free number of steps; give --shape NAME=1,STEPS,... for its input"
        raise UnsupportedError(message)
    steps = math.prod(sizes)
    if steps > MAX_STEPS:
        message = (
            f"layer {layer.name!r} runs over {steps} steps; static schemes unroll it, at most {MAX_STEPS}. "
            "Use dynamic_wi8_afp32, weight_only_wi8_afp32 or fp16, or shorter sequences"
        )
        raise UnsupportedError(message)

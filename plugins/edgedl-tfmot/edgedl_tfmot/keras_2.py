"""In TFMOT's process: a tf_keras model built from what `carrying.describe` wrote."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = list[NDArray[Any]]

COMMON_KEYS = frozenset({"name", "trainable", "dtype", "activity_regularizer"})
RENAMED_KEYS = {("LeakyReLU", "negative_slope"): "alpha"}
# at inference; Bidirectional sets zero_output_for_mask itself, as its Keras 2 one does
WITHOUT_MEANING = frozenset({"seed", "quantization_config", "build_config", "use_cudnn", "zero_output_for_mask"})
TOLERANCE = 3e-5  # relative to the largest output (at least 1): two builds of the same float32 arithmetic


def build(graph: Mapping[str, Any], weights: Mapping[str, Arrays]) -> Any:
    """The model with its weights. Raises UnsupportedError that names layer and key."""
    import tf_keras

    inputs = [
        tf_keras.Input(shape=s["shape"][1:], batch_size=s["shape"][0], dtype=s["dtype"], name=s["name"])
        for s in graph["inputs"]
    ]
    tensors = {f"input:{i}": tensor for i, tensor in enumerate(inputs)}
    layers: dict[str, Any] = {}

    def filled(value: Any) -> Any:
        if isinstance(value, dict) and "tensor" in value:
            return tensors[value["tensor"]]
        return [filled(v) for v in value] if isinstance(value, list) else value

    for call in graph["calls"]:
        name = call["name"]
        if name not in layers:
            layers[name] = layer_of(call, name)
        args, kwargs = filled(call["args"]), {k: filled(v) for k, v in call["kwargs"].items()}
        result = layers[name](*args, **kwargs)
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        tensors.update(zip(call["outputs"], results, strict=True))
    for name, arrays in weights.items():
        _set(layers[name], arrays, name)
    return tf_keras.Model(inputs, [tensors[o["tensor"]] for o in graph["outputs"]], name=graph["name"])


def _set(layer: Any, arrays: Arrays, name: str) -> None:
    try:
        layer.set_weights(arrays)
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    except ValueError as e:
        message = f"layer {name!r} ({type(layer).__name__}): its weights do not fit Keras 2's ({e})"
        raise UnsupportedError(message) from e


def layer_of(described: Mapping[str, Any], where: str) -> Any:
    """A tf_keras layer from a Keras 3 config. Raises UnsupportedError for an option that Keras 2 lacks."""
    import tf_keras

    kind = described["class"]
    cls = getattr(tf_keras.layers, kind, None)
    if cls is None:
        message = f"layer {where!r}: Keras 2 has no {kind}"
        raise UnsupportedError(message)
    allowed = {*inspect.signature(cls.__init__).parameters, *COMMON_KEYS}
    clean: dict[str, Any] = {}
    for old_key, value in described["config"].items():
        key = RENAMED_KEYS.get((kind, old_key), old_key)
        if key in WITHOUT_MEANING:
            continue
        if key in allowed:
            nested = isinstance(value, dict) and "layer" in value
            clean[key] = layer_of(value["layer"], f"{where}, {key}") if nested else value
        elif old_key not in described["defaults"]:
            message = f"layer {where!r} ({kind}): Keras 2 has no {key}={value!r}"
            raise UnsupportedError(message)
    try:
        return cls(**clean)
    except (TypeError, ValueError) as e:
        message = f"layer {where!r} ({kind}) has no Keras 2 form: {str(e).splitlines()[0]}"
        raise UnsupportedError(message) from e


def outputs(model: Any, inputs: Sequence[Any]) -> Arrays:
    """What the model answers at inference, in flat order."""
    import tensorflow as tf

    answers = model([tf.constant(a) for a in inputs], training=False)
    return [np.asarray(a) for a in (answers if isinstance(answers, (list, tuple)) else [answers])]


def require_equal(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference of two lists of outputs. Raises UnsupportedError beyond TOLERANCE."""
    difference = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(ours, theirs, strict=True))
    largest = max(float(np.abs(b).max(initial=0)) for b in theirs)
    if not difference <= TOLERANCE * max(1.0, largest):
        message = f"carried to Keras 2, the outputs differ by {difference:.2g} on seeded input"
        raise UnsupportedError(message)
    return difference

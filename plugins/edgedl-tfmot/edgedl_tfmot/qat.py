"""In TFMOT's process: its quantization-aware training, plain or with zeros and clusters kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl_tfmot.layers import Patterns, Result, Train, choose, kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MOST_CENTROIDS = 1024  # above it TFMOT's cluster-preserving training preserves nothing
QAT_REWRITES = ("SeparableConv1D", "SeparableConv2D")  # TFMOT splits them into two layers


def quantize(model: Any, method: str, train: Train, patterns: Patterns) -> Result:
    """Quantization-aware training, in `pqat`, `cqat` and `pcqat` with the zeros or clusters that are there kept.

    The weights are those on TFMOT's 8-bit grid, as plain float32.
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        default_8bit_cluster_preserve_quantize_scheme as cluster_preserve,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
        default_8bit_prune_preserve_quantize_scheme as prune_preserve,
    )

    scopes = tfmot.quantization.keras
    split = [layer.name for layer in model.layers if type(layer).__name__ in QAT_REWRITES]
    if split:
        message = f"layer {split[0]!r}: TFMOT splits separable convolutions in two, which cannot be carried back"
        raise UnsupportedError(message)
    _require_compressed(model, method)
    able = {x.name: x for x in model.layers if not isinstance(x, tf_keras.layers.InputLayer)}
    names = choose(able, patterns, "quantize")
    masks = {w.name: np.asarray(w) != 0 for x in model.layers for w in kernels(x)} if "p" in method else {}
    annotated = tf_keras.models.clone_model(
        model, clone_function=lambda x: scopes.quantize_annotate_layer(x) if x.name in names else x
    )
    scheme: dict[str, Any] = {}
    if method == "pqat":
        scheme["scheme"] = prune_preserve.Default8BitPrunePreserveQuantizeScheme()
    elif method != "qat":
        scheme["scheme"] = cluster_preserve.Default8BitClusterPreserveQuantizeScheme("p" in method)
    quantized = scopes.quantize_apply(annotated, **scheme)
    train(quantized, *([_held(quantized, masks)] if masks else []))
    weights = _grid_weights(model, quantized)
    return Result(weights=weights, notes=_kept(model, weights, method), quantized=quantized)


def _require_compressed(model: Any, method: str) -> None:
    """Zeros or clusters to preserve, else the method is the wrong one. Raises InputError."""
    values = [np.asarray(w) for x in model.layers for w in kernels(x)]
    if method in ("pqat", "pcqat") and not any((k == 0).any() for k in values):
        message = f"{method} keeps zeros, and no kernel has one; prune first, or take method qat"
        raise InputError(message)
    shared = [k for k in values if len(np.unique(k)) <= min(MOST_CENTROIDS, k.size / 2)]
    if method in ("cqat", "pcqat") and not shared:
        message = f"{method} keeps clusters, and no kernel has shared values; cluster first, or take method qat"
        raise InputError(message)


def _held(quantized: Any, masks: Mapping[str, Array]) -> Any:
    """A callback that sets what was zero to zero after every step: TFMOT's own mask loses some with batch norm."""
    import tensorflow as tf
    import tf_keras

    by_name = {v.name: v for v in quantized.variables}
    pairs = [(by_name[name], tf.constant(mask, tf.float32)) for name, mask in masks.items() if name in by_name]

    @tf.function  # type: ignore[untyped-decorator]
    def hold() -> None:
        for variable, mask in pairs:
            variable.assign(variable * mask)

    class Held(tf_keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            hold()

    return Held()


def _grid_weights(model: Any, quantized: Any) -> dict[str, list[Array]]:
    """The weights of each layer, those that TFMOT quantizes as its quantizers give them at inference."""
    wrappers = {x.layer.name: x for x in quantized.layers if hasattr(x, "quantize_config")}
    return {
        layer.name: _unwrapped(layer, wrappers[layer.name])
        if layer.name in wrappers
        else quantized.get_layer(layer.name).get_weights()
        for layer in model.layers
        if layer.weights
    }


def _unwrapped(layer: Any, wrapper: Any) -> list[Array]:
    """What a wrapper holds of a layer, in the layer's order; quantized weights on their grid. Raises EdgedlError."""
    import tensorflow as tf

    values = {_last(v.name): np.asarray(v) for v in wrapper.weights}
    if len(values) < len(wrapper.weights):
        message = f"layer {layer.name!r}: TFMOT gives two of its weights one name; leave it out with skip"
        raise EdgedlError(message)
    for variable, quantizer, state in wrapper._weight_vars:
        values[_last(variable.name)] = np.asarray(quantizer(tf.identity(variable), False, weights=state))
    return [values[_last(w.name)] for w in layer.weights]


def _last(name: str) -> str:
    """`conv/kernel:0` -> `kernel`."""
    return name.split(":")[0].split("/")[-1]


def _kept(model: Any, weights: Mapping[str, list[Array]], method: str) -> list[str]:
    """What is left of the zeros and clusters. Raises EdgedlError where a zero was lost."""
    notes = []
    pairs = [
        (layer.name, np.asarray(old), new)
        for layer in model.layers
        for old, new in zip(layer.weights, weights.get(layer.name, ()), strict=False)
        if new.ndim > 1
    ]
    if method in ("pqat", "pcqat"):
        lost = [name for name, old, new in pairs if ((old == 0) & (new != 0)).any()]
        if lost:
            message = f"TFMOT's {method} lost zeros in {', '.join(lost)}"
            raise EdgedlError(message)
        share = sum((new == 0).sum() for *_, new in pairs) / sum(new.size for *_, new in pairs)
        notes.append(f"every zero is kept: {share:.2%} of the kernel weights are zero")
    if method in ("cqat", "pcqat"):
        grown = []
        for name, old, new in pairs:
            before, after = len(np.unique(old)), max(len(np.unique(part)) for part in np.moveaxis(new, -1, 0))
            if after > before:
                grown.append(f"{name} ({before} to {after})")
        if grown:
            notes.append(f"TFMOT did not keep the clusters of {', '.join(grown)}")
        else:
            notes.append(
                "the clusters are kept, in a convolution within each channel, which has an 8-bit scale of its own"
            )
    return notes

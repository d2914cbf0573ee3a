"""Masks for static schemes, where Keras's own do harm.

Keras writes -1e9 into masked scores of attention before the softmax. The range of these integers would hold it, and all
real scores become one code: attention without a preference. An unrolled layer that goes backwards sets the outputs of
the wrong steps to nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

BELOW = 8.0  # the least real score: all that do not count have exp(-8) of its weight, a tenth of int8's 1/256


@contextlib.contextmanager
def near() -> Iterator[None]:
    """In here scores that do not count lie just below the others.

    Those of the layers Softmax, Attention and its kin, and of every `dot_product_attention`.
    """
    import keras
    from keras.src.backend.tensorflow import nn

    softmax, attention, before = keras.layers.Softmax.call, keras.layers.Attention._apply_scores, nn._apply_masks

    def of_softmax(layer: Any, inputs: Any, mask: Any = None) -> Any:
        if mask is None:
            return softmax(layer, inputs)
        kept = mask if mask.dtype == "bool" else keras.ops.greater(mask, 0.5)
        outputs = softmax(layer, _masked(inputs, kept, layer.axis))
        return keras.ops.where(kept, outputs, 0.0)  # nothing where all of a row is masked

    def of_attention(layer: Any, scores: Any, value: Any, scores_mask: Any = None, training: bool = False) -> Any:
        if scores_mask is not None:
            kept = scores_mask if len(scores_mask.shape) > 2 else keras.ops.expand_dims(scores_mask, -2)
            scores = _masked(scores, kept, -1)
        return attention(layer, scores, value, None, training)

    def of_scores(scores: Any, mask: Any, is_causal: bool) -> Any:
        if is_causal:
            causal = keras.ops.tril(keras.ops.ones(scores.shape[-2:], "bool"))
            mask = causal if mask is None else keras.ops.logical_and(mask, causal)
        return scores if mask is None else _masked(scores, mask, -1)

    keras.layers.Softmax.call, keras.layers.Attention._apply_scores, nn._apply_masks = (
        of_softmax,
        of_attention,
        of_scores,
    )
    try:
        yield
    finally:
        keras.layers.Softmax.call, keras.layers.Attention._apply_scores, nn._apply_masks = softmax, attention, before


def _masked(scores: Any, kept: Any, axis: Any) -> Any:
    from keras import ops

    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    below = BELOW + math.log(math.prod(scores.shape[a] or 1 for a in axes))
    return ops.where(kept, scores, ops.min(scores, axis=axis, keepdims=True) - below)


@contextlib.contextmanager
def backwards() -> Iterator[None]:
    """In here unrolled layers that go backwards set the outputs of masked steps to nothing, as loops do.

    Keras (3.15, backend/tensorflow/rnn.py) takes the steps of the mask in reverse, but not for these outputs.
    """
    from keras import tree
    from keras.src import backend

    before = backend.rnn

    def rnn(step: Any, inputs: Any, states: Any, **given: Any) -> Any:
        mask = given.get("mask")
        if mask is None or not (
            given.get("unroll") and given.get("go_backwards") and given.get("zero_output_for_mask")
        ):
            return before(step, inputs, states, **given)
        axis = 0 if given.get("time_major") else 1
        inputs, given["mask"] = tree.map_structure(lambda t: backend.numpy.flip(t, axis), (inputs, mask))
        return before(step, inputs, states, **given | {"go_backwards": False})

    backend.rnn = rnn
    try:
        yield
    finally:
        backend.rnn = before

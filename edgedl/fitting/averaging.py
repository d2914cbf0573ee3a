"""The mean of the weights that a training goes through, which is better than any of them at a rate that stays high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DECAY = 8.0  # the mean is over some tenth of the steps, the latest


class Average:
    """Polynomial-decay averaging of floats: Shamir and Zhang, arXiv:1212.1824, section 4, with eta = 8.

    After step t: mean += (1 + eta) / (t + eta) * (weights - mean). Its reach grows with the training, so there is
    nothing to choose. Statistics of batch normalization are not those of averaged weights: estimate them again.
    """

    def __init__(self, weights: Sequence[Any]) -> None:
        """`weights` are Keras variables; those of integers, such as states of random generators, are left out."""
        import keras
        import tensorflow as tf

        self._weights = [v for v in weights if keras.backend.is_float_dtype(v.dtype)]
        self._means = [keras.Variable(v.numpy(), dtype=v.dtype, trainable=False) for v in self._weights]
        self._steps = keras.Variable(0, dtype="int64", trainable=False)
        self.variables = [*self._means, self._steps]
        self.add = tf.function(self._add)

    def _add(self) -> None:
        """Take the weights as they are now into the mean."""
        import tensorflow as tf

        self._steps.value.assign_add(1)
        share = (1 + DECAY) / (tf.cast(self._steps.value, tf.float32) + DECAY)
        for mean, weights in zip(self._means, self._weights, strict=True):
            mean.value.assign_add(tf.cast(share, mean.dtype) * (weights.value - mean.value))

    def put(self) -> None:
        """Set the weights to the mean."""
        for mean, weights in zip(self._means, self._weights, strict=True):
            weights.assign(mean.value)

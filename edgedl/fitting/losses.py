"""Which loss and which metric an output trains with, chosen from what it gives and what its targets are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.models.tensors import specs

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
PROBABILITY_SUM_TOLERANCE = 0.05  # quantized probabilities do not sum to exactly one


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """How one output is judged; `loss_name` is a Keras loss, `metric_name` the key of its figure."""

    output: str
    function: Any
    metric_name: str
    metric_kind: str  # top1, top1_onehot, threshold, absolute
    note: str

    def loss(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        """The loss of each sample, shape (batch,)."""
        import tensorflow as tf

        output, target = outputs[self.output], self._aligned(outputs, targets)
        values = tf.cast(self.function(target, output), tf.float32)
        if values.shape.rank == 0:  # a user's function that has averaged already
            return tf.fill((tf.shape(output)[0],), values)
        return _per_sample(values)

    def metric(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        """Share of correct values, or mean absolute error, of each sample, shape (batch,)."""
        import tensorflow as tf

        output, target = outputs[self.output], self._aligned(outputs, targets)
        if self.metric_kind == "absolute":
            return _per_sample(tf.abs(output - tf.cast(target, tf.float32)))
        if self.metric_kind == "threshold":
            right = tf.equal(output > 0.5, tf.cast(target, tf.float32) > 0.5)
        else:
            labels = target if self.metric_kind == "top1" else tf.argmax(target, axis=-1)
            right = tf.equal(tf.argmax(output, axis=-1), tf.cast(labels, tf.int64))
        return _per_sample(tf.cast(right, tf.float32))

    def _aligned(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        """The target with the output's rank, or one less for class numbers: # (n,) for (n, 1); (n, 1) for (n, 10)."""
        import tensorflow as tf

        output, target = outputs[self.output], targets[self.output]
        if self.metric_kind == "top1":
            same_rank = target.shape.rank == output.shape.rank
            return tf.squeeze(target, axis=-1) if same_rank else target
        return target if target.shape.rank == output.shape.rank else target[..., None]


def choose(
    model: keras.Model,
    inputs: Mapping[str, Array],
    targets: Mapping[str, Array],
    loss: Any,
    *,
    partial: bool,
) -> list[Criterion]:
    """One criterion an output, from a few samples. `loss` is None, a Keras loss, or one by output name.

    `partial` lets outputs go without targets. Raises InputError for missing or unknown targets and shapes that
    no loss fits.
    """
    names = [spec.name for spec in specs(model)[1]]
    unknown = [n for n in (*targets, *(loss if isinstance(loss, Mapping) else ())) if n not in names]
    missing = [] if partial else [n for n in names if n not in targets]
    if unknown or missing:
        found = f"unknown: {', '.join(unknown)}" if unknown else f"no targets for: {', '.join(missing)}"
        message = f"targets and losses go by output name; {found}; the model's outputs are {', '.join(names)}"
        raise InputError(message)
    given = loss if isinstance(loss, Mapping) else dict.fromkeys(names, loss)
    produced = _outputs(model, inputs)
    ends = {n: ends_in(t, "sigmoid") for n, t in zip(names, model.outputs, strict=True)}
    judged = [n for n in names if n in targets]
    alone = len(judged) == 1
    return [_criterion(n, produced[n], targets[n], given.get(n), sigmoid=ends[n], alone=alone) for n in judged]


def packed(model: keras.Model, tensors: list[Any]) -> Any:
    """Tensors in Keras's flat order in the structure that the model is called with."""
    import keras

    return tensors[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, tensors)


def _outputs(model: keras.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    import keras
    import tensorflow as tf

    takes, gives = specs(model)
    tensors = [tf.cast(inputs[spec.name], spec.dtype) for spec in takes]
    flat = keras.tree.flatten(model(packed(model, tensors), training=False))
    return {spec.name: t.numpy() for spec, t in zip(gives, flat, strict=True)}


def ends_in(tensor: Any, function: str) -> bool:
    """Whether a sigmoid or softmax makes this output, looking through layers that keep its shape."""
    import keras

    while True:
        operation, node, index = tensor._keras_history
        if isinstance(operation, keras.Model):
            tensor = operation.outputs[index]
            continue
        activation = getattr(operation, "activation", None)
        name = getattr(activation, "__name__", type(operation).__name__).lower()
        sources = operation._inbound_nodes[node].input_tensors
        if name == function or len(sources) != 1 or sources[0].shape != tensor.shape:
            return name == function
        if activation is not None and name != "linear":
            return False
        tensor = sources[0]


def _criterion(name: str, output: Array, target: Array, loss: Any, *, sigmoid: bool, alone: bool) -> Criterion:
    import keras

    chosen, kind = _rule(name, output, target, sigmoid=sigmoid, given=loss is not None)
    function = keras.losses.get(loss if loss is not None else chosen.removesuffix("_from_logits"))
    if isinstance(function, keras.losses.Loss):
        function = function.call
    elif loss is None and chosen.endswith("_from_logits"):
        function = _from_logits(function)
    if loss is None:
        note = f"loss of output {name!r}: {chosen}, chosen for its values and targets"
    else:
        note = f"loss of output {name!r}: {getattr(loss, '__name__', loss)}, as given"
    metric = "mae" if kind == "absolute" else "accuracy"
    return Criterion(
        output=name,
        function=function,
        metric_name=metric if alone else f"{name}_{metric}",
        metric_kind=kind,
        note=note,
    )


def _rule(name: str, output: Array, target: Array, *, sigmoid: bool, given: bool) -> tuple[str, str]:
    """The loss for an output and its targets, and the kind of its metric."""
    whole = target.dtype.kind in "iub"
    classes = output.shape[-1] if output.ndim > 1 else 1
    numbers = target.shape[:-1] if target.ndim == output.ndim and target.shape[-1] == 1 else target.shape
    unit = bool(output.min() >= 0 and output.max() <= 1)
    sums_to_one = classes > 1 and unit and bool(np.abs(output.sum(-1) - 1).max() <= PROBABILITY_SUM_TOLERANCE)
    if whole and classes > 1 and numbers == output.shape[:-1]:
        return "sparse_categorical_crossentropy" + ("" if sums_to_one else "_from_logits"), "top1"
    if target.shape != output.shape and (*target.shape, 1) != output.shape:
        if given:
            return "", "absolute"
        message = (
            f"output {name!r} gives {output.shape[1:]} a sample, its targets have {target.shape[1:]}; "
            f"allowed: the same, or class numbers of shape {output.shape[1:-1]}"
        )
        raise InputError(message)
    in_unit = bool(target.min() >= 0 and target.max() <= 1)
    if sums_to_one and in_unit and np.allclose(target.sum(-1), 1, atol=1e-3):
        return "categorical_crossentropy", "top1_onehot"
    if sigmoid and unit and in_unit:
        return "binary_crossentropy", "threshold" if np.isin(target, (0, 1)).all() else "absolute"
    return "mean_squared_error", "absolute"


def _from_logits(function: Any) -> Any:
    def with_logits(target: Any, output: Any) -> Any:
        return function(target, output, from_logits=True)

    return with_logits


def _per_sample(values: Any) -> Any:
    """The mean over every axis but the first."""
    import tensorflow as tf

    axes = list(range(1, values.shape.rank))
    return tf.reduce_mean(values, axis=axes) if axes else values

"""Learning from the original model: its answers at a temperature, its features, what it says of each place.

Labels are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import graph
from edgedl.compression.activation_maps import Head, head_of
from edgedl.errors import InputError
from edgedl.fitting.losses import choose, ends_in, packed
from edgedl.fitting.samples import TrainingData
from edgedl.models import specs
from edgedl.models.tensors import with_outputs
from edgedl.recipes import Distill

if TYPE_CHECKING:
    import keras

SMALLEST = 1e-7  # a probability's floor before its logarithm is taken
FEATURE = "feature."
MAPS = "maps."


def softened_divergence(teacher: Any, student: Any, temperature: float) -> Any:
    """KL(teacher || student) of softmax(logits / T) times T squared; Hinton et al., arXiv:1503.02531, section 2.

    # (batch, ..., classes) logits -> (batch, ...); T squared keeps the gradient's size, as that section says.
    """
    import tensorflow as tf

    log_p = tf.nn.log_softmax(teacher / temperature, axis=-1)
    log_q = tf.nn.log_softmax(student / temperature, axis=-1)
    return temperature**2 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def softened_binary_divergence(teacher: Any, student: Any, temperature: float) -> Any:
    """The same for independent sigmoids: logits of any shape -> the same shape."""
    import tensorflow as tf

    p = tf.sigmoid(teacher / temperature)
    cross = tf.nn.sigmoid_cross_entropy_with_logits(labels=p, logits=student / temperature)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=p, logits=teacher / temperature)
    return temperature**2 * (cross - entropy)


def _log(probabilities: Any) -> Any:
    import tensorflow as tf

    return tf.math.log(tf.maximum(probabilities, SMALLEST))


class Teaching:
    """A student, what to train of it (`trainee`: the student, with its features as further outputs), the objective."""

    def __init__(
        self, student: keras.Model, teacher: keras.Model, options: Distill, data: TrainingData, where: str
    ) -> None:
        self.options, self.where = options, where
        names = [[s.name for s in specs(m)[1]] for m in (student, teacher)]
        if names[0] != names[1]:
            message = f"{where}: the teacher's outputs are {names[1]}, the model's {names[0]}"
            raise InputError(message)
        inputs, targets = data.take(np.arange(min(data.count, 256)))
        self.criteria = choose(student, inputs, targets, None, partial=True)
        if options.activation_maps:
            teacher = graph.flattened(teacher)
        features = self._features(student, teacher)
        self.heads = self._heads(student, teacher) if options.activation_maps else {}
        self.notes: tuple[str, ...] = ()
        if options.activation_maps and not self.heads:
            self.notes = ("no activation maps to learn: no Dense layer takes an average over all places of an image",)
        self.student, self.trainee, self.teacher = student, student, teacher
        if features or self.heads:
            self.trainee, self.teacher = (
                _with_more(
                    model,
                    {FEATURE + pair[i].name: pair[i].output for pair in features}
                    | {MAPS + name: pair[i].features for name, pair in self.heads.items()},
                )
                for i, model in enumerate((student, teacher))
            )
        self.features = [FEATURE + layer.name for layer, _ in features]
        self.kinds = self._kinds(inputs, targets, names[0])

    def objective(self, inputs: Any, outputs: Any, targets: Any) -> Any:
        """The loss of each sample, shape (batch,)."""
        answers = self._answers(inputs)
        alpha = self.options.alpha if targets else 1.0
        loss = alpha * sum(self._imitation(name, answers[name], outputs[name]) for name in self.kinds)
        if targets and alpha < 1:
            loss += (1 - alpha) * sum(c.loss(outputs, targets) for c in self.criteria)
        for name in self.features:
            loss += self.options.feature_weight * _mean(_square(answers[name] - outputs[name]))
        for name in self.heads:
            loss += self.options.activation_maps * self._difference(name, answers[MAPS + name], outputs[MAPS + name])
        return loss

    def _difference(self, name: str, teacher: Any, student: Any) -> Any:
        """Mean square of that of the maps: a softmax is blind to what is added to all classes.

        What `softened_divergence` becomes at high temperatures (section 2.1 there), here for each place.
        """
        import tensorflow as tf

        ours, theirs = self.heads[name]
        difference = ours.maps(student, training=True) - theirs.maps(teacher)
        if self.kinds[name] in ("probabilities", "logits"):
            difference -= tf.reduce_mean(difference, axis=-1, keepdims=True)
        return _mean(_square(difference))

    def _answers(self, inputs: Any) -> dict[str, Any]:
        import keras
        import tensorflow as tf

        flat = keras.tree.flatten(self.teacher(packed(self.teacher, list(inputs.values())), training=False))
        names = [s.name for s in specs(self.teacher)[1]]
        return {n: tf.stop_gradient(tf.cast(t, tf.float32)) for n, t in zip(names, flat, strict=True)}

    def _kinds(self, inputs: Mapping[str, Any], targets: Mapping[str, Any], names: list[str]) -> dict[str, str]:
        """How each output is imitated: as probabilities, sigmoids, logits, or plain values."""
        import tensorflow as tf

        typed = {s.name: tf.cast(inputs[s.name], s.dtype) for s in specs(self.teacher)[0]}
        answers = self._answers(typed)
        tensors = dict(zip(names, self.student.outputs, strict=True))
        logits = {c.output for c in self.criteria if c.metric_kind == "top1" and c.output in targets}
        kinds = {}
        for name in names:
            values = answers[name].numpy()
            several = values.ndim > 1 and values.shape[-1] > 1
            sums = several and values.min() >= 0 and np.abs(values.sum(-1) - 1).max() < 1e-2
            if sums:
                kinds[name] = "probabilities"
            elif ends_in(tensors[name], "sigmoid"):
                kinds[name] = "sigmoids"
            else:
                kinds[name] = "logits" if name in logits else "values"
        return kinds

    def _imitation(self, name: str, teacher: Any, student: Any) -> Any:
        kind, temperature = self.kinds[name], self.options.temperature
        if kind == "values":
            return _mean(_square(teacher - student))
        if kind == "sigmoids":
            ours, theirs = (_log(x) - _log(1 - x) for x in (student, teacher))
            return _mean(softened_binary_divergence(theirs, ours, temperature))
        ours, theirs = (_log(x) if kind == "probabilities" else x for x in (student, teacher))
        return _mean(softened_divergence(theirs, ours, temperature))

    def _heads(self, student: keras.Model, teacher: keras.Model) -> dict[str, tuple[Head, Head]]:
        """Of both models, by output; those that have none are left out."""
        return {
            spec.name: (ours, theirs)
            for spec, *tensors in zip(specs(student)[1], student.outputs, teacher.outputs, strict=True)
            for ours, theirs in [[head_of(t) for t in tensors]]
            if ours and theirs and ours.features.shape[1:-1] == theirs.features.shape[1:-1]
        }

    def _features(self, student: keras.Model, teacher: keras.Model) -> list[tuple[Any, Any]]:
        """Pairs of layers of one name and output shape. Raises InputError for a pattern without any."""
        theirs = {layer.name: layer for layer in teacher.layers}
        pairs = []
        for pattern in self.options.features:
            found = [
                (layer, theirs[layer.name])
                for layer in student.layers
                if fnmatchcase(layer.name, pattern) and layer.name in theirs and _alike(layer, theirs[layer.name])
            ]
            if not found:
                message = f"{self.where}: distill features {pattern!r} hits no layer that both models have in one shape"
                raise InputError(message)
            pairs += [pair for pair in found if pair not in pairs]
        return pairs


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether both are called once and give tensors of one shape."""
    shapes = [
        [tuple(t.shape) for node in layer._inbound_nodes for t in node.output_tensors] for layer in (ours, theirs)
    ]
    return shapes[0] == shapes[1] and len(shapes[0]) == 1


def _square(x: Any) -> Any:
    return x * x


def _mean(values: Any) -> Any:
    """The mean of each sample, shape (batch,)."""
    import tensorflow as tf

    return tf.reduce_mean(tf.reshape(values, (tf.shape(values)[0], -1)), axis=-1)


def _with_more(model: keras.Model, tensors: dict[str, Any]) -> keras.Model:
    """The model with these tensors of it as further outputs, by name, weights shared."""
    outputs = {spec.name: tensor for spec, tensor in zip(specs(model)[1], model.outputs, strict=True)}
    return with_outputs(model, outputs | tensors)

"""Learning from the original model: its answers at a temperature, and its features; labels are optional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import graph
from edgedl.compression.features import imitated
from edgedl.errors import InputError
from edgedl.fitting.losses import choose, ends_in, packed
from edgedl.fitting.samples import TrainingData, batches
from edgedl.models import specs
from edgedl.models.tensors import graph_operations, is_graph, with_outputs
from edgedl.recipes import Distill

if TYPE_CHECKING:
    import keras

SMALLEST = 1e-7  # a probability's floor before its logarithm is taken
FEATURE = "feature."
SEEN, SEEN_BATCH = 256, 32  # samples that show what the teacher answers, and how many at a time


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
        inputs, targets = data.take(np.unique(np.linspace(0, data.count - 1, SEEN).astype(int)))
        self.criteria = choose(student, inputs, targets, None, partial=True)
        self.student, self.trainee, self.teacher = student, student, teacher
        self.features = self._add_features(student, teacher) if options.features else []
        answers, self.powers = self._seen(inputs, names[0])
        self.kinds = self._kinds(answers, targets, names[0])
        if not self.kinds and not self.features:
            message = f"{where}: distill: the outputs {', '.join(names[0])} are no floats to imitate; name features"
            raise InputError(message)

    def objective(self, inputs: Any, outputs: Any, targets: Any) -> Any:
        """The loss of each sample, shape (batch,)."""
        answers = self._answers(inputs)
        alpha = self.options.alpha if targets else 1.0
        loss = alpha * sum(self._imitation(name, answers[name], outputs[name]) for name in self.kinds)
        if targets and alpha < 1:
            loss += (1 - alpha) * sum(c.loss(outputs, targets) for c in self.criteria)
        for name, power in zip(self.features, self.powers, strict=True):
            weight = self.options.feature_weight / len(self.features) / power
            loss += weight * _mean(_square(answers[FEATURE + name] - outputs[FEATURE + name]))
        return loss

    def _answers(self, inputs: Any) -> dict[str, Any]:
        import keras
        import tensorflow as tf

        flat = keras.tree.flatten(self.teacher(packed(self.teacher, list(inputs.values())), training=False))
        names = [s.name for s in specs(self.teacher)[1]]
        return {n: tf.stop_gradient(tf.cast(t, tf.float32)) for n, t in zip(names, flat, strict=True)}

    def _seen(self, inputs: Mapping[str, Any], names: list[str]) -> tuple[dict[str, Any], list[float]]:
        """What the teacher answers, and the mean square of each feature, which is not kept."""
        import tensorflow as tf

        answers: dict[str, list[Any]] = {name: [] for name in names}
        sums = np.zeros(len(self.features))
        count = len(next(iter(inputs.values())))
        for rows in batches(np.arange(count), SEEN_BATCH):
            found = self._answers({s.name: tf.cast(inputs[s.name][rows], s.dtype) for s in specs(self.teacher)[0]})
            sums += [len(rows) / count * float(tf.reduce_mean(_square(found[FEATURE + n]))) for n in self.features]
            for name in names:
                answers[name].append(found[name].numpy())
        return {name: np.concatenate(parts) for name, parts in answers.items()}, [float(s) or 1.0 for s in sums]

    def _kinds(self, answers: Mapping[str, Any], targets: Mapping[str, Any], names: list[str]) -> dict[str, str]:
        """How each output is imitated: as probabilities, sigmoids, logits, or plain values."""
        tensors = dict(zip(names, self.student.outputs, strict=True))
        logits = {c.output for c in self.criteria if c.metric_kind == "top1" and c.output in targets}
        kinds = {}
        for name in names:
            if "float" not in str(tensors[name].dtype):
                continue  # an answer such as argmax, which nothing can follow
            values = answers[name]
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

    def _add_features(self, student: keras.Model, teacher: keras.Model) -> list[str]:
        """Give both the tensors to imitate as further outputs. Returns their layers; raises as `imitated` does."""
        graph.require_graph(student)
        if not any(is_graph(op) for op in graph_operations(student)):  # most steps make a flat model
            teacher = graph.flattened(teacher)
        pairs = imitated(student, teacher, self.options.features, self.where)
        ours, theirs = ({FEATURE + name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
        self.trainee, self.teacher = _with_outputs(student, ours), _with_outputs(teacher, theirs)
        return list(pairs)


def _square(x: Any) -> Any:
    return x * x


def _mean(values: Any) -> Any:
    """The mean of each sample, shape (batch,)."""
    import tensorflow as tf

    return tf.reduce_mean(tf.reshape(values, (tf.shape(values)[0], -1)), axis=-1)


def _with_outputs(model: keras.Model, further: dict[str, Any]) -> keras.Model:
    """The model with these of its tensors as outputs too, weights shared."""
    outputs = {spec.name: tensor for spec, tensor in zip(specs(model)[1], model.outputs, strict=True)}
    return with_outputs(model, outputs | further)

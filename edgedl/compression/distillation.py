"""Learning from the original model: its answers at a temperature, and its features; labels are optional."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import graph
from edgedl.compression.placement import activation_name
from edgedl.errors import InputError
from edgedl.fitting.losses import choose, ends_in, packed
from edgedl.fitting.samples import TrainingData
from edgedl.models import specs
from edgedl.models.tensors import graph_nodes, graph_operations, is_graph, with_outputs
from edgedl.recipes import Distill

if TYPE_CHECKING:
    import keras

SMALLEST = 1e-7  # a probability's floor before its logarithm is taken
FEATURE = "feature."


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
        self.student, self.trainee, self.teacher = student, student, teacher
        self.features: list[str] = []
        if options.features:
            self._add_features(student, teacher)
        self.kinds = self._kinds(inputs, targets, names[0])
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
        for name in self.features:
            loss += self.options.feature_weight * _mean(_square(answers[name] - outputs[name]))
        return loss

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
            if "float" not in str(tensors[name].dtype):
                continue  # an answer such as argmax, which nothing can follow
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

    def _add_features(self, student: keras.Model, teacher: keras.Model) -> None:
        """Give both the tensors that a pattern names as further outputs. Raises InputError for a pattern without any.

        Most steps make a flat model, whose layers are then those of the flat teacher.
        """
        graph.require_graph(student)
        if not any(is_graph(op) for op in graph_operations(student)):
            teacher = graph.flattened(teacher)
        pairs = _pairs(student, teacher)
        for pattern in self.options.features:
            found = [name for name in pairs if fnmatchcase(name, pattern)]
            if not found:
                message = (
                    f"{self.where}: distill features {pattern!r} hits no layer that both models have, with one output "
                    f"of the same shape and activation; there are {', '.join(sorted(pairs)) or 'none'}"
                )
                raise InputError(message)
            self.features += [FEATURE + name for name in found if FEATURE + name not in self.features]
        ours, theirs = ({f: pairs[f.removeprefix(FEATURE)][i] for f in self.features} for i in (0, 1))
        self.trainee, self.teacher = _with_outputs(student, ours), _with_outputs(teacher, theirs)


def _pairs(student: keras.Model, teacher: keras.Model) -> dict[str, tuple[Any, Any]]:
    """Tensors that should be alike by the name of the layer that gives them, which both models call once."""
    ours, theirs = _single_calls(student), _single_calls(teacher)
    takers: dict[int, list[Any]] = {}
    for node in graph_nodes(teacher):
        for tensor in node.input_tensors:
            takers.setdefault(id(tensor), []).append(node)
    gone = set(theirs) - set(ours)
    pairs = {}
    for name in ours:
        if name not in theirs or _activation(ours[name]) != _activation(theirs[name]):
            continue
        tensor = _after_folded(theirs[name].outputs[0], takers, gone)
        if tuple(ours[name].outputs[0].shape) == tuple(tensor.shape):
            pairs[name] = (ours[name].outputs[0], tensor)
    return pairs


def _single_calls(model: keras.Model) -> dict[str, Any]:
    """The calls with one output of the layers that are called once, by the layers' names."""
    nodes = list(graph_nodes(model))
    times = Counter(node.operation.name for node in nodes)
    return {n.operation.name: n for n in nodes if times[n.operation.name] == 1 and len(n.outputs) == 1}


def _activation(node: Any) -> str:
    """The activation of a call, or of the one before it where this is the range that quantization gave an output."""
    while type(node.operation).__name__ in ("FakeQuantize", "Barrier"):
        before, number, _ = node.input_tensors[0]._keras_history
        node = before._inbound_nodes[number]
    return activation_name(getattr(node.operation, "activation", None))


def _after_folded(tensor: Any, takers: Mapping[int, list[Any]], gone: set[str]) -> Any:
    """What a layer gives once the batch normalizations that the other model has no more are folded into it."""
    while len(after := takers.get(id(tensor), [])) == 1:
        layer = after[0].operation
        if type(layer).__name__ != "BatchNormalization" or layer.name not in gone:
            break
        tensor = after[0].outputs[0]
    return tensor


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

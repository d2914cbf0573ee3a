"""What the step `quantize` does, one thing after the other; imported where Keras is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl import graph
from edgedl.compression import equalize, ranges, rounding
from edgedl.compression.base import Context, fine_tune
from edgedl.compression.fake_quant import Adapt, FakeQuantize, KernelLayer, as_float
from edgedl.compression.fake_quant_graph import AFFINE, prepared, quantized
from edgedl.compression.fold import fold
from edgedl.compression.kernels import all_kernels
from edgedl.compression.placement import Plan, is_real, plan, weights_alone
from edgedl.compression.preservation import preserved, shared_values
from edgedl.compression.quantize import Options
from edgedl.errors import InputError
from edgedl.fitting.pointwise import sampled_first
from edgedl.fitting.samples import TrainingData, batches
from edgedl.graph import Graph
from edgedl.models.tensors import call_flat, carried_scheme, specs
from edgedl.toml import did_you_mean
from edgedl.types import Scheme

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
BATCH = 64
VALUES = 1 << 18  # of a tensor that an estimate is made of
PROOF = 1e-4  # float32 in another order


def quantize(model: keras.Model, data: TrainingData, options: Options, context: Context) -> keras.Model:
    """The fake-quant model of `model`, calibrated, and trained where the step says so."""
    where, scheme = context.step.where, Scheme.parse(options.scheme)
    if carried := carried_scheme(model):
        message = f"{where}: model {model.name!r} is quantized already, for {carried.value}; give the float model"
        raise InputError(message)
    flat, _ = fold(graph.flattened(model))
    keep = _keeper(flat, options.keep_float, where)
    ready = prepared(flat, keep, static=scheme.is_static)
    if options.equalize:
        ready = graph.flattened(ready) if ready is flat else ready
        _equalize(ready, context)
    walked = Graph.of(ready)
    placed = (plan if scheme.is_static else weights_alone)(walked, lambda call: keep(call.name))
    training = context.step.training
    adapt: Adapt = None if training is None else "moving" if options.ranges == "moving_average" else "learned"
    made, found, kernels = quantized(ready, placed, walked, scheme, adapt)
    with as_float:
        graph.prove(model, made, PROOF, what="the model with places for ranges")
    samples = _Samples(made, data, options.samples, context.seed)
    silent = calibrate(made, samples, options)
    if names := _givers(walked, placed, {group for group, range_ in found.items() if range_.name in silent}):
        context.say(f"{where}: nothing but 0 on the samples, so their ranges are a guess: {', '.join(names)}")
    if options.rounding == "adaround":
        with sampled_first(made):
            _adaround(made, samples, context)
    if options.bias_correction:
        correct_biases(made, samples)
    if training is not None:
        # there is little to recover: small steps suit the grid of the integers, in channels of any size
        fine_tune(made, data, training, context, on_step=preserved(made), small=1.0)
    settle(placed, walked, found, kernels)
    return made


def _keeper(model: keras.Model, patterns: Sequence[str], where: str) -> Any:
    """Whether a layer of that name stays float. Raises InputError for a pattern that hits none.

    What makes numbers out of an input of integers, such as pixels, has no integer operator.
    """
    walked = Graph.of(model)
    names = list(walked.layers)
    first = {c.name for c in walked.calls if c.kind in AFFINE and not is_real(c.inputs[0])}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = did_you_mean(pattern, names)
            message = f"{where}: keep_float {pattern!r} hits no layer{near}; there are {', '.join(sorted(names))}"
            raise InputError(message)
    return lambda name: name in first or any(fnmatchcase(name, pattern) for pattern in patterns)


def _equalize(model: keras.Model, context: Context) -> None:
    before = model.get_weights()
    walked = Graph.of(model)
    pairs, left = equalize.equalize(model, walked)
    after = model.get_weights()
    model.set_weights(before)
    unchanged = graph.flattened(model)
    model.set_weights(after)
    graph.prove(unchanged, model, PROOF, what="the equalized model")
    if left:
        context.say(f"{context.step.where}: not equalized, as their weights share values or codes: {', '.join(left)}")
    elif not pairs:
        context.say(f"{context.step.where}: equalize found no two layers that follow each other through ReLU alone")


class _Samples:
    """The drawn samples, as the model takes them."""

    def __init__(self, model: keras.Model, data: TrainingData, count: int, seed: int) -> None:
        drawn = data.drawn(count, seed)
        inputs, _ = drawn.take(np.arange(drawn.count))
        self.arrays = [inputs[spec.name].astype(spec.dtype) for spec in specs(model)[0]]
        self.model, self.seed = model, seed

    def run(self) -> Iterator[list[Any]]:
        """The outputs of batch after batch; layers are watched through `watching`."""
        for rows in batches(np.arange(len(self.arrays[0])), BATCH):
            yield call_flat(self.model, [a[rows] for a in self.arrays])


@contextmanager
def watching(watch: Any) -> Iterator[None]:
    """Every range and every layer with a kernel tells `watch(layer, inputs)` what it is given."""
    as_float.watch = watch
    try:
        yield
    finally:
        as_float.watch = None


def _givers(walked: Graph, placed: Plan, groups: set[int]) -> list[str]:
    """The names of the inputs and layers whose tensors have these ranges."""
    named = [(value.tensor.name, value) for value in walked.inputs]
    named += [(call.name, value) for call in walked.calls for value in call.outputs]
    return list(dict.fromkeys(name for name, value in named if placed.group.get(value) in groups))


def calibrate(model: keras.Model, samples: _Samples, options: Options) -> set[str]:
    """Set every range from what the float model gives there. Returns the names of those that saw nothing but zeros."""
    found: dict[str, _Seen] = {}
    generator = np.random.default_rng([samples.seed, 6])
    share = VALUES * BATCH // max(BATCH, len(samples.arrays[0]))

    def watch(layer: Any, values: Any) -> None:
        if isinstance(layer, FakeQuantize) and not layer.fixed:
            found.setdefault(layer.name, _Seen()).add(values.numpy(), share, generator)

    with as_float, watching(watch):
        for _ in samples.run():
            for seen in found.values():
                seen.end_batch()
    for name, seen in found.items():
        layer = model.get_layer(name)
        layer.set_range(*seen.range(options.ranges, layer.bits, symmetric=layer.symmetric))
    return {name for name, seen in found.items() if not any(seen.lows) and not any(seen.highs)}


class _Seen:
    """What was seen of the tensors of one range: their bounds in each batch, and values drawn from all."""

    def __init__(self) -> None:
        self.bounds: list[tuple[float, float]] = []  # of the tensors in this batch
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.values: list[Array] = []

    def add(self, values: Array, share: int, generator: np.random.Generator) -> None:
        """Take in one tensor of a batch, at most `share` values of it."""
        self.bounds.append((float(values.min()), float(values.max())))
        flat = values.ravel()
        self.values.append(flat if flat.size <= share else flat[generator.integers(0, flat.size, share)])

    def end_batch(self) -> None:
        """All tensors of a batch have been seen."""
        lows, highs = zip(*self.bounds, strict=True)
        self.lows.append(min(lows))
        self.highs.append(max(highs))
        self.bounds.clear()

    def range(self, estimator: ranges.Estimator, bits: int, *, symmetric: bool) -> ranges.Range:
        """The range by an estimator."""
        lows, highs = np.array(self.lows), np.array(self.highs)
        if estimator == "moving_average":
            return ranges.moving_average(lows, highs)
        bounds = ranges.min_max(np.concatenate([lows, highs]))
        if estimator == "min_max" or bits > ranges.NARROW:
            return bounds
        values = np.concatenate(self.values)
        if estimator == "percentile":
            return ranges.percentile(values)
        return ranges.mse(np.append(values, bounds), bits, symmetric=symmetric)


def _kernels(model: keras.Model) -> list[Any]:
    """The layers with a kernel on a grid, in order."""
    return [layer for layer in model.layers if isinstance(layer, KernelLayer)]


class _Layerwise:
    """What each layer is given by the float model, and by the quantized one as it is by then."""

    def __init__(self, model: keras.Model, samples: _Samples) -> None:
        self.model, self.arrays = model, samples.arrays
        self.reference = graph.flattened(model)

    def pairs(self, layer: Any) -> Iterator[tuple[Any, Any]]:
        """Batch after batch: what the layer gets in the float model, and what in the quantized one."""
        import tensorflow as tf

        with as_float:  # read where a function is traced
            first = self._feed(self.reference, layer.name)
        second = self._feed(self.model, layer.name)
        for rows in batches(np.arange(len(self.arrays[0])), BATCH):
            batch = [tf.constant(a[rows]) for a in self.arrays]
            yield from zip(first(*batch), second(*batch), strict=True)

    def _feed(self, model: keras.Model, name: str) -> Any:
        """The inputs of every call of a layer, as a function of the model's inputs."""
        import keras
        import tensorflow as tf

        part = keras.Model(model.inputs, [n.input_tensors[0] for n in model.get_layer(name)._inbound_nodes])
        signature = [tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in self.arrays]
        return tf.function(lambda *arrays: call_flat(part, arrays), autograph=False).get_concrete_function(*signature)


def _adaround(model: keras.Model, samples: _Samples, context: Context) -> None:
    """Put each kernel on its grid by AdaRound, layer after layer, the ones before it being quantized."""
    from edgedl.agent import progress

    layers, layerwise = _kernels(model), _Layerwise(model, samples)
    shared = {id(k.variable) for k in all_kernels(model) if shared_values(k.matrix(k.read())) is not None}
    for i, layer in enumerate(layers):
        progress("rounding", i, len(layers))
        kernel, scales = layer.variable.numpy(), layer.scales
        if rounding.is_on_grid(kernel, scales) or id(layer.variable) in shared:
            continue
        found = list(layerwise.pairs(layer))
        common = [slice(min(sizes)) for sizes in zip(*(x.shape[1:] for x, _ in found), strict=True)]  # of its calls
        cut = [[a[:, *common] for a in pair] for pair in found]
        seen = [(layer.apply_linear(x, kernel).numpy(), y.numpy()) for x, y in cut]
        targets, inputs = (np.concatenate(part) for part in zip(*seen, strict=True))
        options = rounding.AdaRoundOptions(top=layer.top, seed=context.seed)
        codes = rounding.adaround(kernel, scales, inputs, targets, layer.apply_linear, options)
        layer.variable.assign((codes * scales).astype(np.float32))
    progress("rounding", len(layers), len(layers))


def correct_biases(model: keras.Model, samples: _Samples) -> None:
    """Give each layer the mean outputs of its float form, layer after layer; one without a bias stays."""
    layerwise = _Layerwise(model, samples)
    for layer in _kernels(model):
        if layer.bias is None:
            continue
        float_kernel = layerwise.reference.get_layer(layer.name).variable.value
        kernel = layer.on_grid(training=False)
        shifts, sizes = [], []
        for before, now in layerwise.pairs(layer):
            wanted, found = layer.apply_linear(before, float_kernel), layer.apply_linear(now, kernel)
            shifts.append(equalize.bias_shift(wanted.numpy(), found.numpy()))
            sizes.append(len(wanted))
        layer.bias.assign(layer.bias.numpy() + np.average(shifts, axis=0, weights=sizes).astype(np.float32))


def settle(placed: Plan, walked: Graph, found: dict[int, FakeQuantize], kernels: dict[str, Any]) -> None:
    """Bring ranges, kernels and biases to exactly the values that the integer file will hold."""
    for range_ in found.values():
        range_.settle()
    for name, layer in kernels.items():
        layer.variable.assign(layer.on_grid(training=False))
        groups = [placed.group.get(call.inputs[0]) for call in walked.calls_of(name)]
        scales = {found[group].scale for group in groups if group is not None}
        if layer.bias is not None and len(scales) == 1:
            step = scales.pop() * layer.scales.astype(np.float64).ravel()
            layer.bias.assign((np.rint(layer.bias.numpy() / step) * step).astype(np.float32))

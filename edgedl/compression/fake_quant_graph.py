"""A float model made again with kernels on their grids and ranges where its integer form has tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl import graph
from edgedl.compression import ranges
from edgedl.compression.fold import affine_of
from edgedl.compression.placement import FUSED, KERNELS, OWN_ACTIVATIONS, RESHAPES, Plan, activation_name
from edgedl.errors import UnsupportedError
from edgedl.graph import Call, Graph, Value
from edgedl.models.tensors import set_weights
from edgedl.types import Scheme

if TYPE_CHECKING:
    import keras

    from edgedl.compression.fake_quant import Adapt

Array = NDArray[Any]
IMAGE_RANK = 4
AFFINE = ("BatchNormalization", "Rescaling")


def prepared(model: keras.Model, keep: Callable[[str], bool], *, static: bool) -> keras.Model:
    """The same function in layers that TFLite has one operator for.

    Separable convolutions become two. Where activations are integers too, what no operator takes in becomes a layer of
    its own, and a batch normalization or rescaling that is left a depthwise convolution of size 1. Layers that `keep`
    names stay as they are. Raises UnsupportedError naming an activation that has no integer kernel.
    """
    walked, replace = Graph.of(model), {}
    taken = set(walked.layers)
    for name, layer in walked.layers.items():
        if keep(name):
            continue
        kind = type(layer).__name__
        if kind == "SeparableConv2D":
            ends = _gives_output(walked, name)
            replace[name] = _separated(layer, name, taken, outputs=ends) if static else _in_two(layer, name, taken)
        elif not static:
            continue
        elif kind in KERNELS and activation_name(layer.activation) not in ("linear", *FUSED):
            replace[name] = _with_activation(
                layer, name, _plain(layer, name), taken, outputs=_gives_output(walked, name)
            )
        elif kind in AFFINE:
            call = walked.calls_of(name)[0]
            replace[name] = _as_depthwise(layer, name, call.inputs[0].shape)
    if not replace:
        return model
    made = graph.rebuild(model, {name: function for name, (function, _) in replace.items()})
    for _, weights in replace.values():
        for layer, values in weights:
            layer.set_weights(values)
    graph.prove(model, made, 1e-4, what="the model with its activations apart")
    return made


def _gives_output(walked: Graph, name: str) -> bool:
    return any(value in walked.outputs for call in walked.calls_of(name) for value in call.outputs)


Made = tuple[Callable[..., Any], list[tuple[Any, list[Array]]]]  # what to call, and weights to set afterwards


def _plain(layer: Any, name: str) -> str:
    """The layer's activation. Raises UnsupportedError where there is no integer kernel for it."""
    activation = activation_name(layer.activation)
    if activation not in (*ranges.FIXED, *OWN_ACTIVATIONS):
        allowed = ", ".join(sorted({"linear", *ranges.FIXED, *OWN_ACTIVATIONS}))
        message = (
            f"layer {name!r}: activation {activation} has no integer operator; allowed: {allowed}. "
            f"Use one of these, or keep_float = [{name!r}]"
        )
        raise UnsupportedError(message)
    return activation


def _unique(name: str, taken: set[str]) -> str:
    """The name, longer where a layer has it already."""
    while name in taken:
        name = f"{name}_"
    taken.add(name)
    return name


def _with_activation(layer: Any, name: str, activation: str, taken: set[str], *, outputs: bool) -> Made:
    import keras

    inner = graph.copied(layer, _unique(f"{name}_linear", taken) if outputs else name, activation="linear")
    last = keras.layers.Activation(activation, name=name if outputs else _unique(f"{name}_{activation}", taken))
    return lambda x, **_: last(inner(x)), [(inner, layer.get_weights())]


def _separated(layer: Any, name: str, taken: set[str], *, outputs: bool) -> Made:
    """A separable convolution as a depthwise and a 1 by 1 one, whose activation is apart where no operator takes it."""
    function, weights = _in_two(layer, name, taken)
    (first, depthwise), (second, rest) = weights
    if activation_name(layer.activation) in ("linear", *FUSED):
        return function, weights
    end, ((inner, _),) = _with_activation(second, name, _plain(second, name), taken, outputs=outputs)
    return lambda x, **_: end(first(x)), [(first, depthwise), (inner, rest)]


def _in_two(layer: Any, name: str, taken: set[str]) -> Made:
    import keras

    shared = {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}
    first = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        depth_multiplier=layer.depth_multiplier,
        use_bias=False,
        name=_unique(f"{name}_depthwise", taken),
        **shared,
    )
    second = keras.layers.Conv2D(layer.filters, 1, use_bias=layer.use_bias, activation=layer.activation, name=name)
    depthwise, *rest = layer.get_weights()
    return lambda x, **_: second(first(x)), [(first, [depthwise]), (second, rest)]


def _as_depthwise(layer: Any, name: str, shape: tuple[int | None, ...]) -> Made:
    """scale * x + shift a channel, as a convolution of size 1 by 1. Raises UnsupportedError where x is no image."""
    import keras

    channels = shape[-1]
    last = getattr(layer, "axis", -1) in (-1, len(shape) - 1, [len(shape) - 1])
    if len(shape) != IMAGE_RANK or channels is None or not last:
        message = (
            f"layer {name!r} ({type(layer).__name__}) has no layer before it to be folded into, and its input {shape} "
            f"is no image (height, width, channels); put it behind a Dense or convolution, or keep_float = [{name!r}]"
        )
        raise UnsupportedError(message)
    if type(layer).__name__ == "Rescaling":
        scale, shift = (np.broadcast_to(np.asarray(v, np.float32), (channels,)) for v in (layer.scale, layer.offset))
    else:
        scale, shift = affine_of(layer)
    new = keras.layers.DepthwiseConv2D(1, name=name)
    weights = [np.asarray(scale, np.float32).reshape(1, 1, channels, 1), np.asarray(shift, np.float32)]
    return lambda x, **_: new(x), [(new, weights)]


def quantized(
    model: keras.Model, plan: Plan, walked: Graph, scheme: Scheme, adapt: Adapt
) -> tuple[keras.Model, dict[int, Any], dict[str, Any]]:
    """The fake-quant model of a plan on the prepared `model`.

    With it come its ranges, not yet set, by group, and its layers with kernels by the names they have in `model`.
    Inputs and outputs keep their names.
    """
    builder = _Builder(plan, walked, scheme, adapt)
    made = graph.rebuild(model, {name: builder.function(name) for name in walked.layers})
    for layer, weights in builder.weights:
        set_weights(layer, weights)
    for range_ in builder.ranges.values():
        range_.calls = len(range_._inbound_nodes)
    return made, builder.ranges, builder.kernels


class _Builder:
    """What each layer is replaced with: a function that calls its copy and the ranges around it."""

    def __init__(self, plan: Plan, walked: Graph, scheme: Scheme, adapt: Adapt) -> None:
        self.plan, self.walked, self.scheme, self.adapt = plan, walked, scheme, adapt
        self.ranges: dict[int, Any] = {}
        self.inputs: dict[int, Any] = {}  # id of an input tensor -> (itself, with its range)
        self.weights: list[tuple[Any, list[Array]]] = []
        self.kernels: dict[str, Any] = {}
        self.taken = set(walked.layers)
        self.names = dict(self._output_names())

    def _output_names(self) -> Any:
        """Names for the ranges that end the model: those of the layers that gave its outputs."""
        found = [
            (self.plan.group.get(value), call.name)
            for call in self.walked.calls
            for value in call.outputs
            if value in self.walked.outputs
        ]
        groups, names = ([pair[i] for pair in found] for i in (0, 1))
        yield from ((g, n) for g, n in found if g is not None and groups.count(g) == names.count(n) == 1)

    def function(self, name: str) -> Callable[..., Any]:
        """For `graph.rebuild`: called once for every call of the layer, in order."""
        calls = iter(self.walked.calls_of(name))
        layer = self._copy(name)

        def call_next(*args: Any, **kwargs: Any) -> Any:
            import keras

            call = next(calls)
            structure = (args, kwargs)
            given = iter(call.inputs)
            args, kwargs = keras.tree.map_structure(
                lambda t: self._taken(t, next(given), call) if isinstance(t, keras.KerasTensor) else t, structure
            )
            result = layer(*args, **kwargs)
            made = [self._given(t, v, call) for t, v in zip(keras.tree.flatten(result), call.outputs, strict=True)]
            return keras.tree.pack_sequence_as(result, made)

        return call_next

    def _copy(self, name: str) -> Any:
        layer = self.walked.layers[name]
        calls = self.walked.calls_of(name)
        renamed = any(v in self.walked.outputs and v in self.plan.group for c in calls for v in c.outputs)
        own = self._unique(f"{name}_float") if renamed else name
        floats = any(call in self.plan.floats for call in calls)
        if type(layer).__name__ in KERNELS and not floats:
            from edgedl.compression.fake_quant import KERNEL_LAYERS

            kind = KERNEL_LAYERS[type(layer).__name__]
            new = kind.from_config({**layer.get_config(), "name": own, "scheme": self.scheme.value})
            self.kernels[name] = new
        else:
            new = graph.copied(layer, own)
        if getattr(layer, "weights", ()):
            self.weights.append((new, layer.get_weights()))
        return new

    def _taken(self, tensor: Any, value: Value, call: Call) -> Any:
        """An argument of a call: the model's inputs get their ranges here."""
        group = self.plan.group.get(value)
        if value in self.walked.inputs and group is not None and not self._only_floats(value):
            if id(tensor) not in self.inputs:
                self.inputs[id(tensor)] = (tensor, self._range(group)(tensor))
            tensor = self.inputs[id(tensor)][1]
        again = self.plan.again.get(call)
        return tensor if again is None or group in (None, again) else self._again(tensor, group, again, call)

    def _again(self, tensor: Any, group: int, again: int, call: Call) -> Any:
        """A tensor in another range. The converter needs an operator in between: ReLU, for what is never negative."""
        import keras

        if ranges.FIXED[self.plan.fixed[group]][0] < 0:
            message = (
                f"layer {call.name!r} ({call.kind}): {self.plan.fixed[group]} has a range of its own, which cannot "
                f"be joined with others; keep_float = [{call.name!r}]"
            )
            raise UnsupportedError(message)
        return self._range(again)(keras.layers.ReLU(name=self._unique(f"{call.name}_again"))(tensor))

    def _only_floats(self, value: Value) -> bool:
        return all(call in self.plan.floats for call in self.walked.consumers(value))

    def _given(self, result: Any, value: Value, call: Call) -> Any:
        """A result with its range; moving numbers about leaves them on the grid, except where the model ends."""
        group = self.plan.group.get(value)
        moves = call.kind in RESHAPES and call not in self.plan.floats
        if group is None or (moves and value not in self.walked.outputs):
            return result
        if call in self.plan.floats:
            from edgedl.compression.fake_quant import Barrier

            result = Barrier(self.scheme.value, name=self._unique(f"{call.name}_stays_float"))(result)
        return self._range(group)(result)

    def _range(self, group: int) -> Any:
        from edgedl.compression.fake_quant import FakeQuantize

        if group not in self.ranges:
            name = self.names.get(group) or self._unique(f"range_{group}")
            fixed = self.plan.fixed.get(group)
            self.ranges[group] = FakeQuantize(self.scheme.value, fixed, self.adapt, name=name)
        return self.ranges[group]

    def _unique(self, name: str) -> str:
        return _unique(name, self.taken)

"""Which channels hang together: removing one of a group means removing all of them, everywhere in the network.

Every channel of every tensor gets a number; tensors that are added get the same numbers, concatenated ones put theirs
side by side, depthwise convolution and batch normalization pass them on. The dependency graph of Fang et al.,
arXiv:2301.12900, section 3.2, one channel at a time. Channels lie on the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import InputError
from edgedl.graph import Call, Graph, Role, Value, role

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

KERNELS = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), "convolution"),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), "transposed"),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), "separable"),
    "Dense": "dense",
}
DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
ELEMENTWISE = {
    "linear", "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "elu", "selu", "gelu", "silu", "swish", "hard_sigmoid",
    "hard_silu", "hard_swish", "hard_tanh", "softplus", "softsign", "exponential", "mish", "celu", "log_sigmoid",
    "hard_shrink", "soft_shrink", "tanh_shrink", "squareplus", "hard_sigmoid_2",
}  # fmt: skip
NOT_ELEMENTWISE = {"Softmax", "LogSoftmax", "Glu"}
_PASS = {
    "Identity", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "ZeroPadding1D", "ZeroPadding2D",
    "Cropping1D", "Cropping2D", "UpSampling1D", "UpSampling2D", "RepeatVector", "Abs", "Square", "Sqrt", "Clip",
}  # fmt: skip
_MERGE = {"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "TrueDivide", "Divide"}
_REDUCE = {"Mean", "Sum", "Max", "Min"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """A layer whose weights have channels: the group of each input and output channel; `sink` where inputs are mixed.

    # Conv2D (3, 3, in, out): inputs (in,), outputs (out,)
    """

    name: str
    layer: Any
    calls: tuple[Call, ...]
    inputs: Array
    outputs: Array
    sink: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The channel groups of a flat model, numbered from 0 to `count`; `frozen` (count,) may not be removed."""

    graph: Graph
    count: int
    frozen: Array
    uses: dict[str, Use]
    values: dict[Value, Array]  # the group of each channel

    def sources(self) -> dict[str, Use]:
        """The layers that make channels."""
        return {name: use for name, use in self.uses.items() if use.sink}

    def removable(self, use: Use) -> Array:
        """The groups among a layer's outputs that may go."""
        own = np.unique(use.outputs)
        return np.asarray(own[~self.frozen[own]])


def channel_groups(model: keras.Model) -> Groups:
    """The groups of a flat functional model (`graph.flattened`)."""
    return _Finder(Graph.of(model)).groups()


def is_elementwise(layer: Any) -> bool:
    """Whether a layer's own activation treats each value alone."""
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") in ELEMENTWISE


def spread(call: Call, arrays: Sequence[Array], shapes: Sequence[tuple[int | None, ...]]) -> Array | None:
    """Where the channels of one-input and concatenating calls go: (in,) arrays -> (out,); None where unknown.

    Concat puts them side by side, flattening repeats them for every position, others pass them on.
    """
    kind, layer = call.kind, call.layer
    out = call.outputs[0].shape
    if kind == "Concatenate":
        rank = len(out)
        return np.concatenate(arrays) if layer.axis % rank == rank - 1 else None
    first, shape = arrays[0], shapes[0]
    if kind in ("Flatten", "Reshape"):
        return _reshaped(first, shape, out) if getattr(layer, "data_format", "") != "channels_first" else None
    if kind == "Permute":
        return first if layer.dims[-1] == len(out) - 1 else None
    if kind in DEPTHWISE:
        return np.repeat(first, layer.depth_multiplier)
    return first if len(arrays) == 1 and passes(call) else None


def _reshaped(channels: Array, shape: tuple[int | None, ...], out: tuple[int | None, ...]) -> Array | None:
    if out[-1] == shape[-1]:
        return channels
    inner = shape[1:]
    if len(out) == 2 and None not in inner:
        return np.tile(channels, int(np.prod([n for n in inner[:-1] if n is not None])))
    return None


def passes(call: Call) -> bool:
    """Whether a call of one tensor keeps its channels apart and in their places."""
    kind, layer = call.kind, call.layer
    rank = len(call.inputs[0].shape)
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return False
    if kind == "BatchNormalization":
        return bool(layer.axis % rank == rank - 1)
    if kind == "Activation":
        return is_elementwise(layer)
    if kind in NOT_ELEMENTWISE:
        return False
    if kind in _REDUCE:
        axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
        return all(a is not None and a % rank not in (0, rank - 1) for a in axes)
    if kind in _MERGE or kind == "Rescaling":
        return _scalars_only(call)
    return kind in _PASS or role(layer) in (Role.ACTIVATION, Role.POOLING)


def _scalars_only(call: Call) -> bool:
    """Whether what is combined with the tensor is the same number for every channel."""
    import keras

    constants = keras.tree.flatten(call.arguments({})) if call.kind != "Rescaling" else [call.layer.scale]
    constants += [call.layer.offset] if call.kind == "Rescaling" else []
    return all(np.size(c) == 1 for c in constants if c is not None)


class _Finder:
    """Numbers channels call by call, and joins those that depend on each other."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parents: list[int] = []
        self.fixed: list[Array] = []
        self.values: dict[Value, Array] = {}
        self.found: dict[str, tuple[Call, Array, Array, bool]] = {}

    def groups(self) -> Groups:
        """The groups, renumbered without gaps."""
        for value in self.graph.inputs:
            self.values[value] = self._frozen(value)
        for call in self.graph.calls:
            self._call(call)
        self.fixed += [self.values[value] for value in self.graph.outputs]
        roots = np.array([self._root(i) for i in range(len(self.parents))], np.int64)
        names, numbers = np.unique(roots, return_inverse=True)
        frozen = np.zeros(len(names), bool)
        for ids in self.fixed:
            frozen[numbers[ids]] = True
        uses = {
            name: Use(
                name=name,
                layer=call.layer,
                calls=self.graph.calls_of(name),
                inputs=numbers[ins],
                outputs=numbers[outs],
                sink=sink,
            )
            for name, (call, ins, outs, sink) in self.found.items()
        }
        values = {value: numbers[ids] for value, ids in self.values.items()}
        return Groups(graph=self.graph, count=len(names), frozen=frozen, uses=uses, values=values)

    def _call(self, call: Call) -> None:
        handle = self._handler(call)
        made = handle(call) if handle else None
        if made is None or len(made) != call.outputs[0].shape[-1]:
            self._freeze(call)
            return
        self.values[call.outputs[0]] = made

    def _handler(self, call: Call) -> Callable[[Call], Array | None] | None:
        sizes = [v.shape[-1] for v in (*call.inputs, *call.outputs) if len(v.shape) > 1]
        if None in sizes or len(sizes) != len(call.inputs) + len(call.outputs) or len(call.outputs) != 1:
            return None
        if call.kind in KERNELS or call.kind in DEPTHWISE:
            return self._kernel
        return self._merge if call.kind in _MERGE and len(call.inputs) > 1 else self._pass

    def _freeze(self, call: Call) -> None:
        self.fixed += [self.values[v] for v in call.inputs]
        for value in call.outputs:
            self.values[value] = self._frozen(value)

    def _frozen(self, value: Value) -> Array:
        ids = self._fresh(value.shape[-1] or 0 if len(value.shape) > 1 else 0)
        self.fixed.append(ids)
        return ids

    def _fresh(self, count: int) -> Array:
        start = len(self.parents)
        self.parents += range(start, start + count)
        return np.arange(start, start + count)

    def _kernel(self, call: Call) -> Array | None:
        layer, ins = call.layer, self.values[call.inputs[0]]
        plain = getattr(layer, "data_format", "channels_last") == "channels_last" and len(call.inputs) == 1
        if not plain or (getattr(layer, "groups", 1) > 1 and call.kind not in DEPTHWISE):
            return None
        sink = call.kind in KERNELS
        if call.name in self.found:  # a layer called again has the same channels again
            _, first_ins, outs, _ = self.found[call.name]
            self._join(first_ins, ins)
            if not sink:
                return outs
        else:
            outs = self._fresh(int(call.outputs[0].shape[-1] or 0)) if sink else np.repeat(ins, layer.depth_multiplier)
        self.found.setdefault(call.name, (call, ins, outs, sink))
        if not is_elementwise(layer):
            self.fixed.append(outs)
        return outs

    def _merge(self, call: Call) -> Array | None:
        arrays = [self.values[v] for v in call.inputs]
        width = call.outputs[0].shape[-1]
        if not _scalars_only(call) or any(len(a) not in (1, width) for a in arrays):
            return None
        wide = [a for a in arrays if len(a) == width]
        self.fixed += [a for a in arrays if len(a) != width]
        for other in wide[1:]:
            self._join(wide[0], other)
        return wide[0]

    def _pass(self, call: Call) -> Array | None:
        if call.kind == "Reshape" and not hasattr(call.layer, "target_shape"):  # the op: its size stays what it is
            return None
        arrays = [self.values[v] for v in call.inputs]
        made = spread(call, arrays, [v.shape for v in call.inputs])
        if made is None:
            if call.kind != "Concatenate" or len({len(a) for a in arrays}) > 1:
                return None
            for other in arrays[1:]:  # side by side along another axis: channel meets channel
                self._join(arrays[0], other)
            made = arrays[0]
        if call.kind in ("BatchNormalization", "PReLU", "Reshape") and call.name not in self.found:
            self.found[call.name] = (call, arrays[0], made, False)
        elif call.name in self.found:
            self._join(self.found[call.name][1], arrays[0])
        return made

    def _root(self, i: int) -> int:
        while self.parents[i] != i:
            self.parents[i] = self.parents[self.parents[i]]
            i = self.parents[i]
        return i

    def _join(self, ours: Array, theirs: Array) -> None:
        for a, b in zip(ours, theirs, strict=True):
            low, high = sorted((self._root(int(a)), self._root(int(b))))
            self.parents[high] = low


def families(groups: Groups, names: Sequence[str]) -> list[tuple[tuple[str, ...], Array]]:
    """The named layers in families that lose channels together: their names, and the groups that may go."""
    found: list[tuple[tuple[str, ...], Array]] = []
    for name in names:
        own = groups.removable(groups.uses[name])
        touching = [f for f in found if np.isin(f[1], own).any()]
        merged: tuple[str, ...] = (name,)
        for other, ids in touching:
            merged, own = (*other, *merged), np.union1d(ids, own)
        found = [f for f in found if not any(f is t for t in touching)]
        found.append((merged, own))
    return [f for f in found if len(f[1])]


def check_left(groups: Groups, keep: Array, where: str) -> None:
    """Raises InputError, naming the layer, where one would have no channel left."""
    for name, use in groups.sources().items():
        if not keep[use.outputs].any():
            message = (
                f"{where}: layer {name!r} would lose all its {len(use.outputs)} channels; ask for less, or skip it"
            )
            raise InputError(message)

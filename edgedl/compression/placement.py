"""Where a TFLite interpreter holds an integer tensor, and so where a range goes: a plan over a model's calls.

Kernels of TFLite and their scales: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edgedl.compression.ranges import FIXED
from edgedl.errors import UnsupportedError
from edgedl.graph import Call, Graph, Value

KERNELS = ("Dense", "Conv1D", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose")
ARITHMETIC = ("Add", "Subtract", "Multiply")
INT4_KERNELS = ("Dense", "Conv1D", "Conv2D")  # FULLY_CONNECTED and CONV_2D: what litert-quantizer 0.11 stores as int4
RESHAPES = ("Flatten", "Reshape", "Permute", "Transpose", "Squeeze", "ExpandDims", "Identity", "RepeatVector")
SAME = (
    *RESHAPES,
    *("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D"),
    *("UpSampling1D", "UpSampling2D", "Concatenate", "Maximum", "Minimum", "GetItem"),
)
OWN = (*KERNELS, *ARITHMETIC, "GlobalAveragePooling1D", "GlobalAveragePooling2D", "Mean", "PReLU")
OWN_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu")
FUSED = ("relu", "relu6")  # part of the operator before
ALIKE = {"linear": "Identity"}


class Kind(StrEnum):
    """How the output of a call gets its range."""

    OWN = "own"
    SAME = "same as the inputs"
    FIXED = "fixed"
    FLOAT = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """`group` has the number of the range of each value; a value without one is no integer tensor.

    `fixed` are the activations whose kernels have a range of their own, `again` the range that a call
    needs all its inputs in: those in another are quantized once more. `floats` are the calls that stay float.
    """

    group: dict[Value, int]
    fixed: dict[int, str]
    again: dict[Call, int]
    floats: frozenset[Call]


def activation_of(layer: Any) -> str | None:
    """The activation that a layer or op is, such as relu6; None where it is more than that."""
    name = type(layer).__name__
    if name == "ReLU":
        plain = not layer.negative_slope and not layer.threshold
        limits: dict[float | None, str] = {None: "relu", 6.0: "relu6"}
        return limits.get(layer.max_value) if plain else "leaky_relu" if layer.max_value is None else None
    if name == "Activation":
        return activation_name(layer.activation)
    if name == "Softmax":
        return "softmax" if layer.axis in (-1, [-1]) else None
    known = {"LeakyReLU": "leaky_relu", "ELU": "elu"}
    ops = {"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh"}
    return known.get(name) or ops.get(name)


def activation_name(function: Any) -> str:
    """The name of an activation function; `linear` for None."""
    return str(getattr(function, "__name__", None) or getattr(function, "name", "")) if function else "linear"


def plan(graph: Graph, keep: Callable[[Call], bool]) -> Plan:
    """The plan for a model whose kernels have fusible activations alone. Raises UnsupportedError naming a layer."""
    return _Planner(graph, keep).plan()


def weights_alone(graph: Graph, keep: Callable[[Call], bool]) -> Plan:
    """The plan that gives no tensor a range: kernels that a file can hold as int4 are quantized, and nothing else."""
    floats = frozenset(call for call in graph.calls if keep(call) or call.kind not in INT4_KERNELS)
    return Plan(group={}, fixed={}, again={}, floats=floats)


class _Planner:
    def __init__(self, graph: Graph, keep: Callable[[Call], bool]) -> None:
        self.graph = graph
        self.kinds = {call: Kind.FLOAT if keep(call) else self._kind(call) for call in graph.calls}
        self.parent: dict[Value, Value] = {}
        self.fixed: dict[Value, str] = {}
        self.again: dict[Call, Value] = {}

    def plan(self) -> Plan:
        """Values united where TFLite wants one scale; the roots are the groups."""
        for value in self.graph.inputs:
            self._enter(value)
        for call in self.graph.calls:
            if not self._fused(call):
                self._place(call)
        roots = {value: self._root(value) for value in self.parent}
        numbers = {root: i for i, root in enumerate(dict.fromkeys(roots.values()))}
        return Plan(
            group={value: numbers[root] for value, root in roots.items()},
            fixed={numbers[root]: range_ for root, range_ in self.fixed.items() if root in numbers},
            again={call: numbers[self._root(value)] for call, value in self.again.items()},
            floats=frozenset(call for call, kind in self.kinds.items() if kind is Kind.FLOAT),
        )

    def _kind(self, call: Call) -> Kind:
        name, activation = call.kind, activation_of(call.layer)
        if activation in FIXED:
            return Kind.FIXED
        if activation in OWN_ACTIVATIONS or name in OWN:
            return Kind.OWN
        if activation in ALIKE or name in SAME or not is_real(call.outputs[0]):
            return Kind.SAME
        message = (
            f"layer {call.name!r} ({name}) has tensors inside that no range can be given to; leave it float with "
            f"keep_float = [{call.name!r}], or export the float model with a static scheme and calibration data"
        )
        raise UnsupportedError(message)

    def _fused(self, call: Call) -> bool:
        """Whether the output is no tensor of its own: the activation that follows is part of this operator."""
        after = self.graph.next(call)
        able = call.kind in ARITHMETIC or (call.kind in KERNELS and activation_name(call.layer.activation) == "linear")
        able = able and self.kinds[call] is not Kind.FLOAT
        return able and after is not None and self.kinds[after] is Kind.OWN and activation_of(after.layer) in FUSED

    def _place(self, call: Call) -> None:
        kind, output = self.kinds[call], call.outputs[0]
        if kind is Kind.FLOAT:
            for value in call.outputs:
                if self._is_wanted(value):
                    self._enter(value)
            return
        if not is_real(output):
            return
        self._enter(output)
        if kind is Kind.FIXED:
            self.fixed[output] = activation_of(call.layer) or ""
        elif kind is Kind.SAME:
            inputs = [v for v in call.inputs if v in self.parent]
            given = {self.fixed.get(self._root(v)) for v in inputs}
            if len(given) > 1:  # what has a range of its own is quantized again, into that of the others
                inputs = [v for v in inputs if self._root(v) not in self.fixed]
                self.again[call] = output
            self._unite([output, *inputs])

    def _is_wanted(self, value: Value) -> bool:
        """Whether a call that is quantized takes it."""
        return any(self.kinds[call] is not Kind.FLOAT for call in self.graph.consumers(value))

    def _enter(self, value: Value) -> None:
        if is_real(value) and value not in self.parent:
            self.parent[value] = value

    def _root(self, value: Value) -> Value:
        while self.parent[value] is not value:
            value = self.parent[value]
        return value

    def _unite(self, values: list[Value]) -> None:
        roots = [self._root(v) for v in values]
        given = next((self.fixed[r] for r in roots if r in self.fixed), None)
        for root in roots[1:]:
            self.parent[root] = roots[0]
            self.fixed.pop(root, None)
        if given:
            self.fixed[roots[0]] = given


def is_real(value: Value) -> bool:
    """Whether it is of a floating-point type."""
    return "float" in value.dtype

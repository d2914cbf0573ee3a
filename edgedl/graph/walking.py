"""A model as a list of calls in order, with who makes and who takes each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgedl.errors import UnsupportedError
from edgedl.models.tensors import graph_nodes, is_graph

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor between calls. Inside a nested model, `shape` is what that model was declared for.

    `tensor` is Keras's own, from which a model can be made; a nested model's has none that belongs to the whole.
    """

    shape: tuple[int | None, ...]
    dtype: str
    tensor: Any = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a layer or op. `name` is the layer's name in the flat model, unique there."""

    name: str
    layer: Any
    number: int  # the layer's how-manieth call, from 0
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    node: Any = field(repr=False)  # Keras's record of the call
    scope: Mapping[int, Value] = field(repr=False)  # id of a tensor in the node -> the value here

    @property
    def kind(self) -> str:
        """The class of the layer or op, such as Conv2D."""
        return type(self.layer).__name__

    def arguments(self, tensors: Mapping[Value, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the layer is called with, `tensors` in the places of the values; Keras finds missing masks itself."""
        args, kwargs = self.node.arguments.fill_in({i: tensors[v] for i, v in self.scope.items() if v in tensors})
        return tuple(args), {k: v for k, v in kwargs.items() if not (k.endswith("mask") and v is None)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """The calls of a model in an order in which every tensor is made before it is taken."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    calls: tuple[Call, ...]

    @classmethod
    def of(cls, model: keras.Model) -> Graph:
        """The graph of a model, nested ones flat. Raises UnsupportedError for a subclassed one."""
        require_graph(model)
        inputs = tuple(Value(tuple(t.shape), str(t.dtype), t) for t in model.inputs)
        walker = _Walker(model)
        outputs = walker.walk(model, inputs)
        return cls(inputs=inputs, outputs=outputs, calls=_needed(walker.calls, outputs))

    @cached_property
    def _producers(self) -> dict[Value, Call]:
        return {value: call for call in self.calls for value in call.outputs}

    @cached_property
    def _consumers(self) -> dict[Value, list[Call]]:
        taken: dict[Value, list[Call]] = {}
        for call in self.calls:
            for value in dict.fromkeys(call.inputs):
                taken.setdefault(value, []).append(call)
        return taken

    @cached_property
    def layers(self) -> dict[str, Any]:
        """The layers and ops by their flat names, in order, each once."""
        return {call.name: call.layer for call in self.calls}

    def producer(self, value: Value) -> Call | None:
        """The call that makes a value; None for an input of the model."""
        return self._producers.get(value)

    def consumers(self, value: Value) -> tuple[Call, ...]:
        """The calls that take a value, in order."""
        return tuple(self._consumers.get(value, ()))

    def calls_of(self, name: str) -> tuple[Call, ...]:
        """Every call of one layer."""
        return tuple(call for call in self.calls if call.name == name)

    def next(self, call: Call) -> Call | None:
        """The one call that takes a call's one output; None where several do, none does, or the model gives it out."""
        if len(call.outputs) != 1 or call.outputs[0] in self.outputs:
            return None
        takers = self.consumers(call.outputs[0])
        return takers[0] if len(takers) == 1 else None


def require_graph(model: keras.Model) -> None:
    """Raises UnsupportedError for a model whose layers cannot be seen: a subclassed one, or the shell of one."""
    import keras

    layers = [layer for layer in getattr(model, "layers", ()) if type(layer).__name__ != "InputLayer"]
    only = layers[0] if len(layers) == 1 else None
    hidden = only if isinstance(only, keras.Model) and not is_graph(only) else None
    if is_graph(model) and hidden is None:
        return
    hidden = hidden or model
    what = "is not built" if isinstance(model, keras.Sequential) else "is a subclassed keras.Model"
    message = (
        f"model {hidden.name!r} ({type(hidden).__name__}) {what}: its layers cannot be rewritten; "
        "write it with the functional API, keras.Model(inputs, outputs), set_weights from this one, and save that"
    )
    raise UnsupportedError(message)


class _Walker:
    """Walks nested models and gives every layer one flat name."""

    def __init__(self, model: keras.Model) -> None:
        self.calls: list[Call] = []
        self.names: dict[int, str] = {}
        self.numbers: dict[int, int] = {}
        self.taken = {t.name for t in model.inputs}
        self.reserved: dict[str, int] = {}  # the name of an output -> the id of the one layer that may have it
        for tensor in model.outputs:
            self.reserved.setdefault(tensor._keras_history.operation.name, id(_giver(tensor)))

    def walk(self, model: keras.Model, inputs: tuple[Value, ...], path: str = "") -> tuple[Value, ...]:
        """Add the calls of a model on these values. Returns its outputs."""
        graph = getattr(model, "_functional", None) or model
        taken = zip(graph.inputs, inputs, strict=True)
        scope = {id(t): self._cast(value, str(t.dtype), path) for t, value in taken}
        for node in graph_nodes(model):
            if any(id(t) not in scope for t in node.input_tensors):
                continue
            if is_graph(node.operation):
                given = tuple(scope[id(t)] for t in arranged(node))
                made = self.walk(node.operation, given, f"{path}{node.operation.name}_")
            else:
                made = tuple(Value(tuple(t.shape), str(t.dtype), None if path else t) for t in node.outputs)
                self._add(node, made, scope, path)
            scope |= {id(t): value for t, value in zip(node.outputs, made, strict=True)}
        return tuple(scope[id(t)] for t in graph.outputs)

    def _cast(self, value: Value, dtype: str, path: str) -> Value:
        """The value in the dtype that a nested model's input declares, to which Keras casts what it is given."""
        import keras

        if value.dtype == dtype:
            return value
        tensor = keras.KerasTensor(value.shape, value.dtype)
        node = keras.ops.cast(tensor, dtype)._keras_history.operation._inbound_nodes[0]
        node.operation.name = f"{path}cast"  # Keras's own counts all casts of the process
        made = Value(value.shape, dtype)
        self._add(node, (made,), {id(tensor): value}, path)
        return made

    def _add(self, node: Any, outputs: tuple[Value, ...], scope: Mapping[int, Value], path: str) -> None:
        layer = node.operation
        number = self.numbers.get(id(layer), 0)
        self.numbers[id(layer)] = number + 1
        inputs = tuple(scope[id(t)] for t in node.input_tensors)
        own = {id(t): scope[id(t)] for t in node.input_tensors}
        name = self._name(layer, path)
        self.calls.append(
            Call(name=name, layer=layer, number=number, inputs=inputs, outputs=outputs, node=node, scope=own)
        )

    def _name(self, layer: Any, path: str) -> str:
        """The layer's own name, or where another has it, with the names of the models around it."""
        if id(layer) not in self.names:
            base = name = layer.name if self._is_free(layer.name, layer) else f"{path}{layer.name}"
            number = 0
            while not self._is_free(name, layer):
                number += 1
                name = f"{base}_{number}"
            self.taken.add(name)
            self.names[id(layer)] = name
        return self.names[id(layer)]

    def _is_free(self, name: str, layer: Any) -> bool:
        return name not in self.taken and self.reserved.get(name, id(layer)) == id(layer)


def _giver(tensor: Any) -> Any:
    """The layer that gives a tensor, inside the nested models around it."""
    layer, _, number = tensor._keras_history
    if not is_graph(layer):
        return layer
    return _giver((getattr(layer, "_functional", None) or layer).outputs[number])


def arranged(node: Any) -> tuple[Any, ...]:
    """The Keras tensors that a nested model is called with, in the order of its inputs, as Keras itself finds it."""
    import keras

    args, kwargs = node.arguments.args, node.arguments.kwargs
    given = args[0] if args else kwargs["inputs"]
    graph = getattr(node.operation, "_functional", None) or node.operation
    if isinstance(given, dict) and not isinstance(graph.input, dict):
        given = [given[tensor.name] for tensor in graph.inputs]
    return tuple(keras.tree.flatten(given))


def _needed(calls: list[Call], outputs: tuple[Value, ...]) -> tuple[Call, ...]:
    """The calls that the outputs hang on: a nested model may have more outputs than are used."""
    wanted, kept = set(outputs), []
    for call in reversed(calls):
        if wanted.intersection(call.outputs):
            wanted |= set(call.inputs)
            kept.append(call)
    return tuple(reversed(kept))

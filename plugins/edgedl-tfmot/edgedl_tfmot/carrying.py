"""A Keras 3 model as JSON and arrays that tf_keras can be built from, and trained weights put back into a copy.

TFMOT works on Keras 2 (tf_keras) alone. What crosses is a flat list of calls of layers, each with its config; nested
models are walked into. The weights come back by layer, so that everything else of the model stays as it was.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import UnsupportedError
from edgedl.models.cleaning import Copier
from edgedl.models.tensors import call_flat, is_graph, largest_difference, specs

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

    Arrays = list[NDArray[Any]]

TOLERANCE = 3e-5  # relative to the largest output (at least 1): two builds of the same float32 arithmetic
OPS = {"Add": "Add", "Subtract": "Subtract", "Multiply": "Multiply", "Maximum": "Maximum", "Minimum": "Minimum"}
KERAS_2_ACTIVATIONS = {"hard_sigmoid_2": "hard_sigmoid"}  # what edgedl.models.carry_over calls Keras 2's own
OTHER_IN_KERAS_2 = ("hard_sigmoid",)  # the same name, another formula


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """`graph` is what crosses as JSON; `layers` are the Keras 3 layers by their names there."""

    graph: dict[str, Any]
    layers: dict[str, Any]

    def weights(self) -> dict[str, Arrays]:
        """The weights of each layer, without the states of random generators, which Keras 2 keeps elsewhere."""
        return {name: [v.numpy() for v in _variables(layer)] for name, layer in self.layers.items()}


@dataclass(kw_only=True)
class _Walk:
    """Where each Keras tensor comes from, and the calls so far."""

    ids: dict[int, str] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # ids are addresses: what they name stays alive
    names: dict[int, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    layers: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def model(self, model: Any, bound: list[str]) -> list[str]:
        """Walk a graph model whose inputs are the tensors `bound`; the names of its outputs."""
        graph = getattr(model, "_functional", None) or model
        known = dict(zip([id(t) for t in graph.inputs], bound, strict=True))
        self.kept.append(graph)
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if not node.is_input:
                    known |= zip([id(t) for t in node.outputs], self._call(node, known), strict=True)
        return [known[id(t)] for t in graph.outputs]

    def _call(self, node: Any, known: dict[int, str]) -> list[str]:
        operation, arguments = node.operation, node.arguments
        kwargs = {k: v for k, v in arguments.kwargs.items() if v is not None and k != "training"}
        if is_graph(operation):
            return self.model(operation, [known[id(t)] for t in _tensors(arguments.args)])
        name = self._name(operation)
        args = [_plain(a, known, name) for a in arguments.args]
        kind = type(operation).__name__
        if not hasattr(operation, "get_config") or not hasattr(operation, "trainable"):  # an op, no layer
            tensors = len(args) == 2 and not kwargs and all("tensor" in a for a in args if isinstance(a, dict))
            if kind not in OPS or not tensors or not all(isinstance(a, dict) for a in args):
                message = f"op {name!r} ({kind}) has no Keras 2 layer; write it as a keras.layers one"
                raise UnsupportedError(message)
            config: dict[str, Any] = {"class": OPS[kind], "config": {"name": name}, "defaults": []}
            args = [args]
        else:
            config = _layer(kind, type(operation), operation.get_config(), name)
            config["config"]["name"] = name
            self.layers[name] = operation
        outputs = [f"{name}:{len(self.calls)}:{i}" for i in range(len(node.outputs))]
        kwargs = {k: _plain(v, known, name) for k, v in kwargs.items()}
        self.calls.append({"name": name, **config, "args": args, "kwargs": kwargs, "outputs": outputs})
        return outputs

    def _name(self, operation: Any) -> str:
        """A name of its own for each layer, also where nested models use one name twice."""
        if id(operation) not in self.names:
            name, number = operation.name, 1
            while name in self.taken:
                number += 1
                name = f"{operation.name}_{number}"
            self.taken.add(name)
            self.names[id(operation)] = name
        return self.names[id(operation)]


def describe(model: keras.Model) -> Network:
    """The network of a graph model. Raises UnsupportedError for what Keras 2 has no form of, by layer and key."""
    if not is_graph(model):
        message = f"model {model.name!r} is subclassed; TFMOT takes a Functional or Sequential model"
        raise UnsupportedError(message)
    inputs, outputs = specs(model)
    walk = _Walk(taken={s.name for s in inputs})
    results = walk.model(model, [f"input:{i}" for i in range(len(inputs))])
    graph = {
        "name": model.name,
        "inputs": [{"name": s.name, "shape": s.shape, "dtype": s.dtype} for s in inputs],
        "outputs": [{"name": s.name, "tensor": t} for s, t in zip(outputs, results, strict=True)],
        "calls": walk.calls,
    }
    return Network(graph=graph, layers=walk.layers)


def carried_back(
    model: keras.Model, network: Network, weights: Mapping[str, Arrays], inputs: Arrays, expected: Arrays
) -> tuple[keras.Model, float]:
    """A copy of `model` with these weights, and its largest difference to the outputs that Keras 2 gave with them.

    Raises UnsupportedError where it is more than two builds of one arithmetic may differ.
    """
    copier = Copier()
    copy = copier.copy(model)
    for name, arrays in weights.items():
        new = copier.made[id(network.layers[name])][1]
        for variable, array in zip(_variables(new), arrays, strict=True):
            variable.assign(array)
    difference, relative = largest_difference([np.asarray(a) for a in call_flat(copy, inputs)], expected)
    if not relative <= TOLERANCE:
        message = f"carried back from Keras 2, the outputs differ by {difference:.2g} on seeded input"
        raise UnsupportedError(message)
    return copy, difference


def _variables(layer: Any) -> list[Any]:
    return [v for v in layer.weights if "seed_generator" not in v.path.split("/")]


def _tensors(value: Any) -> list[Any]:
    import keras

    return [t for t in keras.tree.flatten(value) if isinstance(t, keras.KerasTensor)]


def _plain(value: Any, known: Mapping[int, str], name: str) -> Any:
    """A call's argument as JSON, a tensor as {"tensor": its name}."""
    import keras

    if isinstance(value, keras.KerasTensor):
        return {"tensor": known[id(value)]}
    if isinstance(value, (list, tuple)):
        return [_plain(v, known, name) for v in value]
    try:
        json.dumps(value)
    except TypeError as e:
        message = f"layer {name!r} is called with {type(value).__name__}, which Keras 2 cannot be told"
        raise UnsupportedError(message) from e
    return value


def _layer(kind: str, cls: type, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Class, config, and which of its keys are at Keras 3's default and may be left out."""
    import keras

    if getattr(keras.layers, kind, None) is not cls or kind == "Lambda":
        message = f"layer {where!r} ({kind}) is not one of Keras's own; Keras 2 has no form of it"
        raise UnsupportedError(message)
    defaults = {
        k: p.default
        for c in reversed(cls.__mro__)
        for k, p in inspect.signature(c.__init__).parameters.items()  # type: ignore[misc]
        if p.default is not p.empty
    }
    kept = {k: v for k, v in config.items() if not k.endswith("_initializer")}
    return {
        "class": kind,
        "config": {k: _value(k, v, where) for k, v in kept.items()},
        # an option that is off changes nothing, also where it is taken from **kwargs
        "defaults": [
            k for k, v in kept.items() if v is None or v is False or (k in defaults and _same(v, defaults[k]))
        ],
    }


def _same(value: Any, default: Any) -> bool:
    """Whether a config's value is the default, which a config may hold as a list: -1 as [-1]."""
    several = [list(v) if isinstance(v, (list, tuple)) else [v] for v in (value, default)]
    return bool(several[0] == several[1])


def _value(key: str, value: Any, where: str) -> Any:
    import keras

    if key == "dtype":
        return value["config"]["name"] if isinstance(value, Mapping) else value
    if key.endswith("activation"):
        return _activation(value, where)
    if not isinstance(value, Mapping) or "class_name" not in value:
        return value
    kind, config = value["class_name"], value["config"]
    if key.endswith(("_regularizer", "_constraint")):
        return {"class_name": kind, "config": config}
    return {"layer": _layer(kind, getattr(keras.layers, kind, object), config, f"{where}, {key}")}


def _activation(value: Any, where: str) -> Any:
    if isinstance(value, Mapping) and value.get("class_name") == "function":
        value = KERAS_2_ACTIVATIONS.get(str(value["config"]), value)
        if isinstance(value, str):
            return value
    if isinstance(value, Mapping) or value in OTHER_IN_KERAS_2:
        message = f"layer {where!r}: Keras 2 has no activation {value!r}"
        raise UnsupportedError(message)
    return value

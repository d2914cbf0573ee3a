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
from edgedl.graph import Call, Graph, Value
from edgedl.models.cleaning import Copier
from edgedl.models.tensors import call_flat, largest_difference, specs

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
class _Names:
    """A name of its own for each layer, also where nested models use one name twice."""

    taken: set[str]
    found: dict[int, str] = field(default_factory=dict)

    def of(self, operation: Any) -> str:
        if id(operation) not in self.found:
            name, number = operation.name, 1
            while name in self.taken:
                number += 1
                name = f"{operation.name}_{number}"
            self.taken.add(name)
            self.found[id(operation)] = name
        return self.found[id(operation)]


def describe(model: keras.Model) -> Network:
    """The network of a graph model. Raises UnsupportedError for what Keras 2 has no form of, by layer and key."""
    graph = Graph.of(model)
    _require_no_masks(graph)
    inputs, outputs = specs(model)
    names = _Names(taken={s.name for s in inputs})
    tensors = {value: {"tensor": f"input:{i}"} for i, value in enumerate(graph.inputs)}
    calls = []
    for number, call in enumerate(graph.calls):
        name = names.of(call.layer)
        made = [f"{name}:{number}:{i}" for i in range(len(call.outputs))]
        calls.append({**_call(call, name, tensors), "outputs": made})
        tensors |= {value: {"tensor": tensor} for value, tensor in zip(call.outputs, made, strict=True)}
    described = {
        "name": model.name,
        "inputs": [{"name": s.name, "shape": s.shape, "dtype": s.dtype} for s in inputs],
        "outputs": [{"name": s.name, **tensors[v]} for s, v in zip(outputs, graph.outputs, strict=True)],
        "calls": calls,
    }
    layers = {names.of(c.layer): c.layer for c in graph.calls if _is_layer(c.layer)}
    return Network(graph=described, layers=layers)


def _require_no_masks(graph: Graph) -> None:
    """Raises UnsupportedError for a layer that takes a mask which Keras found, as TFMOT's wrappers pass none on."""
    for call in graph.calls:
        masks = [getattr(tensor, "_keras_mask", None) for tensor in call.node.input_tensors]
        if any(id(mask) in call.scope for mask in masks):
            message = (
                f"layer {call.name!r} ({call.kind}) takes a mask (mask_zero, Masking); masks do not carry over, "
                "as TFMOT trains without them. Leave the mask out of the model, or take edgedl's own kind"
            )
            raise UnsupportedError(message)


def _call(call: Call, name: str, tensors: Mapping[Value, Any]) -> dict[str, Any]:
    """A call as JSON, its outputs left out. Raises UnsupportedError for an op or argument that Keras 2 lacks."""
    given, named = call.arguments(tensors)
    args = [_plain(a, name) for a in given]
    kwargs = {k: _plain(v, name) for k, v in named.items() if v is not None and k != "training"}
    if _is_layer(call.layer):
        config = _layer(call.kind, type(call.layer), call.layer.get_config(), name)
        config["config"]["name"] = name
        return {"name": name, **config, "args": args, "kwargs": kwargs}
    if call.kind not in OPS or kwargs or len(args) != 2 or not all(isinstance(a, dict) for a in args):
        message = f"op {name!r} ({call.kind}) has no Keras 2 layer; write it as a keras.layers one"
        raise UnsupportedError(message)
    return {
        "name": name,
        "class": OPS[call.kind],
        "config": {"name": name},
        "defaults": [],
        "args": [args],
        "kwargs": {},
    }


def _is_layer(operation: Any) -> bool:
    """Whether it is no op."""
    import keras

    return isinstance(operation, keras.layers.Layer)


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


def _plain(value: Any, name: str) -> Any:
    """A call's argument as JSON, in which a tensor is {"tensor": its name} already."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as e:
        message = f"layer {name!r} is called with {type(value).__name__}, which Keras 2 cannot be told"
        raise UnsupportedError(message) from e


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

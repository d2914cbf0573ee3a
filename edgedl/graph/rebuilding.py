"""A model made again from copies of its layers, flat, with some of them replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgedl.errors import UnsupportedError
from edgedl.graph.walking import Graph, Value
from edgedl.models.cleaning import config_of
from edgedl.models.files import first_line
from edgedl.models.tensors import quiet, set_weights, specs

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Replacement:
    """A new layer for an old one, and its weights in Keras's order, set once it is built; None: as it builds them."""

    layer: Any
    weights: Sequence[Array] | None = None


Replace = Mapping[str, "Replacement | Callable[..., Any] | keras.layers.Layer"]


def flattened(model: keras.Model) -> keras.Model:
    """A flat functional copy: nested models are walked through, weights are copied, names of in- and outputs stay."""
    return rebuild(model, {})


def rebuild(model: keras.Model, replace: Replace) -> keras.Model:
    """A flat functional copy of `model` in which the layers named in `replace` are others.

    What replaces a layer is a new layer (with weights of its own: `Replacement`), or a function that is called as the
    layer was, once for every call, on the new tensors: `lambda x: x` takes a layer out. All others are copied with
    their weights. The names, order and structure of inputs and outputs stay. Raises UnsupportedError: a subclassed
    model, or a layer that cannot be made again from its config.
    """
    import keras

    graph = Graph.of(model)
    if unknown := set(replace) - set(graph.layers):
        message = f"model {model.name!r} has no layer {sorted(unknown)[0]!r}"
        raise UnsupportedError(message)
    with quiet():
        return _Builder(model, graph, replace, keras).build()


class _Builder:
    """Calls the new layers one after the other on the new tensors."""

    def __init__(self, model: Any, graph: Graph, replace: Replace, keras: Any) -> None:
        self.model, self.graph, self.replace, self.keras = model, graph, replace, keras
        self.made: dict[str, Any] = {}
        self.weights: list[tuple[Any, Sequence[Array]]] = []

    def build(self) -> Any:
        keras, model = self.keras, self.model
        inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in model.inputs]
        tensors: dict[Value, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        for call in self.graph.calls:
            args, kwargs = call.arguments(tensors)
            outputs = keras.tree.flatten(self._layer(call.name, call.layer)(*args, **kwargs))
            tensors |= dict(zip(call.outputs, outputs, strict=True))
        outputs = self._named(inputs, [tensors[v] for v in self.graph.outputs])
        if isinstance(model, keras.Sequential):
            new = keras.Model(inputs[0], outputs[0], name=model.name)
        else:
            structure = [keras.tree.pack_sequence_as(s, t) for s, t in ((model.input, inputs), (model.output, outputs))]
            new = keras.Model(*structure, name=model.name)
        for layer, weights in self.weights:
            set_weights(layer, weights)
        return new

    def _layer(self, name: str, old: Any) -> Any:
        if name not in self.made:
            new = self.replace.get(name)
            if new is None:
                new = copied(old, name)
                if getattr(old, "weights", ()):
                    self.weights.append((new, old.get_weights()))
            elif isinstance(new, Replacement):
                if new.weights is not None:
                    self.weights.append((new.layer, new.weights))
                new = new.layer
            self.made[name] = new
        return self.made[name]

    def _named(self, inputs: list[Any], tensors: list[Any]) -> list[Any]:
        """The outputs under the names of before: where a layer that gave one is gone, an identity has its name."""
        structure = None if isinstance(self.model, self.keras.Sequential) else self.model.output
        if isinstance(structure, dict):  # the names are the keys
            return tensors
        wanted = [spec.name for spec in specs(self.model)[1]]
        found = [spec.name for spec in specs(self.keras.Model(inputs, tensors))[1]]
        return [
            t if name == have else self.keras.layers.Identity(name=name)(t)
            for t, name, have in zip(tensors, wanted, found, strict=True)
        ]


def copied(layer: Any, name: str | None = None, **changes: Any) -> Any:
    """A new layer of the same class and config, `changes` applied; its weights are not copied.

    Ops and Lambda layers hold no weights and come back as they are, unless they need another name. Raises
    UnsupportedError for a layer that cannot be made from its config.
    """
    import keras

    name = name or layer.name
    stateless = not isinstance(layer, keras.layers.Layer) or type(layer).__name__ == "Lambda"
    if stateless and name == layer.name and not changes:
        return layer
    try:
        config = config_of(layer) | {"name": name} | changes
        return type(layer).from_config(config)
    except Exception as e:  # the user's own class may raise anything
        message = (
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be made again from its config "
            f"({first_line(e)}); give the class a get_config() that returns its arguments"
        )
        raise UnsupportedError(message) from e

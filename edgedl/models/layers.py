"""What the layers of a model give for samples, for a comparison with the operators of an artifact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.models import load
from edgedl.models.tensors import call_flat, quiet, specs

if TYPE_CHECKING:
    import keras


def outputs(
    path: str, inputs: Mapping[str, str], out: str, *, trust: bool = False, custom_objects: str | None = None
) -> list[dict[str, str]]:
    """`{"name", "class", "file"}` of each layer, in the model's order: its output (samples, ...) as float32 .npy.

    `inputs` are .npy by canonical name, a few samples: all is in memory at once. A layer with several outputs, or that
    is called several times, is left out.
    """
    import keras

    model = load(Path(path), trust=trust, custom_objects=custom_objects).model
    layers, tensors = zip(*_single(model), strict=True)
    probe = keras.Model(model.inputs, list(tensors))
    arrays = [np.load(inputs[spec.name]).astype(spec.dtype) for spec in specs(model)[0]]
    with quiet():
        values = call_flat(probe, arrays)
    found = []
    for i, (layer, value) in enumerate(zip(layers, values, strict=True)):
        file = Path(out) / f"layer_{i}.npy"
        np.save(file, np.asarray(value, np.float32))
        found.append({"name": layer.name, "class": type(layer).__name__, "file": str(file)})
    return found


def _single(model: keras.Model) -> Iterator[tuple[Any, Any]]:
    """The layers and ops that give one tensor of numbers, with it, in the order of the graph."""
    graph = getattr(model, "_functional", None) or model
    for _, nodes in sorted(graph._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            calls = [n for n in node.operation._inbound_nodes if any(n is m for m in nodes)]
            if len(calls) == len(node.outputs) == 1 and node.outputs[0].dtype != "string":
                yield node.operation, node.outputs[0]

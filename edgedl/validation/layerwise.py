"""Where an artifact parts from its model: the signal that is left in what each operator gives, against its layer.

An operator's layer is the one whose output it comes nearest to: converters fuse layers, and rename tensors. Where it
comes near none, the name of its tensor decides.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import artifacts, data, model_file, worker
from edgedl.data import Dataset
from edgedl.errors import UnsupportedError
from edgedl.model_file import ModelFile
from edgedl.types import ArtifactInfo
from edgedl.validation import evaluate

SAMPLES, LAYER_BYTES = 16, 256_000_000  # at most: all outputs of all layers are in memory at once
MOST_NOISE = 0.5  # of the power of a layer's output, in a tensor that is still like it

Array = NDArray[Any]


def compare(model: ModelFile, path: Path, source: str, seed: int) -> list[dict[str, Any]]:
    """A row an operator, in the order of the graph: see `rows`. Raises UnsupportedError for a format that has none."""
    artifact, info = artifacts.read(path)
    runtime = artifacts.runtime_for(artifact.format)
    if runtime.inner is None:
        message = (
            f"{path}: {runtime.name} does not tell what is inside of a file; layers are compared for "
            f"{', '.join(_formats())}"
        )
        raise UnsupportedError(message)
    dataset = data.load(source)
    names = data.input_names(dataset, artifact.inputs)
    few = _few(dataset, names, _count(model), seed)
    left = evaluate.left_to_the_app(artifact, dataset)
    fed = data.bind(data.prepare(few, left, names), artifact.inputs, artifact.outputs).inputs
    given = data.bind(data.prepare(few, dataset.ops, names), model.inputs, model.outputs).inputs
    told = worker.call(
        runtime.inner,
        {
            "path": str(path.resolve()),
            "inputs": {name: str(file) for name, file in fed.items()},
            "out": str(worker.pool().scratch("operators")),
            "straight": bool(artifact.lineage.embedded),
        },
        child=artifacts.child_of(runtime),
        interpreter=artifacts.interpreter_of(runtime),
    )
    layers = worker.call(
        "edgedl.models.layers:outputs",
        {
            "path": str(model.path),
            "inputs": {name: str(file) for name, file in given.items()},
            "out": str(worker.pool().scratch("layers")),
            "trust": model.trust,
            "custom_objects": model.custom_objects,
        },
        child=model_file.CHILD,
    )
    operators = {int(index): np.load(file, mmap_mode="r") for index, file in told.items()}
    return rows(info, operators, {layer["name"]: np.load(layer["file"], mmap_mode="r") for layer in layers})


def rows(info: ArtifactInfo, operators: Mapping[int, Array], layers: Mapping[str, Array]) -> list[dict[str, Any]]:
    """`{"index", "op", "tensor", "layer", "sqnr_db", "added_noise"}` of each operator whose output is a layer's.

    `operators` and `layers` are outputs (samples, ...) by index and by name. `sqnr_db` is the signal-to-noise ratio
    against the layer, None where there is no noise. `added_noise` is a share of the power of the signal: the noise in
    the output less that in the worst input.
    """
    nearest = _nearest(info, operators, layers)
    found: list[dict[str, Any]] = []
    noise: dict[str, float] = {}  # by tensor; what is not in it, such as the weights, has none
    for op in info.ops:
        before = max((noise.get(name, 0.0) for name in op.inputs), default=0.0)
        layer, after = nearest.get(op.index, ("", before))  # what is inside of a layer hands on what it got
        noise.update((name, after) for name in op.outputs)
        if layer:
            ratio = -10 * math.log10(after) if after else None
            told = {"index": op.index, "op": op.name, "tensor": op.outputs[0], "layer": layer}
            found.append(told | {"sqnr_db": ratio, "added_noise": after - before})
    return found


def noise_share(reference: Array, values: Array) -> float:
    """The power of the difference over that of the reference, which has some: what SQNR is -10 log10 of."""
    signal = np.asarray(reference, np.float64)
    power = float(np.sum(signal**2))
    return float(np.sum((signal - values) ** 2)) / power if power else math.inf


def _nearest(
    info: ArtifactInfo, operators: Mapping[int, Array], layers: Mapping[str, Array]
) -> dict[int, tuple[str, float]]:
    """The layer that each operator's output is, and its noise; the first of several layers that are the same.

    Where a later operator comes nearer, as after the activation, the earlier one is inside of the layer. A layer that
    none comes near is that of the last operator with its name.
    """
    found: dict[int, tuple[str, float]] = {}
    rest = []
    shapes = _shapes(layers)
    for op in info.ops:
        values = operators.get(op.index)
        if values is None or not op.outputs:
            continue
        noises = {name: min(_least_noise(shape, values) for shape in given) for name, given in shapes.items()}
        best = min(noises, key=lambda name: noises[name], default="")
        if noises.get(best, math.inf) <= MOST_NOISE:
            found[op.index] = (best, noises[best])
        else:
            rest.append((op, {name: noise for name, noise in noises.items() if math.isfinite(noise)}))
    least: dict[str, float] = {}
    for index, (name, noise) in sorted(found.items(), reverse=True):
        if noise > least.setdefault(name, noise):
            del found[index]
        least[name] = min(noise, least[name])
    taken = set(least)
    for op, noises in reversed(rest):
        named = [name for name in noises if name not in taken and _is_named(op.outputs[0], name)]
        if named:
            name = max(named, key=len)
            taken.add(name)
            found[op.index] = (name, noises[name])
    return found


def _shapes(layers: Mapping[str, Array]) -> dict[str, list[Array]]:
    """What each layer gives, with what later layers make of it that give the same numbers in another shape."""
    first: dict[bytes, str] = {}
    found: dict[str, list[Array]] = {}
    for name, values in layers.items():
        numbers = hashlib.sha256(values.tobytes()).digest()
        found.setdefault(first.setdefault(numbers, name), []).append(values)
    return found


def _least_noise(reference: Array, values: Array) -> float:
    """The noise of a tensor in a layer's layout or with channels first; infinite where neither has its sizes."""
    layouts = [values, np.moveaxis(values, 1, -1)] if values.ndim > 2 else [values]
    alike = [np.reshape(each, reference.shape) for each in layouts if _sizes(each) == _sizes(reference)]
    return min((noise_share(reference, each) for each in alike), default=math.inf)


def _sizes(values: Array) -> tuple[int, ...]:
    """The shape without sizes of 1, which converters add and drop."""
    return (values.shape[0], *(size for size in values.shape[1:] if size != 1))


def _is_named(tensor: str, layer: str) -> bool:
    """Whether a converter's name, such as model_1/conv2d_1/BiasAdd, is about a layer, here conv2d."""
    return any(re.fullmatch(rf"{re.escape(layer)}(_\d+)?", part) for part in tensor.split("/"))


def _count(model: ModelFile) -> int:
    """As many samples as fit, one at least."""
    values = sum(math.prod(size or 1 for size in row["output_shape"]) for row in model.facts["layers"])
    return max(1, min(SAMPLES, LAYER_BYTES // (4 * max(1, values))))


def _few(dataset: Dataset, names: Sequence[str], count: int, seed: int) -> Dataset:
    ids = data.draw(dataset, count, seed)
    folder = data.subset({n: dataset.arrays[n] for n in names}, ids, worker.pool().scratch("few"))
    return replace(dataset, arrays=dataset.arrays | {n: folder / f"{n}.npy" for n in names}, count=len(ids))


def _formats() -> list[str]:
    from edgedl import plugins

    found = (plugins.load("runtimes", p.name) for p in plugins.listing("runtimes"))
    return sorted({runtime.format for runtime in found if runtime.inner})

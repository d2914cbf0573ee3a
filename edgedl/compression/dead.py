"""Dead and constant channels: weights that are nothing, outputs that never change; removed without moving the outputs.

A channel goes where every layer that mixes it can do without: its value there is always the same and goes into that
layer's bias, or the layer has no weights for it. What is added, concatenated or passed on goes with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from edgedl import graph
from edgedl.compression.base import Context, Data, matching_layers
from edgedl.compression.constants import agreed, by_data, by_weights, is_padded
from edgedl.compression.groups import KERNELS, Groups, Use, channel_groups
from edgedl.compression.removal import removed
from edgedl.errors import EdgedlError, UnsupportedError
from edgedl.fitting.samples import TrainingData
from edgedl.models import specs
from edgedl.recipes import Step, refuse_training
from edgedl.toml import Within

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

ROUNDS = 8  # a channel that is gone may leave others unused
FREE_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Options:
    """Weights up to `tolerance` are nothing, and so are changes up to it; outputs may move by `proof` (relative).

    `on_data` looks for channels that never change on the data, too: up to `samples` of them, drawn with the seed.
    """

    tolerance: Annotated[float, Within("[0, 1)")] = 1e-6
    proof: Annotated[float, Within("(0, 1)")] = 1e-5
    on_data: bool = True
    samples: Annotated[int, Within("[1, inf)")] = 2000

    def check(self, step: Step) -> None:
        """Raises ValueError for training, of which this does none."""
        refuse_training(step)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What may go: the groups that stay (mask), what goes into the biases, and per layer how many and why."""

    keep: Array
    biases: dict[str, Array]
    layers: tuple[dict[str, Any], ...]  # {"layer", "channels", "nothing", "constant"}


class Dead:
    """Removes dead and constant channels, with the proof."""

    kind = "prune"
    options = Options

    def apply(self, model: keras.Model, data: Data, options: Options, context: Context) -> keras.Model:
        """A flat model without them; says where they were, and by how much the outputs moved."""
        where = context.step.where
        flat = graph.flattened(model)
        chosen = None
        if context.step.match or context.step.skip:
            layers = matching_layers(
                flat,
                context.step.match,
                context.step.skip,
                where=where,
                able=lambda layer: type(layer).__name__ in KERNELS,
                what="convolution or Dense layer",
            )
            chosen = {layer.name for layer in layers}
        seen = data.drawn(options.samples, context.seed) if data and options.on_data else None
        slim, found = remove(flat, seen, options, chosen=chosen, skip=context.step.skip)
        if not found:
            context.say(f"{where}: no dead or constant channels")
            return slim
        moved = _prove(flat, slim, seen, options, where)
        by = f"on {seen.count} samples" if seen is not None else "on seeded input"
        parts = [f"{row['layer']} {row['nothing'] + row['constant']} of {row['channels']}" for row in found]
        context.say(f"{where}: removed {', '.join(parts)}; the outputs moved by at most {moved:.2g} {by}")
        return slim


def remove(
    model: keras.Model,
    data: TrainingData | None,
    options: Options,
    *,
    chosen: set[str] | None = None,
    skip: tuple[str, ...] = (),
) -> tuple[keras.Model, list[dict[str, Any]]]:
    """A flat model without its dead channels, and per layer how many went.

    Rows are {"layer", "channels", "nothing", "constant"}: `nothing` by the weights, `constant` on the data alone.
    """
    totals: dict[str, dict[str, Any]] = {}
    for _ in range(ROUNDS):
        groups = channel_groups(model)
        found = find(model, groups, data, options, chosen=chosen, skip=skip)
        if found.keep.all():
            break
        model = removed(model, groups, found.keep, found.biases)
        for row in found.layers:
            total = totals.setdefault(row["layer"], dict(row, nothing=0, constant=0))
            total["nothing"] += row["nothing"]
            total["constant"] += row["constant"]
    return model, list(totals.values())


def find(
    model: keras.Model,
    groups: Groups,
    data: TrainingData | None,
    options: Options,
    *,
    chosen: set[str] | None = None,
    skip: tuple[str, ...] = (),
) -> Found:
    """What may go from a flat model; every layer keeps one channel at least."""
    sinks = groups.sources()
    from_weights = by_weights(groups.graph, options.tolerance)
    known = {name: agreed(use, from_weights, options.tolerance) for name, use in sinks.items()}
    seen = by_data(model, list(sinks.values()), data, options.tolerance) if data is not None else {}
    constants = {n: np.where(np.isnan(k), seen.get(n, k), k) for n, k in known.items()}
    fixed = _held(groups, chosen, skip)
    free = {"weights": ~fixed, "data": ~fixed}
    for name, use in sinks.items():
        for kind, values in (("weights", known), ("data", constants)):
            free[kind][use.inputs[~_absorbed(use, values[name], options.tolerance)]] = False
    keep = _one_left(groups, ~free["data"])
    biases = {}
    for name, use in sinks.items():
        gone = ~keep[use.inputs]
        bias = _into_bias(use.layer, np.where(gone, np.nan_to_num(constants[name]), 0.0))
        if gone.any() and np.abs(bias).max() > 0:
            biases[name] = bias
    return Found(keep=keep, biases=biases, layers=_rows(groups, keep, free["weights"]))


def _held(groups: Groups, chosen: set[str] | None, skip: tuple[str, ...]) -> Array:
    """The groups that stay whatever they are: frozen, of no chosen layer, or of one that is skipped."""
    held = groups.frozen.copy()
    made = np.zeros(groups.count, bool)
    for name, use in groups.sources().items():
        if chosen is None or name in chosen:
            made[use.outputs] = True
        if any(fnmatchcase(name, pattern) for pattern in skip):
            held[use.outputs] = True
    return held | ~made


def _absorbed(use: Use, constants: Array, tolerance: float) -> Array:
    """Which inputs a layer can do without, (in,): constant (zero where it pads), or without weights."""
    kernel = use.layer.get_weights()[0]
    kind = type(use.layer).__name__
    layout = KERNELS[kind]
    axis = -1 if layout == "transposed" else -2
    strongest = np.abs(np.moveaxis(kernel, axis, -1)).reshape(-1, kernel.shape[axis]).max(axis=0)
    borders = is_padded(use.layer) or layout == "transposed"
    steady = (constants == 0) if borders else ~np.isnan(constants)
    return np.asarray(steady | (strongest <= tolerance))


def _into_bias(layer: Any, constants: Array) -> Array:
    """What constant inputs (in,) add to every output of a layer, (out,)."""
    weights = layer.get_weights()
    layout = KERNELS[type(layer).__name__]
    if layout == "transposed":  # only zeros go there
        return np.zeros(weights[0].shape[-2])
    if layout == "separable":
        inner = weights[0].reshape(-1, *weights[0].shape[-2:]).sum(axis=0) * constants[:, None]
        return np.asarray(inner.reshape(-1) @ weights[1].reshape(weights[1].shape[-2:]))
    kernel = weights[0].reshape(-1, *weights[0].shape[-2:]).sum(axis=0)
    return np.asarray(constants @ kernel)


def _one_left(groups: Groups, keep: Array) -> Array:
    """The mask with the first channel back in every layer that would have none."""
    keep = keep.copy()
    for use in groups.sources().values():
        if not keep[use.outputs].any():
            keep[use.outputs[0]] = True
    return keep


def _rows(groups: Groups, keep: Array, by_weights_alone: Array) -> tuple[dict[str, Any], ...]:
    rows = []
    for name, use in groups.sources().items():
        gone = ~keep[use.outputs]
        if gone.any():
            nothing = int((gone & by_weights_alone[use.outputs]).sum())
            rows.append(
                {"layer": name, "channels": len(gone), "nothing": nothing, "constant": int(gone.sum()) - nothing}
            )
    return tuple(rows)


def _prove(before: keras.Model, after: keras.Model, data: TrainingData | None, options: Options, where: str) -> float:
    """By how much the outputs moved: on the data that was looked at, else on seeded input. Raises UnsupportedError."""
    try:
        if data is None:
            return graph.prove(before, after, options.proof)
        moved = 0.0
        for start in range(0, data.count, 256):
            inputs, _ = data.take(np.arange(start, min(start + 256, data.count)))
            arrays = [inputs[spec.name].astype(spec.dtype) for spec in specs(before)[0]]
            moved = max(moved, graph.prove(before, after, options.proof, arrays))
        return moved
    except EdgedlError as e:
        message = (
            f"{where}: {e}: weights or changes up to tolerance {options.tolerance:g} are not nothing here; "
            f"try tolerance {options.tolerance / 10:g}"
        )
        raise UnsupportedError(message) from e


def report(model: keras.Model, data: TrainingData | None = None) -> list[dict[str, Any]]:
    """What `prune.dead` would remove, layer by layer: {"layer", "channels", "nothing", "constant"}."""
    options = Options()
    flat = graph.flattened(model)
    return remove(flat, data.drawn(options.samples, 0) if data else None, options)[1]

"""In TFMOT's process: its magnitude pruning, with the sparsity asked for reached and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import EdgedlError
from edgedl_tfmot.layers import Patterns, Result, Train, able_layers, choose, kernels, left_out, plain_weights, told_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

UPDATES = 25  # of the masks in a run, where it has so many steps
RAMP = 0.7  # of the steps: the rest trains at the sparsity asked for
TFMOT_UPDATE_STEPS = 100  # TFMOT's own frequency, which a short run never reaches


def pruning_schedule(kind: str, sparsity: float, steps: int) -> Any:
    """TFMOT's schedule, its updates so frequent that `sparsity` is reached within `steps`, however few."""
    import tensorflow_model_optimization as tfmot

    schedules = tfmot.sparsity.keras
    frequency = max(1, min(TFMOT_UPDATE_STEPS, int(steps * RAMP) // UPDATES))
    end = frequency * int((steps - 1) * RAMP / frequency)
    if kind == "constant" or end == 0:
        return schedules.ConstantSparsity(sparsity, begin_step=0, frequency=frequency)
    return schedules.PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end, frequency=frequency)


def prune(model: Any, options: Mapping[str, Any], steps: int, train: Train, patterns: Patterns) -> Result:
    """Magnitude pruning; the sparsity of every layer is measured. Raises EdgedlError where TFMOT missed it."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    given: dict[str, Any] = {
        "pruning_schedule": pruning_schedule(options["schedule"], options["sparsity"], steps),
        "block_size": tuple(options["block"]),
    }
    if options["m_by_n"]:
        given["sparsity_m_by_n"] = tuple(options["m_by_n"])

    def wrapped(layer: Any) -> Any:
        if not all(_fits(w.shape, options) for w in kernels(layer)):
            message = "no kernel for this pattern"
            raise ValueError(message)
        return tfmot.sparsity.keras.prune_low_magnitude(layer, **given)

    able = able_layers(model, wrapped, "get_prunable_weights")
    names = choose(able, patterns, "prune")
    masked = tf_keras.models.clone_model(model, clone_function=lambda x: able[x.name] if x.name in names else x)
    train(masked, tfmot.sparsity.keras.UpdatePruningStep())
    stripped = tfmot.sparsity.keras.strip_pruning(masked)
    zeros = size = 0
    for name in names:
        found, count = _require_sparse(name, [np.asarray(w) for w in kernels(stripped.get_layer(name))], options)
        zeros, size = zeros + found, size + count
    note = f"TFMOT pruned {told_of(names, model)}: {zeros / size:.2%} of their kernel weights are zero"
    return Result(weights=plain_weights(stripped), notes=[note, *left_out(model, names, patterns, "pruned")])


def _fits(shape: Sequence[int], options: Mapping[str, Any]) -> bool:
    """Whether a kernel has the axes that a pattern needs: # m_by_n (2, 4): (3, 3, 8, 16), 8 inputs by 4."""
    if options["m_by_n"]:
        return bool(shape[-2] % options["m_by_n"][1] == 0)
    return tuple(options["block"]) == (1, 1) or len(shape) == 2


def _require_sparse(name: str, kernels: Sequence[Array], options: Mapping[str, Any]) -> tuple[int, int]:
    """Zeros and weights of a layer. Raises EdgedlError where there are fewer zeros than asked for."""
    asked = options["m_by_n"][0] / options["m_by_n"][1] if options["m_by_n"] else options["sparsity"]
    zeros, count = sum(int((k == 0).sum()) for k in kernels), sum(k.size for k in kernels)
    # TFMOT rounds to whole weights, or to blocks of which the last of a row may be cut, and keeps one at least
    short = sum(1 if tuple(options["block"]) == (1, 1) else max(options["block"]) * max(k.shape) for k in kernels)
    if zeros < min(asked * count - short, count - len(kernels)):
        message = f"layer {name!r}: {zeros / count:.1%} zeros after training, {asked:.1%} were asked for"
        raise EdgedlError(message)
    return zeros, count

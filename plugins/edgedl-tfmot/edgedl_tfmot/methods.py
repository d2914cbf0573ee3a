"""In TFMOT's process: one of its methods on a tf_keras model, and the plain weights that come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgedl.errors import UnsupportedError
from edgedl_tfmot import clusters, qat, sparsity
from edgedl_tfmot.layers import Result
from edgedl_tfmot.training import Training, fit, losses


def run(
    model: Any,
    method: str,
    options: Mapping[str, Any],
    training: Training | None,
    match: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Result:
    """What TFMOT makes of `model`, whose layers it may take over. Raises InputError and UnsupportedError by name."""
    chosen = losses(model, training) if training else []

    def train(wrapped: Any, *callbacks: Any) -> None:
        if training:
            fit(wrapped, training, chosen, callbacks)

    try:
        if method == "prune":
            assert training is not None  # noqa: S101 - the parent's Prune requires it
            return sparsity.prune(model, options, training.steps, train, (match, skip))
        if method == "cluster":
            return clusters.cluster(model, options, train, (match, skip))
        return qat.quantize(model, method, train, (match, skip))
    except (ValueError, RuntimeError) as e:  # how TFMOT refuses layers and options
        message = f"TFMOT refuses: {str(e).strip().splitlines()[0]}"
        raise UnsupportedError(message) from e

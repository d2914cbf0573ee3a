"""Whether two models answer alike on seeded inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgedl.errors import EdgedlError
from edgedl.models.tensors import call_flat, largest_difference, probe, quiet

if TYPE_CHECKING:
    import keras


def prove(
    before: keras.Model,
    after: keras.Model,
    tolerance: float = 1e-5,
    samples: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    what: str = "the rewritten model",
) -> float:
    """The largest difference of the outputs, relative to max(1, largest output); it is within `tolerance`.

    On `samples` (an array an input, in Keras's flat order), else on seeded normal input. Raises EdgedlError where
    it is not.
    """
    with quiet():
        if samples is None:
            arrays, theirs = probe(before, seed=seed)
        else:
            arrays, theirs = list(samples), call_flat(before, samples)
        ours = call_flat(after, arrays)
    _, relative = largest_difference(ours, theirs)
    if not relative <= tolerance:
        message = f"{what} differs from the model before by {relative:.3g}; at most {tolerance:.3g} is allowed"
        raise EdgedlError(message)
    return relative

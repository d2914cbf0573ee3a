"""In TFMOT's process: which layers a method takes, and what comes out of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from edgedl.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Train = Callable[..., None]
Patterns = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """Plain weights by layer, and notes. `quantized`, where there is one, is TFMOT's own model."""

    weights: dict[str, list[Array]]
    notes: list[str] = field(default_factory=list)
    quantized: Any = None


def choose(layers: Mapping[str, Any], patterns: Patterns, what: str) -> list[str]:
    """The names of the layers that `match` and `skip` take. Raises InputError for a pattern that hits nothing."""
    for key, given in zip(("match", "skip"), patterns, strict=True):
        for pattern in given:
            if not any(fnmatchcase(name, pattern) for name in layers):
                message = f"{key} {pattern!r} hits no layer that TFMOT can {what}; it can {', '.join(layers) or 'none'}"
                raise InputError(message)
    match, skip = patterns
    chosen = [
        n
        for n in layers
        if (not match or any(fnmatchcase(n, p) for p in match)) and not any(fnmatchcase(n, p) for p in skip)
    ]
    if not chosen:
        message = f"there is no layer that TFMOT can {what}"
        raise InputError(message)
    return chosen


def able_layers(model: Any, wrap: Callable[[Any], Any], weights: str) -> dict[str, Any]:
    """The layers that TFMOT can take and that have kernels to take, wrapped, by name."""
    found = {}
    for layer in model.layers:
        if not kernels(layer):
            continue
        try:
            wrapped = wrap(layer)
        except ValueError:
            continue
        if hasattr(wrapped, "layer") and getattr(wrapped.layer, weights)():
            found[layer.name] = wrapped
    return found


def kernels(layer: Any) -> list[Any]:
    """The weights of two axes or more."""
    return [w for w in layer.weights if len(w.shape) > 1]


def told_of(names: Sequence[str], model: Any) -> str:
    """How many layers of how many, in words."""
    return f"{len(names)} of {sum(bool(kernels(x)) for x in model.layers)} layers with kernels"


def left_out(model: Any, names: Sequence[str], patterns: Patterns, done: str) -> list[str]:
    """A note on the layers that TFMOT could not take, where the user chose none."""
    left = [x.name for x in model.layers if kernels(x) and x.name not in names]
    return [f"not {done}, as TFMOT cannot: {', '.join(left)}"] if left and not any(patterns) else []


def plain_weights(stripped: Any) -> dict[str, list[Array]]:
    """Of every layer that has some."""
    return {layer.name: layer.get_weights() for layer in stripped.layers if layer.weights}

"""The kernels of a model: the weights that are pruned and shared, each as a matrix of (summed, output channels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl.compression.base import Context, matching_layers
from edgedl.models.tensors import is_graph, operations

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
HEADS = ("query", "key", "value")  # of attention: (in, heads, size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """One kernel. `name` is its path without `/kernel`: mostly its layer's name; `layout` as in `matrix`."""

    name: str
    variable: Any
    layout: str
    key: str  # finds it again in a copy of the model

    @property
    def shape(self) -> tuple[int, ...]:
        """As Keras has it."""
        return tuple(self.variable.shape)

    def read(self) -> Array:
        """The values."""
        return np.asarray(self.variable.numpy())

    def matrix(self, values: Array) -> Array:
        """Values in the kernel's shape as (summed, output channels).

        # last: (3, 3, in, out); depthwise: (3, 3, in, multiplier), out = in * multiplier; transposed: (3, 3, out, in);
        # heads: (in, heads, size), out = heads * size
        """
        if self.layout == "transposed":
            values = np.moveaxis(values, -2, -1)
        return values.reshape(-1, self._channels)

    def unmatrix(self, values: Array) -> Array:
        """What `matrix` made, back in the kernel's shape."""
        if self.layout == "transposed":
            *rest, out, summed = self.shape
            return np.moveaxis(values.reshape(*rest, summed, out), -1, -2)
        return values.reshape(self.shape)

    @property
    def fan_in(self) -> int:
        """How many weights an output sums over."""
        return int(prod(self.shape)) // self._channels

    @property
    def _channels(self) -> int:
        taken = {"depthwise": self.shape[-2:], "transposed": self.shape[-2:-1], "heads": self.shape[1:]}
        return int(prod(taken.get(self.layout, self.shape[-1:])))


def keyed(model: Any) -> dict[str, Any]:
    """The weights of a model by path, with a number where a path repeats: the same keys in every copy of it."""
    found: dict[str, Any] = {}
    for variable in model.weights:
        key, number = variable.path, 0
        while key in found:
            number += 1
            key = f"{variable.path}#{number}"
        found[key] = variable
    return found


def kernels(
    model: keras.Model,
    context: Context,
    *,
    able: Callable[[Any, Kernel], bool] = lambda _layer, _kernel: True,
    what: str = "layer with a kernel",
) -> list[Kernel]:
    """The kernels of the layers that a step takes by `match` and `skip`, in the model's order, each once.

    Where nothing is matched by name, says which kernels are left alone as not `able`. Raises InputError where a
    pattern hits none that is.
    """
    step = context.step
    keys = {id(v): key for key, v in keyed(model).items()}

    def offered(layer: Any) -> list[Kernel]:
        return [k for k in _of(layer, keys) if able(layer, k)]

    layers = matching_layers(
        model, step.match, step.skip, where=step.where, able=lambda layer: bool(offered(layer)), what=what
    )
    skipped = {id(v) for op in operations(model) if _hit(op, step.skip) for v in getattr(op, "weights", ())}
    taken = {k.key for layer in layers for k in offered(layer) if id(k.variable) not in skipped}
    found = [k for k in all_kernels(model) if id(k.variable) not in skipped]
    left = [k.name for k in found if k.key not in taken]
    if left and not step.match:
        context.say(f"{step.where}: left alone, as no {what}: {', '.join(left)}")
    return [k for k in found if k.key in taken]


def all_kernels(model: Any) -> list[Kernel]:
    """Every kernel of a model, in its order, each once."""
    keys = {id(v): key for key, v in keyed(model).items()}
    found = {k.key: k for op in operations(model) for k in _of(op, keys)}  # the innermost layer comes last, and counts
    return [found[key] for key in keyed(model) if key in found]


def share_text(kernels: Sequence[Kernel]) -> str:
    """How many kernel weights are zero, and where: "7 of 10 kernel weights are zero (70.0 %): conv 75 %"."""
    counts = [(k.name, int(np.count_nonzero(k.read() == 0)), int(prod(k.shape))) for k in kernels]
    zeros, total = sum(c[1] for c in counts), sum(c[2] for c in counts)
    each = ", ".join(f"{name} {100 * z / n:.0f} %" for name, z, n in counts)
    return f"{zeros:,} of {total:,} kernel weights are zero ({100 * zeros / total:.1f} %): {each}"


def _of(layer: Any, keys: dict[int, str]) -> list[Kernel]:
    """The kernels below a layer that is no graph: its own and those of cells and wrapped layers."""
    if is_graph(layer):
        return []
    found = []
    for variable in getattr(layer, "weights", ()):
        if len(variable.shape) < 2 or not variable.name.endswith("kernel") or id(variable) not in keys:
            continue
        key = keys[id(variable)]
        name = key.removesuffix("/kernel")
        found.append(Kernel(name=name, variable=variable, layout=_layout(layer, variable), key=key))
    return found


def _layout(layer: Any, variable: Any) -> str:
    parent = variable.path.split("/")[-2] if "/" in variable.path else ""
    owner = type(getattr(layer, "layer", layer)).__name__
    if variable.name == "depthwise_kernel" or "DepthwiseConv" in owner:
        return "depthwise"
    if owner.endswith("Transpose"):
        return "transposed"
    return "heads" if parent in HEADS and len(variable.shape) == 3 else "last"


def _hit(layer: Any, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(layer.name, p) for p in patterns)

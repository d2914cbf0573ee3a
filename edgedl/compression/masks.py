"""How zeros last: the mask of a kernel is the zeros in it, so it needs no file and no layer of its own.

The convention for every step: a kernel weight that is exactly 0 when the step begins is 0 when it ends. A step that
trains finds the masks with `zeros` and passes `Hold(masks)` to `fine_tune` as on_step; it sets the masked weights back
to 0 after each update of the optimizer, so that no gradient, momentum or weight decay revives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgedl.compression.kernels import Kernel, keyed
from edgedl.compression.sparsity import Mask


def zeros(kernels: Sequence[Kernel]) -> dict[str, Mask]:
    """The masks of the kernels that have any zero, by key; True where a weight is kept."""
    masks = {k.key: k.read() != 0 for k in kernels}
    return {key: mask for key, mask in masks.items() if not mask.all()}


class Hold:
    """An on_step that sets masked weights back to 0; the masks may be replaced while it is in use."""

    def __init__(self, masks: Mapping[str, Mask] | None = None) -> None:
        self._masks: dict[str, Any] = {}
        self.update(masks or {})

    def update(self, masks: Mapping[str, Mask]) -> None:
        """Hold these masks from now on, and those of other kernels as before."""
        import tensorflow as tf

        self._masks |= {key: tf.constant(mask) for key, mask in masks.items()}

    def state(self) -> dict[str, Any]:
        """The masks, see `edgedl.fitting.checkpoints`."""
        return {key: mask.numpy() for key, mask in self._masks.items()}

    def restore(self, state: Mapping[str, Mask]) -> None:
        """Hold these masks."""
        self.update(state)

    def __call__(self, trainee: Any, done: int = 0, total: int = 0) -> None:  # noqa: ARG002
        """Set masked weights of `trainee`, the model or a copy of it, to 0."""
        import tensorflow as tf

        weights = keyed(trainee)
        for key, mask in self._masks.items():
            weights[key].assign(tf.where(mask, weights[key].value, 0.0))

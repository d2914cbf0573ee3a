"""The step `fine_tune`: training alone, such as a last one on samples as they are after a long one on varied ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgedl.compression.base import Context, Data, fine_tune
from edgedl.compression.preservation import preserved
from edgedl.models.cleaning import copy_of
from edgedl.recipes import Step

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Options:
    """`fine_tune` has no keys of its own."""

    def check(self, step: Step) -> None:
        """Raises ValueError without training, and for layers: it trains them all."""
        if step.training is None:
            message = "training is missing: it is all that this step does"
            raise ValueError(message)
        if step.match or step.skip:
            message = "it trains all layers; leave match and skip out"
            raise ValueError(message)


class FineTune:
    """Trains a model as it is; zeros and clusters stay."""

    kind = "fine_tune"
    options = Options

    def apply(self, model: keras.Model, data: Data, options: Options, context: Context) -> keras.Model:  # noqa: ARG002
        """A copy, trained; as it was where the step is only tried, without its training."""
        made = copy_of(model)
        if context.step.training is not None:
            fine_tune(made, data, context.step.training, context, on_step=preserved(made))
        return made

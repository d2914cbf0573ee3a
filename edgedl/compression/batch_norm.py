"""The step `batch_norm`: batch-norm statistics re-estimated on the data, see `edgedl.compression.normalization`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from edgedl.compression.base import Context, Data, matching_layers, require_data
from edgedl.compression.normalization import FEWEST, SAMPLES, batch_norms, mend_batch_norm
from edgedl.models.cleaning import copy_of
from edgedl.recipes import Step, refuse_training
from edgedl.toml import Within

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Options:
    """At most `samples` are looked at, drawn with the seed."""

    samples: Annotated[int, Within(f"[{FEWEST}, inf)")] = SAMPLES

    def check(self, step: Step) -> None:
        """Raises ValueError for training, of which this does none."""
        refuse_training(step)


class BatchNorm:
    """Re-estimates batch-norm statistics; weights stay as they are."""

    kind = "batch_norm"
    options = Options

    def apply(self, model: keras.Model, data: Data, options: Options, context: Context) -> keras.Model:
        """A copy with the statistics of the data, or with its own where `mend_batch_norm` finds those better."""
        where = context.step.where
        data = require_data(data, where, "batch_norm")
        made = copy_of(model)
        told = mend_batch_norm(
            made, data, seed=context.seed, layers=self._chosen(made, context), samples=options.samples
        )
        context.say(f"{where}: {told}")
        return made

    def _chosen(self, model: keras.Model, context: Context) -> list[Any] | None:
        """None for all. Raises InputError for a pattern that hits none."""
        step, able = context.step, batch_norms(model)
        if not step.match and not step.skip:
            return None
        return matching_layers(
            model,
            step.match,
            step.skip,
            where=step.where,
            able=lambda layer: layer in able,
            what="batch normalization",
        )

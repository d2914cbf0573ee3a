"""Pruning that sets weights to zero: by magnitude, n of m, or in blocks. The shapes of the layers stay.

Zeros shrink what a store sends; they make no runtime here faster (`prune.channels` does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from edgedl.compression import sparsity
from edgedl.compression.base import Context, Data, fine_tune
from edgedl.compression.kernels import Kernel, kernels, keyed, share_text
from edgedl.compression.masks import Hold, zeros
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.compression.preservation import Steps, preserved
from edgedl.compression.sparsity import Mask, Schedule
from edgedl.errors import InputError
from edgedl.models.cleaning import copy_of
from edgedl.models.tensors import operations
from edgedl.recipes import Step, Training
from edgedl.toml import Within

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

Masker = Callable[[Sequence["Array"], float], list[Mask]]  # (values of each kernel, sparsity) -> masks


@dataclass(frozen=True, kw_only=True)
class MagnitudeOptions:
    """`scope` layer makes every kernel as sparse, global the whole, compared by LAMP scores.

    Depthwise kernels are left alone under scope layer unless `match` names them: of nine weights a channel two would
    be left at 75 %, for a few hundredths of the weights of a network.
    The polynomial `schedule` reaches `sparsity` after the share `ramp` of the fine-tuning, the constant one at once.
    """

    sparsity: Annotated[float, Within("[0, 1)")]
    scope: Literal["layer", "global"] = "layer"
    schedule: Schedule = "polynomial"
    ramp: Annotated[float, Within("(0, 1]")] = 0.8

    def check(self, step: Step) -> None:
        """Raises ValueError for a rate that would start again after the ramp."""
        _check_rate(step.training, self.schedule)


def _check_rate(training: Training | None, schedule: Schedule) -> None:
    if schedule == "polynomial" and training and training.patience and training.schedule == "cosine":
        message = "patience counts from the end of the ramp, where schedule cosine would start again; leave one out"
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class PatternOptions:
    """Of every `m` weights along the input channels, the `n` largest stay."""

    n: Annotated[int, Within("[1, inf)")] = 2
    m: Annotated[int, Within("[2, inf)")] = 4

    def __post_init__(self) -> None:
        if self.n >= self.m:
            message = f"n must be below m, or nothing is pruned; got n = {self.n}, m = {self.m}"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """`block` is (input channels, output channels); the rest as for magnitude."""

    sparsity: Annotated[float, Within("[0, 1)")]
    block: tuple[Annotated[int, Within("[1, inf)")], ...] = (4, 1)
    schedule: Schedule = "polynomial"
    ramp: Annotated[float, Within("(0, 1]")] = 0.8

    def __post_init__(self) -> None:
        if len(self.block) != 2 or self.block == (1, 1):
            message = f"block must be two sizes, not both 1, such as [4, 1]; got {list(self.block)}"
            raise ValueError(message)

    def check(self, step: Step) -> None:
        """Raises ValueError for a rate that would start again after the ramp."""
        _check_rate(step.training, self.schedule)


class Magnitude:
    """Sets the weights of least magnitude to zero."""

    kind = "prune"
    options = MagnitudeOptions

    def apply(self, model: keras.Model, data: Data, options: MagnitudeOptions, context: Context) -> keras.Model:
        """A copy with the sparsity asked for, fine-tuned where the step trains; says what was reached."""
        made = copy_of(model)
        if options.scope == "global" or context.step.match:
            chosen = kernels(made, context)
        else:
            chosen = kernels(made, context, able=_sums_channels(1), what="layer that sums over input channels")

        def masker(values: Sequence[Array], share: float) -> list[Mask]:
            if options.scope == "global":
                return sparsity.global_masks(values, share)
            return [sparsity.magnitude_mask(v, share) for v in values]

        return _Pruning(made, chosen, masker, context).run(data, options.sparsity, options.schedule, options.ramp)


class NOfM:
    """Keeps n of every m weights, as sparse matrix units of GPUs take them."""

    kind = "prune"
    options = PatternOptions

    def apply(self, model: keras.Model, data: Data, options: PatternOptions, context: Context) -> keras.Model:
        """A copy in which every kernel that sums over input channels has the pattern, fine-tuned under it."""
        made = copy_of(model)
        able = _sums_channels(options.m)
        chosen = kernels(made, context, able=able, what=f"layer that sums over {options.m} input channels or more")

        def masker(values: Sequence[Array], _: float) -> list[Mask]:
            return [
                _by_input(k, v, lambda w: sparsity.n_m_mask(w, options.n, options.m))
                for k, v in zip(chosen, values, strict=True)
            ]

        return _Pruning(made, chosen, masker, context).run(data, 1 - options.n / options.m, "constant", 1.0)


class Block:
    """Sets whole blocks of weights to zero."""

    kind = "prune"
    options = BlockOptions

    def apply(self, model: keras.Model, data: Data, options: BlockOptions, context: Context) -> keras.Model:
        """A copy in which blocks of every kernel are zero, at least as many as asked for; fine-tuned under them."""
        made = copy_of(model)
        high, wide = options.block
        able = _sums_channels(high)
        what = f"layer that sums over {high} input channels or more"
        chosen = kernels(made, context, able=able, what=what)

        def masker(values: Sequence[Array], share: float) -> list[Mask]:
            return [
                _by_input(k, v, lambda w: _blocks(w, (high, wide), share)) for k, v in zip(chosen, values, strict=True)
            ]

        return _Pruning(made, chosen, masker, context).run(data, options.sparsity, options.schedule, options.ramp)


def _blocks(weights: Array, block: tuple[int, int], share: float) -> Mask:
    """`block_mask` of (in, ..., out)."""
    return np.moveaxis(sparsity.block_mask(np.moveaxis(weights, 0, -2), block, share), -2, 0)


def _by_input(kernel: Kernel, values: Array, masker: Callable[[Array], Mask]) -> Mask:
    """The mask of a kernel from a function that takes (in, ..., out)."""
    if kernel.layout == "heads":  # (in, heads, size)
        return masker(values)
    axis = values.ndim - (1 if kernel.layout == "transposed" else 2)
    ordered = np.moveaxis(values, axis, 0)
    return np.moveaxis(masker(ordered), 0, axis)


def _sums_channels(least: int) -> Callable[[Any, Kernel], bool]:
    """Whether a kernel sums over so many input channels: a depthwise one sums over none."""

    def able(_: Any, kernel: Kernel) -> bool:
        axis = {"heads": 0, "transposed": -1}.get(kernel.layout, -2)
        return kernel.layout != "depthwise" and kernel.shape[axis] >= least

    return able


class _Pruning:
    """One pruning of a copy: masks now and in training, batch norm, and what was reached."""

    def __init__(self, model: keras.Model, chosen: Sequence[Kernel], masker: Masker, context: Context) -> None:
        self.model, self.chosen, self.masker, self.context = model, chosen, masker, context
        self.where = context.step.where
        self.hold = Hold(zeros(chosen))
        self.others = preserved(model)

    def run(self, data: Data, final: float, schedule: Schedule, ramp: float) -> keras.Model:
        """Prune, train where the step says so, and tell what was reached."""
        self._check(final)
        training = self.context.step.training
        if training is None:
            self.prune(self.model, final)
        else:
            self.prune(self.model, sparsity.sparsity_at(0, 1, final=final, schedule=schedule))
            rest = training
            if schedule == "polynomial" and training.patience:  # what is not yet sparse must not be chosen as best
                epochs = max(1, round(ramp * training.epochs))
                rest = replace(training, epochs=training.epochs - epochs)
                self._train(data, replace(training, epochs=epochs, patience=None), final, schedule, 1.0)
                ramp = 0.0
            if rest.epochs:
                self._train(data, rest, final, schedule if ramp else "constant", ramp)
            self.prune(self.model, final)
        self._settle(data)
        return self.model

    def _check(self, final: float) -> None:
        """Raises InputError where nothing would be left of a kernel, or nothing would be pruned at all."""
        masks = self.masker([k.read() for k in self.chosen], final)
        lost = ", ".join(k.name for k, mask in zip(self.chosen, masks, strict=True) if not mask.any())
        if lost:
            message = f"{self.where}: sparsity {final:g} leaves nothing of {lost}; ask for less, or skip it"
            raise InputError(message)
        if final > 0 and all(mask.all() for mask in masks):
            message = (
                f"{self.where}: sparsity {final:g} of {sum(m.size for m in masks)} weights is less than one weight"
            )
            raise InputError(message)

    def prune(self, model: Any, share: float) -> None:
        """Make the masks of `model` anew, zeros of before included, and apply them."""
        weights = keyed(model)
        values = [np.asarray(weights[k.key].numpy()) for k in self.chosen]
        masks = self.masker(values, share)
        self.hold.update({k.key: m & (v != 0) for k, m, v in zip(self.chosen, masks, values, strict=True)})
        self.hold(model)

    def _train(self, data: Data, training: Any, final: float, schedule: Schedule, ramp: float) -> None:
        def update(trainee: Any, done: int, total: int) -> None:
            last = sparsity.last_update(total, ramp)
            if schedule == "polynomial" and sparsity.is_update(done, last):
                self.prune(trainee, sparsity.sparsity_at(done, last, final=final, schedule=schedule))

        fine_tune(self.model, data, training, self.context, on_step=Steps([self.others, self.hold, update]))

    def _settle(self, data: Data) -> None:
        if any(type(op).__name__ == "BatchNormalization" for op in operations(self.model)):
            if re_estimate_batch_norm(self.model, data, seed=self.context.seed):
                self.context.say(f"{self.where}: batch-norm statistics re-estimated on the data")
            else:
                self.context.say(
                    f"{self.where}: batch-norm statistics are those of before: no data to re-estimate them"
                )
        self.context.say(f"{self.where}: {share_text(self.chosen)}")

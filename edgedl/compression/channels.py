"""Structured pruning: the channels that matter least are removed, not zeroed, everywhere they go.

What hangs together is found by `groups`, how much it matters by `importance`; removal goes in steps towards the goal,
with batch-norm statistics estimated again after each, and fine-tuning in between (Molchanov et al., arXiv:1906.10771,
section 3.2; Li and Wang et al., arXiv:2007.02491, for the statistics).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from edgedl import graph
from edgedl.compression import importance as criteria
from edgedl.compression.allocation import ORDERS, Family, Scope
from edgedl.compression.base import Context, Data, fine_tune, matching_layers, require_data
from edgedl.compression.groups import KERNELS, Groups, channel_groups, families
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.compression.preservation import preserved
from edgedl.compression.reconstruction import output_error, reconstruct
from edgedl.compression.removal import Costs, macs_of, removed
from edgedl.compression.selection import Selection
from edgedl.errors import InputError, UnsupportedError
from edgedl.models.tensors import carried_scheme
from edgedl.toml import Within

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

Share = Annotated[float, Within("(0, 1)")]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What may be left, as a share of what the step starts with.

    `latency` is measured by `edgedl compress`, which turns it into macs.
    """

    macs: Share | None = None
    parameters: Share | None = None
    latency: Share | None = None

    @property
    def counted(self) -> int:
        """What a channel costs: 0 multiply-accumulates, 1 parameters."""
        return 0 if self.macs is not None else 1

    def __post_init__(self) -> None:
        if self.latency is not None and (self.macs or self.parameters):
            message = "goal has latency: macs and parameters are what it is turned into; leave them out"
            raise ValueError(message)
        if self.macs is None and self.parameters is None and self.latency is None:
            message = "goal must have macs, parameters or latency, such as { macs = 0.5 }"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Either `goal`, or `sparsity`: the share of the removable channels that goes.

    `scope` global ranks all channels together, layer takes the same share of each family of layers, balanced more of
    those whose channels cost more (`allocation`); best trains each of these for `trial` passes over the data and goes
    on with the one of least loss, or untrained with the one that moves the outputs least. `iterations` is in how many
    steps; between them, with `training`, `between` passes. `minimum` channels stay in a layer, and a quarter while the
    others can give, then an eighth: an estimate of importance must not close a layer.
    Channels go `multiple` at a time where they are tied alike: integer kernels work on 4, 8 or 16 at once.
    `reconstruct` fits the kernels that are left to the outputs of before, by least squares on the data.
    `per_cost` ranks towards a goal by importance per MAC (or parameter) saved; None: with taylor, which is a loss.
    """

    goal: Goal | None = None
    sparsity: Annotated[float, Within("(0, 1)")] | None = None
    scope: Literal[Scope, "best"] = "global"
    trial: Annotated[int, Within("[1, inf)")] = 2
    importance: Literal["l1", "bn_gamma", "taylor"] = "l1"
    per_cost: bool | None = None
    iterations: Annotated[int, Within("[1, 100]")] = 1
    between: Annotated[int, Within("[0, inf)")] = 1
    minimum: Annotated[int, Within("[1, inf)")] = 1
    multiple: Annotated[int, Within("[1, inf)")] = 1
    reconstruct: bool = True

    def __post_init__(self) -> None:
        if (self.goal is None) == (self.sparsity is None):
            message = "give either goal, such as { macs = 0.5 }, or sparsity"
            raise ValueError(message)
        if self.goal is None and self.scope in ("balanced", "best"):
            message = f"scope {self.scope} weighs what channels cost: give a goal, such as {{ macs = 0.5 }}"
            raise ValueError(message)
        if self.goal is None and self.per_cost is not None:
            message = "per_cost weighs channels by what they save of a goal, such as { macs = 0.5 }: leave it out"
            raise ValueError(message)


class Channels:
    """Removes whole channels towards a goal."""

    kind = "prune"
    options = Options

    def apply(self, model: keras.Model, data: Data, options: Options, context: Context) -> keras.Model:
        """A flat model with fewer channels. Says how many went, and what the statistics and training did.

        Raises InputError where the goal is out of reach, or a latency, which only `edgedl compress` can measure, and
        for a quantized model.
        """
        if options.goal is not None and options.goal.latency is not None:
            message = f"{context.step.where}: goal latency is measured by `edgedl compress`; give macs here"
            raise InputError(message)
        if carried := carried_scheme(model):
            message = f"{context.step.where}: the model is quantized, for {carried.value}; remove channels before that"
            raise InputError(message)
        return _Run(graph.flattened(model), data, options, context).done()


class _Run:
    """One step of a recipe at work."""

    def __init__(self, model: keras.Model, data: Data, options: Options, context: Context) -> None:
        self.model, self.data, self.options, self.context = model, data, options, context
        self.where = context.step.where
        self.scope: Scope = "global" if options.scope == "best" else options.scope
        groups = channel_groups(model)
        if options.goal is not None and options.goal.macs is not None:
            _require_macs(groups, self.where)
        costs, everything = Costs.of(model, groups), np.ones(groups.count, bool)
        self.before = costs.of_choice(everything)
        self.chosen = self._chosen(groups)
        saved = costs.saved(everything)[options.goal.counted if options.goal else 0]
        found = self._candidates(groups)
        self.first = {names: (len(ids), float(saved[ids].mean())) for names, ids in found}  # size and cost
        self.widths = {name: len(use.outputs) for name, use in groups.sources().items()}
        self.checkpoint = _Checkpoint(context.folder)

    def done(self) -> keras.Model:
        """All iterations, from the last checkpoint on, and the final training."""
        steps = self.options.iterations
        masks = self.checkpoint.masks()
        start = len(masks)
        for keep in masks:
            self.model = removed(self.model, channel_groups(self.model), keep)
        if start:
            self.checkpoint.restore(self.model, start)
            self.context.say(f"{self.where}: went on after iteration {start} of {steps}")
        if self.options.scope == "best" and start < steps:
            self.scope = self.checkpoint.scope() or self._best_scope()
        for number in range(start + 1, steps + 1):
            keep = self._iteration(number / steps)
            if number < steps:
                self._train(self.options.between)
            self.checkpoint.save(number, keep, self.model)
        if self.context.step.training is not None:
            self._train(self.context.step.training.epochs)
        self._report()
        return self.model

    def _iteration(self, progress: float) -> Array:
        choice = self._selection()
        keep = choice.keep(self.scope, progress)
        self.model = self._without(choice.groups, keep)
        return keep

    def _selection(self) -> Selection:
        """What may go of the model as it is now."""
        groups = channel_groups(self.model)
        found = []
        for names, ids in self._candidates(groups):
            size, cost = next(first for layers, first in self.first.items() if names[0] in layers)
            found.append(Family(layers=names, groups=ids, size=size, cost=cost))
        values = criteria.of_groups(
            self.model,
            groups,
            self.options.importance,
            self.data,
            wanted=np.concatenate([f.groups for f in found]),
            seed=self.context.seed,
            where=self.where,
        )
        return Selection(
            options=self.options,
            where=self.where,
            groups=groups,
            families=found,
            values=values,
            costs=Costs.of(self.model, groups),
            before=self.before,
            widths=self.widths,
        )

    def _without(self, groups: Groups, keep: Array) -> keras.Model:
        """The model without the groups that do not stay, and without training as good as it gets."""
        made = removed(self.model, groups, keep)
        if self.options.reconstruct and self.data is not None and self.data.count:
            reconstruct(made, self.model, groups, keep, self.data, seed=self.context.seed)
        re_estimate_batch_norm(made, self.data, seed=self.context.seed)
        if self.data is None:
            self.context.say(f"{self.where}: no data: kernels were not fitted, statistics are those of before")
        return made

    def _best_scope(self) -> Scope:
        """The scope that leaves the least loss where all channels go at once. Raises InputError where none can."""
        choice = self._selection()
        masks: dict[Scope, Array] = {}
        for scope in ORDERS:
            with contextlib.suppress(InputError):
                masks[scope] = choice.keep(scope, 1.0)
        if not masks:
            choice.keep("global", 1.0)  # raises what is wrong
        losses = {scope: self._loss(self._without(choice.groups, keep)) for scope, keep in masks.items()}
        chosen = min(losses, key=lambda scope: losses[scope])
        trained = self.context.step.training is not None
        by = f"loss after {self.options.trial} epochs" if trained else "mean square by which outputs moved"
        tried = ", ".join(f"{scope} {loss:.4g}" for scope, loss in losses.items())
        self.context.say(f"{self.where}: scope {chosen}, by the {by}: {tried}")
        self.checkpoint.choose(chosen)
        return chosen

    def _loss(self, made: keras.Model) -> float:
        training = self.context.step.training
        if training is None:
            data = require_data(self.data, self.where, "scope best")
            return output_error(made, self.model, data, seed=self.context.seed)
        short = replace(training, epochs=self.options.trial, patience=None)
        told = fine_tune(made, self.data, short, replace(self.context, folder=None), on_step=preserved(made))
        return told.history["loss"][-1]

    def _train(self, epochs: int) -> None:
        training = self.context.step.training
        if training is not None and epochs:
            kept = preserved(self.model)
            fine_tune(self.model, self.data, replace(training, epochs=epochs), self.context, on_step=kept)

    def _chosen(self, groups: Groups) -> list[str]:
        """The layers whose channels may go. Raises InputError and UnsupportedError where none may."""
        step = self.context.step
        layers = matching_layers(
            self.model,
            step.match,
            step.skip,
            where=self.where,
            able=lambda layer: type(layer).__name__ in KERNELS,
            what="convolution or Dense layer",
        )
        names = [layer.name for layer in layers if layer.name in groups.uses]
        self.skipped = [n for n in groups.sources() if any(fnmatchcase(n, p) for p in step.skip)]
        names = [name for name in names if len(groups.removable(groups.uses[name]))]
        if not names:
            found = ", ".join(layer.name for layer in layers)
            message = (
                f"{self.where}: no channel of {found} can be removed: they are outputs of the model, or go where "
                "channels cannot be told apart"
            )
            raise UnsupportedError(message)
        return names

    def _candidates(self, groups: Groups) -> list[tuple[tuple[str, ...], Array]]:
        """The families of the chosen layers, without the groups that a skipped layer shares."""
        held = np.concatenate([np.zeros(0, np.int64), *(groups.uses[n].outputs for n in self.skipped)])
        found = [(names, np.setdiff1d(ids, held)) for names, ids in families(groups, self.chosen)]
        return [(names, ids) for names, ids in found if len(ids)]

    def _report(self) -> None:
        groups = channel_groups(self.model)
        now = Costs.of(self.model, groups).of_choice(np.ones(groups.count, bool))
        left = sum(len(ids) for _, ids in self._candidates(groups))
        at_start = sum(size for size, _ in self.first.values())
        shares = [f"{n / b:.1%}" if b else "0" for n, b in zip(now, self.before, strict=True)]
        self.context.say(
            f"{self.where}: {at_start - left} of {at_start} channels removed; "
            f"{shares[0]} of the MACs and {shares[1]} of the parameters are left"
        )


def _require_macs(groups: Groups, where: str) -> None:
    """Raises InputError for a layer whose multiply-accumulates hang on a free size."""
    for call in groups.graph.calls:
        if macs_of(call) is None and any(None in v.shape[1:] for v in (*call.inputs, call.outputs[0])):
            message = (
                f"{where}: goal macs: those of {call.name!r} cannot be counted, its sizes are free; fix them in the "
                "model's Input, or give parameters"
            )
            raise InputError(message)


class _Checkpoint:
    """The scope, the masks of the iterations and the weights after the last, in a folder; nothing without one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def scope(self) -> Any:
        """The scope that was chosen."""
        path = self.folder / "scope.txt" if self.folder is not None else None
        return path.read_text(encoding="utf-8") if path and path.exists() else None

    def choose(self, scope: str) -> None:
        """Write the scope down."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "part.txt").write_text(scope, encoding="utf-8")
            (self.folder / "part.txt").replace(self.folder / "scope.txt")

    def masks(self) -> list[Array]:
        """The mask of each iteration that was done."""
        found: list[Array] = []
        while self.folder is not None and (path := self.folder / f"iteration-{len(found) + 1}.npz").exists():
            with np.load(path) as stored:
                found.append(stored["keep"])
        return found

    def restore(self, model: keras.Model, number: int) -> None:
        """Set the weights as they were after that iteration."""
        assert self.folder is not None  # noqa: S101
        with np.load(self.folder / f"iteration-{number}.npz") as stored:
            model.set_weights([stored[f"w{i}"] for i in range(len(model.weights))])

    def save(self, number: int, keep: Array, model: keras.Model) -> None:
        """Write an iteration; it is there whole or not at all."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "part.npz"
        arrays: dict[str, Any] = {f"w{i}": w for i, w in enumerate(model.get_weights())}
        np.savez(part, keep=keep, **arrays)
        part.replace(self.folder / f"iteration-{number}.npz")

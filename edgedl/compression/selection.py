"""Which channel groups stay: a goal or a sparsity, in the order of a scope, with something left of every layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgedl.compression.allocation import ORDERS, Family, Scope
from edgedl.compression.groups import Groups, Use
from edgedl.compression.removal import Costs
from edgedl.errors import InputError

if TYPE_CHECKING:
    from edgedl.compression.channels import Goal, Options
    from edgedl.types import Array

FLOORS = (1 / 4, 1 / 8, 0.0)  # of a layer's channels: the first that lets the goal be reached holds


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What an iteration chooses from: `families` of `groups` with their `values` (groups.count,), and what they cost.

    `before` are the multiply-accumulates and parameters at first, `widths` the layers' channels at first.
    """

    options: Options
    where: str
    groups: Groups
    families: list[Family]
    values: Array
    costs: Costs
    before: tuple[int, int]
    widths: Mapping[str, int]

    def keep(self, scope: Scope, progress: float) -> Array:
        """Which groups stay after an iteration, a mask (groups.count,); `progress` is the share of the way.

        Raises InputError where the goal or the sparsity is out of reach.
        """
        for floor in FLOORS[:-1]:
            try:
                return self._kept(scope, progress, floor)
            except InputError:
                continue
        return self._kept(scope, progress, FLOORS[-1])

    def _kept(self, scope: Scope, progress: float, floor: float) -> Array:
        """The same with `floor` of each layer's first channels held."""
        least = {name: max(self.options.minimum, math.ceil(floor * width)) for name, width in self.widths.items()}
        left = _Left(self.groups, np.ones(self.groups.count, bool), least, self.options.multiple)
        if self.options.goal is not None:
            self._towards_goal(self.options.goal, scope, progress, left)
            return left.keep
        share = float(self.options.sparsity or 0) * progress
        if scope == "layer":
            for family in self.families:
                self._drop_share(left, family.groups, family.size, share)
        else:
            ids = np.concatenate([f.groups for f in self.families])
            self._drop_share(left, ids, sum(f.size for f in self.families), share)
        whole = all(f.size == len(f.groups) for f in self.families)  # nothing went in an earlier iteration
        if progress == 1 and whole and left.keep.all():
            why = "it is less than one channel of a layer; ask for more, or for scope global"
            if self.options.multiple > 1:
                multiple = self.options.multiple
                why = f"channels go {multiple} at a time, and no layer can lose so many; give a smaller multiple"
            message = f"{self.where}: sparsity {self.options.sparsity} removes nothing: {why}"
            raise InputError(message)
        return left.keep

    def _drop_share(self, left: _Left, ids: Array, size: int, share: float) -> None:
        """Drop the least important of `ids` in place, until `share` of the `size` there were at first are gone.

        Those of layers that cannot lose `multiple` at a time stay.
        """
        wanted = round(size * share) - (size - len(ids))
        if left.multiple > 1:
            wanted = min(wanted, left.complete(ids, self.options.minimum))
        dropped = 0
        for group in ids[np.argsort(self.values[ids], kind="stable")]:
            if dropped >= wanted:
                return
            dropped += left.drop(int(group))
        if dropped < wanted:
            message = (
                f"{self.where}: sparsity {self.options.sparsity} would leave layer {left.blocking!r} fewer than "
                f"{self.options.minimum} channels; ask for less, or skip it"
            )
            raise InputError(message)

    def _towards_goal(self, goal: Goal, scope: Scope, progress: float, left: _Left) -> None:
        """Drop in place until the goal is reached, as far as `progress` asks. Raises InputError where it cannot be."""
        limits = [
            np.inf if share is None else before * (1 - progress * (1 - share))
            for before, share in zip(self.before, (goal.macs, goal.parameters), strict=True)
        ]
        per_cost = self.options.importance == "taylor" if self.options.per_cost is None else self.options.per_cost
        saved = self.costs.saved(left.keep)[goal.counted] if per_cost else np.ones(self.groups.count)
        for group in ORDERS[scope](self.families, self.values / np.maximum(saved, 1)):
            now = self.costs.of_choice(left.keep)
            if all(n <= limit for n, limit in zip(now, limits, strict=True)):
                return
            left.drop(int(group))
        now = self.costs.of_choice(left.keep)
        if all(n <= limit for n, limit in zip(now, limits, strict=True)):
            return
        least = [round(n / b, 3) if b else 0 for n, b in zip(now, self.before, strict=True)]
        message = (
            f"{self.where}: the goal {left.obstacle(self.options.minimum)}; "
            f"the least these layers can reach is macs {least[0]}, parameters {least[1]}"
        )
        raise InputError(message)


@dataclass
class _Left:
    """How many channels each layer has left while groups are dropped from the mask `keep`, in place."""

    groups: Groups
    keep: Array
    least: dict[str, int]
    multiple: int
    blocking: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    homes: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    waiting: dict[tuple[tuple[str, int], ...], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        uses: dict[str, Use] = self.groups.sources()
        for name, use in uses.items():
            self.counts[name] = int(self.keep[use.outputs].sum())
            for group, times in zip(*np.unique(use.outputs, return_counts=True), strict=True):
                self.homes.setdefault(int(group), []).append((name, int(times)))

    def complete(self, ids: Array, minimum: int) -> int:
        """How many of the groups can go `multiple` at a time, but those whose layers can lose none by `minimum`."""
        alike = Counter(tuple(self.homes.get(int(group), ())) for group in ids)
        return sum(
            count // self.multiple * self.multiple
            for homes, count in alike.items()
            if all(self.counts[name] - times * self.multiple >= minimum for name, times in homes)
        )

    def obstacle(self, minimum: int) -> str:
        """What no more can be dropped for."""
        if not self.blocking:
            return f"is out of reach for channels that go {self.multiple} at a time"
        return f"would leave layer {self.blocking!r} fewer than {minimum} channels"

    def drop(self, group: int) -> int:
        """Drop a group once `multiple` that lie in the same layers wait for it; how many were dropped.

        None is where a layer would have too few channels then.
        """
        homes = tuple(self.homes.get(group, ()))
        waiting = self.waiting.setdefault(homes, [])
        waiting.append(group)
        if len(waiting) < self.multiple:
            return 0
        dropped, self.waiting[homes] = list(waiting), []
        short = next((n for n, times in homes if self.counts[n] - times * len(dropped) < self.least[n]), None)
        if short is not None:
            self.blocking = short
            return 0
        for name, times in homes:
            self.counts[name] -= times * len(dropped)
        self.keep[dropped] = False
        return len(dropped)

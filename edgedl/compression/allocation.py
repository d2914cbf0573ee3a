"""How a removal of channels is shared out among the layers: the order in which channel groups go.

No rule is the best for every network: which layers can spare channels depends on what they cost, on what hangs together
and on what training can mend, so that `channels` can also try them all (NetAdapt: Yang et al., arXiv:1804.03230,
section 3, chooses among proposals by short trainings, too).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from edgedl.types import Array


Scope = Literal["global", "layer", "balanced"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Layers that lose channels together: their `groups` that may go, of `size` at first.

    `cost` is what one of them saved at first, alone: multiply-accumulates or parameters, as the goal says.
    """

    layers: tuple[str, ...]
    groups: Array
    size: int
    cost: float


def by_rank(families: list[Family], values: Array) -> Array:
    """All groups together, by value (groups.count,)."""
    ids = np.concatenate([f.groups for f in families])
    return np.asarray(ids[np.argsort(values[ids], kind="stable")])


def evenly(families: list[Family], values: Array) -> Array:
    """The same share of every family, by value within it."""
    return _by_share(families, values, [1.0] * len(families))


def balanced(families: list[Family], values: Array) -> Array:
    """The share of a family that is left goes with 1 / sqrt(cost of a channel); residual streams go last.

    Where every layer adds an error of one over the share r that is left of it, as an average over r channels does,
    sum(1 / r) is least for a given sum(c r) at r = 1 / sqrt(c). Channels that several layers write are read by all
    layers behind, and stay whole while others can give, as in ThiNet (Luo et al., arXiv:1707.06342).
    """
    parts = [[f for f in families if (len(f.layers) > 1) == shared] for shared in (False, True)]
    found = [_by_share(part, values, [math.sqrt(f.cost) for f in part]) for part in parts if part]
    return np.concatenate(found)


def _by_share(families: list[Family], values: Array, weights: list[float]) -> Array:
    """Groups in the order in which the share that is left of their family, times its weight, falls."""
    keys = []
    for family, weight in zip(families, weights, strict=True):
        ranks = np.argsort(np.argsort(values[family.groups], kind="stable"), kind="stable")
        keys.append((len(ranks) - ranks) / family.size * weight)
    ids = np.concatenate([f.groups for f in families])
    return np.asarray(ids[np.argsort(-np.concatenate(keys), kind="stable")])


ORDERS: dict[Scope, Callable[[list[Family], Array], Array]] = {
    "global": by_rank,
    "layer": evenly,
    "balanced": balanced,
}

"""A cost an operator, by runtime, version, core and board, from few figures: a hierarchy of log-normal effects.

The cycles of one inference are a sum of counts times costs, so all costs are positive by construction:
    log cycles = log sum_k count_k exp(log_cost_k) + family + noise
    log_cost_k = prior_k + common_k + (scalar and per-cost effects of runtime, version, core, runtime on core, board)
Every effect is normal around 0 with a spread of its own, so what a level has no figures for falls back on the level
above it (Gelman and Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", chapter 12). `family`
is what all models of one architecture share: it keeps ten rows of one network from counting as ten witnesses.

Fitted by Gauss-Newton from the data's side (iterated extended Kalman update: Bell and Cathey, IEEE TAC 38(2), 1993),
which inverts a matrix of the number of rows, however many effects there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgedl.latency.features import NAMES

if TYPE_CHECKING:
    from edgedl.types import Array

K = len(NAMES)
STEPS, HALVINGS, TOLERANCE = 60, 12, 1e-7


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One published figure: `counts` (K,) of its model, and the cycles it took, latency times clock.

    `runtime` is a figure's `kernels`.
    """

    counts: Array
    cycles: float
    latency_ms: float
    clock_hz: float
    model: str
    family: str
    runtime: str
    version: str
    core: str
    board: str
    macs: int


@dataclass(frozen=True, kw_only=True)
class Spreads:
    """Standard deviations in log cycles: of a level's scalar effect, and (`_costs`) of its effect on each cost."""

    costs: float = 0.7  # a multiple of the prior's own
    runtime: float = 0.5
    runtime_costs: float = 0.2
    version: float = 0.1
    version_costs: float = 0.06
    core: float = 1.0
    core_costs: float = 0.2
    runtime_core: float = 0.15
    board: float = 0.05
    family: float = 0.12
    family_version: float = 0.06
    noise: float = 0.05

    @property
    def new_model(self) -> float:
        """The spread of a model of a family without figures around its sum of costs."""
        return float(np.sqrt(self.family**2 + self.family_version**2 + self.noise**2))


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """What is known before any figure: `cycles` (K,) a unit of each count, and `spread` (K,) of its logarithm.

    `wiring` (K,) is how far a board without figures may be from the rest: the spread of what hangs on its layout.
    """

    cycles: Array
    spread: Array
    wiring: Array


@dataclass(frozen=True)
class _Level:
    name: str
    key: Callable[[Row], object]
    scalar: Callable[[Spreads], float]
    costs: Callable[[Spreads], float] | None = None


_LEVELS = (
    _Level("runtime", lambda r: r.runtime, lambda s: s.runtime, lambda s: s.runtime_costs),
    _Level("version", lambda r: (r.runtime, r.version), lambda s: s.version, lambda s: s.version_costs),
    _Level("core", lambda r: r.core, lambda s: s.core, lambda s: s.core_costs),
    _Level("runtime_core", lambda r: (r.runtime, r.core), lambda s: s.runtime_core),
    _Level("board", lambda r: r.board, lambda s: s.board),
    _Level("family", lambda r: r.family, lambda s: s.family),
    _Level("family_version", lambda r: (r.family, r.runtime, r.version), lambda s: s.family_version),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """Costs somewhere: `log_cycles` (K,), their `covariance` (K, K), and the `variance` of what no cost explains."""

    log_cycles: Array
    covariance: Array
    variance: float

    def predict(self, counts: Array) -> tuple[float, float, Array]:
        """The cycles of a model with `counts`, the standard deviation of their logarithm, the share of each cost."""
        parts = counts * np.exp(self.log_cycles)
        total = parts.sum()
        share = parts / total
        return float(total), float(np.sqrt(share @ self.covariance @ share + self.variance)), share


class Hierarchy:
    """The fit of some rows; `evidence` is the log marginal likelihood (Laplace) by which spreads are chosen."""

    def __init__(self, rows: Sequence[Row], prior: Prior, spreads: Spreads) -> None:
        self.prior, self.spreads = prior, spreads
        self._blocks, self._spread = _blocks(rows, prior, spreads)
        self._designs = np.stack([self._design(row) for row in rows])  # (rows, K, effects)
        self._counts = np.stack([row.counts for row in rows])
        self._log_cycles = np.log([row.cycles for row in rows])
        self._effects = self._solve()
        residual, slope = self._linearized(self._effects)
        self._slope, self._gain = slope, np.linalg.inv(self._marginal(slope))
        penalty = float(((self._effects / self._spread) ** 2).sum() + (residual**2).sum() / spreads.noise**2)
        self.evidence = -0.5 * (penalty + float(np.linalg.slogdet(self._marginal(slope))[1]))

    def at(self, *, runtime: str, version: str, core: str, board: str | None = None) -> Costs:
        """The costs there. A level without figures adds its spread; a board that is not named counts as a new one."""
        row = Row(counts=np.zeros(K), cycles=1, latency_ms=0, clock_hz=0, model="", family="", runtime=runtime,
                  version=version, core=core, board=board or "", macs=0)  # fmt: skip
        design = self._design(row)
        cross = (design * self._spread**2) @ self._slope.T  # (K, rows)
        covariance = (design * self._spread**2) @ design.T - cross @ self._gain @ cross.T
        variance = self.spreads.new_model**2
        for level in _LEVELS[:5]:
            if (level.name, level.key(row)) not in self._blocks:
                variance += level.scalar(self.spreads) ** 2
                if level.costs:
                    covariance = covariance + level.costs(self.spreads) ** 2 * np.eye(K)
        if ("board", row.board) not in self._blocks:
            covariance = covariance + np.diag(self.prior.wiring**2)
        return Costs(
            log_cycles=np.log(self.prior.cycles) + design @ self._effects, covariance=covariance, variance=variance
        )

    def _design(self, row: Row) -> Array:
        """Which effects make up the costs of a row, shape (K, effects)."""
        design = np.zeros((K, len(self._spread)))
        design[:, :K] = np.eye(K)
        for level in _LEVELS:
            start = self._blocks.get((level.name, level.key(row)))
            if start is not None:
                design[:, start] = 1
                if level.costs:
                    design[:, start + 1 : start + 1 + K] = np.eye(K)
        return design

    def _linearized(self, effects: Array) -> tuple[Array, Array]:
        """Predicted minus published log cycles (rows,), and their slope (rows, effects)."""
        parts = self._counts * self.prior.cycles * np.exp(self._designs @ effects)
        totals = parts.sum(axis=1)
        slope = np.einsum("rk,rke->re", parts / totals[:, None], self._designs)
        return np.log(totals) - self._log_cycles, slope

    def _marginal(self, slope: Array) -> Array:
        """The covariance of the figures, (rows, rows)."""
        return np.asarray((slope * self._spread**2) @ slope.T + self.spreads.noise**2 * np.eye(len(slope)))

    def _loss(self, effects: Array, residual: Array) -> float:
        return float(((effects / self._spread) ** 2).sum() + (residual**2).sum() / self.spreads.noise**2)

    def _solve(self) -> Array:
        effects = np.zeros(len(self._spread))
        residual, slope = self._linearized(effects)
        loss = self._loss(effects, residual)
        for _ in range(STEPS):
            wanted = self._spread**2 * (slope.T @ np.linalg.solve(self._marginal(slope), slope @ effects - residual))
            step, before = 1.0, loss
            for _ in range(HALVINGS):
                tried = effects + step * (wanted - effects)
                residual, slope_there = self._linearized(tried)
                loss = self._loss(tried, residual)
                if loss <= before:
                    break
                step /= 2
            effects, slope = tried, slope_there
            if before - loss < TOLERANCE * max(before, 1.0):
                break
        return effects


def _blocks(rows: Sequence[Row], prior: Prior, spreads: Spreads) -> tuple[dict[tuple[str, object], int], Array]:
    """Where each level's effects start, and the spread of every effect."""
    blocks: dict[tuple[str, object], int] = {}
    spread = [prior.spread * spreads.costs]
    count = K
    for level in _LEVELS:
        for key in sorted({level.key(row) for row in rows}, key=repr):
            blocks[level.name, key] = count
            own = [level.scalar(spreads)] + [level.costs(spreads)] * K if level.costs else [level.scalar(spreads)]
            spread.append(np.array(own))
            count += len(own)
    return blocks, np.concatenate(spread)

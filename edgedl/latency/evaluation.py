"""How well latency is predicted for what a fit has not seen: whole families left out, or whole boards.

Every choice that a fit makes, of the spreads too, is made again without what is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgedl.latency.hierarchy import Hierarchy, Prior, Row, Spreads

if TYPE_CHECKING:
    from edgedl.types import Array

LEVEL = 0.9  # of the interval
GRID = {"costs": (0.5, 0.7, 1.0), "family": (0.06, 0.09, 0.13), "version": (0.1, 0.2, 0.3)}
BLUR = 0.1  # added to every deviation, which is itself known from few figures


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One figure and what was predicted without its family or board; `deviation` is in log latency."""

    row: Row
    latency_ms: float
    deviation: float
    macs_ms: float  # what multiply-accumulates per clock alone would say

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.latency_ms / self.row.latency_ms - 1

    @property
    def score(self) -> float:
        """The absolute error of the logarithm, in deviations as `half_width` has them."""
        return float(abs(np.log(self.latency_ms / self.row.latency_ms)) / half_width(1, self.deviation))


def choose(rows: Sequence[Row], prior: Prior) -> Hierarchy:
    """The fit whose spreads have the most evidence."""
    grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    return max((Hierarchy(rows, prior, replace(Spreads(), **some)) for some in grid), key=lambda fit: fit.evidence)


def leave_out(rows: Sequence[Row], prior: Prior, group: Callable[[Row], str]) -> list[Guess]:
    """A guess for every figure, from a fit without its group, where the rest knows its core and runtime version."""
    guesses = []
    for name in sorted({group(row) for row in rows}):
        rest = [row for row in rows if group(row) != name]
        known = {(r.runtime, r.version) for r in rest}, {r.core for r in rest}
        asked = [r for r in rows if group(r) == name and (r.runtime, r.version) in known[0] and r.core in known[1]]
        if asked:
            fit = choose(rest, prior)
            guesses += [_guess(fit, rest, row) for row in asked]
    return guesses


def _guess(fit: Hierarchy, rest: Sequence[Row], row: Row) -> Guess:
    cycles, deviation, _ = fit.at(runtime=row.runtime, version=row.version, core=row.core).predict(row.counts)
    plain = cycles_per_mac(rest, row.runtime, row.core) * row.macs
    milliseconds = 1e3 / row.clock_hz
    return Guess(row=row, latency_ms=cycles * milliseconds, deviation=deviation, macs_ms=plain * milliseconds)


def cycles_per_mac(rows: Sequence[Row], runtime: str, core: str) -> float:
    """The baseline: the median of cycles a multiply-accumulate, there if there are figures, else of the core."""
    there = [r for r in rows if (r.runtime, r.core) == (runtime, core)] or [r for r in rows if r.core == core] or rows
    return float(np.median([r.cycles / r.macs for r in there]))


def half_width(deviations: float, deviation: float) -> float:
    """Half of an interval of so many deviations, in log latency.

    BLUR is the sensitivity of Papadopoulos, Vovk, Gammerman, "Regression conformal prediction with nearest
    neighbours", JAIR 40 (2011), section 4: without it a prediction that takes itself for sure is wrong too often.
    """
    return deviations * (deviation + BLUR)


def quantile(guesses: Sequence[Guess]) -> float:
    """The deviations either way that hold LEVEL of the cases of a new family.

    The scale is the mean score, every family counting alike, which one freak does not carry away; there are too few
    families for their 90th percentile. Student's t with as many degrees of freedom pays for that.
    """
    from scipy import stats

    families = [g.row.family for g in guesses]
    weights = np.array([1 / families.count(f) for f in families])
    scale = np.average([g.score for g in guesses], weights=weights) * np.sqrt(np.pi / 2)  # E|z| of a normal z
    return float(scale * stats.t.ppf((1 + LEVEL) / 2, len(set(families))))


def coverage(guesses: Sequence[Guess], among: Sequence[Guess]) -> float:
    """The share of `guesses` whose interval, with the quantile of the other families of `among`, holds the figure."""
    families = {g.row.family for g in guesses}
    limits = {f: quantile([g for g in among if g.row.family != f]) for f in families}
    return float(np.mean([g.score <= limits[g.row.family] for g in guesses]))


def summary(guesses: Sequence[Guess], among: Sequence[Guess]) -> dict[str, float | int]:
    """Errors of some guesses beside the baseline's; `coverage` is a share, `rank_correlation` Spearman's."""
    errors = np.abs([g.error for g in guesses])
    plain = np.abs([g.macs_ms / g.row.latency_ms - 1 for g in guesses])
    return {
        "figures": len(guesses),
        "families": len({g.row.family for g in guesses}),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.percentile(errors, 90)),
        "coverage": coverage(guesses, among),
        "rank_correlation": _rank_correlation(guesses),
        "macs_per_clock_median_error": float(np.median(plain)),
        "macs_per_clock_p90_error": float(np.percentile(plain, 90)),
    }


def _rank_correlation(guesses: Sequence[Guess]) -> float:
    """Spearman's, of predicted with published latency; nan for fewer than three."""
    if len(guesses) < 3:
        return float("nan")
    ranks = [_ranks(np.array(side)) for side in zip(*((g.latency_ms, g.row.latency_ms) for g in guesses), strict=True)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Array) -> Array:
    """Ranks with ties averaged, shape as `values`."""
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])

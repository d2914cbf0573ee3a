"""Intervals, tests and verdicts: array in, array out.

Counts of a paired comparison are always (a, b, c, d) = both right, only the reference right, only the artifact right,
both wrong. A difference is reference minus artifact, so that positive means the artifact is worse. An interval at
confidence 0.90 is two one-sided 95 % bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgedl.errors import InputError
from edgedl.types import Verdict

Floats = NDArray[np.float64]
Counts = tuple[Floats, Floats, Floats, Floats]
Score = Callable[[Floats], Floats]  # weights (resamples, samples) -> values (resamples,)
Gate = Literal["prove", "detect"]

ONE_SIDED = 0.95
TWO_BOUNDS = 0.90  # the confidence of an interval made of two one-sided 95 % bounds
LEAST = 30  # samples of a class or slice, below which it proves nothing
_CHUNK_VALUES = 1 << 20  # weights held at once: 8 MB


class Interval(NamedTuple):
    """An estimate and its limits, all of one shape."""

    estimate: Floats
    low: Floats
    high: Floats


def wilson(successes: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for one proportion, without continuity correction.

    Newcombe, Statistics in Medicine 17:857-872 (1998), method 3.
    """
    s, total = np.asarray(successes, float), np.asarray(n, float)
    if np.any(total <= 0) or np.any(s < 0) or np.any(s > total):
        message = f"a proportion needs 0 <= successes <= n and n >= 1, got {s} of {total}"
        raise InputError(message)
    return _wilson(s / total, total, _two_sided_z(confidence))


def newcombe_paired(a: ArrayLike, b: ArrayLike, c: ArrayLike, d: ArrayLike, confidence: float = 0.95) -> Interval:
    """The difference of two paired proportions, (b - c) / n, with its interval; the arguments broadcast.

    Newcombe, Statistics in Medicine 17:2635-2650 (1998), method 10: Wilson limits of both proportions, combined with
    the continuity-corrected correlation phi. Identical predictions still have an interval of positive width.
    """
    return _newcombe(_counts(a, b, c, d), _two_sided_z(confidence))


def paired_counts(reference_right: ArrayLike, artifact_right: ArrayLike, classes: ArrayLike | None = None) -> Counts:
    """Counts (a, b, c, d) of two boolean arrays (samples,); with `classes` (samples,), each of shape (highest + 1,)."""
    r, m = np.asarray(reference_right, bool), np.asarray(artifact_right, bool)
    kinds = (r & m, r & ~m, ~r & m, ~r & ~m)
    if classes is None:
        a, b, c, d = (np.asarray(np.count_nonzero(k), float) for k in kinds)
    else:
        labels = np.asarray(classes)
        width = int(labels.max(initial=-1)) + 1
        a, b, c, d = (np.bincount(labels[k], minlength=width).astype(float) for k in kinds)
    return a, b, c, d


def mean_interval(values: ArrayLike, confidence: float = 0.95, *, bounded: bool = False) -> Interval:
    """Student's t interval for the mean of `values` (samples,): for paired data, pass the differences.

    `bounded` values are those of scores in [0, 1]: see `percentile`. Raises InputError with fewer than two samples.
    """
    from scipy.special import stdtrit

    x = np.asarray(values, float)
    if x.ndim != 1 or x.size < 2:
        message = f"the interval of a mean needs at least 2 samples in one dimension, got shape {x.shape}"
        raise InputError(message)
    if bounded and np.ptp(x) == 0:
        return _of_no_events(float(x[0]), x.size, confidence)
    half = stdtrit(x.size - 1, 0.5 + confidence / 2) * x.std(ddof=1) / math.sqrt(x.size)
    return Interval(x.mean(), x.mean() - half, x.mean() + half)


def mcnemar(b: int, c: int) -> float:
    """Two-sided mid-p value of McNemar's test: twice the one-sided binomial mid-p, and 1 where b = c.

    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013), eq. for the mid-p test.
    """
    n, few = b + c, min(b, c)
    if n == 0:
        return 1.0
    k = np.arange(1, few + 1)
    log_ratios = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])
    masses = np.exp(log_ratios - n * math.log(2))
    return min(1.0, float(2 * masses.sum() - masses[-1]))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p values, in the order given. Scandinavian Journal of Statistics 6:65-70 (1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def excess_p(a: ArrayLike, b: ArrayLike, c: ArrayLike, d: ArrayLike, tolerance: float) -> Floats:
    """One-sided p value of "the drop exceeds `tolerance`": Newcombe's bound inverted by bisection."""
    counts = _counts(a, b, c, d)
    above = _newcombe(counts, np.asarray(0.0)).estimate > tolerance
    few, many = np.zeros(above.shape), np.full(above.shape, 10.0)
    for _ in range(24):
        middle = (few + many) / 2
        bound = _newcombe(counts, middle)
        covered = np.where(above, bound.low <= tolerance, bound.high >= tolerance)
        few, many = np.where(covered, few, middle), np.where(covered, middle, many)
    tail = np.vectorize(NormalDist().cdf, otypes=[float])(-few)
    return np.asarray(np.where(above, tail, 1 - tail))


def resample(
    score: Score, n: int, groups: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, Floats, int]:
    """The score of all samples, its bootstrap draws (resamples,), and how many units were drawn from.

    `score` takes weights (r, n), how often each sample was drawn, and gives (r,). With `groups` (n,) whole groups are
    drawn. A paired difference is one score: `lambda w: reference(w) - artifact(w)` sees the same draws.
    Raises InputError with fewer than two samples or groups.
    """
    units, inverse = n, None
    if groups is not None:
        names, inverse = np.unique(np.asarray(groups), return_inverse=True)
        units = names.size
        if inverse.shape != (n,):
            message = f"group: {inverse.shape} group names for {n} samples; one name a sample is needed"
            raise InputError(message)
    if units < 2:
        noun = "samples" if groups is None else "groups"
        message = f"a bootstrap needs at least 2 {noun}, got {units}"
        raise InputError(message)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_VALUES // n)
    draws = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(float)
        draws.append(score(weights if inverse is None else weights[:, inverse]))
    return float(score(np.ones((1, n)))[0]), np.concatenate(draws), units


def _of_no_events(estimate: float, units: int, confidence: float) -> Interval:
    unseen = 1 - ((1 - confidence) / 2) ** (1 / units)
    return Interval(np.asarray(estimate), np.asarray(estimate - unseen), np.asarray(estimate + unseen))


def percentile(
    estimate: float, draws: Floats, units: int, confidence: float = 0.95, *, bounded: bool = False
) -> Interval:
    """The expanded percentile interval of bootstrap draws from `units` samples or groups.

    Hesterberg, The American Statistician 69:371-386 (2015), section 4.1: the tails are widened for the t distribution
    and the factor sqrt((units - 1) / units), which matters with few groups. Draws that are not numbers (a class
    that was not drawn) are left out. `bounded` scores are in [0, 1]: where no draw differs, the limits are those of
    zero events in so many units (Hanley and Lippman-Hand, JAMA 249:1743, 1983).
    """
    from scipy.special import ndtr, stdtrit

    kept = draws[np.isfinite(draws)]
    if kept.size == 0:
        message = "no resample has both classes; add samples or choose another metric"
        raise InputError(message)
    if bounded and np.ptp(kept) == 0:
        return _of_no_events(estimate, units, confidence)
    tail = ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 - confidence) / 2))
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Interval(np.asarray(estimate), low, high)


def bootstrap(
    score: Score,
    n: int,
    groups: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    bounded: bool = False,
) -> Interval:
    """The bootstrap interval of a score: `resample`, then `percentile`; `bounded` says the score lies in [0, 1]."""
    estimate, draws, units = resample(score, n, groups, resamples=resamples, seed=seed)
    return percentile(estimate, draws, units, confidence, bounded=bounded)


def from_indices(score: Callable[[NDArray[np.intp]], float]) -> Score:
    """A score of weights from a score of sample indices; slower, for code that knows nothing of weights."""

    def weighted(weights: Floats) -> Floats:
        samples = np.arange(weights.shape[1])
        return np.array([score(np.repeat(samples, row.astype(int))) for row in weights])

    return weighted


def decide(gate: Gate, low: float, high: float, tolerance: float) -> Verdict:
    """The verdict on a drop whose two one-sided 95 % bounds are `low` and `high`.

    prove: pass when the drop is shown to be at most `tolerance`, fail when shown to be more, else inconclusive.
    detect: fail when shown to be more, else pass.
    """
    if low > tolerance:
        return Verdict.FAIL
    return Verdict.PASS if gate == "detect" or high <= tolerance else Verdict.INCONCLUSIVE


def decide_classes(gate: Gate, counts: Counts, tolerance: float, minimum: int = LEAST) -> tuple[Verdict, ...]:
    """A verdict for each class or slice of `counts`, each of shape (classes,).

    A failure must survive Holm's correction over all judged classes. A pass needs none: all must pass for the whole
    to pass (Berger, Technometrics 24:295-300, 1982). Under `minimum` samples a class proves nothing:
    inconclusive under prove, info under detect.
    """
    a, b, c, d = counts
    judged = np.flatnonzero(a + b + c + d >= minimum)
    verdicts = [Verdict.INCONCLUSIVE if gate == "prove" else Verdict.INFO] * len(a)
    if judged.size == 0:
        return tuple(verdicts)
    few = (a[judged], b[judged], c[judged], d[judged])
    adjusted = holm(excess_p(*few, tolerance))
    highs = newcombe_paired(*few, confidence=TWO_BOUNDS).high
    for i, p, high in zip(judged, adjusted, highs, strict=True):
        low = math.inf if p < 1 - ONE_SIDED else -math.inf
        verdicts[i] = decide(gate, low, high, tolerance)
    return tuple(verdicts)


def samples_needed(
    reference_only: float,
    artifact_only: float,
    tolerance: float,
    *,
    both_wrong: float = 0.1,
    confidence: float = ONE_SIDED,
    power: float = 0.8,
) -> int | None:
    """Samples at which a gate is decided with probability `power`, if these are the shares of the population.

    The one-sided Newcombe bound of the expected table, with the quantile of `power` added to that of `confidence`
    (as in Connor, Biometrics 43:207-211, 1987), must leave the tolerance on one side. None where the expected drop is
    so near the tolerance that a billion samples would not do.
    """
    given = (reference_only, artifact_only, both_wrong)
    if min(given) < 0 or sum(given) > 1 or not 0.5 <= power < 1:
        message = f"shares must be >= 0 and add up to at most 1, power in [0.5, 1): got {given} and power {power}"
        raise InputError(message)
    z = np.asarray(NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power))
    return _deciding((1 - sum(given), *given), z, tolerance)


def samples_to_decide(
    interval: Interval, n: int, tolerance: float, *, counts: tuple[int, int, int, int] | None = None
) -> int | None:
    """Samples at which an interval from `n` samples leaves the tolerance; None where no number of them would do.

    `interval` is that of two one-sided bounds, for any metric. With `counts` it is Newcombe's of the table in
    proportion. Of others the width shrinks as 1 / sqrt(n), but as 1 / n where no sample differs.
    """
    if counts is not None:
        return _deciding([cell / n for cell in counts], _two_sided_z(TWO_BOUNDS), tolerance)
    gap = tolerance - float(interval.estimate)
    half = float(interval.high - interval.estimate) if gap > 0 else float(interval.estimate - interval.low)
    if gap == 0 or not math.isfinite(half / gap):
        return None
    unseen = _of_no_events(float(interval.estimate), n, TWO_BOUNDS)
    no_events = math.isclose(interval.high, unseen.high) and math.isclose(interval.low, unseen.low)
    return max(1, math.ceil(n * (half / gap) ** (1 if no_events else 2)))


def _two_sided_z(confidence: float) -> Floats:
    if not 0 < confidence < 1:
        message = f"confidence must be in (0, 1), got {confidence}"
        raise InputError(message)
    return np.asarray(NormalDist().inv_cdf(0.5 + confidence / 2))


def _counts(*cells: ArrayLike) -> Counts:
    a, b, c, d = (np.asarray(x, float) for x in cells)
    if not all(np.all(x >= 0) for x in (a, b, c, d)) or np.any(a + b + c + d <= 0):
        message = f"paired counts must be >= 0 with at least one pair, got {a}, {b}, {c}, {d}"
        raise InputError(message)
    return a, b, c, d


def _wilson(p: Floats, n: Floats, z: Floats) -> Interval:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, np.minimum(np.maximum(centre - half, 0.0), p), np.maximum(np.minimum(centre + half, 1.0), p))


def _newcombe(counts: Counts, z: Floats) -> Interval:
    a, b, c, d = counts
    n = a + b + c + d
    first, second = _wilson((a + b) / n, n, z), _wilson((a + c) / n, n, z)
    product = (a + b) * (c + d) * (a + c) * (b + d)
    excess = a * d - b * c
    corrected = np.where(excess > 0, np.maximum(excess - n / 2, 0.0), excess)
    phi = np.where(product > 0, corrected / np.sqrt(np.where(product > 0, product, 1.0)), 0.0)
    down1, up1 = first.estimate - first.low, first.high - first.estimate
    down2, up2 = second.estimate - second.low, second.high - second.estimate
    difference = (b - c) / n
    below = np.sqrt(np.maximum(down1**2 - 2 * phi * down1 * up2 + up2**2, 0.0))
    above = np.sqrt(np.maximum(up1**2 - 2 * phi * up1 * down2 + down2**2, 0.0))
    return Interval(difference, difference - below, difference + above)


def _deciding(shares: Sequence[float], z: Floats, tolerance: float) -> int | None:
    """The least samples whose table of these shares (a, b, c, d) has its limits on one side of the tolerance."""

    def decided(n: int) -> bool:
        interval = _newcombe(_counts(*(share * n for share in shares)), z)
        return bool(interval.high <= tolerance or interval.low > tolerance)

    return _smallest(decided, 10**9)


def _smallest(decided: Callable[[int], bool], most: int) -> int | None:
    high = 1
    while not decided(high):
        if high >= most:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high

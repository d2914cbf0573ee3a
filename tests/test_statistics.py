import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from edgedl.errors import InputError
from edgedl.types import Verdict
from edgedl.validation.statistics import (
    Interval,
    bootstrap,
    decide,
    decide_classes,
    excess_p,
    from_indices,
    holm,
    mcnemar,
    mean_interval,
    newcombe_paired,
    paired_counts,
    percentile,
    resample,
    samples_needed,
    samples_to_decide,
    wilson,
)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((36, 12, 2, 0), (0.2, 0.0569, 0.3404)),  # Newcombe 1998
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),  # Cavo 2012, in Fagerland, Lydersen and Laake 2017, chapter 8
        ((1, 1, 7, 12), (-0.286, -0.507, -0.026)),  # Bentur 2009, same chapter
    ],
)
def test_newcombe_paired_reproduces_published_examples(cells, expected):
    digits = 3 if cells[0] == 1 else 4
    assert tuple(round(float(x), digits) for x in newcombe_paired(*cells)) == expected


def test_newcombe_paired_of_identical_predictions_keeps_a_width():
    difference, low, high = newcombe_paired(352, 0, 0, 8)
    assert difference == 0
    assert high == pytest.approx(0.0113, abs=2e-4)
    assert low == -high
    for all_right_or_wrong in ((50, 0, 0, 0), (0, 0, 0, 50)):
        _, low, high = newcombe_paired(*all_right_or_wrong)
        assert -0.1 < low < 0 < high < 0.1


def test_newcombe_paired_stays_in_range_with_any_zero_cells():
    for cells in itertools.product((0, 1, 9), repeat=4):
        if sum(cells):
            difference, low, high = newcombe_paired(*cells)
            assert -1 <= low <= difference <= high <= 1, cells


def test_newcombe_paired_takes_arrays_and_other_confidences():
    both = newcombe_paired([36, 59], [12, 6], [2, 16], [0, 80])
    assert both.low == pytest.approx([0.05693, -0.11862], abs=1e-5)
    one_sided = newcombe_paired(36, 12, 2, 0, confidence=0.90)
    assert both.low[0] < one_sided.low < one_sided.high < both.high[0]


def test_newcombe_paired_covers_the_true_difference():
    rng = np.random.default_rng(0)
    truth = (0.78, 0.06, 0.04, 0.12)
    cells = rng.multinomial(400, truth, size=4000).T
    _, low, high = newcombe_paired(*cells)
    assert 0.94 <= np.mean((low <= 0.02) & (high >= 0.02)) <= 0.975


def test_newcombe_paired_refuses_negative_and_empty_counts():
    with pytest.raises(
        InputError, match=r"paired counts must be >= 0 with at least one pair, got 1\.0, -2\.0, 0\.0, 0\.0"
    ):
        newcombe_paired(1, -2, 0, 0)
    with pytest.raises(InputError, match="at least one pair"):
        newcombe_paired(0, 0, 0, 0)
    with pytest.raises(InputError, match=r"confidence must be in \(0, 1\), got 95"):
        newcombe_paired(1, 1, 1, 1, confidence=95)


def test_wilson_reproduces_newcombes_single_proportions():
    # Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3
    for (r, n), limits in {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}.items():
        _, low, high = wilson(r, n)
        assert (low, high) == pytest.approx(limits, abs=1e-4)
    with pytest.raises(InputError, match=r"got 5\.0 of 4\.0"):
        wilson(5, 4)


def test_paired_counts_by_class():
    reference = np.array([1, 1, 0, 0, 1], bool)
    artifact = np.array([1, 0, 1, 0, 1], bool)
    assert [int(x) for x in paired_counts(reference, artifact)] == [2, 1, 1, 1]
    a, b, c, d = paired_counts(reference, artifact, classes=[0, 0, 2, 2, 2])
    assert (a.tolist(), b.tolist(), c.tolist(), d.tolist()) == ([1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 1])


def test_mcnemar_is_the_published_mid_p():
    assert mcnemar(1, 7) == pytest.approx(0.0390625)  # Fagerland et al. 2013: 0.039
    assert mcnemar(7, 1) == mcnemar(1, 7)
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0
    exact = (2 * sum(math.comb(4100, k) for k in range(2001)) - math.comb(4100, 2000)) / 2**4100
    assert mcnemar(2000, 2100) == pytest.approx(exact, rel=1e-9)


def test_holm_steps_down_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).shape == (0,)


def test_excess_p_inverts_the_interval():
    for confidence in (0.5, 0.90, 0.99):
        _, low, high = newcombe_paired(36, 12, 2, 0, confidence=confidence)
        tail = (1 - confidence) / 2
        assert excess_p(36, 12, 2, 0, low) == pytest.approx(tail, abs=1e-5)
        assert excess_p(36, 12, 2, 0, high) == pytest.approx(1 - tail, abs=1e-5)


def test_mean_interval_is_students():
    x = [2.0, 4.0, 4.0, 5.0, 7.0]  # mean 4.4, sd 1.8166, t(4) 2.7764
    estimate, low, high = mean_interval(x)
    assert (estimate, low, high) == pytest.approx((4.4, 4.4 - 2.2556, 4.4 + 2.2556), abs=1e-4)
    with pytest.raises(InputError, match="at least 2 samples"):
        mean_interval([1.0])


def test_values_without_spread_prove_no_more_than_their_number():
    estimate, low, high = mean_interval([0.0, 0.0], bounded=True)
    assert (estimate, low, high) == pytest.approx((0, -(1 - 0.025**0.5), 1 - 0.025**0.5))
    same = bootstrap(_mean_of(np.zeros(2000)), 2000, groups=np.arange(2000) // 1000, bounded=True)
    assert same.high == pytest.approx(1 - 0.025**0.5)


def _mean_of(x):
    return lambda weights: weights @ x / weights.sum(axis=1)


def test_bootstrap_of_a_mean_agrees_with_theory_and_repeats():
    x = np.random.default_rng(0).normal(3, 2, size=2000)
    interval = bootstrap(_mean_of(x), 2000)
    assert (interval.low, interval.high) == pytest.approx(mean_interval(x)[1:], abs=0.01)
    assert bootstrap(_mean_of(x), 2000) == interval
    assert bootstrap(_mean_of(x), 2000, seed=1) != interval


def test_bootstrap_draws_whole_groups():
    subjects = np.repeat(np.arange(12), 100)
    x = np.random.default_rng(0).normal(size=12)[subjects]  # no spread inside a subject
    by_sample, by_subject = bootstrap(_mean_of(x), 1200), bootstrap(_mean_of(x), 1200, groups=subjects.astype(str))
    assert by_subject.high - by_subject.low > 8 * (by_sample.high - by_sample.low)
    theory = mean_interval(x[::100])
    assert by_subject.high - by_subject.low == pytest.approx(theory.high - theory.low, rel=0.15)


def test_bootstrap_of_groups_covers_even_with_few():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(1000):
        x = rng.normal(size=6)
        _, low, high = bootstrap(_mean_of(x), 6, seed=seed, resamples=500)
        hits += low <= 0 <= high
    assert hits / 1000 >= 0.91  # the plain percentile interval covers 0.85 here


def test_bootstrap_sees_the_same_draws_in_a_paired_difference():
    x = np.random.default_rng(0).normal(size=500)
    y = x - 0.25
    estimate, draws, units = resample(lambda w: _mean_of(x)(w) - _mean_of(y)(w), 500)
    assert units == 500
    assert estimate == pytest.approx(0.25)
    assert np.ptp(draws) < 1e-12


def test_bootstrap_without_any_difference_claims_no_certainty():
    same = bootstrap(_mean_of(np.zeros(300)), 300, confidence=0.90, bounded=True)
    assert same.high == pytest.approx(3 / 300, rel=0.01)  # the rule of three
    assert same.low == -same.high
    assert bootstrap(_mean_of(np.zeros(300)), 300).high == 0


def test_bootstrap_leaves_out_draws_that_are_no_number():
    draws = np.array([np.nan, 0.1, 0.2, 0.3])
    assert percentile(0.2, draws, 100).low >= 0.1
    with pytest.raises(InputError, match="no resample has both classes"):
        percentile(0.2, np.full(3, np.nan), 100)


def test_bootstrap_refuses_one_group_and_misfitting_groups():
    with pytest.raises(InputError, match="at least 2 groups, got 1"):
        bootstrap(_mean_of(np.ones(3)), 3, groups=["a", "a", "a"])
    with pytest.raises(InputError, match="one name a sample"):
        bootstrap(_mean_of(np.ones(3)), 3, groups=["a", "b"])


def test_from_indices_scores_each_resample():
    x = np.arange(50.0)
    assert bootstrap(from_indices(lambda i: float(x[i].mean())), 50) == bootstrap(_mean_of(x), 50)


@pytest.mark.parametrize(
    ("low", "high", "prove", "detect"),
    [
        (-0.004, 0.009, "pass", "pass"),
        (0.0, 0.01, "pass", "pass"),
        (0.001, 0.02, "inconclusive", "pass"),
        (0.0101, 0.02, "fail", "fail"),
    ],
)
def test_decide_follows_both_gates(low, high, prove, detect):
    assert decide("prove", low, high, 0.01) == prove
    assert decide("detect", low, high, 0.01) == detect


def test_decide_classes_corrects_for_their_number_and_skips_small_ones():
    counts = tuple(
        np.array(column, float) for column in zip((900, 9, 0, 91), (5, 9, 0, 0), (60, 40, 0, 0), strict=True)
    )
    assert decide_classes("prove", counts, 0.02) == (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)
    assert decide_classes("detect", counts, 0.02) == (Verdict.PASS, Verdict.INFO, Verdict.FAIL)
    assert decide_classes("detect", counts, 0.02, minimum=10)[1] == Verdict.FAIL
    one = (88.0, 10.0, 1.0, 1.0)
    assert decide("detect", *newcombe_paired(*one, confidence=0.90)[1:], 0.02) == Verdict.FAIL
    calm = (98.0, 1.0, 0.0, 1.0)
    many = tuple(np.array([one[i], *[calm[i]] * 9]) for i in range(4))
    assert decide_classes("detect", many, 0.02)[0] == Verdict.PASS  # p 0.02, one of ten


def test_samples_needed_is_where_the_gate_is_decided():
    n = samples_needed(0.01, 0.008, 0.005, both_wrong=0.1)
    assert 8_000 < n < 14_000

    def share_decided(samples):
        cells = np.random.default_rng(0).multinomial(samples, (0.882, 0.01, 0.008, 0.1), size=2000).T
        return np.mean(newcombe_paired(*cells, confidence=0.90).high <= 0.005)

    assert share_decided(n) == pytest.approx(0.8, abs=0.04)
    assert share_decided(n // 3) < 0.6


def test_samples_needed_without_disagreement_and_at_the_tolerance():
    n = samples_needed(0, 0, 0.01)
    assert 100 < n < 2000
    assert samples_needed(0.02, 0.01, 0.01) is None
    assert samples_needed(0.10, 0.01, 0.01) < 500  # a clear failure is seen soon
    with pytest.raises(InputError, match="add up to at most 1"):
        samples_needed(0.6, 0.5, 0.01)


def test_samples_to_decide_scales_the_width():
    assert samples_to_decide(Interval(0.001, -0.005, 0.007), 1000, 0.004) == 4000
    assert samples_to_decide(Interval(0.010, 0.002, 0.018), 1000, 0.006) == 4000
    assert samples_to_decide(Interval(0.01, 0.0, 0.02), 1000, 0.01) is None


@pytest.mark.parametrize(
    ("cells", "tolerance"), [((220, 0, 0, 180), 0.001), ((380, 2, 2, 16), 0.003), ((12, 0, 0, 48), 0.01)]
)
def test_samples_to_decide_of_counts_are_those_of_the_table_in_proportion(cells, tolerance):
    bounds = newcombe_paired(*cells, confidence=0.9)
    needed = samples_to_decide(bounds, sum(cells), tolerance, counts=cells)
    for samples, decided in ((needed, True), (needed - 1, False)):
        scaled = newcombe_paired(*(c * samples / sum(cells) for c in cells), confidence=0.9)
        assert (scaled.high <= tolerance) is np.bool_(decided)
    assert samples_to_decide(newcombe_paired(5, 5, 0, 0), 10, 0.5, counts=(5, 5, 0, 0)) is None


def test_samples_to_decide_where_no_sample_differs():
    def bounds(n):
        return mean_interval(np.zeros(n), 0.9, bounded=True)

    needed = samples_to_decide(bounds(100), 100, 0.01)
    assert needed == pytest.approx(299, rel=0.02)
    assert bounds(needed + 6).high <= 0.01 < bounds(needed - 6).high


def test_statistics_imports_no_scipy_stats():
    code = "import sys, edgedl.validation.statistics, edgedl.validation.metrics; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

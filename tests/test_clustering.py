import numpy as np
import pytest

from edgedl.compression import clustering
from edgedl.compression.clustering import Codebook, Coded


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def error(matrices, coded):
    return sum(float(np.square(coded.project(i, m) - m).sum()) for i, m in enumerate(matrices))


def test_k_means_finds_planted_values():
    values = np.repeat([-2.0, 0.5, 3.0], 50) + normal(150) * 0.01

    found = clustering.k_means(values, 3)

    assert found == pytest.approx([-2, 0.5, 3], abs=0.01)


def test_k_means_keeps_zero_as_a_centroid():
    values = np.concatenate([np.zeros(500), normal(500) + 1])

    found = clustering.k_means(values, 4, keep_zero=True)

    assert 0.0 in found
    assert found.size == 4
    assert (np.diff(found) > 0).all()


def test_k_means_gives_few_values_back_as_they_are():
    assert clustering.k_means(np.array([3.0, 1, 1, 3]), 5).tolist() == [1, 3]
    assert clustering.k_means(np.array([3.0, 1]), 3, keep_zero=True).tolist() == [0, 1, 3]
    assert clustering.k_means(np.array([3.0, 1, 0]), 1, keep_zero=True).tolist() == [0]
    pruned = np.random.default_rng(0).normal(size=4000)
    pruned[np.abs(pruned) < np.quantile(np.abs(pruned), 0.75)] = 0
    centroids = clustering.k_means(pruned, 16, keep_zero=True)
    assert np.unique(centroids[clustering.nearest(pruned, centroids)]).size == 16  # none is lost in the gap around 0


def test_k_means_is_no_worse_than_either_start_and_repeats():
    values = normal(2000) ** 3
    found = clustering.k_means(values, 8)
    again = clustering.k_means(values[::-1], 8)

    distortion = np.square(values - found[clustering.nearest(values, found)]).mean()
    even = np.linspace(values.min(), values.max(), 8)

    assert distortion < 0.5 * np.square(values - even[clustering.nearest(values, even)]).mean()
    assert np.array_equal(found, again)


def test_nearest_agrees_with_all_distances():
    values, centroids = normal(40, 3), np.sort(normal(5))
    columns = np.sort(normal(5, 3), axis=0)

    whole = clustering.nearest(values, centroids)
    each = clustering.nearest(values, columns)

    assert np.array_equal(whole, np.abs(values[..., None] - centroids).argmin(-1))
    assert np.array_equal(each, np.abs(values[:, None] - columns[None]).argmin(1))


def test_means_move_centroids_to_their_weights_and_leave_zero():
    values = np.array([[1.5, 10], [3, 30], [-1.5, -10], [-5, -30], [0.5, -3]])
    centroids = np.array([-2.0, 0, 2, 99])

    whole = clustering.means(values[:, 0], clustering.nearest(values[:, 0], centroids), centroids)
    columns = np.stack([centroids, 10 * centroids], axis=1)
    each = clustering.means(values, clustering.nearest(values, columns), columns)

    assert whole.tolist() == [-3.25, 0, 2.25, 99]
    assert each.T.tolist() == [[-3.25, 0, 2.25, 99], [-20, 0, 30, 990]]


def test_envelope_without_costs_is_the_nearest():
    used, edges = clustering.envelope(np.array([-127, 0, 10, 127]), np.zeros(4))

    assert used.tolist() == [0, 1, 2, 3]
    assert edges.tolist() == [-63.5, 5, 68.5]


def test_envelope_takes_the_cheapest_at_every_point():
    rng = np.random.default_rng(0)
    for _ in range(50):
        book = np.unique(rng.integers(-127, 128, 12))
        costs = rng.random(book.size) * 3000
        units = rng.uniform(-127, 127, 500)

        used, edges = clustering.envelope(book, costs)

        taken = used[np.searchsorted(edges, units)]
        paid = np.square(units - book[taken]) + costs[taken]
        assert paid == pytest.approx((np.square(units[:, None] - book) + costs).min(axis=1))


def test_encode_keeps_zeros_and_gives_every_channel_an_end():
    matrix = normal(50, 6)
    matrix[::2] = 0
    matrix[:, 5] = 0
    book = Codebook(values=np.array([-127, 0, 60, 127]), bits=np.full(4, 2.0))

    codes = book.encode(matrix, np.abs(matrix).max(axis=0).clip(1e-9) / 50)  # scales that are far too large

    assert (codes[matrix == 0] == 0).all()
    assert (np.abs(codes).max(axis=0) == [127] * 5 + [0]).all()
    assert set(np.unique(codes)) <= {-127, 0, 60, 127}


@pytest.mark.parametrize("clusters", [4, 8, 16, 64])
def test_fit_codes_survive_the_quantizer_exactly(clusters):
    matrices = [normal(90, 7) * np.geomspace(0.01, 10, 7), normal(300, 12, seed=1)]

    coded = clustering.fit_codes(matrices, clusters)

    for i, (matrix, codes) in enumerate(zip(matrices, coded.codes(matrices), strict=True)):
        weights = coded.project(i, matrix.astype(np.float32))
        scales = np.abs(weights).max(axis=0) / np.float32(127)
        assert np.array_equal(np.rint(weights / scales), codes)
        assert np.array_equal(clustering.codes_of(weights), codes)
        assert len(np.unique(codes)) <= clusters


@pytest.mark.parametrize(("clusters", "best"), [(4, 0.1175), (8, 0.03454), (16, 0.009497)])
def test_fit_codes_comes_near_the_best_quantizer_of_normal_weights(clusters, best):
    """Max, IRE Trans. Inf. Theory 6 (1960), table 1; zero and equal ends cost something, most with few codes."""
    matrices = [normal(500, 16)]

    reached = error(matrices, clustering.fit_codes(matrices, clusters)) / matrices[0].size

    assert reached < (1.3 if clusters == 4 else 1.08) * best


def test_fit_codes_errs_less_with_more_clusters():
    matrices = [normal(400, 8), normal(100, 8, seed=2)]

    errors = [error(matrices, clustering.fit_codes(matrices, k)) for k in (4, 8, 16, 32)]

    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [3.6, 2.0])
def test_bits_are_what_zlib_needs_and_cost_least_error(bits):
    matrices = [normal(300, 16), normal(100, 16, seed=1)]

    coded = clustering.fit_codes(matrices, 16, bits=bits)

    needed = clustering.zipped_bits(coded.codes(matrices))
    assert 0.9 * bits < needed <= bits
    free = clustering.fit_codes(matrices, 16)
    assert error(matrices, coded) > error(matrices, free)


def test_a_rate_costs_less_than_leaving_codewords_out():
    matrices = [normal(300, 16) ** 3]
    few = clustering.fit_codes(matrices, 6)
    size = clustering.zipped_bits(few.codes(matrices))

    rated = clustering.fit_codes(matrices, 16, bits=size)

    assert error(matrices, rated) < 0.95 * error(matrices, few)


def test_a_rate_is_found_however_far_it_is_from_that_of_before():
    matrices = [normal(300, 16)]
    coded = clustering.fit_codes(matrices, 16, bits=3.6)

    for bits in (2.0, 3.4):
        again = clustering.at_bits(coded, matrices, bits)
        assert 0.93 * bits < clustering.zipped_bits(again.codes(matrices)) <= bits


def test_bits_out_of_reach_say_how_few_there_may_be():
    with pytest.raises(ValueError, match=r"bits = 0.01 is out of reach: the fewest are \d"):
        clustering.fit_codes([normal(20, 8)], 8, bits=0.01)


def test_fit_codes_takes_zeros_and_dead_channels():
    matrix = normal(60, 4)
    matrix[:, 1] = 0
    matrix[:30] = 0

    coded = clustering.fit_codes([matrix], 6)
    weights = coded.project(0, matrix)

    assert np.isfinite(weights).all()
    assert (weights[matrix == 0] == 0).all()


def test_code_lengths_are_minus_log2_of_the_share():
    lengths = clustering.code_lengths([np.array([0, 0, 0, 127])], np.array([-127, 0, 127]))

    assert lengths.tolist() == pytest.approx([3.0, -np.log2(0.75), 2.0])


def test_best_scales_are_least_squares():
    codes = np.array([[1, 0], [-2, 0], [2, 0]])
    matrix = codes * np.array([0.25, 1]) + np.array([[0.0, 1], [0, 1], [0, 1]])

    assert clustering.best_scales(matrix, codes).tolist() == [0.25, 1.0]


def test_codes_of_tells_codes_from_floats():
    assert clustering.codes_of(normal(30, 4)) is None
    coded = Coded(
        book=Codebook(values=np.array([-127, 0, 127]), bits=np.zeros(3)), scales=(np.full(4, 0.3),), prices=(0.0,)
    )
    assert np.unique(clustering.codes_of(coded.project(0, normal(30, 4)))).tolist() == [-127, 0, 127]


def test_k_means_per_channel_keeps_each_channels_own_values():
    matrix = np.stack([np.repeat([1.0, 2], 10), np.repeat([-5.0, 0], 10), normal(20).astype(float)], axis=1)

    centroids = clustering.k_means_per_channel(matrix, 3)

    assert centroids.shape == (3, 3)
    assert set(centroids[:, 0]) == {1, 2}
    assert set(centroids[:, 1]) == {-5, 0}
    assert clustering.distinct(matrix, per_channel=True) == 20
    shared = clustering.taken(centroids, clustering.nearest(matrix, centroids))
    assert clustering.distinct(shared, per_channel=True) == 3

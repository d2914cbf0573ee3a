import numpy as np
import pytest

from edgedl.compression import sparsity


def test_magnitude_mask_drops_exactly_the_smallest():
    mask = sparsity.magnitude_mask(np.array([[3.0, -1.0], [0.5, -4.0]]), 0.5)

    assert mask.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(("share", "kept"), [(0.0, 7), (0.3, 5), (0.5, 3), (0.99, 0)])
def test_magnitude_mask_rounds_to_whole_weights(share, kept):
    assert sparsity.magnitude_mask(np.arange(1.0, 8), share).sum() == kept


def test_magnitude_mask_breaks_ties_by_position():
    assert sparsity.magnitude_mask(np.ones(4), 0.5).tolist() == [False, False, True, True]


def test_lamp_scores_are_squares_over_the_rest():
    np.testing.assert_allclose(sparsity.lamp_scores(np.array([[1.0, -4], [3, 2]])), [[1 / 30, 1], [9 / 25, 4 / 29]])


def test_global_masks_do_not_go_by_the_scale_of_a_layer():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(4, 9)), rng.normal(size=(50,))]

    masks = sparsity.global_masks(arrays, 0.5)

    scaled = sparsity.global_masks([arrays[0] * 1000, arrays[1]], 0.5)
    assert all((a == b).all() for a, b in zip(masks, scaled, strict=True))
    assert all(m.any() for m in sparsity.global_masks(arrays, 0.97))


def test_global_masks_reach_the_share_over_all():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 3, 4, 8)), rng.normal(size=(100,)) * 5]

    masks = sparsity.global_masks(arrays, 0.6)

    assert sum((~m).sum() for m in masks) == round(0.6 * (288 + 100))
    assert [m.shape for m in masks] == [a.shape for a in arrays]


def test_n_m_mask_keeps_the_largest_of_each_group():
    weights = np.array([[1.0], [-4], [3], [2], [0.1], [0.2], [0.3], [-0.4]])

    mask = sparsity.n_m_mask(weights, 2, 4)

    assert mask.ravel().tolist() == [False, True, True, False, False, False, True, True]


def test_n_m_mask_takes_a_short_last_group_and_further_axes():
    weights = np.random.default_rng(0).normal(size=(7, 3, 3, 5))

    mask = sparsity.n_m_mask(weights, 2, 4)

    assert (mask[:4].sum(axis=0) == 2).all()
    assert (mask[4:].sum(axis=0) == 2).all()


def test_n_m_mask_takes_only_n_of_equal_weights():
    assert sparsity.n_m_mask(np.zeros((4, 1)), 2, 4).sum() == 2


def test_block_mask_drops_whole_blocks_of_least_mean():
    weights = np.ones((4, 4))
    weights[:2, 2:] = 0.1
    weights[2, 0] = 0.05  # alone small: its block stays

    mask = sparsity.block_mask(weights, (2, 2), 0.25)

    assert (~mask).sum() == 4
    assert not mask[:2, 2:].any()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("shape", [(3, 3, 10, 7), (13, 6)])
def test_block_mask_reaches_the_sparsity_with_edges(shape, share):
    weights = np.random.default_rng(0).normal(size=shape)

    mask = sparsity.block_mask(weights, (4, 2), share)

    assert mask.shape == shape
    assert (~mask).sum() >= share * mask.size
    assert (~mask).sum() <= share * mask.size + 8
    tops = mask[..., :4, :2].reshape(-1, 4, 2)
    assert all(t.all() or not t.any() for t in tops)


def test_polynomial_schedule_follows_the_published_equation():
    values = [sparsity.sparsity_at(t, 10, final=0.8, schedule="polynomial") for t in range(13)]

    assert values[0] == 0.0
    assert values[5] == pytest.approx(0.8 - 0.8 * 0.5**3)
    assert values[10:] == [0.8] * 3
    assert values == sorted(values)


def test_constant_schedule_is_there_at_once():
    assert sparsity.sparsity_at(0, 100, final=0.8, schedule="constant") == 0.8


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 99, 1000, 12345])
@pytest.mark.parametrize("ramp", [0.01, 0.5, 1.0])
def test_every_run_however_short_has_its_last_update(steps, ramp):
    last = sparsity.last_update(steps, ramp)

    updates = [t for t in range(1, steps + 1) if sparsity.is_update(t, last)]

    assert 1 <= last <= steps
    assert updates[-1] == last
    assert len(updates) <= sparsity.UPDATES
    assert len(updates) >= min(last, sparsity.UPDATES // 2)
    assert sparsity.sparsity_at(last, last, final=0.7, schedule="polynomial") == 0.7


def test_zero_share_counts_over_all_arrays():
    assert sparsity.zero_share([np.array([0.0, 1]), np.zeros(2)]) == 0.75
    assert sparsity.zero_share([]) == 0.0

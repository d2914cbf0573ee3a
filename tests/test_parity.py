import numpy as np
import pytest

from edgedl.errors import InputError
from edgedl.types import TensorSpec
from edgedl.validation.parity import compare, slices

INT8 = TensorSpec(name="probabilities", dtype="int8", shape=(1, 3), scale=(1 / 256,), zero_point=(-128,))


def test_compare_measures_floats():
    reference = np.array([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]], np.float32)
    artifact = np.array([[0.1, 0.9], [0.4, 0.6], [0.5, 0.25]], np.float32)
    parity = compare(artifact, reference)
    assert parity.max_abs == 0.25
    assert parity.worst_sample == 2
    assert parity.mean_abs == pytest.approx((0.2 + 0.2 + 0.25) / 6)
    assert parity.differing == 3 / 6
    assert (parity.flips, parity.flip_share) == (1, 1 / 3)
    assert (parity.max_lsb, parity.mean_lsb, parity.nonfinite) == (None, None, 0)


def test_compare_counts_steps_of_the_artifacts_scale():
    reference = np.array([[0.0, 0.5, 1.0], [0.25, 0.251, 0.499]])
    codes = np.array([[-128, 0, 127], [-64, -62, 1]], np.int8)  # 1.0 saturates at 127: no step apart
    parity = compare(codes, reference, INT8)
    assert (parity.max_lsb, parity.differing) == (2, 2 / 6)
    assert parity.mean_lsb == pytest.approx(3 / 6)
    assert parity.max_abs == pytest.approx(66 / 256 - 0.251)


def test_compare_takes_codes_or_the_numbers_they_stand_for():
    rng = np.random.default_rng(0)
    reference = rng.random((50, 3), np.float32)
    codes = np.clip(np.rint(reference * 256 - 128) + rng.integers(-1, 2, (50, 3)), -128, 127).astype(np.int8)
    numbers = ((codes.astype(np.float64) + 128) / 256).astype(np.float32)
    assert compare(codes, reference, INT8) == compare(numbers, reference, INT8)
    assert compare(codes, reference, INT8).max_lsb == 1


def test_compare_in_slices_is_the_whole(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    reference, artifact = rng.random((1000, 3), np.float32), rng.random((1000, 3), np.float32)
    whole = compare(artifact, reference, INT8)
    np.save(tmp_path / "a.npy", artifact)
    np.save(tmp_path / "r.npy", reference)
    monkeypatch.setattr("edgedl.validation.parity.slices", lambda n, size: slices(n, size, 500))
    assert len(list(slices(1000, 96, 500))) == 200
    parts = compare(np.load(tmp_path / "a.npy", mmap_mode="r"), np.load(tmp_path / "r.npy", mmap_mode="r"), INT8)
    assert parts.mean_abs == pytest.approx(whole.mean_abs, rel=1e-12)
    assert (parts.max_abs, parts.worst_sample, parts.flips, parts.max_lsb, parts.differing) == (
        whole.max_abs,
        whole.worst_sample,
        whole.flips,
        whole.max_lsb,
        whole.differing,
    )


def test_slices_cover_all_samples_once():
    assert [(s.start, s.stop) for s in slices(10, 100, 400)] == [(0, 4), (4, 8), (8, 10)]
    assert len(list(slices(3, 10**9))) == 3
    assert list(slices(0, 8)) == []


def test_compare_counts_what_is_no_number():
    reference = np.array([[0.1], [0.2], [np.nan]])
    artifact = np.array([[0.1], [np.inf], [np.nan]])
    parity = compare(artifact, reference)
    assert (parity.nonfinite, parity.differing, parity.max_abs, parity.flips) == (2, 2 / 3, 0.0, None)


def test_compare_takes_feature_maps_and_single_values():
    maps = np.zeros((4, 2, 2, 3))
    changed = maps.copy()
    changed[3, 1, 1, 2] = 0.5
    assert (compare(changed, maps).worst_sample, compare(changed, maps).flips) == (3, None)
    assert compare(np.array([1.0, 2.0]), np.array([1.0, 2.5])).worst_sample == 1


def test_compare_refuses_other_shapes_and_several_scales():
    with pytest.raises(InputError, match=r"one shape, got artifact \(2, 3\) and reference \(3, 3\)"):
        compare(np.zeros((2, 3)), np.zeros((3, 3)))
    several = TensorSpec(name="y", dtype="int8", shape=(1, 2), scale=(0.1, 0.2), zero_point=(0, 0), axis=1)
    with pytest.raises(InputError, match="output 'y': parity in LSB needs one positive scale and zero point, got 2"):
        compare(np.zeros((2, 2), np.int8), np.zeros((2, 2)), several)

import keras
import numpy as np
import pytest
from students import context, samples

from edgedl.compression.augmentation import Augmented, augmented, flipped, jittered, mixed, shifted, zoomed
from edgedl.compression.base import fine_tune
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData
from edgedl.recipes import Distill, Training

K = keras.layers


def test_labels_of_places_are_not_left_behind_by_augmentation():
    data = TrainingData(inputs={"image": np.zeros((8, 6, 6, 1), np.float32)}, targets={"mask": np.zeros((8, 6, 6))})
    image = keras.Input((6, 6, 1), name="image")
    model = keras.Model(image, K.Reshape((6, 6), name="mask")(K.Conv2D(1, 1, name="conv")(image)))
    message = r"r.toml: step 1 \(x\): augment moves the images, and labels 'mask' \(6, 6\) have a value for each place"
    with pytest.raises(InputError, match=message):
        fine_tune(model, data, Training(augment=("flip",)), context())
    taught = Training(augment=("flip",), distill=Distill(alpha=1))
    fine_tune(model, data, taught, context(teacher=keras.models.clone_model(model)))


def test_augmentation_keeps_shape_and_type_and_follows_the_seed():
    data = samples(32)
    first, second = (Augmented.of(data, ("flip", "zoom", "shift", "color", "mixup"), 0) for _ in range(2))
    rows = np.arange(32)
    taken = first.take(rows)[0]["image"]
    np.testing.assert_array_equal(taken, second.take(rows)[0]["image"])
    assert (taken.shape, taken.dtype) == ((32, 6, 6, 1), np.float32)
    assert np.abs(first.take(rows)[0]["image"] - taken).max() > 0
    kept, held = first.split(0.25, 0)
    assert isinstance(kept, Augmented)
    assert not isinstance(held, Augmented)
    assert (kept.count, held.count) == (24, 8)


@pytest.mark.parametrize(("channels", "flips"), [(3, True), (1, False)])
def test_auto_flips_pictures_and_shifts_what_has_a_direction(channels, flips):
    x = np.zeros((64, 8, 8, channels), np.float32)
    x += np.arange(8, dtype=np.float32)[:, None]  # rises from left to right
    rows = np.arange(64)

    taken = Augmented.of(TrainingData(inputs={"a": x}, targets={}), ("auto",), 0).take(rows)[0]["a"]

    rising = taken[:, 0, 3] < taken[:, 0, 4]
    assert rising.all() != flips
    assert (taken != x).any()


def test_auto_leaves_what_is_no_picture():
    inputs = {"a": np.random.default_rng(0).random((4, 6, 3)), "b": np.random.default_rng(1).random((4, 6, 6, 5))}
    taken = Augmented.of(TrainingData(inputs=inputs, targets={}), ("auto",), 0).take(np.arange(4))[0]
    for name, values in inputs.items():
        np.testing.assert_array_equal(taken[name], values)


def test_augmentation_array_functions():
    generator = np.random.default_rng(0)
    batch = np.arange(16 * 8 * 8, dtype=np.uint8).reshape(16, 8, 8, 1)
    for row, flip in zip(batch, flipped(batch, generator), strict=True):
        assert (flip == row).all() or (flip == row[:, ::-1]).all()
    moved = shifted(batch, generator)
    inner = {tuple(m[2:6, 2:6, 0].ravel()) for m in moved[:1]}
    shifts = [batch[0, 2 + a : 6 + a, 2 + b : 6 + b, 0] for a in (-1, 0, 1) for b in (-1, 0, 1)]
    assert inner <= {tuple(s.ravel()) for s in shifts}
    ramp = np.tile(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None, None], (64, 1, 16, 3))
    parts = zoomed(ramp, generator)
    steps = np.diff(parts[:, :, 0, 0].astype(int), axis=1)
    whole = (steps == 10).all(axis=1)
    assert 16 < whole.sum() < 48
    assert (parts[whole] == ramp[0]).all()
    assert 5 <= steps[~whole].min() <= steps[~whole].max() <= 10  # 0.6 to 1 of the slope, rounded
    assert np.unique(parts[~whole][:, 0, 0, 0]).size > 4  # they start anywhere
    assert (parts == parts[:, :, :1, :1]).all()
    blended = mixed(batch, generator)
    assert blended.dtype == np.uint8
    assert blended.min() >= batch.min()


@pytest.mark.parametrize(("kind", "least"), [(np.uint8, 0), (np.float32, -127)])
def test_jitter_varies_brightness_contrast_and_saturation_within_the_range(kind, least):
    generator = np.random.default_rng(0)
    grey = np.full((64, 4, 4, 3), 100, np.uint8)
    grey[:, :, 2:] = 140
    grey[0, 0, 0], grey[0, 0, 1] = 0, 255  # what is allowed
    red = grey + np.array([40, 0, 0], np.uint8) * (grey < 200)

    def varied(batch):
        made = jittered((batch.astype(np.float32) + least).astype(kind), generator)
        assert made.dtype == kind
        assert made.min() >= least
        assert made.max() == 255 + least
        return (made.astype(np.float32) - least)[1:]

    plain, coloured = varied(grey), varied(red)
    assert np.ptp(plain, axis=3).max() <= 1  # grey stays grey
    assert 65 < plain[:, :, :2].min() < 85  # 0.7 (120 - 1.3 * 20) at least
    assert 170 < plain[:, :, 2:].max() < 195
    contrasts = plain[:, 0, 3, 0] / plain[:, 0, 0, 0]
    assert 1.25 < contrasts.min() < 1.33  # (120 + 0.7 * 20) / (120 - 0.7 * 20)
    assert 1.46 < contrasts.max() < 1.57
    tints = np.ptp(coloured, axis=3)[:, 0, 0] / coloured.mean(axis=(1, 2, 3))
    assert tints.min() < 0.25 < 0.35 < tints.max()


@pytest.mark.parametrize("kind", ["flip", "shift", "zoom", "color", "mixup"])
def test_images_of_one_sample_vary_alike(kind):
    image = np.random.default_rng(0).random((16, 8, 8, 3), np.float32)
    two = augmented({"before": image, "after": image}, (kind,), np.random.default_rng(0))
    np.testing.assert_array_equal(two["before"], two["after"])
    assert not np.array_equal(two["after"], image)
    generator = np.random.default_rng(0)
    first, second = (augmented({"before": image, "after": image}, (kind,), generator)["after"] for _ in range(2))
    assert not np.array_equal(first, second)

"""The training loop on tiny models: what it learns, keeps, repeats and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

os.environ.update({"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"})

from edgedl import fitting
from edgedl.errors import InputError
from edgedl.fitting import FitOptions, evaluate, fit, set_seed
from edgedl.fitting.losses import choose
from edgedl.fitting.samples import TrainingData, batches
from edgedl.models.saving import save

keras = pytest.importorskip("keras")


def blobs(count=192, classes=3, seed=0):
    """Clusters of points on a circle, four numbers each, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count).astype(np.int32)
    angle = 2 * np.pi * y / classes
    x = np.stack([np.cos(angle), np.sin(angle), y * 0.0, y * 0.0], 1) * 2 + rng.normal(0, 0.4, (count, 4))
    return x.astype(np.float32), y


def classifier(seed=0, dropout=0.0, activation="softmax"):
    set_seed(seed)
    inputs = keras.Input((4,), name="x")
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(8, name="dense1")(inputs))
    x = keras.layers.Dropout(dropout, name="dropout")(keras.layers.ReLU(name="relu")(x))
    return keras.Model(inputs, keras.layers.Dense(3, activation=activation, name="y")(x))


def samples(x, y):
    return TrainingData(inputs={"x": x}, targets={"y": y})


def same(ours, theirs):
    return all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))


def test_fit_learns_and_reports():
    model = classifier()
    result = fit(model, samples(*blobs()), FitOptions(epochs=6, learning_rate=0.01))
    assert evaluate(model, samples(*blobs(seed=1)))["accuracy"] > 0.95
    assert result.history["loss"][-1] < 0.5 * result.history["loss"][0]
    assert (result.epochs, result.best_epoch, result.evaluation) == (6, 6, None)
    assert result.devices and "sparse_categorical_crossentropy" in " ".join(result.notes)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_fit_with_one_seed_gives_the_same_bytes(schedule):
    options = FitOptions(epochs=2, seed=3, schedule=schedule, patience=2)
    weights = []
    for seed in (3, 3, 4):
        model = classifier(seed, dropout=0.3)
        fit(model, samples(*blobs()), FitOptions(**{**vars(options), "seed": seed}))
        weights.append(model.get_weights())
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


def test_saved_models_have_the_same_bytes_whatever_the_time(tmp_path, monkeypatch):
    import datetime as real

    class Later(real.datetime):
        @classmethod
        def now(cls, tz=None):
            return real.datetime(2001, 2, 3)

    model = classifier()
    save(model, tmp_path / "a.part")
    monkeypatch.setattr("keras.src.saving.saving_lib.datetime.datetime", Later)
    save(model, tmp_path / "b.keras")
    assert (tmp_path / "a.part").read_bytes() == (tmp_path / "b.keras").read_bytes()
    assert same(keras.models.load_model(tmp_path / "b.keras").get_weights(), model.get_weights())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.part", "b.keras"]


def test_early_stopping_restores_the_best_weights():
    x, y = blobs(96)
    noise = np.random.default_rng(1).integers(0, 3, 96).astype(np.int32)  # labels that cannot be learned
    model = classifier()
    result = fit(
        model, samples(x, noise), FitOptions(epochs=40, learning_rate=0.05, patience=3), evaluation=samples(x, y)
    )
    assert result.epochs < 40
    assert result.best_epoch == 1 + int(np.argmin(result.history["val_loss"]))
    assert result.epochs == result.best_epoch + 3
    assert evaluate(model, samples(x, y))["loss"] == pytest.approx(min(result.history["val_loss"]), rel=1e-5)
    assert result.evaluation["loss"] == pytest.approx(min(result.history["val_loss"]), rel=1e-5)
    assert "the evaluation data chose the epoch" in " ".join(result.notes)


def test_the_average_is_the_polynomial_decay_one_of_every_step():
    model, seen = classifier(dropout=0.3), []
    options = FitOptions(epochs=3, learning_rate=0.05, average=True)
    fit(model, samples(*blobs()), options, on_step=lambda trainee, *_: seen.append(trainee.get_weights()))
    *steps, ours = seen  # the last call is that after the mean was put
    means = steps[0]
    for t, weights in enumerate(steps[1:], 2):
        means = [m + 9 / (t + 8) * (w - m) for m, w in zip(means, weights, strict=True)]
    for found, wanted, last in zip(ours, means, steps[-1], strict=True):
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
        else:  # the state of the dropout's generator
            np.testing.assert_array_equal(found, last)
    assert len(steps) == 3 * 6
    assert same(ours, model.get_weights())
    with pytest.raises(InputError, match="average must be left out where patience chooses the epoch, got True"):
        FitOptions(average=True, patience=2)


def test_hold_out_is_seeded_and_in_proportion():
    y = np.repeat(np.arange(3, dtype=np.int32), (100, 60, 40))
    data = samples(np.zeros((200, 4), np.float32), y)
    rest, held = data.split(0.1, seed=0)
    assert np.bincount(y[held.rows]).tolist() == [10, 6, 4]
    assert np.array_equal(np.sort(np.concatenate([rest.rows, held.rows])), np.arange(200))
    assert not np.array_equal(held.rows, data.split(0.1, seed=1)[1].rows)
    nested = rest.split(0.5, seed=0)[1]
    assert set(nested.rows) <= set(rest.rows)


def test_batches_leave_no_tail():
    assert [len(b) for b in batches(np.arange(65), 32)] == [22, 22, 21]
    assert [len(b) for b in batches(np.arange(64), 32)] == [32, 32]
    with pytest.raises(InputError, match="no samples"):
        batches(np.arange(0), 32)


def two_by_two():
    """Two inputs, two outputs: a class of the first input, a number from both."""
    set_seed(0)
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right", dtype="int32")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(right))
    x = keras.layers.Dense(16, activation="relu")(keras.layers.Concatenate()([left, embedded]))
    heads = {"number": keras.layers.Dense(1, name="b")(x), "kind": keras.layers.Dense(3, "softmax", name="a")(x)}
    return keras.Model({"right": right, "left": left}, heads)


def test_fit_trains_several_inputs_and_outputs():
    x, y = blobs()
    right = np.random.default_rng(2).integers(0, 5, (192, 2)).astype(np.uint8)
    number = (right.sum(1) + x[:, 0]).astype(np.float32)
    data = TrainingData(inputs={"left": x, "right": right}, targets={"kind": y, "number": number})
    model = two_by_two()
    before = evaluate(model, data)
    result = fit(model, data, FitOptions(epochs=15, learning_rate=0.01))
    after = evaluate(model, data)
    assert set(after) == {"loss", "kind_accuracy", "number_mae"}
    assert after["kind_accuracy"] > 0.95
    assert after["number_mae"] < 0.5 * before["number_mae"]
    assert result.history["loss"][-1] < result.history["loss"][0]


def test_fit_refuses_outputs_without_targets():
    x, y = blobs()
    data = TrainingData(inputs={"left": x, "right": np.zeros((192, 2), np.int32)}, targets={"kind": y})
    with pytest.raises(InputError, match="no targets for: number; the model's outputs are kind, number"):
        fit(two_by_two(), data, FitOptions())


def test_training_data_is_read_in_slices(tmp_path):
    rows, width = 4000, 8192
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (rows, width)).flush()  # 131 MB, sparse
    np.save(tmp_path / "y.npy", np.zeros(rows, np.int32))
    data = TrainingData.open({"x": tmp_path / "x.npy"}, {"y": tmp_path / "y.npy"})
    before, highest = resident_bytes(), 0
    for part in batches(np.random.default_rng(0).permutation(rows), 32):
        inputs, targets = data.take(part)
        assert inputs["x"].shape == (len(part), width)
        assert targets["y"].shape == (len(part),)
        highest = max(highest, resident_bytes())
    assert highest - before < 30e6


def resident_bytes():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmRSS"))


@pytest.mark.parametrize(
    ("activation", "units", "target", "loss", "metric"),
    [
        ("softmax", 3, np.array([0, 1, 2, 1]), "sparse_categorical_crossentropy", "accuracy"),
        ("softmax", 3, np.array([[0], [1], [2], [1]]), "sparse_categorical_crossentropy", "accuracy"),
        (None, 3, np.array([0, 1, 2, 1]), "sparse_categorical_crossentropy_from_logits", "accuracy"),
        ("softmax", 3, np.eye(3)[[0, 1, 2, 0]], "categorical_crossentropy", "accuracy"),
        ("sigmoid", 1, np.array([0, 1, 1, 0]), "binary_crossentropy", "accuracy"),
        ("sigmoid", 3, np.ones((4, 3), np.uint8), "binary_crossentropy", "accuracy"),
        ("sigmoid", 3, np.full((4, 3), 0.3, np.float32), "binary_crossentropy", "mae"),
        ("sigmoid", 3, np.full((4, 3), 7.0, np.float32), "mean_squared_error", "mae"),
        (None, 1, np.array([0.1, 0.9, 0.4, 0.2]), "mean_squared_error", "mae"),
    ],
)
def test_choose_picks_the_loss_from_output_and_targets(activation, units, target, loss, metric):
    set_seed(0)
    inputs = keras.Input((4,), name="x")
    dense = keras.layers.Dense(units, activation=activation, name="dense")(inputs)
    model = keras.Model(inputs, keras.layers.Reshape((units,), name="y")(dense))
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    (criterion,) = choose(model, {"x": x}, {"y": target}, None, partial=False)
    assert criterion.note == f"loss of output 'y': {loss}, chosen for its values and targets"
    assert criterion.metric_name == metric
    outputs = {"y": model(x)}
    reference = keras.losses.get(loss.removesuffix("_from_logits"))
    shaped = target.reshape(4, -1) if "sparse" not in loss else target.reshape(4)
    kwargs = {"from_logits": True} if loss.endswith("logits") else {}
    expected = np.asarray(reference(shaped.astype(np.float32), np.asarray(outputs["y"]), **kwargs))
    assert np.allclose(criterion.loss(outputs, {"y": keras.ops.convert_to_tensor(target)}), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.zeros((4, 7), np.float32), r"output 'y' gives \(3,\) a sample, its targets have \(7,\)"),
        (np.zeros((4,), np.float32), r"allowed: the same, or class numbers"),
    ],
)
def test_choose_refuses_targets_that_no_loss_fits(target, message):
    with pytest.raises(InputError, match=message):
        choose(classifier(), {"x": np.zeros((4, 4), np.float32)}, {"y": target}, None, partial=False)


def test_fit_takes_a_loss_by_name_or_by_output():
    data = samples(blobs()[0], np.eye(3, dtype=np.float32)[blobs()[1]])
    for loss in ("mean_squared_error", {"y": keras.losses.Huber()}, lambda y, p: keras.ops.mean((y - p) ** 2)):
        model = classifier()
        before = evaluate(model, data, loss=loss)["loss"]
        notes = fit(model, data, FitOptions(epochs=3, learning_rate=0.01, loss=loss)).notes
        assert evaluate(model, data, loss=loss)["loss"] < before
        assert "as given" in " ".join(notes)


def test_fit_distils_from_a_teacher_without_labels():
    teacher, student = classifier(1), classifier(2)
    fit(teacher, samples(*blobs()), FitOptions(epochs=6, learning_rate=0.01))
    seen = []

    def objective(inputs, outputs, targets):
        assert not targets
        return keras.losses.kl_divergence(teacher(inputs["x"], training=False), outputs["y"])

    data = TrainingData(inputs={"x": blobs()[0]}, targets={})
    kept = teacher.get_weights()
    fit(
        student,
        data,
        FitOptions(epochs=8, learning_rate=0.01),
        objective=objective,
        on_step=lambda *a: seen.append(a[1:]),
    )
    assert evaluate(student, samples(*blobs(seed=1)))["accuracy"] > 0.95
    assert same(kept, teacher.get_weights())
    assert seen[0] == (1, 48)
    assert seen[-1] == (48, 48)


def test_regularizers_count():
    def model(strength):
        set_seed(0)
        inputs = keras.Input((4,), name="x")
        dense = keras.layers.Dense(3, "softmax", kernel_regularizer=keras.regularizers.L2(strength), name="y")
        return keras.Model(inputs, dense(inputs))

    plain, held = model(0.0), model(1.0)
    for each in (plain, held):
        fit(each, samples(*blobs()), FitOptions(epochs=5, learning_rate=0.05))
    assert np.abs(held.get_weights()[0]).mean() < 0.5 * np.abs(plain.get_weights()[0]).mean()


def test_divergence_names_the_learning_rate():
    model = classifier(activation=None)
    number = np.full((192, 3), 1e30, np.float32)
    with pytest.raises(
        InputError, match=r"training diverged: loss is (nan|inf) after epoch 1 at learning_rate 1000; try 100"
    ):
        fit(model, samples(blobs()[0], number), FitOptions(epochs=2, learning_rate=1000, optimizer="sgd"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"optimizer": "lion"}, "optimizer must be adam or sgd, got 'lion'"),
        ({"holdout": 1.0}, r"holdout must be in \(0, 1\), got 1.0"),
    ],
)
def test_options_refuse_values_out_of_range(option, message):
    with pytest.raises(InputError, match=message):
        FitOptions(**option)


def test_fit_refuses_unknown_devices_and_subclassed_models():
    with pytest.raises(InputError, match="devices: got GPU:7; this machine has CPU:0"):
        fit(classifier(), samples(*blobs()), FitOptions(devices=("GPU:7",)))

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(InputError, match="subclassed or unbuilt"):
        fit(Own(), samples(*blobs()), FitOptions())


def test_mixed_precision_without_a_gpu_says_so():
    model = classifier()
    notes = fit(model, samples(*blobs()), FitOptions(epochs=1, mixed_precision=True)).notes
    assert any(
        n.startswith("mixed precision needs GPUs of compute capability 7.0 up: CPU:0 used float32") for n in notes
    )


def test_mixed_precision_computes_in_float16_and_leaves_float32(monkeypatch):
    monkeypatch.setattr(fitting, "fast_float16", lambda devices: True)
    model, seen = classifier(), set()
    dense = model.get_layer("dense1")
    result = fit(
        model,
        samples(*blobs()),
        FitOptions(epochs=6, learning_rate=0.01),
        on_step=lambda m, *_: seen.add((dense.compute_dtype, m.get_layer("y").compute_dtype)),
    )
    assert seen == {("float16", "float32")}
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert evaluate(model, samples(*blobs(seed=1)))["accuracy"] > 0.95
    assert any("float16 with loss scaling" in n for n in result.notes)


def test_progress_counts_every_step(monkeypatch):
    told = []
    monkeypatch.setattr(fitting, "progress", lambda *a: told.append(a))
    fit(classifier(), samples(*blobs()), FitOptions(epochs=3, patience=1, holdout=0.5, learning_rate=1e-9))
    assert told[0] == ("training, epoch 1 of 3", 1, 9)
    assert "loss" in told[-1][0]


MIRRORED = """
import json, sys, warnings
warnings.simplefilter("error")
import numpy as np, tensorflow as tf, keras
from edgedl.fitting import FitOptions, evaluate, fit, set_seed
from edgedl.fitting.samples import TrainingData
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
y = rng.integers(0, 3, 96).astype("int32")
x = (np.eye(3)[y] + rng.normal(0, 0.3, (96, 3))).astype("float32")
data = TrainingData(inputs={"x": x}, targets={"y": y})
def run(devices, norm, average=False):
    set_seed(0)
    i = keras.Input((3,), name="x")
    h = keras.layers.Dense(8, activation="relu", kernel_regularizer="l2")(i)
    h = keras.layers.Dropout(0.2)(keras.layers.BatchNormalization(momentum=0.5)(h)) if norm else h
    model = keras.Model(i, keras.layers.Dense(3, "softmax", name="y")(h))
    options = FitOptions(epochs=3, batch_size=16, devices=devices, learning_rate=0.02, average=average,
                         patience=None if average else 9)
    r = fit(model, data, options)
    return [w.tolist() for w in model.get_weights()], r.history["loss"], r.notes, evaluate(model, data)["accuracy"]
two = ("CPU:0", "CPU:1")
out = {"one": run(("CPU:0",), False), "two": run(two, False), "bn": run(two, True), "again": run(two, True),
       "one mean": run(("CPU:0",), False, True), "two mean": run(two, False, True)}
try:
    fit(keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(3, "softmax", name="y")]),
        data, FitOptions(batch_size=1, devices=two))
except Exception as e:
    out["error"] = f"{type(e).__name__}: {e}"
print("RESULT" + json.dumps(out))
"""


@pytest.fixture(scope="module")
def mirrored():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.partition("RESULT")[2])


def test_two_devices_give_what_one_gives(mirrored):
    for one, two in (("one", "two"), ("one mean", "two mean")):
        for ours, theirs in zip(mirrored[one][0], mirrored[two][0], strict=True):
            assert np.allclose(ours, theirs, atol=1e-5)
    assert np.allclose(mirrored["one"][1], mirrored["two"][1], atol=1e-5)
    assert "every batch of 16 was shared by CPU:0, CPU:1" in mirrored["two"][2]


def test_two_devices_repeat_bit_for_bit_with_batch_statistics(mirrored):
    assert mirrored["bn"] == mirrored["again"]
    assert mirrored["bn"][3] > 0.8


def test_batches_that_do_not_fill_the_devices_are_refused(mirrored):
    assert mirrored["error"].endswith("batches of 1 do not fill 2 devices")

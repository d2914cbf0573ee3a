import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import compression, graph, recipes
from edgedl.compression.augmentation import Augmented, flipped, jittered, mixed, shifted, zoomed
from edgedl.compression.base import Context, _Guard, fine_tune, matching_layers, re_estimate_batch_norm
from edgedl.compression.distillation import Teaching, softened_binary_divergence, softened_divergence
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData
from edgedl.recipes import Distill, Step, Training

K = keras.layers


def network(seed=0, end="softmax"):
    keras.utils.set_random_seed(seed)
    layers = [K.Conv2D(4, 3, name="conv"), K.BatchNormalization(name="norm"), K.ReLU(), K.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((6, 6, 1), name="image"), *layers, K.Dense(3, activation=end, name="kind")])


def samples(count=64, labels=False):
    random = np.random.default_rng(0)
    x = random.normal(2.0, 3.0, (count, 6, 6, 1)).astype(np.float32)
    return TrainingData(inputs={"image": x}, targets={"kind": random.integers(0, 3, count)} if labels else {})


def context(**kwargs):
    return Context(step=Step(kind="x", where="r.toml: step 1 (x)"), **kwargs)


def test_matching_layers_goes_by_patterns_in_the_models_order_and_into_nested_models():
    inner = keras.Sequential([keras.Input((4,)), K.Dense(4, name="deep_1"), K.Dense(2, name="deep_2")], name="inner")
    model = keras.Sequential([keras.Input((4,)), K.Dense(4, name="first"), inner, K.Dense(2, name="last")])

    def found(*args, **kwargs):
        return {layer.name for layer in matching_layers(model, *args, **kwargs)} - {"inner"}

    assert found(()) == {"first", "deep_1", "deep_2", "last"}
    assert found(("deep*", "last"), ("deep_2",)) == {"deep_1", "last"}
    with pytest.raises(InputError, match=r"here: match 'firts' hits no layer with weights \(did you mean 'first'\?\)"):
        found(("firts",), where="here")
    with pytest.raises(InputError, match="here: skip 'x' hits no layer"):
        found((), ("x",), where="here")
    with pytest.raises(InputError, match="no layer with weights to work on: skip takes them all"):
        found((), ("*",))
    with pytest.raises(InputError, match="no convolution to work on: the model has none"):
        found((), able=lambda layer: False, what="convolution")


def test_re_estimated_statistics_are_those_of_the_data():
    model, data = network(), samples(256)
    assert re_estimate_batch_norm(model, data) == 1
    norm = model.get_layer("norm")
    activations = model.get_layer("conv")(data.inputs["image"]).numpy()
    np.testing.assert_allclose(norm.moving_mean, activations.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, activations.var((0, 1, 2)), rtol=0.02)
    assert norm.momentum == 0.99
    assert re_estimate_batch_norm(model, None) == 0


def test_averaged_weights_have_statistics_of_their_own():
    model, data = network(), samples(256, labels=True)
    training = Training(epochs=2, batch_size=64, learning_rate=1e-2, average=True)
    fine_tune(model, data, training, context())
    activations = model.get_layer("conv")(data.inputs["image"]).numpy()
    np.testing.assert_allclose(model.get_layer("norm").moving_mean, activations.mean((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "step",
    [
        {"kind": "prune", "method": "magnitude", "sparsity": 0.5},
        {"kind": "cluster", "clusters": 4},
        {"kind": "cluster", "domain": "int", "clusters": 8},
    ],
    ids=lambda step: "-".join(str(v) for v in list(step.values())[:2]),
)
def test_what_a_step_holds_the_average_holds_too(step):
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "average": True}
    recipe = recipes.from_table({"step": [{**step, "match": "kind", "training": training}]})
    made = compression.run(network(), recipe, samples(labels=True))
    kernel = made.get_layer("kind").kernel.numpy()
    assert (kernel == 0).sum() == 6 if step["kind"] == "prune" else len(np.unique(kernel / np.abs(kernel).max(0))) <= 8


@pytest.mark.parametrize("end", ["softmax", "sigmoid", "linear"])
def test_fine_tune_follows_the_teacher_without_labels(end):
    teacher, student, data = network(1, end), network(2, end), samples()
    re_estimate_batch_norm(teacher, data)
    re_estimate_batch_norm(student, data)

    def distance():
        return float(np.abs(teacher(data.inputs["image"]) - student(data.inputs["image"])).mean())

    before = distance()
    kept = teacher.get_weights()
    training = Training(epochs=15, batch_size=16, learning_rate=1e-2, distill=Distill(temperature=1))
    fine_tune(student, data, training, context(teacher=teacher))
    assert distance() < 0.6 * before
    for ours, theirs in zip(kept, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_labels_are_looked_at_only_where_they_teach():
    data = samples(labels=True)
    data.targets["kind"][3] = -1  # not labelled yet
    fine_tune(network(), data, Training(distill=Distill(alpha=1)), context(teacher=network(1)))
    with pytest.raises(InputError, match="kind: sample 3 holds -1; allowed: classes 0 to 2"):
        fine_tune(network(), data, Training(distill=Distill(alpha=0.9)), context(teacher=network(1)))


def test_fine_tune_follows_features():
    teacher, student, data = network(1), network(2), samples()

    def distance():
        maps = [keras.Model(m.inputs[0], m.get_layer("conv").output)(data.inputs["image"]) for m in (teacher, student)]
        return float(keras.ops.mean(keras.ops.square(maps[0] - maps[1])))

    before = distance()
    training = Training(epochs=20, learning_rate=3e-2, distill=Distill(features=("conv",), feature_weight=10.0))
    fine_tune(student, data, training, context(teacher=teacher))
    assert distance() < 0.2 * before
    lost = Training(distill=Distill(features=("conf",)))
    with pytest.raises(InputError, match="distill features 'conf' hits no layer that both models have"):
        fine_tune(student, data, lost, context(teacher=teacher))


def feature_loss(student, teacher, feature, data):
    """Of the first step, where nothing else counts."""
    options = Distill(alpha=1.0, features=(feature,), feature_weight=1e6)
    taught = Teaching(student, teacher, options, data, "here")
    inputs = {"image": keras.ops.convert_to_tensor(data.inputs["image"])}
    outputs = taught.trainee(inputs["image"])
    return float(keras.ops.mean(taught.objective(inputs, outputs, {}))) / 1e6


def test_features_of_a_folded_layer_are_what_the_teachers_batch_normalization_gives():
    model, data = network(), samples()
    model.get_layer("norm").set_weights([w + 0.5 * np.arange(4) for w in model.get_layer("norm").get_weights()])
    folded = compression.run(model, recipes.from_table({"step": [{"kind": "fold"}]}))
    assert feature_loss(folded, model, "conv", data) < 1e-8
    assert feature_loss(model, model, "conv", data) == 0
    teacher = network(1)
    assert feature_loss(model, teacher, "conv", data) > 0.01


def test_features_may_be_a_nested_models_and_a_lambdas():
    image = keras.Input((6, 6, 1), name="image")
    x = keras.Sequential([keras.Input((6, 6, 1)), K.Conv2D(4, 3, name="conv")], name="part")(image)
    x = K.Lambda(lambda t: 2 * t, name="twice", output_shape=(4, 4, 4))(x)
    model = keras.Model(image, K.Dense(3, name="kind")(K.GlobalAveragePooling2D()(x)))
    data, flat, moved = samples(), graph.flattened(model), graph.flattened(model)
    moved.set_weights([w + 0.1 for w in model.get_weights()])
    for feature in ("part", "twice"):
        assert feature_loss(model, model, feature, data) == 0
    for feature in ("conv", "twice"):  # what most steps make is flat
        assert feature_loss(flat, model, feature, data) == 0
        assert feature_loss(moved, model, feature, data) > 1e-3
    with pytest.raises(InputError, match=r"features 'part' hits no layer that both .*; .*, kind, twice"):
        feature_loss(flat, model, "part", data)


def test_a_mirrored_copy_with_features_is_watched_in_the_models_order():
    image = keras.Input((6, 6, 1), name="image")
    parts = [keras.Sequential([keras.Input((6, 6, 1)), K.Conv2D(2, 3, name="conv")], name=n) for n in ("a", "b")]
    x = K.Add()([K.GlobalAveragePooling2D(name=f"f{part.name}")(part(image)) for part in parts])
    model = keras.Model(image, K.Dense(3, name="zz")(x))
    model.set_weights([w + np.random.default_rng(0).normal(size=w.shape) for w in model.get_weights()])
    seen = []
    guard = _Guard(model, 1, lambda subject, *_: seen.append(subject))
    trainee = Teaching(model, model, Distill(features=("fb",)), samples(), "here").trainee
    copy = keras.models.clone_model(trainee)
    copy.set_weights(trainee.get_weights())
    for one in (trainee, copy):
        guard.subject = None
        guard(one, 1, 2)
        for ours, theirs in zip(seen[-1].get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert seen[0] is model
    assert {id(w) for w in seen[1].weights} == {id(w) for w in copy.weights}


def test_layers_whose_activation_was_set_apart_are_no_features():
    def net(activation, further=()):
        layers = [K.Conv2D(4, 3, activation=activation, name="conv"), *further, K.GlobalAveragePooling2D(name="gap")]
        return keras.Sequential([keras.Input((6, 6, 1), name="image"), *layers, K.Dense(3, name="kind")])

    with pytest.raises(
        InputError, match=r"features 'conv' hits no layer that .*same shape and activation; .* gap, kind"
    ):
        feature_loss(net(None, [K.Activation("tanh")]), net("tanh"), "conv", samples())


@pytest.mark.parametrize(("activation", "feature"), [("relu", "enc"), ("sigmoid", "enc"), ("relu", "kind")])
def test_features_may_be_outputs_of_a_quantized_model(activation, feature):
    image = keras.Input((6, 6, 1), name="image")
    enc = K.Conv2D(4, 3, activation=activation, name="enc")(image)
    model = keras.Model(image, [K.Dense(3, activation="softmax", name="kind")(K.Flatten()(enc)), enc])
    training = {"distill": {"alpha": 1.0, "features": [feature]}}
    recipe = recipes.from_table({"step": [{"kind": "quantize", "training": training}]})
    made = compression.run(model, recipe, samples())
    assert [t.shape for t in made.outputs] == [t.shape for t in model.outputs]


def test_answers_such_as_argmax_are_not_imitated():
    model, data = network(), samples()
    classes = keras.Model(model.inputs[0], keras.ops.argmax(model.outputs[0], axis=-1))
    with pytest.raises(InputError, match=r"distill: the outputs \w+ are no floats to imitate; name features"):
        fine_tune(classes, data, Training(distill=Distill(alpha=1.0)), context(teacher=classes))
    both = keras.Model(model.inputs[0], [model.outputs[0], keras.ops.argmax(model.outputs[0], axis=-1)])
    taught = keras.models.clone_model(both)
    before = taught.get_weights()
    fine_tune(taught, data, Training(distill=Distill(alpha=1.0)), context(teacher=both))
    assert not all(np.array_equal(a, b) for a, b in zip(before, taught.get_weights(), strict=True))


@pytest.mark.parametrize("small", [0.1, 1.0])
def test_fine_tune_moves_small_channels_in_proportion_and_no_others_slower(small):
    model = network()
    conv = model.get_layer("conv")
    kernel = np.ones((3, 3, 1, 4), np.float32) * [1, 0.05, 0.001, 0]
    conv.kernel.assign(kernel)
    fine_tune(model, samples(32, labels=True), Training(learning_rate=1e-3, batch_size=32), context(), small=small)
    moved = np.abs(conv.kernel.numpy() - kernel).max(axis=(0, 1, 2))
    limit = small * np.sqrt(2 / 9)  # of what an initialized one has
    paces = np.minimum(np.array([1, 0.05, 0.001, 0]) / limit, 1)
    np.testing.assert_allclose(moved, 1e-3 * paces, rtol=0.01)  # one Adam step


def test_fine_tune_says_what_is_missing():
    with pytest.raises(InputError, match=r"r.toml: step 1 \(x\): training needs data; give --data"):
        fine_tune(network(), None, Training(), context())
    with pytest.raises(InputError, match="the data has no labels; give labelled data, or let the original model teach"):
        fine_tune(network(), samples(), Training(), context())
    with pytest.raises(InputError, match="distill needs the original model as teacher"):
        fine_tune(network(), samples(), Training(distill=Distill()), context())
    with pytest.raises(InputError, match="augment flip is for images"):
        Augmented.of(TrainingData(inputs={"a": np.zeros((4, 3))}, targets={}), ("flip",), 0)


def test_frozen_layers_train_too_which_is_said_and_are_frozen_afterwards():
    model, data, said = network(), samples(256, labels=True), []
    model.get_layer("conv").trainable = False
    model.get_layer("norm").trainable = False
    before = [w.numpy() for w in model.weights]
    fine_tune(model, data, Training(epochs=2, learning_rate=0.01), context(say=said.append))
    assert "r.toml: step 1 (x): trained although frozen (trainable = False): conv, norm" in said
    assert all((a != w.numpy()).any() for a, w in zip(before, model.weights, strict=True))
    assert [v.path for v in model.trainable_variables] == [v.path for v in model.get_layer("kind").weights]
    model.trainable = False
    assert re_estimate_batch_norm(model, data) == 1
    fine_tune(model, data, Training(), context(say=said.append))
    assert any(note.endswith("frozen (trainable = False): conv, kind, norm") for note in said)
    assert not model.trainable_variables


def test_labels_of_places_are_not_left_behind_by_augmentation():
    data = TrainingData(inputs={"image": np.zeros((8, 6, 6, 1), np.float32)}, targets={"mask": np.zeros((8, 6, 6))})
    image = keras.Input((6, 6, 1), name="image")
    model = keras.Model(image, K.Reshape((6, 6), name="mask")(K.Conv2D(1, 1, name="conv")(image)))
    message = r"r.toml: step 1 \(x\): augment moves the images, and labels 'mask' \(6, 6\) have a value for each place"
    with pytest.raises(InputError, match=message):
        fine_tune(model, data, Training(augment=("flip",)), context())
    taught = Training(augment=("flip",), distill=Distill(alpha=1))
    fine_tune(model, data, taught, context(teacher=keras.models.clone_model(model)))


def test_training_that_diverges_keeps_the_last_good_weights(tmp_path):
    model, data = network(), samples(labels=True)
    good = model.get_weights()

    def spoil(trainee, done, total):
        if done == 3:  # the second epoch's first step
            trainee.get_layer("conv").kernel.assign(np.full((3, 3, 1, 4), np.nan))

    training = Training(epochs=3, learning_rate=1e-3)
    told = r"r.toml: step 1 \(x\): training diverged: .*; the weights of epoch 1 are kept in .*last-good.keras"
    with pytest.raises(InputError, match=told):
        fine_tune(model, data, training, context(folder=tmp_path), on_step=spoil)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    saved = keras.saving.load_model(tmp_path / "last-good.keras", compile=False)
    np.testing.assert_array_equal(saved.get_layer("conv").kernel, model.get_layer("conv").kernel)
    assert np.abs(model.get_layer("conv").get_weights()[0] - good[0]).max() > 0


@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_kept_is_a_whole_epoch_of_what_early_stopping_trains_on_and_after_a_resume(tmp_path, stopped):
    model, seen = network(), {}
    training = Training(epochs=4, learning_rate=1e-3, batch_size=10, patience=4)  # 6 steps on 58 of 64 samples

    def watch(trainee, done, total):
        seen[done] = trainee.get_layer("conv").kernel.numpy()
        if stopped and done == 7 and 8 not in seen:
            seen[8] = None
            raise KeyboardInterrupt
        if done == 8 and (not stopped or seen[8] is not None):
            trainee.get_layer("conv").kernel.assign(np.full((3, 3, 1, 4), np.nan))

    if stopped:
        start = model.get_weights()
        with pytest.raises(KeyboardInterrupt):
            fine_tune(model, samples(labels=True), training, context(folder=tmp_path), on_step=watch)
        model.set_weights(start)  # a new process loads the model that the step starts from
    with pytest.raises(InputError, match="the weights of epoch 1 are kept"):
        fine_tune(model, samples(labels=True), training, context(folder=tmp_path), on_step=watch)
    np.testing.assert_array_equal(model.get_layer("conv").kernel, seen[6])


def test_layers_of_one_name_in_nested_models_train_at_their_own_pace():
    def tower(name, size):
        kernel = keras.initializers.Constant(size)
        return keras.Sequential([keras.Input((4,)), K.Dense(3, kernel_initializer=kernel, name="fc")], name=name)

    x = keras.Input((4,), name="image")
    both = [tower("usual", 1.0), tower("small", 1e-3)]
    model = keras.Model(x, K.Dense(2, name="kind")(K.Add()([both[0](x), both[1](x)])))
    data = TrainingData(
        inputs={"image": np.random.default_rng(0).normal(size=(32, 4)).astype("f")},
        targets={"kind": np.eye(2)[[0, 1] * 16]},
    )
    before = [t.get_layer("fc").get_weights()[0] for t in both]
    fine_tune(model, data, Training(learning_rate=1e-3, batch_size=32), context())
    usual, small = (np.abs(t.get_layer("fc").get_weights()[0] - w).max() for t, w in zip(both, before, strict=True))
    assert usual > 20 * small > 0


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


def test_divergences():
    logits = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(softened_divergence(logits, logits, 4.0), 0, atol=1e-6)
    p, q = 1 / (1 + np.exp(-1.0)), 0.5  # logits [2, 0] and [0, 0] at temperature 2
    expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    found = softened_divergence(logits[:1], np.zeros((1, 2), np.float32), 2.0)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    found = softened_binary_divergence(np.array([2.0], np.float32), np.array([0.0], np.float32), 2.0)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_masks_hold_their_own_kernel_where_features_change_the_order_of_the_weights():
    """Two nested models whose layers share names: their kernels are told apart by their order."""

    def tower(name):
        image = keras.Input((8, 8, 3))
        return keras.Model(image, K.GlobalAveragePooling2D(name="gap")(K.Conv2D(8, 3, name="conv")(image)), name=name)

    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    towers = [tower("a"), tower("b")]
    both = K.Add()([K.Dense(6, name=f"f{t.name}")(t(image)) for t in towers])
    model = keras.Model(image, K.Dense(3, activation="softmax", name="zz")(both))
    training = {"learning_rate": 1e-4, "distill": {"alpha": 1.0, "features": ["fb"]}}
    step = {"kind": "prune", "method": "magnitude", "sparsity": 0.5, "schedule": "constant", "training": training}
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
    made = compression.run(model, recipes.from_table({"step": [step]}), TrainingData(inputs={"image": x}, targets={}))
    for t in towers:
        before, after = (np.abs(m.get_layer(t.name).get_layer("conv").kernel.numpy()) for m in (model, made))
        assert (after[before > np.quantile(before, 0.55)] > 0).all()

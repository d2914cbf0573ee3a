import keras
import numpy as np
import pytest
from students import context, network, samples

from edgedl import compression, graph, recipes
from edgedl.compression.base import _Guard, fine_tune
from edgedl.compression.distillation import Teaching, softened_binary_divergence, softened_divergence
from edgedl.compression.features import imitated
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData
from edgedl.recipes import Distill, Training

K = keras.layers


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


def test_features_count_as_a_share_of_the_teachers_mean_square_and_as_a_mean_over_them():
    teacher, student, data = network(1), network(1), samples()
    student.get_layer("norm").set_weights([np.zeros(4), np.zeros(4), np.zeros(4), np.ones(4)])  # gives nothing
    assert feature_loss(student, teacher, "norm", data) == pytest.approx(1, rel=1e-4)
    assert feature_loss(student, teacher, "conv", data) < 1e-5
    assert feature_loss(student, teacher, "[cn]o*", data) == pytest.approx(0.5, rel=1e-4)


def test_auto_features_are_the_last_of_each_resolution_that_is_as_wide_in_both():
    def net(inner, wide=8):
        keras.utils.set_random_seed(0)
        image = keras.Input((6, 6, 1), name="image")
        x = K.Rescaling(0.5, name="untrained")(K.ZeroPadding2D(name="padded")(image))
        x = K.Conv2D(inner, 3, name="inner")(x)
        x = K.Conv2D(4, 3, padding="same", name="end_6")(x)
        y = K.Conv2D(wide, 3, strides=2, padding="same", name="end_3")(x)
        y = K.Conv2D(inner, 1, name="narrowed")(y)
        y = K.Flatten()(K.GlobalAveragePooling2D(keepdims=True)(y))
        return keras.Model(image, K.Dense(3, activation="softmax", name="kind")(y))

    whole, less, data = net(5), net(3), samples()
    assert list(imitated(less, whole, ("auto",), "here")) == ["end_6", "end_3"]
    assert list(imitated(less, whole, ("auto", "kind", "end_*"), "here")) == ["end_6", "end_3", "kind"]
    assert list(imitated(net(3, 7), whole, ("auto",), "here")) == ["end_6"]
    before = feature_loss(less, whole, "auto", data)
    training = Training(epochs=20, learning_rate=3e-2, distill=Distill(features=("auto",), feature_weight=10.0))
    said = []
    fine_tune(less, data, training, context(teacher=whole, say=said.append))
    assert feature_loss(less, whole, "auto", data) < 0.5 * before
    assert "r.toml: step 1 (x): distill features auto: end_3, end_6" in said


def test_auto_features_are_floats_and_may_be_none():
    image = keras.Input((6, 6, 1), name="image")
    classes = keras.Model(image, keras.ops.argmax(K.Conv2D(3, 1, name="map")(image), axis=-1))
    assert list(imitated(classes, classes, ("auto",), "here")) == ["map"]
    with pytest.raises(InputError, match=r"hits no layer .*; there are map$"):
        imitated(classes, classes, ("arg*",), "here")
    vector = keras.Input((4,), name="vector")
    model = keras.Model(vector, K.Dense(3, activation="softmax", name="kind")(K.Dense(5)(vector)))
    data = TrainingData(inputs={"vector": np.ones((8, 4), np.float32)}, targets={})
    assert imitated(model, model, ("auto",), "here") == {}
    fine_tune(model, data, Training(distill=Distill(features=("auto",))), context(teacher=model))


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


def test_what_is_imitated_without_temperature_is_said():
    said = []
    for end, labels in (("linear", False), ("linear", True), ("softmax", False)):
        training = Training(distill=Distill(alpha=1))
        fine_tune(network(0, end), samples(labels=labels), training, context(teacher=network(1, end), say=said.append))
    (note,) = [line for line in said if "temperature" in line]
    assert note.startswith("r.toml: step 1 (x): imitated by squared error, without temperature, as neither")
    assert note.endswith(": kind")


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

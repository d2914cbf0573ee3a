import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import compression, graph, recipes
from edgedl.compression.fold import batch_norm_affine, fold, scaled_kernel
from edgedl.errors import InputError

K = keras.layers
FOLD = {"kind": "fold"}


def randomized(model, seed=0):
    random = np.random.default_rng(seed)
    for weight in model.weights:
        values = random.normal(size=weight.shape) * 0.3
        weight.assign(np.abs(values) + 0.2 if "variance" in weight.path else values)
    return model


def norms(model):
    return [layer.name for layer in model.layers if type(layer).__name__ == "BatchNormalization"]


def run(model, step=FOLD):
    told = []
    new = compression.run(model, recipes.from_table({"step": [dict(step)]}), say=told.append)
    return new, told


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((8, 8, 4), lambda: K.Conv2D(6, 3, strides=2, padding="same")),
        ((8, 8, 4), lambda: K.Conv2D(6, 3, groups=2, use_bias=False)),
        ((8, 8, 4), lambda: K.DepthwiseConv2D(3, depth_multiplier=2)),
        ((8, 8, 4), lambda: K.SeparableConv2D(5, 3, depth_multiplier=2, use_bias=False)),
        ((8, 8, 4), lambda: K.Conv2DTranspose(5, 3, strides=2, padding="same")),
        ((8, 4), lambda: K.Conv1D(5, 3, padding="causal")),
        ((8, 4), lambda: K.DepthwiseConv1D(3)),
        ((8, 4), lambda: K.SeparableConv1D(5, 3)),
        ((8, 4), lambda: K.Dense(5)),
        ((4, 4, 4, 2), lambda: K.Conv3D(3, 2)),
    ],
)
@pytest.mark.parametrize("options", [{}, {"scale": False, "epsilon": 0.1}, {"center": False}])
def test_fold_takes_batch_normalization_out_and_answers_the_same(shape, layer, options):
    model = randomized(keras.Sequential([keras.Input(shape), layer(), K.BatchNormalization(**options), K.ReLU()]))
    new, _ = run(model)
    assert norms(model)
    assert not norms(new)
    assert graph.prove(model, new) < 1e-5
    assert not set(map(id, new.weights)) & set(map(id, model.weights))


def test_fold_takes_shared_layers_and_keeps_the_names_of_outputs():
    inside = keras.Input((8, 8, 4))
    block = keras.Model(inside, K.BatchNormalization(name="norm")(K.Conv2D(4, 3, padding="same", name="c")(inside)))
    image = keras.Input((8, 8, 4), name="image")
    model = randomized(
        keras.Model(image, [block(block(image)), K.BatchNormalization(name="end")(K.Conv2D(2, 1)(image))])
    )
    new, _ = run(model)
    assert not norms(new)
    assert graph.prove(model, new) < 1e-5
    assert new.outputs[1]._keras_history.operation.name == "end"


def test_fold_leaves_what_it_may_not_take_and_says_so():
    image = keras.Input((8, 8, 4))
    alone = K.BatchNormalization(name="first")(image)
    used_twice = K.Conv2D(4, 1, name="twice")(alone)
    active = K.Conv2D(4, 1, activation="relu", name="active")(K.BatchNormalization(name="branch")(used_twice))
    model = randomized(keras.Model(image, K.Add()([used_twice, K.BatchNormalization(name="after_relu")(active)])))
    new, told = run(model)
    assert norms(new) == ["first", "branch", "after_relu"]
    assert told == [
        "recipe: step 1 (fold): not folded, as no layer before them can take them: first, branch, after_relu"
    ]
    graph.prove(model, new, 0.0)


def test_fold_goes_by_match_and_skip():
    layers = [K.Conv2D(4, 1, name="one"), K.BatchNormalization(), K.Conv2D(4, 1, name="two"), K.BatchNormalization()]
    model = randomized(keras.Sequential([keras.Input((8, 8, 4)), *layers]))
    assert len(norms(run(model, {**FOLD, "match": "one"})[0])) == 1
    assert len(norms(run(model, {**FOLD, "skip": ["one", "two"][:1]})[0])) == 1
    with pytest.raises(
        InputError, match=r"step 1 \(fold\): match 'wto\*' hits no convolution or Dense layer.*there are o"
    ):
        run(model, {**FOLD, "match": "wto*"})


def test_array_functions():
    scale, shift = batch_norm_affine(np.array([2.0]), np.array([1.0]), np.array([3.0]), np.array([3.75]), 0.25)
    np.testing.assert_allclose([scale[0], shift[0]], [1.0, -2.0])
    kernel = np.ones((3, 3, 2, 4), np.float32)
    assert scaled_kernel(kernel, np.arange(4.0), "last")[0, 0, 1].tolist() == [0, 1, 2, 3]
    assert scaled_kernel(kernel, np.arange(2.0), "transposed")[0, 0, :, 0].tolist() == [0, 1]
    assert scaled_kernel(kernel, np.arange(8.0), "depthwise")[0, 0, 1].tolist() == [4, 5, 6, 7]


def test_fold_alone_gives_back_a_model_without_batch_normalization():
    model = keras.Sequential([keras.Input((4,)), K.Dense(2)])
    assert fold(model) == (model, [])

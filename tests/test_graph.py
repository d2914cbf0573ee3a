import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import graph
from edgedl.errors import EdgedlError, UnsupportedError
from edgedl.graph import Graph, Optional, Replacement, Role
from edgedl.models import specs
from edgedl.models.cleaning import Copier

K = keras.layers


def names(model, part):
    return [spec.name for spec in specs(model)[part]]


def randomized(model, seed=0):
    """The model with weights that leave no layer without effect."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        values = random.normal(size=weight.shape) * 0.3
        weight.assign(np.abs(values) + 0.2 if "variance" in weight.path else values)
    return model


def nested():
    """A model called twice, a Sequential inside, two layers of one name, ops, two outputs by dictionary key."""
    inside = keras.Input((8, 8, 4))
    x = K.Conv2D(4, 3, padding="same", name="conv")(inside)
    x = K.ReLU(name="act")(K.BatchNormalization(name="norm")(x))
    block = keras.Model(inside, x, name="block")
    image = keras.Input((8, 8, 4), name="image")
    tail = keras.Sequential([K.DepthwiseConv2D(3, name="conv"), K.Conv2D(5, 1, name="point")], name="tail")
    first = block(image)
    second = tail(block(first) + first * 2.0)
    kind = K.Dense(3, name="head")(keras.ops.relu(K.GlobalAveragePooling2D(name="pool")(second)))
    return randomized(keras.Model(image, {"kind": kind, "features": second}))


def test_walk_is_flat_in_order_and_counts_the_calls_of_shared_layers():
    walked = Graph.of(nested())
    assert [c.name for c in walked.calls if c.name in ("conv", "norm", "tail_conv", "point", "head")] == [
        *("conv", "norm", "conv", "norm"),
        *("tail_conv", "point", "head"),
    ]
    assert [c.number for c in walked.calls_of("conv")] == [0, 1]
    made = set(walked.inputs)
    for call in walked.calls:
        assert made.issuperset(call.inputs)
        made |= set(call.outputs)
    assert made.issuperset(walked.outputs)


def test_producers_and_consumers():
    walked = Graph.of(nested())
    act = walked.calls_of("act")[0]
    assert walked.producer(walked.inputs[0]) is None
    assert walked.producer(act.inputs[0]).name == "norm"
    assert sorted(c.kind for c in walked.consumers(act.outputs[0])) == ["Conv2D", "Multiply"]
    assert walked.next(act) is None
    assert walked.next(walked.calls_of("conv")[0]).name == "norm"
    assert walked.next(walked.calls_of("point")[0]) is None, "it is an output of the model, too"


def test_flattened_answers_the_same_under_the_same_names():
    model = nested()
    flat = graph.flattened(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert graph.prove(model, flat, 0.0) == 0.0
    assert names(flat, 0) == names(model, 0) == ["image"]
    assert names(flat, 1) == names(model, 1)
    flat.get_layer("conv").kernel.assign(0 * flat.get_layer("conv").kernel)
    assert np.abs(model.get_layer("block").get_layer("conv").get_weights()[0]).max() > 0, "weights are copies"


def test_copies_of_an_adapted_normalization_compute_as_it_does():
    norm = keras.layers.Normalization(name="norm")
    inputs = keras.Input((4,), name="x")
    inner = keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(3)])
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(keras.layers.Dropout(0.5)(inputs))))
    x = np.random.default_rng(0).normal(100, 20, (16, 4)).astype(np.float32)
    norm.adapt(x)
    expected = model(x).numpy()

    copies = [graph.flattened(model), Copier().copy(model), Copier(drop=True).copy(model)]
    copies.append(graph.rebuild(graph.flattened(model), {}))

    for copy in copies:
        np.testing.assert_allclose(copy(x).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_copies_of_an_adapted_lookup_have_its_vocabulary():
    lookup = K.IntegerLookup(name="lookup")
    lookup.adapt(np.array([3, 5, 9, 5]))
    inputs = keras.Input((4,), dtype="int64", name="x")
    model = keras.Model(inputs, K.Embedding(4, 2)(lookup(K.Dropout(0.5, dtype="int64")(inputs))))
    x = np.array([[3, 5, 9, 7]])

    for copy in (graph.flattened(model), Copier().copy(model), Copier(drop=True).copy(model)):
        np.testing.assert_array_equal(copy(x), model(x))


@pytest.mark.parametrize("structure", ["list", "nested output", "sequential"])
def test_names_of_outputs_stay(structure):
    image = keras.Input((8, 8, 4), name="image")
    tail = keras.Sequential([K.Conv2D(4, 3), K.Conv2D(5, 1)], name="tail")
    if structure == "sequential":
        model = keras.Sequential([keras.Input((8, 8, 4), name="image"), K.Conv2D(2, 1), K.ReLU(name="end")])
    else:
        y = tail(image)
        model = keras.Model(image, y if structure == "nested output" else [y, K.ReLU(name="end")(y)])
    flat = graph.flattened(model)
    assert names(flat, 1) == names(model, 1)
    assert graph.prove(model, flat, 0.0) == 0.0


@pytest.mark.parametrize("where", ["in the model that gives it", "in a model before"])
def test_the_name_of_an_output_may_be_that_of_a_layer_inside(where):
    inside = keras.Input((3,))
    x = keras.Input((3,), name="x")
    if where == "in a model before":
        y = K.Dense(2, name="head")(keras.Model(inside, K.Dense(4, name="head")(inside), name="body")(x))
    else:
        y = keras.Sequential([inside, K.Dense(4, name="head"), K.Softmax()], name="head")(x)
    model = keras.Model(x, y)
    flat = graph.flattened(model)
    assert names(flat, 1) == ["head"]
    assert graph.prove(model, flat, 0.0) == 0.0


@pytest.mark.parametrize("kind", [list, dict])
def test_a_nested_model_gets_what_a_dict_names(kind):
    query, context = keras.Input((4,), name="query"), keras.Input((4,), name="context")
    inputs = [query, context] if kind is list else {"query": query, "context": context}
    inner = keras.Model(inputs, K.Subtract()([query, K.Dense(4)(context)]))
    x, z = keras.Input((4,), name="x"), keras.Input((4,), name="z")
    model = randomized(keras.Model([x, z], inner({"query": x, "context": z})))
    arrays = [np.random.default_rng(i).normal(size=(3, 4)).astype(np.float32) for i in range(2)]
    np.testing.assert_allclose(graph.flattened(model)(arrays), model(arrays), rtol=1e-5, atol=1e-6)


def test_a_nested_model_may_be_called_by_keyword():
    inside, x = keras.Input((4,)), keras.Input((4,), name="x")
    inner = keras.Model(inside, K.Dense(3)(inside), name="inner")
    model = keras.Model(x, inner(training=False, inputs=x))
    assert graph.prove(model, graph.flattened(model), 0.0) == 0.0


@pytest.mark.parametrize(("given", "declared"), [("float32", "int32"), ("uint8", "float32")])
def test_a_nested_model_gets_its_inputs_in_the_dtype_that_it_declares(given, declared, tmp_path):
    def inner(name):
        inside = keras.Input((4,), dtype=declared)
        return keras.Model(inside, K.Dense(3)(keras.ops.cast(inside, "float32") * 0.5), name=name)

    x = keras.Input((4,), dtype=given, name="x")
    one, other = inner("one"), inner("other")
    model = randomized(keras.Model(x, one(x) + one(x) * other(x)))
    flat = graph.flattened(model)
    values = np.array([[0.5, 1.7, 2.2, 3.9]], given)
    np.testing.assert_allclose(flat(values), model(values), rtol=1e-6)
    flat.save(tmp_path / "flat.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "flat.keras")(values), flat(values))


def test_flattened_takes_masks_attention_and_several_inputs():
    words = keras.Input((6,), dtype="int32", name="words")
    other = keras.Input((6, 8), name="other")
    x = K.Embedding(10, 8, mask_zero=True)(words)
    x = K.MultiHeadAttention(2, 4)(x, other, use_causal_mask=True)
    x = K.Bidirectional(K.LSTM(3, return_sequences=True))(x)
    x = K.TimeDistributed(K.Dense(4))(x)
    model = keras.Model({"words": words, "other": other}, K.GlobalAveragePooling1D(name="end")(x))
    flat = graph.flattened(model)
    arrays = {"words": np.array([[1, 2, 0, 0, 0, 0]], np.int32), "other": np.ones((1, 6, 8), np.float32)}
    graph.prove(model, flat, 0.0, [arrays[t.name] for t in model.inputs])
    assert isinstance(flat.input, dict)


def test_rebuild_replaces_layers_and_takes_them_out():
    model = nested()
    doubled = K.Conv2D(5, 1, name="point")
    kernel, bias = model.get_layer("tail").get_layer("point").get_weights()
    new = graph.rebuild(
        model,
        {
            "point": Replacement(layer=doubled, weights=[2 * kernel, 2 * bias]),
            "norm": lambda x: x,
            "pool": lambda x: keras.ops.mean(x, axis=(1, 2)),
        },
    )
    kinds = {type(layer).__name__ for layer in new.layers}
    assert not kinds & {"BatchNormalization", "GlobalAveragePooling2D"}
    without = graph.rebuild(model, {"norm": lambda x: x})
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(new(x)["features"], 2 * without(x)["features"], rtol=1e-5)
    with pytest.raises(EdgedlError, match=r"the rewritten model differs from the model before by .*; at most 1e-05"):
        graph.prove(model, new)


def test_rebuild_refuses_unknown_names():
    with pytest.raises(UnsupportedError, match="has no layer 'conw'"):
        graph.rebuild(nested(), {"conw": lambda x: x})


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = K.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_subclassed_models_are_refused_with_what_to_do():
    own = Own()
    own(np.ones((1, 3)))
    shell = keras.Model(inputs := keras.Input((3,)), own(inputs))
    for model in (own, shell):
        with pytest.raises(UnsupportedError, match=r"\(Own\) is a subclassed keras.Model.*functional API"):
            graph.flattened(model)
    with pytest.raises(UnsupportedError, match="is not built"):
        graph.flattened(keras.Sequential([K.Dense(2)]))


def test_layers_without_config_are_refused_by_name():
    class NoConfig(K.Layer):
        def __init__(self, size):
            super().__init__(name="mine")
            self.size = size

        def call(self, x):
            return x * self.size

        def get_config(self):
            raise NotImplementedError

    inputs = keras.Input((3,))
    with pytest.raises(UnsupportedError, match=r"layer 'mine' \(NoConfig\) cannot be made again .*get_config"):
        graph.flattened(keras.Model(inputs, NoConfig(2)(inputs)))


def test_chains_find_patterns_and_respect_branches():
    walked = Graph.of(nested())
    found = graph.find(walked, "conv_bn_activation")
    assert [[c.name for c in chain] for chain in found] == [["conv", "norm", "act"]] * 2
    assert [[c and c.name for c in chain] for chain in graph.find(walked, "depthwise_bn_activation")] == [
        ["tail_conv", None, None]
    ]
    assert [chain[0].kind for chain in graph.find(walked, "residual_add")] == ["Add"]
    assert graph.chains(walked, Role.CONVOLUTION, Role.ACTIVATION) == ()
    assert len(graph.chains(walked, Role.CONVOLUTION, Optional(Role.NORMALIZATION))) == 3


@pytest.mark.parametrize(
    ("layer", "role"),
    [
        (K.LSTM(2), "recurrent"),
        (K.MultiHeadAttention(1, 2), "attention"),
        (K.MaxPooling2D(), "pooling"),
        (K.Concatenate(), "concat"),
        (K.Conv2DTranspose(1, 1), "transposed convolution"),
        (K.LayerNormalization(), "other normalization"),
        (K.Rescaling(2.0), "other"),
    ],
)
def test_roles(layer, role):
    assert graph.role(layer) == role

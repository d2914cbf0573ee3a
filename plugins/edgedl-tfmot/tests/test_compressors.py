"""The steps of kind "tfmot" in a recipe: Keras 3 in, Keras 3 out, and what is refused before TFMOT starts."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgedl import compression, recipes
from edgedl.errors import InputError, UnsupportedError, WorkerError
from edgedl.fitting.samples import TrainingData
from edgedl_tfmot import process

TRAINING = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 32}


def compress(model, samples, said=None, folder=None, **step):
    data = TrainingData(inputs={"image": samples[0]}, targets={"kind": samples[1]})
    recipe = recipes.from_table({"step": [{"kind": "tfmot", **step}]})
    return compression.run(model, recipe, data, say=(said if said is not None else []).append, folder=folder)


@pytest.mark.parametrize(("channels", "setting"), [(8, "0"), (16, None)])
def test_tfmot_computes_as_its_users_have_it_but_where_that_corrupts_memory(channels, setting, monkeypatch):
    import keras

    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")  # as in the worker
    started = []

    def ended(command, env, **_):
        started.append(env)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(process.subprocess, "run", ended)
    image = keras.Input((4, 4, channels), name="image")
    short = keras.layers.Conv2D(2, 1, strides=2)(image)
    model = keras.Model(image, keras.layers.Flatten(name="kind")(short))
    with pytest.raises(WorkerError, match="ended with 1"):
        compress(model, (np.zeros((4, 4, 4, channels), np.float32), np.zeros((4, 8))), method="qat", training=TRAINING)
    assert [env.get("TF_ENABLE_ONEDNN_OPTS") for env in started] == [setting]


def test_prune_gives_the_same_model_with_zeros(cnn, samples):
    before, said = [w.copy() for w in cnn.get_weights()], []
    made = compress(cnn, samples, said, method="prune", sparsity=0.8, match="conv*", training=TRAINING)
    assert all((a == b).all() for a, b in zip(before, cnn.get_weights(), strict=True))
    assert [layer.name for layer in made.layers] == [layer.name for layer in cnn.layers]
    assert type(made.get_layer("inner")).__name__ == "Functional"
    for layer in (made.get_layer("conv"), made.get_layer("inner").get_layer("conv")):
        assert (layer.get_weights()[0] == 0).mean() == pytest.approx(0.8, abs=2e-3)
    assert (made.get_layer("kind").get_weights()[0] != 0).all()
    assert (made.get_layer("kind").get_weights()[0] != cnn.get_layer("kind").get_weights()[0]).any()  # trained
    assert any("80.0" in line and "2 of 4 layers" in line for line in said)
    assert "TF_USE_LEGACY_KERAS" not in os.environ


def test_qat_gives_weights_on_the_grid_and_tfmots_own_file(samples, tmp_path):
    import keras
    from ai_edge_litert.interpreter import Interpreter

    nn = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 4), name="image")
    x = nn.ReLU()(nn.BatchNormalization()(nn.Conv2D(8, 3, use_bias=False, name="conv")(image)))
    plain = keras.Model(image, nn.Dense(4, activation="softmax", name="kind")(nn.Flatten()(x)))
    said = []
    made = compress(plain, samples, said, tmp_path, method="qat", training={**TRAINING, "epochs": 4})
    kernel = made.get_layer("conv").get_weights()[0]
    codes = kernel / np.abs(kernel).max((0, 1, 2)) * 127
    np.testing.assert_allclose(codes, codes.round(), atol=1e-3)
    assert "normalization" in " ".join(layer.name for layer in made.layers)
    path = Path(next(line for line in said if "own int8 file" in line).rpartition(": ")[2])
    interpreter = Interpreter(str(path))
    runner = interpreter.get_signature_runner()
    answers = np.concatenate([runner(image=samples[0][i : i + 1])["kind"] for i in range(32)])
    assert np.abs(answers - made(samples[0][:32])).max() < 0.1
    held = [d["dtype"] for d in interpreter.get_tensor_details() if len(d["shape"]) > 1]
    assert sum(d is np.int8 for d in held) > len(held) / 2


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"method": "prune"}, "TFMOT's prune trains; give training"),
        ({"method": "qat", "training": {"patience": 2}}, "TFMOT's training has no patience"),
        ({"method": "qat", "training": {"distill": {}}}, "TFMOT's training has no distill"),
        ({"method": "prune", "sparsity": 1.0}, "sparsity must be in (0, 1), got 1.0"),
        ({"method": "prune", "m_by_n": [4, 4]}, "m_by_n must be [m, n]"),
        ({"method": "prune", "m_by_n": [2, 4], "sparsity": 0.8}, "m_by_n says how many go, at once: leave sparsity, "),
        ({"method": "cluster", "clusters": 2, "preserve_sparsity": True}, "clusters must be 3 or more, got 2"),
        ({"method": "pruen"}, "did you mean 'prune'"),
    ],
)
def test_steps_refuse_what_tfmot_cannot(cnn, samples, step, message):
    with pytest.raises(InputError, match=r"recipe: step 1 \(tfmot\)") as refused:
        compress(cnn, samples, **step)
    assert message in str(refused.value)


def test_data_without_labels_is_refused(cnn, samples):
    recipe = recipes.from_table({"step": [{"kind": "tfmot", "method": "qat", "training": TRAINING}]})
    data = TrainingData(inputs={"image": samples[0]}, targets={})
    with pytest.raises(InputError, match="the data has none for kind"):
        compression.run(cnn, recipe, data)


def _layers(keras):
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    yield Own(name="mine"), "layer 'mine' (Own) is not one of Keras's own"
    yield keras.layers.Lambda(lambda x: x, name="code"), "layer 'code' (Lambda) is not one of Keras's own"
    yield keras.layers.Activation("hard_sigmoid", name="gate"), "layer 'gate': Keras 2 has no activation 'hard_sigmoid'"


def test_layers_without_a_keras_2_form_are_named(samples):
    import keras

    for layer, message in _layers(keras):
        image = keras.Input((8, 8, 4), name="image")
        out = keras.layers.Dense(4, name="kind")(keras.layers.Flatten()(layer(image)))
        with pytest.raises(UnsupportedError) as refused:
            compress(keras.Model(image, out), samples, method="cluster", clusters=4)
        assert message in str(refused.value)


def test_masks_are_refused_with_what_to_do(samples):
    import keras

    nn = keras.layers
    words = keras.Input((6,), dtype="int32", name="words")
    memory = nn.LSTM(3, name="memory")(nn.Embedding(9, 4, mask_zero=True)(words))
    model = keras.Model(words, nn.Dense(4, name="kind")(memory))
    with pytest.raises(UnsupportedError, match=r"layer 'memory' \(LSTM\) takes a mask .*take edgedl's own kind"):
        compress(model, samples, method="cluster", clusters=4)

"""Small Keras models as TFLite files, each converted once a session."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edgedl.types import ExportOptions, ExportResult
from edgedl_onnx.exporter import OnnxExporter

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _cnn(nn, keras):
    x = keras.Input((12, 12, 3), batch_size=1, name="image")
    h = nn.BatchNormalization()(nn.Conv2D(16, 3, padding="same", strides=2)(x))
    a = h = nn.ReLU(6.0)(h)
    h = nn.ReLU()(nn.BatchNormalization()(nn.DepthwiseConv2D(3, padding="same")(h)))
    h = nn.Add()([nn.Conv2D(16, 3, padding="same")(h), a])
    h = nn.GlobalAveragePooling2D()(nn.ReLU()(h))
    return keras.Model(x, nn.Dense(10, activation="softmax", name="scores")(h))


def _two(nn, keras):
    image = keras.Input((8, 8, 3), batch_size=1, name="zebra")
    extra = keras.Input((5,), batch_size=1, name="ant")
    h = nn.Flatten()(nn.Conv2D(4, 3, activation="relu")(image))
    h = nn.Concatenate()([h, nn.Dense(8, activation="tanh")(extra)])
    outputs = {"yak": nn.Dense(3, name="yak")(h), "bee": nn.Dense(2, activation="sigmoid", name="bee")(h)}
    return keras.Model([image, extra], outputs)


def _pooled(nn, keras):
    # The converter drops the Flatten: the Dense gets four axes.
    x = keras.Input((8, 8, 3), batch_size=1, name="x")
    h = nn.AveragePooling2D(8)(nn.Conv2D(16, 3, padding="same", activation="relu")(x))
    return keras.Model(x, nn.Dense(5)(nn.Flatten()(h)))


def _attention(nn, keras):
    x = keras.Input((8, 16), batch_size=1, name="x")
    h = nn.LayerNormalization()(x)
    h = nn.Add()([nn.MultiHeadAttention(2, 8)(h, h), x])
    return keras.Model(x, nn.Dense(4)(nn.Dense(32, activation="gelu")(h)))


def _shown_twice(nn, keras):
    x = keras.Input((6,), batch_size=1, name="x")
    return keras.Model(x, [nn.Dense(3, name="dense")(x), nn.Identity(name="same")(x)])


def _unused_input(nn, keras):
    used, unused = (keras.Input((4,), batch_size=1, name=n) for n in ("used", "unused"))
    return keras.Model([used, unused], nn.Dense(3)(used))


def _tokens(nn, keras):
    x = keras.Input((7,), batch_size=1, dtype="int32", name="tokens")
    return keras.Model(x, nn.Dense(3)(nn.GlobalAveragePooling1D()(nn.Embedding(50, 16)(x))))


def _chain(shape, *layers):
    def build(nn, keras):
        x = h = keras.Input(shape, batch_size=1, name="x")
        for layer in layers:
            h = layer(nn)(h)
        return keras.Model(x, h)

    return build


def _image(activation):
    layers = (lambda nn: nn.Conv2D(8, 3), lambda nn: nn.Activation(activation), lambda nn: nn.Conv2D(4, 3))
    return _chain((8, 8, 4), *layers)


MODELS = {
    "cnn": _cnn,
    "two": _two,
    "pooled": _pooled,
    "attention": _attention,
    "shown_twice": _shown_twice,
    "unused_input": _unused_input,
    "tokens": _tokens,
    "dense": _chain((64,), lambda nn: nn.Dense(64, activation="relu"), lambda nn: nn.Dense(4)),
    "tiny": _chain((4,), lambda nn: nn.Dense(5, activation="relu"), lambda nn: nn.Dense(3)),
    "lstm": _chain((12, 6), lambda nn: nn.LSTM(16), lambda nn: nn.Dense(4, activation="softmax")),
    "gru": _chain((12, 6), lambda nn: nn.GRU(16), lambda nn: nn.Dense(4, activation="softmax")),
    "lstm_unrolled": _chain((5, 6), lambda nn: nn.LSTM(8, unroll=True), lambda nn: nn.Dense(4)),
    "gru_unrolled": _chain((5, 6), lambda nn: nn.GRU(8, unroll=True), lambda nn: nn.Dense(4)),
    "conv1d": _chain(
        (32, 4),
        lambda nn: nn.Conv1D(32, 5, padding="causal", dilation_rate=2, activation="relu"),
        lambda nn: nn.Conv1D(32, 5, strides=2),
        lambda nn: nn.GlobalMaxPooling1D(),
        lambda nn: nn.Dense(4),
    ),
    "gelu": _image("gelu"),
    "hard_silu": _image("hard_silu"),
    "hard_sigmoid": _image("hard_sigmoid"),
    "hard_tanh": _image("hard_tanh"),
    "decoder": _chain(
        (6, 6, 8),
        lambda nn: nn.UpSampling2D(2, interpolation="bilinear"),
        lambda nn: nn.Conv2DTranspose(8, 3, strides=2, padding="same", activation="leaky_relu"),
        lambda nn: nn.MaxPooling2D(2),
        lambda nn: nn.Conv2D(4, 3, activation="silu"),
    ),
}


@cache
def build(name):
    import keras

    keras.utils.set_random_seed(0)
    model = MODELS[name](keras.layers, keras)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "bias":  # the converter drops those that are all zero
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def _representative(model):
    rng = np.random.default_rng(1)
    for _ in range(20):
        shapes = {v.name: (1, *v.shape[1:]) for v in model.inputs}
        whole = {v.name: "int" in v.dtype for v in model.inputs}
        yield {
            n: rng.integers(0, 50, s).astype(np.int32) if whole[n] else rng.standard_normal(s).astype(np.float32)
            for n, s in shapes.items()
        }


def convert(model, scheme, io="float"):
    import tensorflow as tf

    sets = tf.lite.OpsSet
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme.startswith("static"):
        converter.representative_dataset = lambda: _representative(model)
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [wide if scheme.endswith("16") else sets.TFLITE_BUILTINS_INT8]
    if io != "float":
        converter.inference_input_type = converter.inference_output_type = getattr(tf, io)
    return converter.convert()


@pytest.fixture(scope="session")
def tflite(tmp_path_factory):
    """(model's name, scheme, io) -> path of the TFLite file."""
    folder = tmp_path_factory.mktemp("tflite")

    @cache
    def make(name: str, scheme: str = "fp32", io: str = "float") -> Path:
        path = folder / f"{name}-{scheme}-{io}.tflite"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter's own
            path.write_bytes(convert(build(name), scheme, io))
        return path

    return make


@pytest.fixture
def export(tflite, tmp_path):
    """(model's name, scheme, ...) -> ExportResult of the ONNX file made from the model's TFLite file."""

    def make(name, scheme="fp32", *, io="float", out="model.onnx", calibration=None, **options) -> ExportResult:
        return OnnxExporter().export(
            Path("model.keras"),
            tmp_path / out,
            scheme=scheme,
            source=tflite(name, scheme, io),
            calibration=calibration,
            options=ExportOptions(io=io, **options),
        )

    return make

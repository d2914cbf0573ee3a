"""A tiny classifier of 8x8 gray images into 3 classes as .tflite and .onnx, and pixels to draw golden inputs from."""

import warnings
from pathlib import Path

import numpy as np

LABELS = ["round", "square", '$other "one"\'s']
STEPS = """
[[preprocess]]
op = "grayscale"

[[preprocess]]
op = "resize"
height = 8
width = 8

[[preprocess]]
op = "scale"
factor = 0.00392156862745098
"""


def write_tflite(path, io=None):
    """float32 inputs and outputs, or of the TensorFlow type `io`, int8 inside."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    image = keras.Input(batch_shape=(1, 8, 8, 1), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, padding="same", activation="relu")(image))
    converter = tf.lite.TFLiteConverter.from_keras_model(
        keras.Model(image, keras.layers.Dense(3, activation="softmax", name="kind")(x))
    )
    if io:
        rng = np.random.default_rng(0)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([rng.random((1, 8, 8, 1), np.float32)] for _ in range(8))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow's about the statistics of quantized inputs
        path.write_bytes(converter.convert())
    return path


def write_onnx(path, inputs=("image",), outputs=("kind",), dtype=np.float32):
    """A dense layer on the flat sample of the first input for every output; more inputs are added to it."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(1)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Cast", [name], [f"{name}_real"], to=onnx.TensorProto.FLOAT) for name in inputs]
    total = f"{inputs[0]}_real"
    for name in inputs[1:]:
        nodes.append(helper.make_node("Add", [total, f"{name}_real"], [f"{name}_sum"]))
        total = f"{name}_sum"
    nodes.append(helper.make_node("Flatten", [total], ["flat"]))
    weights = []
    for name in outputs:
        weights.append(numpy_helper.from_array(rng.standard_normal((64, 3)).astype(np.float32) / 8, f"{name}_weights"))
        nodes.append(helper.make_node("MatMul", ["flat", f"{name}_weights"], [name]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, [1, 8, 8, 1]) for name in inputs],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in outputs],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return path


def write_data(folder: Path, steps=STEPS):
    """data.toml on RGB pixels of 12x10, with labels and the steps to an 8x8 gray image."""
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 256, (12, 12, 10, 3), dtype=np.uint8), np.arange(12) % 3
    np.savez(folder / "data.npz", x=x, y=y)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (folder / "data.toml").write_text(f'data = "data.npz"\nlabels = "labels.txt"\n{steps}')
    return folder / "data.toml"

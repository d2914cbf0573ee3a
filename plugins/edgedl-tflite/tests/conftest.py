"""Models, calibration folders and exports that several test files share; tflite-runtime in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

IN_TFLITE_RUNTIME = """
import json, sys
import numpy as np
from tflite_runtime.interpreter import Interpreter
file, folder = sys.argv[1:]
interpreter = Interpreter(file, num_threads=1)
runner = interpreter.get_signature_runner()
names = runner.get_input_details()
arrays = {n: np.load(f"{folder}/{n}.npy") for n in names}
answers = [runner(**{n: a[i:i + 1] for n, a in arrays.items()}) for i in range(len(next(iter(arrays.values()))))]
print(json.dumps({n: np.concatenate([a[n] for a in answers]).tolist() for n in answers[0]}))
"""


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[[Mapping[str, np.ndarray]], Path]:
    def write(arrays):
        folder = tmp_path_factory.mktemp("data")
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return folder

    return write


@pytest.fixture(scope="session")
def export(tmp_path_factory, folder_of):
    """Save a Keras model, export it. Gives `path`, `notes` and, on `data`, litert's outputs as real numbers."""
    from edgedl.types import ExportOptions
    from edgedl_tflite.exporter import TFLiteExporter

    def run(model, scheme, data=None, *, calibrate=True, **options):
        folder = tmp_path_factory.mktemp("export")
        model.save(folder / "model.keras")
        calibration = folder_of(data) if data is not None and calibrate else None
        result = TFLiteExporter().export(
            folder / "model.keras",
            folder / "out.tflite",
            scheme=scheme,
            source=None,
            calibration=calibration,
            options=ExportOptions(**options),
        )
        return SimpleNamespace(path=result.path, notes=" | ".join(result.notes), names=result.names)

    return run


@pytest.fixture(scope="session")
def litert():
    """litert's outputs by name, one sample a call; floats go in as real numbers, integers as they are."""
    from ai_edge_litert.interpreter import Interpreter

    def run(path, data):
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        signature = interpreter._get_full_signature_list()["serving_default"]
        details = {d["index"]: d for d in interpreter.get_input_details() + interpreter.get_output_details()}
        answers = []
        for i in range(len(next(iter(data.values())))):
            for name, index in signature["inputs"].items():
                detail, value = details[index], data[name][i : i + 1]
                scale, zero = detail["quantization"]
                if scale and value.dtype != detail["dtype"]:
                    limits = np.iinfo(detail["dtype"])
                    value = np.clip(np.rint(value / scale) + zero, limits.min, limits.max)
                interpreter.set_tensor(index, value.astype(detail["dtype"]))
            interpreter.invoke()
            row = {}
            for name, index in signature["outputs"].items():
                scale, zero = details[index]["quantization"]
                value = interpreter.get_tensor(index)
                row[name] = (value.astype(np.float32) - zero) * scale if scale else value
            answers.append(row)
        return {n: np.concatenate([a[n] for a in answers]) for n in answers[0]}

    return run


@pytest.fixture(scope="session")
def tflite_runtime(folder_of):
    """The outputs of tflite-runtime by name, or a skip where this interpreter cannot hold it."""

    def run(path, data):
        command = [sys.executable, "-c", IN_TFLITE_RUNTIME, str(path), str(folder_of(data))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "No module named" in done.stderr:
            pytest.skip("tflite-runtime is not installed")
        assert done.returncode == 0, done.stderr[-1000:]
        return {n: np.array(v) for n, v in json.loads(done.stdout).items()}

    return run


@pytest.fixture(scope="session")
def raw_outputs():
    """(runtime, files) -> a hash of each file's raw outputs, from a process of its own; None: not installed."""

    def run(runtime, *files):
        command = [sys.executable, Path(__file__).with_name("raw_outputs.py"), runtime, *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "No module named" in done.stderr:
            return None
        assert done.returncode == 0, done.stderr[-1000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def cnn():
    """Batch norm, depthwise, a residual; weights large enough for every scheme."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    y = layers.Conv2D(16, 3, padding="same")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    model = keras.Model(image, layers.Dense(4, activation="softmax", name="probs")(layers.Flatten()(x)), name="cnn")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights([gamma * 1.3, beta + 0.1, mean + 0.05, variance * 0.7])
    return model


@pytest.fixture(scope="session")
def images():
    return {"image": np.random.default_rng(0).standard_normal((40, 8, 8, 3)).astype(np.float32)}

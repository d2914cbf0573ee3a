"""One worker pool for the whole session, the command line in-process, and tiny models and data."""

import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices on a busy machine: threads wait for one another

import numpy as np
import pytest

SYSROOTS = os.environ.get("EDGEDL_DEVICES_FOLDER") or str(
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgedl" / "devices"
)
SETUP = "scripts/setup --devices"  # in a skip's reason: what installs the tool, and where CI=true it is a failure
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


class NoToolMissing:
    """Where CI=true, a test that is skipped for want of what `SETUP` installs has failed."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        if report.skipped and SETUP in str(report.longrepr) and os.environ.get("CI") == "true":
            report.outcome = "failed"
        return report


def pytest_configure(config):
    config.pluginmanager.register(NoToolMissing())  # for the tests of plugins too


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["EDGEDL_DEVICES_FOLDER"] = str(tmp_path_factory.mktemp("devices"))  # no test is emulated by chance
    yield
    from edgedl import worker

    worker.close()


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(capsys):
    """Run one command in this process: `cli("export", ...)` -> Answer(code, out, err)."""
    from edgedl.cli import invoke

    def call(*arguments):
        capsys.readouterr()
        code = invoke([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def sysroots():
    """This machine's sysroots for the rest of a module; skips where that for arm64 is not set up."""
    from edgedl import devices

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEDL_DEVICES_FOLDER", SYSROOTS)
        missing = {row["name"]: row["missing"] for row in devices.overview()}["qemu-arm64"]
        if missing:
            pytest.skip(f"needs {missing}: {SETUP}")
        yield


@pytest.fixture
def shared():
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def schema():
    """A shipped JSON Schema by name."""
    folder = Path(__file__).parents[1] / "edgedl" / "schemas"
    return lambda name: json.loads((folder / f"{name}.json").read_text())


def write_model(path, seed=0):
    """A small classifier of 8x8 images into 3 classes, untrained."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax", name="kind"),
        ]
    )
    model.save(path)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "small.keras")


HELD = """
import os, time
from pathlib import Path
import keras

@keras.saving.register_keras_serializable("held")
class Held(keras.layers.Layer):
    def call(self, x):
        asked = Path(os.path.dirname(os.environ.get("EDGEDL_PROGRESS", "")), "request.json")
        hold = Path("hold")
        if hold.exists() and asked.exists() and hold.read_text() in asked.read_text():
            Path("part").write_text(str(os.getpid()))
            Path("part").rename("held")
            time.sleep(300)
        return x
"""


@pytest.fixture(scope="session")
def held(tmp_path_factory):
    """A model that keeps a worker waiting in the call whose request has the text of the file `hold` in it.

    Its module held.py, for --custom-objects, lies beside it.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    folder = tmp_path_factory.mktemp("held")
    (folder / "held.py").write_text(HELD)
    space = {"__name__": "held"}
    exec(HELD, space)  # noqa: S102  our own text
    keras.Sequential([keras.Input((8, 8, 1), name="image"), space["Held"]()]).save(folder / "held.keras")
    keras.saving.get_custom_objects().pop("held>Held")
    return folder / "held.keras"


def when_held(folder, process):
    """The process id of the worker that waits in a held model, whose command runs in `folder`."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if (folder / "held").exists():
            return int((folder / "held").read_text())
        time.sleep(0.01)
    return pytest.fail(f"nothing was held: {process.communicate()}")


def samples(count, seed=0, classes=3):
    """Images whose class is the third that is bright: x (count, 8, 8, 1) uint8, y (count,) int64."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = rng.integers(0, 60, (count, 8, 8, 1))
    for i, label in enumerate(y):
        x[i, :, 3 * label : 3 * label + 2] += 180
    return x.astype(np.uint8), y


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """train.npz and test.npz of such images."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 300, 0), ("test", 400, 1)):
        x, y = samples(count, seed)
        np.savez_compressed(folder / f"{name}.npz", x=x, y=y)
    return folder


def _network(keras):
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(3, activation="softmax", name="kind")(x))


def _two_by_two(keras):
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    return keras.Model(
        [left, right], {"angle": keras.layers.Dense(1, name="angle")(both), "kind": keras.layers.Dense(3)(both)}
    )


def _open(keras):
    image = keras.Input((None, None, 1), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3, padding="same")(image))
    return keras.Model(image, x)


@pytest.fixture(scope="session")
def tflites(tmp_path_factory):
    """float.tflite, int8.tflite (int8 inputs and outputs), pixels.tflite (uint8 ones), two.tflite, open.tflite.

    Not by edgedl's exporter: what it packs may come from anywhere.
    """
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("tflite")
    keras.utils.set_random_seed(0)

    def convert(name, model, io=None):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if io:
            rng = np.random.default_rng(0)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([rng.random((1, 8, 8, 1), np.float32)] for _ in range(8))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = io
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TensorFlow's about the statistics of quantized inputs
            (folder / f"{name}.tflite").write_bytes(converter.convert())

    network = _network(keras)
    convert("float", network)
    convert("int8", network, tf.int8)
    convert("pixels", network, tf.uint8)
    convert("two", _two_by_two(keras))
    convert("open", _open(keras))
    return folder

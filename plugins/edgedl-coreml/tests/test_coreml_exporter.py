"""The exporter `coreml`: what is in the file, since nothing here can run it."""

import numpy as np
import pytest

from edgedl.errors import InputError, UnsupportedError
from edgedl.types import ExportOptions

pytest.importorskip("coremltools", reason="needs: pip install edgedl-coreml")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two inputs, two outputs by name, the order of neither alphabetical."""
    import keras

    keras.utils.set_random_seed(0)
    image, extra = keras.Input((8, 8, 1), name="zebra"), keras.Input((4,), name="ant")
    h = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, activation="relu", name="conv")(image))
    h = keras.layers.Concatenate()([h, extra])
    outputs = {"yak": keras.layers.Dense(3, name="yak")(h), "bee": keras.layers.Dense(2, name="bee")(h)}
    path = tmp_path_factory.mktemp("coreml") / "two.keras"
    keras.Model([image, extra], outputs).save(path)
    return path


def export(model, out, scheme="fp32", **options):
    from edgedl_coreml.exporter import CoreMLExporter

    given = {"scheme": scheme, "source": None, "calibration": None, "options": ExportOptions(**options)}
    return CoreMLExporter().export(model, out, **given)


def spec_of(path):
    from coremltools.proto import Model_pb2

    found = Model_pb2.Model()
    found.ParseFromString(path.read_bytes())
    return found


def test_file_has_the_model_s_names_shapes_and_weights(model, tmp_path):
    import keras

    export(model, tmp_path / "a.mlmodel")
    export(model, tmp_path / "b.mlmodel")
    assert (tmp_path / "a.mlmodel").read_bytes() == (tmp_path / "b.mlmodel").read_bytes()
    spec = spec_of(tmp_path / "a.mlmodel")
    shapes = {i.name: list(i.type.multiArrayType.shape) for i in spec.description.input}
    assert shapes == {"zebra": [1, 8, 8, 1], "ant": [1, 4]}
    assert {o.name for o in spec.description.output} == {"yak", "bee"}
    (conv,) = (layer.convolution for layer in spec.neuralNetwork.layers if layer.WhichOneof("layer") == "convolution")
    kernel = keras.saving.load_model(model).get_layer("conv").kernel.numpy()
    found = np.array(conv.weights.floatValue, np.float32).reshape(8, 1, 3, 3)
    assert np.array_equal(found, kernel.transpose(3, 2, 0, 1))
    by_output = {layer.output[0]: layer for layer in spec.neuralNetwork.layers}
    for name in ("yak", "bee"):
        kernel = keras.saving.load_model(model).get_layer(name).kernel.numpy()
        found = np.array(by_output[name].batchedMatmul.weights.floatValue, np.float32)
        assert np.array_equal(found.reshape(kernel.T.shape), kernel.T)


def test_fewer_bits_are_in_the_file(model, tmp_path):
    sizes = {}
    for scheme in ("fp32", "fp16", "weight_only_wi8_afp32"):
        export(model, tmp_path / f"{scheme}.mlmodel", scheme)
        (conv,) = (
            layer.convolution
            for layer in spec_of(tmp_path / f"{scheme}.mlmodel").neuralNetwork.layers
            if layer.WhichOneof("layer") == "convolution"
        )
        weights = conv.weights
        sizes[scheme] = len(weights.floatValue), len(weights.float16Value), len(weights.rawValue)
    assert sizes == {"fp32": (72, 0, 0), "fp16": (0, 144, 0), "weight_only_wi8_afp32": (0, 0, 72)}


def test_what_it_cannot_do_is_refused_by_name(model, tmp_path):
    import keras

    out = tmp_path / "a.mlmodel"
    with pytest.raises(UnsupportedError, match="cannot do scheme 'static_wi8_ai8'; it can: fp32, fp16, weight_only"):
        export(model, out, "static_wi8_ai8")
    with pytest.raises(UnsupportedError, match="has no --io int8; leave it out"):
        export(model, out, io="int8")
    with pytest.raises(UnsupportedError, match="has no --embed-preprocessing"):
        export(model, out, embed_preprocessing=({"op": "scale"},))
    free = keras.Input((None, 4), name="x")
    keras.Model(free, keras.layers.Dense(2)(free)).save(tmp_path / "free.keras")
    with pytest.raises(InputError, match=r"input 'x' has free sizes \(None, None, 4\): fix them with --shape x=1,T,4"):
        export(tmp_path / "free.keras", out)
    with pytest.raises(InputError, match=r"--shape x=1,5,3: the model takes \(None, None, 4\)"):
        export(tmp_path / "free.keras", out, shapes={"x": (1, 5, 3)})
    with pytest.raises(InputError, match=r"--shape x=1,5: the model takes \(None, None, 4\)"):
        export(tmp_path / "free.keras", out, shapes={"x": (1, 5)})
    with pytest.raises(InputError, match=r"--shape y: no such input; the model has x"):
        export(tmp_path / "free.keras", out, shapes={"y": (1, 5, 4)})
    assert not out.exists()
    export(tmp_path / "free.keras", out, shapes={"x": (1, 5, 4)})
    assert list(spec_of(out).description.input[0].type.multiArrayType.shape) == [1, 5, 4]


def test_a_model_that_takes_a_dictionary_is_fed_one(tmp_path):
    import keras

    inputs = {name: keras.Input((size,), name=name) for name, size in (("zebra", 4), ("ant", 2))}
    hidden = keras.layers.Concatenate()([inputs["zebra"], inputs["ant"]])
    keras.Model(inputs, keras.layers.Dense(2, name="out")(hidden)).save(tmp_path / "m.keras")
    export(tmp_path / "m.keras", tmp_path / "m.mlmodel")
    spec = spec_of(tmp_path / "m.mlmodel")
    shapes = {i.name: list(i.type.multiArrayType.shape) for i in spec.description.input}
    assert shapes == {"ant": [1, 2], "zebra": [1, 4]}
    (joined,) = (layer for layer in spec.neuralNetwork.layers if layer.WhichOneof("layer") == "concatND")
    assert list(joined.input) == ["zebra", "ant"]


def test_names_are_the_model_s_whatever_tensorflow_calls_them(tmp_path):
    import keras

    given = [keras.Input((2,), name=name) for name in ("1.b", "_c")]
    outputs = {name: keras.layers.Dense(i, name=f"d{i}")(given[i - 1]) for i, name in ((1, "Identity_1"), (2, "zz"))}
    keras.Model(given, outputs).save(tmp_path / "m.keras")
    export(tmp_path / "m.keras", tmp_path / "m.mlmodel")
    spec = spec_of(tmp_path / "m.mlmodel")
    assert {i.name for i in spec.description.input} == {"1.b", "_c"}
    assert [o.name for o in spec.description.output] == ["Identity_1", "zz"]
    ends = [(layer.input[0], layer.output[0]) for layer in spec.neuralNetwork.layers]
    assert ends == [("1.b", "Identity_1"), ("_c", "zz")]
    image = keras.Input((4, 4, 1), name="x")
    hidden = keras.layers.Conv2D(1, 3)(image)  # between two operators that coremltools calls transpose_0 and _1
    keras.Model(image, {"transpose_0": hidden, "transpose_1": keras.ops.relu(hidden)}).save(tmp_path / "m.keras")
    export(tmp_path / "m.keras", tmp_path / "m.mlmodel")
    made = [name for layer in spec_of(tmp_path / "m.mlmodel").neuralNetwork.layers for name in layer.output]
    assert len(made) == len(set(made))


def test_branches_of_a_network_use_its_names(tmp_path, monkeypatch):
    (tmp_path / "choosing.py").write_text(
        "import keras\n"
        "class Choice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return keras.ops.cond(keras.ops.sum(x) > 0, lambda: x * 2, lambda: x - 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import choosing
    import keras

    keras.Sequential([keras.Input((2,), name="x"), choosing.Choice(name="out")]).save(tmp_path / "m.keras")
    export(tmp_path / "m.keras", tmp_path / "m.mlmodel", custom_objects="choosing")
    branch = spec_of(tmp_path / "m.mlmodel").neuralNetwork.layers[-1].branch
    for network in (branch.ifBranch, branch.elseBranch):
        assert "x" in {name for layer in network.layers for name in layer.input}
        assert network.layers[-1].output == ["out"]


def test_what_coremltools_fails_on_is_refused_by_name(tmp_path):
    import keras

    loop = keras.Sequential([keras.Input((3, 2), name="x"), keras.layers.GRU(2, name="gru"), keras.layers.Dense(1)])
    loop.save(tmp_path / "loop.keras")
    with pytest.raises(UnsupportedError, match="layers that run in a loop: gru; build them with unroll=True"):
        export(tmp_path / "loop.keras", tmp_path / "a.mlmodel")
    flat = keras.Sequential([keras.Input((3, 2), name="x"), keras.layers.GRU(2, name="gru", unroll=True)])
    flat.save(tmp_path / "flat.keras")
    export(tmp_path / "flat.keras", tmp_path / "a.mlmodel")
    erf = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Activation("gelu")])
    erf.save(tmp_path / "erf.keras")
    with pytest.raises(UnsupportedError, match=r"cannot do this model: NotImplementedError: .*'Erfc' not implemented"):
        export(tmp_path / "erf.keras", tmp_path / "b.mlmodel")


def test_it_says_that_nothing_ran_the_file_and_no_package_takes_it(cli, model, tmp_path):
    made = export(model, tmp_path / "two.mlmodel", "fp16")
    assert made.notes == ("Core ML runs on Apple's systems alone: nothing here has run this file",)
    answer = cli("package", tmp_path / "two.mlmodel", "--platform", "zip", "-o", tmp_path / "out")
    assert answer.code == 4, answer.err
    assert not (tmp_path / "out").exists()

import zlib
from pathlib import Path

import numpy as np
import pytest

from edgedl_tflite import flatbuffer, slim
from edgedl_tflite.describe import describe

DATA = Path(__file__).parents[4] / "shared/data"
RUNTIMES = ("litert", "litert, builtin", "tflite-runtime", "tflm")
CNN = ("fp32", "fp16", "dynamic_wi8_afp32", "weight_only_wi8_afp32", "static_wi8_ai8", "static_wi8_ai16")
LSTM = ("lstm fp32", "lstm static_wi8_ai8")
PUBLISHED = {  # file: its size, plain and compressed; of the first two, what FACTS section 4 reached
    "mlperf_tiny/ic/pretrainedResnet_quant.tflite": (91_520, 77_469),
    "mlperf_tiny/kws/kws_ref_model.tflite": (42_456, 29_080),
    "mlperf_tiny/ad/ad01_int8.tflite": (276_976, 186_689),
    "mobilenet/mobilenet_v1_0.25_128_quant.tflite": (525_598, 396_415),
    "mobilenet/keras_lstm_mnist_ptq.tflite": (13_928, 10_604),
    "tflm_examples/trained_lstm.tflite": (41_240, 36_913),
    "tflm_examples/micro_speech_quantized.tflite": (18_800, 15_193),
}
NOT_IN_TFLM = {"fp16", "dynamic_wi8_afp32", "mobilenet/mobilenet_v1_0.25_128_quant.tflite"}  # no kernels


def slimmed(path, out):
    """`path` slimmed into `out`. Returns the names it lost."""
    model = flatbuffer.read(path.read_bytes())
    names = slim.slim(model)
    out.write_bytes(flatbuffer.write(model, sharing=True))
    return names


def contents(value):
    """A model's objects as dicts and lists."""
    if hasattr(value, "__dict__"):
        return {k: contents(v) for k, v in vars(value).items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [contents(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def lstm():
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = keras.Input((6, 4), name="x")
    return keras.Model(x, layers.Dense(3, name="y")(layers.LSTM(8, name="memory")(x)))


@pytest.fixture(scope="module")
def plain(export, cnn, images, lstm):
    """Files that were not slimmed, by scheme."""
    sequences = {"x": np.random.default_rng(0).standard_normal((30, 6, 4)).astype(np.float32)}
    made = {scheme: export(cnn, scheme, images, slim=False).path for scheme in CNN}
    return made | {name: export(lstm, name.split()[1], sequences, slim=False).path for name in LSTM}


def check_same_outputs(raw_outputs, runtime, files, folder):
    """Each file of name -> path, slimmed, is smaller and gives the same bytes as before."""
    pairs = []
    for i, path in enumerate(files.values()):
        pairs += [path, folder / f"{i}.tflite"]
        slimmed(*pairs[-2:])
        before, after = (file.read_bytes() for file in pairs[-2:])
        assert len(after) < len(before)
        assert len(zlib.compress(after, 9)) < len(zlib.compress(before, 9))
    found = raw_outputs(runtime, *pairs)
    if found is None:
        pytest.skip(f"{runtime} is not installed")
    for name, before, after in zip(files, found[::2], found[1::2], strict=True):
        assert after == before, name
        assert (before == "cannot run") == (runtime == "tflm" and name in NOT_IN_TFLM), name


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_slim_files_answer_bit_for_bit_as_before(raw_outputs, tmp_path, plain, runtime):
    check_same_outputs(raw_outputs, runtime, plain, tmp_path)


@pytest.mark.real
@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_slim_published_models_answer_bit_for_bit_as_before(raw_outputs, tmp_path, runtime):
    check_same_outputs(raw_outputs, runtime, {name: DATA / name for name in PUBLISHED}, tmp_path)


@pytest.mark.real
@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
@pytest.mark.parametrize("name", PUBLISHED)
def test_slim_published_models_are_smaller_than_ever(tmp_path, name):
    out = tmp_path / "slim.tflite"
    slimmed(DATA / name, out)
    size, compressed = PUBLISHED[name]
    assert out.stat().st_size < size
    assert len(zlib.compress(out.read_bytes(), 9)) < compressed


def test_slim_names_the_tensors_of_a_loop(plain, tmp_path):
    names = slimmed(plain["lstm fp32"], tmp_path / "slim.tflite")
    assert {name.partition(".")[0] for name in names if "." in name} == {"#1", "#2"}  # condition and body


def test_export_slims_unless_told_not_to_and_gives_the_names(export, plain, cnn, images):
    made = export(cnn, "int8", images)
    small, large = describe(str(made.path)), describe(str(plain["static_wi8_ai8"]))
    assert made.path.stat().st_size < 0.9 * plain["static_wi8_ai8"].stat().st_size
    assert (small.inputs, small.outputs) == (large.inputs, large.outputs)
    assert small.ops[0].inputs == ("image",)
    for op, whole in zip(small.ops, large.ops, strict=True):
        assert [made.names.get(n, n) for n in (*op.inputs, *op.outputs)] == [*whole.inputs, *whole.outputs]
    assert (small.metadata["entries"], small.metadata["description"]) == (["TFLITE_METADATA"], "")


def test_slim_drops_what_only_people_read(plain):
    model = flatbuffer.read(plain["static_wi8_ai8"].read_bytes())
    generated, graph = flatbuffer.schema(), model.subgraphs[0]
    graph.tensors[3].quantization.min = graph.tensors[3].quantization.max = [1.0]
    place = flatbuffer.add_buffer(model, b"0.0 or so")
    for name in ("CONVERSION_METADATA", "OfflineMemoryAllocation"):
        model.metadata.append(generated.MetadataT(name=name, buffer=place))
    twin = generated.OperatorCodeT(**vars(model.operatorCodes[graph.operators[1].opcodeIndex]))
    model.operatorCodes.append(twin)
    graph.operators[1].opcodeIndex = len(model.operatorCodes) - 1
    codes = len(model.operatorCodes)
    names = slim.slim(model)
    assert [flatbuffer.text(m.name) for m in model.metadata] == ["TFLITE_METADATA", "OfflineMemoryAllocation"]
    assert bytes(model.buffers[model.metadata[1].buffer].data) == b"0.0 or so"
    assert len(model.operatorCodes) == codes - 1
    assert not any(t.quantization is not None and t.quantization.min is not None for t in graph.tensors)
    assert [flatbuffer.text(t.name) for t in graph.tensors if t.name is not None] == ["image", "probs"]
    assert len(names) == len(graph.tensors) - 2


def test_slim_leaves_blockwise_scales_where_tensors_point_at_them(plain):
    model = flatbuffer.read(plain["fp32"].read_bytes())
    generated, graph = flatbuffer.schema(), model.subgraphs[0]
    scales = generated.TensorT(name="scales", buffer=flatbuffer.add_buffer(model, bytes(8)), shape=np.array([2]))
    graph.tensors.insert(0, generated.TensorT(name="unused", buffer=0))
    graph.tensors.append(scales)
    graph.tensors[2].quantization = generated.QuantizationParametersT(
        detailsType=generated.QuantizationDetails.BlockwiseQuantization,
        details=generated.BlockwiseQuantizationT(scales=len(graph.tensors) - 1, blockSize=32),
    )
    slim.slim(model)
    assert graph.tensors[graph.tensors[2].quantization.details.scales] is scales


def test_sharing_writes_the_same_model_in_fewer_bytes(plain):
    data = plain["lstm fp32"].read_bytes()
    shared = flatbuffer.write(flatbuffer.read(data), sharing=True)
    assert len(shared) < len(data)
    assert contents(flatbuffer.read(shared)) == contents(flatbuffer.read(data))
    assert flatbuffer.write(flatbuffer.read(shared), sharing=True) == shared


def test_sharing_keeps_apart_vectors_of_offsets_with_equal_bytes():
    from flatbuffers.table import Table

    from edgedl_tflite.packing import SharingBuilder

    builder, vectors = SharingBuilder(64), []
    for text in ("first", "other"):
        string = builder.CreateString(text)
        builder.StartVector(4, 1, 4)
        builder.PrependUOffsetTRelative(string)
        vectors.append(builder.EndVector())
    builder.StartObject(2)
    for slot, vector in enumerate(vectors):
        builder.PrependUOffsetTRelativeSlot(slot, vector, 0)
    builder.Finish(builder.EndObject())
    data = bytes(builder.Output())
    root = Table(data, int.from_bytes(data[:4], "little"))
    assert [root.String(root.Vector(root.Offset(4 + 2 * slot))) for slot in (0, 1)] == [b"first", b"other"]

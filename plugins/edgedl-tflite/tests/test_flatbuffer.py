import numpy as np
import pytest

from edgedl_tflite import flatbuffer, slim, weight_only


@pytest.fixture(scope="module")
def file(export, cnn):
    return export(cnn, "weight_only_wi8_afp32").path.read_bytes()


def test_every_constant_lies_on_16_bytes(file):
    model = flatbuffer.schema().Model.GetRootAsModel(file, 0)
    start = np.frombuffer(file, np.uint8).ctypes.data
    places = [
        model.Buffers(i).DataAsNumpy().ctypes.data - start
        for i in range(model.BuffersLength())
        if model.Buffers(i).DataLength()
    ]
    assert len(places) > 5
    assert all(place % 16 == 0 for place in places)


def test_write_keeps_what_was_read(file):
    again = flatbuffer.write(flatbuffer.read(file))
    assert flatbuffer.write(flatbuffer.read(again)) == again
    assert flatbuffer.weight_bytes(flatbuffer.read(again)) == flatbuffer.weight_bytes(flatbuffer.read(file))


def test_merge_constants_makes_equal_tensors_one_and_drops_the_unused(file):
    model = flatbuffer.read(file)
    graph = model.subgraphs[0]
    conv = next(op for _, op in flatbuffer.operators(model) if flatbuffer.op_name(model, op) == "CONV_2D")
    bias = graph.tensors[conv.inputs[2]]
    twin = flatbuffer.schema().TensorT(name="twin", shape=bias.shape, type=bias.type, hasRank=True)
    twin.buffer = flatbuffer.add_buffer(model, bytes(flatbuffer.constant(model, bias)))
    flatbuffer.add_buffer(model, b"nobody reads this")
    graph.tensors.append(twin)
    conv.inputs = np.array([*conv.inputs[:2], len(graph.tensors) - 1], np.int32)
    slim.merge(model)
    before = flatbuffer.read(file)
    assert len(model.buffers) == len(before.buffers)
    assert len(model.subgraphs[0].tensors) == len(before.subgraphs[0].tensors)


def test_shorten_names_cuts_fused_names_and_keeps_them_unique(file):
    model = flatbuffer.read(file)
    tensors = model.subgraphs[0].tensors
    for tensor, name in zip(tensors, ["a;b;c", "a;d", "a", "a_1;x"], strict=False):
        tensor.name = name
    slim.shorten_names(model)
    names = [flatbuffer.text(t.name) for t in tensors]
    assert names[0] == "a"
    assert len(set(names)) == len(names)
    assert not any(";" in name for name in names)


def test_quantize_channels_is_symmetric_per_channel():
    weights = np.random.default_rng(0).standard_normal((3, 3, 5)).astype(np.float32) * np.array([1, 10, 100, 0, 0.01])
    codes, scales = weight_only.quantize_channels(weights.astype(np.float32), 2)
    assert (codes.dtype, scales.shape) == (np.int8, (5,))
    assert np.abs(codes).max(axis=(0, 1)).tolist() == [127, 127, 127, 0, 127]
    assert np.all(np.abs(codes * scales - weights) <= scales / 2 + 1e-6)


def test_weight_only_stores_each_kernel_as_int8_with_one_scale_a_channel(file):
    model = flatbuffer.read(file)
    graph = model.subgraphs[0]
    made = [op for _, op in flatbuffer.operators(model) if flatbuffer.op_name(model, op) == "DEQUANTIZE"]
    stored = [graph.tensors[op.inputs[0]] for op in made]
    assert [(tuple(t.shape), len(t.quantization.scale)) for t in stored] == [
        ((16, 3, 3, 3), 16),
        ((16, 3, 3, 16), 16),
        ((4, 1024), 4),
    ]

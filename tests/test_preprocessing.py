import json

import numpy as np
import pytest

from edgedl.errors import InputError
from edgedl.preprocessing import (
    OPS,
    affine,
    apply,
    output_shape,
    parse,
    samples_per_input,
    split_embeddable,
    to_json,
)

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 13, 17, 3), dtype=np.uint8)
SOUND = (RNG.normal(size=(3, 16000)) * 0.1).astype(np.float32)
KEYWORDS = {"op": "mfcc", "sample_rate_hz": 16000, "frame_length": 640, "frame_step": 320, "coefficients": 10}
EVERY_OP = [
    {"op": "cast", "dtype": "float32"},
    {"op": "resize", "height": 5, "width": 7},
    {"op": "crop", "height": 5, "width": 5},
    {"op": "grayscale"},
    {"op": "scale", "factor": 2},
    {"op": "normalize", "mean": [0.5, 0.25, 0.125], "std": 2.0},
    {"op": "window", "length": 100, "step": 50},
    KEYWORDS,
]


def steps(*tables):
    return parse(tables, "data.toml")


def run(table, batch):
    """`apply`, checked against `output_shape`."""
    ops = steps(table)
    result = apply(ops, batch)
    assert output_shape(ops, batch.shape[1:], str(batch.dtype)) == (result.shape[1:], str(result.dtype))
    return result


def test_every_op_survives_json():
    assert {table["op"] for table in EVERY_OP} == set(OPS)
    ops = steps(*EVERY_OP)
    tables = json.loads(json.dumps(to_json(ops)))
    assert parse(tables, "again") == ops
    assert tables[5] == {"op": "normalize", "mean": [0.5, 0.25, 0.125], "std": 2.0}
    assert "top" not in tables[2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"op": "blur"}, "data.toml: preprocess step 2: op must be one of cast, resize, .*mfcc, got 'blur'"),
        ({}, "data.toml: preprocess step 2: op must be one of .* got None"),
        ({"op": "resize", "height": 0, "width": 3}, r"step 2 \(resize\): height must be a whole number >= 1, got 0"),
        ({"op": "resize", "height": 2.5, "width": 3}, "height must be a whole number >= 1, got 2.5"),
        ({"op": "resize", "height": True, "width": 3}, "height must be a whole number >= 1, got True"),
        ({"op": "resize", "height": 3}, r"step 2 \(resize\): width is missing; keys: height, width, method"),
        ({"op": "resize", "height": 3, "width": 3, "method": "cubic"}, "method must be one of bilinear, nearest, got"),
        ({"op": "resize", "height": 3, "width": 3, "size": 3}, "unknown key 'size'; allowed: height, width, method"),
        ({"op": "grayscale", "weights": 1}, "unknown key 'weights'; allowed: none"),
        ({"op": "cast", "dtype": "int4"}, "dtype must be one of uint8, .*, got 'int4'"),
        ({"op": "crop", "height": 3, "width": 3, "top": 1}, "top and left go together"),
        ({"op": "scale", "factor": "1/255"}, "factor must be a finite number, got '1/255'"),
        ({"op": "scale", "factor": float("nan")}, "factor must be a finite number, got nan"),
        ({"op": "normalize", "mean": 0, "std": 0}, "std must be > 0, got 0.0"),
        ({"op": "normalize", "mean": [0, 0], "std": [1, 1, 1]}, "as many channels as each other"),
        ({"op": "normalize", "mean": [], "std": 1}, "got an empty list"),
        ({"op": "window", "length": 4, "pad": 1}, "pad must be true or false, got 1"),
        (KEYWORDS | {"fft_length": 512}, "fft_length must be >= frame_length 640, got 512"),
        (KEYWORDS | {"upper_hz": 9000}, "sample_rate_hz / 2 must hold, got 20, 9000 and 8000"),
        (KEYWORDS | {"coefficients": 41}, "coefficients must be <= mel_bins 40, got 41"),
    ],
)
def test_parse_names_file_step_and_key(table, message):
    with pytest.raises(InputError, match=message):
        parse([{"op": "grayscale"}, table], "data.toml")


@pytest.mark.parametrize(
    ("table", "shape", "message"),
    [
        ({"op": "resize", "height": 3, "width": 3}, (100,), r"step 1 \(resize\): needs images .*got shape \(100,\)"),
        ({"op": "crop", "height": 14, "width": 3}, (13, 17, 3), "height 14 from 0 on does not fit into 13 pixels"),
        ({"op": "crop", "height": 3, "width": 3, "top": 0, "left": 15}, (13, 17), "width 3 from 15 on does not fit"),
        ({"op": "grayscale"}, (13, 17, 1), r"needs RGB images \(height, width, 3\), got shape \(13, 17, 1\)"),
        ({"op": "normalize", "mean": [1, 2], "std": 1}, (13, 17, 3), "are for 2 channels"),
        ({"op": "window", "length": 9}, (8,), "length 9 is longer than the signal, 8; pad = true adds zeros"),
        (KEYWORDS, (600,), "frame_length 640 is longer than the signal, 600"),
        (KEYWORDS, (600, 2), r"needs signals \(time\)"),
    ],
)
def test_a_step_that_does_not_fit_is_named(table, shape, message):
    with pytest.raises(InputError, match=message):
        output_shape(steps(table), shape, "float32")
    with pytest.raises(InputError, match=message):
        apply(steps(table), np.zeros((2, *shape), np.float32))


def test_cast_rounds_half_up_and_saturates():
    values = np.array([[-1.5, -0.5, 0.5, 1.5, 2.49, 254.5, 300.0]], np.float32)
    assert run({"op": "cast", "dtype": "uint8"}, values).tolist() == [[0, 0, 1, 2, 2, 255, 255]]
    assert run({"op": "cast", "dtype": "int8"}, values).tolist() == [[-1, 0, 1, 2, 2, 127, 127]]
    assert run({"op": "cast", "dtype": "int32"}, np.array([[2.0**40]], np.float32)).tolist() == [[2**31 - 1]]
    assert run({"op": "cast", "dtype": "uint8"}, np.array([[-3, 7, 999]])).tolist() == [[0, 7, 255]]
    assert run({"op": "cast", "dtype": "float32"}, PICTURES).dtype == np.float32


def test_crop_takes_the_centre_or_a_box():
    rows = np.arange(5 * 6).reshape(1, 5, 6)
    assert run({"op": "crop", "height": 2, "width": 3}, rows).tolist() == [[[7, 8, 9], [13, 14, 15]]]
    box = {"op": "crop", "height": 2, "width": 1, "top": 3, "left": 5}
    assert run(box, rows).tolist() == [[[23], [29]]]


def test_grayscale_is_bt601():
    pictures = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], np.uint8)
    assert run({"op": "grayscale"}, pictures)[..., 0].tolist() == [[[76, 150, 29, 255]]]
    exact = run({"op": "grayscale"}, pictures.astype(np.float32))[0, 0, :, 0]
    assert exact == pytest.approx([76.245, 149.685, 29.07, 255])


def test_scale_and_normalize_are_float32():
    scaled = run({"op": "scale", "factor": 1 / 127.5, "offset": -1}, PICTURES)
    assert (scaled == PICTURES * np.float32(1 / 127.5) - np.float32(1)).all()
    normal = run({"op": "normalize", "mean": [10, 20, 30], "std": [1, 2, 4]}, PICTURES)
    assert normal[..., 2] == pytest.approx((PICTURES[..., 2] - 30.0) / 4)


def test_window_makes_samples_that_follow_one_another():
    signal = np.arange(20).reshape(2, 10)
    pieces = run({"op": "window", "length": 4, "step": 3}, signal)
    assert pieces.tolist() == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
        [10, 11, 12, 13],
        [13, 14, 15, 16],
        [16, 17, 18, 19],
    ]
    assert run({"op": "window", "length": 4}, signal).tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [10, 11, 12, 13],
        [14, 15, 16, 17],
    ]
    axes = np.stack([signal, -signal], axis=-1)
    both = run({"op": "window", "length": 4, "step": 3}, axes)
    assert (both[..., 0] == pieces).all()
    assert (both[..., 1] == -pieces).all()
    padded = run({"op": "window", "length": 12, "pad": True}, signal)
    assert padded.tolist() == [[*range(10), 0, 0], [*range(10, 20), 0, 0]]


def test_samples_per_input_counts_windows():
    ops = steps(
        {"op": "scale", "factor": 2}, {"op": "window", "length": 400, "step": 200}, {"op": "window", "length": 100}
    )
    assert samples_per_input(ops, (1000,)) == 4 * 4 == len(apply(ops, np.zeros((1, 1000))))
    assert samples_per_input(steps(*EVERY_OP[:5]), (13, 17, 3)) == 1
    with pytest.raises(InputError, match="length of the signal is not known"):
        samples_per_input(ops, (None,))


def test_output_shape_with_free_sizes():
    ops = steps({"op": "resize", "height": 8, "width": 9}, {"op": "grayscale"}, {"op": "scale", "factor": 2})
    assert output_shape(ops, (None, None, 3), "uint8") == ((8, 9, 1), "float32")
    assert output_shape(ops[:2], (None, None, 3), "uint8") == ((8, 9, 1), "uint8")
    assert output_shape(steps(KEYWORDS), (None,), "float32") == ((None, 10), "float32")
    assert output_shape(steps(KEYWORDS | {"channel_axis": True}), (16000,), "int16") == ((49, 10, 1), "float32")


def test_one_sample_gives_what_the_batch_gives():
    ops = steps({"op": "resize", "height": 9, "width": 8}, {"op": "grayscale"}, {"op": "scale", "factor": 1 / 255})
    batch = apply(ops, PICTURES)
    assert (np.concatenate([apply(ops, PICTURES[i : i + 1]) for i in range(3)]) == batch).all()
    many = np.tile(SOUND, (14, 1))  # more than one slice of signals
    assert (apply(steps(KEYWORDS), many)[-3:] == apply(steps(KEYWORDS), SOUND)).all()
    assert apply(steps(KEYWORDS), SOUND[:0]).shape == (0, 49, 10)


def test_split_embeddable_takes_the_last_values_only():
    cast, scale = {"op": "cast", "dtype": "float32"}, {"op": "scale", "factor": 2}
    resize, normalize = {"op": "resize", "height": 3, "width": 3}, {"op": "normalize", "mean": 1, "std": 2}
    left, embedded = split_embeddable(steps(scale, resize, cast, scale, normalize))
    assert (left, embedded) == (steps(scale, resize), steps(cast, scale, normalize))
    assert split_embeddable(steps(cast, scale)) == ((), steps(cast, scale))
    assert split_embeddable(steps(scale, {"op": "cast", "dtype": "int8"}))[1] == ()
    assert split_embeddable(()) == ((), ())


def test_affine_is_what_the_steps_do():
    _, embedded = split_embeddable(
        steps(
            {"op": "cast", "dtype": "float32"},
            {"op": "scale", "factor": 1 / 255},
            {"op": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            {"op": "scale", "factor": 0.5, "offset": 0.25},
        )
    )
    factor, offset = affine(embedded, 3)
    assert (factor.dtype, factor.shape, offset.dtype, offset.shape) == (np.float32, (3,), np.float32, (3,))
    assert PICTURES * factor + offset == pytest.approx(apply(embedded, PICTURES), abs=2e-6)
    assert [x.tolist() for x in affine((), 2)] == [[1, 1], [0, 0]]
    with pytest.raises(InputError, match="are for 3 channels"):
        affine(embedded, 4)
    with pytest.raises(InputError, match="resize cannot be folded into a model"):
        affine(steps(EVERY_OP[0], EVERY_OP[1]), 3)
    with pytest.raises(InputError, match="cast cannot be folded"):
        affine(steps({"op": "cast", "dtype": "uint8"}), 3)


def test_resize_by_hand():
    row = np.array([[[0, 10, 20, 30]]], np.float32)
    assert run({"op": "resize", "height": 1, "width": 2}, row).tolist() == [[[5, 25]]]
    assert run({"op": "resize", "height": 1, "width": 2, "method": "nearest"}, row).tolist() == [[[10, 30]]]
    assert run({"op": "resize", "height": 1, "width": 8}, row)[0, 0].tolist() == [
        0,
        2.5,
        7.5,
        12.5,
        17.5,
        22.5,
        27.5,
        30,
    ]
    assert run({"op": "resize", "height": 1, "width": 8}, row.astype(np.uint8))[0, 0].tolist() == [
        0,
        3,
        8,
        13,
        18,
        23,
        28,
        30,
    ]


@pytest.fixture(scope="module")
def tensorflow():
    return pytest.importorskip("tensorflow", reason="TensorFlow is the oracle here")


@pytest.mark.parametrize("size", [(5, 7), (13, 40), (29, 3), (13, 17), (1, 1)])
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_resize_agrees_with_tensorflow(tensorflow, size, method):
    table = {"op": "resize", "height": size[0], "width": size[1], "method": method}
    expected = tensorflow.image.resize(PICTURES.astype(np.float32), size, method=method).numpy()
    assert np.abs(run(table, PICTURES.astype(np.float32)) - expected).max() <= 3e-5  # an ulp of 255
    if method == "nearest":
        assert (run(table, PICTURES) == expected).all()
    assert (run(table, PICTURES[..., 0]) == run(table, PICTURES)[..., 0]).all()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"frame_length": 401, "frame_step": 160, "mel_bins": 26, "coefficients": 26, "lower_hz": 80, "upper_hz": 7600},
        {"frame_length": 400, "fft_length": 1024, "log_offset": 1e-3, "coefficients": 13},
    ],
)
def test_mfcc_agrees_with_tensorflow(tensorflow, keys):
    table = KEYWORDS | {"mel_bins": 40, "lower_hz": 20, "upper_hz": 4000, "log_offset": 1e-6} | keys
    spectrum = tensorflow.abs(
        tensorflow.signal.stft(SOUND, table["frame_length"], table["frame_step"], table.get("fft_length"))
    )
    matrix = tensorflow.signal.linear_to_mel_weight_matrix(
        table["mel_bins"], spectrum.shape[-1], 16000, table["lower_hz"], table["upper_hz"]
    )
    energies = tensorflow.math.log(tensorflow.matmul(spectrum, matrix) + table["log_offset"])
    expected = tensorflow.signal.mfccs_from_log_mel_spectrograms(energies).numpy()[..., : table["coefficients"]]
    found = run(table, SOUND)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(found).max() > 1

import numpy as np
import pytest

from edgedl import models
from edgedl.errors import UnsupportedError
from edgedl_tflite import recurrent
from edgedl_tflite.describe import describe


def sequential(*layers, shape):
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape, name="x"), *layers])


@pytest.fixture(scope="module")
def sequences():
    return {"x": np.random.default_rng(0).standard_normal((40, 6, 4)).astype(np.float32)}


@pytest.fixture(scope="module")
def lstm():
    from keras import layers

    return sequential(layers.LSTM(8, name="memory"), layers.Dense(3, name="y"), shape=(6, 4))


def test_lstm_float_forgets_between_samples(export, litert, lstm, sequences):
    made = export(lstm, "fp32")
    assert any(op.name == "WHILE" for op in describe(str(made.path)).ops)
    np.testing.assert_allclose(litert(made.path, sequences)["y"], lstm(sequences["x"]), atol=1e-5)


@pytest.mark.parametrize(("scheme", "tolerance"), [("int8", 0.06), ("int16x8", 0.02)])
def test_lstm_static_is_unrolled_and_says_so(export, litert, tflite_runtime, lstm, sequences, scheme, tolerance):
    made = export(lstm, scheme, sequences)
    assert "unrolled for calibration, same outputs: memory" in made.notes
    assert not any(op.name == "WHILE" for op in describe(str(made.path)).ops)
    few = {"x": sequences["x"][:5]}
    for run in (litert, tflite_runtime):
        np.testing.assert_allclose(run(made.path, few)["y"], lstm(few["x"]), atol=tolerance)


def test_bidirectional_sequences_in_int8_are_not_rescaled(export, litert, sequences):
    """The converter gives REVERSE_V2 two scales; unmended, this model is off by 0.11."""
    from keras import layers

    model = sequential(
        layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both"),
        layers.Flatten(),
        layers.Dense(3, name="y"),
        shape=(6, 4),
    )
    made = export(model, "int8", sequences)
    assert "unrolled for calibration, same outputs: both" in made.notes
    np.testing.assert_allclose(litert(made.path, sequences)["y"], model(sequences["x"]), atol=0.05)


def test_unroll_reaches_into_wrappers_and_nested_models():
    import keras
    from keras import layers

    x = keras.Input((3, 5, 4), name="x")
    nested = keras.Sequential([keras.Input((3, 2)), layers.GRU(3, name="inside")], name="nested")
    each = layers.TimeDistributed(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]), name="each")(x)
    masked = layers.SimpleRNN(2, return_sequences=True, name="masked")(layers.Masking()(each))
    model = keras.Model(x, [nested(each), masked])
    unrolled, names = recurrent.unroll(model)
    assert sorted(names) == ["each", "inside", "masked"]
    values = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    for got, wanted in zip(unrolled(values), model(values), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_unroll_takes_the_sizes_of_the_whole_model():
    """Of what a nested model or a shared layer was declared for, or first called with, some may be free."""
    import keras
    from keras import layers

    norm = layers.Normalization(name="norm")
    norm.adapt(np.random.default_rng(0).normal(50, 3, (32, 3)).astype(np.float32))
    nested = keras.Sequential([keras.Input((None, 3)), norm, layers.LSTM(3, name="inside")], name="nested")
    free, x = keras.Input((None, 3), name="x"), keras.Input((4, 3), batch_size=1, name="x")
    shared = layers.GRU(2, name="shared")
    declared = keras.Model(free, [nested(free), shared(free)])
    static = models.with_static_shapes(declared, {"x": (1, 4, 3)})
    values = np.random.default_rng(1).normal(50, 3, (1, 4, 3)).astype(np.float32)
    unrolled, names = recurrent.unroll(static)
    assert sorted(names) == ["inside", "shared"]
    for got, wanted in zip(unrolled(values), declared(values), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    twice = keras.Model(x, [shared(x), shared(layers.ZeroPadding1D(200)(x))])
    with pytest.raises(UnsupportedError, match="layer 'shared' runs over 404 steps"):
        recurrent.unroll(twice)
    with pytest.raises(UnsupportedError, match="layer 'inside' runs over a free number of steps; give --shape"):
        recurrent.unroll(declared)


def test_static_refuses_long_sequences_and_state_by_name(export):
    import keras
    from keras import layers

    long = sequential(layers.Bidirectional(layers.GRU(2), name="ears"), shape=(300, 1))
    data = {"x": np.zeros((2, 300, 1), np.float32)}
    with pytest.raises(
        UnsupportedError, match="layer 'ears' runs over 300 steps; static schemes unroll it, at most 256"
    ):
        export(long, "int8", data)
    x = keras.Input(batch_shape=(1, 4, 2), name="x")
    stateful = keras.Model(x, layers.LSTM(2, stateful=True, name="memory")(x))
    with pytest.raises(UnsupportedError, match="layer 'memory' is stateful"):
        export(stateful, "fp32")


def test_static_refuses_an_unrolled_model_that_answers_otherwise_or_still_loops(export, lstm, sequences, monkeypatch):
    import keras

    def other(model):
        return keras.models.clone_model(model), ("memory",)  # new random weights

    monkeypatch.setattr(recurrent, "unroll", other)
    with pytest.raises(UnsupportedError, match="layers memory: unrolled for calibration, an output changes by"):
        export(lstm, "int8", sequences)
    monkeypatch.setattr(recurrent, "unroll", lambda model: (model, ()))
    with pytest.raises(UnsupportedError, match="layer 'memory' runs a loop that cannot be unrolled"):
        export(lstm, "int8", sequences)


def test_loops_are_traced_to_their_layer(lstm):
    import tensorflow as tf

    function = tf.function(lstm, input_signature=[tf.TensorSpec((1, 6, 4))]).get_concrete_function()
    (loop,) = recurrent.loops(function.graph)
    assert recurrent.layer_of(lstm, loop) == "memory"
    assert recurrent.layer_of(lstm, "elsewhere/while") == "elsewhere/while"

"""`edgedl compress` through the command line: steps, table, cache, refusals; and in a notebook on a model object."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

import edgedl
from edgedl import artifacts, model_file, stepwise, worker
from edgedl.data import file_sha256
from edgedl.errors import EdgedlError, InputError, WorkerError


@pytest.fixture(scope="module")
def normed(tmp_path_factory):
    """A small model with batch normalization to fold."""
    import keras

    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = keras.layers.BatchNormalization(
        moving_variance_initializer=keras.initializers.RandomUniform(0.5, 2, seed=0), name="norm"
    )(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="kind")(x))
    path = tmp_path_factory.mktemp("normed") / "m.keras"
    model.save(path)
    return path


def test_compress_writes_the_model_and_tells_each_step(cli, normed, data, tmp_path, schema):
    out = tmp_path / "folded.keras"
    answer = cli("compress", normed, "--recipe", "fold", "--eval", data / "test.npz", "-o", out, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("compress"))
    rows = answer.json["rows"]
    assert [row["step"] for row in rows] == ["original", "1 fold"]
    assert rows[1]["parameters"] == rows[0]["parameters"] - 3 * 8  # gamma, beta, mean, variance become one bias
    assert rows[1]["drop"] == 0
    assert rows[1]["size_bytes"] > 1000
    assert "gained" in answer.err
    assert cli("inspect", out, "--json").json["parameters"] == rows[1]["parameters"]


def test_compress_goes_on_from_the_steps_that_are_done(cli, normed, tmp_path):
    given = ("compress", normed, "--recipe", "fold", "--seed", 7)
    assert "step 1 ..." in cli(*given, "-o", tmp_path / "a.keras").err
    step = max(model_file.cache_folder().rglob("told.json"), key=lambda p: p.stat().st_mtime).parent
    for file in (step, *step.iterdir()):
        os.utime(file, (1, 1))
    assert "taken from the cache" in cli(*given, "-o", tmp_path / "b.keras").err
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    assert model_file._last_used(step) > 1  # it stays in the cache while it is of use


def test_each_step_is_judged_on_data_as_it_is_prepared(cli, normed, tmp_path):
    x, y = np.random.default_rng(0).random((16, 12, 12, 1), np.float32), np.arange(16) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "a.toml").write_text('data = "a.npz"\n[[preprocess]]\nop = "resize"\nheight = 8\nwidth = 8\n')
    done = cli(
        "compress", normed, "--recipe", "fold", "--eval", tmp_path / "a.toml", "-o", tmp_path / "f.keras", "--json"
    )
    assert done.code == 0, done.err
    assert [row["metric"] for row in done.json["rows"]] == ["top1", "top1"]


def test_the_names_of_the_classes_go_along_and_into_the_file(cli, normed, tmp_path):
    model = shutil.copy(normed, tmp_path / "m.keras")
    (tmp_path / "m.keras.edgedl.json").write_text('{"labels": ["ant", "bee", "cat"]}')
    assert cli("compress", model, "--recipe", "fold", "-o", tmp_path / "f.keras").code == 0
    told = json.loads((tmp_path / "f.keras.edgedl.json").read_text())
    assert (told["recipe"], told["labels"]) == ("fold", ["ant", "bee", "cat"])
    assert (told["lineage"]["recipe"], told["lineage"]["scheme"]) == ("fold", "")
    assert cli("export", tmp_path / "f.keras", "-o", tmp_path / "f.tflite").code == 0
    told = json.loads((tmp_path / "f.tflite.edgedl.json").read_text())
    assert told["lineage"]["labels"] == ["ant", "bee", "cat"]


def test_an_artifact_knows_the_models_that_its_model_was_compressed_from(cli, normed, data, tmp_path):
    model, first = shutil.copy(normed, tmp_path / "m.keras"), "b" * 64
    own = file_sha256(model)
    (tmp_path / "m.keras.edgedl.json").write_text(json.dumps({"sha256": own, "lineage": {"model_sha256": first}}))
    assert cli("compress", model, "--recipe", "fold", "-o", tmp_path / "f.keras").code == 0
    assert cli("export", tmp_path / "f.keras", "-o", tmp_path / "f.tflite").code == 0
    told = json.loads((tmp_path / "f.tflite.edgedl.json").read_text())["lineage"]
    assert (told["model_sha256"], told["ancestors"]) == (file_sha256(tmp_path / "f.keras"), [own, first])
    for reference in (model, tmp_path / "f.keras"):
        judged = cli("validate", tmp_path / "f.tflite", "--reference", reference, "--data", data / "test.npz")
        assert "exported from another model" not in judged.err
    (tmp_path / "m.keras.edgedl.json").write_text(json.dumps({"sha256": first, "lineage": {"model_sha256": first}}))
    assert artifacts.ancestors(tmp_path / "m.keras", own) == ()  # it tells of another file
    for damaged in ("x", {"ancestors": None}, {"model_sha256": None, "ancestors": [3]}):
        (tmp_path / "m.keras.edgedl.json").write_text(json.dumps({"sha256": own, "lineage": damaged}))
        assert artifacts.ancestors(tmp_path / "m.keras", own) == ()


def test_the_table_has_the_metric_in_its_own_unit_or_says_why_it_has_none(cli, tmp_path):
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1, name="age")])
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).random((16, 4), np.float32)
    for name in ("age", "label"):
        np.savez(tmp_path / f"{name}.npz", x=x, **{name: 100 * x[:, 0]})
    given = ("compress", tmp_path / "m.keras", "--recipe", "fold", "-o", tmp_path / "f.keras", "--force", "--eval")
    shown = cli(*given, tmp_path / "age.npz").err
    assert "MAE" in shown
    assert "%" not in shown.split("MAE")[1].split("\n")[1].replace("0%", "")
    shown = cli(*given, tmp_path / "label.npz").err
    assert "label.npz has no targets for output age (or y); it has label, x" in " ".join(shown.split())


def test_data_prepared_in_another_way_is_other_data(cli, normed, tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", x=x)
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[step]]\nkind = "quantize"\n')
    for name, scale in (("raw", 1.0), ("scaled", 1 / 255)):
        steps = f'[[preprocess]]\nop = "cast"\ndtype = "float32"\n[[preprocess]]\nop = "scale"\nfactor = {scale}\n'
        text = f'data = "a.npz"\n{steps}'
        (tmp_path / f"{name}.toml").write_text(text)
        done = cli(
            "compress",
            normed,
            "--recipe",
            recipe,
            "--data",
            tmp_path / f"{name}.toml",
            "-o",
            tmp_path / f"{name}.keras",
        )
        assert done.code == 0, done.err
        assert "step 1 ..." in done.err


def test_a_target_may_be_a_file_and_is_part_of_what_a_step_hangs_on(cli, normed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "targets" / "raspberry-pi-4.toml", "board.toml")
    step = tmp_path / "r.toml"
    step.write_text('[[step]]\nkind = "prune"\nmethod = "magnitude"\nsparsity = 0.37\n')
    for more in ((), ("--target", "board.toml")):
        done = cli("compress", normed, "--recipe", step, "-o", "m.keras", "--force", *more)
        assert done.code == 0, done.err
        assert "step 1 ..." in done.err


def test_the_latency_on_a_target_is_predicted_where_figures_allow(cli, tmp_path, schema):
    import keras

    wide = [keras.layers.Conv2D(64, 3, name=f"conv_{i}") for i in range(3)]
    layers = [keras.Input((32, 32, 16), name="image"), *wide, keras.layers.GlobalAveragePooling2D()]
    keras.Sequential([*layers, keras.layers.Dense(3)]).save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((8, 32, 32, 16), np.float32))
    (tmp_path / "r.toml").write_text('[[step]]\nkind = "fold"\n[[step]]\nkind = "quantize"\n')
    given = ("--recipe", tmp_path / "r.toml", "--data", tmp_path / "x.npz", "--target", "nucleo-u575zi-q")
    answer = cli("compress", tmp_path / "m.keras", *given, "-o", tmp_path / "q.keras", "--json")
    jsonschema.validate(answer.json, schema("compress"))
    *floats, integers = (row["target_latency_ms"] for row in answer.json["rows"])
    assert floats == [None, None]
    assert 500 < integers < 10_000
    assert "on target" in answer.err
    told = [note for row in answer.json["rows"] for note in row["notes"] if "no latency on" in note]
    figures = "no published figures, or too few, of tflm in float32; there are some for precision int8"
    assert told == [f"no latency on nucleo-u575zi-q: {figures}"]


def test_a_run_keeps_to_the_recipe_it_began_with(normed, tmp_path):
    recipe = tmp_path / "r.toml"
    text = '[[step]]\nkind = "prune"\nmethod = "magnitude"\nsparsity = {}\n'
    recipe.write_text(text.format(0.5))

    def edit(_):
        recipe.write_text(text.format(0.9))

    found = edgedl.compress(normed, recipe, out=tmp_path / "m.keras", said=edit)
    assert 0.4 < found["rows"][1].zeros < 0.6


def test_compress_knows_a_step_again_in_another_file(cli, normed, tmp_path):
    step = '[[step]]\nkind = "prune"\nmethod = "dead"\n'
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(step)
    first, second = (
        cli("compress", normed, "--recipe", tmp_path / f"{n}.toml", "-o", tmp_path / f"{n}.keras").err
        for n in ("one", "two")
    )
    assert "step 1 ..." in first
    assert "taken from the cache" in second
    assert "two.toml: step 1 (prune): no dead" in second
    assert "one.toml" not in second


PRUNED = '[[step]]\nkind = "prune"\nmethod = "magnitude"\nsparsity = 0.5\ntraining = { epochs = 1 }\n'


@pytest.fixture
def steps(monkeypatch):
    """The children that steps are done in; of those in `steps.dying` a step dies."""

    def call(what, kwargs, *, child, **given):
        if what.endswith(":step"):
            called.children.append(child)
            if child in called.dying:
                message = f"worker {child!r} was killed by SIGABRT in {what}"
                raise WorkerError(message)
        return done(what, kwargs, child=child, **given)

    called, done = SimpleNamespace(children=[], dying=()), worker.call
    monkeypatch.setattr(worker, "call", call)
    monkeypatch.setattr(stepwise, "LONG_MACS", 1)
    return called


def test_a_long_training_of_plain_layers_is_done_with_onednn_and_again_the_same(
    cli, normed, data, tmp_path, steps, monkeypatch
):
    (tmp_path / "pruned.toml").write_text(PRUNED)
    for name in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        given = ("--recipe", tmp_path / "pruned.toml", "--data", data / "train.npz")
        answer = cli("compress", normed, *given, "-o", tmp_path / f"{name}.keras")
        assert answer.code == 0, answer.err
    assert steps.children == [worker.ONEDNN] * 2
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()


def test_where_onednn_dies_a_step_is_done_without(cli, normed, data, tmp_path, steps):
    (tmp_path / "pruned.toml").write_text(PRUNED)
    steps.dying = (worker.ONEDNN,)
    given = ("--recipe", tmp_path / "pruned.toml", "--data", data / "train.npz", "--seed", 12)
    answer = cli("compress", normed, *given, "-o", tmp_path / "out.keras", "--json")
    assert answer.code == 0, answer.err
    assert steps.children == [worker.ONEDNN, worker.TENSORFLOW]
    assert any("trained once more without oneDNN: worker" in note for note in answer.json["rows"][1]["notes"])
    assert answer.json["rows"][1]["zeros"] == pytest.approx(0.5, abs=0.02)


def test_compress_asks_for_the_data_of_any_step_before_the_first(cli, normed, data, tmp_path):
    training = "training = { epochs = 1 }"
    (tmp_path / "r.toml").write_text(
        f'[[step]]\nkind = "fold"\n[[step]]\nkind = "prune"\nmethod = "magnitude"\nsparsity = 0.5\n{training}\n'
    )
    with np.load(data / "train.npz") as arrays:
        np.savez(tmp_path / "x.npz", x=arrays["x"])
    for more, message in (((), "training needs data; give --data"), (("--data", tmp_path / "x.npz"), "has no labels")):
        answer = cli("compress", normed, "--recipe", tmp_path / "r.toml", *more, "-o", tmp_path / "a.keras")
        assert (answer.code, answer.out) == (2, "")
        assert "r.toml: step 2 (prune): " in answer.err
        assert message in answer.err
        assert "step 1" not in answer.err


def test_a_step_is_quicker_where_turns_show_it():
    row = stepwise.Row(step="1", parameters=1, zeros=0.0, macs=100, size_bytes=1000, compressed_bytes=900, latency_ms=2)
    quick = replace(row, latency_ms=1)
    assert stepwise._gains(row, quick, quicker=False) == "nothing on this target"
    assert stepwise._gains(row, quick, quicker=True) == "latency"
    assert (
        stepwise._gains(row, replace(quick, macs=50, compressed_bytes=400), quicker=True) == "MACs, latency, download"
    )


@pytest.mark.parametrize(("high", "gained"), [(-0.001, "score"), (0.001, "nothing on this target")])
def test_a_step_has_a_better_score_where_its_interval_shows_it(high, gained):
    row = stepwise.Row(step="1", parameters=1, zeros=0.0, macs=100, score=0.8, drop=0.0, low=0.0, high=0.0)
    assert stepwise._gains(row, replace(row, drop=-0.02, low=-0.04, high=high), quicker=False) == gained


def test_compress_takes_the_users_own_model_in_a_notebook(normed):
    import keras

    model = keras.saving.load_model(normed)
    before = [np.array(w) for w in model.get_weights()]
    made = edgedl.compress(model, {"step": [{"kind": "fold"}]})
    x = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    np.testing.assert_allclose(made(x), model(x), atol=1e-6)
    assert made.count_params() < model.count_params()
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_a_notebook_keeps_its_policy_and_random_numbers():
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, "softmax", name="kind")])
    x = np.random.default_rng(0).random((64, 4), np.float32)
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        step = {"kind": "quantize", "training": {"epochs": 1, "distill": {}}}
        made = edgedl.compress(model, {"step": [step]}, x)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.random.random() == expected
    np.testing.assert_allclose(made(x), model(x), atol=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "m.keras"}, "out and evaluation are for model files; a model object gives a new one, to be saved"),
        ({"target": "nosuch"}, "nosuch"),
        ({"data": "d.npz"}, "data: input x: is str; give numbers as x or"),
        ({"data": [np.zeros((4, 4)), np.zeros(4)]}, "data: input x: is list; give numbers as x or"),
        ({"data": np.full((4, 4), np.nan)}, "x: sample 0 holds nan; allowed: finite numbers"),
        ({"data": np.zeros((4, 3))}, r"data: input 'x' takes samples of shape \(4\), the data has \(3\)"),
        ({"data": (np.zeros((4, 4)), np.full(4, 3))}, r"kind: sample 0 holds 3; allowed: classes 0 to 2"),
    ],
)
def test_a_notebook_is_told_in_one_line_what_is_wrong(given, message):
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, "softmax", name="kind")])
    recipe = {"step": [{"kind": "quantize", "training": {"epochs": 1}}]}
    with pytest.raises(EdgedlError, match=message):
        edgedl.compress(model, recipe, **({"data": np.zeros((4, 4))} | given))


def test_a_model_that_is_not_built_is_refused():
    import keras

    with pytest.raises(InputError, match="is not built: give it an Input, or call it on data once"):
        edgedl.compress(keras.Sequential([keras.layers.Dense(3)]), "fold")


def test_compress_in_a_notebook_takes_a_model_with_dropout():
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.5), keras.layers.Dense(3, name="kind")]
    model = keras.Sequential([keras.Input((4,), name="x"), *layers])
    x, told = np.random.default_rng(0).random((64, 4), np.float32), []
    before = np.asarray(model(x))
    made = edgedl.compress(model, {"step": [{"kind": "quantize"}]}, x, said=told.append)
    assert told[0].startswith("training-only layers removed: dropout")
    np.testing.assert_allclose(made(x), before, atol=0.05)
    np.testing.assert_array_equal(model(x), before)
    assert any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)


def test_a_keras_model_is_written_under_its_name(cli, normed, data, tmp_path):
    for command in (
        ("compress", normed, "--recipe", "fold"),
        ("train", "--model", "cnn-small", "--data", data / "train.npz"),
    ):
        answer = cli(*command, "-o", tmp_path / "a.tflite")
        assert (answer.code, answer.out) == (2, "")
        assert "a.tflite: a Keras model is written; name it a.keras, and export it afterwards" in answer.err


def test_a_keras_model_is_exported_before_it_is_judged(cli, normed, data):
    answer = cli("validate", normed, "--reference", normed, "--data", data / "test.npz")
    assert (answer.code, answer.out) == (2, "")
    assert f"m.keras: is a Keras model; export it first: edgedl export {normed} -o " in answer.err
    answer = cli("inspect", normed, "--target", "host")
    assert (answer.code, answer.out) == (2, "")
    assert "m.keras: is a model, and targets and runtimes take artifacts; export it first" in answer.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--recipe", "flod"], "no such recipe: 'flod' (did you mean 'fold'"),
        (["--recipe", "fold", "--set", "1.depth=3"], "unknown key 'depth'"),
        (["--recipe", "fold", "--set", "fold"], "must be STEP.KEY=VALUE"),
        (["--recipe", "fold", "--set", "1.match='nothing*'"], "'nothing*' hits no"),
        (["--recipe", "missing.toml"], "missing.toml"),
    ],
)
def test_compress_refuses_in_one_line(cli, normed, tmp_path, given, message):
    answer = cli("compress", normed, *given, "-o", tmp_path / "a.keras")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())

"""`edgedl validate` through the command line: verdicts, exit codes, targets, metrics, and what it says."""

from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from conftest import samples
from crafted import images, small_model

from edgedl.types import TensorSpec
from edgedl.validation import cases


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data):
    """A model that really separates the classes, and its int8 artifact."""
    from edgedl import pipeline

    folder = tmp_path_factory.mktemp("trained")
    pipeline.train(model="cnn-small", data=data / "train.npz", out=folder / "m.keras", epochs=6, patience=0)
    pipeline.export(
        folder / "m.keras", folder / "a.tflite", scheme="int8", calibration_data=data / "train.npz", samples=100
    )
    return folder


def named(answer, name, target=None):
    return next(c for c in answer.json["checks"] if c["name"] == name and c["target"] == target)


def test_validate_passes_and_its_json_is_the_schema(cli, trained, data, schema):
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz", "--max-drop", "3pp")
    answer = cli("validate", trained / "a.tflite", *given, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("validation"))
    assert answer.json["verdict"] == "pass"
    drop = named(answer, "accuracy_drop")
    assert (drop["verdict"], drop["limit"], drop["unit"]) == ("pass", 0.03, "fraction")
    assert drop["low"] <= drop["measured"] <= drop["high"] <= 0.03
    assert named(answer, "accuracy_reference")["measured"] > 0.9
    assert named(answer, "latency_ms")["method"] == "measured-host"


def test_too_few_samples_are_inconclusive_and_say_how_many_would_do(cli, trained, data):
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz", "--max-drop", "0.1pp")
    answer = cli("validate", trained / "a.tflite", *given)
    assert (answer.code, answer.out.strip()) == (7, "inconclusive")
    assert "samples would decide" in answer.err
    assert cli("validate", trained / "a.tflite", *given, "--on-inconclusive", "warn").code == 0
    assert cli("validate", trained / "a.tflite", *given, "--gate", "detect").out.strip() == "pass"


def test_a_broken_artifact_fails(cli, model, trained, data, tmp_path):
    """Another network's file: the loss is proven, under either gate."""
    cli("export", model, "-o", tmp_path / "other.tflite")
    for gate in ("prove", "detect"):
        given = ("--reference", trained / "m.keras", "--data", data / "test.npz", "--max-drop", "5pp", "--gate", gate)
        assert cli("validate", tmp_path / "other.tflite", *given).code == 6


def test_an_int8_file_with_float_outputs_is_compared_in_its_own_steps(cli, trained, data):
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz", "--json")
    answer = cli("validate", trained / "a.tflite", *given)
    differ, steps = (named(answer, name)["measured"] for name in ("max_abs", "max_lsb"))
    assert steps == pytest.approx(differ * 256, abs=1)  # a softmax has steps of 1/256
    assert cli("export", trained / "m.keras", "-o", trained / "f.tflite", "--force").code == 0
    answer = cli("validate", trained / "f.tflite", *given)
    assert "max_lsb" not in {c["name"] for c in answer.json["checks"]}


def test_an_artifact_that_gives_nan_fails_and_its_metric_is_left_out(cli, model, data, tmp_path):
    import keras

    cli("export", model, "--no-slim", "-o", tmp_path / "a.tflite")
    content = (tmp_path / "a.tflite").read_bytes()
    weights = keras.models.load_model(model).layers[-1].kernel.numpy().T.tobytes()
    assert content.count(weights) == 1
    broken = np.full(len(weights) // 4, np.nan, np.float32).tobytes()
    (tmp_path / "nan.tflite").write_bytes(content.replace(weights, broken))
    given = ("--data", data / "test.npz", "--max-drop", "1pp", "--json")
    answer = cli("validate", tmp_path / "nan.tflite", "--reference", tmp_path / "a.tflite", *given)
    assert answer.code == 6, answer.err
    why = "1,200 of 1,200 output values are NaN or infinite: those of the artifact"
    assert (named(answer, "nonfinite")["verdict"], named(answer, "nonfinite")["why"]) == ("fail", why)
    assert "accuracy" not in {c["name"] for c in answer.json["checks"]}


def test_classes_of_the_data_are_matched_with_those_of_the_artifact_by_name(cli, trained, data, tmp_path):
    """Text labels of two of the three classes; by number they would be the first two."""
    kinds = ["left", "middle", "right"]
    (tmp_path / "labels.txt").write_text("\n".join(kinds))
    given = ("--labels", tmp_path / "labels.txt", "-o", tmp_path / "a.tflite")
    assert cli("export", trained / "m.keras", *given).code == 0
    x, y = samples(90, seed=7)
    np.savez(tmp_path / "two.npz", x=x[y > 0], y=np.array(kinds)[y[y > 0]])
    given = ("--reference", tmp_path / "a.tflite", "--data", tmp_path / "two.npz")
    answer = cli("validate", tmp_path / "a.tflite", *given, "--json")
    assert named(answer, "accuracy")["measured"] > 0.9
    assert "note: classes are matched by name: the data has middle, right; the artifact left, middle" in answer.err
    np.savez(tmp_path / "two.npz", x=x, y=np.array(["a", "b", "c"])[y])
    answer = cli("validate", tmp_path / "a.tflite", *given, "--json")
    assert "note: classes are matched by number, not by name: the data has a, b, c; the artifact left" in answer.err


def test_targets_are_judged_with_their_kernels_and_never_by_this_machines_latency(cli, trained, data):
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz", "--limit", "latency_ms=1000")
    targets = ("--target", "host", "--target", "nucleo-h743zi2", "--target", "esp32-s3-devkitc-1")
    answer = cli("validate", trained / "a.tflite", *given, *targets, "--json")
    assert answer.code == 7
    assert named(answer, "latency_ms", "host")["verdict"] == "pass"
    assert named(answer, "latency_ms", "nucleo-h743zi2")["method"] == "predicted"
    there = named(answer, "latency_ms", "esp32-s3-devkitc-1")
    assert (there["measured"], there["verdict"]) == (None, "unchecked")
    assert answer.json["targets"] == ["host", "nucleo-h743zi2", "esp32-s3-devkitc-1"]
    assert named(answer, "size_bytes", "nucleo-h743zi2")["method"] == "static"


def test_a_device_that_is_not_there_is_unchecked_beside_the_others(cli, tmp_path):
    small = small_model(tmp_path / "m.tflite")
    np.savez(tmp_path / "d.npz", x=images(16))
    profile = "name = 'Mine'\nsource = 'data sheet 1'\nformats = ['tflite']\n[runtime.litert]\nformat = 'tflite'\n"
    (tmp_path / "phone.toml").write_text(f"{profile}[runner]\ndevice = 'adb'\nadb = 'no-adb'\n")
    given = ("validate", small, "--reference", small, "--data", tmp_path / "d.npz", "--target", tmp_path / "phone.toml")
    answer = cli(*given, "--target", "host", "--limit", "flips=0", "--json")
    assert answer.code == 7, answer.err
    lost = named(answer, "runs", "phone")
    assert (lost["verdict"], lost["why"]) == ("unchecked", "no-adb: not on this machine. Try: sudo apt-get install adb")
    assert named(answer, "flips", "host")["verdict"] == "pass"
    assert "flips" not in {c["name"] for c in answer.json["checks"] if c["target"] == "phone"}
    assert cli(*given).code == 2  # alone it is an error


def test_limits_fail_by_name(cli, trained, data):
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz", "--limit", "size_bytes=1000")
    answer = cli("validate", trained / "a.tflite", *given, "--json")
    assert (answer.code, named(answer, "size_bytes")["verdict"]) == (6, "fail")


def test_the_second_validation_starts_no_tensorflow(cli, trained, data, monkeypatch):
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz")
    assert cli("validate", trained / "a.tflite", *given).code == 0
    from edgedl import worker

    def refused(what, *_, **__):
        assert "models" not in what, what
        return before(what, *_, **__)

    before = worker.call
    monkeypatch.setattr(worker, "call", refused)
    assert cli("validate", trained / "a.tflite", *given).code == 0


def test_calibration_samples_in_the_data_are_said(cli, trained, data):
    given = ("--reference", trained / "m.keras", "--data", data / "train.npz")
    assert "100 of 100 calibration samples are in this data" in cli("validate", trained / "a.tflite", *given).err
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz")
    assert "calibration samples are in this data" not in cli("validate", trained / "a.tflite", *given).err


def test_own_metrics_slices_and_groups(cli, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def half(outputs, targets):\n    return (outputs.argmax(1) == targets) / 2\n")
    x, y = samples(200, seed=3)
    np.savez(tmp_path / "d.npz", x=x, y=y, slice=np.where(y == 0, "easy", "hard"), group=np.arange(200) // 10)
    given = ("--reference", trained / "m.keras", "--data", tmp_path / "d.npz", "--report", tmp_path / "r")
    answer = cli("validate", trained / "a.tflite", *given, "--metric", "mine:half", "--metric", "f1", "--json")
    assert answer.code == 0, answer.err
    assert named(answer, "mine.half")["measured"] == pytest.approx(0.5, abs=0.1)
    assert "20 groups" in named(answer, "f1_drop")["why"]
    from edgedl import reporting

    (report,) = reporting.read(tmp_path / "r" / "report.json")
    assert {row["slice"] for row in report.details["slices"]} == {"easy", "hard"}
    assert "<html" in (tmp_path / "r" / "report.html").read_text()


def test_a_slice_of_one_class_has_no_auc_and_the_others_do(cli, tmp_path, trained):
    x, y = samples(200, seed=3)
    part = np.where(y == 0, "same", np.where(np.arange(200) % 2, "mixed", "mixed too"))
    part[:20] = "mixed"
    np.savez(tmp_path / "d.npz", x=x, y=y, slice=part)
    given = ("--reference", trained / "m.keras", "--data", tmp_path / "d.npz", "--report", tmp_path / "r")
    answer = cli("validate", trained / "a.tflite", *given, "--metric", "auc")
    assert answer.code == 0, answer.err
    from edgedl import reporting

    (report,) = reporting.read(tmp_path / "r" / "report.json")
    rows = report.details["slices"]
    assert [row["slice"] for row in rows if row["drop"] is None] == ["same"] == [rows[-1]["slice"]]


def test_windows_are_drawn_from_all_recordings_and_keep_their_groups(cli, tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((10,), name="wave"), keras.layers.Dense(2, activation="softmax", name="kind")]
    )
    model.save(tmp_path / "m.keras")
    y = np.arange(10) // 5
    x = np.full((10, 40), 1.0, np.float32) * np.arange(10)[:, None]
    np.savez(tmp_path / "d.npz", x=x, y=y, group=np.arange(10), slice=np.where(y, "late", "early"))
    (tmp_path / "d.toml").write_text('data = "d.npz"\n[[preprocess]]\nop = "window"\nlength = 10\nstep = 10\n')
    made = cli("export", tmp_path / "m.keras", "-o", tmp_path / "a.tflite", "--scheme", "int8", "--calibration-data",
               tmp_path / "d.toml", "--samples", 20)  # fmt: skip
    assert made.code == 0, made.err
    from edgedl import artifacts

    artifact, _ = artifacts.read(tmp_path / "a.tflite")
    ids = np.array(artifact.lineage.calibration_ids)
    assert [(ids < 20).sum(), (ids >= 20).sum()] == [10, 10]  # windows of either class
    used = len(set(ids // 4))
    given = ("--reference", tmp_path / "m.keras", "--data", tmp_path / "d.toml", "--report", tmp_path / "r")
    answer = cli("validate", tmp_path / "a.tflite", *given, "--json")
    assert answer.code == 0, answer.err
    assert "10 groups" in named(answer, "accuracy_drop")["why"]
    assert f"{used} of {used} calibration samples are in this data" in answer.err


def test_a_reconstruction_beside_a_class_is_compared_without_a_metric(tmp_path):
    """The data has y, which is not the reconstruction's: nobody knows what that one's targets are."""
    request = cases.Request(artifact=Path("a"), reference="r", data="d")
    recon, kind = (TensorSpec(name=n, dtype="float32", shape=(1, s)) for n, s in (("recon", 4), ("kind", 3)))
    artifact = SimpleNamespace(outputs=[recon, kind], inputs=[TensorSpec(name="x", dtype="float32", shape=(1, 4))])
    np.save(tmp_path / "y.npy", np.arange(6) % 3)
    given = {"kind": tmp_path / "y.npy"}
    judges, _ = cases._judges(request, artifact, given, given)
    assert [(output, metric and metric.name) for output, metric, _ in judges] == [("recon", None), ("kind", "top1")]


def test_an_output_is_judged_against_the_first_input_of_its_shape():
    inputs = [TensorSpec(name=n, dtype="float32", shape=(1, 4)) for n in ("left", "right")]
    output = TensorSpec(name="made", dtype="float32", shape=(1, 4))
    artifact, dataset = (
        SimpleNamespace(inputs=inputs, outputs=[output]),
        SimpleNamespace(arrays={"left": 0, "right": 0}),
    )
    bound = SimpleNamespace(inputs={"left": Path("l.npy"), "right": Path("r.npy")})
    assert cases._right(dataset, artifact, {}, ["left", "right"], bound) == {"made": Path("l.npy")}


def test_an_autoencoder_is_judged_against_what_its_model_takes(cli, tmp_path):
    """Preprocessing inside the artifact or before it: the target is the same."""
    import keras

    keras.utils.set_random_seed(0)
    keras.Sequential([keras.Input((6,), name="x"), keras.layers.Dense(6, name="y")]).save(tmp_path / "m.keras")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).integers(0, 256, (40, 6), np.uint8))
    steps = '[[preprocess]]\nop = "cast"\ndtype = "float32"\n[[preprocess]]\nop = "scale"\nfactor = 0.00390625\n'
    (tmp_path / "d.toml").write_text(f'data = "d.npz"\n{steps}')
    given, errors = ("--calibration-data", tmp_path / "d.toml", "--samples", 20), []
    for out, more in (("a.tflite", ()), ("b.tflite", ("--embed-preprocessing",))):
        made = cli("export", tmp_path / "m.keras", "-o", tmp_path / out, "--scheme", "int8", *given, *more)
        assert made.code == 0, made.err
        answer = cli(
            "validate", tmp_path / out, "--reference", tmp_path / "m.keras", "--data", tmp_path / "d.toml", "--json"
        )
        assert answer.code == 0, answer.err
        errors.append(named(answer, "mse_reference")["measured"])
    assert errors[0] == pytest.approx(errors[1])


def test_a_reference_with_more_inputs_is_refused(cli, trained, data, tmp_path):
    import keras

    left, right = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="right")
    flat = keras.layers.GlobalAveragePooling2D()(left)
    both = keras.layers.Dense(3, name="kind")(keras.layers.Concatenate()([flat, right]))
    keras.Model([left, right], both).save(tmp_path / "two.keras")
    x, y = samples(40)
    np.savez(tmp_path / "d.npz", image=x, kind=y, right=np.zeros((40, 3), np.float32))
    answer = cli("validate", trained / "a.tflite", "--reference", tmp_path / "two.keras", "--data", tmp_path / "d.npz")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1


def test_slices_are_one_name_a_sample(cli, trained, tmp_path):
    x, y = samples(40, seed=3)
    given = ("--reference", trained / "m.keras", "--data", tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x=x, y=y, slice=np.arange(40)[:, None] % 2)
    assert cli("validate", trained / "a.tflite", *given).code == 0
    np.savez(tmp_path / "d.npz", x=x, y=y, slice=np.zeros((40, 2)))
    answer = cli("validate", trained / "a.tflite", *given)
    assert answer.code == 2
    assert "d.npz: slice: one name a sample is needed, got shape (40, 2)" in answer.err


def test_outputs_without_a_metric_are_compared_all_the_same():
    request = cases.Request(artifact=Path("a"), reference="r", data="d", metrics=("kind=top1",))
    artifact = SimpleNamespace(outputs=[SimpleNamespace(name=n) for n in ("box", "kind")])
    judges, _ = cases._judges(request, artifact, {"kind": None}, {})
    assert [(output, metric.name if metric else None) for output, metric, _ in judges] == [
        ("kind", "top1"),
        ("box", None),
    ]


def test_a_reference_that_guesses_is_said_and_without_a_limit_nothing_is_judged(cli, trained, data, tmp_path):
    with np.load(data / "test.npz") as arrays:
        np.savez(tmp_path / "d.npz", x=arrays["x"], y=np.random.default_rng(0).permutation(arrays["y"]))
    given = ("--reference", trained / "m.keras")
    guessed = cli("validate", trained / "a.tflite", *given, "--data", tmp_path / "d.npz")
    assert (guessed.code, guessed.out.strip()) == (0, "not judged")
    assert "are the labels, their order and the preprocessing the model's?" in guessed.err
    judged = cli("validate", trained / "a.tflite", *given, "--data", data / "test.npz", "--max-drop", "50pp")
    assert (judged.code, judged.out.strip()) == (0, "pass")
    assert "are the labels" not in judged.err


@pytest.mark.parametrize(
    ("drop", "message"), [("2", "got '2', which is 200 pp"), ("100pp", "0.005 is needed, got '100pp'")]
)
def test_a_drop_that_nothing_exceeds_is_refused(cli, trained, data, drop, message):
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz")
    answer = cli("validate", trained / "a.tflite", *given, "--max-drop", drop)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_plan_runs_nothing(cli, data):
    given = ("--reference", "none.keras", "--data", data / "test.npz", "--max-drop", "1pp", "--plan", "--json")
    planned = cli("validate", "none.tflite", *given)
    assert planned.code == 0, planned.err
    assert planned.json["have"] == 400
    assert planned.json["samples"] > 400
    refused = cli("validate", "none.tflite", *given, "--metric", "mae")
    assert refused.code == 2
    assert "--plan: counts answers that are right or wrong, as of top1 and binary; mae is no such metric" in refused.err
    assert cli("validate", "none.tflite", *given, "--metric", "kind=top1").code == 0


def test_junit_has_a_case_for_each_counted_check(cli, trained, data, tmp_path):
    import xml.etree.ElementTree as ET  # our own file

    given = ("--reference", trained / "m.keras", "--data", data / "test.npz", "--limit", "size_bytes=1000")
    assert cli("validate", trained / "a.tflite", *given, "--junit", tmp_path / "j.xml").code == 6
    cases = ET.parse(tmp_path / "j.xml").getroot().iter("testcase")
    assert [case.find("failure") is not None for case in cases] == [True]
    lost = cli("validate", trained / "a.tflite", *given, "--junit", data / "test.npz", "--force")
    assert (lost.code, lost.out) == (2, "")
    assert "test.npz: is read as well, and would be lost; name another output" in lost.err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.array([0, 1, 7])}, "sample 2"),
        ({"y": np.array([0, -1, 1])}, "sample 1"),
        ({"x": np.full((3, 8, 8, 1), np.nan, np.float32)}, "sample 0 holds NaN"),
        ({"x": np.zeros((3, 8, 8, 3), np.uint8)}, "takes samples of shape (8, 8, 1), the data has (8, 8, 3)"),
    ],
)
def test_validate_refuses_data_that_does_not_fit(cli, trained, tmp_path, arrays, message):
    good = {"x": np.zeros((3, 8, 8, 1), np.uint8), "y": np.array([0, 1, 2])}
    np.savez(tmp_path / "d.npz", **(good | arrays))
    answer = cli("validate", trained / "a.tflite", "--reference", trained / "m.keras", "--data", tmp_path / "d.npz")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped"])
def test_a_damaged_artifact_is_one_line(cli, trained, data, tmp_path, damage):
    content = (trained / "a.tflite").read_bytes()
    broken = {
        "text": b"this is no model at all, just words",
        "truncated": content[: len(content) // 2],
        "flipped": content[:4] + bytes(b ^ 0xFF for b in content[4:64]) + content[64:],
    }[damage]
    (tmp_path / "a.tflite").write_bytes(broken)
    answer = cli("validate", tmp_path / "a.tflite", "--reference", trained / "m.keras", "--data", data / "test.npz")
    assert (answer.code, answer.out) == (2, "")
    assert str(tmp_path / "a.tflite") in answer.err
    assert len(answer.err.splitlines()) == 1


def test_benchmark_takes_turns_and_says_the_ratio(cli, trained, model, tmp_path, schema):
    cli("export", model, "-o", tmp_path / "other.tflite")
    answer = cli("benchmark", trained / "a.tflite", tmp_path / "other.tflite", "--repeats", 50, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("benchmark"))
    assert [r["repeats"] for r in answer.json["results"]] == [50, 50]
    assert answer.json["comparison"][0]["latency_ratio"] > 0


def test_inspect_shows_models_artifacts_and_differences(cli, trained, schema):
    found = cli("inspect", trained / "m.keras", "--diff", trained / "a.tflite", "--json")
    jsonschema.validate(found.json, schema("inspect"))
    assert found.json["parameters"] > 1000
    assert found.json["diff"]["facts"]["size_bytes"]
    assert found.json["diff"]["ops"] == {}  # a model has none to compare
    shown = cli("inspect", trained / "a.tflite", "--target", "nucleo-h743zi2")
    assert "CONV_2D" in shown.err
    assert "unsupported_ops" in shown.err


def test_data_without_the_artifacts_preprocessing_is_said(cli, trained, data, tmp_path):
    (data / "halved.toml").write_text('data = "train.npz"\n[[preprocess]]\nop = "scale"\nfactor = 0.5\n')
    given = ("--scheme", "int8", "--calibration-data", data / "halved.toml")
    assert cli("export", trained / "m.keras", *given, "-o", tmp_path / "a.tflite").code == 0
    given = ("--reference", trained / "m.keras", "--data", data / "test.npz")
    assert "was exported for data preprocessed by" in cli("validate", tmp_path / "a.tflite", *given).err

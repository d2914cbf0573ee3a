"""Latency prediction: the command line, files, and what a validation makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from crafted import images, small_model
from operator_tables import CONV, M7, writer

from edgedl import artifacts, targets
from edgedl.latency import features, figures, fitted, operators, platforms
from edgedl.latency.operators import Operator
from edgedl.types import Verdict
from edgedl.validation import predicted as predicted_checks
from edgedl.validation.gates import Gates


@pytest.fixture
def table(tmp_path):
    return writer(tmp_path / "layers.csv")


# ---- the command line ---------------------------------------------------------------------------------------------


def predicted(cli, path, *options):
    answer = cli("benchmark", "--predict", path, *options, "--json")
    assert answer.code == 0, answer.err
    return answer.json["predictions"]


def test_a_model_is_predicted_from_its_table_alone(cli, table, schema):
    path = table(CONV, "softmax,SOFTMAX,int8,1x10,,1x10,,0")
    answer = cli("benchmark", "--predict", path, *M7, "--runtime", "x-cube-ai", "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("benchmark"))
    first, second = answer.json["predictions"]
    assert first["low"] < first["latency_ms"] < first["high"]
    assert 4 < first["latency_ms"] < 12  # 2.36 M steps at 400 MHz: 0.7 to 2 cycles each
    assert (first["model"], first["method"], first["refused"]) == ("net", "predicted", None)
    assert "figures of" in first["basis"]
    assert second["latency_ms"] is None
    assert "0 multiply-accumulates are far from those of the models with figures" in second["refused"]


def test_latency_scales_with_the_clock_and_differs_by_core_and_runtime(cli, table):
    def ms(core, clock, runtime):
        given = ("--core", core, "--clock-hz", clock, "--runtime", runtime)
        return predicted(cli, table(CONV), *given)[0]["latency_ms"]

    assert ms("cortex-m7", 200e6, "x-cube-ai") == pytest.approx(2 * ms("cortex-m7", 400e6, "x-cube-ai"))
    assert ms("cortex-m4", 400e6, "x-cube-ai") > 1.3 * ms("cortex-m7", 400e6, "x-cube-ai")
    assert ms("cortex-m4", 120e6, "tflm") > 1.5 * ms("cortex-m4", 120e6, "x-cube-ai")
    assert ms("cortex-m7", 400e6, "x-cube-ai@7.3") != ms("cortex-m7", 400e6, "x-cube-ai")


def test_names_are_found_in_any_case(cli, table):
    (row,) = predicted(cli, table(CONV), "--core", "Cortex-M7", "--clock-hz", 400e6, "--runtime", "X-CUBE-AI")
    assert row["runtime"] == "x-cube-ai@8.1"
    (same,) = predicted(cli, table(CONV), *M7, "--runtime", "x-cube-ai@7.3.0")
    assert same["runtime"] == "x-cube-ai@7.3"


def test_where_no_version_is_named_the_interval_reaches_to_a_newer_one_with_few_figures(cli, table):
    def at(runtime):
        return predicted(cli, table(CONV), "--core", "cortex-a7", "--clock-hz", 800e6, "--runtime", runtime)[0]

    usual, newer = at("litert"), at("litert@5.0")
    assert usual["runtime"] == "litert@before-5.0"
    assert usual["low"] == newer["latency_ms"] < at("litert@before-5.0")["low"]
    assert "the interval reaches to version 5.0" in usual["basis"]


def test_a_single_core_is_not_promised_the_speed_of_two_threads(cli, table, tmp_path):
    (tmp_path / "board.toml").write_text(
        'name = "A board"\nsource = "https://example.org"\nformats = ["tflite"]\n[runtime.litert]\n'
        '[cpu]\ncore = "cortex-a7"\nclock_hz = 1_000_000_000\ncores = 1\n'
    )
    (row,) = predicted(cli, table(CONV), "--target", tmp_path / "board.toml")
    assert "no published figures of litert with 1 thread(s); there are some for threads 2" in row["refused"]


def test_an_operator_that_vanishes_beside_the_rest_is_counted_as_a_copy_and_named(cli, table):
    given = (*M7, "--runtime", "x-cube-ai")
    (row,) = predicted(cli, table(CONV, "net,FOO,int8,1x10,,1x10,,0"), *given)
    assert "counted as a copy: FOO" in row["basis"]
    (row,) = predicted(cli, table(CONV, "net,FOO,int8,1x10,4x10,1x4,,0"), *given)
    assert "no published figures tell what FOO costs" in row["refused"]


@pytest.mark.parametrize("op", ["WHILE", "IF", "CALL_ONCE"])
def test_an_operator_that_runs_other_graphs_is_refused_however_small(cli, table, op):
    (row,) = predicted(cli, table(CONV, f"net,{op},int32,1,,1,,0"), *M7, "--runtime", "x-cube-ai")
    assert f"no published figures tell what {op} costs" in row["refused"]


def test_a_profile_says_core_clock_and_runtime(cli, table):
    (row,) = predicted(cli, table(CONV), "--target", "nucleo-l4r5zi")
    assert (row["target"], row["core"], row["clock_hz"]) == ("nucleo-l4r5zi", "cortex-m4", 120e6)
    assert row["runtime"] == "tflm@2.3"
    (other,) = predicted(cli, table(CONV), "--target", "nucleo-l4r5zi", "--runtime", "x-cube-ai")
    assert other["latency_ms"] < row["latency_ms"]


@pytest.mark.parametrize(
    ("options", "row", "said"),
    [
        (("--target", "esp32-s3-devkitc-1"), CONV, "no published figures of tflm on xtensa-lx7; there are some"),
        (("--target", "pixel-8"), CONV, "no core or no clock"),
        (("--target", "raspberry-pi-4"), CONV, "no published figures of litert on cortex-a72"),
        ((*M7, "--runtime", "glow"), CONV, "no published figures for runtime glow; there are some for runtime"),
        ((*M7, "--runtime", "x-cube-ai@1.0"), CONV, "no published figures of x-cube-ai 1.0; there are some"),
        ((*M7, "--runtime", "x-cube-ai"), CONV.replace("int8", "float32"), "or too few, of x-cube-ai in float32"),
        ((*M7, "--runtime", "x-cube-ai", "--threads", "4"), CONV, "no published figures of x-cube-ai with 4 thread(s)"),
        ((*M7, "--runtime", "x-cube-ai"), CONV.replace("CONV_2D", "SVDF"), "no published figures tell what SVDF"),
        ((*M7, "--runtime", "x-cube-ai"), CONV + "0000000", "multiply-accumulates are far from"),
        ((*M7, "--runtime", "x-cube-ai"), CONV + "0", "23,592,960 multiply-accumulates in the table and 2,359,296 by"),
    ],
)  # fmt: skip
def test_what_figures_do_not_tell_is_refused(cli, table, options, row, said):
    (found,) = predicted(cli, table(row), *options)
    assert said in found["refused"]
    assert (found["latency_ms"], found["low"], found["high"]) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "a prediction needs --target, or --core, --clock-hz and --runtime"),
        (("--core", "cortex-m7"), "--core cortex-m7 needs --clock-hz"),
        (M7, "--core cortex-m7 needs --runtime, such as x-cube-ai or tflm"),
        (("--clock-hz", 1e8), "--clock-hz needs --core"),
        (("--core", "cortex-m7", "--clock-hz", 0, "--runtime", "tflm"), "Invalid value for '--clock-hz'"),
        (("--core", "cortex-m7", "--clock-hz", "nan", "--runtime", "tflm"), "must be a number above 0, got nan"),
        (("--core", "", "--clock-hz", 1e8, "--runtime", "tflm"), "--core is empty"),
        ((*M7, "--runtime", ""), "--core cortex-m7 needs --runtime"),
        ((*M7, "--target", "nucleo-l4r5zi"), "--core and --target both say where"),
        (("--target", "nucleo-l4r5zi", "--latency-models", "no.json"), "no.json: cannot be read as latency models"),
    ],
)
def test_a_request_that_says_too_little_or_too_much_is_refused(cli, table, options, said):
    answer = cli("benchmark", "--predict", table(CONV), *options, "--json")
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_without_a_file_or_a_table_nothing_is_asked(cli):
    answer = cli("benchmark", *M7, "--runtime", "x-cube-ai")
    assert (answer.code, answer.out) == (2, "")
    assert "name an ARTIFACT, or a table of operators with --predict LAYERS.csv" in answer.err


def test_the_table_on_the_terminal_has_interval_and_baseline(cli, table):
    answer = cli("benchmark", "--predict", table(CONV), *M7, "--runtime", "x-cube-ai")
    assert answer.code == 0
    assert answer.out.endswith(" ms\n")
    assert "MACs per clock" in answer.err
    assert "x-cube-ai@8.1" in answer.err


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """m.tflite with enough work to be near the models with figures, d.npz to run it."""
    folder = tmp_path_factory.mktemp("latency")
    small_model(folder / "m.tflite", side=48)
    np.savez(folder / "d.npz", x=images(20, side=48))
    return folder


def test_a_file_says_its_operators(files):
    conv, dense = operators.from_info(artifacts.describe(files / "m.tflite"))
    assert conv == Operator(op="CONV_2D", dtype="int8", inputs=(1, 48, 48, 1), weights=(4, 3, 3, 1),
                            outputs=(1, 48, 48, 4), stride=(1, 1), macs=48 * 48 * 36)  # fmt: skip
    assert (dense.op, dense.weights, dense.macs) == ("FULLY_CONNECTED", (3, 48 * 48 * 4), 27_648)


@pytest.mark.real
@pytest.mark.parametrize(
    "file", ["ic/pretrainedResnet_quant.tflite", "kws/kws_ref_model.tflite", "ad/ad01_int8.tflite"]
)
def test_a_published_file_says_the_operators_of_its_published_table(file):
    shared = Path(__file__).parents[2] / "shared" / "data" / "mlperf_tiny" / file
    if not shared.exists():
        pytest.skip(f"{shared} is not there")
    name = Path(file).name
    (table,) = (t for model, t in operators.read_table(figures.LAYERS).items() if model.endswith(f"/{name}"))
    found = operators.from_info(artifacts.describe(shared))
    memory = platforms.MICROCONTROLLER.memory
    np.testing.assert_array_equal(features.features(found, memory, 4), features.features(table, memory, 4))
    assert [o.op for o in found] == [o.op for o in table]


def test_a_file_is_predicted_on_a_target_that_is_not_here(cli, files, schema):
    answer = cli("benchmark", files / "m.tflite", "--target", "nucleo-h743zi2", "--repeats", 5, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("benchmark"))
    assert answer.json["results"][0]["method"] == "measured-host"
    (row,) = answer.json["predictions"]
    assert (row["target"], row["model"]) == ("nucleo-h743zi2", str(files / "m.tflite"))
    assert row["low"] < row["latency_ms"] < row["high"]


def test_a_file_is_predicted_on_a_core_without_being_run(cli, files):
    answer = cli("benchmark", files / "m.tflite", *M7, "--runtime", "x-cube-ai", "--json")
    assert answer.code == 0, answer.err
    assert list(answer.json) == ["predictions"]
    assert answer.json["predictions"][0]["refused"] is None


def test_validate_tells_the_predicted_latency_of_a_target_that_is_not_here(cli, files):
    given = ("--reference", files / "m.tflite", "--data", files / "d.npz", "--target", "nucleo-l4r5zi")
    answer = cli("validate", files / "m.tflite", *given, "--limit", "latency_ms=1000", "--json")
    assert answer.code == 0, answer.err
    (found,) = [c for c in answer.json["checks"] if c["name"] == "latency_ms"]
    assert (found["method"], found["verdict"], found["target"]) == ("predicted", "pass", "nucleo-l4r5zi")
    assert found["low"] < found["measured"] < found["high"]


@pytest.mark.parametrize(
    ("options", "verdict", "said"),
    [
        ((), "pass", "90 % interval; litert before-5.0, int8, 2 thread(s)"),
        (("--threads", 2), "pass", "90 % interval; litert before-5.0, int8, 2 thread(s)"),
        (("--threads", 1), "unchecked", "no prediction: no published figures of litert with 1 thread(s)"),
        (("--runtime", "tflm"), "unchecked", "no prediction: no published figures of tflm on cortex-a7"),
    ],
)
def test_validate_predicts_for_the_runtime_and_threads_that_were_asked_for(cli, tmp_path, options, verdict, said):
    small_model(tmp_path / "m.tflite", side=112)
    np.savez(tmp_path / "d.npz", x=images(4, side=112))
    board = tmp_path / "board.toml"
    board.write_text(
        'name = "A board"\nsource = "https://example.org"\nformats = ["tflite"]\n[runtime.litert]\n'
        '[cpu]\ncore = "cortex-a7"\nclock_hz = 1_000_000_000\ncores = 2\n'
    )
    given = ("--reference", tmp_path / "m.tflite", "--data", tmp_path / "d.npz", "--target", board, *options)
    answer = cli("validate", tmp_path / "m.tflite", *given, "--limit", "latency_ms=100000", "--json")
    (found,) = [c for c in answer.json["checks"] if c["name"] == "latency_ms"]
    assert found["verdict"] == verdict
    assert found["why"].startswith(said)


def judged(files, target, limits):
    info = artifacts.describe(files / "m.tflite")
    return predicted_checks.latency(info, targets.load(target), Gates(limits=limits))


def test_a_predicted_latency_is_judged_by_its_whole_interval(files):
    (found,) = judged(files, "nucleo-l4r5zi", {})
    assert found.verdict is Verdict.INFO
    assert "multiply-accumulates per clock alone" in found.why
    for limit, verdict in [(found.high, "pass"), (found.high * 0.99, "inconclusive"), (found.low, "inconclusive"),
                           (found.low * 0.99, "fail")]:  # fmt: skip
        (check,) = judged(files, "nucleo-l4r5zi", {"latency_ms": limit})
        assert (check.verdict, check.limit) == (verdict, limit)


def test_a_refused_prediction_is_unchecked_under_a_limit_and_says_why(files):
    assert judged(files, "esp32-s3-devkitc-1", {}) == []
    (found,) = judged(files, "esp32-s3-devkitc-1", {"latency_ms": 100})
    assert (found.verdict, found.measured) == (Verdict.UNCHECKED, None)
    assert found.why.startswith("no prediction: no published figures of tflm on xtensa-lx7")


def test_a_file_whose_operators_state_no_type_is_refused(files):
    info = artifacts.describe(files / "m.tflite")
    untold = replace(info, ops=tuple(replace(op, dtype="") for op in info.ops))
    (found,) = predicted_checks.latency(untold, targets.load("nucleo-l4r5zi"), Gates(limits={"latency_ms": 1000}))
    assert found.verdict is Verdict.UNCHECKED
    assert "or too few, of tflm in no stated type; there are some for precision int8" in found.why


def test_this_machine_is_measured_and_never_predicted(files):
    assert judged(files, "host", {"latency_ms": 1}) == []


@pytest.mark.parametrize(
    "old",
    [{"format": fitted.FORMAT, "features": {"macs": ""}, "fits": []}, {"features": features.FEATURES, "fits": []}],
)
def test_a_file_of_latency_models_of_another_version_is_refused(cli, table, tmp_path, old):
    (tmp_path / "old.json").write_text(json.dumps(old))
    answer = cli("benchmark", "--predict", table(CONV), "--target", "nucleo-l4r5zi",
                 "--latency-models", tmp_path / "old.json")  # fmt: skip
    assert (answer.code, answer.out) == (2, "")
    assert "write them again with scripts/fit_latency.py" in answer.err

"""Latency prediction: tables of operators, the fit on made-up processors, the shipped models, the command line."""

import csv
import dataclasses
import importlib
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from crafted import images, small_model

from edgedl import artifacts, targets
from edgedl.errors import InputError
from edgedl.latency import evaluation, features, figures, fitted, operators, platforms, prediction
from edgedl.latency.hierarchy import Hierarchy, Row, Spreads
from edgedl.latency.operators import Operator
from edgedl.types import Verdict
from edgedl.validation import predicted as predicted_checks
from edgedl.validation.gates import Gates

COLUMNS = "model,op,dtype,in_shape,weight_shape,out_shape,stride,macs"
CONV = "net,CONV_2D,int8,1x32x32x16,16x3x3x16,1x32x32x16,1x1,2359296"
M7 = ("--core", "cortex-m7", "--clock-hz", 400_000_000)


@pytest.fixture
def table(tmp_path):
    """Writes a table of operators; gives its path."""

    def write(*rows, columns=COLUMNS):
        path = tmp_path / "layers.csv"
        path.write_text("\n".join([columns, *rows]) + "\n")
        return path

    return write


@pytest.fixture
def one_spread(monkeypatch):
    """One fit where the evidence of many would choose."""
    monkeypatch.setattr(evaluation, "GRID", {"costs": (0.5,), "family": (0.06,), "version": (0.2,)})


# ---- tables -------------------------------------------------------------------------------------------------------


def test_a_table_holds_several_models_in_order(table):
    found = operators.read_table(table(CONV, "other,SOFTMAX,int8,1x10,,1x10,,0", CONV.replace("CONV_2D", "ADD")))
    assert {name: [op.op for op in ops] for name, ops in found.items()} == {"net": ["CONV_2D", "ADD"],
                                                                            "other": ["SOFTMAX"]}  # fmt: skip
    assert found["net"][0].weights == (16, 3, 3, 16)
    assert found["other"][0].weights == ()


def test_multiply_accumulates_that_a_table_leaves_out_are_counted(table):
    (found,) = operators.read_table(table(CONV.replace("2359296", "")))["net"]
    assert found.macs == 2_359_296


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([CONV], COLUMNS.replace("macs", "mac"), "no column 'macs'; a table of operators has model, op, dtype"),
        ([], COLUMNS, "holds no operators"),
        ([CONV.replace("1x32x32x16,16x3", "1x32x?x16,16x3")], COLUMNS,
         ":2: in_shape must be sizes such as 1x96x96x3, got '1x32x?x16'"),
        ([CONV, CONV.replace("2359296", "-5")], COLUMNS, ":3: macs must be a whole number, got '-5'"),
        ([CONV.replace("2359296", "2.4e6")], COLUMNS, ":2: macs must be a whole number, got '2.4e6'"),
        ([CONV.replace("net,", ",")], COLUMNS, ":2: a row needs model and op, got ''"),
        (["net,CONV_2D"], COLUMNS, ":2: a row has 2 columns, the first line 8"),
        ([CONV + ",1,2"], COLUMNS, ":2: a row has 10 columns, the first line 8"),
        ([CONV.replace("16x3x3x16,", ",")], COLUMNS, ":2: weight_shape of CONV_2D must have 4 sizes, got ''"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_refused_with_its_line(cli, table, rows, columns, said):
    path = table(*rows, columns=columns)
    answer = cli("benchmark", "--predict", path, *M7, "--runtime", "x-cube-ai", "--json")
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert answer.err.startswith(f"Error: {path}")


def test_multiply_accumulates_are_counted_from_shapes():
    assert operators.count_macs("CONV_2D", (1, 32, 32, 16), (16, 3, 3, 16), (1, 32, 32, 16)) == 2_359_296
    assert operators.count_macs("DEPTHWISE_CONV_2D", (1, 8, 8, 4), (1, 3, 3, 4), (1, 8, 8, 4)) == 64 * 4 * 9
    assert operators.count_macs("FULLY_CONNECTED", (1, 640), (128, 640), (1, 128)) == 81_920
    assert operators.count_macs("ADD", (1, 8), (), (1, 8)) == 0


def test_features_count_what_an_operator_does():
    memory = features.Memory(cache_bytes=1000, ram_bytes=10_000, flash_bytes=100)
    conv = Operator(op="CONV_2D", dtype="int8", inputs=(1, 4, 4, 3), weights=(8, 3, 3, 3), outputs=(1, 4, 4, 8),
                    stride=(1, 1), macs=16 * 8 * 27)  # fmt: skip
    found = dict(zip(features.NAMES, features.features([conv], memory, depth_step=4), strict=True))
    assert {k: v for k, v in found.items() if v} == {
        "shallow_macs": 3456, "conv_gather": 16 * 27, "conv_out": 128, "operators": 1, "weights": 216,
        "flash_macs": 3456,
    }  # fmt: skip
    deep = dict(zip(features.NAMES, features.features([conv], memory), strict=True))
    assert (deep["conv_macs"], deep["shallow_macs"]) == (3456, 0)
    view = dataclasses.replace(conv, op="RESHAPE", weights=(), macs=0)
    assert not features.features([view], memory).any()


# ---- the fit, where the truth is known ----------------------------------------------------------------------------


def made_up(cores, seed=0, noise=0.03):
    """Rows of twelve families on each core, by costs that differ from the prior and a factor a core."""
    rng = np.random.default_rng(seed)
    prior = platforms.MICROCONTROLLER.prior
    costs = prior.cycles * np.exp(0.3 * rng.standard_normal(len(prior.cycles)))
    rows = []
    for i in range(12):
        counts = np.exp(rng.uniform(8, 14, len(costs))) * (rng.random(len(costs)) < 0.6)
        counts[list(features.NAMES).index("operators")] = 20
        for core, factor in cores.items():
            cycles = factor * float(counts @ costs) * float(np.exp(noise * rng.standard_normal()))
            rows.append(Row(counts=counts, cycles=cycles, latency_ms=cycles / 1e5, clock_hz=1e8, model=f"m{i}",
                            family=f"f{i}", runtime="r", version="1", core=core, board=f"b-{core}",
                            macs=int(counts[:4].sum())))  # fmt: skip
    return rows


def test_a_fit_finds_costs_that_the_prior_has_not(one_spread):
    rows = made_up({"cortex-m4": 2.0, "cortex-m7": 1.0})
    prior = platforms.MICROCONTROLLER.prior
    guesses = evaluation.leave_out(rows, prior, lambda r: r.family)
    found = evaluation.summary(guesses, guesses)
    assert found["figures"] == 24
    assert found["median_error"] < 0.08 < found["macs_per_clock_median_error"]
    assert found["rank_correlation"] > 0.98
    assert found["coverage"] >= 0.85


def test_what_a_fit_has_no_figures_for_is_less_certain():
    rows = made_up({"cortex-m4": 2.0, "cortex-m7": 1.0})
    fit = Hierarchy(rows, platforms.MICROCONTROLLER.prior, Spreads())
    known, new_board, new_core, new_runtime = (
        fit.at(runtime=runtime, version="1", core=core, board=board).predict(rows[0].counts)[1]
        for runtime, core, board in [("r", "cortex-m4", "b-cortex-m4"), ("r", "cortex-m4", None),
                                     ("r", "cortex-m33", None), ("other", "cortex-m4", None)]
    )  # fmt: skip
    assert known < new_board < new_core
    assert new_board < new_runtime


def test_a_board_without_figures_may_have_any_memory_outside_of_the_chip():
    rows = made_up({"cortex-m7": 1.0})
    fit = Hierarchy(rows, platforms.MICROCONTROLLER.prior, Spreads())
    flash, known = (fit.at(runtime="r", version="1", core="cortex-m7", board=b) for b in (None, "b-cortex-m7"))
    more = np.diag(flash.covariance - known.covariance)
    assert {n for n, v in zip(features.NAMES, more, strict=True) if v > 0.2} == {"spilled", "flash_macs"}


def test_the_interval_is_set_by_the_families_left_out(one_spread):
    quiet, loud = (evaluation.leave_out(made_up({"cortex-m7": 1.0}, noise=noise), platforms.MICROCONTROLLER.prior,
                                        lambda r: r.family) for noise in (0.03, 0.4))  # fmt: skip
    limit = evaluation.quantile(loud)
    assert 0.8 <= np.mean([g.score <= limit for g in loud]) <= 1
    assert limit > 2 * evaluation.quantile(quiet)
    freak = dataclasses.replace(loud[0], latency_ms=loud[0].row.latency_ms * 1e3)
    assert evaluation.quantile([freak, *loud[1:]]) < freak.score / 2


def test_fewer_families_make_a_wider_interval():
    row = made_up({"cortex-m7": 1.0})[0]
    guesses = [evaluation.Guess(row=dataclasses.replace(row, family=f"f{i}"), latency_ms=1.1 * row.latency_ms,
                                deviation=0.1, macs_ms=1) for i in range(10)]  # fmt: skip
    ten, three = evaluation.quantile(guesses), evaluation.quantile(guesses[:3])
    score = np.log(1.1) / evaluation.half_width(1, 0.1)
    assert ten == pytest.approx(score * np.sqrt(np.pi / 2) * 1.812, rel=1e-3)  # 1.812, 2.353: t of 10 and 3
    assert three / ten == pytest.approx(2.353 / 1.812, rel=1e-3)


# ---- what is shipped ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return prediction.load()


def test_every_shipped_figure_has_its_source_and_its_operators():
    found, tables = figures.read(), operators.read_table(figures.LAYERS)
    assert len(found) > 200
    for figure in found:
        assert ":" in figure.source
        assert figure.layers in tables
    assert {f.precision for f in found} == {"int8"}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"source": ""}, "source is empty"), ({"clock_hz": "fast"}, "clock_hz must be a number above 0, got 'fast'"),
     ({"latency_ms": "-1"}, "latency_ms must be a number above 0")],
)  # fmt: skip
def test_a_figure_without_source_or_number_is_refused(tmp_path, change, said):
    with figures.FIGURES.open() as file:
        row = next(csv.DictReader(file)) | change
    path = tmp_path / "figures.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    with pytest.raises(InputError, match=f"{path}:2: {said}"):
        figures.read(path)


def test_the_shipped_models_are_those_of_the_shipped_figures(shipped):
    found = [f for f in figures.read() if f.core.startswith("cortex-m")]
    rows = figures.rows(found, operators.read_table(figures.LAYERS))
    (spreads,) = (one["spreads"] for one in shipped["fits"] if one["runtimes"] == ["x-cube-ai"])
    fit = Hierarchy(rows, platforms.MICROCONTROLLER.prior, Spreads(**spreads))
    entries = [e for one in shipped["fits"] for e in one["entries"] if e["runtime"] == "x-cube-ai"]
    assert {e["core"] for e in entries} == {"cortex-m4", "cortex-m33", "cortex-m7"}
    for entry in entries:
        costs = fit.at(runtime="x-cube-ai", version=entry["version"], core=entry["core"])
        np.testing.assert_allclose(costs.log_cycles, entry["log_cycles"], rtol=2e-3, atol=2e-3)
    assert shipped["sources"] == sorted({f.source for f in figures.read()})


def test_families_left_out_are_predicted_within_8_and_18_percent(shipped):
    boards = {r["board"]: r for one in shipped["fits"] if one["runtimes"] in (["x-cube-ai"], ["litert"])
              for r in one["left_out"]["family"] if r["version"] == "all" != r["board"]}  # fmt: skip
    assert len(boards) == 6
    for found in boards.values():
        assert found["median_error"] <= 0.08
        assert found["p90_error"] <= 0.18 < found["macs_per_clock_p90_error"]
        assert found["rank_correlation"] >= 0.9
        assert found["coverage"] >= 0.85


@pytest.mark.parametrize(("runtime", "board"), [("x-cube-ai", "STM32H747I-DISCO"), ("litert", "STM32MP157F-DK2")])
def test_errors_that_the_shipped_models_say_are_found_again(shipped, monkeypatch, runtime, board):
    (one,) = (one for one in shipped["fits"] if one["runtimes"] == [runtime])
    monkeypatch.setattr(evaluation, "GRID", {k: (v,) for k, v in one["spreads"].items()})
    platform = platforms.PLATFORMS[one["platform"]]
    rows = figures.rows(figures.read(), operators.read_table(figures.LAYERS))
    here = [r for r in rows if platforms.platform_of(r.core) is platform]
    guesses = [g for g in evaluation.leave_out(here, platform.prior, lambda r: r.family) if g.row.board == board]
    (said,) = (r for r in one["left_out"]["family"] if (r["board"], r["version"]) == (board, "all"))
    assert evaluation.summary(guesses, guesses)["median_error"] == pytest.approx(said["median_error"], abs=0.03)


def test_the_shipped_models_say_their_errors_beside_the_baseline(shipped):
    for one in shipped["fits"]:
        rows = one["left_out"]["family"]
        assert rows[-1]["board"] == "all"
        assert all(r["median_error"] >= 0 and r["macs_per_clock_median_error"] > 0 for r in rows)


def test_nothing_but_numpy_is_needed_to_predict():
    import subprocess
    import sys

    code = "import edgedl.latency.requests, sys; print({'tensorflow', 'keras', 'scipy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "set()\n"


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


def test_own_figures_make_latency_models_of_ones_own(tmp_path, table, cli, one_spread):
    mine = {f.family: f for f in figures.read() if f.runtime == "litert"}
    own = [
        dataclasses.replace(f, runtime="mine", version="1", threads=1, core="cortex-a72", board="my-board")
        for f in list(mine.values())[:4]
    ]
    said = []
    made = fitted.fit(figures.rows(own, operators.read_table(figures.LAYERS)), own, said=said.append)
    (tmp_path / "models.json").write_text(json.dumps(made))
    (row,) = predicted(cli, table(CONV), "--core", "cortex-a72", "--clock-hz", 1.5e9, "--runtime", "mine",
                       "--latency-models", tmp_path / "models.json")  # fmt: skip
    assert "mine 1, int8, 1 thread(s): 4 figures of 4 families, all versions, on my-board" in row["basis"]
    assert said == ["application: 4 figures ..."]
    with pytest.raises(InputError, match="no operators of 'nowhere' in the tables given"):
        figures.rows([dataclasses.replace(own[0], layers="nowhere")], {})


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


# ---- scripts ------------------------------------------------------------------------------------------------------


def script(monkeypatch, name):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module(name)


def test_the_bench_prints_ours_beside_both_baselines(monkeypatch, capsys, one_spread):
    bench = script(monkeypatch, "bench_latency")
    bench.show(bench.table(["litert"]))
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["left", "out"]
    assert re.match(
        r"family +STM32MP157F-DK2 +litert +21 +[\d.]+ / [\d.]+ % +8 / 18 % +[\d.]+ / [\d.]+ % +[\d.]+ /", line
    )


def test_new_rows_of_new_families_and_cores_are_collected(monkeypatch, tmp_path, capsys):
    collecting = script(monkeypatch, "collect_latency")
    monkeypatch.setattr(collecting, "FIGURES", tmp_path / "figures.csv")
    monkeypatch.setattr(collecting, "LAYERS", tmp_path / "layers.csv")
    (tmp_path / "tflite_layers.csv").write_text(
        "model,idx,op,dtype,in_shape,weight_shape,out_shape,stride,macs\n"
        "x/squeeze.tflite,0,CONV_2D,int8,1x8x8x3,4x3x3x3,1x8x8x4,1x1,6912\n"
    )
    (tmp_path / "mlperf_tiny.csv").write_text(
        "board,cpu,model,precision_guess,plain_cpu,latency_ms,system,runtime,compiler,round,clock_mhz,source\n"
        "B,Cortex-M4,Transformer 3,int8,1,3.0,s,TFLM,c,v1.3,80,s:1\n"
    )
    (tmp_path / "st_modelzoo_latency.csv").write_text(
        "model,resolution,format,board,cpu,clock_mhz,latency_ms,source,layers_model\n"
        "SqueezeNet v1.0 tfs,8x8x3,Int8,STM32U5A9J-DK,32-bit Arm(R) Cortex(R)-M33,160,5.5,zoo:r,x/squeeze.tflite\n"
        "SqueezeNet v1.0,8x8x3,Int8,STM32N6570-DK,Neural-ART,800,0.1,zoo:r,x/squeeze.tflite\n"
    )
    collecting.collect(tmp_path)
    (found,) = figures.read(tmp_path / "figures.csv")
    assert (found.family, found.core, found.runtime, found.clock_hz) == ("squeezenet", "cortex-m33", "x-cube-ai", 160e6)
    assert list(operators.read_table(tmp_path / "layers.csv")) == ["x/squeeze.tflite"]
    said = capsys.readouterr().err
    assert "1 rows, no core" in said
    assert "1 rows, no published operators" in said

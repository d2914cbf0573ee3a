"""Latency prediction: tables of operators, the fit on made-up processors, the shipped models, the scripts."""

import csv
import dataclasses
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from operator_tables import COLUMNS, CONV, M7, writer

from edgedl.errors import InputError
from edgedl.latency import evaluation, features, figures, fitted, operators, platforms, prediction
from edgedl.latency.hierarchy import Hierarchy, Row, Spreads
from edgedl.latency.operators import Operator


@pytest.fixture
def table(tmp_path):
    return writer(tmp_path / "layers.csv")


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
        ([CONV.replace("net,", ",")], COLUMNS, ":2: a row needs model, op and dtype; model is empty"),
        ([CONV, CONV.replace("int8", "")], COLUMNS, ":3: a row needs model, op and dtype; dtype is empty"),
        ([CONV.replace("1x32x32x16,16x3", ",16x3")], COLUMNS,
         ":2: in_shape of CONV_2D must be sizes such as 1x96x96x3, got ''"),
        ([CONV.replace("1x32x32x16,1x1", ",1x1")], COLUMNS,
         ":2: out_shape of CONV_2D must be sizes such as 1x96x96x3, got ''"),
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
    for name in ("ARG_MAX", "ARG_MIN"):
        most = Operator(op=name, dtype="int64", inputs=(1, 10), weights=(), outputs=(1,), stride=(), macs=0)
        found = dict(zip(features.NAMES, features.features([most], memory), strict=True))
        assert {k: v for k, v in found.items() if v} == {"reduce": 10, "operators": 1}


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


def test_families_left_out_are_predicted_within_9_and_18_percent(shipped):
    boards = {r["board"]: r for one in shipped["fits"] if one["runtimes"] in (["x-cube-ai"], ["litert 2 threads"])
              for r in one["left_out"]["family"] if r["version"] == "all" != r["board"]}  # fmt: skip
    assert len(boards) == 6
    for found in boards.values():
        assert found["median_error"] <= 0.09
        assert found["p90_error"] <= 0.18 < found["macs_per_clock_p90_error"]
        assert found["rank_correlation"] >= 0.9
        assert found["coverage"] >= 0.85


@pytest.mark.parametrize(
    ("runtime", "board"), [("x-cube-ai", "STM32H747I-DISCO"), ("litert 2 threads", "STM32MP157F-DK2")]
)
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


def test_own_figures_make_latency_models_of_ones_own(tmp_path, table, cli, one_spread):
    mine = {f.family: f for f in figures.read() if f.runtime == "litert"}
    own = [
        dataclasses.replace(f, runtime="mine", version="1", threads=1, core="cortex-a72", board="my-board")
        for f in list(mine.values())[:4]
    ]
    said = []
    made = fitted.fit(figures.rows(own, operators.read_table(figures.LAYERS)), own, said=said.append)
    (tmp_path / "models.json").write_text(json.dumps(made))
    given = ("--core", "cortex-a72", "--clock-hz", 1.5e9, "--runtime", "mine")
    answer = cli("benchmark", "--predict", table(CONV), *given, "--latency-models", tmp_path / "models.json", "--json")
    (row,) = answer.json["predictions"]
    assert "mine 1, int8, 1 thread(s): 4 figures of 4 families, all versions, on my-board" in row["basis"]
    assert said == ["application: 4 figures ..."]
    with pytest.raises(InputError, match="no operators of 'nowhere' in the tables given"):
        figures.rows([dataclasses.replace(own[0], layers="nowhere")], {})


def test_figures_of_another_precision_have_costs_of_their_own(tmp_path, table, cli, one_spread):
    mine = {f.family: f for f in figures.read() if f.runtime == "litert" and f.latency_ms < 50}
    own = [dataclasses.replace(f, threads=1) for f in mine.values()]
    own += [dataclasses.replace(f, precision="float32", latency_ms=4 * f.latency_ms) for f in own]
    own += [dataclasses.replace(own[0], precision="float16")]
    said = []
    made = fitted.fit(figures.rows(own, operators.read_table(figures.LAYERS)), own, said=said.append)
    assert said[1:] == ["left out: litert float16, since it takes figures of 3 families of networks on one version "
                        "and core"]  # fmt: skip
    (tmp_path / "models.json").write_text(json.dumps(made))
    given = ("--core", "cortex-a7", "--clock-hz", 8e8, "--runtime", "litert", "--latency-models")
    rows = table(CONV, CONV.replace("net", "float").replace("int8", "float32"))
    int8, real = cli("benchmark", "--predict", rows, *given, tmp_path / "models.json", "--json").json["predictions"]
    assert 2 < real["latency_ms"] / int8["latency_ms"] < 6
    assert f"float32, 1 thread(s): {len(mine)} figures" in real["basis"]


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
        r"family +STM32MP157F-DK2 +litert 2 threads +21 +[\d.]+ / [\d.]+ % +8 / 18 % +[\d.]+ / [\d.]+ % +[\d.]+ /", line
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


def test_a_table_of_figures_that_cannot_be_fitted_is_one_clear_line(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script(monkeypatch, "fit_latency").main(["--add", str(tmp_path / "none.csv"), "-o", str(tmp_path / "m.json")])
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err
        == f"Error: {tmp_path}/none.csv: cannot be read as a table of figures (No such file or directory)\n"
    )

"""`edgedl run`: pipeline files, what is skipped and what is done again, going on after a kill, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import click
import jsonschema
import numpy as np
import pytest
from conftest import samples, when_held

from edgedl import pipeline, pipeline_file, runs, worker
from edgedl.cli import edgedl
from edgedl.errors import InputError

EXPORT = '[[export]]\nformat = "tflite"\n'
MODEL = 'model = "m.keras"\n'
PROFILE = Path(__file__).parents[1] / "targets" / "alif-ensemble-e7.toml"
NOT_IN_A_TABLE = {"out", "force", "json", "junit", "help"}


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def project(tmp_path, model, data):
    """A folder with m.keras and d.npz, from which no test is run: paths are relative to the pipeline file."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(model, folder / "m.keras")
    shutil.copy(data / "test.npz", folder / "d.npz")
    return folder


def run(cli, file, *more):
    """The answer, the steps done and the steps skipped."""
    answer = cli("run", file, *more)
    lines = [line for line in answer.err.splitlines() if not line.startswith(" ")]
    done = [line.removesuffix(" ...") for line in lines if line.endswith(" ...")]
    skipped = [line.partition(":")[0] for line in lines if line.endswith("done before, skipped")]
    return answer, done, skipped


# ---- what a file may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "positional", "missing"),
    [
        ("train", set(), set()),
        ("compress", set(), set()),
        ("export", {"out"}, set()),
        ("validate", {"artifact"}, {"plan", "report"}),  # the run writes its own report
        ("package", {"artifact"}, set()),
    ],
)
def test_keys_of_a_table_are_the_long_options_of_its_command(function, positional, missing):
    command = edgedl.get_command(click.Context(edgedl), function)
    options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
    allowed = {o.removeprefix("--") for o in options} - NOT_IN_A_TABLE - missing
    assert set(pipeline_file.keys(function)) == allowed | positional


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to do; it needs a table [train], [compress] or [[export]]"),
        (MODEL, "nothing to do"),
        (EXPORT, "no [train] table and no model; name one of them"),
        ('model = "n.keras"\n' + EXPORT, "model: no such file or folder: n.keras"),
        (MODEL + "[export]\n", "export must be an array, each a table, got {}"),
        (MODEL + "[[exports]]\n", "unknown key 'exports' (did you mean 'export'?)"),
        (MODEL + EXPORT + "sample = 3\n", "[[export]] 1: unknown key 'sample' (did you mean 'samples'?); allowed: "),
        (MODEL + EXPORT + "calibration_data = 'd.npz'\n", "unknown key 'calibration_data' (did you mean 'calibration-"),
        (MODEL + EXPORT + "format_ = 'tflite'\n", "unknown key 'format_' (did you mean 'format'?)"),
        (MODEL + EXPORT + "force = true\n", "unknown key 'force'"),
        (MODEL + EXPORT + "samples = 'many'\n", "[[export]] 1: samples must be an integer, got 'many'"),
        (MODEL + EXPORT + "out = 3\n", "[[export]] 1: out must be a string, got 3"),
        (MODEL + EXPORT + "out = '../m.keras'\n", "out must be a file name of its own, without a folder, got '../m.ke"),
        (MODEL + EXPORT + EXPORT, "[[export]] 2: out must be a file name of its own, without a folder, got 'm-fp32"),
        (MODEL + "[[export]]\nscheme = 'int8'\n", "[[export]] 1: name its format or its out file"),
        (MODEL + EXPORT + "calibration-data = 'n.npz'\n", "[[export]] 1: calibration-data: no such file or folder: n."),
        (MODEL + EXPORT + "[[validate]]\n", "[[validate]] 1: data is missing; it must be a string"),
        (
            MODEL + EXPORT + "[[validate]]\ndata = 'd.npz'\nartifact = 'b.tflite'\n",
            "artifact must be an export, got 'b",
        ),
        (MODEL + EXPORT + "[[validate]]\ndata = 'd.npz'\nreference = 3\n", "reference must be a string, got 3"),
        (
            MODEL + EXPORT + "[[validate]]\ndata = 'd.npz'\non-inconclusive = 'no'\n",
            "one of fail, warn, pass, got 'no'",
        ),
        ("[train]\nmodel = 'mlp'\n", "[train]: data is missing"),
        ("[train]\nmodel = 'mlp'\ndata = 'd.npz'\n[package]\nplatform = 'zip'\n", "there are: none; add an [[export]]"),
    ],
)
def test_a_wrong_file_is_one_line_and_nothing_is_begun(cli, project, monkeypatch, text, message):
    monkeypatch.chdir(project)
    answer = cli("run", write(Path("p.toml"), text))
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
    assert answer.err.startswith("Error: p.toml: ")
    assert message in answer.err
    assert not Path("p").exists()


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("scheme = 'int9'\n", 2, "no such scheme: 'int9'"),
        ("scheme = 'int4'\n", 3, "has no scheme weight_only_wi4"),
        ("target = 'nucleo'\n", 2, "p.toml: [[export]] 1: no such target: 'nucleo'"),
        ("[[validate]]\ndata = 'd.npz'\nlimit = 'latency=2'\n", 2, "[[validate]] 1: --limit: no check 'latency'"),
        ("[[validate]]\ndata = 'd.npz'\nmax-drop = 'little'\n", 2, "[[validate]] 1: --max-drop: 0.5pp, or a number"),
        ("[[validate]]\ndata = 'd.npz'\nmetric = 'top'\n", 4, "[[validate]] 1: no metric 'top'; allowed: "),
        ("[package]\nplatform = 'windows'\n", 4, "[package]: no plugin provides packager 'windows'"),
        ("[compress]\nrecipe = 'int9'\n", 2, "[compress]: no such recipe: 'int9' (did you mean 'int8'?)"),
        ("[compress]\nrecipe = 'int8'\nset = '1.epochs'\n", 2, "[compress]: --set 1.epochs: must be STEP.KEY=VALU"),
    ],
)
def test_what_later_steps_would_refuse_is_refused_before_anything_is_trained(cli, project, text, code, message):
    train = "[train]\nmodel = 'cnn-small'\ndata = 'd.npz'\n"
    answer, done, _ = run(cli, write(project / "p.toml", train + EXPORT.replace("tflite", "onnx") + text))
    assert (answer.code, done) == (code, [])
    assert message in answer.err


def test_a_folder_of_the_users_is_no_run(cli, project):
    file = write(project / "p.toml", MODEL + EXPORT)
    (project / "p").mkdir()
    (project / "p" / "mine.txt").write_text("mine")
    answer, done, _ = run(cli, file)
    assert (answer.code, done) == (2, [])
    assert "holds 'mine.txt' and no run; name another folder with -o" in answer.err


@pytest.mark.parametrize("mine", ["export-1/cat/photo.png", "report.html"])
def test_a_run_beside_its_file_replaces_nothing_of_the_users(cli, project, mine):
    file = write(project / "p.toml", MODEL + EXPORT)
    (project / mine).parent.mkdir(parents=True, exist_ok=True)
    write(project / mine, "mine")
    answer, done, _ = run(cli, file, "-o", project)
    assert (answer.code, done) == (2, [])
    assert f"{project / mine.split('/')[0]}: is " in answer.err
    assert "would" in answer.err
    assert (project / mine).read_text() == "mine"


# ---- what is done, skipped, and done again --------------------------------------------------------------------------


def test_a_run_makes_a_folder_a_step_and_a_report(cli, project, schema, monkeypatch, tmp_path):
    """From another working directory, with paths relative to the file and the run's folder relative to here."""
    (project / "labels.txt").write_text("left\nmiddle\nright\n")
    text = (
        MODEL + EXPORT + 'scheme = "int8"\ncalibration-data = "d.npz"\nlabels = "labels.txt"\nsamples = 30\n'
        '[[validate]]\ndata = "d.npz"\ntarget = "host"\n[package]\nplatform = "zip"\n'
    )
    monkeypatch.chdir(tmp_path)
    answer = cli("run", write(project / "p.toml", text), "-o", "here", "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("run"))
    assert answer.json["steps"] == ["export-1", "validate-1", "package"]
    assert (answer.json["folder"], answer.json["report"]) == ("here", "here/report.html")
    request = json.loads(Path("here/export-1/request.json").read_text())
    assert request["function"] == "export"
    assert set(request["reads"]) == {str(project / n) for n in ("m.keras", "d.npz", "labels.txt")}
    done = json.loads(Path("here/export-1/done.json").read_text())
    assert done["answer"]["path"] == "here/export-1/m-int8.tflite"
    assert set(done["made"]) == {"request.json", "m-int8.tflite", "m-int8.tflite.edgedl.json"}
    assert Path("here/package/m-int8-1.0.0.zip").is_file()
    packed = json.loads(Path("here/package/request.json").read_text())
    assert packed["arguments"]["report"] == "here/validate-1/report.json"
    assert [p.name for p in Path("here").glob(".*")] == [".steps.json"]


def test_a_step_is_done_again_only_when_what_it_reads_or_made_has_changed(cli, project, monkeypatch):
    x, y = samples(60)
    np.savez(project / "d.npz", x=x, y=y)
    (project / "d.toml").write_text('data = "d.npz"\n')
    text = MODEL + EXPORT + '[[validate]]\ndata = "d.toml"\n'
    file, made = write(project / "p.toml", text), project / "p" / "export-1" / "m-fp32.tflite"
    assert run(cli, file)[1:] == (["export-1", "validate-1"], [])
    assert run(cli, file)[1:] == ([], ["export-1", "validate-1"])
    monkeypatch.chdir(project)  # where the paths of all that it reads are others
    assert run(cli, file.name)[1:] == ([], ["export-1", "validate-1"])
    np.savez(project / "d.npz", x=x, y=y[::-1])  # not the file that the table names, but one that it stands for
    assert run(cli, file)[1:] == (["validate-1"], ["export-1"])
    content = made.read_bytes()
    made.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(cli, file)[1:] == (["export-1"], ["validate-1"])  # the same bytes again, so nothing after it changes
    assert made.read_bytes() == content
    made.unlink()
    assert run(cli, file)[1] == ["export-1"]
    write(file, text.replace("[[val", "slim = false\n[[val"))
    assert run(cli, file)[1:] == (["export-1", "validate-1"], [])


def test_a_step_that_fails_keeps_what_it_made_before(cli, project):
    file = write(project / "p.toml", MODEL + EXPORT + '[[validate]]\ndata = "d.npz"\n')
    assert run(cli, file)[0].code == 0
    report = (project / "p" / "validate-1" / "report.json").read_text()
    x, y = samples(20)
    np.savez(project / "d.npz", x=x, y=y + 7)
    answer, done, skipped = run(cli, file)
    assert (answer.code, done, skipped) == (2, ["validate-1"], ["export-1"])
    assert f"{project / 'd.npz'}: output 'kind': targets: label" in answer.err
    assert (project / "p" / "validate-1" / "report.json").read_text() == report


def test_a_step_has_its_folder_only_when_it_is_whole(project, monkeypatch):
    """While a step works its folder has another name; `done.json` is in it before it is renamed."""
    seen = []
    export, rename = pipeline.export, Path.rename
    monkeypatch.setattr(pipeline, "export", lambda *a, **k: (seen.append(names()), export(*a, **k))[1])
    monkeypatch.setattr(Path, "rename", lambda p, to: (seen.append((p / "done.json").exists()), rename(p, to))[1])

    def names():
        return sorted(p.name for p in (project / "p").iterdir() if p.name != runs.STEPS)

    runs.run(str(write(project / "p.toml", MODEL + EXPORT)))
    assert seen == [[".export-1.part"], True]
    assert names() == ["export-1"]


def test_the_page_has_no_validations_that_the_file_asks_for_no_more(cli, project, monkeypatch, schema):
    monkeypatch.setattr(runs.reporting.page, "render", lambda _: "<html>")
    first, second = ('[[validate]]\ndata = "d.npz"\n', '[[validate]]\ndata = "d.npz"\nlimit = ["size_bytes=100"]\n')
    file, out = write(project / "p.toml", MODEL + EXPORT + first + second), project / "p"
    assert run(cli, file)[0].code == 6
    (out / "report.html").unlink()
    answer = cli("report", out, "--json")
    assert (answer.code, answer.err) == (0, "")
    jsonschema.validate(answer.json, schema("page"))
    assert len(json.loads((out / "report.json").read_text())["reports"]) == 2
    write(file, MODEL + EXPORT + first)
    assert run(cli, file)[0].code == 0
    answer = cli("report", out, "--force")
    assert answer.err.startswith("note: validate-2 is left out: it was no step of the pipeline file any more")
    assert json.loads((out / "report.json").read_text())["verdict"] == "pass"
    assert (out / "validate-2" / "report.json").exists()  # it may come back
    write(file, MODEL + EXPORT)
    answer = run(cli, file)[0]
    assert answer.code == 0
    assert f"note: {out / 'report.html'} is of an earlier run: the pipeline file has no [[validate]] any" in answer.err
    none = cli("report", out, "--force")
    assert (none.code, none.out) == (2, "")
    assert none.err.startswith(f"Error: {out}: no validation of its steps has been done in it")
    for damaged in ("[", "[{}]", '{"a": 1}'):
        (out / ".steps.json").write_text(damaged)
        answer = cli("report", out, "--force")
        assert answer.code == 2
        assert "do edgedl run again" in answer.err
    (out / ".steps.json").unlink()  # a run of an earlier version
    assert cli("report", out, "--force").code == 0
    assert len(json.loads((out / "report.json").read_text())["reports"]) == 2


def test_code_that_the_data_comes_from_is_read_too(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "coded.py").write_text("def d(): ...\ndef m(): ...\n")
    text = (
        MODEL + EXPORT + 'custom-objects = "coded"\n[[validate]]\ndata = "coded:d"\nmetric = ["kind=coded:m", "top1"]\n'
    )
    export, validate = pipeline_file.read(str(write(project / "p.toml", text)), Path("p"))
    assert {"coded.py", "m.keras"} <= {p.name for p in export.reads}
    assert {"m-fp32.tflite", "m-fp32.tflite.edgedl.json", "m.keras", "coded.py"} <= {p.name for p in validate.reads}
    assert validate.arguments["data"] == "coded:d"


def test_targets_and_recipes_may_lie_beside_the_file(project):
    shutil.copy(PROFILE, project / "board.toml")
    text = MODEL + EXPORT + 'target = "board.toml"\n[[validate]]\ndata = "d.npz"\ntarget = ["host", "board.toml"]\n'
    export, validate = pipeline_file.read(str(write(project / "p.toml", text)), Path("p"))
    assert export.arguments["target"] == str(project / "board.toml")
    assert validate.arguments["targets"] == ("host", str(project / "board.toml"))
    assert project / "board.toml" in validate.reads


def test_a_file_that_is_not_beside_the_pipeline_is_not_looked_for_elsewhere(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "board.toml").write_text("")
    file = write(project / "p.toml", MODEL + EXPORT + 'target = "board.toml"\n')
    with pytest.raises(InputError, match=rf"target: no such file: {project / 'board.toml'}"):
        pipeline_file.read(str(file), Path("p"))


def test_two_runs_in_one_folder_do_not_mix(cli, project):
    file = write(project / "p.toml", MODEL + EXPORT)
    (project / "p").mkdir()
    with worker.held(project / "p"):
        answer = cli("run", file)
    assert answer.code == 2
    assert f"{project / 'p'}: another edgedl run works here; wait for it, or name another folder" in answer.err
    assert cli("run", file).code == 0


def test_no_samples_to_calibrate_on_are_refused(cli, project):
    answer = cli("run", write(project / "p.toml", MODEL + EXPORT + "samples = 0\n"))
    assert answer.code == 2
    assert "samples must be 1 or more, got 0" in answer.err


def test_folders_may_have_a_colon_in_their_name(project):
    timed = project.rename(project.with_name("10:30"))
    (step,) = pipeline_file.read(str(write(timed / "p.toml", MODEL + EXPORT)), timed / "p")
    assert timed / "m.keras" in step.reads
    trained = '[train]\nmodel = "mlp"\ndata = "d.npz"\n' + EXPORT
    _, export = pipeline_file.read(str(write(timed / "p.toml", trained)), timed / "p")
    assert export.arguments["model"] in export.reads


def test_an_export_is_named_by_the_scheme_that_is_asked_for(project):
    """A compressed model may carry its own, which nobody knows yet."""
    exports = EXPORT + EXPORT + 'scheme = "fp16"\n'
    compress = '[compress]\nrecipe = "channels-50"\n'
    carried = ["compressed.tflite", "compressed-fp16.tflite"]
    for tables, names in (("", ["m-fp32.tflite", "m-fp16.tflite"]), (compress, carried)):
        steps = pipeline_file.read(str(write(project / "p.toml", MODEL + tables + exports)), Path("p"))
        assert [s.out for s in steps if s.function == "export"] == names


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_the_worst_verdict_is_the_exit_code(cli, project):
    validate = '[[validate]]\ndata = "d.npz"\n'
    inconclusive = validate + 'max-drop = "0.01pp"\n'
    unchecked = validate + 'target = "esp32-s3-devkitc-1"\nlimit = "latency_ms=1"\n'
    failing = validate + 'limit = ["size_bytes=100"]\n'
    codes = {}
    for name, tables in {
        "warned": inconclusive + 'on-inconclusive = "warn"\n',
        "inconclusive": inconclusive,
        "unchecked": unchecked,
        "all": inconclusive + validate + failing + unchecked,
    }.items():
        file = write(project / "p.toml", MODEL + EXPORT + tables)
        answer = cli("run", file, "--json", "--junit", project / f"{name}.xml")
        codes[name] = (answer.code, answer.json["verdict"])
        assert answer.json["exit_code"] == answer.code
        root = ElementTree.parse(project / f"{name}.xml").getroot()
        assert (root.get("failures") == "0") == (answer.code == 0)
    assert codes == {
        "warned": (0, "inconclusive"),
        "inconclusive": (7, "inconclusive"),
        "unchecked": (7, "unchecked"),
        "all": (6, "fail"),
    }


# ---- a kill ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_after_a_kill_where_it_was(cli, project, held, monkeypatch):
    """A real process, killed while it is in the second of two steps."""
    for source in (held, held.with_name("held.py")):
        shutil.copy(source, project)
    monkeypatch.chdir(project)
    (project / "hold").write_text("static_wi8_ai8")
    own = 'custom-objects = "held"\n'
    second = f'[[export]]\nformat = "tflite"\nscheme = "int8"\ncalibration-data = "d.npz"\n{own}'
    file = write(project / "p.toml", f'model = "held.keras"\n{EXPORT}{own}{second}')
    process = subprocess.Popen(
        [sys.executable, "-m", "edgedl.cli", "run", str(file)], env=os.environ, stderr=subprocess.PIPE, text=True
    )
    when_held(project, process)
    process.kill()
    _, said = process.communicate()
    assert process.returncode == -9, said
    assert sorted(p.name for p in (project / "p").iterdir()) == [".export-2.part", ".steps.json", "export-1"]
    before = (project / "p" / "export-1" / "done.json").stat().st_mtime_ns
    (project / "hold").unlink()
    answer, done, skipped = run(cli, file)
    assert (answer.code, done, skipped) == (0, ["export-2"], ["export-1"])
    assert sorted(p.name for p in (project / "p").iterdir()) == [".steps.json", "export-1", "export-2"]
    assert (project / "p" / "export-1" / "done.json").stat().st_mtime_ns == before


def test_a_run_of_a_file_that_is_none_says_so(project):
    with pytest.raises(InputError, match="is no TOML"):
        runs.run(str(write(project / "p.toml", "model = \n")))

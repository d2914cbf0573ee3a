"""The command line as a whole: help, lists, error lines, exit codes. One file a command tests what it does."""

import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import pytest

from edgedl import errors, plugins, worker
from edgedl.cli import COMMANDS, edgedl
from edgedl.training.architectures import ARCHITECTURES

HEAVY = ("tensorflow", "keras", "numpy", "rich", "scipy", "onnxruntime", "ai_edge_litert")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli, name):
    answer = cli(name, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: edgedl {name}")


def test_help_lists_every_command_once_in_order(cli):
    out = cli("--help").out
    listed = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert "..." not in out.split("Commands:")[1]  # a cut sentence helps nobody


def test_help_imports_click_and_the_standard_library_only():
    code = (
        "import sys; from edgedl.cli import invoke; invoke(['--help'])\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_commands_import_no_framework_here(cli, model, data, tmp_path):
    code = (
        "import sys; from edgedl.cli import invoke\n"
        f"print(invoke(['export', {str(model)!r}, '--scheme', 'int8', '-o', {str(tmp_path / 'a.tflite')!r},"
        f" '--calibration-data', {str(data / 'train.npz')!r}]))\n"
        "print([m for m in ('tensorflow', 'keras', 'onnxruntime', 'ai_edge_litert') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-2:] == ["0", "[]"], found.stderr


def test_train_help_names_every_architecture():
    command = edgedl.get_command(click.Context(edgedl), "train")
    text = next(p.help for p in command.params if p.name == "model")
    assert all(a.name in text for a in ARCHITECTURES)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["export"], 2, "Missing argument 'MODEL'"),
        (["export", "a.keras", "-o", "b.tflite", "--scheme", "int9"], 2, "no such scheme: 'int9'; allowed: fp32"),
        (["export", "a.keras", "-o", "b.xyz"], 2, "no exporter writes .xyz"),
        (["export", "a.keras", "-o", "b.tflite", "--format", "mnn"], 4, "no plugin provides exporter 'mnn'"),
        (["export", "a.keras", "-o", "b.onnx", "--scheme", "int4"], 3, "has no scheme weight_only_wi4_afp32"),
        (["export", "a.keras", "-o", "nowhere/b.tflite"], 2, "no such folder: nowhere"),
        (["export", "a.keras", "-o", "b.tflite"], 2, "a.keras: no such file"),
        (["export", "a.keras", "-o", "b.tflite", "--target", "pixel8"], 2, "no such target: 'pixel8'"),
        (["export", "a.keras", "-o", "b.onnx", "--target", "nucleo-h743zi2"], 2, "takes tflite, not onnx"),
        (["validate", "a.tflite", "--reference", "b.keras", "--data", "c.npz"], 2, "a.tflite: no such file"),
        (["validate", "a.tflite", "--reference", "b", "--data", "c", "--limit", "latency=2"], 2, "did you mean"),
        (["train", "--model", "cnn-smal", "--data", "a.npz", "-o", "m.keras"], 2, "no such architecture: 'cnn-smal'"),
        (
            ["train", "--model", "mlp", "--data", "a.npz", "-o", "m.h5"],
            2,
            "m.h5: a Keras model is written; name it m.keras",
        ),
        (["benchmark", "a.txt"], 2, "a.txt: no such file"),
        (["run", "nowhere.toml"], 2, "nowhere.toml"),
        (["run", "."], 2, ".: is a folder; name a pipeline file, .toml"),
        (["export", "a.keras", "-o", "b.tflite", "--seed", "-1"], 2, "-1 is not in the range 0<=x<=4294967295"),
        (["export", "a.keras", "-o", "b.vela", "--format", "vela"], 2, "a.keras: no such file"),
        (
            ["validate", "a.tflite", "--reference", "b", "--data", "c", "--junit", "no/j.xml"],
            2,
            "no/j.xml: no such folder: no; make it first",
        ),
    ],
)
def test_wrong_input_is_one_line_with_the_exit_code(cli, tmp_path, monkeypatch, arguments, code, line):
    monkeypatch.chdir(tmp_path)
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("Error: ")
    assert line in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_every_error_has_its_own_exit_code():
    codes = [c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.EdgedlError)]
    assert sorted(codes) == [1, 2, 3, 4, 5, 6]


def test_plugins_lists_the_built_in_ones_through_the_same_door(cli):
    rows = cli("plugins", "--json").json["plugins"]
    names = {(r["group"], r["name"]): r["distribution"] for r in rows}
    assert names["exporters", "tflite"] == "edgedl-tflite"
    assert names["packagers", "zip"] == "edgedl"
    assert {"top1", "mae", "auc"} <= {name for group, name in names if group == "metrics"}


def test_two_providers_of_a_name_are_refused_naming_both(monkeypatch):
    first = plugins.listing("packagers")[0]
    import dataclasses

    second = dataclasses.replace(first, distribution="other")
    monkeypatch.setattr(plugins, "listing", lambda group: (first, second))
    with pytest.raises(errors.PluginError, match=f"provided by {first.distribution} and other; uninstall one"):
        plugins.load("packagers", first.name)


@pytest.mark.parametrize("fault", [OSError("no license"), None])
def test_a_broken_plugin_of_another_format_is_in_nobodys_way(monkeypatch, fault):
    from types import SimpleNamespace

    from edgedl import artifacts

    class Exporter:
        def __init__(self):
            if fault:
                raise fault

    listed = plugins.listing("exporters")
    entry = SimpleNamespace(load=lambda: Exporter)
    broken = plugins.Plugin(group="exporters", name="aaa", distribution="mine", version="1", entry=entry)
    monkeypatch.setattr(plugins, "listing", lambda group: (broken, *listed))
    assert artifacts.format_of(Path("m.tflite")) == "tflite"
    with pytest.raises(errors.PluginError, match="no license" if fault else "no attribute 'suffixes'"):
        artifacts.format_of(Path("m.xyz"))


def test_targets_lists_shows_and_checks(cli, tmp_path):
    assert "raspberry-pi-4" in cli("targets").out.splitlines()
    assert cli("targets", "show", "nucleo-h743zi2", "--json").json["memory"]["flash_bytes"] == 2_097_152
    assert cli("targets", "--json", "show", "nucleo-h743zi2").json["id"] == "nucleo-h743zi2"
    (tmp_path / "mine.toml").write_text('name = "Mine"\nformats = ["tflite"]\n[memory]\nram_bytes = 100\n')
    answer = cli("targets", "check", tmp_path / "mine.toml")
    assert answer.code == 2
    assert "ram_bytes = 100 has no source; a source is a URL" in answer.err


def test_doctor_says_what_works(cli):
    found = cli("doctor", "--json").json
    assert {r["name"] for r in found["runtimes"]} >= {"litert", "onnxruntime"}
    assert all(r["version"] for r in found["runtimes"] if r["name"] in ("litert", "onnxruntime"))
    assert found["training"]["tensorflow"]


def test_an_interrupt_exits_with_130_and_ends_the_children(cli, monkeypatch, model, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgedl.exporting.make", interrupted)
    answer = cli("export", model, "-o", tmp_path / "a.tflite")
    assert (answer.code, answer.err.strip()) == (130, "Error: interrupted; nothing was changed")
    assert not list(tmp_path.iterdir())
    assert not worker.pool()._children


def test_json_answers_match_their_schemas(cli, schema):
    for arguments, name in ((["plugins"], "plugins"), (["targets"], "targets"), (["doctor"], "doctor")):
        jsonschema.validate(cli(*arguments, "--json").json, schema(name))

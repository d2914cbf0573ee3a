"""Figures of plugins in `validate` and `inspect`: the arena of TFLM, the share of an NPU; a file that is refused."""

import jsonschema
import numpy as np
import pytest
from crafted import images, small_model

BOARD, ESP, NPU = "nucleo-h743zi2", "esp32-s3-devkitc-1", "alif-ensemble-e7"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """m.tflite with int8 outputs, real.tflite with float ones, images to run."""
    folder = tmp_path_factory.mktemp("estimates")
    small_model(folder / "m.tflite")
    small_model(folder / "real.tflite", float_output=True)
    np.savez(folder / "d.npz", x=images(40))
    return folder


@pytest.fixture
def validate(cli, files):
    """Validate a file against itself on one target: the answer."""

    def run(target, *options, file="m.tflite"):
        given = ("--reference", files / file, "--data", files / "d.npz", "--target", target)
        return cli("validate", files / file, *given, *options, "--json")

    return run


def named(answer, name):
    return next(c for c in answer.json["checks"] if c["name"] == name)


def test_the_arena_is_predicted_and_held_against_the_ram(validate, schema):
    answer = validate(BOARD)
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("validation"))
    arena = named(answer, "arena_bytes")
    assert (arena["method"], arena["verdict"], arena["limit"]) == ("predicted", "pass", 524_288)
    assert arena["low"] < arena["measured"] <= arena["high"]
    assert "scratch of cortex-m7 kernels 48 (most: 48 bytes in operator 0, CONV_2D)" in arena["why"]


@pytest.mark.parametrize(("share", "code", "verdict"), [(0.1, 6, "fail"), (1.05, 7, "inconclusive"), (1.2, 0, "pass")])
def test_a_predicted_arena_passes_only_with_room(validate, share, code, verdict):
    high = named(validate(BOARD), "arena_bytes")["high"]
    answer = validate(BOARD, "--limit", f"arena_bytes={share * high}")
    assert (answer.code, named(answer, "arena_bytes")["verdict"]) == (code, verdict)


def test_an_arena_that_is_known_in_part_judges_nothing_but_a_limit(validate):
    found = named(validate(ESP), "arena_bytes")
    assert (found["verdict"], found["high"]) == ("info", None)
    assert "scratch of xtensa-lx7 kernels is not known for CONV_2D" in found["why"]
    for limit in (400_000, 10_000_000):  # below the board's RAM and above it
        answer = validate(ESP, "--limit", f"arena_bytes={limit}")
        assert (answer.code, named(answer, "arena_bytes")["verdict"]) == (7, "inconclusive")


def test_a_limit_of_nothing_on_the_arena_is_a_limit(validate):
    answer = validate(BOARD, "--limit", "arena_bytes=0")
    found = named(answer, "arena_bytes")
    assert (answer.code, found["verdict"], found["limit"]) == (6, "fail", 0)


def test_where_tflm_and_the_builtin_kernels_part_is_said(validate):
    answer = validate(BOARD)
    found = named(answer, "kernels_max_lsb")
    if found["measured"]:
        assert "they part in operator" in found["why"]
        assert f"target {BOARD}: {found['why']}" in answer.err
    else:
        assert found["why"] == "TFLM's and litert's builtin kernels agree on all values of 16 samples"


@pytest.mark.parametrize(("file", "code", "measured"), [("m.tflite", 0, 0), ("real.tflite", 6, 1)])
def test_what_an_npu_leaves_to_the_cpu_is_limited(validate, file, code, measured):
    pytest.importorskip("ethosu.vela", reason="Vela is not installed: pip install ethos-u-vela")
    answer = validate(NPU, "--limit", "cpu_fallback_ops=0", file=file)
    found = named(answer, "cpu_fallback_ops")
    assert (answer.code, found["measured"]) == (code, measured)
    assert found["verdict"] == ("fail" if measured else "pass")
    assert named(answer, "npu_cycles")["method"] == "vendor-estimate"
    assert "arena_bytes" not in {c["name"] for c in answer.json["checks"]}  # of the CPU's kernels, which do not run


def test_a_limit_on_the_arena_beside_an_npu_is_unchecked(validate):
    answer = validate(NPU, "--limit", "arena_bytes=1000")
    assert (answer.code, named(answer, "arena_bytes")["verdict"]) == (7, "unchecked")


def test_a_runtime_that_refuses_the_file_fails_its_target_alone(validate, monkeypatch, tmp_path):
    (tmp_path / "refusing.py").write_text("def Model(*_):\n    raise ValueError('not this one')\n")
    from dataclasses import replace

    from edgedl import plugins, worker

    load = plugins.load
    refusing = replace(load("runtimes", "tflm"), model="refusing:Model", name="tflm")
    monkeypatch.setattr(plugins, "load", lambda group, name: refusing if name == "tflm" else load(group, name))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker.kill()  # the next child sees the variable
    answer = validate(BOARD, "--target", "host")
    assert answer.code == 6
    runs = named(answer, "runs")
    assert (runs["target"], runs["verdict"]) == (BOARD, "fail")
    assert runs["why"].endswith("tflm does not load it: not this one")
    assert {c["target"] for c in answer.json["checks"] if c["name"] == "max_abs"} == {"host"}


def test_a_runtime_that_does_not_start_here_is_stood_in_for_and_said(validate, monkeypatch):
    from edgedl import artifacts

    monkeypatch.setattr(artifacts, "why_not", lambda runtime: "no arena" if runtime.name == "tflm" else "")
    answer = validate(BOARD)
    assert answer.code == 0, answer.err
    assert "those of litert with builtin kernels on this machine, in place of tflm, which does not start" in answer.err


def test_inspect_tells_the_same_without_data(cli, files):
    found = {c["name"]: c for c in cli("inspect", files / "m.tflite", "--target", BOARD, "--json").json["checks"]}
    assert found["arena_bytes"]["verdict"] == "pass"
    assert "kernels_max_lsb" not in found
    assert found["op_versions"]["verdict"] == "info"

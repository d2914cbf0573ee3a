"""`benchmark --gate`: instructions against an earlier benchmark, without an emulator."""

import json

import jsonschema
import pytest
from crafted import small_model

from edgedl.errors import InputError
from edgedl.validation import tripwire

ROW = {
    "artifact": "out/m.tflite", "target": "raspberry-pi-4", "instructions": 100_000, "core": "cortex-a72",
    "emulator": "qemu-aarch64 7.2.22", "runtime_version": "litert 2.3.0", "resolver": "xnnpack", "threads": 1,
    "inference": 6,
}  # fmt: skip
HOST = {"artifact": "out/m.tflite", "target": None, "latency_ms": 1.0}


def judged(tmp_path, now, before):
    (tmp_path / "b.json").write_text(json.dumps({"results": [HOST, *before]}))
    return tripwire.judge([HOST, *now], tmp_path / "b.json")


@pytest.mark.parametrize(
    ("instructions", "verdict"), [(100_000, "pass"), (101_000, "pass"), (101_001, "fail"), (50_000, "pass")]
)
def test_one_percent_more_passes_and_one_instruction_above_it_fails(tmp_path, instructions, verdict):
    found = judged(tmp_path, [ROW | {"instructions": instructions}], [ROW])
    assert found["verdict"] == verdict
    assert found["entries"][0]["growth"] == pytest.approx(instructions / 100_000 - 1)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("core", "cortex-a76"), ("emulator", "qemu-aarch64 8.2.0"), ("runtime_version", "litert 2.4.0"),
        ("threads", 2), ("resolver", "builtin"), ("inference", 7),
    ],
)  # fmt: skip
def test_what_was_counted_under_other_conditions_is_not_comparable(tmp_path, key, other):
    found = judged(tmp_path, [ROW], [ROW | {key: other, "instructions": 1}])
    assert (found["verdict"], found["entries"][0]["growth"]) == ("unchecked", None)
    assert found["entries"][0]["why"] == f"not comparable: {key} {other} then, {ROW[key]} now"


def test_a_target_or_file_that_the_baseline_lacks_is_no_pass(tmp_path):
    other = ROW | {"target": "raspberry-pi-5"}
    found = judged(tmp_path, [ROW, other], [ROW])
    assert [e["verdict"] for e in found["entries"]] == ["pass", "unchecked"]
    assert found["verdict"] == "unchecked"
    two = [ROW, ROW | {"artifact": "out/n.tflite"}]
    assert judged(tmp_path, two, [ROW])["entries"][1]["verdict"] == "unchecked"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    first, second = ROW | {"artifact": "v1/m.tflite"}, ROW | {"artifact": "v2/m.tflite", "instructions": 50_000}
    found = judged(tmp_path, [second | {"instructions": 90_000}], [first, second])
    assert (found["verdict"], found["entries"][0]["baseline"]) == ("fail", 50_000)
    assert judged(tmp_path, [ROW | {"artifact": "v3/m.tflite"}], [first, second])["verdict"] == "unchecked"
    assert judged(tmp_path, [ROW | {"artifact": "v3/m.tflite"}], [first])["verdict"] == "pass"


@pytest.mark.parametrize("instructions", [None, 0, "many"])
def test_a_baseline_without_counts_is_refused(tmp_path, instructions):
    with pytest.raises(InputError, match="is not what `edgedl benchmark --json` prints"):
        judged(tmp_path, [ROW], [ROW | {"instructions": instructions}])


def test_the_only_file_is_compared_whatever_it_was_called(tmp_path):
    found = judged(tmp_path, [ROW | {"artifact": "new.tflite"}], [ROW])
    assert found["verdict"] == "pass"


def test_a_growth_outweighs_what_cannot_be_compared(tmp_path):
    grown = ROW | {"instructions": 200_000}
    assert judged(tmp_path, [grown, ROW | {"target": "pixel-8"}], [ROW])["verdict"] == "fail"


def test_what_was_counted_then_and_is_not_now_is_no_pass(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps({"results": [ROW, ROW | {"target": "pixel-8"}]}))
    asked = [("out/m.tflite", "raspberry-pi-4"), ("out/m.tflite", "pixel-8"), ("out/m.tflite", "host")]
    found = tripwire.judge([HOST, ROW], tmp_path / "b.json", asked)
    assert [(e["target"], e["verdict"]) for e in found["entries"]] == [
        ("raspberry-pi-4", "pass"),
        ("pixel-8", "unchecked"),
    ]
    assert (found["verdict"], found["entries"][1]["why"]) == ("unchecked", "counted then, not now")


@pytest.mark.parametrize(("now", "before"), [([], [ROW]), ([], [])])
def test_no_count_is_no_pass(tmp_path, now, before):
    found = judged(tmp_path, now, before)
    assert found["verdict"] == "unchecked"
    assert "name a --target with an emulated core" in found["why"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"results": 3}', '{"results": [3]}', '{"results": [{}]}', "\x00"])
def test_a_baseline_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match="is not what `edgedl benchmark --json` prints; make it with that"):
        tripwire.judge([], tmp_path / "b.json")


def test_a_missing_baseline_is_refused_before_anything_runs(cli, tmp_path):
    answer = cli("benchmark", tmp_path / "no.tflite", "--gate", tmp_path / "no.json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"Error: --gate {tmp_path / 'no.json'}: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--predict", "layers.csv", "--target", "nucleo-l4r5zi"),
        ("m.tflite", "--core", "cortex-m7", "--clock-hz", 4e8, "--runtime", "x-cube-ai"),
        ("m.tflite", "--runtime", "x-cube-ai", "--target", "nucleo-l4r5zi"),
    ],
)
def test_a_gate_where_nothing_is_run_is_refused(cli, options):
    answer = cli("benchmark", *options, "--gate", "b.json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "Error: --gate b.json: judges counted instructions, and nothing is run here; leave it out, or else "
        "--predict, --core, --clock-hz and a --runtime that only figures tell about\n"
    )


def test_a_gate_without_an_emulated_core_exits_with_7(cli, model, tmp_path):
    assert cli("export", model, "-o", tmp_path / "m.tflite").code == 0
    (tmp_path / "b.json").write_text(json.dumps({"results": [ROW]}))
    answer = cli("benchmark", tmp_path / "m.tflite", "--target", "raspberry-pi-4", "--gate", tmp_path / "b.json",
                 "--repeats", 5)  # fmt: skip
    assert (answer.code, answer.out) == (7, "unchecked\n")
    assert "no instructions were counted" in answer.err
    assert "nothing here measures it (edgedl devices setup qemu-arm64)" in answer.err


def test_a_device_that_is_not_there_leaves_the_others_to_their_benchmark(cli, schema, tmp_path):
    model = small_model(tmp_path / "m.tflite")
    profile = "name = 'Mine'\nsource = 'data sheet 1'\nformats = ['tflite']\n[runtime.litert]\nformat = 'tflite'\n"
    (tmp_path / "phone.toml").write_text(f"{profile}[runner]\ndevice = 'adb'\nadb = 'no-adb'\n")
    (tmp_path / "b.json").write_text(json.dumps({"results": [ROW | {"target": "phone"}]}))
    given = ("benchmark", model, "--repeats", 5, "--gate", tmp_path / "b.json", "--target", tmp_path / "phone.toml")
    answer = cli(*given, "--target", "host", "--json")
    jsonschema.validate(answer.json, schema("benchmark"))
    assert answer.code == 7
    assert f"target phone: nothing of {model}: no-adb: not on this machine" in answer.err
    assert [e["why"] for e in answer.json["gate"]["entries"]] == ["counted then, not now"]
    assert "counted then, not now" in cli(*given, "--target", "host").err
    assert cli(*given).code == 2  # alone it is an error

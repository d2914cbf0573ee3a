"""The static contract: format, flash, types, sizes, operators, and their versions against releases of runtimes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crafted import small_model

from edgedl import contract, targets, worker
from edgedl.contract import op_versions
from edgedl.errors import InputError
from edgedl.types import Artifact, ArtifactInfo, Check, Lineage, OpInfo, TensorSpec, Verdict


def artifact(**changes: Any) -> Artifact:
    fields: dict[str, Any] = {
        "path": Path("m.tflite"),
        "format": "tflite",
        "scheme": "static_wi8_ai8",
        "sha256": "0" * 64,
        "size_bytes": 100_000,
        "compressed_bytes": 80_000,
        "inputs": (),
        "outputs": (),
        "lineage": Lineage(),
    }
    return Artifact(**fields | changes)


def info(dtype: str, *ops: str) -> ArtifactInfo:
    spec = TensorSpec(name="x", dtype=dtype, shape=(1, 4))
    named = tuple(OpInfo(index=i, name=name) for i, name in enumerate(ops))
    return ArtifactInfo(format="tflite", inputs=(spec,), outputs=(spec,), ops=named)


def checked(target_id: str, made: Artifact, about: ArtifactInfo) -> dict[str, Check]:
    checks = contract.static_checks(targets.load(target_id), made, about)
    assert {c.target for c in checks} == {target_id}
    assert {c.method for c in checks} == {"static"}
    return {c.name: c for c in checks}


def test_static_checks_pass_a_fitting_artifact() -> None:
    checks = checked("nucleo-l4r5zi", artifact(), info("int8", "CONV_2D", "SOFTMAX"))
    assert {n: c.verdict for n, c in checks.items()} == {
        "format": Verdict.PASS,
        "size_bytes": Verdict.INFO,
        "io": Verdict.INFO,
        "free_sizes": Verdict.INFO,
        "float_ops": Verdict.INFO,
        "unsupported_ops": Verdict.PASS,
        "op_versions": Verdict.INFO,
    }
    assert checks["size_bytes"].why == "4.8% of the 2,097,152 bytes of flash, which hold the program too"
    assert checks["io"].why == "inputs and outputs are int8"


def test_static_checks_refuse_a_format_the_target_does_not_take() -> None:
    checks = checked("nucleo-l4r5zi", artifact(format="onnx"), info("int8", "FlexErf"))
    assert checks["format"].verdict is Verdict.FAIL
    assert checks["format"].why == "ST NUCLEO-L4R5ZI (STM32L4R5ZI) takes tflite, this is onnx"
    assert set(checks) == {"format", "size_bytes"}


@pytest.mark.parametrize(("size", "verdict"), [(2_097_152, Verdict.INFO), (2_097_153, Verdict.FAIL)])
def test_static_checks_fail_a_file_larger_than_the_flash(size: int, verdict: Verdict) -> None:
    check = checked("nucleo-h743zi2", artifact(size_bytes=size), info("int8"))["size_bytes"]
    assert (check.measured, check.limit, check.unit, check.verdict) == (size, 2_097_152, "B", verdict)


def test_static_checks_judge_no_size_where_no_flash_is_stated() -> None:
    assert "size_bytes" not in checked("pixel-8", artifact(size_bytes=10**12), info("float32"))


def test_static_checks_tell_when_the_io_is_not_the_usual_one() -> None:
    check = checked("nucleo-l4r5zi", artifact(), info("float32"))["io"]
    assert check.verdict is Verdict.INFO
    assert check.why == "inputs and outputs are float32; int8 is usual there: export with --io int8"


def test_static_checks_fail_an_io_that_the_runtime_refuses() -> None:
    check = checked("browser-wasm", artifact(), info("int8"))["io"]
    assert check.verdict is Verdict.FAIL
    assert check.why == ("inputs and outputs are int8; litert-js takes float32, int32, uint8. Export with --io float")
    assert checked("browser-wasm", artifact(format="onnx"), info("int8"))["io"].verdict is Verdict.INFO


@pytest.mark.parametrize(
    ("target_id", "ops", "outside"),
    [
        ("raspberry-pi-4", ("CONV_2D", "FlexErf"), ["FlexErf need TensorFlow's Flex delegate"]),
        ("raspberry-pi-4", ("MyOp", "MyOp"), ["MyOp are custom ops that the app must register"]),
        ("raspberry-pi-4", ("TFLite_Detection_PostProcess", "Mfcc"), []),
        ("raspberry-pi-4", ("CUSTOM:TFLite_Detection_PostProcess", "CUSTOM:FlexErf"), ["FlexErf need"]),
        ("alif-ensemble-e7", ("CUSTOM:ethos-u",), []),
        ("nucleo-h743zi2", ("CUSTOM:ethos-u",), ["ethos-u are custom ops"]),
        ("nucleo-h743zi2", ("TFLite_Detection_PostProcess",), []),
        ("nucleo-h743zi2", ("Mfcc", "FlexErf"), ["FlexErf need", "Mfcc are custom ops"]),
    ],
)
def test_static_checks_fail_ops_outside_the_runtimes(target_id: str, ops: tuple[str, ...], outside: list[str]) -> None:
    check = checked(target_id, artifact(), info("float32", *ops))["unsupported_ops"]
    assert check.measured == len(outside)
    assert check.verdict is (Verdict.FAIL if outside else Verdict.PASS)
    assert all(text in check.why for text in outside)


def test_free_sizes_are_refused_where_no_one_resizes() -> None:
    spec = TensorSpec(name="x", dtype="int8", shape=(None, None))
    about = ArtifactInfo(format="tflite", inputs=(spec,), outputs=(spec,))
    check = checked("nucleo-h743zi2", artifact(), about)["free_sizes"]
    assert check.verdict is Verdict.FAIL
    assert check.why == "x: sizes are free; tflm takes fixed ones. Export with --shape x=1,..."
    assert checked("raspberry-pi-4", artifact(), about)["free_sizes"].verdict is Verdict.INFO
    batch = replace(about, inputs=(replace(spec, shape=(None, 4)),))
    check = checked("nucleo-h743zi2", artifact(), batch)["free_sizes"]
    assert (check.verdict, check.why) == (Verdict.INFO, "x: the batch is free")


def test_operators_on_floats_are_told() -> None:
    about = replace(info("float32", "SOFTMAX"), metadata={"float_ops": {"SOFTMAX": 1, "CONV_2D": 3}})
    check = checked("nucleo-h743zi2", artifact(), about)["float_ops"]
    assert (check.measured, check.verdict) == (4, Verdict.INFO)
    assert check.why.startswith("on float32: CONV_2D (3), SOFTMAX (1); int8 is usual there")


# ---- versions of operators ---------------------------------------------------------------------------------------


def versioned(*ops: tuple[str, int]) -> ArtifactInfo:
    named = tuple(OpInfo(index=i, name=n, version=v, outputs=(f"t{i}",)) for i, (n, v) in enumerate(ops))
    return ArtifactInfo(format="tflite", inputs=(), outputs=(), ops=named)


def test_table_is_what_releases_say() -> None:
    """FULLY_CONNECTED version 12 came after tflite-runtime 2.14, the last of that name."""
    assert op_versions.latest("tflite-runtime") == "2.14.0"
    (finding,) = op_versions.lacking(versioned(("FULLY_CONNECTED", 12)).ops, "tflite-runtime", "2.14.0")
    assert (finding.highest, finding.since) == (10, None)
    assert op_versions.lacking(versioned(("FULLY_CONNECTED", 12)).ops, "litert", op_versions.latest("litert")) == []


def test_a_missing_version_is_told_with_index_tensor_and_fix() -> None:
    check = op_versions.check_versions(
        versioned(("CONV_2D", 3), ("FULLY_CONNECTED", 12)), {"tflite-runtime": "2.14.0"}, target="phone"
    )
    assert (check.verdict, check.measured, check.limit) == (Verdict.FAIL, 1, 0)
    assert check.why == (
        "tflite-runtime 2.14.0 lacks operator 1, FULLY_CONNECTED version 12 (gives 't1'): at most version 10 there; "
        "fix: export it with edgedl, or with "
        "converter._experimental_disable_per_channel_quantization_for_dense_layers = True"
    )


def test_a_release_between_those_of_the_table_counts_as_the_older_one() -> None:
    assert op_versions.at("tflite-runtime", "2.9.5") == "2.9.1"
    assert op_versions.at("tflite-runtime", "2.14.0") == "2.14.0"
    assert op_versions.at("tflite-runtime", "9.9") == "2.14.0"
    assert op_versions.at("tflite-runtime", "1.0") is None
    assert (op_versions.at("litert", "2.1"), op_versions.at("litert", "2.1.0.1")) == ("2.1.0", "2.1.0")
    assert str(op_versions.at("tflm", "0.dev20240701")).startswith("0.dev202406")
    check = op_versions.check_versions(versioned(("CONV_2D", 1)), {"tflite-runtime": "2.9.5"}, target=None)
    assert (check.verdict, check.why) == (
        Verdict.PASS,
        "tflite-runtime 2.9.1 (the nearest known below 2.9.5) has all 1 operators",
    )


@pytest.mark.parametrize("given", ["pins", "minimums"])
def test_a_pin_in_two_parts_is_the_first_release_of_that_name(given: str) -> None:
    told: dict[str, dict[str, str | None]] = {"pins": {}} | {given: {"litert": "2.1"}}
    check = op_versions.check_versions(versioned(("ADD", 5), ("CAST", 8)), target=None, **told)
    assert (check.verdict, check.why) == (Verdict.PASS, "litert 2.1.0 has all 2 operators")


def test_a_pin_of_another_formats_runtime_is_none_of_this_file() -> None:
    check = op_versions.check_versions(versioned(("CONV_2D", 1)), {"onnxruntime": "1.20.1"}, target=None)
    assert (check.verdict, check.why) == (Verdict.INFO, "no runtime of tflite files is named")


@pytest.mark.parametrize(
    ("pins", "verdict", "limit"),
    [
        ({"onnxruntime": "1.20.1"}, Verdict.UNCHECKED, 0),
        ({"litert": "2.1.0"}, Verdict.INFO, None),  # given for another artifact
        ({}, Verdict.INFO, None),
    ],
)
def test_a_file_whose_operators_cannot_be_read_never_passes(
    pins: dict[str, str | None], verdict: Verdict, limit: int | None
) -> None:
    unread = replace(versioned(), format="onnx")
    check = op_versions.check_versions(unread, pins, minimums={"onnxruntime": "1.27.0"}, target="phone")
    assert (check.verdict, check.measured, check.limit) == (verdict, None, limit)
    assert check.why == (
        "the operators of this file cannot be read; check the .onnx it was made from, "
        "with onnx installed: pip install onnx"
    )


def test_a_profiles_minimum_gives_way_to_the_users_pin() -> None:
    late = versioned(("ADD", 5))
    check = op_versions.check_versions(late, {}, minimums={"litert": "2.1.0"}, target="phone")
    assert (check.verdict, check.why) == (Verdict.PASS, "litert 2.1.0 has all 1 operators")
    check = op_versions.check_versions(late, {"litert": "2.0.3"}, minimums={"litert": "2.1.0"}, target="phone")
    assert check.why.startswith("litert 2.0.3")


def test_without_a_pin_the_first_release_that_has_all_is_told() -> None:
    check = op_versions.check_versions(versioned(("CONV_2D", 1)), {"tflite-runtime": None}, target=None)
    assert check.verdict is Verdict.INFO
    assert check.why == "tflite-runtime has all operators from 2.7.0 on; no version is pinned"


def test_without_a_pin_it_fails_where_no_runtime_has_the_operator() -> None:
    lacking = versioned(("BITCAST", 1))
    check = op_versions.check_versions(lacking, {"tflm": None}, target="board")
    assert (check.verdict, check.measured) == (Verdict.FAIL, 1)
    assert "the newest known, lacks operator 0, BITCAST version 1 (gives 't0'): not there" in check.why
    assert op_versions.check_versions(lacking, {"tflm": None, "litert": None}, target="x").verdict is Verdict.INFO


def test_tflm_is_asked_for_operators_and_not_for_versions() -> None:
    newest = op_versions.latest("tflm")
    assert op_versions.lacking(versioned(("CONV_2D", 99)).ops, "tflm", newest) == []
    assert len(op_versions.lacking(versioned(("BITCAST", 1)).ops, "tflm", newest)) == 1


def test_onnx_operators_are_checked_by_opset_and_custom_domains_by_name() -> None:
    oldest = op_versions._tables()["onnxruntime"]["releases"][0]
    newest = op_versions.latest("onnxruntime")
    ops = versioned(("Relu", 13), ("com.microsoft.QLinearAdd", 1), ("MeanVarianceNormalization", 13)).ops
    assert op_versions.lacking(ops, "onnxruntime", newest) == []
    assert len(op_versions.lacking(versioned(("Relu", 99)).ops, "onnxruntime", newest)) == 1
    (finding,) = op_versions.lacking(versioned(("Relu", 21)).ops, "onnxruntime", oldest)
    assert "export with --opset" in finding.as_text("onnxruntime")
    assert len(op_versions.lacking(versioned(("my.Op", 1)).ops, "onnxruntime", newest)) == 1


def test_an_onnx_file_newer_than_a_release_is_told_beside_its_operators() -> None:
    def check(pin: str | None, ir_version: int, opset: int = 17) -> Check:
        about = replace(versioned(("Relu", opset)), format="onnx", metadata={"ir_version": ir_version})
        return op_versions.check_versions(about, {"onnxruntime": pin}, target=None)

    old = check("1.17.3", 10)
    assert (old.verdict, old.measured) == (Verdict.FAIL, 1)
    assert old.why == ("onnxruntime 1.17.3 lacks IR version 10: at most 9 there; fix: ship onnxruntime 1.18.1 or later")
    assert check("1.17.3", 10, opset=21).measured == 2
    assert check("1.18.1", 10).verdict is Verdict.PASS
    assert check(None, 10).why == "onnxruntime has all operators from 1.18.1 on; no version is pinned"
    future = check(None, 99)
    assert future.verdict is Verdict.FAIL
    assert "the newest known, lacks IR version 99: at most" in future.why
    assert future.why.endswith("no release known takes it: export it anew")


def test_floors_are_the_oldest_releases_that_have_every_operator() -> None:
    plain = op_versions.floors(versioned(("CONV_2D", 3), ("FULLY_CONNECTED", 9)))
    assert plain == {"litert": "1.0.0", "tflite-runtime": "2.7.0", "tflm": op_versions._tables()["tflm"]["releases"][0]}
    late = op_versions.floors(versioned(("ADD", 5), ("CAST", 8), ("CONV_2D", 3)))
    assert (late["litert"], late["tflite-runtime"]) == ("2.1.0", None)  # version 8 of CAST came after tflite-runtime
    assert op_versions.floors(versioned(("CONV_2D", 99))) == {
        "litert": None,
        "tflite-runtime": None,
        "tflm": plain["tflm"],
    }


def test_floors_of_onnx_files_go_by_opset_operators_and_the_version_of_the_file() -> None:
    def floor(*ops: tuple[str, int], **metadata: int) -> dict[str, str | None]:
        return op_versions.floors(replace(versioned(*ops), format="onnx", metadata=metadata))

    assert floor(("Relu", 17)) == {"onnxruntime": "1.15.1"}
    assert floor(("Relu", 20)) == {"onnxruntime": "1.17.3"}
    assert floor(("Relu", 17), ir_version=10) == {"onnxruntime": "1.18.1"}
    assert floor(("Relu", 17), ir_version=99) == {"onnxruntime": None}
    assert floor(("Relu", 17), ("com.microsoft.QLinearAdd", 1)) == {"onnxruntime": "1.16.3"}  # 1.15.1 does not tell
    assert floor(("my.Op", 1)) == {"onnxruntime": None}


def test_there_is_no_floor_where_the_table_cannot_tell() -> None:
    assert op_versions.floors(versioned(("CONV_2D", 3), ("CUSTOM:ethos-u", 1))) == {}
    assert op_versions.floors(info("int8", "CONV_2D")) == {}  # the file says no versions
    assert op_versions.floors(versioned()) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "litrt=2.1.0",
            "no runtime 'litrt' (did you mean 'litert'?); allowed: litert, onnxruntime, tflite-runtime, tflm",
        ),
        ("litert", "litert=VERSION is needed, such as litert="),
        ("litert=new", "litert=VERSION is needed, such as litert="),
    ],
)
def test_a_pin_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as e:
        op_versions.parse_pins([text])
    assert str(e.value).startswith(f"--runtime-version: {message}")


def test_versions_are_checked_without_tensorflow(cli: Any, tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.tflite", dense_version=12)
    answer = cli("inspect", path, "--runtime-version", "tflite-runtime=2.14.0", "--json")
    (check,) = answer.json["checks"]
    assert (check["name"], check["verdict"], check["target"]) == ("op_versions", "fail", None)
    assert "tensorflow" not in worker.pool()._children
    answer = cli("inspect", path, "--target", "host", "--runtime-version", "litert=2.3.0", "--json")
    named = {c["name"]: c for c in answer.json["checks"]}
    assert named["op_versions"]["verdict"] == "pass"
    assert "tflite-runtime 2.14.0, the newest known, lacks" in named["op_versions"]["why"]

"""Vela: what it leaves to the CPU and why, its estimates, what it refuses, and the compiled file."""

import pytest
from crafted import small_model

from edgedl.errors import InputError, UnsupportedError
from edgedl.types import ExportOptions, Method
from edgedl_vela import compiler, graph
from edgedl_vela.exporter import VelaExporter
from edgedl_vela.figures import figures

pytest.importorskip("ethosu.vela", reason="Vela is not installed: pip install ethos-u-vela")
U55 = {"name": "ethos-u55-128", "system_config": "Ethos_U55_High_End_Embedded", "memory_mode": "Shared_Sram"}
U65 = {"name": "ethos-u65-256", "system_config": "Ethos_U65_Embedded", "memory_mode": "Shared_Sram"}
U65_DRAM = {"name": "ethos-u65-256", "system_config": "Ethos_U65_High_End", "memory_mode": "Dedicated_Sram"}
U85 = {"name": "ethos-u85-256", "system_config": "Ethos_U85_SYS_Flash_Low", "memory_mode": "Shared_Sram"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("vela") / "m.tflite")


def told(path, accelerator):
    target = {"id": "board", "accelerator": accelerator}
    return {check.name: check for check in figures(str(path), target, {}, False)}


@pytest.mark.parametrize("accelerator", [U55, U65, U85], ids=lambda a: a["name"])
def test_every_operator_of_an_int8_model_is_on_the_npu(model, accelerator):
    checks = told(model, accelerator)
    assert checks["cpu_fallback_ops"].measured == 0
    assert checks["cpu_fallback_ops"].why == "all on the NPU, in 1 command stream(s)"
    estimates = [checks[name] for name in ("npu_sram_bytes", "npu_flash_bytes", "npu_cycles")]
    assert all(check.measured > 0 and check.method is Method.VENDOR_ESTIMATE for check in estimates)
    assert "Arm's estimate" in checks["npu_cycles"].why


@pytest.mark.parametrize(
    ("accelerator", "has", "lacks"), [(U65, "flash", "dram"), (U65_DRAM, "dram", "flash")], ids=["flash", "dram"]
)
def test_dram_which_holds_activations_is_no_flash(model, accelerator, has, lacks):
    checks = told(model, accelerator)
    assert checks[f"npu_{has}_bytes"].measured > 0
    assert "the compiled file has" in checks[f"npu_{has}_bytes"].why
    assert f"npu_{lacks}_bytes" not in checks


def test_an_operator_that_vela_lacks_is_counted_with_its_reason(tmp_path):
    checks = told(small_model(tmp_path / "m.tflite", float_output=True), U55)
    assert checks["cpu_fallback_ops"].measured == 1
    assert checks["cpu_fallback_ops"].why == (
        "on the CPU: operator 2, DEQUANTIZE (gives 'real'): Unsupported opType. Fix: export with --io int8"
    )
    assert "The CPU's operators are not in it" in checks["npu_cycles"].why


def test_a_damaged_file_is_refused_in_one_line(model, tmp_path):
    (tmp_path / "m.tflite").write_bytes(model.read_bytes()[:700])
    with pytest.raises(InputError, match=r"m\.tflite: damaged or truncated TFLite model") as e:
        told(tmp_path / "m.tflite", U55)
    assert "\n" not in str(e.value)


def test_a_crash_of_vela_is_said(tmp_path):
    with pytest.raises(UnsupportedError, match=r"m\.tflite: Vela refuses it: it was killed by SIG"):
        told(small_model(tmp_path / "m.tflite", op="BITCAST"), U55)


@pytest.mark.parametrize("accelerator", [{}, {"name": "edge-tpu"}, {"name": "ethos-u55-129"}])
def test_an_accelerator_that_is_no_ethos_u_is_refused(model, accelerator):
    with pytest.raises(InputError, match=r"\[accelerator\] must be an Ethos-U .*--target"):
        told(model, accelerator)


def test_the_exporter_writes_the_compiled_file(model, tmp_path):
    out = tmp_path / "compiled.tflite"
    options = ExportOptions(accelerator=U55)
    result = VelaExporter().export(tmp_path, out, scheme="", source=model, calibration=None, options=options)
    assert [name for name, _ in graph.operators(out)] == [compiler.NPU]
    assert result.notes == ("compiled for ethos-u55-128, and runs on nothing else; every operator is on the NPU",)
    assert told(out, U55)["cpu_fallback_ops"].why == "Vela has compiled it already; on the CPU: nothing"
    again = tmp_path / "again.tflite"
    VelaExporter().export(tmp_path, again, scheme="", source=model, calibration=None, options=options)
    assert again.read_bytes() == out.read_bytes()

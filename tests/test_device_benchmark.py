"""Files that a target's device does not take are named in a benchmark, with the reason."""

from pathlib import Path

import pytest

from edgedl import devices
from edgedl.types import Artifact, Lineage, Method, Target, TargetRuntime
from edgedl.validation import device_benchmark, on_device
from edgedl.validation.on_device import Figures


class Place:
    """A devices.Place of a board that runs the agent."""

    gives = "outputs"


@pytest.fixture
def told(monkeypatch):
    """Rows and notes of an m.tflite and an m.onnx on a board of these formats and runtimes."""
    monkeypatch.setattr(devices, "place_of", lambda target: (Place(), ""))
    monkeypatch.setattr(devices, "gives", lambda target: "outputs")
    figures = Figures(where="board", method=Method.MEASURED_DEVICE)
    monkeypatch.setattr(on_device, "figures_of", lambda *given, **more: figures)

    def rows(formats, **runtimes):
        named = tuple(TargetRuntime(name=name, **more) for name, more in runtimes.items())
        board = Target(id="board", name="Board", source="", formats=formats, runtimes=named)
        entries = [(artifact(format_), {}) for format_ in ("tflite", "onnx")]
        found, notes = device_benchmark.rows(entries, [board], runtime=None, threads=1, repeats=1)
        return [row["artifact"] for row in found], notes

    return rows


def artifact(format_):
    return Artifact(path=Path(f"m.{format_}"), format=format_, scheme="fp32", sha256="0", size_bytes=5,
                    compressed_bytes=5, inputs=(), outputs=(), lineage=Lineage())  # fmt: skip


def test_what_the_target_takes_is_a_row_without_a_note(told):
    taken = told(("tflite", "onnx"), litert={"format": "tflite"}, onnxruntime={"format": "onnx"})
    assert taken == (["m.tflite", "m.onnx"], [])


@pytest.mark.parametrize(
    ("formats", "runtimes", "why"),
    [
        (("tflite",), {}, "it takes tflite, not onnx"),
        (("tflite", "onnx"), {}, "its profile names no runtime for onnx"),
        (("tflite", "onnx"), {"ort-mini": {"format": "onnx"}}, "no plugin provides its ort-mini"),
    ],
)
def test_what_the_target_does_not_take_is_named(told, formats, runtimes, why):
    found = told(formats, litert={"format": "tflite"}, **runtimes)
    assert found == (["m.tflite"], [f"target board: nothing of m.onnx: {why}"])


def test_kernels_that_stand_in_are_named(told):
    _, notes = told(("tflite", "onnx"), litert={"resolver": "gpu", "format": "tflite"}, onnxruntime={"format": "onnx"})
    assert notes == ["target board: outputs are those of xnnpack on the CPU, in place of gpu"]

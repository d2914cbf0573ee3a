"""`edgedl benchmark`: files that do not do the same work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest


def same(path: Path, shape: tuple[int, ...], dtype: str = "FLOAT") -> Path:
    """An ONNX file whose output y is its input x."""
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, dtype), shape) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "same", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_inferences_of_unlike_batches_have_no_ratio(cli: Any, tmp_path: Path, schema: Any) -> None:
    one, eight = same(tmp_path / "1.onnx", (1, 4)), same(tmp_path / "8.onnx", (8, 4))
    answer = cli("benchmark", one, eight, same(tmp_path / "other.onnx", (1, 4)), "--repeats", 5, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("benchmark"))
    assert [row["batch"] for row in answer.json["results"]] == [1, 8, 1]
    unlike, alike = answer.json["comparison"]
    assert (unlike["comparable"], unlike["latency_ratio"]) == (False, None)
    assert unlike["why"] == "batches of 1 and 8 samples"
    assert f"{eight} and {one}: not comparable, batches of 1 and 8 samples" in answer.json["notes"]
    assert alike["latency_ratio"] > 0


@pytest.mark.parametrize("dtype", ["FLOAT", "INT64", "BOOL"])
def test_numbers_of_any_kind_are_drawn(cli: Any, tmp_path: Path, dtype: str) -> None:
    answer = cli("benchmark", same(tmp_path / "m.onnx", (1, 4), dtype), "--repeats", 5)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((1, 4), "STRING", "has type string; random samples are bool, int, uint or float"),
        ((1, 4), "BFLOAT16", "has type bfloat16; random samples are bool, int, uint or float"),
        ((), "FLOAT", "has no axes; to be timed here it needs a first one, the batch"),
    ],
)
def test_inputs_that_nothing_can_be_drawn_for_are_refused(
    cli: Any, tmp_path: Path, shape: tuple[int, ...], dtype: str, said: str
) -> None:
    path = same(tmp_path / "m.onnx", shape, dtype)
    answer = cli("benchmark", path)
    assert (answer.code, answer.out, answer.err) == (2, "", f"Error: {path}: input 'x' {said}\n")

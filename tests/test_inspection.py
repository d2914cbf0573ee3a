"""`edgedl inspect --diff`: what another file has instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crafted import small_model

from edgedl import inspection


def test_operators_of_two_files_are_compared_by_count(cli: Any, tmp_path: Path) -> None:
    before = small_model(tmp_path / "before.tflite")
    after = small_model(tmp_path / "after.tflite", float_output=True)
    answer = cli("inspect", before, "--diff", after, "--json")
    assert answer.json["diff"]["ops"] == {"DEQUANTIZE": [0, 1]}


def test_operators_are_not_compared_with_a_file_that_shows_none() -> None:
    shown = {"path": "a.onnx", "size_bytes": 1, "ops": [{"name": "Relu"}]}
    for other in ({"path": "a.ort", "size_bytes": 2, "ops": []}, {"path": "m.keras", "size_bytes": 2}):
        for pair in ((shown, other), (other, shown)):
            found = inspection.difference(*pair)
            assert found["ops"] == {}
            assert "size_bytes" in found["facts"]

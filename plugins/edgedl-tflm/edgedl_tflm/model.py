"""A .tflite file in tflite-micro, as `edgedl.agent` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedl_tflm import graph, interpreter


class TFLMModel:
    """One interpreter with the reference kernels of x86. `inputs` and `outputs` are in signature order."""

    def __init__(self, request: dict[str, Any], data_shapes: dict[str, tuple[int, ...]]) -> None:  # noqa: ARG002
        content = Path(request["artifact"]).read_bytes()
        model = graph.read(content)
        self._interpreter = interpreter.start_large(content)
        self._stateful = graph.is_stateful(model)
        inputs, outputs = graph.ends(model)
        self.inputs = [_spec(name, at, self._interpreter.get_input_details(at)) for name, at in inputs.items()]
        self.outputs = [_spec(name, at, self._interpreter.get_output_details(at)) for name, at in outputs.items()]

    def feed(self, values: list[Any]) -> None:
        """Set the inputs, in the order of `inputs`; a recurrent model forgets the sample before."""
        if self._stateful:
            self._interpreter.reset()
        for spec, value in zip(self.inputs, values, strict=True):
            self._interpreter.set_input(value, spec["index"])

    def invoke(self) -> list[Any]:
        """Run once; the outputs in the order of `outputs`."""
        self._interpreter.invoke()
        return [self._interpreter.get_output(spec["index"]) for spec in self.outputs]


def _spec(name: str, index: int, detail: dict[str, Any]) -> dict[str, Any]:
    quantization = detail["quantization_parameters"]
    return {
        "name": name,
        "index": index,
        "dtype": detail["dtype"].__name__,
        "shape": [int(n) for n in detail["shape"]],
        "scale": [float(v) for v in quantization["scales"]],
        "zero_point": [int(v) for v in quantization["zero_points"]],
    }

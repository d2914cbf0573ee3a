"""onnxruntime's static QDQ quantization of a float .onnx: REQUEST.json; prints its seconds as JSON."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

request = json.loads(Path(sys.argv[1]).read_text())
begun = time.perf_counter()
source, prepared = request["float"], str(Path(request["out"]).with_suffix(".prepared.onnx"))
x = np.load(request["train"])["x"]
rows = np.random.default_rng(request["seed"]).permutation(len(x))[: request["samples"]]
name = InferenceSession(source, providers=["CPUExecutionProvider"]).get_inputs()[0].name


class Reader(CalibrationDataReader):
    """One sample after the other."""

    def __init__(self) -> None:
        self.rows = iter(rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one; None at the end."""
        return next(({name: x[i : i + 1].astype(np.float32)} for i in self.rows), None)


quant_pre_process(source, prepared, skip_symbolic_shape=True)
quantize_static(
    prepared,
    request["out"],
    Reader(),
    quant_format=QuantFormat.QDQ,
    per_channel=True,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
)
print(json.dumps({"seconds": time.perf_counter() - begun}))

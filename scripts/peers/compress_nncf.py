"""NNCF's post-training quantization of a float .onnx, along its documentation: REQUEST.json; prints its seconds."""

import json
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import onnx

request = json.loads(Path(sys.argv[1]).read_text())
begun = time.perf_counter()
x = np.load(request["train"])["x"]
rows = np.random.default_rng(request["seed"]).permutation(len(x))[: request["samples"]]
model = onnx.load(request["float"])
name = model.graph.input[0].name
dataset = nncf.Dataset([{name: x[i : i + 1].astype(np.float32)} for i in rows])
onnx.save(nncf.quantize(model, dataset, subset_size=len(rows)), request["out"])
print(json.dumps({"seconds": time.perf_counter() - begun}))

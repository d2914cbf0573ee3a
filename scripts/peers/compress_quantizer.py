"""litert-quantizer's static int8 of a float .tflite: REQUEST.json; prints its seconds as JSON."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

try:
    from litert_quantizer import quantizer, recipe
except ImportError:  # until 0.10 it was called
    from ai_edge_quantizer import quantizer, recipe

request = json.loads(Path(sys.argv[1]).read_text())
begun = time.perf_counter()
x = np.load(request["train"])["x"]
rows = np.random.default_rng(request["seed"]).permutation(len(x))[: request["samples"]]
(signature, tensors), *_ = Interpreter(request["float"]).get_signature_list().items()
samples = {signature: [{tensors["inputs"][0]: x[i : i + 1].astype(np.float32)} for i in rows]}

made = quantizer.Quantizer(request["float"])
made.load_quantization_recipe(recipe.static_wi8_ai8())
statistics = made.calibrate(samples)
Path(request["out"]).unlink(missing_ok=True)
made.quantize(statistics).export_model(request["out"])
print(json.dumps({"seconds": time.perf_counter() - begun}))

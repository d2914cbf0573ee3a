"""LiteRT behind the stub of its Kotlin classes: one JSON request a line, `{"file", "inputs"}`, codes by tensor name."""

import json
import sys

import numpy as np

from edgedl.agent import TFLiteModel

for line in sys.stdin:
    request = json.loads(line)
    model = TFLiteModel({"artifact": request["file"], "runtime": "litert"}, {})
    codes = [np.array(request["inputs"][spec["name"]]).reshape(spec["shape"]) for spec in model.inputs]
    model.feed([values.astype(np.int64).astype(s["dtype"]) if s["dtype"] != "float32" else values.astype(np.float32) for values, s in zip(codes, model.inputs, strict=True)])
    found = {s["name"]: values.reshape(-1).tolist() for s, values in zip(model.outputs, model.invoke(), strict=True)}
    print(json.dumps(found), flush=True)

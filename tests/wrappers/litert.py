"""LiteRT behind the doubles of its Kotlin classes: a JSON request a line, `{"file", "inputs"}`, codes by name."""

import json
import sys

import numpy as np

from edgedl.agent import TFLiteModel

for line in sys.stdin:
    request = json.loads(line)
    model = TFLiteModel({"artifact": request["file"], "runtime": "litert"}, {})
    codes = [np.array(request["inputs"][spec["name"]]).astype(spec["dtype"]) for spec in model.inputs]
    model.feed([values.reshape(spec["shape"]) for values, spec in zip(codes, model.inputs, strict=True)])
    found = {s["name"]: values.reshape(-1).tolist() for s, values in zip(model.outputs, model.invoke(), strict=True)}
    print(json.dumps(found), flush=True)

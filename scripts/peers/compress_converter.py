"""TFLiteConverter, as its documentation has it: REQUEST.json; prints its seconds as JSON."""

import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

request = json.loads(Path(sys.argv[1]).read_text())
keras.ops.zeros(1)  # the first op sets TensorFlow up
begun = time.perf_counter()
scheme = request["options"]["scheme"]
x = np.load(request["train"])["x"]
rows = np.random.default_rng(request["seed"]).permutation(len(x))[: request["samples"]]
model = keras.models.load_model(request["model"], compile=False)
converter = tf.lite.TFLiteConverter.from_keras_model(model)
if scheme != "fp32":
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
if scheme == "int8":
    converter.representative_dataset = lambda: ([x[i : i + 1].astype(np.float32)] for i in rows)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
Path(request["out"]).write_bytes(converter.convert())
print(json.dumps({"seconds": time.perf_counter() - begun}))

"""TFMOT along its documentation, its int8 file by TFLiteConverter: REQUEST.json; prints its seconds as JSON.

The model is carried to Keras 2 by the plugin edgedl-tfmot, which is all that edgedl has to do with it.
"""

import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from edgedl import models, plugins, recipes
from edgedl.compression.base import Context
from edgedl.fitting.samples import TrainingData
from edgedl.models import specs

request = json.loads(Path(sys.argv[1]).read_text())
keras.ops.zeros(1)  # the first op sets TensorFlow up
begun = time.perf_counter()
model = models.load(Path(request["model"])).model
seconds = time.perf_counter() - begun
arrays = np.load(request["train"])
names = [part[0].name for part in specs(model)]
data = TrainingData(inputs={names[0]: arrays["x"]}, targets={names[1]: arrays["y"]})
rows = np.random.default_rng(request["seed"]).permutation(data.count)[: request["samples"]]

notes, own = [], None
for number, step in enumerate(recipes.from_table({"step": request["options"]["steps"]}).steps):
    context = Context(step=step, seed=request["seed"], folder=Path(request["out"]).parent / f"tfmot-{number}")
    compressor = plugins.load("compressors", step.compressor)
    model, told = compressor.run(model, data, step.options, context)
    seconds, notes, own = seconds + told["seconds"], notes + told["notes"], told["tflite"]

begun = time.perf_counter()
if own:  # only TFMOT's own process can convert its quantized model
    Path(request["out"]).write_bytes(own.read_bytes())
else:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([arrays["x"][i : i + 1].astype(np.float32)] for i in rows)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    Path(request["out"]).write_bytes(converter.convert())
print(json.dumps({"seconds": seconds + time.perf_counter() - begun, "notes": notes}))

"""MCT's post-training quantization for TFLite, along its documentation: REQUEST.json; prints its seconds as JSON."""

import json
import sys
import time
from pathlib import Path

import keras
import model_compression_toolkit as mct
import numpy as np
import tensorflow as tf

request = json.loads(Path(sys.argv[1]).read_text())
tf.zeros(1)  # the first op sets TensorFlow up
begun = time.perf_counter()
x = np.load(request["train"])["x"]
rows = np.random.default_rng(request["seed"]).permutation(len(x))[: request["samples"]]
model = keras.models.load_model(request["float"], compile=False)
quantized, _ = mct.ptq.keras_post_training_quantization(
    model,
    lambda: ([x[i : i + 1].astype(np.float32)] for i in rows),
)
mct.exporter.keras_export_model(
    model=quantized,
    save_model_path=request["out"],
    serialization_format=mct.exporter.KerasExportSerializationFormat.TFLITE,
    quantization_format=mct.exporter.QuantizationFormat.INT8,
)
print(json.dumps({"seconds": time.perf_counter() - begun}))

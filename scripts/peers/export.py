"""ResNet8 to int8 as the converter's documentation shows it: MODEL.h5 TRAIN.npz OUT.tflite."""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

model_path, train_path, out_path = sys.argv[1:]
model = keras.models.load_model(model_path, compile=False)
images = np.load(train_path)["x"][:200].astype(np.float32)
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([image[None]] for image in images)
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
Path(out_path).write_bytes(converter.convert())

"""The tutorial, with the float reference added: MODEL.h5 TRAIN.npz TEST.npz OUT.tflite, and both accuracies."""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

model_path, train_path, test_path, out_path = sys.argv[1:]
model = keras.models.load_model(model_path, compile=False)
images = np.load(train_path)["x"][:200].astype(np.float32)
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([image[None]] for image in images)
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
Path(out_path).write_bytes(converter.convert())

test = np.load(test_path)
images, labels = test["x"].astype(np.float32), test["y"].reshape(-1)
print("float", np.mean(model.predict(images, verbose=0).argmax(axis=1) == labels))

interpreter = tf.lite.Interpreter(out_path)
interpreter.allocate_tensors()
input_index = interpreter.get_input_details()[0]["index"]
output_index = interpreter.get_output_details()[0]["index"]
correct = 0
for image, label in zip(images, labels, strict=True):
    interpreter.set_tensor(input_index, image[None])
    interpreter.invoke()
    correct += interpreter.get_tensor(output_index)[0].argmax() == label
print("int8", correct / len(images))

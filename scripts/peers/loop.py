"""A bare `invoke` loop: MODEL.tflite IMAGES.npy OUT.npy; prints the wall and CPU seconds of the loop alone."""

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

model_path, images_path, out_path = sys.argv[1:]
images = np.load(images_path).astype(np.float32)
interpreter = Interpreter(model_path, num_threads=1)
interpreter.allocate_tensors()
input_index = interpreter.get_input_details()[0]["index"]
output_index = interpreter.get_output_details()[0]["index"]
outputs = []
interpreter.invoke()
wall, cpu = time.perf_counter(), time.process_time()
for image in images:
    interpreter.set_tensor(input_index, image[None])
    interpreter.invoke()
    outputs.append(interpreter.get_tensor(output_index)[0])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
np.save(out_path, np.array(outputs))
print(wall, cpu)

"""Runs on TFLite: exporter `tflite`, runtimes `litert` and `tflite-runtime`."""

"""Runs on ONNX: exporter `onnx`, runtime `onnxruntime`."""

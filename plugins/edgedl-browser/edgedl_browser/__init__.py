"""LiteRT.js and onnxruntime-web as runtimes of edgedl, in a headless Chromium."""

"""TensorFlow Lite Micro as a runtime of edgedl: its x86 kernels and its memory planner."""

"""TensorFlow Model Optimization for edgedl, in a process of its own."""

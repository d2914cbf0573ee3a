"""Accuracy, parity, latency: what the artifact does beside its reference."""

"""edgedl: from a trained Keras model to the smallest artifact that still works on the device, with the evidence."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["benchmark", "compress", "diff", "export", "inspect", "package", "train", "validate", "verify"]


def __getattr__(name: str) -> Any:
    """The public verbs are the functions of `pipeline`, imported on first use."""
    if name in __all__:
        return getattr(import_module("edgedl.pipeline"), name)
    message = f"module 'edgedl' has no attribute {name!r}"
    raise AttributeError(message)

"""The platform `c`: a model as a C array for TensorFlow Lite for Microcontrollers, with all that a firmware needs to
know of it at compile time."""

from edgedl.packaging.c.packager import CPackager

__all__ = ["CPackager"]

"""The platform `python`: a wheel that runs the model with numpy and one runtime alone, on a Raspberry Pi for one."""

from edgedl.packaging.python.packager import PythonPackager

__all__ = ["PythonPackager"]

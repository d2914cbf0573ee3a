"""Packages: content, manifest, platforms, signature, verification."""

from edgedl.packaging.comparison import compare
from edgedl.packaging.keys import generate as generate_key
from edgedl.packaging.packing import Request, pack
from edgedl.packaging.verification import verify

__all__ = ["Request", "compare", "generate_key", "pack", "verify"]

"""Packages: content, manifest, verification."""

from edgedl.packaging.packing import Request, pack
from edgedl.packaging.verification import verify

__all__ = ["Request", "pack", "verify"]

"""Packages: content, manifest, verification."""

from edgedl.packaging.content import pack
from edgedl.packaging.verification import verify

__all__ = ["pack", "verify"]

"""RECORD, the list of a wheel's files with their hashes (packaging.python.org, binary distribution format)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection
from pathlib import Path

RECORD = re.compile(r"[^/]+\.dist-info/RECORD")


def is_record(name: str, names: Collection[str]) -> bool:
    """Whether a path in an archive of `names` is that of a wheel's RECORD, which a WHEEL lies beside."""
    return RECORD.fullmatch(name) is not None and f"{name.removesuffix('RECORD')}WHEEL" in names


def write_record(tree: Path) -> None:
    """Write RECORD where the folder `tree` is a wheel's: where a `*.dist-info/WHEEL` is in it."""
    for wheel in tree.glob("*.dist-info/WHEEL"):
        record = wheel.with_name("RECORD")
        files = sorted((f.relative_to(tree).as_posix(), f) for f in tree.rglob("*") if f.is_file() and f != record)
        rows = [f"{name},sha256={_digest(file)},{file.stat().st_size}" for name, file in files]
        record.write_text("\n".join([*rows, f"{record.relative_to(tree).as_posix()},,"]) + "\n", encoding="utf-8")


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").digest()
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode()

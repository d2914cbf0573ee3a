"""The zip archive. Files that are worth mapping start at a multiple of 64 bytes: the model is mapped where it lies.

The largest file is first, the others by name: so what repeats in them lies within the window of a compressor, 32 kB of
deflate. Dates, rights and the other header fields are fixed. What zlib would save depends on its version, and an app
store compresses the app once more.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

DATE = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip can hold
RIGHTS = 0o100644 << 16  # a plain file that its owner writes and everybody reads
ALIGNMENT = 64  # bytes
LEAST_BYTES = 1024  # of a file that is aligned; what is smaller is read, and its padding would travel in every app
ALIGNMENT_FIELD = 0xD935  # the extra field that Android's zipalign and apksigner pad with
LOCAL_HEADER_BYTES = 30


def write(tree: Path, path: Path, *, align: bool = True) -> None:
    """Every file below the folder `tree` in the archive `path`."""
    at = 0
    files = {f.relative_to(tree).as_posix(): f for f in tree.rglob("*") if f.is_file()}
    largest = max(files, key=lambda name: (files[name].stat().st_size, name), default=None)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files, key=lambda name: (name != largest, name)):
            size = files[name].stat().st_size
            entry = _entry(name, size, at if align and size >= LEAST_BYTES else None)
            with files[name].open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            at += _header_bytes(entry) + entry.file_size


def _entry(name: str, size: int, at: int | None) -> zipfile.ZipInfo:
    """The header of a file; where it is given, the header starts at byte `at` and is padded to align the content."""
    entry = zipfile.ZipInfo(name, DATE)
    entry.create_system, entry.external_attr, entry.file_size = 3, RIGHTS, size  # 3: Unix, wherever it is made
    if at is not None:
        entry.extra = struct.pack("<HHH", ALIGNMENT_FIELD, 2, ALIGNMENT)
        padding = -(at + _header_bytes(entry)) % ALIGNMENT
        entry.extra = struct.pack("<HHH", ALIGNMENT_FIELD, 2 + padding, ALIGNMENT) + bytes(padding)
    return entry


def _header_bytes(entry: zipfile.ZipInfo) -> int:
    return LOCAL_HEADER_BYTES + len(entry.filename.encode()) + len(entry.extra)

"""The zip archive. Every file starts at a multiple of 64 bytes, so that the model is mapped where it lies.

Names are sorted; dates, rights and the other header fields are fixed. What zlib would save depends on its version, and
an app store compresses the app once more.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

DATE = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip can hold
RIGHTS = 0o100644 << 16  # a plain file that its owner writes and everybody reads
ALIGNMENT = 64  # bytes
ALIGNMENT_FIELD = 0xD935  # the extra field that Android's zipalign and apksigner pad with
LOCAL_HEADER_BYTES = 30


def write(tree: Path, path: Path) -> None:
    """Every file below the folder `tree` in the archive `path`."""
    at = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, file in sorted((f.relative_to(tree).as_posix(), f) for f in tree.rglob("*") if f.is_file()):
            entry = _entry(name, file.stat().st_size, at)
            with file.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            at += _header_bytes(entry) + entry.file_size


def _entry(name: str, size: int, at: int) -> zipfile.ZipInfo:
    """The header of a file whose header starts at byte `at`, padded to bring its content to the alignment."""
    entry = zipfile.ZipInfo(name, DATE)
    entry.create_system, entry.external_attr, entry.file_size = 3, RIGHTS, size  # 3: Unix, wherever it is made
    entry.extra = struct.pack("<HHH", ALIGNMENT_FIELD, 2, ALIGNMENT)
    padding = -(at + _header_bytes(entry)) % ALIGNMENT
    entry.extra = struct.pack("<HHH", ALIGNMENT_FIELD, 2 + padding, ALIGNMENT) + bytes(padding)
    return entry


def _header_bytes(entry: zipfile.ZipInfo) -> int:
    return LOCAL_HEADER_BYTES + len(entry.filename.encode()) + len(entry.extra)

"""A foreign archive, unpacked into a scratch folder, or refused before anything is written."""

from __future__ import annotations

import errno
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgedl.errors import InputError

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
MAX_FILES = 1_000
MAX_BYTES = 4_000_000_000
MAX_RATIO = 200  # of what unpacks to more than a megabyte; deflate reaches 1,032
BLOCK_BYTES = 1 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def extract(package: Path, folder: Path) -> list[str]:
    """Unpack into `folder`. What does not hold, a line each; entries are judged before any is written.

    Raises InputError where the folder takes no more.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            entries = archive.infolist()
            findings = list(_refusals(entries, package.stat().st_size))
            for entry in () if findings else entries:
                findings += _extract_one(archive, entry, folder)
    except DAMAGE as e:
        return [f"damaged archive: {e or type(e).__name__}"]
    except OSError as e:
        if e.errno == errno.EINVAL:  # an offset in the archive leads out of the file
            return ["damaged archive: an offset leads out of it"]
        message = f"{package}: cannot be unpacked into {folder}: {e.strerror}; free some space"
        raise InputError(message) from e
    return findings


def _extract_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> list[str]:
    path = folder / entry.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, path.open("xb") as target:
        while written <= entry.file_size and (block := source.read(BLOCK_BYTES)):
            target.write(block)
            written += len(block)
    if written != entry.file_size:
        return [f"{entry.filename}: holds {written} bytes, the archive says {entry.file_size}"]
    return []


def _refusals(entries: Sequence[zipfile.ZipInfo], size: int) -> Iterator[str]:
    if len(entries) > MAX_FILES:
        yield f"{len(entries):,} files, at most {MAX_FILES:,} are unpacked"
        return
    total = sum(e.file_size for e in entries)
    if total > MAX_BYTES:
        yield f"unpacks to {total:,} bytes, at most {MAX_BYTES:,} are unpacked"
    if sum(e.compress_size for e in entries) > size:
        yield "entries overlap: together they are larger than the archive"
    seen: set[str] = set()
    for entry in entries:
        yield from (f"{_shown(entry)} {why}" for why in _entry_refusals(entry))
        folded = entry.filename.casefold()
        if folded in seen:
            yield f"{_shown(entry)} is there twice"
        seen.add(folded)


def _entry_refusals(entry: zipfile.ZipInfo) -> Iterator[str]:
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if name[:1] in ("/", "\\") or name[1:2] == ":" or ".." in re.split(r"[/\\]", name):
        yield "climbs out of the folder"
    elif not PLAIN.fullmatch(name) or kind not in (0, stat.S_IFREG):
        yield "is no plain file: a link, a folder, a device or an odd name"
    if entry.flag_bits & 1:
        yield "is encrypted"
    if entry.compress_type not in METHODS:
        yield f"is compressed with method {entry.compress_type}, only store and deflate are read"
    if entry.file_size > max(BLOCK_BYTES, MAX_RATIO * entry.compress_size):
        yield f"unpacks {entry.compress_size:,} to {entry.file_size:,} bytes, more than {MAX_RATIO} times as many"


def _shown(entry: zipfile.ZipInfo) -> str:
    return repr(entry.orig_filename[:80])

"""A foreign archive, unpacked into a scratch folder, or refused before anything is written."""

from __future__ import annotations

import contextlib
import errno
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from edgedl import worker
from edgedl.errors import InputError

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
MAX_FILES = 1_000
MAX_BYTES = 4_000_000_000
MAX_RATIO = 200  # of what unpacks to more than a megabyte; deflate reaches 1,032
BLOCK_BYTES = 1 << 20
ZIP, GZIP = b"PK", b"\x1f\x8b"  # how the files begin
DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, struct.error)
DAMAGE += (NotImplementedError, RuntimeError, ValueError)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def extract(package: Path, folder: Path) -> list[str]:
    """Unpack into `folder`. What does not hold, a line each; entries are judged before any is written.

    Raises InputError where the folder takes no more.
    """
    try:
        return _extract_tgz(package, folder) if kind(package) == ".tgz" else _extract_zip(package, folder)
    except DAMAGE as e:
        return [f"damaged archive: {e or type(e).__name__}"]
    except OSError as e:
        if e.errno == errno.EINVAL:  # an offset in the archive leads out of the file
            return ["damaged archive: an offset leads out of it"]
        message = f"{package}: cannot be unpacked into {folder}: {e.strerror}; free some space"
        raise InputError(message) from e


def peek(package: Path, name: str) -> bytes | None:
    """The first file of that name in any folder of an archive, at most a megabyte of it; None where there is none."""
    with contextlib.suppress(*DAMAGE, OSError):
        if kind(package) == ".zip":
            with zipfile.ZipFile(package) as archive:
                found = [e for e in archive.infolist() if PurePosixPath(e.filename).name == name]
                return archive.open(found[0]).read(BLOCK_BYTES) if found else None
        plain = worker.pool().scratch("tar") / "plain.tar"
        if kind(package) == ".tgz" and _inflate(package, plain):
            with tarfile.open(plain, "r:") as tar:
                named = [e for e in tar if PurePosixPath(e.name).name == name and e.isreg()]
                source = tar.extractfile(named[0]) if named else None
                return source.read(BLOCK_BYTES) if source else None
    return None


def kind(package: Path) -> str | None:
    """Whether a file begins as a `.zip` or as a `.tgz`; its name decides where its first bytes are neither's."""
    with package.open("rb") as f:
        start = f.read(2)
    if start in (ZIP, GZIP):
        return ".zip" if start == ZIP else ".tgz"
    return {".zip": ".zip", ".aar": ".zip", ".whl": ".zip", ".tgz": ".tgz"}.get(package.suffix)


def _extract_zip(package: Path, folder: Path) -> list[str]:
    with zipfile.ZipFile(package) as archive:
        entries = archive.infolist()
        findings = list(_zip_refusals(entries, package.stat().st_size))
        for entry in () if findings else entries:
            with archive.open(entry) as source:
                findings += _write_one(source, folder, entry.filename, entry.file_size)
    return findings


def _extract_tgz(package: Path, folder: Path) -> list[str]:
    """edgedl stores and does not compress, so what unpacks to more than the file itself is none of its own."""
    plain = worker.pool().scratch("tar") / "plain.tar"
    if not _inflate(package, plain):
        return [f"unpacks to more than its own {package.stat().st_size:,} bytes; edgedl writes nothing compressed"]
    with tarfile.open(plain, "r:") as archive:
        entries = archive.getmembers()
        findings = list(_listing_refusals([e.name for e in entries], sum(e.size for e in entries)))
        findings += [f"{e.name[:80]!r} {why}" for e in entries for why in _name_refusals(e.name, e.isreg())]
        for entry in () if findings else entries:
            source = archive.extractfile(entry)
            assert source is not None  # noqa: S101  it is a plain file
            findings += _write_one(source, folder, entry.name, entry.size)
    return findings


def _inflate(package: Path, plain: Path) -> bool:
    """Whether what is in a gzip file is smaller than the file; then it is in `plain`. Raises zlib.error, EOFError."""
    limit = package.stat().st_size
    decoder = zlib.decompressobj(wbits=31)
    with package.open("rb") as source, plain.open("wb") as target:
        while block := source.read(BLOCK_BYTES):
            target.write(decoder.decompress(block, limit))
            if decoder.unconsumed_tail or target.tell() > limit:
                return False
    if not decoder.eof:
        message = "it ends too early"
        raise EOFError(message)
    return True


def _write_one(source: IO[bytes], folder: Path, name: str, size: int) -> list[str]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("xb") as target:
        while written <= size and (block := source.read(BLOCK_BYTES)):
            target.write(block)
            written += len(block)
    return [f"{name}: holds {written} bytes, the archive says {size}"] if written != size else []


def _zip_refusals(entries: Sequence[zipfile.ZipInfo], size: int) -> Iterator[str]:
    yield from _listing_refusals([e.filename for e in entries], sum(e.file_size for e in entries))
    if sum(e.compress_size for e in entries) > size:
        yield "entries overlap: together they are larger than the archive"
    for entry in entries[: MAX_FILES + 1]:
        yield from (f"{entry.orig_filename[:80]!r} {why}" for why in _entry_refusals(entry))


def _listing_refusals(names: Sequence[str], total: int) -> Iterator[str]:
    if len(names) > MAX_FILES:
        yield f"{len(names):,} files, at most {MAX_FILES:,} are unpacked"
    if total > MAX_BYTES:
        yield f"unpacks to {total:,} bytes, at most {MAX_BYTES:,} are unpacked"
    folded = [name.casefold() for name in names]
    yield from (f"{name[:80]!r} is there twice" for name in _repeated(folded))
    folders = {str(parent) for name in folded for parent in PurePosixPath(name).parents}
    yield from (f"{name[:80]!r} is a file and a folder" for name in folded if name in folders)


def _repeated(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _name_refusals(name: str, plain: bool) -> Iterator[str]:
    if name[:1] in ("/", "\\") or name[1:2] == ":" or ".." in re.split(r"[/\\]", name):
        yield "climbs out of the folder"
    elif not plain or not PLAIN.fullmatch(name):
        yield "is no plain file: a link, a folder, a device or an odd name"


def _entry_refusals(entry: zipfile.ZipInfo) -> Iterator[str]:
    yield from _name_refusals(entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG))
    if entry.flag_bits & 1:
        yield "is encrypted"
    if entry.compress_type not in METHODS:
        yield f"is compressed with method {entry.compress_type}, only store and deflate are read"
    if entry.file_size > max(BLOCK_BYTES, MAX_RATIO * entry.compress_size):
        yield f"unpacks {entry.compress_size:,} to {entry.file_size:,} bytes, more than {MAX_RATIO} times as many"

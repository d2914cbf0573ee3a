"""The .tgz archive of npm: a ustar file (POSIX.1-1988) in gzip (RFC 1952), in stored blocks (RFC 1951, 3.2.4)."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from edgedl.errors import InputError

DATE_S = 499_162_500  # the one date that npm pack gives every file: 1985-10-26, 8:15 UTC
GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # no date, no name, no system
RECORD_BYTES = 512
STORED_BYTES = 65_535  # most of a stored block
NAME_BYTES, PREFIX_BYTES = 100, 155


class _Gzip:
    """A binary file whose content is written as stored blocks."""

    def __init__(self, target: BinaryIO) -> None:
        self.target, self.crc, self.size, self.rest = target, 0, 0, b""
        target.write(GZIP_HEADER)

    def write(self, data: bytes) -> int:
        self.crc, self.size, self.rest = zlib.crc32(data, self.crc), self.size + len(data), self.rest + data
        while len(self.rest) > STORED_BYTES:
            self._block(self.rest[:STORED_BYTES], final=False)
            self.rest = self.rest[STORED_BYTES:]
        return len(data)

    def close(self) -> None:
        self._block(self.rest, final=True)
        self.target.write(struct.pack("<II", self.crc, self.size % (1 << 32)))

    def _block(self, data: bytes, *, final: bool) -> None:
        self.target.write(struct.pack("<BHH", final, len(data), len(data) ^ 0xFFFF) + data)


def write(tree: Path, path: Path) -> None:
    """Every file below the folder `tree` in the archive `path`. Raises InputError for a path too long for ustar."""
    with path.open("wb") as target:
        packed = _Gzip(target)
        for name, file in sorted((f.relative_to(tree).as_posix(), f) for f in tree.rglob("*") if f.is_file()):
            size = file.stat().st_size
            packed.write(_header(name, size))
            with file.open("rb") as source:
                shutil.copyfileobj(source, packed, STORED_BYTES)
            packed.write(bytes(-size % RECORD_BYTES))
        packed.write(bytes(2 * RECORD_BYTES))
        packed.close()


def _header(name: str, size: int) -> bytes:
    prefix, _, base = name.rpartition("/") if len(name) > NAME_BYTES else ("", "", name)
    if len(base.encode()) > NAME_BYTES or len(prefix.encode()) > PREFIX_BYTES:
        message = f"{name}: too long a path for a .tgz; choose a shorter --name"
        raise InputError(message)
    numbers = f"{0o644:07o}\0{0:07o}\0{0:07o}\0{size:011o}\0{DATE_S:011o}\0".encode()
    last = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
    tail = last + prefix.encode().ljust(PREFIX_BYTES, b"\0") + bytes(12)
    head = base.encode().ljust(NAME_BYTES, b"\0") + numbers
    checksum = sum(head) + 8 * ord(" ") + sum(tail)
    return head + f"{checksum:06o}\0 ".encode() + tail

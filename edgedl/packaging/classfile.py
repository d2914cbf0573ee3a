"""Class files (Java Virtual Machine Specification, chapter 4) without what Android does not read.

Line numbers and names of local variables go: Kotlin's compiler has no option for it. Stack maps go as well, as in the
class files of Java 5, whose version is written: they are for the verifier of a JVM, and a dex compiler computes its own
(ProGuard's manual, -dontpreverify; D8 reads them from class files of Java 7 on).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

JAVA_5 = (0, 49)  # minor and major version, the last without stack maps
LEFT_OUT = (b"LineNumberTable", b"LocalVariableTable", b"SourceFile", b"StackMapTable", b"Exceptions")
CONSTANT_BYTES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4}  # by tag, after it; 1 is a text
TEXT, WIDE = 1, (5, 6)  # the wide ones take two places


@dataclass
class _Reader:
    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")


def strip(folder: Path) -> None:
    """Rewrite every class file below a folder."""
    for path in folder.rglob("*.class"):
        path.write_bytes(stripped(path.read_bytes()))


def stripped(data: bytes) -> bytes:
    """A class file of Java 5 from one of a later version that uses nothing newer than it but stack maps.

    Raises ValueError for a constant that Java 5 does not have, such as that of a lambda.
    """
    reader = _Reader(data, 8)
    texts = _texts(reader)
    start = reader.at
    reader.take(6)  # access flags, this class, its super class
    reader.take(2 * reader.number(2))  # interfaces
    made = data[:4] + b"".join(n.to_bytes(2, "big") for n in JAVA_5) + data[8:start] + data[start : reader.at]
    for _ in ("fields", "methods"):
        count = reader.number(2)
        made += count.to_bytes(2, "big") + b"".join(reader.take(6) + _attributes(reader, texts) for _ in range(count))
    return made + _attributes(reader, texts)


def _texts(reader: _Reader) -> dict[int, bytes]:
    """The texts among the constants by place."""
    found, place, count = {}, 1, reader.number(2)
    while place < count:
        tag = reader.number(1)
        if tag == TEXT:
            found[place] = reader.take(reader.number(2))
        elif tag in CONSTANT_BYTES:
            reader.take(CONSTANT_BYTES[tag])
        else:
            message = f"a constant of kind {tag}, which class files of Java 5 do not have"
            raise ValueError(message)
        place += 2 if tag in WIDE else 1
    return found


def _attributes(reader: _Reader, texts: dict[int, bytes]) -> bytes:
    """The attributes that stay, with their number before them."""
    kept = []
    for _ in range(reader.number(2)):
        name, inner = reader.take(2), _Reader(reader.take(reader.number(4)))
        kind = texts[int.from_bytes(name, "big")]
        if kind == b"Code":
            inner = _Reader(_code(inner, texts))
        if kind not in LEFT_OUT:
            kept.append(name + len(inner.data).to_bytes(4, "big") + inner.data)
    return len(kept).to_bytes(2, "big") + b"".join(kept)


def _code(reader: _Reader, texts: dict[int, bytes]) -> bytes:
    """The attribute Code: sizes, instructions, what is caught where, and attributes of its own."""
    reader.take(4)
    reader.take(reader.number(4))
    reader.take(8 * reader.number(2))
    return reader.data[: reader.at] + _attributes(reader, texts)

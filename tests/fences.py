"""The code blocks of a Markdown file, for tests of documents."""

from pathlib import Path
from typing import NamedTuple


class Fence(NamedTuple):
    above: str  # the line before the block
    language: str
    text: str


def fences(path: Path) -> list[Fence]:
    """Every fenced block, in order."""
    found, lines = [], path.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
        elif start is not None and line == "```":
            text = "".join(f"{one}\n" for one in lines[start + 1 : number])
            found.append(Fence(lines[start - 1] if start else "", lines[start][3:], text))
            start = None
    assert start is None, f"{path}: the block in line {start} is not closed"
    return found

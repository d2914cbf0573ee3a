"""Folders as archives and back. The same files give the same bytes with every Python and zlib: nothing is compressed.

So a verifier that packs again what it unpacked gets the very archive, or the archive was changed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgedl.packaging.archives import stored_tgz, stored_zip, wheel

WRITERS = {
    ".zip": stored_zip.write,
    ".aar": stored_zip.write,
    ".whl": stored_zip.write,
    ".tgz": stored_tgz.write,
}


def write(tree: Path, path: Path) -> None:
    """Every file below the folder `tree` in the archive `path`; its suffix says which kind.

    A wheel's RECORD, which lists the other files, is written anew.
    """
    wheel.write_record(tree)
    WRITERS[path.suffix](tree, path)


def is_derived(name: str, names: Collection[str]) -> bool:
    """Whether a file of an archive of `names` follows from the others, so that no manifest needs to know it."""
    return wheel.is_record(name, names)

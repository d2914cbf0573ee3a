"""From a platform's layout to its file: content, manifest and signature go in, and the archive is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import worker
from edgedl.errors import EdgedlError
from edgedl.packaging import archives, manifest, signature
from edgedl.types import Content, Packager

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def close(packager: Packager, content: Content, key: Ed25519PrivateKey | None) -> tuple[Path, tuple[str, ...]]:
    """The file of one platform in a scratch folder, and what the user should hear about it."""
    tree = worker.pool().scratch("tree")
    layout = packager.lay_out(content, tree)
    own = manifest.hashes(tree)
    folder = tree / layout.content
    _check(packager, own, [*content.manifest["files"], manifest.NAME, manifest.SIGNATURE], layout.content)
    shutil.copytree(content.folder, folder, dirs_exist_ok=True)
    value: dict[str, Any] = {**content.manifest, "package": {"platform": packager.platform, "files": own}}
    manifest.write(value, folder / manifest.NAME)
    if key:
        signature.write(folder, key)
    path = worker.pool().scratch("packed") / layout.file
    archives.write(tree, path)
    return path, layout.notes


def _check(packager: Packager, own: dict[str, str], content: list[str], folder: str) -> None:
    """Raises EdgedlError where a packager writes what is not its own: a path of the content, or another manifest."""
    taken = {f"{folder}/{name}" if folder else name for name in content}
    wrong = [
        name for name in own if name in taken or Path(name).name == manifest.NAME or archives.is_derived(name, own)
    ]
    if wrong:
        message = (
            f"packager {packager.platform!r} writes {wrong[0]!r}, which edgedl itself writes; report it to its author"
        )
        raise EdgedlError(message)

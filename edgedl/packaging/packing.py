"""Packing: an artifact into one file a platform, from one content, one run of the golden samples, one set of hashes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgedl import artifacts, plugins, targets
from edgedl.errors import InputError, UnsupportedError
from edgedl.packaging import archives, card, closing, content, extraction, interface, keys, manifest, verification
from edgedl.types import Packager, Target

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}[A-Za-z0-9]|[A-Za-z]")
SEMANTIC_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `edgedl package` is asked for: its options, files as their paths."""

    artifact: Path
    platforms: tuple[str, ...]
    out: Path
    data: str | None = None
    labels: Path | None = None
    report: Path | None = None
    card: Path | None = None
    sign: Path | None = None
    targets: tuple[str, ...] = ()
    name: str | None = None
    version: str | None = None
    previous: Path | None = None
    seed: int = 0
    force: bool = False


def pack(request: Request, said: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The packages written into the folder `out`, one a platform. Golden samples are drawn from `data`, else random.

    Raises InputError: name, version, labels, report or data do not fit; UnsupportedError: a platform does not take the
    artifact's format; PluginError: no such platform, no runtime.
    """
    packagers: list[Packager] = [plugins.load("packagers", p) for p in dict.fromkeys(request.platforms)]
    key = keys.load_private(request.sign) if request.sign else None
    profiles: tuple[Target, ...] = tuple(targets.load(name) for name in request.targets)
    _check_folder(request.out, force=request.force)
    previous = verification.read_manifest(request.previous) if request.previous else None
    name = _check_name(request.name or (previous["name"] if previous else request.artifact.stem), request.version)
    format_ = artifacts.require_format(request.artifact)
    for packager in packagers:
        _check_format(packager, format_, request.artifact)
    made = content.make(
        content.Sources(
            artifact=request.artifact,
            data=request.data,
            labels=request.labels,
            report=request.report,
            targets=profiles,
            card=card.read(request.card) if request.card else card.Card(),
            name=name,
            version=request.version,
            previous=previous,
            seed=request.seed,
        ),
        said,
    )
    if key:
        made = replace(made, public_key=key.public_key().public_bytes_raw())
    known = [(str(request.previous), previous)] if previous else []
    version = made.manifest["version"]
    known += [(p, m) for p, m in _siblings(request.out) if not (request.force and m["version"] == version)]
    interface.check_version(known, made.manifest)
    closed = [closing.close(packager, made, key) for packager in packagers]
    for note in dict.fromkeys(note for _, notes in closed for note in notes):
        said(note)
    return _publish([path for path, _ in closed], request.out, force=request.force)


def _check_format(packager: Packager, format_: str, artifact: Path) -> None:
    if packager.formats and format_ not in packager.formats:
        message = (
            f"{artifact}: platform {packager.platform!r} takes {', '.join(packager.formats)}, this is {format_}; "
            f"export it with --format {packager.formats[0]}"
        )
        raise UnsupportedError(message)


def _check_folder(out: Path, *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        message = f"{out}: is a file; -o names the folder that packages are written into"
        raise InputError(message)
    artifacts.check_output(out / "package" if out.exists() else out, force=force)


def _siblings(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Packages that lie in a folder already, with their manifests; what is none, or damaged, is left alone."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        text = extraction.peek(path, manifest.NAME) if path.suffix in archives.WRITERS else None
        found = manifest.parse(text) if text else None
        if found:
            yield str(path), found


def _check_name(name: str, version: str | None) -> str:
    if not NAME.fullmatch(name):
        message = (
            f"--name: {name!r} is no name of a package: at most 64 letters, digits and _ . - are allowed, "
            "a letter first, a letter or digit last; name one with --name"
        )
        raise InputError(message)
    if version is not None and not SEMANTIC_VERSION.fullmatch(version):
        message = f"--version: {version!r} is no version: MAJOR.MINOR.PATCH is needed, such as 1.2.0 or 1.2.0-rc.1"
        raise InputError(message)
    return name


def _publish(made: Sequence[Path], out: Path, *, force: bool) -> list[Path]:
    """Move packages into `out`, once it is known that none is in the way."""
    for path in made if out.exists() else ():
        artifacts.check_output(out / path.name, force=force)
    out.mkdir(exist_ok=True)
    artifacts.publish({path: out / path.name for path in made})
    return [out / path.name for path in made]

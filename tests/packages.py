"""Packages in tests: what is in one, one that was changed and made good again, and the platforms of the tests."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

from edgedl.data import file_sha256
from edgedl.packaging import archives, manifest, signature
from edgedl.types import Layout


def unpacked(package, folder):
    if package.suffix == ".tgz":
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(package) as archive:
            archive.extractall(folder)  # noqa: S202
    return folder


def text_of(package, name):
    """The text of the one file of that name, in whatever folder."""
    if package.suffix == ".tgz":
        with tarfile.open(package) as archive:
            (found,) = (e for e in archive if Path(e.name).name == name)
            return archive.extractfile(found).read().decode()
    with zipfile.ZipFile(package) as archive:
        (found,) = (n for n in archive.namelist() if Path(n).name == name)
        return archive.read(found).decode()


def manifest_of(package):
    return json.loads(text_of(package, "manifest.json"))


def repacked(package, folder, change, rehash=True, key=None):
    """The package after `change(content folder, manifest)`, hashes and archive made good again, and signed by `key`."""
    tree = unpacked(package, folder / "tree")
    (content,) = (path.parent for path in tree.rglob("manifest.json"))
    found = json.loads((content / "manifest.json").read_text())
    change(content, found)
    if rehash:
        outside = (manifest.NAME, manifest.SIGNATURE)
        own = found["package"]["files"]
        there = {p.relative_to(content).as_posix(): p for p in sorted(content.rglob("*")) if p.is_file()}
        found["files"] = {n: file_sha256(p) for n, p in there.items() if n not in (*outside, *own)}
        found["artifact"]["sha256"] = found["files"][found["artifact"]["file"]]
    manifest.write(found, content / "manifest.json")
    if key:
        signature.write(content, key)
    made = folder / f"changed{package.suffix}"
    archives.write(tree, made)
    return made


class TgzPackager:
    """A platform of the tests: an npm-like .tgz with two files of its own."""

    platform = "tests"
    formats = ("tflite",)

    def lay_out(self, content, tree):
        (tree / "package").mkdir()
        (tree / "package/package.json").write_text(json.dumps({"name": content.manifest["name"]}))
        shutil.copy(content.folder / content.manifest["artifact"]["file"], tree / "package/copy.bin")
        return Layout(file=f"{content.manifest['name']}.tgz", content="package/model", notes=("a note",))


def tgz(path, entries):
    """A .tgz as tar writes it: compressed, with (TarInfo or name, bytes) as entries."""
    with tarfile.open(path, "w:gz") as archive:
        for entry, data in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path

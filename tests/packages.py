"""Packages in tests: what is in one, one that was changed and made good again, and the platforms of the tests."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

from edgedl.data import file_sha256
from edgedl.packaging import archives, manifest, signature
from edgedl.types import Check, Layout, Method, Report, Verdict


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


def report_of(artifact, **more):
    """A report about an artifact, with classes and slices."""
    size = artifact.stat().st_size
    details = {
        "accuracy": {"samples": 40},
        "data_sha256": "d" * 64,
        "metric": {"name": "accuracy", "unit": "fraction", "higher_is_better": True, "output": "kind"},
        "per_class": [
            {"label": label, "support": n, "reference": {"recall": 1.0},
             "artifact": {"recall": recall, "precision": 0.5, "f1": 0.6}}
            for label, n, recall in (("round", 20, 0.9), ("sq|uare", 12, 0.75), ("other", 8, 0.5))
        ],
        "slices": [{"slice": "night", "samples": 9, "reference": 0.9, "artifact": 0.7, "drop": 0.2}],
    } | more.pop("details", {})  # fmt: skip
    checks = (
        Check(name="size_bytes", measured=size, unit="bytes", method=Method.STATIC),
        Check(name="accuracy", measured=0.8, unit="fraction", method=Method.MEASURED_HOST),
        Check(name="accuracy_drop", measured=0.01, low=-0.01, high=0.03, limit=0.05, unit="fraction",
              method=Method.MEASURED_HOST, verdict=Verdict.PASS),
        Check(name="arena_bytes", target="nucleo", measured=2416, unit="bytes", method=Method.EMULATED),
        Check(name="latency_ms", target="nucleo", limit=1.0, unit="ms", method=Method.STATIC,
              verdict=Verdict.UNCHECKED),
    )  # fmt: skip
    given = {"artifact": str(artifact), "reference": "m.keras", "data": "d.npz", "targets": (), "checks": checks}
    return Report(**(given | more), details=details)

"""A Keras model file as the framework-free side sees it: its hash, its inputs and outputs, its outputs on data.

Everything that needs Keras happens in the TensorFlow child. What is learnt is kept in the user's cache folder by hash,
so that a second validation against the same model starts no TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import artifacts, data, worker
from edgedl.errors import InputError, WorkerError
from edgedl.types import Scheme, TensorSpec

CACHE_BYTES = 2_000_000_000
CHILD = worker.TENSORFLOW
FRAMEWORKS = ("tensorflow", "keras", "numpy")  # that a trained model depends on


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model, how to load it, and what loading it told (`facts` of `edgedl.models.describe`)."""

    path: Path
    sha256: str
    facts: dict[str, Any]
    trust: bool = False
    custom_objects: str | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs under their canonical names."""
        return artifacts.specs_from_json(self.facts["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs under their canonical names."""
        return artifacts.specs_from_json(self.facts["outputs"])

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that a `quantize` step gave the model, ranges included; None for a float model."""
        carried = self.facts.get("scheme")
        return Scheme(carried) if carried else None

    def predict(self, inputs: Mapping[str, Path], *, key: str) -> dict[str, Path]:
        """Outputs by name, (samples, ...) float32 .npy. `key` identifies data and preprocessing in the cache."""
        names = [s.name for s in self.outputs]
        kept = place(self.sha256, key, artifacts.versions("keras", "tensorflow"))
        if _cacheable(self.custom_objects) and kept.is_dir():
            used(kept)
            return {name: kept / f"{i}.npy" for i, name in enumerate(names)}
        arguments = _arguments(self.path, self.trust, self.custom_objects)
        arguments |= {"inputs": {n: str(p) for n, p in inputs.items()}, "out": str(worker.pool().scratch("reference"))}
        made = worker.call("edgedl.models:predict", arguments, child=CHILD)
        if _cacheable(self.custom_objects):
            store({f"{i}.npy": Path(made[name]) for i, name in enumerate(names)}, kept)
        return {name: Path(made[name]) for name in names}

    def kept(self, key: str, name: str) -> Path | None:
        """A file made of this model that the cache has under `key`, or None."""
        file = place(self.sha256, key) / name
        if not _cacheable(self.custom_objects) or not file.exists():
            return None
        used(file.parent)
        return file

    def keep(self, key: str, file: Path) -> Path:
        """Put a file made of this model into the cache under `key`; where it now lies."""
        if _cacheable(self.custom_objects):
            store({file.name: file}, place(self.sha256, key))
        return self.kept(key, file.name) or file


def open_model(path: str, *, trust: bool = False, custom_objects: str | None = None, loaded: bool = True) -> ModelFile:
    """A model and its facts. With `loaded` false the cache will do, and TensorFlow may not even start.

    Raises InputError where there is no such file, or it does not load.
    """
    file = Path(path)
    if not file.exists():
        message = f"{path}: no such file"
        raise InputError(message)
    sha256 = data.path_sha256(file)
    kept = _facts_folder(sha256, trust)
    if not loaded and _cacheable(custom_objects) and kept.is_dir():
        facts = json.loads((kept / "facts.json").read_text(encoding="utf-8"))
    else:
        require_keras(path)
        facts = worker.call("edgedl.models:describe", _arguments(file, trust, custom_objects), child=CHILD)
        if _cacheable(custom_objects):
            written = worker.pool().scratch("facts") / "facts.json"
            written.write_text(json.dumps(facts), encoding="utf-8")
            store({"facts.json": written}, kept)
    return ModelFile(path=file, sha256=sha256, facts=facts, trust=trust, custom_objects=custom_objects)


def train(function: str, arguments: dict[str, Any], *, onednn: bool) -> dict[str, Any]:
    """What a function of the TensorFlow child that trains tells.

    With `onednn` it runs in a child of its own, faster; where that one dies, once more without, which `notes` then say.
    """
    if onednn:
        try:
            return dict(worker.call(function, arguments, child=worker.ONEDNN))
        except WorkerError as e:
            note = f"trained once more without oneDNN: {e}"
            told = worker.call(function, arguments, child=CHILD)
            return {**told, "notes": [*told["notes"], note]}
    return dict(worker.call(function, arguments, child=CHILD))


def is_known(path: str, *, trust: bool) -> bool:
    """Whether the cache can tell a model's inputs and outputs without TensorFlow."""
    file = Path(path)
    return file.exists() and _facts_folder(data.path_sha256(file), trust).is_dir()


def require_keras(what: str) -> None:
    """Raises InputError with the command that helps where Keras or TensorFlow is not installed."""
    missing = [name for name in ("tensorflow", "keras") if importlib.util.find_spec(name) is None]
    if missing:
        message = f"{what}: needs {' and '.join(missing)}, not installed here. Try: pip install 'edgedl[keras]'"
        raise InputError(message)


def _facts_folder(sha256: str, trust: bool) -> Path:
    return place(sha256, f"trust={trust}", artifacts.versions("keras", "tensorflow"))


def _arguments(path: Path, trust: bool, custom_objects: str | None) -> dict[str, Any]:
    return {"path": str(path), "trust": trust, "custom_objects": custom_objects}


def _cacheable(custom_objects: str | None) -> bool:
    return custom_objects is None  # the user's layers may change while the model's hash does not


def cache_folder() -> Path:
    """The user's cache folder for edgedl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgedl"


def place(*identity: Any) -> Path:
    """The cache folder of what these values identify, which may not exist yet."""
    return cache_folder() / "reference" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def store(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files into a `place`, whole or not at all; the oldest make room. A cache that cannot be written is none."""
    if sum(file.stat().st_size for file in files.values()) > CACHE_BYTES:
        return
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        part.mkdir(parents=True)
        for name, file in files.items():
            shutil.copyfile(file, part / name)
        part.replace(folder)
        _make_room()
    except OSError:
        shutil.rmtree(part, ignore_errors=True)


def used(folder: Path) -> None:
    """Let an entry of the cache stay longer: it is in use."""
    with contextlib.suppress(OSError):  # another user's cache may be read
        os.utime(folder)


def _make_room() -> None:
    """Remove what was not used for longest, until the cache is within its size."""
    entries = sorted((cache_folder() / "reference").iterdir(), key=_last_used, reverse=True)
    total = 0
    for entry in entries:
        total += sum(f.stat().st_size for f in entry.rglob("*") if f.is_file())
        if total > CACHE_BYTES:
            gone = entry.with_name(f"{entry.name}.{os.getpid()}")  # whole or not there for who looks meanwhile
            with contextlib.suppress(OSError):
                entry.rename(gone)
                shutil.rmtree(gone)


def _last_used(entry: Path) -> float:
    """When it was read or written last; a step that is still at work writes checkpoints."""
    with contextlib.suppress(OSError):
        return max(file.stat().st_mtime for file in (entry, *entry.rglob("*")))
    return 0.0

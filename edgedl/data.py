"""Data as folders of .npy files, memory-mapped: staged once, read in slices by every process.

`load` stages any source the user may name, `prepare` applies preprocessing, `bind` fits arrays to a model's
inputs and outputs, `draw` picks the calibration samples.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgedl import preprocessing, worker
from edgedl.errors import InputError
from edgedl.preprocessing.op import Op
from edgedl.types import TensorSpec

Array = NDArray[Any]
EXTRAS = ("slice", "group", "sequence")
SLICE_BYTES = 16_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Staged arrays by name, samples on axis 0; `sha256` is of what the user named, before preprocessing.

    `applied` preprocessing was done while staging, `ops` are still to do.
    """

    source: str
    arrays: dict[str, Path]
    count: int
    sha256: str
    labels: tuple[str, ...] = ()
    applied: tuple[Op, ...] = ()
    ops: tuple[Op, ...] = ()
    extras: dict[str, Path] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # arrays of another length, or that hold text

    def open(self, name: str) -> Array:
        """One array, memory-mapped."""
        return np.load((self.arrays | self.extras)[name], mmap_mode="r")  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """Data fitted to a model: .npy paths by the model's input and output names."""

    inputs: dict[str, Path]
    targets: dict[str, Path]
    count: int


def load(source: str) -> Dataset:
    """Stage a .npz, a folder of class folders, a .csv, a .toml that names one of these, or `module:function`.

    Raises InputError: what is wrong in which file, at which sample.
    """
    from edgedl import readers

    path = Path(source)
    if path.is_dir():
        found = readers.read_folder(path)
    elif path.suffix in readers.READERS and path.exists():
        found = readers.READERS[path.suffix](path)
    elif ":" in source and not path.exists():
        found = readers.read_function(source)
    elif not path.exists():
        message = f"{source}: no such file or folder"
        raise InputError(message)
    else:
        message = f"{source}: data is a .npz, .csv, .toml, a folder of class folders or module:function"
        raise InputError(message)
    return _checked(found)


def _checked(dataset: Dataset) -> Dataset:
    """The dataset without what is no samples: keys other than x and y of another length, or that hold text."""
    opened = {name: dataset.open(name) for name in dataset.arrays | dataset.extras}
    count = _count(opened)
    if not count:
        message = f"{dataset.source}: no samples"
        raise InputError(message)
    used = {
        name: path
        for name, path in dataset.arrays.items()
        if name in ("x", "y") or (len(opened[name]) == count and opened[name].dtype.kind in "biuf")
    }
    counts = {name: len(opened[name]) for name in (*used, *dataset.extras)}
    if set(counts.values()) != {count}:
        listed = ", ".join(f"{name} {n}" for name, n in counts.items())
        message = f"{dataset.source}: arrays differ in their number of samples: {listed}"
        raise InputError(message)
    for name in used:
        _check_finite(used[name], f"{dataset.source}: {name}")
    ignored = tuple(name for name in dataset.arrays if name not in used)
    return replace(dataset, arrays=used, count=count, ignored=ignored)


def _count(opened: Mapping[str, Array]) -> int:
    """The number of samples: of x, or else what most arrays have."""
    if "x" in opened:
        return len(opened["x"])
    return Counter(len(array) for array in opened.values()).most_common(1)[0][0] if opened else 0


def _check_finite(path: Path, where: str) -> None:
    array = np.load(path, mmap_mode="r")
    if array.dtype.kind not in "biuf":
        message = f"{where}: numbers are needed, got dtype {array.dtype}"
        raise InputError(message)
    if array.dtype.kind != "f":
        return
    for start, stop in slices(array):
        bad = ~np.isfinite(read_slice(path, start, stop))
        if bad.any():
            sample = start + int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
            message = f"{where}: sample {sample} holds NaN or infinity; remove or repair it"
            raise InputError(message)


def slices(array: Array) -> Iterator[tuple[int, int]]:
    """(start, stop) pairs over axis 0, each some 16 MB."""
    row_bytes = max(1, array.itemsize * int(np.prod(array.shape[1:])))
    step = max(1, SLICE_BYTES // row_bytes)
    for start in range(0, len(array), step):
        yield start, min(start + step, len(array))


def read_slice(path: Path, start: int, stop: int) -> Array:
    """Samples of a .npy in a mapping of their own: its pages count as memory until the whole mapping is let go."""
    return np.load(path, mmap_mode="r")[start:stop]  # type: ignore[no-any-return]


@contextlib.contextmanager
def about(source: object) -> Iterator[None]:
    """An InputError of the block that begins with the source that it is about."""
    try:
        yield
    except InputError as e:
        message = f"{source}: {str(e).removeprefix(f'{source}: ')}"
        raise InputError(message) from e


def write_slices(path: Path, rows: Iterable[Array]) -> Path:
    """One .npy from consecutive slices, however many there turn out to be; never more than a slice in memory."""
    with SliceFile(path) as file:
        for block in rows:
            file.add(block)
    return path


class SliceFile:
    """A .npy that grows along axis 0, a slice of samples at a time; the first one decides on shape and type."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self._file = path, 0, path.open("wb")
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float32)

    def add(self, block: Array) -> None:
        """Append samples. Raises InputError where they are of another shape, or of a type that the file cannot hold."""
        if self.count == 0:
            self._shape, self._dtype = block.shape[1:], block.dtype
            self._file.seek(0)
            _write_header(self._file, (0, *self._shape), self._dtype)
        elif block.shape[1:] != self._shape or not _holds(self._dtype, block.dtype):
            message = (
                f"{self.path.stem}: sample {self.count} is {block.dtype} of shape {block.shape[1:]}, the ones before "
                f"are {self._dtype} of shape {self._shape}; make all samples alike"
            )
            raise InputError(message)
        np.ascontiguousarray(block, self._dtype).tofile(self._file)
        self.count += len(block)

    def __enter__(self) -> SliceFile:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            _write_header(self._file, (self.count, *self._shape), self._dtype)


def _holds(dtype: np.dtype[Any], other: np.dtype[Any]) -> bool:
    return np.can_cast(other, dtype, "safe") or (dtype.kind, other.kind) == ("f", "f")


def _write_header(f: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    # numpy pads the header so that axis 0 may grow in place
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(f, described)  # type: ignore[no-untyped-call]


def in_order_of(dataset: Dataset, labels: Sequence[str]) -> Dataset:
    """The dataset with its classes numbered as in `labels`, where all of their names are among these; else as it is.

    A folder with class folders b and c alone calls them 0 and 1; to a model with the labels a, b, c they are 1 and 2.
    Raises InputError where only some are, with other numbers: neither names nor numbers tell what is what then.
    """
    shared = {name for name in dataset.labels if name in labels}
    unknown = [name for name in dataset.labels if name not in labels]
    if unknown and any(dataset.labels.index(name) != list(labels).index(name) for name in shared):
        message = (
            f"{dataset.source}: class {unknown[0]!r} is none of the model's: {', '.join(labels)}; "
            "leave its samples out, or name the classes with labels = [...] in a .toml"
        )
        raise InputError(message)
    if not labels or dataset.labels == tuple(labels) or unknown:
        return dataset
    y = dataset.open("y") if "y" in dataset.arrays else np.empty(0)
    if y.ndim != 1 or y.dtype.kind not in "iu" or not 0 <= y.min(initial=0) <= y.max(initial=0) < len(dataset.labels):
        return dataset
    places = np.array([labels.index(name) for name in dataset.labels])
    path = worker.pool().scratch("labels") / "y.npy"
    np.save(path, places[np.asarray(y)])
    return replace(dataset, arrays=dataset.arrays | {"y": path}, labels=tuple(labels))


def prepare(dataset: Dataset, ops: Sequence[Op], names: Sequence[str]) -> Dataset:
    """The dataset with `ops` applied to the arrays `names`.

    Where a window cuts one sample into several, the targets and extras are repeated with it.
    """
    if not ops:
        return dataset
    folder = worker.pool().scratch("prepared")
    prepared = {}
    for name in names:
        raw = dataset.arrays[name]
        parts = (np.asarray(read_slice(raw, a, b)) for a, b in slices(dataset.open(name)))
        rows = (preprocessing.apply(tuple(ops), part) for part in parts)
        with about(dataset.source):
            prepared[name] = write_slices(folder / f"{name}.npy", rows)
    times = {preprocessing.samples_per_input(tuple(ops), dataset.open(name).shape[1:]) for name in names}
    factor = times.pop() if len(times) == 1 else 1
    if factor == 1:
        return replace(dataset, arrays=dataset.arrays | prepared)
    repeated = {}
    for name in (dataset.arrays | dataset.extras).keys() - prepared.keys():
        whole = dataset.open(name)
        rows = (np.asarray(whole[a:b]).repeat(factor, axis=0) for a, b in slices(whole))
        repeated[name] = write_slices(folder / f"{name}.npy", rows)
    arrays = {name: (prepared | repeated)[name] for name in dataset.arrays}
    extras = {name: repeated[name] for name in dataset.extras}
    return replace(dataset, arrays=arrays, extras=extras, count=dataset.count * factor)


def bind(dataset: Dataset, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Bound:
    """The arrays of each input and output: by its name, or `x` and `y` where there is only one.

    Targets may be missing; inputs may not, and must have the shape that the model takes.
    """
    found = {spec.name: _array_name(dataset, spec.name, "x", len(inputs)) for spec in inputs}
    missing = [name for name, array in found.items() if array is None]
    if missing:
        wanted = " or ".join(filter(None, [", ".join(missing), "x" if len(inputs) == 1 else ""]))
        beside = f" (not samples: {', '.join(dataset.ignored)})" if dataset.ignored else ""
        has = ", ".join(dataset.arrays) + beside
        message = f"{dataset.source}: no array for the model's input {wanted}; it has {has}"
        raise InputError(message)
    targets = {spec.name: _array_name(dataset, spec.name, "y", len(outputs)) for spec in outputs}
    bound = Bound(
        inputs={name: dataset.arrays[array] for name, array in found.items() if array},
        targets={name: dataset.arrays[array] for name, array in targets.items() if array},
        count=dataset.count,
    )
    for spec in inputs:
        check_shape(dataset.source, spec, np.load(bound.inputs[spec.name], mmap_mode="r"))
    return bound


def _array_name(dataset: Dataset, name: str, single: str, count: int) -> str | None:
    if name in dataset.arrays:
        return name
    return single if count == 1 and single in dataset.arrays else None


def check_shape(source: str, spec: TensorSpec, array: Array) -> None:
    """Raises InputError where samples are of another shape than the input takes."""
    wanted = spec.shape[1:]
    if len(wanted) == array.ndim - 1 and all(w in (None, n) for w, n in zip(wanted, array.shape[1:], strict=True)):
        return
    shown = ", ".join("any" if w is None else str(w) for w in wanted)
    got = ", ".join(map(str, array.shape[1:]))
    message = (
        f"{source}: input {spec.name!r} takes samples of shape ({shown}), the data has ({got}); "
        "reshape it, or name a [[preprocess]] step in a .toml"
    )
    raise InputError(message)


def input_names(dataset: Dataset, inputs: Sequence[TensorSpec]) -> list[str]:
    """The arrays of `dataset` that feed these inputs: what preprocessing is applied to."""
    names = [_array_name(dataset, spec.name, "x", len(inputs)) for spec in inputs]
    return [name for name in names if name]


def draw(dataset: Dataset, samples: int, seed: int) -> Array:
    """Sorted sample indices, int64: `samples` of them at random, stratified in proportion where `y` holds classes."""
    rng = np.random.default_rng(seed)
    if samples >= dataset.count:
        return np.arange(dataset.count)
    y = dataset.open("y") if "y" in dataset.arrays else None
    if y is None or y.dtype.kind not in "iu" or y.size != dataset.count:
        return np.sort(rng.choice(dataset.count, samples, replace=False))
    classes, codes = np.unique(np.asarray(y).reshape(-1), return_inverse=True)
    share = np.bincount(codes) * (samples / dataset.count)
    take = np.floor(share).astype(int)
    largest = np.argsort(-(share - take), kind="stable")[: samples - take.sum()]
    take[largest] += 1
    chosen = [rng.choice(np.flatnonzero(codes == c), take[c], replace=False) for c in range(len(classes))]
    return np.sort(np.concatenate(chosen))


def subset(arrays: Mapping[str, Path], ids: Array, folder: Path) -> Path:
    """A folder with one `<name>.npy` of the samples `ids` for each array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in arrays.items():
        np.save(folder / f"{name}.npy", np.load(path, mmap_mode="r")[ids])
    return folder


def sample_hashes(paths: Sequence[Path], ids: Array | None = None) -> list[str]:
    """One short hash a sample over all its inputs: equal hashes are equal samples, in whatever file they are."""
    if ids is not None:
        return [_hash(each) for each in zip(*(np.load(path, mmap_mode="r")[ids] for path in paths), strict=True)]
    return [
        _hash(each)
        for start, stop in slices(np.load(paths[0], mmap_mode="r"))
        for each in zip(*(read_slice(path, start, stop) for path in paths), strict=True)
    ]


def _hash(sample: Iterable[Array]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in sample:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_sha256(*paths: Path) -> str:
    """SHA-256 over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def path_sha256(path: Path) -> str:
    """SHA-256 of a file, or of every file of a folder with its name."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    names = "\n".join(p.relative_to(path).as_posix() for p in files)
    return hashlib.sha256((names + file_sha256(*files)).encode()).hexdigest()

"""Readers of the user's data: each stages one kind of source as .npy files in a folder of the pool's."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import wave
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import preprocessing, toml, user_code, worker
from edgedl.data import EXTRAS, Array, Dataset, SliceFile, about, file_sha256, in_order_of, write_slices
from edgedl.errors import InputError
from edgedl.preprocessing.op import Op

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
SAMPLES = (*IMAGES, ".wav", ".npy")
ENDLESS = -1  # tf.data.INFINITE_CARDINALITY


def _dataset(source: str, folder: Path, sha256: str, labels: Sequence[str] = ()) -> Dataset:
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    arrays = {name: path for name, path in files.items() if name not in EXTRAS}
    extras = {name: path for name, path in files.items() if name in EXTRAS}
    first = next(iter(arrays.values()), None)
    count = len(np.load(first, mmap_mode="r")) if first else 0
    found = Dataset(source=source, arrays=arrays, extras=extras, count=count, sha256=sha256, labels=tuple(labels))
    return _with_codes(found)


def _with_codes(dataset: Dataset) -> Dataset:
    """Text labels as indices into the sorted list of labels."""
    if "y" not in dataset.arrays or dataset.open("y").dtype.kind not in "US":
        return dataset
    text = np.asarray(dataset.open("y")).astype(str).reshape(-1)
    labels = dataset.labels or tuple(np.unique(text).tolist())
    np.save(dataset.arrays["y"], _codes(text, labels, dataset.source))
    return replace(dataset, labels=labels)


def _codes(text: Array, labels: Sequence[str], source: str) -> Array:
    index = {label: i for i, label in enumerate(labels)}
    unknown = sorted(set(text.tolist()) - set(index))
    if unknown:
        message = f"{source}: label {unknown[0]!r} is not among the labels {', '.join(labels)}"
        raise InputError(message)
    return np.array([index[t] for t in text.tolist()], np.int64)


def read_npz(path: Path) -> Dataset:
    """`x`, `y` or input and output names; optional `slice`, `group`, `sequence`."""
    folder = worker.pool().scratch("data")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = Path(member).name
                if name != member or not name.endswith(".npy"):
                    message = f"{path}: {member!r} is no array; a .npz of numpy.savez is needed"
                    raise InputError(message)
                archive.extract(member, folder)
    except (zipfile.BadZipFile, EOFError, zipfile.zlib.error) as e:  # type: ignore[attr-defined]
        message = f"{path}: not a readable .npz: {e}"
        raise InputError(message) from e
    for file in list(folder.glob("*.npy")):
        try:
            array = np.load(file, mmap_mode="r")
        except ValueError as e:
            message = f"{path}: array {file.stem!r} holds Python objects or is damaged: {e}"
            raise InputError(message) from e
        if array.ndim == 0:
            file.unlink()  # a scalar is no samples: numpy.savez keeps such notes beside the data
    return _dataset(str(path), folder, file_sha256(path))


def read_folder(path: Path, ops: tuple[Op, ...] = ()) -> Dataset:
    """One folder a class, named by it, with images (Pillow), .wav or .npy files of one shape once `ops` are applied."""
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(f, i) for i, c in enumerate(classes) for f in sorted(c.rglob("*")) if f.suffix.lower() in SAMPLES]
    seen = {i for _, i in files}
    empty = [c for i, c in enumerate(classes) if i not in seen]
    if files and (others := sorted({f.suffix for c in empty for f in c.rglob("*") if f.is_file()})):
        message = f"{empty[0]}: no samples: it has {', '.join(others)} files; {', '.join(SAMPLES)} are read"
        raise InputError(message)
    if not files:
        message = f"{path}: no samples: a folder of class folders with {', '.join(SAMPLES)} files is needed"
        raise InputError(message)
    return _staged_files(path, [f for f, _ in files], np.array([i for _, i in files]), [c.name for c in classes], ops)


def _staged_files(source: Path, files: list[Path], y: Array, labels: Sequence[str], ops: tuple[Op, ...]) -> Dataset:
    """Samples that lie in files, one array. `ops` are applied a sample at a time, so that sizes may differ."""
    folder = worker.pool().scratch("data")
    first: Array | None = None
    counts = []

    def rows() -> Iterator[Array]:
        nonlocal first
        for file in files:
            with about(file):
                samples = preprocessing.apply(ops, decode(file)[None])
            first = samples[:1] if first is None else first
            for kind, own, its in (("shape", samples.shape[1:], first.shape[1:]), ("type", samples.dtype, first.dtype)):
                if own != its:
                    step = "resize, crop, window" if kind == "shape" else "cast"
                    message = (
                        f"{file}: {kind} {own}, the first sample has {its}; "
                        f"name a [[preprocess]] step ({step}) in a .toml"
                    )
                    raise InputError(message)
            counts.append(len(samples))  # a window may cut one file into several samples
            yield samples

    write_slices(folder / "x.npy", rows())
    np.save(folder / "y.npy", np.repeat(y, counts))
    return _dataset(str(source), folder, file_sha256(*files), labels)


def decode(file: Path) -> Array:
    """One sample: an image (height, width, channels) uint8, a .wav (samples,) float32 in [-1, 1), a .npy as it is."""
    try:
        if file.suffix.lower() == ".npy":
            return np.load(file)  # type: ignore[no-any-return]
        return _decode_wav(file) if file.suffix.lower() == ".wav" else _decode_image(file)
    except (OSError, ValueError, EOFError, wave.Error) as e:
        message = f"{file}: cannot be read: {e}"
        raise InputError(message) from e


def _decode_image(file: Path) -> Array:
    try:
        from PIL import Image
    except ImportError as e:
        message = f"{file}: reading images needs Pillow: pip install 'edgedl[image]'"
        raise InputError(message) from e
    with Image.open(file) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            return _high_bytes(np.asarray(image))[..., None]
        if image.mode in ("I", "F"):
            message = "an image of 32-bit numbers has no range; save it with 8 or 16 bits, or the values as .npy"
            raise ValueError(message)
        gray = image.mode in ("L", "1")
        array = np.asarray(image.convert("L" if gray else "RGB"))
    return array[..., None] if gray else array


def _high_bytes(values: Array) -> Array:
    """16 bits, which Pillow would clip, to 8 as libpng does it, and TensorFlow with it."""
    return np.asarray(values >> 8, np.uint8)


def _decode_wav(file: Path) -> Array:
    with wave.open(str(file)) as f:
        if f.getsampwidth() != 2 or f.getnchannels() != 1:
            message = f"16-bit mono is needed, got {8 * f.getsampwidth()}-bit, {f.getnchannels()} channels"
            raise ValueError(message)
        return np.frombuffer(f.readframes(f.getnframes()), "<i2").astype(np.float32) / 32768


def read_csv(
    path: Path, *, target: str = "y", shape: Sequence[int] | None = None, labels: Sequence[str] = ()
) -> Dataset:
    """Numeric columns as `x` (samples, columns), reshaped to `shape`; column `target` as `y`, if there is one."""
    with path.open(newline="", encoding="utf-8-sig") as f:
        try:
            reader = csv.reader(f)
            header = next(reader, [])
            numbered = [(reader.line_num, row) for row in reader if row]
        except (ValueError, UnicodeDecodeError, csv.Error) as e:
            message = f"{path}: not a text file: {e}"
            raise InputError(message) from e
    rows = dict(numbered)
    if not header:
        message = f"{path}: no header line"
        raise InputError(message)
    columns = [c.strip() for c in header]
    if "" in columns:
        message = f"{path}: column {columns.index('') + 1} has no name; name it, or leave out an index (index=False)"
        raise InputError(message)
    if len(set(columns)) < len(columns):
        message = f"{path}: two columns are called {Counter(columns).most_common(1)[0][0]!r}; name them apart"
        raise InputError(message)
    if target not in columns and target != "y":
        message = f"{path}: no column {target!r}; it has {', '.join(columns)}"
        raise InputError(message)
    features = [i for i, c in enumerate(columns) if c != target and c not in EXTRAS]
    for line, row in rows.items():
        if len(row) != len(columns):
            message = f"{path}: line {line} has {len(row)} columns, the header {len(columns)}"
            raise InputError(message)
    x = _numbers(path, columns, rows, features).astype(np.float32)
    if shape:
        if int(np.prod(shape)) != x.shape[1]:
            message = f"{path}: shape {tuple(shape)} needs {int(np.prod(shape))} columns, there are {x.shape[1]}"
            raise InputError(message)
        x = x.reshape(-1, *shape)
    folder = worker.pool().scratch("data")
    np.save(folder / "x.npy", x)
    for name in [target, *EXTRAS]:
        if name in columns:
            column = np.array([row[columns.index(name)].strip() for row in rows.values()])
            if (column == "").any():
                message = f"{path}: line {list(rows)[int(np.argmax(column == ''))]}, column {name!r}: no value"
                raise InputError(message)
            np.save(folder / f"{'y' if name == target else name}.npy", _typed(column))
    meant = "" if (target, shape) == ("y", None) else f"{target} {shape}"
    sha256 = hashlib.sha256((file_sha256(path) + meant).encode()).hexdigest() if meant else file_sha256(path)
    return _dataset(str(path), folder, sha256, labels)


def _numbers(path: Path, columns: list[str], rows: dict[int, list[str]], wanted: list[int]) -> Array:
    """The wanted columns, (rows, wanted) float64; `rows` are by their line. Raises InputError."""
    try:
        return np.array([[float(row[i]) for i in wanted] for row in rows.values()]).reshape(len(rows), len(wanted))
    except ValueError:
        for line, row in rows.items():
            for i in wanted:
                try:
                    float(row[i])
                except ValueError:
                    message = (
                        f"{path}: line {line}, column {columns[i]!r}: {row[i]!r} is no number; a column of targets "
                        "is named y, or by `target` in a .toml"
                    )
                    raise InputError(message) from None
        raise


def _typed(column: Array) -> Array:
    for dtype in (np.int64, np.float32):
        try:
            return column.astype(dtype)
        except OverflowError:  # an id of 20 digits, which float32 would round
            return column
        except ValueError:
            continue
    return column


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A `.toml` that names data with its preprocessing and labels; paths are relative to it."""

    data: str
    labels: tuple[str, ...] | str = ""
    target: str = "y"
    shape: tuple[int, ...] | None = None
    preprocess: tuple[dict[str, Any], ...] = ()


def read_toml(path: Path) -> Dataset:
    """What the table's `data` names, with its `labels` (a list, or a file with one a line) and `[[preprocess]]`."""
    table = toml.build(DataFile, toml.parse(path), str(path))
    ops = preprocessing.parse(table.preprocess, where=str(path))
    labels = _labels(path, table.labels)
    inner = path.parent / table.data
    if inner.suffix == ".csv" and inner.exists():
        found = read_csv(inner, target=table.target, shape=table.shape, labels=labels)
    elif inner.is_dir():
        applied, ops = preprocessing.split_embeddable(ops)  # files of different sizes are resized one at a time
        found = replace(read_folder(inner, applied), applied=applied)
    elif inner.suffix == ".npz" and inner.exists():
        found = read_npz(inner)
    elif ":" in table.data:
        found = read_function(table.data)
    else:
        message = f"{path}: data: no such file or folder: {table.data}"
        raise InputError(message)
    return replace(_labelled(found, labels, path), source=str(path), ops=ops)


def _labelled(found: Dataset, labels: tuple[str, ...], path: Path) -> Dataset:
    """Data under the names that its `.toml` gives the classes: in their order, or in place of as many other ones."""
    if not labels or found.labels == labels:
        return found
    known = set(found.labels) & set(labels)
    unknown = [name for name in found.labels if name not in labels]
    if known and unknown:
        message = (
            f"{path}: labels: {unknown[0]!r} is not among them; the data has the classes {', '.join(found.labels)}"
        )
        raise InputError(message)
    y = found.open("y") if "y" in found.arrays else np.empty(0)
    most = max(len(found.labels), int(y.max(initial=0)) + 1 if y.ndim == 1 and y.dtype.kind in "iu" else 0)
    if not known and most > len(labels):
        message = f"{path}: {len(labels)} labels, and the data has {most} classes; name each"
        raise InputError(message)
    return replace(in_order_of(found, labels), labels=labels)


def files_of(source: str) -> list[Path]:
    """The files that data of this name is read from: a change of one of them is a change of the data."""
    path = Path(source)
    if not path.exists():
        return user_code.files_of(source)
    if path.suffix != ".toml":
        return [path]
    table = toml.build(DataFile, toml.parse(path), source)
    inner = path.parent / table.data
    labels = [path.parent / table.labels] if isinstance(table.labels, str) and table.labels else []
    return [path, *([inner] if inner.exists() else user_code.files_of(table.data)), *labels]


def _labels(path: Path, labels: tuple[str, ...] | str) -> tuple[str, ...]:
    if isinstance(labels, str):
        return read_labels(path.parent / labels) if labels else ()
    return labels


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        message = f"{path}: labels cannot be read: {why}; a text file with one name a line is needed"
        raise InputError(message) from e
    found = [line.strip() for line in lines]
    while found and not found[-1]:
        found.pop()
    if not found or not all(found):
        where = f"line {found.index('') + 1} is empty" if found else "no labels"
        message = f"{path}: {where}; one name a line is needed"
        raise InputError(message)
    return tuple(found)


def read_function(name: str) -> Dataset:
    """What `module:function` gives, called in a child: a dict of arrays, (x, y), or an iterable of such batches."""
    folder = worker.pool().scratch("data")
    found = worker.call("edgedl.readers:stage_function", {"name": name, "folder": str(folder)}, child="data")
    files = [folder / f"{n}.npy" for n in found]
    return _dataset(name, folder, file_sha256(*files))


def stage_function(name: str, folder: str) -> list[str]:
    """Child side of `read_function`: write one .npy an array, batch by batch; the names written."""
    try:
        return _stage(user_code.function(name)(), Path(folder))
    except InputError as e:
        message = f"{name}: {str(e).removeprefix(f'{name}: ')}"
        raise InputError(message) from e
    except (Exception, SystemExit) as e:
        message = f"{name} raised {type(e).__name__}: {e}"
        raise InputError(message) from e


def _stage(result: Any, folder: Path) -> list[str]:
    files: dict[str, SliceFile] = {}
    texts: dict[str, list[Array]] = {}  # of all widths
    with contextlib.ExitStack() as stack:
        whole = _is_batch(result)
        for batch in [result] if whole else _iterable(result):
            for key, value in _named(batch, whole=whole).items():
                if value.dtype.kind in "US":
                    texts.setdefault(key, []).append(value)
                    continue
                if key not in files:
                    files[key] = stack.enter_context(SliceFile(folder / f"{key}.npy"))
                files[key].add(value)
    for key, found in texts.items():
        np.save(folder / f"{key}.npy", np.concatenate(found))
    return sorted({*files, *texts})


def _is_batch(result: Any) -> bool:
    """Whether it is all of the data at once: a dict, x alone, or (x, y), each an array or a dict by name."""
    if isinstance(result, tuple) and len(result) == 2:
        keys = [set(part) for part in result if isinstance(part, dict)]
        return not any(isinstance(part, tuple) for part in result) and (len(keys) < 2 or not keys[0] & keys[1])
    return isinstance(result, (dict, np.ndarray))


def _iterable(result: Any) -> Iterable[Any]:
    if hasattr(result, "cardinality") and int(result.cardinality()) == ENDLESS:
        message = "gives batches without end; leave out .repeat()"
        raise InputError(message)
    if isinstance(result, Iterable) and not isinstance(result, str):
        return result
    message = f"gave {type(result).__name__}; a dict of arrays, (x, y), or an iterable of such batches is needed"
    raise InputError(message)


def _named(batch: Any, *, whole: bool) -> dict[str, Array]:
    """A batch as arrays by name. Unless it is the `whole` data, values of several lengths or none are one sample."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        parts = [part if isinstance(part, dict) else {name: part} for name, part in zip("xy", batch, strict=True)]
        if twice := parts[0].keys() & parts[1].keys():
            message = f"{min(twice)!r} is an input and a target; give them different names"
            raise InputError(message)
        batch = parts[0] | parts[1]
    elif isinstance(batch, (tuple, list)):
        message = f"a batch of {len(batch)} parts; (x, y) or a dict of arrays is needed"
        raise InputError(message)
    given = batch if isinstance(batch, dict) else {"x": batch}
    found = {key: np.asarray(value) for key, value in given.items()}
    if strange := [key for key, value in found.items() if value.dtype.hasobject]:
        message = f"{strange[0]}: {type(given[strange[0]]).__name__} is no array of numbers or texts"
        raise InputError(message)
    lengths = {len(value) if value.ndim else None for value in found.values()}
    if None in lengths or (len(lengths) > 1 and not whole):
        found = {key: value[None] for key, value in found.items()}
    return found


READERS: dict[str, Callable[[Path], Dataset]] = {".npz": read_npz, ".csv": read_csv, ".toml": read_toml}

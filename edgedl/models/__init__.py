"""Any Keras model as clean Keras 3: load it, name its tensors, fix its shapes, describe it, run it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.data import path_sha256
from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl.models import files, tensors
from edgedl.models.cleaning import Copier, clean
from edgedl.models.files import KerasFile, Kind, first_line
from edgedl.models.macs import table
from edgedl.models.onednn import is_plain
from edgedl.models.tensors import carried_scheme, finalize, infer, operations, quiet, specs
from edgedl.types import TensorSpec, to_json

if TYPE_CHECKING:
    import keras

__all__ = [
    "LoadedModel",
    "carried_scheme",
    "describe",
    "infer",
    "load",
    "predict",
    "specs",
    "warm",
    "with_static_shapes",
]

CACHED = 4  # models kept by one process
UNKNOWN_CLASS = re.compile(r"(?:Unknown layer|Could not locate (?:class|function)):? '([^']+)'")
AXES = {3: ("N", "T", "C"), 4: ("N", "H", "W", "C"), 5: ("N", "D", "H", "W", "C")}
_loaded: dict[tuple[Any, ...], LoadedModel] = {}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for inference, what was done to it, and the hash of its file. Callers do not change the model."""

    model: keras.Model
    notes: tuple[str, ...]
    sha256: str


def warm() -> None:
    """Import the frameworks, so that the next call in this process does not wait for them."""
    import keras

    keras.ops.zeros(1)  # the first op sets the runtime up


def load(path: Path, *, trust: bool = False, custom_objects: str | None = None) -> LoadedModel:
    """The model of a `.keras`, `.h5` or SavedModel as Keras 3 in float32, without training-only layers.

    `trust` lets code in the file run; `custom_objects` names modules (`module` or `module:attribute`, by comma) with
    the user's own layers. Cached in the process until the file changes. Raises InputError for a file that is no whole
    Keras model, carries code or lacks a class, UnsupportedError for what Keras 3 cannot hold or inference cannot use.
    """
    path = Path(path)
    key = (*_stamp(path), trust, custom_objects)
    if key not in _loaded:
        loaded = _load(path, trust=trust, custom_objects=custom_objects)
        while len(_loaded) >= CACHED:
            _loaded.pop(next(iter(_loaded)))
        _loaded[key] = loaded
    return _loaded[key]


def _stamp(path: Path) -> tuple[Any, ...]:
    """What changes when the file does."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] * path.exists()
    stats = [f.stat() for f in files]
    return str(path.resolve()), tuple(s.st_mtime_ns for s in stats), sum(s.st_size for s in stats)


def _load(path: Path, *, trust: bool, custom_objects: str | None) -> LoadedModel:
    with quiet():
        file = files.read(path)
        objects = files.offered(custom_objects)
        objects |= files.check(file, objects, trust=trust)
        try:
            model, notes = _open(file, objects, trust=trust)
            if not _has_graph(model):
                model, note = _wrapped(model, path)
                notes += note
            cleaned, more = clean(model, input_name=_missing_input_name(file, model))
        except EdgedlError as e:
            message = str(e) if str(path) in str(e) else f"{path}: {e}"
            raise type(e)(message) from e
    return LoadedModel(model=cleaned, notes=notes + more, sha256=path_sha256(path))


def _open(file: KerasFile, objects: dict[str, Any], *, trust: bool) -> tuple[keras.Model, tuple[str, ...]]:
    """The model as Keras 3 reads it, else carried over from Keras 2."""
    from edgedl.models.carry_over import changed_meaning, open_keras_2, own_objects

    failure: Exception | None = None
    if file.kind is not Kind.SAVED_MODEL and not (file.is_keras_2 and changed_meaning(file)):
        try:
            return _open_keras_3(file, {**own_objects(), **objects}, trust=trust), ()
        except Exception as e:  # Keras raises anything from KeyError to OSError on a file it cannot use
            failure = e
    if failure and not file.is_keras_2:
        raise _explained(file.path, failure) from failure
    try:
        return open_keras_2(file, objects, trust=trust)
    except EdgedlError:
        raise
    except Exception as e:
        raise _explained(file.path, e) from e


def _open_keras_3(file: KerasFile, objects: dict[str, Any], *, trust: bool) -> keras.Model:
    import keras

    with tempfile.TemporaryDirectory() as folder:
        path = files.with_suffix(file.path, file.kind, folder)
        model = keras.saving.load_model(path, custom_objects=objects, compile=False, safe_mode=not trust)
    if file.kind is Kind.HDF5:
        finalize(model)  # Keras does so with the layers on top alone
    if file.kind is Kind.HDF5 and file.is_keras_2:
        _check_order(file.path, model)
    return model


def _check_order(path: Path, model: keras.Model) -> None:
    """Keras 3 fills an .h5 model by position; where a Keras 2 file has another order, that would swap weights."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r") as f:
        group = f["model_weights"]
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs.get("layer_names", ())]
        stored = [n for n in names if len(group[n].attrs.get("weight_names", ()))]
    ours = [layer.name for layer in model.layers if layer.weights]
    if stored and stored != ours:
        message = f"the weights lie in another order: {stored} in the file, {ours} in Keras 3"
        raise ValueError(message)


def _explained(path: Path, error: Exception) -> InputError:
    if unknown := UNKNOWN_CLASS.search(str(error)):
        message = f"{path}: uses {unknown[1]!r}, which is no part of Keras; give it with --custom-objects MODULE"
    else:
        message = f"{path}: Keras cannot load it ({type(error).__name__}: {first_line(error)})"
    return InputError(message)


def _missing_input_name(file: KerasFile, model: keras.Model) -> str | None:
    """A name for the input of a Sequential model whose file has none; Keras would count them up in a process."""
    import keras

    if not isinstance(model, keras.Sequential) or json.dumps(model.inputs[0].name) in json.dumps(file.configs):
        return None
    return f"{model.layers[0].name}_input"


def _has_graph(model: keras.Model) -> bool:
    return bool(getattr(model, "inputs", None)) and bool(getattr(model, "outputs", None))


def _wrapped(model: keras.Model, path: Path) -> tuple[keras.Model, tuple[str, ...]]:
    """A subclassed model as the one layer of a graph, which gives it named inputs and outputs."""
    import keras

    build = model.get_build_config() or {}
    shapes = build.get("shapes_dict") or {"inputs": build.get("input_shape")}
    if not model.built or any(s is None for s in shapes.values()):
        message = (
            f"{path}: the model was never built, so its input shape is unknown; "
            "call it once on data, or give it a keras.Input, and save it again"
        )
        raise InputError(message)
    inputs = {k.removesuffix("_shape"): _inputs_of(v, k.removesuffix("_shape")) for k, v in shapes.items()}
    only = next(iter(inputs.values())) if len(inputs) == 1 else None
    try:
        outputs = model(only) if only is not None else model(**inputs)
        graph = keras.Model(inputs if only is None else only, outputs, name=model.name)
    except Exception as e:  # the user's own call() may raise anything
        message = f"{path}: subclassed model {type(model).__name__} cannot be traced ({first_line(e)})"
        raise UnsupportedError(message) from e
    note = f"{type(model).__name__} is a subclassed model: it stays one layer that no step can rewrite"
    return graph, (note,)


def _inputs_of(shape: Any, name: str) -> Any:
    """Keras inputs for a structure of shapes as Keras's JSON has it."""
    import keras

    if isinstance(shape, dict):
        return {k: _inputs_of(v, k) for k, v in shape.items()}
    if shape and isinstance(shape[0], (list, tuple)):
        return [_inputs_of(s, f"{name}_{i}") for i, s in enumerate(shape)]
    return keras.Input(batch_shape=(None, *shape[1:]), name=name)


def with_static_shapes(model: keras.Model, shapes: Mapping[str, tuple[int, ...]], batch: int = 1) -> keras.Model:
    """The same network on inputs of fixed size, names kept, weights shared (copied where a layer keeps state).

    `shapes` by canonical input name, batch included; an input that it leaves out gets their batch, or `batch`.
    Raises InputError: an unknown name, a shape that contradicts the model, a free size that nothing fixes.
    """
    import keras

    inputs, _ = specs(model)
    if unknown := set(shapes) - {s.name for s in inputs}:
        message = f"--shape {sorted(unknown)[0]}: no such input; the model has {', '.join(s.name for s in inputs)}"
        raise InputError(message)
    batch = next((shape[0] for shape in shapes.values()), batch)
    fixed = [_fixed(spec, shapes.get(spec.name), batch) for spec in inputs]
    tensors = [keras.Input(batch_shape=s, dtype=t.dtype, name=t.name) for s, t in zip(fixed, model.inputs, strict=True)]
    stateful = any(getattr(op, "stateful", False) for op in operations(model))
    with quiet():
        if isinstance(model, keras.Sequential):
            structure: Any = tensors[0]
        else:
            structure = keras.tree.pack_sequence_as(model.input, tensors)
        try:
            if stateful:
                return Copier(batch=fixed[0][0]).copy(model, inputs=structure)
            if isinstance(model, keras.Sequential):
                return keras.Sequential([structure, *model.layers], name=model.name)
            return keras.models.clone_model(model, input_tensors=structure, clone_function=lambda layer: layer)
        except Exception as e:
            message = f"model {model.name!r} does not take the shapes {fixed}: {first_line(e)}"
            raise InputError(message) from e


def _fixed(spec: TensorSpec, given: tuple[int, ...] | None, batch: int) -> tuple[int, ...]:
    shape = tuple(given) if given else (batch, *spec.shape[1:])
    fits = len(shape) == len(spec.shape) and all(
        want in (None, have) for want, have in zip(spec.shape[1:], shape[1:], strict=False)
    )
    if not fits or any(n is not None and n < 1 for n in shape):
        message = f"--shape {spec.name}={','.join(map(str, shape))}: the model takes {spec.shape}"
        raise InputError(message)
    if None in shape:
        letters = AXES.get(len(shape), tuple(f"D{i}" for i in range(len(shape))))
        example = ",".join(letters[i] if n is None else str(n) for i, n in enumerate(shape))
        message = f"input {spec.name!r} has free sizes {spec.shape}: fix them with --shape {spec.name}={example}"
        raise InputError(message)
    return tuple(n for n in shape if n is not None)


def describe(path: str, trust: bool = False, custom_objects: str | None = None) -> dict[str, Any]:
    """What a model file holds, as JSON: inputs, outputs, parameters, macs, a table of layers, notes, sha256.

    `zeros` is the share of kernel weights that are zero. `macs` counts the multiply-accumulates of one sample as
    `edgedl.models.macs.layer_macs` says; None where a layer hides its own. `trains_with_onednn`
    is what `edgedl.models.onednn` says.
    """
    import keras

    loaded = load(Path(path), trust=trust, custom_objects=custom_objects)
    model = loaded.model
    inputs, outputs = specs(model)
    layers = table(model)
    macs = [row["macs"] for row in layers]
    described = {
        "inputs": inputs,
        "outputs": outputs,
        "parameters": model.count_params(),
        "trainable_parameters": sum(int(np.prod(w.shape)) for w in model.trainable_weights),
        "macs": None if None in macs else sum(macs),
        "zeros": _zeros(model),
        "layers": layers,
        "notes": loaded.notes,
        "scheme": carried_scheme(model),
        "trains_with_onednn": is_plain(model),
        "sha256": loaded.sha256,
        "keras_version": keras.version(),
    }
    return dict(to_json(described))


def _zeros(model: keras.Model) -> float:
    """The share of zeros among the weights of kernels, which have two axes or more."""
    kernels = [w.numpy() for w in model.weights if len(w.shape) > 1]
    count = sum(k.size for k in kernels)
    return float(1 - sum(np.count_nonzero(k) for k in kernels) / count) if count else 0.0


def predict(
    path: str,
    inputs: Mapping[str, str],
    out: str,
    *,
    batch_size: int = 64,
    trust: bool = False,
    custom_objects: str | None = None,
    start: int = 0,
    stop: int | None = None,
) -> dict[str, str]:
    """The model's outputs on .npy inputs by canonical name, as the paths of float32 .npy files in folder `out`.

    Reads and writes in slices, so that memory does not grow with the samples. Inputs are cast to the model's type and
    never rescaled. Every batch has one size (the last is padded and cut), so that results do not hang on where a slice
    ends. Raises InputError: names, shapes or sample counts that do not fit.
    """
    model = load(Path(path), trust=trust, custom_objects=custom_objects).model
    made = tensors.run_files(model, inputs, Path(out), batch_size=batch_size, start=start, stop=stop)
    return {name: str(p) for name, p in made.items()}

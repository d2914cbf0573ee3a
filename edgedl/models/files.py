"""What a model file is and what it carries, told without running it: kind, configuration, code, custom objects."""

from __future__ import annotations

import builtins
import inspect
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edgedl import user_code
from edgedl.errors import InputError

ALLOWED = "allowed: a .keras file, an .h5 file of a whole model, or a SavedModel folder with Keras metadata"
CODE_CLASSES = {"Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"}
CODE_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles"}
KERAS_PACKAGES = {"keras", "tf_keras", "builtins"}
ANSI = re.compile(r"\x1b\[\d*m")  # bold, in Keras's messages
HELPER_MODULES = ("keras.utils", "keras.src.utils", "keras.saving", "keras.src.saving")  # functions that are no layers


class Kind(StrEnum):
    """The forms a Keras model comes in."""

    ARCHIVE = "Keras archive"
    FOLDER = "unpacked Keras archive"
    HDF5 = "HDF5"
    SAVED_MODEL = "SavedModel"


@dataclass(frozen=True, kw_only=True)
class KerasFile:
    """A file that looks right: its configurations (several in a SavedModel) and the Keras that wrote it."""

    path: Path
    kind: Kind
    configs: tuple[Any, ...]
    keras_version: str
    code_ops: tuple[str, ...] = ()

    @property
    def is_keras_2(self) -> bool:
        """Whether Keras 2 or tf_keras wrote it."""
        return self.kind is Kind.SAVED_MODEL or self.keras_version.startswith(("0.", "1.", "2."))


def read(path: Path) -> KerasFile:
    """The file's kind and configuration. Raises InputError that says what the file is instead."""
    kind = _kind(path)
    try:
        if kind is Kind.HDF5:
            return _read_hdf5(path)
        if kind is Kind.SAVED_MODEL:
            return _read_saved_model(path)
        return _read_archive(path, kind)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        message = f"{path}: the {kind} is truncated or damaged ({first_line(e)}); copy or save it again"
        raise InputError(message) from e


def _kind(path: Path) -> Kind:
    if not path.exists():
        message = f"{path}: no such file or folder; {ALLOWED}"
        raise InputError(message)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return Kind.SAVED_MODEL
        if (path / "config.json").is_file() and any(path.glob("model.weights.*")):
            return Kind.FOLDER
        message = f"{path}: a folder without saved_model.pb; {ALLOWED}"
        raise InputError(message)
    try:
        with path.open("rb") as f:
            head = f.read(512)
    except OSError as e:
        message = f"{path}: cannot be read ({e.strerror})"
        raise InputError(message) from e
    if head.startswith(b"PK\x03\x04"):
        return Kind.ARCHIVE
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Kind.HDF5
    message = f"{path}: {_guess(path, head)}, no Keras model; {ALLOWED}"
    raise InputError(message)


def _guess(path: Path, head: bytes) -> str:
    if not head:
        return "an empty file"
    if head[4:8] == b"TFL3":
        return "a TFLite file"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer (run: git lfs pull)"
    if path.suffix == ".onnx":
        return "an ONNX file"
    if path.name == "saved_model.pb":
        return "the inside of a SavedModel (give its folder)"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return "of an unknown format"
    return "a text file"


def _read_archive(path: Path, kind: Kind) -> KerasFile:
    def member(name: str) -> Any:
        if kind is Kind.FOLDER:
            return json.loads((path / name).read_bytes())
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(name))

    if kind is Kind.ARCHIVE:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if damaged := archive.testzip():
                message = f"checksum of {damaged}"
                raise zipfile.BadZipFile(message)
        if missing := {"config.json", "metadata.json"} - names:
            message = f"{path}: a zip archive without {', '.join(sorted(missing))}, no Keras model; {ALLOWED}"
            raise InputError(message)
    version = str(member("metadata.json").get("keras_version", ""))
    return KerasFile(
        path=path, kind=kind, configs=(_without(member("config.json"), "compile_config"),), keras_version=version
    )


def _read_hdf5(path: Path) -> KerasFile:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r") as f:
        config, version = f.attrs.get("model_config"), f.attrs.get("keras_version", "1.0")
        if config is None:
            weights = "layer_names" in f.attrs or {"layers", "_layer_checkpoint_dependencies", "vars"} & set(f)
            what = "weights without the network (save with model.save, not save_weights)" if weights else "other data"
            message = f"{path}: an HDF5 file that holds {what}, no Keras model; {ALLOWED}"
            raise InputError(message)
    return KerasFile(path=path, kind=Kind.HDF5, configs=(json.loads(config),), keras_version=_text(version))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_saved_model(path: Path) -> KerasFile:
    """The Keras configurations in `keras_metadata.pb`, or, before TensorFlow 2.5, in the object graph."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2
    from tf_keras.protobuf import saved_metadata_pb2

    graph, metadata = saved_model_pb2.SavedModel(), saved_metadata_pb2.SavedMetadata()
    try:
        graph.ParseFromString((path / "saved_model.pb").read_bytes())
        if (path / "keras_metadata.pb").is_file():
            metadata.ParseFromString((path / "keras_metadata.pb").read_bytes())
    except DecodeError as e:
        message = f"protobuf: {first_line(e)}"
        raise ValueError(message) from e
    objects = [n.user_object for g in graph.meta_graphs for n in g.object_graph_def.nodes]
    texts = [o.metadata for o in (*metadata.nodes, *objects) if o.identifier.startswith("_tf_keras_")]
    if not any(texts):
        message = (
            f"{path}: a SavedModel without Keras metadata (made by model.export or tf.saved_model.save); "
            "give the .keras or .h5 file it was made from"
        )
        raise InputError(message)
    functions = [n for g in graph.meta_graphs for f in g.graph_def.library.function for n in f.node_def]
    nodes = [*functions, *(n for g in graph.meta_graphs for n in g.graph_def.node)]
    configs = tuple(_without(json.loads(t), "training_config") for t in texts if t)
    code_ops = tuple(sorted(CODE_OPS & {n.op for n in nodes}))
    return KerasFile(path=path, kind=Kind.SAVED_MODEL, configs=configs, keras_version="2.", code_ops=code_ops)


def _without(config: Any, key: str) -> Any:
    """A configuration without how it was compiled, which is never loaded and may name any loss."""
    return {k: v for k, v in config.items() if k != key} if isinstance(config, dict) else config


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says why, shortened to 300 characters; Keras's own is behind where."""
    lines = [ANSI.sub("", line).strip() for line in str(error).splitlines()]
    why = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    if why[:1] == ["in user code:"]:  # the traceback of a traced function, which ends with the error
        why = why[-1:]
    return (why or [type(error).__name__])[0][:300]


def offered(spec: str | None) -> dict[str, Any]:
    """The layers and functions of `module` or `module:attribute` (several by comma) by name. Raises InputError."""
    found: dict[str, Any] = {}
    for item in filter(None, (spec or "").split(",")):
        name, _, attribute = item.strip().partition(":")
        module = user_code.module(name, f"--custom-objects {item}")
        if not attribute:
            found |= _objects(vars(module))
            continue
        if not hasattr(module, attribute):
            message = f"--custom-objects {item}: module {name} has no attribute {attribute!r}"
            raise InputError(message)
        value = getattr(module, attribute)
        found |= dict(value) if isinstance(value, Mapping) else _objects({attribute: value})
    return found


def _objects(names: Mapping[str, Any]) -> dict[str, Any]:
    """Under their own and their registered names, what is defined outside Keras and TensorFlow."""
    import keras

    found: dict[str, Any] = {}
    for name, value in names.items():
        foreign = str(getattr(value, "__module__", "")).split(".")[0] in {*KERAS_PACKAGES, "tensorflow"}
        layer = inspect.isclass(value) and (hasattr(value, "from_config") or hasattr(value, "get_config"))
        if not foreign and (layer or inspect.isfunction(value)):
            found |= {name: value, value.__name__: value, keras.saving.get_registered_name(value): value}
    return found


def check(file: KerasFile, objects: Mapping[str, Any], *, trust: bool) -> dict[str, Any]:
    """Refuse a file that carries code, before anything is loaded.

    Returns the objects of modules that the file names and `trust` allows to import. Raises InputError that names the
    layer: for code `--trust`, for a class that Keras lacks `--custom-objects`.
    """
    if file.code_ops and not trust:
        message = (
            f"{file.path}: its graph runs {', '.join(file.code_ops)}, which reach files or Python; "
            "if you trust where it comes from, add --trust"
        )
        raise InputError(message)
    found: dict[str, Any] = {}
    for layer, node in objects_in(file):
        if _is_code(node, objects) and not trust:
            message = (
                f"{file.path}: {layer} ({node['class_name']}) carries code that would run on this machine; "
                "if you trust where the file comes from, add --trust"
            )
            raise InputError(message)
        if _is_foreign(node, {**objects, **found}):
            found |= _trusted(file, layer, node, trust=trust)
    return found


def objects_in(file: KerasFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every serialized object of a file, with the innermost layer that it is in."""
    for config in file.configs:
        yield from _nodes(config, "the model")


def _nodes(value: Any, layer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        config = value.get("config")
        if "class_name" in value:
            if isinstance(config, dict) and isinstance(config.get("name"), str):
                layer = f"layer {config['name']!r}"
            yield layer, value
        for inner in value.values():
            yield from _nodes(inner, layer)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner, layer)


def _is_code(node: dict[str, Any], objects: Mapping[str, Any]) -> bool:
    """Whether loading this object would run what the file brings; a Lambda on the user's own function would not."""
    name, config = node["class_name"], node.get("config")
    if name == "Lambda" and isinstance(config, dict):
        function = config.get("function")
        named = function.get("config") if isinstance(function, dict) else function
        return not (isinstance(named, str) and named in objects)
    if name == "function":
        helper = str(node.get("module")).removeprefix("tf_").startswith(HELPER_MODULES)
        return helper or (node.get("module") == "builtins" and hasattr(builtins, str(config)))
    return name in CODE_CLASSES


def _is_foreign(node: dict[str, Any], objects: Mapping[str, Any]) -> bool:
    """Whether the object is of a class or function that neither Keras nor the user has provided."""
    import keras

    module = node.get("module")
    names = {_name(node), node["class_name"], node.get("registered_name")}
    if not isinstance(module, str) or module.split(".")[0] in KERAS_PACKAGES or names & set(objects):
        return False
    if module.split(".")[0] == "edgedl" or module.startswith("edgedl_"):
        user_code.module(module, "a layer of edgedl")  # which registers it
    return not any(keras.saving.get_registered_object(n) for n in names if n)


def _name(node: dict[str, Any]) -> str:
    return str(node["config"] if node["class_name"] == "function" else node["class_name"])


def _trusted(file: KerasFile, layer: str, node: dict[str, Any], *, trust: bool) -> dict[str, Any]:
    name, module = _name(node), node["module"]
    if not trust:
        message = (
            f"{file.path}: {layer} uses {name} of module {module!r}, which is no part of Keras; give it with "
            f"--custom-objects {module}, or add --trust to import the module that the file names"
        )
        raise InputError(message)
    return _objects(vars(user_code.module(module, f"{file.path}: {layer}")))


def with_suffix(path: Path, kind: Kind, folder: str) -> Path:
    """The path under a suffix that Keras accepts: itself, or a link in `folder`."""
    wanted = {Kind.ARCHIVE: (".keras",), Kind.HDF5: (".h5", ".hdf5")}.get(kind, (path.suffix,))
    if path.suffix in wanted:
        return path
    link = Path(folder) / f"model{wanted[0]}"
    link.symlink_to(path.resolve())
    return link

"""A pipeline file as the steps that it asks for; what can be known before anything runs is checked here."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgedl import artifacts, exporting, pipeline, plugins, readers, recipes, targets, toml, user_code
from edgedl.contract.op_versions import parse_pins
from edgedl.errors import EdgedlError, InputError
from edgedl.types import Scheme
from edgedl.validation import metrics
from edgedl.validation.gates import Gates, parse_limits

OPTIONS = {  # argument -> long option, where it is more than a dash for a line
    "evaluation": "eval",
    "format_": "format",
    "targets": "target",
    "metrics": "metric",
    "limits": "limit",
    "runtime_versions": "runtime-version",
    "shapes": "shape",
    "platforms": "platform",
    "overrides": "set",
}
OWN: dict[str, dict[str, Any]] = {  # what a table means otherwise than its function; None: the run fills it in
    "train": {},
    "compress": {"model": None, "recipe": str, "data": str | None, "evaluation": str | None},
    "export": {"model": None, "out": str | None},
    "validate": {
        "artifact": str | None,
        "reference": str | None,
        "on_inconclusive": Literal["fail", "warn", "pass"] | None,
    },
    "package": {"artifact": str | None},
}
FILLED = {"out": None, "force": None, "said": None}
DATA = ("data", "evaluation", "calibration_data")
NAMED = ("recipe", "target", "targets")  # a file beside the pipeline file, or the name of a shipped one
CODE = ("model", "metrics", "custom_objects")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a pipeline function: its folder in the run, its arguments, the files it reads.

    `out` is the file it writes in its folder, "" the folder itself, None where it writes nothing.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    out: str | None = None
    reads: tuple[Path, ...] = ()
    on_inconclusive: str = "fail"


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a pipeline file; keys of a table are its command's long options."""

    model: str = ""
    train: dict[str, Any] | None = None
    compress: dict[str, Any] | None = None
    export: tuple[dict[str, Any], ...] = ()
    validate: tuple[dict[str, Any], ...] = ()
    package: dict[str, Any] | None = None


def read(file: str, folder: Path) -> tuple[Step, ...]:
    """The steps of a pipeline file whose run folder is `folder`, in order. Raises InputError, PluginError."""
    tables = toml.build(Tables, toml.parse(Path(file)), file)
    return tuple(_Plan(Path(file), folder, tables).steps())


def keys(function: str) -> tuple[str, ...]:
    """The keys that the table of a pipeline function takes."""
    return tuple(f.metadata["key"] for f in fields(_schema(function)))


class _Plan:
    """What each table asks for; `made` are the exports so far, `judged` the validated artifact of each report."""

    def __init__(self, file: Path, folder: Path, tables: Tables) -> None:
        self.file, self.folder, self.tables = file, folder, tables
        self.made: list[Path] = []
        self.judged: dict[Path, Path] = {}

    def steps(self) -> Iterator[Step]:
        """The steps in order."""
        tables = self.tables
        if tables.train is None and tables.compress is None and not tables.export:
            message = f"{self.file}: nothing to do; it needs a table [train], [compress] or [[export]]"
            raise InputError(message)
        model = original = self.folder / "train" / "model.keras" if tables.train is not None else self._model()
        if tables.train is not None:
            yield self._step("train", "train", self._arguments("train", "[train]", tables.train), out=original.name)
        if tables.compress is not None:
            arguments = self._arguments("compress", "[compress]", tables.compress) | {"model": original}
            model = self.folder / "compress" / "compressed.keras"
            yield self._step("compress", "compress", arguments, out=model.name)
        for number, table in enumerate(tables.export, 1):
            yield self._export(number, table, model)
        for number, table in enumerate(tables.validate, 1):
            yield self._validate(number, table, original)
        if tables.package is not None:
            yield self._package(tables.package)

    def _model(self) -> Path:
        if not self.tables.model:
            message = f"{self.file}: no [train] table and no model; name one of them"
            raise InputError(message)
        return Path(self._path("model", self.tables.model, f"{self.file}"))

    def _export(self, number: int, table: dict[str, Any], model: Path) -> Step:
        where = f"[[export]] {number}"
        arguments = self._arguments("export", where, table) | {"model": model}
        out, format_ = arguments.pop("out", None), arguments.get("format_")
        if out is None and format_ is None:
            message = f"{self.file}: {where}: name its format or its out file"
            raise InputError(message)
        scheme = arguments.get("scheme")
        exporter = exporting.exporter_for(format_, Path(out or "a"), Scheme.parse(scheme) if scheme else None)
        carried = "" if self.tables.compress is not None else "-fp32"  # a compressed model may carry its scheme
        out = out or f"{model.stem}{f'-{scheme}' if scheme else carried}{exporter.suffixes[0]}"
        if Path(out).name != out or out in [p.name for p in self.made]:
            message = f"{self.file}: {where}: out must be a file name of its own, without a folder, got {out!r}"
            raise InputError(message)
        name = f"export-{number}"
        self.made.append(self.folder / name / out)
        return self._step(name, "export", arguments, out=out)

    def _validate(self, number: int, table: dict[str, Any], original: Path) -> Step:
        where, name = f"[[validate]] {number}", f"validate-{number}"
        arguments = self._arguments("validate", where, table)
        on_inconclusive = arguments.pop("on_inconclusive", "fail")
        arguments["artifact"] = artifact = self._made(arguments.get("artifact"), where)
        arguments.setdefault("reference", original)
        self.judged.setdefault(artifact, self.folder / name / "report.json")
        return self._step(name, "validate", arguments, on_inconclusive=on_inconclusive)

    def _package(self, table: dict[str, Any]) -> Step:
        arguments = self._arguments("package", "[package]", table)
        arguments["artifact"] = artifact = self._made(arguments.get("artifact"), "[package]")
        if artifact in self.judged:
            arguments.setdefault("report", self.judged[artifact])
        return self._step("package", "package", arguments, out="")

    def _made(self, name: str | None, where: str) -> Path:
        """The export of that file name, or the first. Raises InputError."""
        found = [p for p in self.made if name in (None, p.name)]
        if not found:
            allowed = ", ".join(p.name for p in self.made) or "none; add an [[export]]"
            message = f"{self.file}: {where}: artifact must be an export, got {name!r}; there are: {allowed}"
            raise InputError(message)
        return found[0]

    def _arguments(self, function: str, where: str, table: dict[str, Any]) -> dict[str, Any]:
        """A table as keyword arguments, paths relative to the file. Raises InputError."""
        schema = _schema(function)
        lists = {f.metadata["key"] for f in fields(schema) if f.type == tuple[str, ...]}
        given = {k: [v] if k in lists and isinstance(v, str) else v for k, v in table.items()}
        made: Any = toml.build(schema, given, f"{self.file}: {where}")
        found = {f.name: getattr(made, f.name) for f in fields(schema) if f.metadata["key"] in table}
        paths = _paths(function)
        arguments = {
            k: self._path(k, v, f"{self.file}: {where}") if k in paths else self._named(k, v) for k, v in found.items()
        }
        try:
            _check(function, arguments)
        except EdgedlError as e:
            message = f"{self.file}: {where}: {e}"
            raise type(e)(message) from e
        return arguments

    def _path(self, key: str, text: str, where: str) -> str:
        path = self.file.parent / text
        if path.exists():
            return str(path)
        if key in DATA and ":" in text:
            return text
        message = f"{where}: {OPTIONS.get(key, key.replace('_', '-'))}: no such file or folder: {path}"
        raise InputError(message)

    def _named(self, key: str, value: Any) -> Any:
        """A recipe or target that is a file beside the pipeline file as its path; anything else as it is."""
        if key not in NAMED:
            return value
        if isinstance(value, tuple):
            return tuple(self._named(key, one) for one in value)
        path = self.file.parent / value
        if not path.is_file() and (value.endswith(".toml") or "/" in value):
            message = f"{self.file}: {key}: no such file: {path}"
            raise InputError(message)
        return str(path) if path.is_file() else value

    def _step(self, name: str, function: str, arguments: dict[str, Any], **more: Any) -> Step:
        read: list[Path] = []
        for key, value in arguments.items():
            for one in value if isinstance(value, tuple) else (value,):
                read += _files(key, one, _paths(function))
        return Step(name=name, function=function, arguments=arguments, reads=tuple(dict.fromkeys(read)), **more)


def _check(function: str, arguments: dict[str, Any]) -> None:
    """Raises what the step would raise when its turn comes, perhaps after hours of training."""
    given = arguments.get
    for name in filter(None, (*given("targets", ()), given("target"))):
        targets.load(name)
    if function == "compress":
        recipes.load(arguments["recipe"], given("overrides", ()))
    if function == "validate":
        Gates(max_drop=given("max_drop"), limits=parse_limits(given("limits", ())))
        parse_pins(given("runtime_versions", ()))
    for text in given("metrics", ()):
        metrics.resolve(text.rpartition("=")[2])
    for name in given("platforms", ()):
        plugins.load("packagers", name)


def _files(key: str, value: Any, paths: Sequence[str]) -> list[Path]:
    """The files that an argument stands for: when one of them changes, the step is done again."""
    if key in DATA:
        return readers.files_of(value)
    if key == "custom_objects" or (key in CODE and _is_code(value)):
        return user_code.files_of(value)
    if key in NAMED:
        return [Path(value)] if value.endswith(".toml") else []
    return [Path(value), artifacts.sidecar_path(Path(value))] if key in (*paths, "artifact") else []


def _is_code(value: Any) -> bool:
    """Whether it is `module:function`, not a file in a folder with a colon, or one that a step before will make."""
    return isinstance(value, str) and ":" in value and not Path(value).exists()


@cache
def _schema(function: str) -> type:
    """The table of a pipeline function as a dataclass for `toml.build`."""
    found = getattr(pipeline, function)
    hints, own = typing.get_type_hints(found), FILLED | OWN[function]
    simpler = {pipeline.StrPath: str, pipeline.StrPath | None: str | None, Sequence[str]: tuple[str, ...]}
    made: list[Any] = []
    for name, parameter in inspect.signature(found).parameters.items():
        hint = own.get(name, simpler.get(hints[name], hints[name]))
        if hint is not None:
            made.append((name, hint, parameter.default is parameter.empty and type(None) not in typing.get_args(hint)))
    made += [(name, hint, False) for name, hint in own.items() if hint is not None and name not in hints]
    return make_dataclass(
        "Table", [(name, hint, _field(name, required)) for name, hint, required in made], kw_only=True
    )


def _field(name: str, required: bool) -> Any:
    about = {"key": OPTIONS.get(name, name.replace("_", "-"))}
    return field(metadata=about) if required else field(default=None, metadata=about)


@cache
def _paths(function: str) -> tuple[str, ...]:
    """The arguments that are paths of the user's."""
    hints = typing.get_type_hints(getattr(pipeline, function))
    kinds = (pipeline.StrPath, pipeline.StrPath | None, Any)  # Any: where a notebook may give arrays or a model
    return tuple(n for n, h in hints.items() if h in kinds and n not in (*FILLED, *NAMED, "artifact", "return"))

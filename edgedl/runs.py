"""A pipeline file done step by step in a run folder, which holds everything needed to repeat it.

    RUN/<step>/request.json   what was asked, with the hashes of the files it reads
    RUN/<step>/...            what the step made
    RUN/<step>/done.json      what it answered; a step whose request is the same is skipped

A step works in a folder of its own that is renamed when it is done, so that after a kill the run goes on there.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from edgedl import __version__, data, pipeline, reporting, toml
from edgedl.errors import InputError
from edgedl.types import Report, Verdict, to_json

ALIASES = {
    "eval": "evaluation",
    "format": "format_",
    "target": "targets",
    "metric": "metrics",
    "limit": "limits",
    "shape": "shapes",
    "platform": "platforms",
}
SINGLE_TARGET = ("export",)  # where `target` is one profile
GIVEN = ("out", "force")  # what the run itself decides


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a pipeline function: its folder's name, the function, its keyword arguments, the files it reads."""

    name: str
    function: str
    arguments: dict[str, Any]
    reads: tuple[Path, ...] = ()

    def request(self) -> dict[str, Any]:
        """What `request.json` holds."""
        hashes = {str(p): data.path_sha256(p) for p in self.reads if p.exists()}
        return {"edgedl": __version__, "function": self.function, "arguments": to_json(self.arguments), "reads": hashes}


@dataclass(frozen=True, kw_only=True)
class PipelineFile:
    """The tables of a pipeline file; keys of a table are its command's long options."""

    model: str = ""
    train: dict[str, Any] = field(default_factory=dict)
    export: tuple[dict[str, Any], ...] = ()
    validate: tuple[dict[str, Any], ...] = ()
    package: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Run:
    """A pipeline file being done: `said` hears of each step."""

    file: Path
    folder: Path
    tables: PipelineFile
    said: Callable[[str], None]
    made: list[Path] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def do(self) -> None:
        """Every step in order."""
        model = self._train()
        for i, table in enumerate(self.tables.export, 1):
            self._export(f"export-{i}", table, model)
        for i, table in enumerate(self.tables.validate, 1):
            self._validate(f"validate-{i}", table, model)
        if self.tables.package:
            self._package()

    def _train(self) -> Path:
        if not self.tables.train:
            if not self.tables.model:
                message = f"{self.file}: no [train] table and no model; name one of them"
                raise InputError(message)
            return self.file.parent / self.tables.model
        arguments = self._arguments("train", self.tables.train, "[train]")
        self._step("train", "train", arguments, "model.keras")
        return self.folder / "train" / "model.keras"

    def _export(self, name: str, table: dict[str, Any], model: Path) -> None:
        given = dict(table)
        out = given.pop("out", None)
        arguments = self._arguments("export", given, f"[[export]] {name}") | {"model": model}
        if out is None:
            suffix = _suffix(arguments.get("format_"), f"{self.file}: [[export]] {name}")
            out = f"{model.stem}-{arguments.get('scheme') or 'fp32'}{suffix}"
        self._step(name, "export", arguments, out, reads=(model,))
        self.made.append(self.folder / name / out)

    def _validate(self, name: str, table: dict[str, Any], model: Path) -> None:
        given = dict(table)
        on_inconclusive = given.pop("on-inconclusive", "fail")
        artifact = self._made(given.pop("artifact", None), f"{self.file}: [[validate]] {name}")
        reference = self.file.parent / given.pop("reference") if "reference" in given else model
        arguments = self._arguments("validate", given, f"[[validate]] {name}")
        arguments |= {"artifact": artifact, "reference": reference}
        self._step(name, "validate", arguments, None, reads=(artifact, reference))
        (report,) = reporting.read(self.folder / name / "report.json")
        self.reports.append(report)
        self.codes.append(pipeline.exit_code(report.verdict, on_inconclusive))

    def _package(self) -> None:
        given = dict(self.tables.package)
        artifact = self._made(given.pop("artifact", None), f"{self.file}: [package]")
        arguments = self._arguments("package", given, "[package]") | {"artifact": artifact}
        reports = [r for r in self.reports if Path(r.artifact) == artifact]
        if reports and "report" not in arguments:
            number = self.reports.index(reports[0]) + 1
            arguments["report"] = self.folder / f"validate-{number}" / "report.json"
        self._step("package", "package", arguments, "", reads=(artifact,))

    def _made(self, name: str | None, where: str) -> Path:
        """The export of that file name, or the first. Raises InputError."""
        found = [p for p in self.made if name in (None, p.name)]
        if not found:
            message = f"{where}: no export named {name!r}; there are {', '.join(p.name for p in self.made) or 'none'}"
            raise InputError(message)
        return found[0]

    def _arguments(self, function: str, table: dict[str, Any], where: str) -> dict[str, Any]:
        """A table as keyword arguments: checked against the function's own, paths relative to the file."""
        renamed = {_argument(function, key): value for key, value in table.items()}
        hints = _hints(function)
        lists: dict[str, Any] = {}
        for key, value in renamed.items():
            lists[key] = [value] if isinstance(value, str) and hints.get(key) == tuple[str, ...] else value
        schema = make_dataclass("Table", [(k, h, field(default=None)) for k, h in hints.items()], kw_only=True)
        toml.build(schema, lists, f"{self.file}: {where}")
        paths = _path_arguments(function)
        return {k: self._resolved(v) if k in paths else v for k, v in lists.items()}

    def _resolved(self, text: str) -> str:
        path = self.file.parent / text
        return text if ":" in text and not path.exists() else str(path)

    def _step(
        self, name: str, function: str, arguments: dict[str, Any], out: str | None, reads: tuple[Path, ...] = ()
    ) -> None:
        """Do a step in its own folder, or skip it where the same request is done."""
        sources = [Path(str(v)) for k, v in arguments.items() if k in _path_arguments(function)]
        step = Step(name=name, function=function, arguments=arguments, reads=(*reads, *sources))
        request, place, part = step.request(), self.folder / name, self.folder / f".{name}.part"
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if _is_done(place, digest):
            self.said(f"{name}: done before, skipped")
            return
        self.said(f"{name} ...")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "request.json").write_text(json.dumps(request, indent=2), encoding="utf-8")
        given = arguments | ({"out": part / out} if out is not None else {})
        answer = getattr(pipeline, function)(**given)
        if isinstance(answer, Report):
            (part / "report.json").write_text(
                json.dumps(reporting.as_json(answer, details=True), indent=2), encoding="utf-8"
            )
            self.said(f"  {answer.verdict}")
        for note in _notes(answer):
            self.said(f"  note: {note}")
        told = json.loads(json.dumps(to_json(answer)).replace(json.dumps(str(part))[1:-1], str(place)))
        (part / "done.json").write_text(json.dumps({"request": digest, "answer": told}, indent=2), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)


def run(
    file: str, *, out: str | None = None, said: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, Any], list[Report]]:
    """Do a pipeline file: what `edgedl run --json` prints, and the reports. Raises what its steps raise."""
    path = Path(file)
    tables = toml.build(PipelineFile, toml.parse(path), file)
    folder = Path(out) if out else path.with_suffix("")
    _check_folder(folder, path)
    doing = Run(file=path, folder=folder, tables=tables, said=said)
    doing.do()
    written = reporting.write(doing.reports, folder) if doing.reports else []
    verdict = Verdict.worst([r.verdict for r in doing.reports])
    code = 6 if 6 in doing.codes else max(doing.codes, default=0)
    page = next((str(p) for p in written if p.suffix == ".html"), None)
    steps = sorted(p.parent.name for p in folder.glob("*/done.json"))
    answer = {"verdict": verdict.value, "exit_code": code, "folder": str(folder), "steps": steps, "report": page}
    return answer, doing.reports


def _check_folder(folder: Path, file: Path) -> None:
    if folder.exists() and not folder.is_dir():
        message = f"{folder}: is a file; name a folder for the run with -o"
        raise InputError(message)
    foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
    at_home = file.parent.resolve() == folder.resolve()
    if foreign and not at_home and not any((folder / name / "request.json").exists() for name in foreign):
        message = f"{folder}: holds {foreign[0]!r} and no run; name another folder with -o"
        raise InputError(message)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        message = f"{folder}: cannot be made: {e.strerror}"
        raise InputError(message) from e


def _is_done(place: Path, digest: str) -> bool:
    try:
        done = json.loads((place / "done.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(done.get("request") == digest)


def _argument(function: str, key: str) -> str:
    if key == "target" and function in SINGLE_TARGET:
        return key
    return ALIASES.get(key, key.replace("-", "_"))


def _signature(function: str) -> dict[str, Any]:
    found = getattr(pipeline, function)
    hints = typing.get_type_hints(found)
    return {name: hints[name] for name in inspect.signature(found).parameters if name not in GIVEN}


def _hints(function: str) -> dict[str, Any]:
    """The arguments of a pipeline function with the types that TOML can hold."""
    simpler = {
        pipeline.StrPath: str,
        pipeline.StrPath | None: str | None,
        Sequence[str]: tuple[str, ...],
    }
    return {name: simpler.get(hint, hint) for name, hint in _signature(function).items()}


def _path_arguments(function: str) -> set[str]:
    paths = (pipeline.StrPath, pipeline.StrPath | None)
    return {name for name, hint in _signature(function).items() if hint in paths}


def _suffix(format_: str | None, where: str) -> str:
    from edgedl import plugins

    if format_ is None:
        message = f"{where}: name its format or its out file"
        raise InputError(message)
    suffix: str = plugins.load("exporters", format_).suffixes[0]
    return suffix


def _notes(answer: Any) -> Sequence[str]:
    if isinstance(answer, Report):
        return tuple(answer.details.get("notes", ()))
    if isinstance(answer, dict):
        return tuple(answer.get("notes", ()))
    return tuple(getattr(answer, "notes", ()))

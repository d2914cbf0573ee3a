"""Artifacts on disk: what format a file is, who runs it, its sidecar, and how an output is published.

An output is made in the pool's folder and moved into place whole; the user's folder never holds half a file.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from edgedl import __version__, plugins, worker
from edgedl.data import file_sha256
from edgedl.errors import InputError, PluginError
from edgedl.types import AgentRuntime, Artifact, ArtifactInfo, Exporter, ExportOptions, Lineage, OpInfo, TensorSpec

SIDECAR = ".edgedl.json"
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def format_of(path: Path) -> str | None:
    """The artifact format that a file's suffix stands for, among the installed exporters; None for anything else."""
    broken = None
    for plugin in plugins.listing("exporters"):
        try:
            if path.suffix in plugins.load("exporters", plugin.name).suffixes:
                return plugin.name
        except (PluginError, AttributeError) as e:  # of another format, most likely
            broken = e
    if broken:
        raise PluginError(str(broken)) from broken
    return None


def require_format(path: Path) -> str:
    """The format of an artifact that exists. Raises InputError."""
    if not path.exists():
        message = f"{path}: no such file"
        raise InputError(message)
    found = format_of(path)
    if found is None and path.suffix in KERAS_SUFFIXES:
        message = f"{path}: is a Keras model; export it first: edgedl export {path} -o {path.with_suffix('.tflite')}"
        raise InputError(message)
    if found is None:
        suffixes = [s for p in plugins.listing("exporters") for s in plugins.load("exporters", p.name).suffixes]
        message = f"{path}: no artifact; one of {', '.join(suffixes)} is needed"
        raise InputError(message)
    return found


def runtimes(format_: str) -> list[str]:
    """The names of the installed runtimes that run a format."""
    found: dict[str, AgentRuntime] = {p.name: plugins.load("runtimes", p.name) for p in plugins.listing("runtimes")}
    return [name for name, runtime in found.items() if runtime.format == format_ and runtime.runs]


def runtime_for(format_: str, name: str | None = None) -> AgentRuntime:
    """The runtime of that name, or the first that runs the format. Raises PluginError, InputError."""
    if name is None:
        name = next(iter(runtimes(format_)), None)
    if name is None:
        message = f"no plugin provides a runtime for {format_!r}. Try: pip install edgedl-{format_}"
        raise PluginError(message)
    chosen: AgentRuntime = plugins.load("runtimes", name)
    if chosen.format != format_:
        message = f"runtime {name!r} runs {chosen.format} files, not {format_}"
        raise InputError(message)
    if not chosen.runs:
        message = f"runtime {name!r} runs nothing, it gives figures; allowed: {', '.join(runtimes(format_))}"
        raise InputError(message)
    return chosen


def interpreter_of(runtime: AgentRuntime) -> str | None:
    """The Python that holds the runtime: the one its environment variable names, else None for this one."""
    return os.environ.get(runtime.python_variable) if runtime.python_variable else None


def child_of(runtime: AgentRuntime) -> str:
    """The pooled child that runs it: its own where it may share with nothing."""
    return runtime.name if runtime.alone else "runtimes"


def probe(runtime: AgentRuntime) -> dict[str, Any]:
    """The agent's `info` request about one runtime."""
    return {"runtimes": [runtime.name], "modules": {runtime.name: runtime.module}}


@cache
def why_not(runtime: AgentRuntime) -> str:
    """Why a plugin's own runtime does not start here, "" where it does. The agent's are tried when they are used."""
    if runtime.model is None:
        return ""
    asked, interpreter = probe(runtime), interpreter_of(runtime)
    told = worker.call("info", asked, child=child_of(runtime), interpreter=interpreter)["runtimes"][runtime.name]
    return "" if told["version"] else str(told["why"])


def warm(format_: str | None) -> None:
    """Let the child that runs a format, if there is one, import its runtime ahead."""
    if format_ and runtimes(format_):
        runtime = runtime_for(format_)
        worker.ahead("info", probe(runtime), child=child_of(runtime), interpreter=interpreter_of(runtime))


def describe(path: Path, *, format_: str | None = None, child: str = "runtimes") -> ArtifactInfo:
    """What is in an artifact: inputs, outputs, operators, weights, metadata. Raises InputError for a damaged file.

    `child` reads it where the runtime need not: another than the usual one has the format's libraries loaded already.
    """
    runtime = runtime_for(format_ or require_format(path))
    if runtime.describe is None:
        reply = worker.call(
            "describe",
            {"artifact": str(path), "runtime": runtime.name},
            child=child_of(runtime),
            interpreter=interpreter_of(runtime),
        )
        return info_from_json({"format": runtime.format, **reply})
    return info_from_json(worker.call(runtime.describe, {"path": str(path)}, child=child, timeout_s=120))


def info_from_json(value: dict[str, Any]) -> ArtifactInfo:
    """An ArtifactInfo from what crossed the wire."""
    return ArtifactInfo(
        format=value["format"],
        inputs=specs_from_json(value["inputs"]),
        outputs=specs_from_json(value["outputs"]),
        ops=tuple(OpInfo(**_tuples(o)) for o in value.get("ops", ())),
        weight_bytes=value.get("weight_bytes", {}),
        metadata=value.get("metadata", {}),
    )


def specs_from_json(values: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """TensorSpecs from their JSON."""
    known = {f.name for f in fields(TensorSpec)}
    return tuple(TensorSpec(**_tuples({k: v for k, v in spec.items() if k in known})) for spec in values)


def measure(path: Path, *, format_: str, scheme: str, info: ArtifactInfo, lineage: Lineage) -> Artifact:
    """The noun for a file that is there: hashes and sizes it."""
    content = path.read_bytes()
    return Artifact(
        path=path,
        format=format_,
        scheme=scheme,
        sha256=file_sha256(path),
        size_bytes=len(content),
        compressed_bytes=len(zlib.compress(content, 9)),
        inputs=info.inputs,
        outputs=info.outputs,
        lineage=lineage,
    )


def sidecar_path(path: Path) -> Path:
    """Where the facts about an output lie: `OUT.edgedl.json`."""
    return path.with_name(path.name + SIDECAR)


def read(path: Path) -> tuple[Artifact, ArtifactInfo]:
    """An artifact with what its sidecar adds, if there is one. Raises InputError where that is about other bytes."""
    format_ = require_format(path)
    told = read_sidecar(path)
    if told and told.get("sha256") != file_sha256(path):
        message = (
            f"{path}: is not the file that {sidecar_path(path).name} tells of (another SHA-256): it was changed or "
            "damaged; export it again, or remove that .json"
        )
        raise InputError(message)
    info = describe(path, format_=format_)
    bare = measure(path, format_=format_, scheme=told.get("scheme", ""), info=info, lineage=Lineage())
    if told:
        return _told(bare, told), _named(info, told.get("names", {}))
    labels = tuple(info.metadata.get("labels", ()))
    return replace(bare, scheme=guess_scheme(info), lineage=Lineage(labels=labels)), info


def _told(bare: Artifact, told: dict[str, Any]) -> Artifact:
    """The artifact with what its sidecar says. Raises InputError where that says too little, or something else."""
    try:
        return replace(
            bare,
            lineage=lineage_from_json(told["lineage"]),
            inputs=specs_from_json(told["inputs"]),
            outputs=specs_from_json(told["outputs"]),
            notes=tuple(told["notes"]),
            names=told.get("names", {}),
        )
    except (KeyError, TypeError, AttributeError) as e:
        what = f"{e} is missing" if isinstance(e, KeyError) else str(e)
        message = f"{sidecar_path(bare.path)}: no sidecar of an artifact: {what}; remove it, or export again"
        raise InputError(message) from e


def _named(info: ArtifactInfo, names: dict[str, str]) -> ArtifactInfo:
    """Tensors under the names that the file itself no longer holds."""
    ops = (
        replace(
            op, inputs=tuple(names.get(n, n) for n in op.inputs), outputs=tuple(names.get(n, n) for n in op.outputs)
        )
        for op in info.ops
    )
    return replace(info, ops=tuple(ops))


def guess_scheme(info: ArtifactInfo) -> str:
    """What the weights say of a file without a sidecar: `int8`, `int16`, `fp16` or `fp32` weights, else ""."""
    held = {k: v for k, v in info.weight_bytes.items() if k in ("int8", "int4", "float16", "float32", "uint8")}
    return max(held, key=lambda k: held[k]) + " weights" if held else ""


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside an output, or {}. Raises InputError for a damaged one."""
    sidecar = sidecar_path(path)
    if not sidecar.exists():
        return {}
    try:
        value = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as e:
        message = f"{sidecar}: not readable as JSON: {e}; remove it, or export again"
        raise InputError(message) from e
    return value if isinstance(value, dict) else {}


def write_sidecar(out: Path, facts: Any) -> None:
    """Write the JSON beside an output that is still `staged`."""
    sidecar_path(out).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def lineage_from_json(value: dict[str, Any]) -> Lineage:
    """A Lineage from its JSON."""
    known = {f.name for f in fields(Lineage)}
    return Lineage(**_tuples({k: v for k, v in value.items() if k in known}))


def ancestors(path: Path, sha256: str) -> tuple[str, ...]:
    """The models that a model was compressed from, as its sidecar says; () where that tells of other bytes.

    Raises InputError for a sidecar that is no JSON.
    """
    told = read_sidecar(path)
    lineage = told.get("lineage")
    if told.get("sha256") != sha256 or not isinstance(lineage, dict):
        return ()
    earlier = lineage.get("ancestors")
    found = [lineage.get("model_sha256"), *(earlier if isinstance(earlier, list) else ())]
    return tuple(one for one in found if isinstance(one, str) and one not in ("", sha256))


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    """What JSON made a list is a tuple in our nouns."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages, edgedl's own first."""
    from importlib import metadata

    found = {"edgedl": __version__}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def check_output(out: Path, *, force: bool, inputs: Sequence[str | Path | None] = ()) -> None:
    """Refuse an output early: it exists, is one of `inputs`, its folder is not there or cannot be written.

    Raises InputError.
    """
    for given in inputs:
        if given and out.exists() and Path(given).exists() and out.samefile(given):
            message = f"{out}: is read as well, and would be lost; name another output"
            raise InputError(message)
    if out.exists() and not force:
        message = f"{out}: exists; --force overwrites it"
        raise InputError(message)
    if out.is_dir():
        message = f"{out}: is a folder, and is not overwritten; name another file, or remove it"
        raise InputError(message)
    if not out.parent.is_dir():
        message = f"{out}: no such folder: {out.parent}; make it first"
        raise InputError(message)
    if not os.access(out.parent, os.W_OK):
        message = f"{out}: the folder {out.parent} cannot be written"
        raise InputError(message)


def check_model_output(out: Path) -> None:
    """Refuse a Keras model under another format's name. Raises InputError."""
    if out.suffix != ".keras":
        message = f"{out}: a Keras model is written; name it {out.stem or 'model'}.keras, and export it afterwards"
        raise InputError(message)


@contextlib.contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A scratch path of the same name. When the block ends well, it and its sidecar are moved to `out` whole."""
    check_output(out, force=force)
    part = worker.pool().scratch("out") / out.name
    yield part
    sidecar = {sidecar_path(part): sidecar_path(out)} if sidecar_path(part).exists() else {}
    publish({part: out, **sidecar})


def publish(moves: Mapping[Path, Path]) -> None:
    """Move files into place, all or none: copied beside it first, since a rename must not cross file systems."""
    beside = {out: out.with_name(f".{out.name}.{os.getpid()}.part") for out in moves.values()}
    for out in beside:
        _sweep(out)
    try:
        for part, out in moves.items():
            with writing(out):
                shutil.copyfile(part, beside[out])
        for out, copied in beside.items():
            with writing(out):
                copied.replace(out)
    finally:
        for copied in beside.values():
            with contextlib.suppress(OSError):  # gone, or on a disk that has refused it already
                copied.unlink()


def _sweep(out: Path) -> None:
    """Remove the copy that a session left beside `out` when it was killed."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not worker.is_running(int(pid)):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Where the file system refuses to write `out`, an InputError that says why."""
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        message = f"{out}: cannot be written: {'the disk is full' if full else e.strerror}; nothing was changed"
        raise InputError(message) from e


def run_exporter(
    format_: str,
    model: str,
    out: str,
    scheme: str,
    source: str | None,
    calibration: str | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Child side of an export: call the plugin; the `notes` and `names` it gives."""
    exporter: Exporter = plugins.load("exporters", format_)
    shapes = {name: tuple(shape) for name, shape in options.pop("shapes").items()}
    given = ExportOptions(shapes=shapes, **_tuples(options))
    result = exporter.export(
        Path(model),
        Path(out),
        scheme=scheme,
        source=Path(source) if source else None,
        calibration=Path(calibration) if calibration else None,
        options=given,
    )
    return {"notes": result.notes, "names": result.names}

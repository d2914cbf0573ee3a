"""The content of a package, the same for every platform, and its way into each platform's file.

NAME.tflite           the artifact
manifest.json         what is here, with the hash of every other file
labels.txt            class names, one a line, where there are any
preprocessing.json    what is left to the app, and what the model does itself
golden/               inputs and outputs of a few samples, .npy
report.json           the validation, where one was named
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import artifacts, plugins, reporting, worker
from edgedl.errors import InputError
from edgedl.packaging import golden, manifest
from edgedl.packaging.golden import Inputs
from edgedl.types import AgentRuntime, Artifact, Packager, Report, to_json

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}[A-Za-z0-9]|[A-Za-z]")
SEMANTIC_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?", re.ASCII)


def pack(
    artifact: Path,
    *,
    platforms: Sequence[str],
    out: Path,
    data: str | None = None,
    labels: str | None = None,
    report: str | None = None,
    name: str | None = None,
    version: str = "1.0.0",
    seed: int = 0,
    force: bool = False,
) -> list[Path]:
    """The packages written into the folder `out`, one a platform. Golden samples are drawn from `data`, else random.

    Raises InputError: name, version, labels, report or data do not fit; PluginError: no such platform, no runtime.
    """
    packagers: list[Packager] = [plugins.load("packagers", p) for p in dict.fromkeys(platforms)]
    _check_folder(out, force=force)
    name = _check_name(name or artifact.stem, version)
    found, _ = artifacts.read(artifact)
    if report:
        _check_report(Path(report), found)
    runtime, runtime_version = golden.runtime_for(found.format)
    inputs = golden.from_data(found, data, seed) if data else golden.from_seed(found, seed)
    content = worker.pool().scratch("content")
    ours = _copied(_completed(found, inputs, labels), content / f"{name}{artifact.suffix}")
    _write_facts(ours, content, report)
    examples = _write_golden(ours, runtime, inputs, content)
    about = {"name": runtime.name, "version": runtime_version}
    value = manifest.build(ours, name=name, version=version, golden=examples, runtime=about, folder=content)
    manifest.write(value, content / manifest.NAME)
    scratch = worker.pool().scratch("packages")
    made = [p.package(content, _made(scratch / p.platform), name=name, version=version) for p in packagers]
    return _publish(made, out, force=force)


def _check_folder(out: Path, *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        message = f"{out}: is a file; -o names the folder that packages are written into"
        raise InputError(message)
    artifacts.check_output(out / "package" if out.exists() else out, force=force)


def _check_name(name: str, version: str) -> str:
    if not NAME.fullmatch(name):
        message = (
            f"--name: {name!r} is no name of a package: at most 64 letters, digits and _ . - are allowed, "
            "a letter first, a letter or digit last; name one with --name"
        )
        raise InputError(message)
    if not SEMANTIC_VERSION.fullmatch(version):
        message = f"--version: {version!r} is no version: MAJOR.MINOR.PATCH is needed, such as 1.2.0 or 1.2.0-rc.1"
        raise InputError(message)
    return name


def _check_report(path: Path, artifact: Artifact) -> None:
    """Raises InputError where no part of a report.json is about an artifact of this size, made from this model."""
    reports = reporting.read(path)
    if not any(_is_about(report, artifact) for report in reports):
        named = ", ".join(sorted({report.artifact for report in reports}))
        message = (
            f"{path}: is about {named}, of another size or from another model than {artifact.path}; "
            "validate this artifact and name that report"
        )
        raise InputError(message)


def _is_about(report: Report, artifact: Artifact) -> bool:
    sizes = {"size_bytes": artifact.size_bytes, "compressed_bytes": artifact.compressed_bytes}
    said = [c for c in report.checks if c.name in sizes and c.measured is not None]
    model = report.details.get("lineage", {}).get("model_sha256")
    ours = artifact.lineage.model_sha256
    return all(c.measured == sizes[c.name] for c in said) and not (model and ours and model != ours)


def _completed(artifact: Artifact, inputs: Inputs, labels: str | None) -> Artifact:
    """The artifact with the labels and the preprocessing of the app that travel with it. Raises InputError."""
    told = artifact.lineage.preprocessing
    if told and inputs.preprocessing and to_json(told) != to_json(inputs.preprocessing):
        message = (
            f"{artifact.path}: was exported with the preprocessing {to_json(told)} left to the app, the data says "
            f"{to_json(inputs.preprocessing)}; name the .toml it was exported with"
        )
        raise InputError(message)
    chosen = _read_labels(Path(labels)) if labels else artifact.lineage.labels or inputs.labels
    problems = manifest.labels_problems(chosen, artifact.outputs)
    if problems:
        message = f"{labels or artifact.path}: {problems[0]}; name a file with one label a line with --labels"
        raise InputError(message)
    return replace(
        artifact,
        lineage=replace(artifact.lineage, labels=chosen, preprocessing=told or inputs.preprocessing),
    )


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as e:
        message = f"{path}: cannot be read: {e.strerror}"
        raise InputError(message) from e
    except UnicodeDecodeError as e:
        message = f"{path}: no text in UTF-8: {e}; a label a line is needed"
        raise InputError(message) from e
    found = [line.strip() for line in lines]
    while found and not found[-1]:
        found.pop()
    if not found or not all(found):
        where = f"line {found.index('') + 1} is empty" if found else "no labels"
        message = f"{path}: {where}; a label a line is needed"
        raise InputError(message)
    return tuple(found)


def _copied(artifact: Artifact, path: Path) -> Artifact:
    shutil.copyfile(artifact.path, path)
    return replace(artifact, path=path)


def _write_facts(artifact: Artifact, content: Path, report: str | None) -> None:
    lineage = artifact.lineage
    if lineage.labels:
        (content / manifest.LABELS).write_text("\n".join(lineage.labels) + "\n", encoding="utf-8")
    steps = {"preprocessing": to_json(lineage.preprocessing), "embedded": to_json(lineage.embedded)}
    manifest.write(steps, content / manifest.PREPROCESSING)
    if report:
        shutil.copyfile(report, content / manifest.REPORT)


def _write_golden(artifact: Artifact, runtime: AgentRuntime, inputs: Inputs, content: Path) -> dict[str, Any]:
    """The .npy files, and what the manifest says of them. Raises InputError where an output is not finite."""
    folder = _made(content / "golden")
    files = _saved(inputs.arrays, folder, "input")
    outputs = golden.run(artifact, runtime, files)
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            message = f"{artifact.path.name}: output {name!r} is not finite on the golden samples; name --data"
            raise InputError(message)
    return {
        "samples": len(next(iter(inputs.arrays.values()))),
        "source": inputs.source,
        "inputs": {name: f"{folder.name}/{path.name}" for name, path in files.items()},
        "outputs": {name: f"{folder.name}/{path.name}" for name, path in _saved(outputs, folder, "output").items()},
        "tolerance": {spec.name: golden.tolerance(spec, artifact.scheme) for spec in artifact.outputs},
    }


def _saved(arrays: Mapping[str, NDArray[Any]], folder: Path, side: str) -> dict[str, Path]:
    """One .npy an array, numbered: a tensor's name need not be a file's."""
    paths = {name: folder / f"{side}_{i}.npy" for i, name in enumerate(arrays)}
    for name, path in paths.items():
        np.save(path, arrays[name])
    return paths


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _publish(made: Sequence[Path], out: Path, *, force: bool) -> list[Path]:
    """Move packages into `out`, once it is known that none is in the way."""
    for path in made if out.exists() else ():
        artifacts.check_output(out / path.name, force=force)
    out.mkdir(exist_ok=True)
    artifacts.publish({path: out / path.name for path in made})
    return [out / path.name for path in made]

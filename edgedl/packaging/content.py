"""The content of a package, the same for every platform.

NAME.tflite           the artifact
manifest.json         what is here, with the hash of every other file
labels.txt            class names, one a line, where there are any
preprocessing.json    what is left to the app, and what the model does itself
golden/               inputs and outputs of a few samples, .npy
report.json           the validation, where one was named
MODEL_CARD.md         purpose, data, results, limits, lineage, for people
sbom.cdx.json         the bill of materials, CycloneDX
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import artifacts, worker
from edgedl.contract.op_versions import floors
from edgedl.errors import EdgedlError, InputError
from edgedl.packaging import bom, card, golden, interface, manifest, results
from edgedl.packaging.card import Card
from edgedl.packaging.golden import Inputs
from edgedl.readers import read_labels
from edgedl.types import AgentRuntime, Artifact, Content, Target, to_json

FIRST = "1.0.0"  # version


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What content is made of."""

    artifact: Path
    data: str | None
    labels: Path | None
    report: Path | None
    targets: tuple[Target, ...]
    card: Card
    name: str
    version: str | None
    previous: Mapping[str, Any] | None  # the manifest that the version follows, where none is named
    seed: int


def make(sources: Sources, said: Callable[[str], None]) -> Content:
    """The content in a scratch folder, and the draft of its manifest.

    Raises InputError, PluginError, UnsupportedError.
    """
    found, info = artifacts.read(sources.artifact)
    golden.check_dtypes(found)
    report = results.find(sources.report, found) if sources.report else None
    runtimes = golden.runtimes_for(found.format)
    inputs = (
        golden.from_data(found, sources.data, sources.seed) if sources.data else golden.from_seed(found, sources.seed)
    )
    folder = worker.pool().scratch("content")
    ours = _copied(_completed(found, inputs, sources.labels), folder / f"{sources.name}{sources.artifact.suffix}")
    _write_facts(ours, folder, sources.report)
    golden_facts = _write_golden(ours, runtimes, inputs, folder, said)
    facts = manifest.Facts(
        name=sources.name,
        version=sources.version or FIRST,
        golden=golden_facts,
        logits=[name for name, file in golden_facts["outputs"].items() if _leaves_0_to_1(np.load(folder / file))],
        runtime=_runtime(*runtimes[0], floors(info)),
        targets=sources.targets,
        results=results.summary(report) if report else None,
        card=sources.card,
    )
    value = manifest.draft(ours, info, facts)
    if sources.version is None and sources.previous is not None:
        value["version"] = interface.next_version(sources.previous, value)
    manifest.write(bom.build(value), folder / bom.FILE)
    (folder / card.FILE).write_text(card.render(value), encoding="utf-8")
    return Content(folder=folder, manifest={**value, "files": manifest.hashes(folder)})


def _leaves_0_to_1(values: NDArray[Any]) -> bool:
    """Whether these are no probabilities."""
    return bool(values.min(initial=0) < 0 or values.max(initial=0) > 1)


def _runtime(runtime: AgentRuntime, version: str, minimums: Mapping[str, str | None]) -> dict[str, Any]:
    """What gave the golden outputs, and from which release on the runtimes of the format have every operator."""
    name = runtime.name
    return {"name": name, "version": version, "minimum": minimums.get(name), "minimums": dict(minimums)}


def _completed(artifact: Artifact, inputs: Inputs, labels: Path | None) -> Artifact:
    """The artifact with the labels and the preprocessing of the app that travel with it. Raises InputError."""
    told = artifact.lineage.preprocessing
    if told and inputs.preprocessing and to_json(told) != to_json(inputs.preprocessing):
        message = (
            f"{artifact.path}: was exported with the preprocessing {to_json(told)} left to the app, the data says "
            f"{to_json(inputs.preprocessing)}; name the .toml it was exported with"
        )
        raise InputError(message)
    chosen = read_labels(labels) if labels else artifact.lineage.labels or inputs.labels
    problems = manifest.labels_problems(chosen, artifact.outputs)
    if problems:
        message = f"{labels or artifact.path}: {problems[0]}; name a file with one label a line with --labels"
        raise InputError(message)
    return replace(
        artifact,
        lineage=replace(artifact.lineage, labels=chosen, preprocessing=told or inputs.preprocessing),
    )


def _copied(artifact: Artifact, path: Path) -> Artifact:
    shutil.copyfile(artifact.path, path)
    return replace(artifact, path=path)


def _write_facts(artifact: Artifact, content: Path, report: Path | None) -> None:
    lineage = artifact.lineage
    if lineage.labels:
        (content / manifest.LABELS).write_text("\n".join(lineage.labels) + "\n", encoding="utf-8")
    steps = {"preprocessing": to_json(lineage.preprocessing), "embedded": to_json(lineage.embedded)}
    manifest.write(steps, content / manifest.PREPROCESSING)
    if report:
        manifest.write(json.loads(report.read_text(encoding="utf-8")), content / manifest.REPORT)


def _write_golden(
    artifact: Artifact,
    runtimes: Sequence[tuple[AgentRuntime, str]],
    inputs: Inputs,
    content: Path,
    said: Callable[[str], None],
) -> dict[str, Any]:
    """The .npy files, and what the manifest says of them. Raises InputError where an output is not finite.

    The first runtime's outputs are the golden ones. Every other has its own, since kernels of runtimes round otherwise.
    """
    folder = _made(content / "golden")
    files = _saved(inputs.arrays, folder, "input")
    outputs = golden.run(artifact, runtimes[0][0], files)
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            message = f"{artifact.path.name}: output {name!r} is not finite on the golden samples; name --data"
            raise InputError(message)
    tolerance = _tolerance(artifact, runtimes[0][0])
    others = {}
    for runtime, version in runtimes[1:]:
        try:
            found = golden.run(artifact, runtime, files)
        except EdgedlError as e:
            said(f"{runtime.name} {version} does not run it: {e}")
            continue
        places = _places(_saved(found, folder, f"{runtime.name}_output"))
        others[runtime.name] = {"version": version, "outputs": places, "tolerance": _tolerance(artifact, runtime)}
        for spec in artifact.outputs:
            unit, limit = tolerance[spec.name]["unit"], tolerance[spec.name]["value"]
            off = golden.difference(spec, unit, outputs[spec.name], found[spec.name])
            if off > limit:
                said(f"output {spec.name!r} of {runtime.name} is up to {off:.3g} {unit} from {runtimes[0][0].name}'s")
    return {
        "samples": len(next(iter(inputs.arrays.values()))),
        "source": inputs.source,
        "inputs": _places(files),
        "outputs": _places(_saved(outputs, folder, "output")),
        "tolerance": tolerance,
        "runtimes": others,
    }


def _tolerance(artifact: Artifact, runtime: AgentRuntime) -> dict[str, dict[str, Any]]:
    return {spec.name: golden.tolerance(spec, artifact.scheme, runtime.name) for spec in artifact.outputs}


def _places(files: Mapping[str, Path]) -> dict[str, str]:
    """Files of the folder `golden` by name, as the manifest names them."""
    return {name: f"{path.parent.name}/{path.name}" for name, path in files.items()}


def _saved(arrays: Mapping[str, NDArray[Any]], folder: Path, side: str) -> dict[str, Path]:
    """One .npy an array, numbered: a tensor's name need not be a file's."""
    paths = {name: folder / f"{side}_{i}.npy" for i, name in enumerate(arrays)}
    for name, path in paths.items():
        np.save(path, arrays[name])
    return paths


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder

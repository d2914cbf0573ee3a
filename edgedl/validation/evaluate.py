"""Outputs of an artifact over a data set, as memory-mapped .npy files, and what of the preprocessing it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import artifacts, preprocessing, worker
from edgedl.data import Dataset
from edgedl.devices import Place
from edgedl.errors import InputError
from edgedl.preprocessing.op import Op
from edgedl.types import AgentRuntime, Artifact, to_json


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How an artifact is run: the runtime, its kernels, the threads of one interpreter, and where, if not here."""

    runtime: AgentRuntime
    resolver: str | None = None
    threads: int = 1
    place: Place | None = None


def request(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The agent's `run` request for an artifact on these inputs, .npy by name."""
    return {
        "artifact": str(artifact.path.resolve()),
        "runtime": setting.runtime.name,
        "resolver": setting.resolver,
        "threads": setting.threads,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "straight": bool(artifact.lineage.embedded),
        "quantization": {s.name: [s.scale, s.zero_point] for s in (*artifact.inputs, *artifact.outputs)},
    }


def outputs(
    artifact: Artifact, setting: Setting, inputs: Mapping[str, Path], *, workers: int | None = None
) -> dict[str, Path]:
    """Run every sample, one interpreter a core: (samples, ...) float32 real values by output name."""
    folder = worker.pool().scratch("outputs")
    files = {spec.name: folder / f"{i}.npy" for i, spec in enumerate(artifact.outputs)}
    asked = request(artifact, setting, inputs) | {
        "outputs": {name: str(path) for name, path in files.items()},
        "workers": workers,
    }
    interpreter = artifacts.interpreter_of(setting.runtime)
    worker.call("run", asked, child=artifacts.child_of(setting.runtime), interpreter=interpreter)
    return files


def left_to_the_app(artifact: Artifact, dataset: Dataset) -> tuple[Op, ...]:
    """The data's preprocessing without what is inside the artifact already. Raises InputError where they differ."""
    inside = to_json(artifact.lineage.embedded)
    left = dataset.ops[: len(dataset.ops) - len(inside)]
    last = to_json(preprocessing.to_json(dataset.ops[len(left) :]))
    if last != inside:
        message = (
            f"{artifact.path}: has the preprocessing {inside} inside, {dataset.source} ends with {last}; "
            "name the .toml it was exported with"
        )
        raise InputError(message)
    return left

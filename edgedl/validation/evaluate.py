"""Outputs of an artifact over a data set, as memory-mapped .npy files, and what of the preprocessing it is fed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import artifacts, data, preprocessing, worker
from edgedl.data import Dataset
from edgedl.devices import Place
from edgedl.errors import InputError
from edgedl.preprocessing.op import Op
from edgedl.types import AgentRuntime, Artifact, to_json


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How an artifact is run: the runtime, its kernels, the threads of one interpreter, and where, if not here.

    A device that gives times alone may have another `delegate`, "gpu" or "npu", than the kernels that give outputs.
    """

    runtime: AgentRuntime
    resolver: str | None = None
    delegate: str | None = None
    threads: int = 1
    place: Place | None = None


def request(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The agent's `run` request for an artifact on these inputs, .npy by name."""
    return {
        "artifact": str(artifact.path.resolve()),
        "runtime": setting.runtime.name,
        "model": setting.runtime.model,
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
    if not setting.runtime.parallel:
        return _in_processes(asked, setting, files)
    interpreter = artifacts.interpreter_of(setting.runtime)
    worker.call("run", asked, child=artifacts.child_of(setting.runtime), interpreter=interpreter)
    return files


def _in_processes(asked: dict[str, Any], setting: Setting, files: Mapping[str, Path]) -> dict[str, Path]:
    """A child a core, each with a share of the samples, for a runtime whose threads wait for one another."""
    count = min(len(np.load(path, mmap_mode="r")) for path in asked["inputs"].values())
    shares = max(1, min(len(os.sched_getaffinity(0)), count // 32))
    bounds = [count * i // shares for i in range(shares + 1)]
    parts = [{name: path.with_suffix(f".{i}.npy") for name, path in files.items()} for i in range(shares)]

    def run(i: int) -> None:
        child = artifacts.child_of(setting.runtime) + (f"-{i}" if i else "")
        told = {name: str(path) for name, path in parts[i].items()}
        share = {"outputs": told, "workers": 1, "start": bounds[i], "stop": bounds[i + 1]}
        worker.call("run", asked | share, child=child, interpreter=artifacts.interpreter_of(setting.runtime))

    for started in [worker.begin(partial(run, i)) for i in range(shares)]:
        started.result()
    for name, path in files.items():
        data.write_slices(path, (np.load(part[name], mmap_mode="r") for part in parts))
        for part in parts:
            part[name].unlink()
    return dict(files)


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

"""An artifact on a target's device: its outputs, and what else that device can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import worker
from edgedl.data import file_sha256
from edgedl.errors import InputError, WorkerError
from edgedl.types import Artifact, Check, Count, CountingDevice, Device, Method
from edgedl.validation import evaluate
from edgedl.validation.evaluate import Setting
from edgedl.validation.gates import Gates

TIMEOUT_S = 900.0  # without a sign of progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Ran:
    """Outputs (.npy by name) and where they come from; `count` of an emulated core, `timing` of a real device.

    `where` is "" for this machine. `timing` has the keys of the agent's `run`, with `repeats` inferences.
    """

    outputs: dict[str, Path]
    method: Method = Method.MEASURED_HOST
    where: str = ""
    count: Count | None = None
    timing: Mapping[str, Any] | None = None
    note: str = ""

    def notes(self, target: str) -> list[str]:
        """What the user should hear: whose outputs these are, and what could not be had."""
        return [
            f"target {target}: {said}"
            for said in (self.where and f"outputs are those of {self.where}", self.note)
            if said
        ]


def run_all(artifact: Artifact, settings: Sequence[Setting], inputs: Mapping[str, Path], *, repeats: int) -> list[Ran]:
    """Every sample in each setting; devices work side by side. Raises what the first of them raises."""
    started = [worker.begin(_starter(artifact, s, inputs, repeats)) if s.place else None for s in settings]
    here = [None if s.place else Ran(outputs=evaluate.outputs(artifact, s, inputs)) for s in settings]
    return [ran or waited.result() for ran, waited in zip(here, started, strict=True)]  # type: ignore[union-attr]


def _starter(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path], repeats: int) -> Callable[[], Ran]:
    return lambda: run(artifact, setting, inputs, repeats=repeats)


def run(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path], *, repeats: int) -> Ran:
    """Every sample on the setting's device. Raises InputError, WorkerError."""
    assert setting.place is not None  # noqa: S101
    with setting.place.opened() as device:
        asked = _pushed(device, evaluate.request(artifact, setting, inputs))
        version = _version(device, setting)
        counted = worker.begin(lambda: counting(device, asked)) if isinstance(device, CountingDevice) else None
        outputs = _outputs(device, artifact, asked, inputs)
        measured = device.method is Method.MEASURED_DEVICE
        count, note = counted.result() if counted else (None, "")
        kernels = f" ({setting.resolver})" if setting.resolver else ""
        return Ran(
            outputs=outputs,
            method=device.method,
            where=f"{version}{kernels} on {device.name}",
            count=count,
            timing=timing(device, asked, repeats) if measured else None,
            note=note,
        )


def counting(device: CountingDevice, asked: Mapping[str, Any]) -> tuple[Count | None, str]:
    """The instructions of an inference, or why they are not counted."""
    try:
        return device.count(asked, TIMEOUT_S), ""
    except InputError as e:
        return None, f"instructions are not counted: {e}"


def timing(device: Device, asked: Mapping[str, Any], repeats: int) -> Mapping[str, Any]:
    """The first sample, `repeats` times after a warm-up."""
    return device.call("run", {**asked, "stop": 1, "warmup": 10, "repeats": repeats}, TIMEOUT_S)


def _pushed(device: Device, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the paths that its files have on the device."""

    def push(path: str) -> str:
        return device.push(Path(path), file_sha256(Path(path)))

    return {**asked, "artifact": push(asked["artifact"]), "inputs": {k: push(v) for k, v in asked["inputs"].items()}}


def _version(device: Device, setting: Setting) -> str:
    """The runtime with its version there. Raises InputError where it does not start."""
    name = setting.runtime.name
    found = device.call("info", {"runtimes": [name]}, TIMEOUT_S)["runtimes"][name]
    if found["version"] is None and found["why"] is not None:
        message = f"{name} does not start on {device.name}: {found['why']}. There: {setting.runtime.install}"
        raise InputError(message)
    return f"{name} {found['version'] or ''}".strip()


def _outputs(
    device: Device, artifact: Artifact, asked: Mapping[str, Any], inputs: Mapping[str, Path]
) -> dict[str, Path]:
    folder = worker.pool().scratch("outputs")
    files = {spec.name: folder / f"{i}.npy" for i, spec in enumerate(artifact.outputs)}
    device.call("run", {**asked, "outputs": {name: str(path) for name, path in files.items()}}, TIMEOUT_S)
    samples = min(len(np.load(path, mmap_mode="r")) for path in inputs.values())
    for spec in artifact.outputs:
        _check_answer(device, files[spec.name], (samples, *spec.shape[1:]), spec.name)
    return files


def _check_answer(device: Device, file: Path, wanted: tuple[int | None, ...], name: str) -> None:
    """Raises WorkerError where the device's answer is no array of float32 and of the shape that the file promises."""
    try:
        found = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as e:
        message = f"{device.name} gave no array for output {name!r}: {e}"
        raise WorkerError(message) from e
    fits = found.ndim == len(wanted) and all(w in (None, f) for w, f in zip(wanted, found.shape, strict=True))
    if found.dtype != np.float32 or not fits:
        message = f"{device.name} gave {found.dtype} {found.shape} for output {name!r}, not float32 {wanted}"
        raise WorkerError(message)


def relabelled(checks: Sequence[Check], ran: Ran) -> list[Check]:
    """Checks of outputs with the method that those outputs come by; the reference ran here."""
    return [
        c if c.method is not Method.MEASURED_HOST or c.name.endswith("_reference") else replace(c, method=ran.method)
        for c in checks
    ]


def figures(ran: Ran, gates: Gates, target: str | None) -> list[Check]:
    """Instructions of an emulated core; times and memory of a real device."""
    checks = []
    if ran.count:
        count = ran.count
        kernels = f" with {count.resolver}" if count.resolver else ""
        kinds = ", ".join(f"{kind} {n / count.instructions:.0%}" for kind, n in count.classes.items())
        why = f"{count.core}, {count.emulator}, {count.runtime}{kernels}, {count.threads} thread(s): {kinds}"
        checks.append(gates.check("instructions", count.instructions, method=ran.method, target=target, why=why))
    if ran.timing:
        times = np.array(ran.timing["nanoseconds"]) / 1e6
        why = f"{ran.where}, {len(times)} inferences"
        figures_ = {
            "load_ms": ran.timing["load_ms"],
            "first_inference_ms": ran.timing["first_inference_ms"],
            "latency_ms": float(np.median(times)),
            "latency_p90_ms": float(np.percentile(times, 90)),
            "peak_rss_bytes": ran.timing["peak_rss_bytes"],
        }
        checks += [
            gates.check(name, value, method=ran.method, target=target, why=why) for name, value in figures_.items()
        ]
    return checks

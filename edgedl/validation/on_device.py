"""An artifact on a target's device: its outputs, and what else that device can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import worker
from edgedl.data import file_sha256
from edgedl.errors import EdgedlError, InputError, UnsupportedError, WorkerError
from edgedl.types import Artifact, Check, Count, CountingDevice, Device, Method, Times, TimingDevice
from edgedl.validation import evaluate
from edgedl.validation.evaluate import Setting
from edgedl.validation.gates import Gates

TIMEOUT_S = 900.0  # without a sign of progress
TIMES = ("load_ms", "first_inference_ms", "peak_rss_bytes", "latency_ms", "latency_p90_ms")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a device tells beside outputs: `count` of an emulated core, `times` of a real device.

    `where` names runtime, version and device, which gave the outputs if it `runs`; `note` says what could not be had.
    """

    where: str
    method: Method
    runs: bool = True
    count: Count | None = None
    times: Times | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ran:
    """Outputs, .npy by name, and the figures of the device they come from, None for this machine.

    `refused` is why the runtime does not take the file, `lost` why the device could not be had or did not answer; there
    are no outputs then.
    """

    outputs: dict[str, Path] = field(default_factory=dict)
    figures: Figures | None = None
    refused: str = ""
    lost: str = ""

    def notes(self, target: str) -> list[str]:
        """What the user should hear: whose outputs these are, and what could not be had."""
        if self.figures is None:
            return []
        said = [self.figures.note]
        if self.figures.runs:
            said = [f"outputs are those of {self.figures.where}", *said]
        elif self.figures.times:
            said = [f"times are those of {self.figures.where}, outputs this machine's", *said]
        return [f"target {target}: {text}" for text in said if text]


def run_all(
    artifact: Artifact,
    settings: Sequence[Setting],
    inputs: Mapping[str, Path],
    *,
    repeats: int,
    chosen: bool = True,
    alone: bool = True,
) -> list[Ran]:
    """Every sample in each setting; devices work side by side.

    A target's own runtime, which the user has not `chosen`, may refuse the file. A device that cannot be had or fails
    raises what it raises if it is `alone`, and else leaves the others to their work.
    """
    started = [worker.begin(_starter(artifact, s, inputs, repeats)) if s.place else None for s in settings]
    here = [None if _runs(s) else _here(artifact, s, inputs, chosen=chosen) for s in settings]
    there = [_awaited(waited, alone=alone) if waited else None for waited in started]
    return [_together(*pair) for pair in zip(here, there, strict=True)]


def _awaited(running: Future[Ran], *, alone: bool) -> Ran:
    try:
        return running.result()
    except EdgedlError as e:
        if alone:
            raise
        return Ran(lost=str(e))


def _runs(setting: Setting) -> bool:
    """Whether the outputs come from the setting's device."""
    return setting.place is not None and setting.place.gives == "outputs"


def _together(here: Ran | None, there: Ran | None) -> Ran:
    """Outputs of this machine with the figures of a device that gives none."""
    if here is None or there is None:
        return here or there or Ran()
    return replace(here, figures=there.figures, lost=there.lost)


def _here(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path], *, chosen: bool) -> Ran:
    try:
        return Ran(outputs=evaluate.outputs(artifact, setting, inputs))
    except (InputError, WorkerError) as e:
        if chosen or setting.runtime.model is None:
            raise
        return Ran(refused=str(e))


def _starter(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path], repeats: int) -> Callable[[], Ran]:
    return lambda: run(artifact, setting, inputs, repeats=repeats)


def run(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path], *, repeats: int) -> Ran:
    """Every sample on the setting's device, figures alone where it gives no outputs. Raises InputError, WorkerError."""
    assert setting.place is not None  # noqa: S101
    if not _runs(setting):
        return Ran(figures=figures_of(artifact, setting, inputs, repeats=repeats))
    with setting.place.opened() as device:
        where = _where(device, setting)
        asked = _pushed(device, evaluate.request(artifact, setting, inputs))
        measuring = worker.begin(lambda: _figures(device, where, asked, repeats))
        if device.method is Method.MEASURED_DEVICE:
            measuring.result()  # alone: nothing else may disturb its times
        outputs = _outputs(device, artifact, asked, inputs)
        return Ran(outputs=outputs, figures=measuring.result())


def figures_of(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path], *, repeats: int) -> Figures:
    """What the setting's device tells of the first sample, without outputs. Raises InputError, WorkerError."""
    assert setting.place is not None  # noqa: S101
    with setting.place.opened() as device:
        if not _runs(setting):
            asked = asked_of(artifact, setting, inputs)
            return replace(_figures(device, device.name, asked, repeats), runs=False)
        where = _where(device, setting)
        return _figures(device, where, _pushed(device, evaluate.request(artifact, setting, inputs)), repeats)


def asked_of(artifact: Artifact, setting: Setting, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The request to a device that gives no outputs."""
    return evaluate.request(artifact, setting, inputs) | {"resolver": setting.delegate or setting.resolver}


def _figures(device: Device, where: str, asked: Mapping[str, Any], repeats: int) -> Figures:
    count, note = counting(device, asked) if isinstance(device, CountingDevice) else (None, "")
    times = timing(device, asked, repeats) if device.method is Method.MEASURED_DEVICE else None
    return Figures(where=where, method=device.method, count=count, times=times, note=note)


def counting(device: CountingDevice, asked: Mapping[str, Any]) -> tuple[Count | None, str]:
    """The instructions of an inference, or why they are not counted."""
    try:
        return device.count(asked, TIMEOUT_S), ""
    except (InputError, UnsupportedError) as e:
        return None, f"instructions are not counted: {e}"


def timing(device: Device, asked: Mapping[str, Any], repeats: int) -> Times:
    """The first sample, `repeats` times after a warm-up."""
    if isinstance(device, TimingDevice):
        return device.time(asked, repeats, TIMEOUT_S)
    told = device.call("run", {**asked, "stop": 1, "warmup": 10, "repeats": repeats}, TIMEOUT_S)
    milliseconds = np.array(told["nanoseconds"]) / 1e6
    return Times(
        latency_ms=float(np.median(milliseconds)),
        latency_p90_ms=float(np.percentile(milliseconds, 90)),
        load_ms=told["load_ms"],
        first_inference_ms=told["first_inference_ms"],
        peak_rss_bytes=told["peak_rss_bytes"],
        inferences=len(milliseconds),
    )


def _pushed(device: Device, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the paths that its files have on the device."""

    def push(path: str) -> str:
        return device.push(Path(path), file_sha256(Path(path)))

    return {**asked, "artifact": push(asked["artifact"]), "inputs": {k: push(v) for k, v in asked["inputs"].items()}}


def _where(device: Device, setting: Setting) -> str:
    """The runtime with its version and kernels, and the device. Raises InputError where it does not start there."""
    name = setting.runtime.name
    found = device.call("info", {"runtimes": [name]}, TIMEOUT_S)["runtimes"][name]
    if found["version"] is None and found["why"] is not None:
        message = f"{name} does not start on {device.name}: {found['why']}. There: {setting.runtime.install}"
        raise InputError(message)
    version = f" {found['version']}" if found["version"] else ""
    kernels = f" ({setting.resolver})" if setting.resolver else ""
    return f"{name}{version}{kernels} on {device.name}"


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
    except (OSError, EOFError, ValueError) as e:
        message = f"{device.name} gave no array for output {name!r}: {e}"
        raise WorkerError(message) from e
    fits = found.ndim == len(wanted) and all(w in (None, f) for w, f in zip(wanted, found.shape, strict=True))
    if found.dtype != np.float32 or not fits:
        message = f"{device.name} gave {found.dtype} {found.shape} for output {name!r}, not float32 {wanted}"
        raise WorkerError(message)


def relabelled(checks: Sequence[Check], ran: Ran) -> list[Check]:
    """Checks of outputs with the method that those outputs come by; the reference ran here."""
    method = ran.figures.method if ran.figures and ran.figures.runs else Method.MEASURED_HOST
    return [
        c if c.method is not Method.MEASURED_HOST or c.name.endswith("_reference") else replace(c, method=method)
        for c in checks
    ]


def checks(figures: Figures | None, gates: Gates, target: str | None) -> list[Check]:
    """Instructions of an emulated core; times and memory of a real device."""
    found: dict[str, tuple[float, str]] = {}
    if figures and (count := figures.count):
        kernels = f" with {count.resolver}" if count.resolver else ""
        kinds = ", ".join(f"{kind} {n / count.instructions:.0%}" for kind, n in count.classes.items())
        under = f"{count.core}, {count.emulator}, {count.runtime}{kernels}, {count.threads} thread(s)"
        found["instructions"] = (count.instructions, f"{under}: {kinds}" if kinds else under)
    if figures and (times := figures.times):
        why = f"{figures.where}, {times.inferences} inferences"
        told = {name: getattr(times, name) for name in TIMES}
        found |= {name: (value, why) for name, value in told.items() if value is not None}
        found["latency_ms"] = (times.latency_ms, f"{why}, their {times.kind}")
    return [
        gates.check(name, value, method=figures.method, target=target, why=why)  # type: ignore[union-attr]
        for name, (value, why) in found.items()
    ]

"""`edgedl benchmark` on the devices of its targets: instructions on an emulated core, times on a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedl import devices, worker
from edgedl.errors import EdgedlError
from edgedl.latency import instructions
from edgedl.types import Artifact, Target
from edgedl.validation import on_device
from edgedl.validation.evaluate import Setting
from edgedl.validation.on_device import Figures
from edgedl.validation.settings import setting_for

Entry = tuple[Artifact, Mapping[str, Path]]  # with one sample an input


def rows(
    entries: Sequence[Entry], profiles: Sequence[Target], *, runtime: str | None, threads: int, repeats: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row an artifact and target that has a device here, and what the user should hear.

    Devices work side by side, the artifacts of one board one after the other.
    A device that is not reached or fails raises where its target is the only one, else it is left out with a note, as
    is a file that its target does not take.
    """
    reached = [p for p in profiles if devices.place_of(p)[0] is not None]
    asked = [
        (target, entry, *setting_for(entry[0], target, runtime=runtime, threads=threads))
        for target in reached
        for entry in entries
    ]
    wanted = {(s, str(entry[0].path)): (s, entry) for _, entry, s, _ in asked if s.place}
    started = {
        key: worker.begin(lambda s=s, e=entry: on_device.figures_of(e[0], s, e[1], repeats=repeats))  # type: ignore[misc]
        for key, (s, entry) in wanted.items()
    }
    found, notes = [], []
    for target, (artifact, _), setting, said in asked:
        if setting.place is None:
            notes.append(f"target {target.id}: nothing of {artifact.path}: {_not_taken(artifact, target)}")
            continue
        notes += said if setting.place.gives == "outputs" else []
        try:
            figures = started[setting, str(artifact.path)].result()
        except EdgedlError as e:
            if len(profiles) < 2:
                raise
            notes.append(f"target {target.id}: nothing of {artifact.path}: {e}")
            continue
        found.append(_row(artifact, target, setting, figures))
        notes += [f"target {target.id}: {figures.note}"] if figures.note else []
        notes += [instructions.beside(figures.count.core)] if figures.count else []
    return found, list(dict.fromkeys(notes))


def _not_taken(artifact: Artifact, target: Target) -> str:
    """Why a target's device does not run a file."""
    if artifact.format not in target.formats:
        return f"it takes {', '.join(target.formats)}, not {artifact.format}"
    runtimes = ", ".join(r.name for r in target.runtimes if r.format in (None, artifact.format))
    return f"no plugin provides its {runtimes}" if runtimes else f"its profile names no runtime for {artifact.format}"


def _row(artifact: Artifact, target: Target, setting: Setting, figures: Figures) -> dict[str, Any]:
    row: dict[str, Any] = {
        "artifact": str(artifact.path),
        "format": artifact.format,
        "scheme": artifact.scheme,
        "runtime": setting.runtime.name,
        "resolver": setting.delegate or setting.resolver,
        "target": target.id,
        "threads": setting.threads,
        "latency_ms": None,
        "size_bytes": artifact.size_bytes,
        "method": figures.method.value,
        "device": figures.where,
        "notes": [figures.note] if figures.note else [],
    }
    if count := figures.count:
        row |= {
            "instructions": count.instructions,
            "instruction_classes": count.classes,
            "core": count.core,
            "emulator": count.emulator,
            "runtime_version": count.runtime,
            "inference": count.inference,
        }
    if times := figures.times:
        told = {name: getattr(times, name) for name in on_device.TIMES}
        row |= {name: value for name, value in told.items() if value is not None} | {"repeats": times.inferences}
    return row

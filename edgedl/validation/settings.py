"""Which runtime, kernels and device an artifact is run with for a target."""

from __future__ import annotations

from edgedl import artifacts, devices
from edgedl.agent import CPU_KERNELS
from edgedl.types import AgentRuntime, Artifact, Target, TargetRuntime
from edgedl.validation.evaluate import Setting

_MISSED = {
    "outputs": "outputs are this machine's, not its device's",
    "instructions": "instructions are not counted",
    "times": "times are not measured",
}


def setting_for(
    artifact: Artifact, target: Target | None, *, runtime: str | None, threads: int, counted: bool = True
) -> tuple[Setting, list[str]]:
    """Those that come nearest to the target's, and what the user should know of the difference.

    `runtime` is the user's choice; a device that only counts instructions is left out unless they are to be `counted`.
    Raises PluginError, InputError.
    """
    format_ = artifact.format
    if target is None:
        return Setting(runtime=artifacts.runtime_for(format_, runtime), threads=threads), []
    place, missing = devices.place_of(target) if format_ in target.formats else (None, "")
    gives = devices.gives(target)
    if gives == "instructions" and not counted:
        place, missing = None, ""
    said = [f"target {target.id}: {_MISSED[gives]}: {missing}"] if missing else []
    if runtime:
        return Setting(runtime=artifacts.runtime_for(format_, runtime), threads=threads, place=place), said
    offered = [r for r in target.runtimes if r.format in (None, format_)]
    broken = ""
    for found in offered:
        if found.name in artifacts.runtimes(format_):
            chosen = artifacts.runtime_for(format_, found.name)
            why = "" if place and gives == "outputs" else artifacts.why_not(chosen)
            if not why:
                kernels, delegate = _kernels(chosen, found), _delegate(found)
                if delegate:
                    run_by = kernels or chosen.name
                    said.append(f"target {target.id}: outputs are those of {run_by} on the CPU, in place of {delegate}")
                return Setting(
                    runtime=chosen, resolver=kernels, delegate=delegate if place and gives == "times" else None,
                    threads=threads, place=place,
                ), said  # fmt: skip
            broken = f", which does not start here: {why}. Try: {chosen.install}"
    nearest = artifacts.runtime_for(format_)
    resolver = _kernels(nearest, offered[0]) if offered else None
    named = offered[0].name if offered else "no runtime for this format"
    kernels = f"{nearest.name} with {resolver} kernels" if resolver else nearest.name
    note = f"target {target.id}: outputs are those of {kernels} on this machine, in place of {named}{broken}"
    return Setting(runtime=nearest, resolver=resolver, threads=threads, place=None if gives == "outputs" else place), [
        note
    ]


def _delegate(found: TargetRuntime) -> str | None:
    """What takes its operators instead of the CPU."""
    return found.resolver if found.resolver in ("gpu", "npu") else None


def _kernels(chosen: AgentRuntime, found: TargetRuntime) -> str | None:
    """The kernels of a target's runtime; for those of a GPU or an NPU, which nothing here has, the CPU's."""
    if not _delegate(found):
        return found.resolver
    usual = "xnnpack" if chosen.format == "tflite" and chosen.model is None else None
    return next((kernels for kernels in found.fallback if kernels in CPU_KERNELS), usual)

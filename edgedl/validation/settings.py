"""Which runtime, kernels and device an artifact is run with for a target."""

from __future__ import annotations

from edgedl import artifacts, devices
from edgedl.types import Artifact, Target
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
                return Setting(runtime=chosen, resolver=found.resolver, threads=threads, place=place), said
            broken = f", which does not start here: {why}. Try: {chosen.install}"
    nearest = artifacts.runtime_for(format_)
    resolver = offered[0].resolver if offered else None
    named = offered[0].name if offered else "no runtime for this format"
    kernels = f"{nearest.name} with {resolver} kernels" if resolver else nearest.name
    note = f"target {target.id}: outputs are those of {kernels} on this machine, in place of {named}{broken}"
    return Setting(runtime=nearest, resolver=resolver, threads=threads, place=None if gives == "outputs" else place), [
        note
    ]

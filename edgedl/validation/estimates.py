"""What runtime plugins tell of an artifact on a target beside its outputs: the arena, an NPU's share; judged here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedl import artifacts, plugins, worker
from edgedl.errors import UnsupportedError, WorkerError
from edgedl.types import AgentRuntime, Artifact, Check, Method, Target, Verdict, to_json
from edgedl.validation.gates import UNITS, Gates

# A predicted arena passes only with this much room: allocation order, alignment and releases of TFLM differ.
MARGIN = 0.1
TIMEOUT_S = 300
TOLD = {"kernels_max_lsb": 0, "kernels_max_abs": 1e-5}  # whose reason is a note where it is more


def checks(
    artifact: Artifact, target: Target, gates: Gates, inputs: Mapping[str, Path] | None = None
) -> tuple[list[Check], list[str]]:
    """The figures of every runtime that the profile names and a plugin here knows; what could not be told, as notes."""
    found: list[Check] = []
    notes = []
    for runtime in _tellers(artifact, target):
        try:
            found += _ask(runtime, artifact, target, inputs or {})
        except (UnsupportedError, WorkerError) as e:
            notes.append(f"target {target.id}: no figures of {runtime.name}: {e}")
    notes += [f"target {target.id}: {c.why}" for c in found if (c.measured or 0) > TOLD.get(c.name, math.inf)]
    return [_judge(check, gates, target) for check in found], notes


def _tellers(artifact: Artifact, target: Target) -> list[AgentRuntime]:
    installed = {p.name for p in plugins.listing("runtimes")}
    found = []
    for named in target.runtimes:
        if named.name in installed and named.format in (None, artifact.format):
            runtime: AgentRuntime = plugins.load("runtimes", named.name)
            wanted = runtime.figures_for
            if runtime.figures and (not wanted or set(wanted) & set(named.delegates)):
                found.append(runtime)
    return found


def _ask(runtime: AgentRuntime, artifact: Artifact, target: Target, inputs: Mapping[str, Path]) -> list[Check]:
    asked = {
        "path": str(artifact.path.resolve()),
        "target": to_json(target),
        "inputs": {name: str(path) for name, path in inputs.items()},
        "straight": bool(artifact.lineage.embedded),
    }
    told: list[dict[str, Any]] = worker.call(
        str(runtime.figures),
        asked,
        child=artifacts.child_of(runtime),
        interpreter=artifacts.interpreter_of(runtime),
        timeout_s=TIMEOUT_S,
    )
    return [Check(**{**c, "method": Method(c["method"]), "verdict": Verdict(c["verdict"])}) for c in told]


def _judge(check: Check, gates: Gates, target: Target) -> Check:
    if check.name == "arena_bytes":
        return _arena(check, gates, target)
    if check.name not in UNITS:
        return check
    return gates.check(
        check.name, check.measured, method=check.method, target=check.target, low=check.low, high=check.high,
        why=check.why,
    )  # fmt: skip


def _arena(check: Check, gates: Gates, target: Target) -> Check:
    """Against the user's limit or the RAM in one piece, the smaller. Without an upper end it never passes.

    It is then for information only where the user sets no limit.
    """
    limits = {
        "the RAM in one piece": target.memory.get("contiguous_ram_bytes"),
        "the RAM": target.memory.get("ram_bytes"),
        "the limit": gates.limits.get("arena_bytes"),
    }
    name, limit = min(((n, v) for n, v in limits.items() if v is not None), key=lambda e: e[1], default=("", None))
    if limit is None or check.measured is None:
        return check
    low, high = check.low or check.measured, check.high
    if low > limit:
        verdict, said = Verdict.FAIL, f"more than {name}, {limit:,.0f} bytes"
    elif high is None:
        verdict = Verdict.INCONCLUSIVE if "arena_bytes" in gates.limits else Verdict.INFO
        said = f"{name} has {limit:,.0f} bytes, and part of the arena is not known"
    elif high * (1 + MARGIN) <= limit:
        verdict, said = Verdict.PASS, f"at most {high / limit:.1%} of {name}, {limit:,.0f} bytes"
    else:
        verdict = Verdict.INCONCLUSIVE
        said = f"too near to {name}, {limit:,.0f} bytes, for a prediction with a margin of {MARGIN:.0%}"
    return replace(check, limit=limit, verdict=verdict, why=f"{said}; {check.why}")

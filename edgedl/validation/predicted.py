"""The latency of an artifact on a target that is not at hand, predicted from published figures and judged."""

from __future__ import annotations

from dataclasses import replace

from edgedl.latency import prediction, requests
from edgedl.types import ArtifactInfo, Check, Method, Target, Verdict
from edgedl.validation.gates import Gates


def latency(
    info: ArtifactInfo, target: Target, gates: Gates, *, runtime: str | None = None, threads: int | None = None
) -> list[Check]:
    """`latency_ms` with its interval: it passes and fails as a whole. Refused, it is unchecked under a limit only.

    `runtime` and `threads` are the user's; None is the profile's runtime, and as many threads as published.
    """
    if target.id == requests.HOST:
        return []
    found = requests.of_artifact("", info, prediction.places(target, runtime, threads))
    if found.refused and "latency_ms" not in gates.limits:
        return []
    plain = f"multiply-accumulates per clock alone: {found.macs_per_clock_ms:.4g} ms" if found.macs_per_clock_ms else ""
    why = f"no prediction: {found.refused}" if found.refused else f"90 % interval; {found.basis}; {plain}"
    check = gates.check(
        "latency_ms", found.latency_ms, method=Method.PREDICTED, target=target.id, low=found.low, high=found.high,
        why=why,
    )  # fmt: skip
    if check.verdict is Verdict.INCONCLUSIVE:
        return [replace(check, why=f"the interval holds the limit; {why}")]
    return [check]

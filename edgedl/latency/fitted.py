"""From published figures to the file that predictions are made from: costs, intervals, and errors on what was left out.

All runtimes of a platform are fitted together: they share what cores and costs have in common, and keep a cost of
their own for everything, so that no figure of one runtime, precision or number of threads is ever taken for
another's. The interval of a runtime with
many networks rests on its own errors; those with the four of MLPerf Tiny share one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.latency import evaluation, platforms
from edgedl.latency.evaluation import Guess
from edgedl.latency.features import FEATURES
from edgedl.latency.figures import FOLDER, Figure
from edgedl.latency.hierarchy import Hierarchy, Row

if TYPE_CHECKING:
    from edgedl.types import Array

MODELS = FOLDER / "models.json"
FORMAT = 2  # of that file; what an older one says is read no more
ALONE = 6  # families of networks from which on a runtime has an interval of its own
LEFT_OUT: dict[str, Callable[[Row], str]] = {
    "family": lambda r: r.family,
    "board": lambda r: r.board,
    "runtime on a core": lambda r: f"{r.runtime} {r.core}",
}
FEWEST = 3  # families without which nothing is fitted


def fit(rows: Sequence[Row], found: Sequence[Figure], *, said: Callable[[str], None]) -> dict[str, Any]:
    """The content of models.json: `fits`, each with the costs of its runtimes, and where the figures come from."""
    fits = []
    for name, group, parts in groups(rows):
        said(f"{name}: {len(group)} figures ...")
        fits += _fits(name, group, parts)
    fits = [one for one in fits if one]
    served = {runtime for one in fits for runtime in one["runtimes"]}
    for runtime in sorted({r.runtime for r in rows} - served):
        said(f"left out: {runtime}, since it takes figures of {FEWEST} families of networks on one version and core")
    named = {f.kernels: {"runtime": f.runtime, "precision": f.precision, "threads": f.threads} for f in found}
    for entry in (entry for one in fits for entry in one["entries"]):
        entry |= named[entry["runtime"]]
    return {"format": FORMAT, "features": FEATURES, "fits": fits, "sources": sorted({f.source for f in found})}


def groups(rows: Sequence[Row]) -> list[tuple[str, list[Row], list[tuple[str, ...]]]]:
    """By platform: its name, its rows, and the runtimes to serve, in parts that share an interval."""
    made = []
    for platform in platforms.PLATFORMS.values():
        here = [r for r in rows if platforms.platform_of(r.core) is platform]
        families: dict[str, set[str]] = {r.runtime: set() for r in here}
        for row in here:
            families[row.runtime].add(row.family)
        alone = sorted(runtime for runtime, names in families.items() if len(names) >= ALONE)
        rest = sorted(n for n, names in families.items() if n not in alone and len(names) >= FEWEST)
        parts = [*((name,) for name in alone), *([tuple(rest)] if rest else [])]
        if parts:
            made.append((platform.name, here, parts))
    return made


def left_out(rows: Sequence[Row]) -> dict[str, list[Guess]]:
    """For each way of leaving out, what is then predicted for the figures of a platform."""
    prior = platforms.platform_of(rows[0].core).prior
    return {what: evaluation.leave_out(rows, prior, key) for what, key in LEFT_OUT.items()}


def _fits(name: str, rows: Sequence[Row], parts: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    fitted = evaluation.choose(rows, platforms.platform_of(rows[0].core).prior)
    guesses = left_out(rows)
    return [_part(name, fitted, rows, served, guesses) for served in parts]


def _part(name: str, fitted: Hierarchy, rows: Sequence[Row], served: Sequence[str],
          guesses: dict[str, list[Guess]]) -> dict[str, Any]:  # fmt: skip
    """What is served of a fit with one interval; nothing where too few families can be left out to know it."""
    left = {what: [g for g in some if g.row.runtime in served] for what, some in guesses.items()}
    if len({g.row.family for g in left["family"]}) < FEWEST:
        return {}
    return {
        "platform": name,
        "runtimes": list(served),
        "deviations": evaluation.quantile(left["family"]),
        "spreads": {name: getattr(fitted.spreads, name) for name in fitted.spreads.__dataclass_fields__},
        "macs": [min(r.macs for r in rows), max(r.macs for r in rows)],
        "entries": [_entry(fitted, rows, *place) for place in _places(rows, served)],
        "left_out": {what: _errors(some, left["family"]) if some else [] for what, some in left.items()},
    }


def _places(rows: Sequence[Row], served: Sequence[str]) -> list[tuple[str, str, str]]:
    """Runtime, version and core, every version on every core of the fit."""
    versions = sorted({(r.runtime, r.version) for r in rows if r.runtime in served})
    return [(*version, core) for version in versions for core in sorted({r.core for r in rows})]


def _entry(fitted: Hierarchy, rows: Sequence[Row], runtime: str, version: str, core: str) -> dict[str, Any]:
    costs = fitted.at(runtime=runtime, version=version, core=core)
    own = [r for r in rows if (r.runtime, r.core) == (runtime, core)]
    usual = _usual([r for r in rows if r.runtime == runtime])
    return {
        "runtime": runtime,
        "version": version,
        "core": core,
        "default": version == usual,
        "newer": _number(version) > _number(usual),
        "figures": len(own),
        "families": len({r.family for r in own}),
        "boards": sorted({r.board for r in own}),
        "cycles_per_mac": _rounded(evaluation.cycles_per_mac(rows, runtime, core)),
        "log_cycles": _rounded(costs.log_cycles),
        "covariance": _rounded(costs.covariance[np.triu_indices(len(FEATURES))]),
        "variance": _rounded(costs.variance),
    }


def _usual(rows: Sequence[Row]) -> str:
    """The newest version with figures of FEWEST families; where versions have no number, that with the most figures."""
    families: dict[str, set[str]] = {}
    for row in rows:
        families.setdefault(row.version, set()).add(row.family)
    known = [v for v, names in families.items() if len(names) >= FEWEST] or list(families)
    counted = Counter(r.version for r in rows)
    return max(known, key=lambda v: (_number(v), counted[v]))


def _number(version: str) -> list[int]:
    """`8.1` as [8, 1]; [] for a version that is no number, which counts as old."""
    return [int(n) for n in version.split(".")] if version.replace(".", "").isdigit() else []


def _errors(guesses: Sequence[Guess], among: Sequence[Guess]) -> list[dict[str, Any]]:
    """Errors by board and version, by board, and of all."""
    places = [(g.row.board, g.row.runtime, g.row.version) for g in guesses]
    keys = {*places, *((board, runtime, "all") for board, runtime, _ in places), ("all", "all", "all")}
    found = []
    for key in sorted(keys):
        some = [g for g, at in zip(guesses, places, strict=True)
                if all(k in ("all", a) for k, a in zip(key, at, strict=True))]  # fmt: skip
        named = dict(zip(("board", "runtime", "version"), key, strict=True))
        found.append(named | {k: _rounded(v) for k, v in evaluation.summary(some, among).items()})
    return found


def _rounded(value: Any) -> Any:
    """Four significant digits, so that a fit on another machine gives the same file; None for what is not a number."""
    if isinstance(value, np.ndarray):
        return [_rounded(v) for v in value.tolist()]
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, int):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def covariance_of(upper: Sequence[float]) -> Array:
    """The whole matrix of its upper triangle, as an entry has it."""
    matrix = np.zeros((len(FEATURES), len(FEATURES)))
    matrix[np.triu_indices(len(FEATURES))] = upper
    return np.asarray(matrix + np.triu(matrix, 1).T)

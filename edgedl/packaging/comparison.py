"""Two packages side by side: what changed, what got worse, and the release note that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedl.packaging import interface, release_note, verification
from edgedl.reporting import text
from edgedl.types import Check, Method, Verdict, to_json
from edgedl.validation import statistics
from edgedl.validation.gates import Gates

SIZES = ("size_bytes", "compressed_bytes")
COSTS = ("arena_bytes", "instructions", "cpu_fallback_ops")
TIMES = ("latency_ms", "latency_p90_ms", "first_inference_ms", "load_ms")  # of a host: two sessions do not compare
LEAST_SAMPLES = 30  # of a class or slice that can show a loss
ROUNDING = 1e-12  # of a difference of two figures that were rounded to doubles

Key = tuple[str, str]  # class, slice or the metric's name, and which one


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure of a validation that a release must not lose: of the whole, a class or a slice."""

    about: str
    value: float | None
    samples: int
    unit: str
    higher_is_better: bool = True


def compare(before: Path, after: Path, *, max_drop: str | None = None) -> dict[str, Any]:
    """`{"verdict", "before", "after", "interface", "runtimes", "ops", "figures", "checks", "note"}`.

    `checks` judge: the version's major number, and with `max_drop` the metric, every class and every slice. `figures`
    are sizes and costs with their methods. `note` is Markdown. Raises InputError, GateError: no package that holds.
    """
    old, new = verification.read_manifest(before), verification.read_manifest(after)
    broken = interface.changes(old, new)
    checks = [_version(old, new, broken), *_drops(old, new, Gates(max_drop=max_drop))]
    found = {
        "verdict": Verdict.worst([c.verdict for c in checks]),
        "before": _identity(before, old),
        "after": _identity(after, new),
        "interface": broken,
        "runtimes": list(_runtimes(old, new)),
        "ops": _ops(old, new),
        "figures": list(_figures(old, new)),
        "checks": checks,
    }
    plain: dict[str, Any] = _printable(to_json(found))
    return plain | {"note": release_note.render(plain)}


def _printable(value: Any) -> Any:
    """The same without what a terminal would obey: a package may be anybody's."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value)
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _identity(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: found[key] for key in ("name", "version")}
    return {"package": str(path), **named, "scheme": found["artifact"]["scheme"], "sha256": found["artifact"]["sha256"]}


def _version(old: Mapping[str, Any], new: Mapping[str, Any], broken: list[str]) -> Check:
    """Whether the major number tells of an interface that changed; packages of two names tell nothing."""
    if old["name"] != new["name"]:
        why = f"{old['name']} and {new['name']} are two models, whose versions are not compared"
        return Check(name="version", method=Method.STATIC, why=why)
    if interface.breaks_version(old, new):
        why = f"{broken[0]}, and the major number is still {interface.major(new['version'])}"
        return Check(name="version", method=Method.STATIC, verdict=Verdict.FAIL, why=why)
    return Check(name="version", method=Method.STATIC, verdict=Verdict.PASS)


def _drops(old: Mapping[str, Any], new: Mapping[str, Any], gates: Gates) -> Iterator[Check]:
    """What the metric, each class's recall and each slice lost, worst first; positive is worse."""
    if reason := _incomparable(old["results"], new["results"]):
        gated = Verdict.INFO if gates.max_drop is None else Verdict.UNCHECKED
        yield Check(name="metric_drop", method=Method.STATIC, verdict=gated, why=reason)
        return
    metric = new["results"]["metric"]
    limit = gates.tolerance(metric["unit"], metric["name"])
    before, after = (_scores(m["results"]) for m in (old, new))
    recalls = limit if metric["unit"] == "fraction" else None  # a limit in another unit says nothing of a recall
    limits = {key: recalls if key[0] == "class" else limit for key in {**before, **after}}
    rows = {
        key: replace(_drop(before.get(key), after.get(key), limit), name=_name(*key)) for key, limit in limits.items()
    }
    if limit is not None:
        parts = {key: check for key, check in rows.items() if key[0] in release_note.PARTS}
        rows |= _unproven(parts, before, after, limit)
    yield from sorted(rows.values(), key=lambda check: -(check.measured or 0.0))


def _name(kind: str, which: str) -> str:
    """`accuracy_drop`, and of a class or slice `night.slice_drop`: one name a check."""
    return f"{which}.{kind}_drop" if which else f"{kind}_drop"


def _unproven(
    checks: Mapping[Key, Check], before: Mapping[Key, Score], after: Mapping[Key, Score], limit: float
) -> Iterator[tuple[Key, Check]]:
    """The failures of classes and slices that do not survive Holm's correction, as inconclusive checks.

    Which samples both packages get right is in neither, so they are taken as independent. Two versions of a model are
    not: a loss that is shown so would show the more in pairs. What is no share of samples keeps its verdict.
    """
    shares = {
        key: check
        for key, check in checks.items()
        if check.measured is not None and check.unit == "fraction" and before[key].samples == after[key].samples
    }
    enough = [key for key in shares if before[key].samples >= LEAST_SAMPLES]
    a, b, c, d = np.array([_independent(before[key], after[key]) for key in enough]).reshape(-1, 4).T
    adjusted = statistics.holm(statistics.excess_p(a, b, c, d, limit)) if enough else ()
    p_values = dict(zip(enough, adjusted, strict=True))
    for key, check in shares.items():
        p = p_values.get(key, 1.0)
        if check.verdict is Verdict.FAIL and p >= 1 - statistics.ONE_SIDED:
            why = f"p = {p:.2g} by Holm's correction over {len(enough)} classes and slices"
            few = f"fewer than {LEAST_SAMPLES} samples show nothing"
            said = f"{check.why}, beyond the limit, but not shown to be: {why if key in p_values else few}"
            yield key, replace(check, verdict=Verdict.INCONCLUSIVE, why=said)


def _independent(old: Score, new: Score) -> tuple[float, float, float, float]:
    """How many samples both, the first, the second and neither get right, where the two are independent."""
    first, second = (s.value if s.higher_is_better else 1 - s.value for s in (old, new) if s.value is not None)
    n = old.samples
    return n * first * second, n * first * (1 - second), n * (1 - first) * second, n * (1 - first) * (1 - second)


def _incomparable(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """Why the results of two packages say nothing about each other; empty where they do."""
    if old is None or new is None:
        which = "neither has" if old is new else "the first has no" if old is None else "the second has no"
        return f"{which} results of a validation; pack with --report"
    if old["data_sha256"] is None or old["data_sha256"] != new["data_sha256"]:
        return f"validated on different data, {Path(old['data']).name} and {Path(new['data']).name}"
    names = [(r["metric"] or {}).get("name") for r in (old, new)]
    if names[0] is None or names[0] != names[1]:
        return f"validated by different metrics, {names[0]} and {names[1]}"
    return ""


def _scores(results: Mapping[str, Any]) -> dict[Key, Score]:
    """The metric, the recall of each class and the metric on each slice, by kind and name."""
    metric = results["metric"]
    kind = {"unit": metric["unit"], "higher_is_better": metric["higher_is_better"]}
    whole = next((c["measured"] for c in results["checks"] if c["name"] == metric["name"]), None)
    found = {(metric["name"], ""): Score(about="", value=whole, samples=results["samples"] or 0, **kind)}
    for row in results["classes"]:
        about = f"class {row['label']!r}"
        found["class", row["label"]] = Score(about=about, value=row["recall"], samples=row["support"], unit="fraction")
    for row in results["slices"]:
        about = f"slice {row['slice']!r}"
        found["slice", row["slice"]] = Score(about=about, value=row["value"], samples=row["samples"], **kind)
    return found


def _drop(old: Score | None, new: Score | None, limit: float | None) -> Check:
    """The check on one loss, without its name; what only one of them has cannot be judged."""
    known = new or old
    assert known is not None  # noqa: S101
    about = f"{known.about}, {known.samples:,} samples: " if known.about else ""
    shared: dict[str, Any] = {"name": "", "limit": limit, "unit": known.unit, "method": Method.MEASURED_HOST}
    if old is None or new is None or old.value is None or new.value is None:
        neither = old is not None and old.value is None  # a slice of one class has no auc before and after
        lost = limit is not None and not neither and (new is None or new.value is None)
        which = "the second" if new is None or new.value is None else "the first"
        verdict = Verdict.UNCHECKED if lost else Verdict.INFO
        return Check(verdict=verdict, why=f"{about}not measured in {which}", **shared)
    drop = old.value - new.value if known.higher_is_better else new.value - old.value
    judged = Verdict.FAIL if limit is not None and drop > limit + ROUNDING else Verdict.PASS
    why = f"{about}{text.number(old.value, known.unit)} to {text.number(new.value, known.unit)}"
    return Check(measured=drop, verdict=Verdict.INFO if limit is None else judged, why=why, **shared)


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Sizes, and costs that both measured by the same method for the same target; no times of this or that host."""
    for name in SIZES:
        yield _figure(name, None, "bytes", Method.STATIC, old["artifact"][name], new["artifact"][name])
    before, after = (_costs(m["results"]) for m in (old, new))
    for key in [k for k in before if k in after]:
        name, target, method = key
        yield _figure(name, target, before[key]["unit"], method, before[key]["measured"], after[key]["measured"])


def _costs(results: Mapping[str, Any] | None) -> dict[tuple[str, str | None, str], Mapping[str, Any]]:
    found = [c for c in (results["checks"] if results else ()) if c["measured"] is not None]
    return {
        (c["name"], c.get("target"), c["method"]): c
        for c in found
        if c["name"] in COSTS or (c["name"] in TIMES and c["method"] != Method.MEASURED_HOST)
    }


def _figure(name: str, target: str | None, unit: str, method: str, old: float, new: float) -> dict[str, Any]:
    return {"name": name, "target": target, "unit": unit, "method": method, "before": old, "after": new}


def _ops(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Operators of another version or number: `before` and `after` are counts, 0 where there is none."""
    counts = [{(op["name"], op["version"]): op["count"] for op in m["ops"]} for m in (old, new)]
    keys = sorted({*counts[0], *counts[1]}, key=lambda key: (key[0], key[1] or 0))
    rows = [
        {"name": n, "version": v, "before": counts[0].get((n, v), 0), "after": counts[1].get((n, v), 0)}
        for n, v in keys
    ]
    return [row for row in rows if row["before"] != row["after"]]


def _runtimes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Where the oldest runtime that a package needs is another one than before."""
    before, after = (_floors(m) for m in (old, new))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield {"name": name, "before": before.get(name), "after": after.get(name)}


def _floors(found: Mapping[str, Any]) -> dict[str, str | None]:
    runtime = found["runtime"]
    floors: dict[str, str | None] = {runtime["name"]: runtime.get("minimum"), **runtime.get("minimums", {})}
    for target in found["targets"]:
        floors |= {f"{r['name']} on {target['id']}": r["minimum"] for r in target["runtimes"]}
    return floors

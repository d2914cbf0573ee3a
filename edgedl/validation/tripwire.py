"""Instructions against those of an earlier benchmark: the one performance figure that no noise moves.

Only the same core, emulator, runtime, kernels and threads compare; anything else is "not comparable", and no pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedl.errors import InputError
from edgedl.types import Verdict

GROWTH = 0.01
SAME = ("core", "emulator", "runtime_version", "resolver", "threads", "inference")

Row = dict[str, Any]


def judge(rows: Sequence[Row], baseline: Path, asked: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """What `--gate` concludes of a benchmark's rows: a verdict, and one entry a counted artifact and target.

    `asked` are the artifacts and targets of this benchmark: one that was counted then and is not now is no pass.
    """
    before = [r for r in _read(baseline) if "instructions" in r]
    now = [r for r in rows if "instructions" in r]
    entries = [_compare(row, _same_case(row, now, before), baseline) for row in now]
    counted = {(r["artifact"], r["target"]) for r in now}
    missed: list[Row] = [{"artifact": a, "target": t} for a, t in dict.fromkeys(asked) if (a, t) not in counted]
    then = [(row, _same_case(row, [*now, *missed], before)) for row in missed]
    entries += [_missed(row, earlier) for row, earlier in then if earlier]
    verdict = Verdict.worst([Verdict(e["verdict"]) for e in entries]) if entries else Verdict.UNCHECKED
    why = "" if now else "no instructions were counted; name a --target with an emulated core that is set up"
    return {"baseline": str(baseline), "growth_limit": GROWTH, "verdict": verdict.value, "why": why, "entries": entries}


def _read(baseline: Path) -> list[Row]:
    try:
        found = json.loads(baseline.read_text(encoding="utf-8"))
        rows = found["results"]
        if not all(isinstance(r, dict) and isinstance(r["artifact"], str) and _is_count(r) for r in rows):
            raise TypeError
    except OSError as e:
        message = f"--gate {baseline}: cannot be read: {e.strerror}"
        raise InputError(message) from e
    except (ValueError, KeyError, TypeError) as e:
        message = f"--gate {baseline}: is not what `edgedl benchmark --json` prints; make it with that"
        raise InputError(message) from e
    return list(rows)


def _is_count(row: Row) -> bool:
    found = row.get("instructions", 1)
    return type(found) in (int, float) and found > 0


def _same_case(row: Row, now: Sequence[Row], before: Sequence[Row]) -> Row | None:
    """The earlier row of this target and path, else of the only such file name, else of its only file."""
    mine = [b for b in before if b.get("target") == row["target"]]
    rivals = [n for n in now if n["target"] == row["target"]]
    exact = [b for b in mine if b["artifact"] == row["artifact"]]
    if exact:
        return exact[0]
    named, others = (
        [r for r in rows if Path(r["artifact"]).name == Path(row["artifact"]).name] for rows in (mine, rivals)
    )
    if named:
        return named[0] if len(named) == len(others) == 1 else None
    return mine[0] if len(mine) == len(rivals) == 1 else None


def _missed(row: Row, before: Row) -> Row:
    why = "counted then, not now"
    told = {"measured": None, "baseline": before["instructions"], "growth": None}
    return row | told | {"verdict": Verdict.UNCHECKED.value, "why": why}


def _compare(row: Row, before: Row | None, baseline: Path) -> Row:
    entry: Row = {
        "artifact": row["artifact"],
        "target": row["target"],
        "measured": row["instructions"],
        "baseline": before and before["instructions"],
        "growth": None,
    }
    if before is None:
        return entry | {"verdict": Verdict.UNCHECKED.value, "why": f"not in {baseline}"}
    other = [f"{key} {before.get(key)} then, {row[key]} now" for key in SAME if before.get(key) != row[key]]
    if other:
        return entry | {"verdict": Verdict.UNCHECKED.value, "why": f"not comparable: {'; '.join(other)}"}
    more = row["instructions"] - before["instructions"]
    growth = more / before["instructions"]
    verdict = Verdict.FAIL if more > GROWTH * before["instructions"] else Verdict.PASS
    return entry | {"growth": growth, "verdict": verdict.value, "why": f"{growth:+.2%}, {GROWTH:.0%} are allowed"}

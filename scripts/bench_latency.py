"""How well latency is predicted for what a fit has not seen, beside two baselines: scripts/bench latency-prediction.

    scripts/bench latency-prediction [RUNTIME ...] [--json]

Whole families of networks are left out one by one, then whole boards; every choice of the fit is made again without
them. Baselines: cycles a multiply-accumulate, and non-negative least squares on six operator counts of that board.
Errors are absolute and relative: median / 90th percentile. It prints, and judges nothing by its exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: threads only wait for one another

import numpy as np
from scipy.optimize import nnls

from edgedl.latency import evaluation, features, figures, fitted, operators
from edgedl.latency.evaluation import Guess
from edgedl.latency.hierarchy import Row

SIX = (  # operator counts of the baseline
    ("conv_macs", "shallow_macs"),
    ("pointwise_macs",),
    ("depthwise_macs",),
    ("dense_macs",),
    ("elementwise", "pool", "copy"),
    ("operators",),
)
GOALS = {"family": "8 / 18 %", "board": "25 %", "runtime on a core": ""}
HEAD = ("left out", "board", "runtime", "figures", "error", "goal", "MACs per clock", "6 counts", "covered", "rank")


def table(wanted: Sequence[str]) -> list[dict[str, Any]]:
    """A row a board and runtime for each way of leaving out; no runtime named means all."""
    found, tables = figures.read(), operators.read_table(figures.LAYERS)
    made = []
    for name, rows, parts in fitted.groups(figures.rows(found, tables)):
        if wanted and not any(r.split()[0] in wanted for served in parts for r in served):
            continue
        print(f"{name}: {len(rows)} figures ...", file=sys.stderr)
        left = fitted.left_out(rows)
        for served in parts:
            guesses = {what: [g for g in some if g.row.runtime in served] for what, some in left.items()}
            asked = [r for r in served if r.split()[0] in wanted or not wanted]
            for what, some in guesses.items():
                made += [row(what, place, some, guesses["family"]) for place in _places(some, asked)]
    return made


def _places(guesses: Sequence[Guess], runtimes: Sequence[str]) -> list[tuple[str, str]]:
    return sorted({(g.row.board, g.row.runtime) for g in guesses if g.row.runtime in runtimes})


def row(what: str, place: tuple[str, str], guesses: Sequence[Guess], among: Sequence[Guess]) -> dict[str, Any]:
    """One board and runtime: ours beside the baselines."""
    some = [g for g in guesses if (g.row.board, g.row.runtime) == place]
    named = {"left_out": what, "board": place[0], "runtime": place[1]}
    counts = six_counts([g.row for g in some]) if what == "family" else None
    return named | evaluation.summary(some, among) | {"six_counts": counts}


def six_counts(rows: Sequence[Row]) -> list[float] | None:
    """Median and 90th percentile of non-negative least squares on one board, families left out; None for too few."""
    columns = [[features.NAMES.index(name) for name in names] for names in SIX]
    counts = np.stack([[r.counts[c].sum() for c in columns] for r in rows])
    latency = np.array([r.latency_ms for r in rows])
    errors: list[float] = []
    for family in sorted({r.family for r in rows}):
        out = np.array([r.family == family for r in rows])
        if out.all():
            return None
        scale = counts[~out].max(axis=0) + 1e-9
        costs, _ = nnls(counts[~out] / scale, latency[~out])
        errors += list(np.abs(counts[out] / scale @ costs / latency[out] - 1))
    return [float(np.median(errors)), float(np.percentile(errors, 90))]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table, on stdout."""
    lines = [HEAD] + [_line(r) for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    plain = _pair(row["macs_per_clock_median_error"], row["macs_per_clock_p90_error"])
    ours = _pair(row["median_error"], row["p90_error"])
    counts = _pair(*row["six_counts"]) if row["six_counts"] else ""
    return (row["left_out"], row["board"], row["runtime"], str(row["figures"]), ours, GOALS[row["left_out"]], plain,
            counts, f"{row['coverage']:.0%}", f"{row['rank_correlation']:.2f}")  # fmt: skip


def _pair(median: float, p90: float) -> str:
    return f"{100 * median:.1f} / {100 * p90:.1f} %"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtimes", nargs="*", metavar="RUNTIME")
    parser.add_argument("--json", action="store_true", help="as JSON")
    given = parser.parse_args()
    rows = table(given.runtimes)
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)


if __name__ == "__main__":
    main()

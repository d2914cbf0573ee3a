"""Fit the latency models that edgedl predicts with, from published figures, and say how well that works.

    scripts/fit_latency.py                      # again, from the tables inside the package
    scripts/fit_latency.py collect [FOLDER]     # these tables from ../shared/data/latency first
    scripts/fit_latency.py --add FIGURES.csv --layers MODEL.tflite -o models.json
                                                # with a board of your own; then `edgedl benchmark --latency-models`

FIGURES.csv has the columns of edgedl/latency/data/figures.csv; its column `layers` names a model in a table of
operators, or a .tflite as given to --layers. Three models of different families on one board are the least.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: threads only wait for one another

from edgedl import artifacts, worker  # noqa: E402
from edgedl.errors import EdgedlError  # noqa: E402
from edgedl.latency import figures, fitted, operators  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("fit", "collect"), default="fit")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared/data/latency")
    parser.add_argument("--add", type=Path, action="append", default=[], metavar="CSV", help="more figures")
    parser.add_argument(
        "--layers", type=Path, action="append", default=[], metavar="CSV|TFLITE", help="their operators"
    )
    parser.add_argument("-o", "--out", type=Path, default=fitted.MODELS, help="default: the file in the package")
    given = parser.parse_args(arguments)
    try:
        _fit(given)
    except EdgedlError as e:
        print(f"Error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    finally:
        worker.close()


def _fit(given: argparse.Namespace) -> None:
    if given.command == "collect":
        from collect_latency import collect

        collect(given.folder)
    found, tables = list(figures.read()), operators.read_table(figures.LAYERS)
    for path in given.add:
        found += figures.read(path)
    for path in given.layers:
        is_table = path.suffix == ".csv"
        tables |= operators.read_table(path) if is_table else {str(path): operators.from_info(artifacts.describe(path))}
    made = fitted.fit(figures.rows(found, tables), found, said=lambda text: print(text, file=sys.stderr))
    text = re.sub(r"\[[-\d.,e\s]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), json.dumps(made, indent=1))
    given.out.write_text(text + "\n", encoding="utf-8")
    print(f"{given.out}: {len(found)} figures")


if __name__ == "__main__":
    main()

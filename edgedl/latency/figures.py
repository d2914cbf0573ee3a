"""Published figures: a CSV with a row a measurement, each with its source, beside the operator tables of its models."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedl.errors import InputError
from edgedl.latency import operators, platforms
from edgedl.latency.features import features
from edgedl.latency.hierarchy import Row

FOLDER = Path(__file__).parent / "data"
FIGURES, LAYERS = FOLDER / "figures.csv", FOLDER / "layers.csv"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measurement. `layers` names the model in the operator tables, `version` is the runtime's."""

    runtime: str
    version: str
    threads: int
    core: str
    board: str
    clock_hz: float
    precision: str
    family: str
    model: str
    layers: str
    latency_ms: float
    source: str

    @property
    def kernels(self) -> str:
        """What is never mixed: the runtime, with its precision where that is not int8, and threads beyond one."""
        more = [self.precision] * (self.precision != "int8") + [f"{self.threads} threads"] * (self.threads > 1)
        return " ".join([self.runtime, *more])


def read(path: Path = FIGURES) -> tuple[Figure, ...]:
    """The rows of a table of figures. Raises InputError with the line of what cannot be a figure."""
    try:
        rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as e:
        message = f"{path}: cannot be read as a table of figures ({getattr(e, 'strerror', None) or e})"
        raise InputError(message) from e
    columns = list(Figure.__dataclass_fields__)
    missing = [c for c in columns if c not in (rows.fieldnames or ())]
    if missing:
        message = f"{path}: no column {missing[0]!r}; a table of figures has {', '.join(columns)}"
        raise InputError(message)
    return tuple(_figure(row, f"{path}:{rows.line_num}") for row in rows)


def _figure(row: dict[str, str], where: str) -> Figure:
    texts = {name: (row[name] or "").strip() for name in Figure.__dataclass_fields__}
    numbers = {}
    for name in ("threads", "clock_hz", "latency_ms"):
        try:
            numbers[name] = float(texts.pop(name))
        except ValueError:
            numbers[name] = -1.0
        if not 0 < numbers[name] < float("inf"):
            message = f"{where}: {name} must be a number above 0, got {row[name]!r}"
            raise InputError(message)
    empty = [name for name, text in texts.items() if not text]
    if empty:
        message = f"{where}: {empty[0]} is empty; every figure needs it"
        raise InputError(message)
    threads, clock_hz, latency_ms = int(numbers["threads"]), numbers["clock_hz"], numbers["latency_ms"]
    return Figure(threads=threads, clock_hz=clock_hz, latency_ms=latency_ms, **texts)


def rows(found: Sequence[Figure], tables: dict[str, tuple[operators.Operator, ...]]) -> list[Row]:
    """What is fitted: the figures with the counts of their models. Raises InputError for a model without a table."""
    made = []
    for figure in found:
        if figure.layers not in tables:
            message = f"figure of {figure.model}: no operators of {figure.layers!r} in the tables given"
            raise InputError(message)
        table, platform = tables[figure.layers], platforms.platform_of(figure.core)
        made.append(
            Row(
                counts=features(table, platform.memory, platform.depth_step),
                cycles=figure.latency_ms * 1e-3 * figure.clock_hz,
                latency_ms=figure.latency_ms,
                clock_hz=figure.clock_hz,
                model=figure.model,
                family=figure.family,
                runtime=figure.kernels,
                version=figure.version,
                core=figure.core,
                board=figure.board,
                macs=sum(op.macs for op in table),
            )
        )
    return made

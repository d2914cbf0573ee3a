"""What the benchmark measures with: whole processes, sides that take turns, and rows of ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEAK = """\
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measured turn of one side."""

    wall_s: float
    cpu_s: float
    rss_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `ratio` is ours to the peer's median wall time (or size, or rate), `low` and `high` the
    range over the rounds, `cpu_ratio` that of CPU seconds; `goal` "<= 1.15" or ">= 0.95"."""

    section: str
    name: str
    ours: str = ""
    peer: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    cpu_ratio: float | None = None
    goal: str = ""
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio reaches the goal; None where nothing was measured."""
        if self.ratio is None or not self.goal:
            return None
        sign, limit = self.goal.split()
        return self.ratio <= float(limit) if sign == "<=" else self.ratio >= float(limit)


def command(*arguments: Any) -> Sample:
    """One process from start to end: its seconds, and the CPU seconds of all its children too.

    The cache folder is new each time. Raises RuntimeError, with what it said last, where it fails.
    """
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as said:
        environment = os.environ | {"XDG_CACHE_HOME": cache, "TF_CPP_MIN_LOG_LEVEL": "3"}
        begun = time.perf_counter()
        process = subprocess.Popen(list(map(str, arguments)), stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(_failure(arguments, process.returncode, said.read().decode(errors="replace")))
    return Sample(wall_s=wall, cpu_s=usage.ru_utime + usage.ru_stime)


def output(*arguments: Any, starter: Sequence[str] = ()) -> str:
    """Standard output of a command, or of its starter. Raises RuntimeError, with what it said last, where it fails."""
    done = subprocess.run([*starter, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(_failure(arguments, done.returncode, done.stderr))
    return done.stdout


def _failure(arguments: Sequence[Any], code: int, said: str) -> str:
    """One line: the start of the command, and the last line that it said."""
    name = " ".join(Path(str(a)).name for a in arguments[:2])
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    return f"{name} exited with {code}: {last}"


def turns(rounds: int, *sides: Callable[[], Sample]) -> list[list[Sample]]:
    """`rounds` samples of each side, the sides taking turns and every other round going backwards."""
    samples: list[list[Sample]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for i in order:
            samples[i].append(sides[i]())
    return samples


def compared(
    section: str, name: str, ours: list[Sample], peer: list[Sample], goal: str, *, rate_of: int = 0, note: str = ""
) -> Row:
    """The row of two sides: of their seconds, or of samples per second where `rate_of` says how many a turn has."""
    walls, cpus = ([[getattr(s, f) for s in side] for side in (ours, peer)] for f in ("wall_s", "cpu_s"))
    medians, cpu = ([statistics.median(side) for side in sides] for sides in (walls, cpus))
    ratios = [a / b for a, b in zip(*walls, strict=True)]
    ratio, cpu_ratio = medians[0] / medians[1], cpu[0] / cpu[1] if cpu[1] else None
    shown = [f"{m:.3f} s ({c:.2f} cpu)" for m, c in zip(medians, cpu, strict=True)]
    if rate_of:
        ratio, ratios, cpu_ratio = 1 / ratio, [1 / r for r in ratios], 1 / cpu_ratio if cpu_ratio else None
        shown = [f"{rate_of / m:,.0f} /s" for m in medians]
    return Row(
        section=section, name=name, ours=shown[0], peer=shown[1], ratio=ratio, low=min(ratios), high=max(ratios),
        cpu_ratio=cpu_ratio, goal=goal, note=note,
    )  # fmt: skip


def peak_bytes(*arguments: Any) -> int:
    """Peak memory of the largest process of a command, which a small one starts: a process inherits that peak too."""
    return int(output(*arguments, starter=(sys.executable, "-S", "-c", PEAK)).split()[-1]) * 1024

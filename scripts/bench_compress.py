"""Each compression technique beside its peers, on the same model, data and epochs: one table, and it as JSON.

    scripts/bench compress [--model ic|kws|fashion|phone] [--quick] [--only TEXT]... [--epochs N] [-o FOLDER]

Every line is a file that a device can run, made by processes of its own and judged on the same test samples on this
machine. A technique or peer that is not installed is skipped, saying so. Peers are the scripts `peers/compress_*.py`;
they run in this Python where it has what they import, else in one that EDGEDL_PEERS_PYTHON names (several with `:`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import bench_models
import numpy as np
from bench_judge import SEED, Judge, Made, Row
from bench_models import EDGEDL, Subject
from bench_techniques import Technique, techniques

HERE = Path(__file__).resolve().parent
PEERS_PYTHONS = (sys.executable, *filter(None, os.environ.get("EDGEDL_PEERS_PYTHON", "").split(os.pathsep)))
SAMPLES = 200  # to calibrate on
PEAK = """\
import pathlib, resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


class FailedError(Exception):
    """A side that could not be made; its message is the row's note."""


# ---- making -------------------------------------------------------------------------------------------------------


def process(*command: Any, folder: Path) -> tuple[str, float, int]:
    """Standard output, wall seconds and the peak memory of the largest process. Raises FailedError.

    A small process starts it: one that is started inherits the peak of who starts it.
    """
    said, told, peak = (folder / name for name in ("said.log", "out.log", "peak"))
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["KERAS_BACKEND"] = "tensorflow"
    begun = time.perf_counter()
    with said.open("wb") as err, told.open("wb") as out:
        started = [sys.executable, "-S", "-c", PEAK, str(peak), *map(str, command)]
        code = subprocess.run(started, stdout=out, stderr=err, env=environment, check=False).returncode
    if code:
        lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
        message = lines[-1] if lines else f"exited with {code}"
        raise FailedError(message)
    wall = time.perf_counter() - begun
    return told.read_text(errors="replace"), wall, int(peak.read_text()) * 1024


def make_ours(technique: Technique, subject: Subject, folder: Path) -> Made:
    """By `edgedl compress`, where there are steps, and `edgedl export`."""
    model, work, wall, peak = subject.model, 0.0, 0.0, 0
    macs: int | None = None
    notes: list[str] = []
    if technique.steps or technique.recipe:
        recipe, model = technique.recipe or folder / "recipe.toml", folder / "model.keras"
        if technique.steps:
            (folder / "recipe.toml").write_text(_toml(technique.steps))
        asked = ["--recipe", recipe, "--data", subject.train, "--eval", subject.test, "--seed", SEED, "--json"]
        out, wall, peak = process(EDGEDL, "compress", subject.model, *asked, "-o", model, folder=folder)
        rows = json.loads(out)["rows"]
        work, macs = sum(r["seconds"] for r in rows), rows[-1]["macs"]
        notes = [note for row in rows for note in row["notes"]]
    path = folder / f"model{technique.suffix}"
    given: list[Any] = ["--scheme", technique.scheme] if technique.scheme else []
    if technique.scheme == "int8":
        given += ["--calibration-data", subject.train, "--samples", SAMPLES, "--seed", SEED]
    _, seconds, most = process(EDGEDL, "export", model, *given, "-o", path, "--force", folder=folder)
    return Made(
        path=path,
        wall_s=wall + seconds,
        peak_bytes=max(peak, most),
        work_s=work or None,
        macs=macs,
        notes=tuple(notes),
    )


def make_peer(technique: Technique, subject: Subject, floats: dict[str, Path], folder: Path) -> Made:
    """By a peer's script."""
    path, request = folder / f"model{technique.suffix}", folder / "request.json"
    asked = {
        "model": str(subject.model),
        "train": str(subject.train),
        "float": {k: str(p) for k, p in floats.items()},
        "out": str(path),
        "samples": SAMPLES,
        "seed": SEED,
        "options": {"scheme": technique.scheme, "steps": technique.steps},
    }
    request.write_text(json.dumps(asked))
    out, wall, peak = process(_python(technique.modules), HERE / "peers" / technique.script, request, folder=folder)
    told = json.loads(out.splitlines()[-1])
    return Made(path=path, wall_s=wall, peak_bytes=peak, work_s=told["seconds"], notes=tuple(told.get("notes", ())))


@cache
def _python(modules: tuple[str, ...]) -> str | None:
    """This Python where it has the modules, else the peers' own; None where neither has."""
    check = "import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in sys.argv[1:]))"
    for python in PEERS_PYTHONS:
        if not subprocess.run([python, "-c", check, *modules], check=False, capture_output=True).returncode:
            return python
    return None


def _toml(steps: Sequence[dict[str, Any]]) -> str:
    return "\n".join(
        "[[step]]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in step.items()) for step in steps
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def why_not(technique: Technique) -> str | None:
    """What is missing for a technique, its plugins or a peer's modules; None where nothing is."""
    from edgedl import plugins

    known = {p.name for p in plugins.listing("compressors")}
    wanted = {"{kind}.{method}".format(**s) if "method" in s else s["kind"] for s in technique.steps}
    if lacking := sorted(wanted - known):
        return f"no plugin does {', '.join(lacking)}"
    if _python(technique.modules) is None:
        return f"needs {' and '.join(technique.modules)}; name a Python with them: EDGEDL_PEERS_PYTHON=/path/to/python"
    return None


# ---- the table ----------------------------------------------------------------------------------------------------


def measure(subject: Subject, chosen: Sequence[Technique], folder: Path) -> list[Row]:
    """A row a technique; the float files that peers start from are made first."""
    floats: dict[str, Path] = {}
    rows: list[Row] = []
    macs = json.loads(process(EDGEDL, "inspect", subject.model, "--json", folder=folder)[0])["macs"]
    for suffix in ("tflite", "onnx"):
        asked = ["--scheme", "fp32", "--no-slim"]  # peers look for the names of tensors
        floats[suffix] = folder / f"float.{suffix}"
        process(EDGEDL, "export", subject.model, *asked, "-o", floats[suffix], folder=folder)
    if any(t.keras_2 and not why_not(t) for t in chosen):
        floats["h5"] = folder / "float.h5"
        process(sys.executable, HERE / "peers" / "keras_2.py", subject.model, floats["h5"], folder=folder)
    judge = Judge(subject, floats["tflite"])
    for technique in chosen:
        print(f"{technique.key} ...", file=sys.stderr, flush=True)
        try:
            if why := why_not(technique):
                raise FailedError(f"skipped: {why}")  # noqa: EM102
            place = Path(tempfile.mkdtemp(dir=folder))
            made = (
                make_peer(technique, subject, floats, place)
                if technique.script
                else make_ours(technique, subject, place)
            )
            rows.append(judge.row(technique, made, macs))
        except FailedError as e:
            rows.append(Row(group=technique.group, tool=technique.tool, name=technique.name, notes=(str(e),)))
    return [_beside(row, rows, judge) for row in rows]


def _beside(row: Row, rows: Sequence[Row], judge: Judge) -> Row:
    """A row of ours with each peer of its group."""
    if row.tool != "edgedl" or row.accuracy is None:
        return row
    peers = [r for r in rows if r.group == row.group and r.tool != "edgedl" and r.accuracy is not None]
    key = f"{row.tool}: {row.name}"
    found = [(f"{p.tool}: {p.name}", *judge.against(key, f"{p.tool}: {p.name}")) for p in peers]
    return replace(row, against=tuple(found))


def show(rows: Sequence[Row], title: str) -> None:
    """The table on stdout, then what each row of ours is beside its peers, then the notes of what was not made."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 175)
    table = Table(title=title)
    columns = ("", "tool", "technique", "top-1", "drop (pp)", "file", "download", "MACs", "zeros", "latency", "work s")
    for i, column in enumerate((*columns, "wall s", "peak MB")):
        table.add_column(column, justify="left" if i < 3 else "right")
    for row in rows:
        if row.accuracy is None or row.drop is None:
            continue
        drop = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * d for d in row.drop))
        macs = f"{row.macs:,}" if row.macs else ""
        sizes = (f"{row.size_bytes:,}", f"{row.compressed_bytes:,}", macs)
        shares = (f"{row.zeros:.1%}", f"{row.latency_ratio:.3f}")
        times = (f"{row.work_s:.1f}" if row.work_s else "", f"{row.wall_s:.1f}", f"{(row.peak_bytes or 0) / 1e6:,.0f}")
        table.add_row(row.group, row.tool, row.name, f"{row.accuracy:.2%}", drop, *sizes, *shares, *times)
    console.print(table)
    for row in rows:
        for peer, difference, low, high in row.against:
            real = "a real difference" if low > 0 or high < 0 else "no proven difference"
            shown = f"{100 * difference:+.2f} pp ({100 * low:+.2f} to {100 * high:+.2f}), {real}"
            console.print(f"{row.tool}: {row.name} beside {peer}: {shown}", highlight=False)
        if row.accuracy is None:
            console.print(f"{row.tool}: {row.name}: {row.notes[0]}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(bench_models.SOURCES), default="ic")
    parser.add_argument("--quick", action="store_true", help="512 samples to train, 1,000 to judge, one epoch")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="techniques whose name has it")
    parser.add_argument("--epochs", type=int, help="of every training, instead of each technique's own")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("bench-compress"), help="folder for models and rows.json"
    )
    given = parser.parse_args(arguments)
    if why := bench_models.missing(given.model):
        print(f"{given.model}: skipped: {why}")
        return
    chosen = techniques(1 if given.quick else given.epochs)
    named = [any(text in t.key for text in given.only) if given.only else not t.long for t in chosen]
    chosen = [t for t, is_named in zip(chosen, named, strict=True) if is_named]
    if not chosen:
        parser.error(f"no technique has {' or '.join(given.only)}; there are {', '.join(t.key for t in techniques(1))}")
    subject = bench_models.prepare(given.model, given.out.resolve(), quick=given.quick)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(subject, chosen, Path(folder))
    judged = len(np.load(subject.test)["y"])
    target = given.out / f"{given.model}{'-quick' if given.quick else ''}.json"
    target.write_text(
        json.dumps({"model": given.model, "samples": judged, "rows": [asdict(r) for r in rows]}, indent=2)
    )
    title = f"{given.model}, judged on {judged:,} samples{', quick: no result' if given.quick else ''}"
    show(rows, f"{title}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"rows: {target}", file=sys.stderr)


if __name__ == "__main__":
    main()

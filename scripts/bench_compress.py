"""Each compression technique beside its peers, on the same model, data and epochs: one table, and it as JSON.

    scripts/bench compress [--model ic|kws|fashion|phone] [--quick] [--only TEXT]... [--epochs N] [-o FOLDER]

Every line is a file that a device can run, made by processes of its own and judged on the same test samples on this
machine. A technique or peer that is not installed is skipped, saying so; one that fails leaves the others alone, and
the exit code is 1. Peers are the scripts `peers/compress_*.py`; they run in this Python where it has what they import,
else in one that EDGEDL_PEERS_PYTHON names (several with `:`).

"work s" is the same span on every side: from reading the float model, TensorFlow imported, to the device's file
written. It holds training and conversion, also that to the .tflite or .onnx that a peer starts from. It leaves out what
edgedl alone does: to judge each step, and to carry a model to Keras 2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import bench_models
import numpy as np
from bench_judge import SEED, Judge, Made, Row
from bench_models import EDGEDL, Subject
from bench_techniques import Technique, techniques

from edgedl.errors import EdgedlError

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


def process(*command: Any, folder: Path) -> tuple[str, int]:
    """Standard output and the peak memory of the largest process. Raises FailedError.

    A small process starts it: one that is started inherits the peak of who starts it.
    """
    said, told, peak = (folder / name for name in ("said.log", "out.log", "peak"))
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["KERAS_BACKEND"] = "tensorflow"
    with said.open("wb") as err, told.open("wb") as out:
        started = [sys.executable, "-S", "-c", PEAK, str(peak), *map(str, command)]
        code = subprocess.run(started, stdout=out, stderr=err, env=environment, check=False).returncode
    if code:
        lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
        message = lines[-1] if lines else f"exited with {code}"
        raise FailedError(message)
    return told.read_text(errors="replace"), int(peak.read_text()) * 1024


def answer(*command: Any, folder: Path) -> tuple[dict[str, Any], int]:
    """The JSON object that a process prints last, on lines of its own, and its peak memory. Raises FailedError."""
    out, peak = process(*command, folder=folder)
    try:
        return dict(json.loads(out[out.rfind("\n{") + 1 :])), peak
    except ValueError as e:
        message = f"printed no JSON last: {out[-200:]!r}"
        raise FailedError(message) from e


def make_ours(technique: Technique, subject: Subject, folder: Path) -> Made:
    """By `edgedl compress`, where there are steps, and `edgedl.export`."""
    path = folder / f"model{technique.suffix}"
    options: dict[str, Any] = {"scheme": technique.scheme}
    if technique.scheme == "int8":
        options |= {"calibration_data": str(subject.train), "samples": SAMPLES, "seed": SEED}
    if not technique.steps:
        return _exported(subject.model, path, folder, **options)
    recipe, model = folder / "recipe.toml", folder / "model.keras"
    recipe.write_text(_toml(technique.steps))
    asked = ["--recipe", recipe, "--data", subject.train, "--eval", subject.test, "--seed", SEED, "--json"]
    told, peak = answer(EDGEDL, "compress", subject.model, *asked, "-o", model, folder=folder)
    rows = told["rows"]
    made = _exported(model, path, folder, **options)
    return replace(
        made,
        work_s=made.work_s + sum(row["seconds"] for row in rows),
        peak_bytes=max(made.peak_bytes, peak),
        macs=rows[-1]["macs"],
        notes=tuple(note for row in rows for note in row["notes"]),
    )


def _exported(model: Path, path: Path, folder: Path, **options: Any) -> Made:
    given = json.dumps({"model": str(model), "out": str(path), **options})
    told, peak = answer(sys.executable, HERE / "bench_export.py", given, folder=folder)
    return Made(path=path, work_s=told["seconds"], peak_bytes=peak)


def make_float(subject: Subject, folder: Path, suffix: str) -> Made:
    """The float file that peers start from: .tflite, .onnx, or a Keras 2 .h5, whose making is no work of theirs."""
    path = folder / f"float{suffix}"
    if suffix == ".h5":
        process(sys.executable, HERE / "peers" / "keras_2.py", subject.model, path, folder=folder)
        return Made(path=path, work_s=0, peak_bytes=0)
    return _exported(subject.model, path, folder, scheme="fp32", slim=False)  # peers look for the names of tensors


def make_peer(technique: Technique, subject: Subject, source: Made | None, folder: Path) -> Made:
    """By a peer's script, which starts from the float file `source` or from the model."""
    path, request = folder / f"model{technique.suffix}", folder / "request.json"
    asked = {
        "model": str(subject.model),
        "train": str(subject.train),
        "float": str(source.path) if source else None,
        "out": str(path),
        "samples": SAMPLES,
        "seed": SEED,
        "options": {"scheme": technique.scheme, "steps": technique.steps},
    }
    request.write_text(json.dumps(asked))
    told, peak = answer(_python(technique.modules), HERE / "peers" / technique.script, request, folder=folder)
    return Made(
        path=path,
        work_s=told["seconds"] + (source.work_s if source else 0),
        peak_bytes=max(peak, source.peak_bytes if source else 0),
        notes=tuple(told.get("notes", ())),
    )


@cache
def _python(modules: tuple[str, ...]) -> str | None:
    """This Python where it has the modules, else the peers' own; None where neither has."""
    found = "all(any(map(u.find_spec, m.split('|'))) for m in sys.argv[1:])"
    check = f"import importlib.util as u, sys; sys.exit(not {found})"
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
        needed = " and ".join(technique.modules).replace("|", " or ")
        return f"needs {needed}; name a Python with them: EDGEDL_PEERS_PYTHON=/path/to/python"
    return None


# ---- the table ----------------------------------------------------------------------------------------------------


def measure(subject: Subject, chosen: Sequence[Technique], folder: Path) -> list[Row]:
    """A row a technique. Raises FailedError and EdgedlError where the model itself cannot be judged."""
    make_source = cache(partial(make_float, subject, folder))
    rows: list[Row] = []
    macs = answer(EDGEDL, "inspect", subject.model, "--json", folder=folder)[0]["macs"]
    judge = Judge(subject, make_source(".tflite").path)
    for technique in chosen:
        print(f"{technique.key} ...", file=sys.stderr, flush=True)
        row = Row(group=technique.group, tool=technique.tool, name=technique.name)
        if why := why_not(technique):
            rows.append(replace(row, notes=(f"skipped: {why}",)))
            continue
        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            if technique.script:
                source = make_source(technique.source) if technique.source else None
                made = make_peer(technique, subject, source, place)
            else:
                made = make_ours(technique, subject, place)
            rows.append(judge.row(technique, made, macs))
        except (FailedError, EdgedlError) as e:
            rows.append(replace(row, notes=(f"failed: {e}",), has_failed=True))
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
    table = Table(title=title, caption="work s: from reading the float model to this file written, conversion included")
    columns = ("", "tool", "technique", "top-1", "drop (pp)", "file", "download", "MACs", "zeros", "latency")
    for i, column in enumerate((*columns, "work s", "peak MB")):
        table.add_column(column, justify="left" if i < 3 else "right")
    for row in rows:
        if row.accuracy is None or row.drop is None:
            continue
        drop = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * d for d in row.drop))
        macs = f"{row.macs:,}" if row.macs else ""
        sizes = (f"{row.size_bytes:,}", f"{row.compressed_bytes:,}", macs)
        shares = (f"{row.zeros:.1%}", f"{row.latency_ratio:.3f}")
        costs = (f"{row.work_s or 0:.1f}", f"{(row.peak_bytes or 0) / 1e6:,.0f}")
        table.add_row(row.group, row.tool, row.name, f"{row.accuracy:.2%}", drop, *sizes, *shares, *costs)
    console.print(table)
    for row in rows:
        for peer, difference, low, high in row.against:
            real = "a real difference" if low > 0 or high < 0 else "no proven difference"
            shown = f"{100 * difference:+.2f} pp ({100 * low:+.2f} to {100 * high:+.2f}), {real}"
            console.print(f"{row.tool}: {row.name} beside {peer}: {shown}", highlight=False)
        if row.accuracy is None:
            console.print(f"{row.tool}: {row.name}: {row.notes[0]}", highlight=False, markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(bench_models.SOURCES), default="ic")
    parser.add_argument("--quick", action="store_true", help="512 samples to train, 1,000 to judge, --epochs 1")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="techniques whose name has it")
    parser.add_argument("--epochs", type=int, help="of every training, instead of each technique's or recipe's own")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("bench-compress"),
        help="folder for models, data and the rows: MODEL.json, with --quick MODEL-quick.json (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    if given.epochs is not None and given.epochs < 1:
        parser.error(f"--epochs must be 1 or more, got {given.epochs}")
    epochs = given.epochs or (1 if given.quick else None)
    if why := bench_models.missing(given.model):
        print(f"{given.model}: skipped: {why}")
        return
    chosen = techniques(epochs)
    named = [any(text in t.key for text in given.only) if given.only else not t.long for t in chosen]
    chosen = [t for t, is_named in zip(chosen, named, strict=True) if is_named]
    if not chosen:
        parser.error(f"no technique has {' or '.join(given.only)}; there are {', '.join(t.key for t in techniques(1))}")
    try:
        subject = bench_models.prepare(given.model, given.out.resolve(), quick=given.quick)
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(subject, chosen, Path(folder))
    except (FailedError, EdgedlError, RuntimeError) as e:
        sys.exit(f"{given.model}: not measured: {e}")
    judged = len(np.load(subject.test)["y"])
    target = given.out / f"{given.model}{'-quick' if given.quick else ''}.json"
    written = {"model": given.model, "samples": judged, "epochs": epochs, "rows": [asdict(r) for r in rows]}
    target.write_text(json.dumps(written, indent=2))
    title = f"{given.model}, judged on {judged:,} samples{', quick: no result' if given.quick else ''}"
    title += f", epochs of every training: {epochs}" if epochs else ""
    show(rows, f"{title}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"rows: {target}", file=sys.stderr)
    sys.exit(int(any(row.has_failed for row in rows)))


if __name__ == "__main__":
    main()

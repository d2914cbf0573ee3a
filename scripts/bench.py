"""Figures beside the peers, as ratios, in one run: the two sides take turns, so that a busy machine slows both.

    scripts/bench [startup] [export] [run] [evaluate] [metrics] [memory] [latency] [packages] [--rounds N] [--json]

It measures and prints. A missed goal is no failure, since the machine may be loaded: the exit code is 1 only where a
section could not be measured, which leaves the others alone. Peers are the scripts beside this one in `peers/`, as the
documentation of each tool has them. Models and data come from ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench_measure import Row, Sample, command, compared, output, peak_bytes, turns

from edgedl.errors import EdgedlError

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
MODEL, TRAIN, TEST = (
    SHARED / name for name in ("mlperf_tiny/ic/pretrainedResnet.h5", "cifar10/train.npz", "cifar10/test.npz")
)
PYTHON, EDGEDL = sys.executable, str(Path(sys.executable).with_name("edgedl"))
IMAGES = 5_000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


# ---- whole processes ----------------------------------------------------------------------------------------------


def startup(rounds: int) -> Iterator[Row]:
    """`edgedl --help` beside the import of click."""
    ours, peer = turns(rounds * 4, lambda: command(EDGEDL, "--help"), lambda: command(PYTHON, "-c", "import click"))
    yield compared("startup", "edgedl --help / import click", ours, peer, "<= 2")


def export(rounds: int) -> Iterator[Row]:
    """`edgedl export` to int8 beside the script that does the same with the converter."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        ours, peer = turns(
            rounds,
            lambda: command(*_export("int8", out / "ours.tflite")),
            lambda: command(PYTHON, HERE / "peers/export.py", MODEL, TRAIN, out / "peer.tflite"),
        )
        sizes = [(out / name).stat().st_size for name in ("ours.tflite", "peer.tflite")]
    note = f"{sizes[0]:,} B / {sizes[1]:,} B"
    yield compared("export", "edgedl export int8 / converter script", ours, peer, "<= 1.15", note=note)


def run(rounds: int) -> Iterator[Row]:
    """`edgedl run` from model to validated int8 file beside the tutorial with the float reference added."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pipeline.toml")
        export_table = f'[[export]]\nformat = "tflite"\nscheme = "int8"\ncalibration-data = "{TRAIN}"\n'
        validate_table = f'[[validate]]\ndata = "{TEST}"\nmax-drop = "1pp"\n'
        file.write_text(f'model = "{MODEL}"\n{export_table}{validate_table}')
        ours, peer = turns(
            rounds,
            lambda: command(EDGEDL, "run", file, "-o", tempfile.mkdtemp(dir=folder)),
            lambda: command(PYTHON, HERE / "peers/tutorial.py", MODEL, TRAIN, TEST, Path(folder, "peer.tflite")),
        )
    note = "ours also times it beside its float export, and draws the report"
    yield compared("run", "edgedl run / tutorial script", ours, peer, "<= 1.15", note=note)


def _export(scheme: str, out: Path) -> list[Any]:
    given = ["--calibration-data", TRAIN] if scheme == "int8" else []
    return [EDGEDL, "export", MODEL, "-o", out, "--scheme", scheme, "--force", *given]


# ---- the evaluation loop ------------------------------------------------------------------------------------------


@contextmanager
def artifacts(suffix: str) -> Iterator[dict[str, Path]]:
    """ResNet8 exported as "float" and as "int8"."""
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: Path(folder, kind + suffix) for kind in ("float", "int8")}
        for kind, scheme in (("float", "fp32"), ("int8", "int8")):
            command(*_export(scheme, found[kind]))
        yield found


def images(beside: Path, count: int = IMAGES) -> Path:
    """A folder beside a file with so many CIFAR images: x.npy, y.npy, and both in data.npz."""
    folder = beside.with_name(f"images-{count}")
    folder.mkdir()
    found = np.load(TEST)
    arrays = {name: found[name][np.arange(count) % len(found["y"])] for name in ("x", "y")}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "data.npz", **arrays)
    return folder


@contextmanager
def agent(model: Path, x: Path, outputs: Path) -> Iterator[Callable[..., Sample]]:
    """The agent in a child of its own, loaded and warm: a function that runs every image with so many workers."""
    from edgedl import worker

    with worker.fresh("litert") as child:

        def once(workers: int | None, stop: int | None = None) -> Sample:
            asked = {
                "artifact": str(model),
                "runtime": "litert",
                "workers": workers,
                "stop": stop,
                "inputs": {_names(model)[0]: str(x)},
                "outputs": {_names(model)[1]: str(outputs)},
            }
            cpu, begun = _cpu_s(child.process.pid), time.perf_counter()
            reply = child.call("run", asked)
            wall = time.perf_counter() - begun
            return Sample(wall_s=wall, cpu_s=_cpu_s(child.process.pid) - cpu, rss_bytes=reply["peak_rss_bytes"])

        once(None, stop=64)
        yield once


def _names(model: Path) -> tuple[str, str]:
    found = json.loads(model.with_name(f"{model.name}.edgedl.json").read_text())
    return found["inputs"][0]["name"], found["outputs"][0]["name"]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def evaluate(rounds: int) -> Iterator[Row]:
    """The agent's loop beside a bare one, on one worker and on all cores, and whether the outputs are the same."""
    with artifacts(".tflite") as models:
        x = images(models["int8"]) / "x.npy"
        for kind, model in models.items():
            yield from _loops(kind, model, x, rounds)


def _loops(kind: str, model: Path, x: Path, rounds: int) -> Iterator[Row]:
    cores = len(os.sched_getaffinity(0))
    ours, theirs = (model.with_name(f"{name}.npy") for name in ("ours", "theirs"))

    def bare() -> Sample:
        wall, cpu = map(float, output(PYTHON, HERE / "peers/loop.py", model, x, theirs).split())
        return Sample(wall_s=wall, cpu_s=cpu)

    with agent(model, x, ours) as once:
        alone, peer, together = turns(rounds * 2, lambda: once(1), bare, lambda: once(cores))
        same = []
        for workers in (1, cores):
            once(workers)
            same.append(np.array_equal(np.load(ours), np.load(theirs)))
    for workers, found, goal, equal in zip((1, cores), (alone, together), (0.95, 0.8 * cores), same, strict=True):
        name, note = f"{IMAGES:,} images, {kind}, workers: {workers}", "outputs equal" if equal else "OUTPUTS DIFFER"
        yield compared("evaluate", name, found, peer, f">= {goal:.3g}", rate_of=IMAGES, note=note)


def metrics(rounds: int) -> Iterator[Row]:
    """Metrics and statistics as a share of the evaluation on all cores."""
    from edgedl.types import TensorSpec
    from edgedl.validation import accuracy
    from edgedl.validation import metrics as known
    from edgedl.validation.gates import Gates

    with artifacts(".tflite") as models:
        data = images(models["int8"])
        outputs = {kind: data / f"{kind}.npy" for kind in models}
        with agent(models["float"], data / "x.npy", outputs["float"]) as once:
            once(None)

        def judge() -> Sample:
            cpu, begun = time.process_time(), time.perf_counter()
            reference, artifact = (np.load(p, mmap_mode="r") for p in outputs.values())
            targets = np.load(data / "y.npy", mmap_mode="r")
            spec = TensorSpec(name="y", dtype="float32", shape=artifact.shape)
            judged = accuracy.Judged(name="y", reference=reference, artifact=artifact, targets=targets, spec=spec)
            gates = Gates(max_drop="1pp")
            accuracy.compare(judged, known.resolve("top1"), gates, prefix="", target=None, seed=0)
            accuracy.agreement(judged, gates, prefix="", target=None, has_answers=True)
            return Sample(wall_s=time.perf_counter() - begun, cpu_s=time.process_time() - cpu)

        with agent(models["int8"], data / "x.npy", outputs["int8"]) as once:
            once(None)
            judge()  # imports
            ours, peer = turns(rounds * 2, judge, lambda: once(None))
    yield compared("metrics", f"top-1 and statistics / int8 evaluation, {IMAGES:,} images", ours, peer, "<= 0.10")


def memory(_: int) -> Iterator[Row]:
    """Peak memory at more samples beside that at 1,000: of the loop's process, and of the largest in `validate`."""
    counts = (1_000, 5_000, 20_000)
    loop, whole = {}, {}
    with artifacts(".tflite") as models:
        for count in counts:
            data = images(models["int8"], count)
            with agent(models["int8"], data / "x.npy", data / "out.npy") as once:
                loop[count] = once(None).rss_bytes
            asked = ("--reference", models["float"], "--data", data / "data.npz", "--on-inconclusive", "pass")
            whole[count] = peak_bytes(EDGEDL, "validate", models["int8"], *asked)
    for name, found in (("evaluation loop", loop), ("edgedl validate", whole)):
        for count in counts[1:]:
            shown = [f"{found[n] / 1e6:.1f} MB" for n in (count, counts[0])]
            yield Row(
                section="memory", name=f"{name}, {count:,} / {counts[0]:,} samples", ours=shown[0], peer=shown[1],
                ratio=found[count] / found[counts[0]], goal="<= 1.1",
            )  # fmt: skip


def latency(rounds: int) -> Iterator[Row]:
    """int8 ONNX beside float ONNX, by `edgedl benchmark`, which lets them take turns."""
    with artifacts(".onnx") as models:
        pairs = []
        for _ in range(rounds):
            told = output(EDGEDL, "benchmark", models["float"], models["int8"], "--json")
            pairs.append([r["latency_ms"] for r in json.loads(told)["results"]])
    ratios = [b / a for a, b in pairs]
    peer, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    yield Row(
        section="latency", name="int8 ONNX / float ONNX", ours=f"{ours:.3f} ms", peer=f"{peer:.3f} ms",
        ratio=ours / peer, low=min(ratios), high=max(ratios), goal="<= 1",
    )  # fmt: skip


# ---- packages -----------------------------------------------------------------------------------------------------


def packages(rounds: int) -> Iterator[Row]:
    """A signed package for every platform, by processes that start cold, and what the AAR adds to a download."""
    asked = {".tflite": ("android", "c", "python", "zip"), ".onnx": ("ios", "web")}
    with tempfile.TemporaryDirectory() as folder, artifacts(".tflite") as tflite, artifacts(".onnx") as onnx:
        key, files = Path(folder, "key"), {".tflite": tflite["int8"], ".onnx": onnx["int8"]}
        command(EDGEDL, "keygen", key)
        walls = []
        for number in range(min(rounds, 3)):
            walls.append(0.0)
            for suffix, platforms in asked.items():
                given = [part for p in platforms for part in ("--platform", p)]
                out = ("-o", Path(folder, f"{number}{suffix}"))
                more = ("--data", TEST, "--name", "resnet8", "--sign", key, *out)
                walls[-1] += command(EDGEDL, "package", files[suffix], *given, *more).wall_s
        (aar,) = Path(folder, "0.tflite").glob("*.aar")
        sizes = [len(zlib.compress(path.read_bytes(), 9)) for path in (aar, files[".tflite"])]
    wall, added = statistics.median(walls), sizes[0] - sizes[1]
    yield Row(
        section="packages", name="signed packages of six platforms / 15 s", ours=f"{wall:.1f} s", peer="15 s",
        ratio=wall / 15, low=min(walls) / 15, high=max(walls) / 15, goal="<= 1",
    )  # fmt: skip
    yield Row(
        section="packages", name="what a signed AAR adds to the model's zlib size / 15 kB", ours=f"{added:,} B",
        peer="15,000 B", ratio=added / 15_000, goal="<= 1",
    )  # fmt: skip


# ---- the table ----------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "startup": startup,
    "export": export,
    "run": run,
    "evaluate": evaluate,
    "metrics": metrics,
    "memory": memory,
    "latency": latency,
    "packages": packages,
}
NEED_NO_DATA = ("startup",)


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it is now."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].partition(":")[2].strip() if models else platform.machine()
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}


def show(rows: Sequence[Row], before: dict[str, Any], after: dict[str, Any]) -> None:
    """The table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 170)
    table = Table(title=f"{before['cpu']}, {before['cores']} cores, load {before['load']:.1f} to {after['load']:.1f}")
    for column in ("", "ours", "peer", "ratio", "rounds", "cpu ratio", "goal", "", "note"):
        table.add_column(column, justify="right" if column in ("ours", "peer", "ratio", "rounds") else "left")
    for row in rows:
        spread = f"{row.low:.2f} to {row.high:.2f}" if row.low is not None else ""
        ratio, cpu = (f"{v:.2f}" if v is not None else "" for v in (row.ratio, row.cpu_ratio))
        verdict = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[row.is_met]
        table.add_row(row.name, row.ours, row.peer, ratio, spread, cpu, row.goal, verdict, escape(row.note))
    console.print(table)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section {sorted(unknown)[0]!r}; there are {', '.join(SECTIONS)}")
    before, rows, has_failed = machine(), [], False
    for name in given.sections or SECTIONS:
        print(f"{name} ...", file=sys.stderr)
        if name not in NEED_NO_DATA and not MODEL.exists():
            rows.append(Row(section=name, name=name, note=f"skipped: needs {SHARED}"))
            continue
        try:
            for row in SECTIONS[name](given.rounds):
                rows.append(row)  # noqa: PERF402 - those before a failure are kept
        except (EdgedlError, OSError, RuntimeError, ValueError, LookupError) as e:
            print(f"{name}: not measured: {e}", file=sys.stderr)
            rows.append(Row(section=name, name=name, note=f"not measured: {e}"))
            has_failed = True
    after = machine()
    if given.json:
        told = [asdict(row) | {"is_met": row.is_met} for row in rows]
        print(json.dumps({"before": before, "after": after, "rows": told}, indent=2))
    else:
        show(rows, before, after)
    sys.exit(int(has_failed))


if __name__ == "__main__":
    main()

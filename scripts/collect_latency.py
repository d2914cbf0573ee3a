"""The tables of published figures that travel with edgedl, from the folder latency/ of the shared data.

What is taken is int8 on CPUs, once: no accelerator, no row that a later table repeats, no model whose operators nobody
published. What is left out is counted on stderr.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgedl.latency.figures import FIGURES, LAYERS, Figure

Table = list[dict[str, str]]
LAYER_COLUMNS = ("model", "idx", "op", "dtype", "in_shape", "weight_shape", "out_shape", "stride", "macs")
TINY = {  # MLPerf Tiny: family and file by the model's first word
    "FC": ("autoencoder", "ad01_int8.tflite"),
    "ResNet8": ("resnet", "pretrainedResnet_quant.tflite"),
    "DS-CNN": ("ds-cnn", "kws_ref_model.tflite"),
    "MobileNetV1": ("mobilenet v1", "vww_96_int8.tflite"),
}
FAMILIES = ("efficientnet", "fdmobilenet", "mobilenet v1", "mobilenet v2", "resnet", "mnist", "tiny_yolo", "yolo")
# Rows of the model zoo whose README names no file, by what their successor's README names it.
ZOO_FILES = {
    "ST EfficientNet LC v1": "flowers/st_efficientnet_lc_v1_{0}_tfs/st_efficientnet_lc_v1_{0}_tfs_int8.tflite",
    "ST FdMobileNet v1": "flowers/st_fdmobilenet_v1_{0}_tfs/st_fdmobilenet_v1_{0}_tfs_int8.tflite",
    "ST Yolo LC v1": "st_yolo_lc_v1_{0}/st_yolo_lc_v1_{0}_int8.tflite",
    "tiny_yolo_v2": "yolov2-tiny-voc {0}",
}
# Rows that name another board than the description of the system they are filed under:
# mlcommons/tiny_results_v1.0:closed/OctoML/systems/system_description_NRF5340DK_microtvm_cmsis_nn.json
MISFILED: dict[str, dict[str, Any]] = {"NRF5340-DK": {"board": "NRF5340-DK", "core": "cortex-m33", "clock_hz": 128e6}}


def collect(folder: Path) -> None:
    """Write the two tables inside the package."""
    tables: dict[str, Table] = {}
    for row in _read(folder / "tflite_layers.csv"):
        tables.setdefault(row["model"], []).append(row)
    tables |= {f"yolov2-tiny-voc {size}": tiny_yolo(size) for size in (224, 416)}
    left: Counter[str] = Counter()
    found = [*_zoo(_read(folder / "st_modelzoo_latency.csv"), tables, left),
             *_mlperf(_read(folder / "mlperf_tiny.csv"), tables, left)]  # fmt: skip
    unique = {(f.runtime, f.version, f.core, f.board, f.family, f.layers, f.latency_ms): f for f in reversed(found)}
    kept = sorted(unique.values(), key=lambda f: (f.runtime, f.version, f.core, f.board, f.family, f.latency_ms))
    left["the same figure again"] += len(found) - len(kept)
    _write(FIGURES, list(Figure.__dataclass_fields__), [{k: str(v) for k, v in asdict(f).items()} for f in kept])
    used = dict.fromkeys(f.layers for f in kept)
    _write(LAYERS, LAYER_COLUMNS, [{**row, "model": model} for model in used for row in tables[model]])
    for why, count in sorted(left.items()):
        print(f"left out: {count} rows, {why}", file=sys.stderr)


def _read(path: Path) -> Table:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: list[str] | tuple[str, ...], rows: Table) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _file(tables: dict[str, Table], end: str) -> str:
    return next((name for name in tables if name.endswith(end)), "")


def _zoo(rows: Table, tables: dict[str, Table], left: Counter[str]) -> Iterator[Figure]:
    """ST's model zoo. Its second README repeats older Linux figures to the digit: these keep their first version."""
    older = {_identity(r) for r in rows if _is_older(r)}
    for row in rows:
        core = _core(row["cpu"])
        linux = core.startswith("cortex-a")
        size = row["resolution"].partition("x")[0]
        named = ZOO_FILES.get(row["model"], "").format(size)
        layers = row["layers_model"] or (_file(tables, named) if named else "")
        if row["format"] != "Int8":
            left["float or mixed precision, too few to fit"] += 1
        elif layers not in tables:
            left["no published operators"] += 1
        elif not core:
            left["no core"] += 1
        elif linux and not _is_older(row) and _identity(row) in older:
            left["the same figure again"] += 1
        else:
            yield Figure(
                runtime="litert" if linux else "x-cube-ai",
                version=("before-5.0" if _is_older(row) else "5.0") if linux else ("7.3" if _is_older(row) else "8.1"),
                threads=2 if row["cpu"].startswith("2x") else 1,
                core=core,
                board=row["board"].replace("H769I", "F769I"),  # the same board, 216 MHz; no H769 exists
                clock_hz=float(row["clock_mhz"]) * 1e6,
                precision="int8",
                family=_family(row["model"]),
                model=f"{row['model']} {row['resolution']}",
                layers=layers,
                latency_ms=float(row["latency_ms"]),
                source=row["source"],
            )


def _core(cpu: str) -> str:
    """Arm's name of a core, as `cortex-m7` of "32-bit Arm Cortex(R)-M7 (DSP + FPU)"; empty where there is none."""
    found = re.search(r"Cortex(?:®|\(R\))?-([AMRX]\d+)", cpu)
    return f"cortex-{found[1].lower()}" if found else ""


def _family(model: str) -> str:
    """That of FAMILIES, else the name up to its first number."""
    name = model.lower()
    return next((f for f in FAMILIES if f in name), re.split(r"\s*v?\d", name.removeprefix("st "))[0].strip() or name)


def _is_older(row: dict[str, str]) -> bool:
    return row["source"].startswith("bvenreply/")


def _identity(row: dict[str, str]) -> tuple[str, ...]:
    return _family(row["model"]), row["board"], row["resolution"], row["latency_ms"]


def _mlperf(rows: Table, tables: dict[str, Table], left: Counter[str]) -> Iterator[Figure]:
    """MLPerf Tiny. Variants for size or speed of which only one model was submitted are left out."""
    for row in rows:
        board, core = row["board"].upper().removesuffix("-Q"), _core(row["cpu"])
        family, end = TINY.get(row["model"].split()[0], ("", ""))
        layers = _file(tables, end) if end else ""
        if row["precision_guess"] != "int8" or row["plain_cpu"] != "1" or not row["latency_ms"]:
            left["float or with an accelerator"] += 1
        elif row["system"].endswith(("max_performance", "min_ram")):
            left["variants with one model"] += 1
        elif not layers:
            left["no published operators"] += 1
        elif not core:
            left["no core"] += 1
        else:
            runtime, version = _runtime(row)
            figure = Figure(
                runtime=runtime, version=version, threads=1, core=core, board=board,
                clock_hz=float(row["clock_mhz"]) * 1e6, precision="int8", family=family, model=row["model"],
                layers=layers, latency_ms=float(row["latency_ms"]), source=row["source"],
            )  # fmt: skip
            yield replace(figure, **MISFILED.get(row["variant"].partition("/")[0], {}))


def _runtime(row: dict[str, str]) -> tuple[str, str]:
    """X-CUBE-AI 8.1 runs MobileNetV1 1.55x faster in its MLPerf submission than in the zoo: that is a runtime apart."""
    said = row["runtime"] or row["compiler"]
    number = re.search(r"v?(\d+\.\d+)", said)
    version = number[1] if number else row["round"].removeprefix("v")
    if "CUBE" in said:
        return ("x-cube-ai-mlperf" if float(version) > 8 else "x-cube-ai"), version
    if "HALE" in said:
        return "hale", "1.0"
    if "Plumerai" in said:
        return "plumerai", version
    if "microTVM" in said:
        return "microtvm", "cmsis-nn" if "cmsis" in row["system"].lower() else "native"
    if "ONNC" in said:
        return "onnc", row["system"].rpartition("-")[2]
    return "tflm", "2.3"


def tiny_yolo(size: int) -> Table:
    """Operators of yolov2-tiny-voc.cfg (https://github.com/pjreddie/darknet) at ST's sizes, one class.

    With a last 3x3 convolution of 512 the int8 weights and int32 biases are 10,775.98 KiB, as ST states.
    """
    rows: Table = []
    depth = 3
    for channels, kernel, pool in [(16, 3, 2), (32, 3, 2), (64, 3, 2), (128, 3, 2), (256, 3, 2), (512, 3, 1),
                                   (1024, 3, 0), (512, 3, 0), (30, 1, 0)]:  # fmt: skip
        inside, outside = f"1x{size}x{size}x{depth}", f"1x{size}x{size}x{channels}"
        rows.append(_layer(rows, "CONV_2D", inside, f"{channels}x{kernel}x{kernel}x{depth}", outside, "1x1",
                           size * size * channels * kernel * kernel * depth))  # fmt: skip
        depth = channels
        if pool:
            size //= pool
            rows.append(_layer(rows, "MAX_POOL_2D", outside, "", f"1x{size}x{size}x{depth}", f"{pool}x{pool}", 0))
    return rows


def _layer(rows: Table, op: str, inside: str, weights: str, outside: str, stride: str, macs: int) -> dict[str, str]:
    return {"idx": str(len(rows)), "op": op, "dtype": "int8", "in_shape": inside, "weight_shape": weights,
            "out_shape": outside, "stride": stride, "macs": str(macs)}  # fmt: skip

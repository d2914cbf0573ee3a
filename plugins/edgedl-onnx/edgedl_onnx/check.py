"""The evidence for an exported file: which kernels run, and whether it agrees with its TFLite file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl_onnx.files import first_line

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgedl_onnx.source import Source

    Array = np.ndarray[Any, Any]

SAMPLES = 64
RANDOM_SAMPLES = 16
INTEGER = frozenset(
    {
        "QLinearConv",
        "QLinearConvTranspose",
        "QGemm",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
)
FLOAT = frozenset(
    {
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "ConvTranspose",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "MatMulNBits",
    }
)
REST = {
    "static_wi8_ai8": "",
    "static_wi8_ai16": "; it has none for 16-bit activations, so expect less than float speed",
    "dynamic_wi8_afp32": "; the rest compute in float32",
}
# Largest root-mean-square difference, as a share of the reference's root mean square. Where both sides compute in
# float it is round-off; where they quantize, kernels round differently and layers amplify it.
ALLOWED = {
    "fp32": 1e-3,
    "fp16": 1e-3,
    "weight_only_wi8_afp32": 1e-3,
    "dynamic_wi8_afp32": 0.2,  # TFLite quantizes the inputs of convolutions as well
    "static_wi8_ai8": 0.3,
    "static_wi8_ai16": 0.05,
}


def integer_kernels(path: Path, scheme: str) -> list[str]:
    """How many convolutions and matrix products onnxruntime runs as integer kernels here; nothing for float schemes."""
    if scheme not in REST:
        return []
    found = optimized_ops(path)
    integer = sum(found[k] for k in INTEGER)
    total = integer + sum(found[k] for k in FLOAT)
    if not total:
        return []
    note = f"{integer} of {total} convolutions and matrix products run as integer kernels in onnxruntime on this CPU"
    return [note + REST[scheme] if integer < total else note]


def optimized_ops(path: Path) -> Counter[str]:
    """The ops of the graph that onnxruntime really runs on this machine, loop bodies included."""
    import onnx
    import onnxruntime

    from edgedl_onnx.graphs import all_nodes

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    out = path.with_suffix(".optimized.onnx")
    options.optimized_model_filepath = str(out)
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's errors share no base
        message = f"onnxruntime does not run the converted model: {first_line(e)}"
        raise UnsupportedError(message) from e
    return Counter(n.op_type for n in all_nodes(onnx.load(out).graph))


def nothing_lost(source: Source, model: onnx.ModelProto) -> None:
    """Raises EdgedlError where a layer's weights or bias in the TFLite file are nowhere in the ONNX model.

    An int8 file that lost a bias computes nearly the same; its outputs alone would not tell.
    """
    from edgedl_onnx.graphs import all_graphs, arrays

    kept = set()
    for graph in all_graphs(model.graph):
        for array in arrays(graph).values():
            kept.add(_sorted(array))
            if array.dtype.name == "uint8":
                kept.add(_sorted(array.astype("int16") - 128))
    lost = [name for name, values in source.weights.items() if values.any() and _sorted(values) not in kept]
    if lost:
        message = f"the ONNX conversion lost constants of the TFLite file: {'; '.join(lost[:3])}"
        raise EdgedlError(message)


def _sorted(values: Array) -> bytes:
    import numpy as np

    return np.sort(values.astype(np.float64), axis=None).tobytes()


@dataclass(frozen=True)
class Comparison:
    """An ONNX file beside the TFLite file that it was made from."""

    tflite: Path
    onnx: Path
    scheme: str
    channels_first: bool = False

    def agreement(self, calibration: Path | None, seed: int) -> str:
        """The measured agreement on calibration samples, or on seeded random input. Raises EdgedlError with figures."""
        reference, made = self._load()
        names = [s["name"] for s in made.inputs]
        specs = {s["name"]: s for s in reference.inputs}
        feeds = samples([specs[name] for name in names], calibration, seed)
        pairs: dict[str, list[tuple[Array, Array]]] = {s["name"]: [] for s in reference.outputs}
        for values in zip(*feeds, strict=True):
            fed = dict(zip(names, values, strict=True))
            reference.feed([fed[s["name"]] for s in reference.inputs])
            made.feed([self._turned(v) for v in values])
            answers = dict(zip((s["name"] for s in made.outputs), made.invoke(), strict=True))
            for spec, a in zip(reference.outputs, reference.invoke(), strict=True):
                pairs[spec["name"]].append((_real(a, spec), self._back(_real(answers[spec["name"]], spec))))
        figures = {name: _figures(name, found) for name, found in pairs.items()}
        where = f"{len(feeds[0])} {'calibration samples' if calibration else 'random inputs'}"
        for name, figure in figures.items():
            limit = ALLOWED[self.scheme]
            if not figure.relative <= limit:
                message = (
                    f"the ONNX file disagrees with its TFLite file at output {name!r} on {where}: {figure}, "
                    f"root-mean-square difference {figure.relative:.3g} of the output's, at most {limit:g} is allowed"
                )
                raise EdgedlError(message)
        parts = [f"{name}: {f}" if len(figures) > 1 else str(f) for name, f in figures.items()]
        return f"agrees with the TFLite file on {where}: {'; '.join(parts)}"

    def _load(self) -> tuple[Any, Any]:
        from edgedl import agent

        try:
            reference = agent.TFLiteModel({"artifact": str(self.tflite), "runtime": "litert", "threads": 1}, {})
        except (ValueError, RuntimeError) as e:
            message = f"{self.tflite}: litert does not run it: {first_line(e)}"
            raise UnsupportedError(message) from e
        try:
            made = agent.OnnxModel({"artifact": str(self.onnx), "threads": 1}, {})
        except Exception as e:  # onnxruntime's errors share no base
            message = f"onnxruntime does not run the converted model: {first_line(e)}"
            raise UnsupportedError(message) from e
        return reference, made

    def _turned(self, value: Array) -> Array:
        return value.transpose(0, 3, 1, 2) if self.channels_first and value.ndim == 4 else value

    def _back(self, value: Array) -> Array:
        return value.transpose(0, 2, 3, 1) if self.channels_first and value.ndim == 4 else value


def samples(specs: list[dict[str, Any]], calibration: Path | None, seed: int) -> list[list[Array]]:
    """For each input a list of arrays as its tensor stores them, from `calibration`/<input>.npy or seeded random."""
    import numpy as np

    rng = np.random.default_rng(seed)
    feeds = []
    for spec in specs:
        batch, *rest = spec["shape"] or [1]
        if calibration is None:
            whole = (
                rng.integers(0, 2, (16 * batch, *rest)) if _whole(spec) else rng.standard_normal((16 * batch, *rest))
            )
        else:
            path = calibration / f"{spec['name']}.npy"
            whole = np.load(path, mmap_mode="r")
            if whole.shape[1:] != tuple(rest) or len(whole) < batch:
                message = f"{path}: shape {whole.shape}, input {spec['name']!r} takes {('samples', *rest)}"
                raise InputError(message)
        stored = _stored(whole[: SAMPLES * batch], spec)
        feeds.append([stored[i : i + batch] for i in range(0, len(stored) - batch + 1, batch)])
    return feeds


def _whole(spec: dict[str, Any]) -> bool:
    return not spec["scale"] and spec["dtype"][0] in "iub"


def _stored(values: Array, spec: dict[str, Any]) -> Array:
    """`values` as the tensor stores them; integer data for a quantized tensor of that dtype is stored already."""
    import numpy as np

    from edgedl import agent

    dtype = np.dtype(spec["dtype"])
    if spec["scale"] and dtype.kind in "iu" and values.dtype != dtype:
        values = agent.quantize(values, spec["scale"][0], spec["zero_point"][0], dtype)
    return np.ascontiguousarray(values, dtype)


def _real(values: Array, spec: dict[str, Any]) -> Array:
    import numpy as np

    if not spec["scale"] or values.dtype.kind == "f":
        return values.astype(np.float64)
    real: Array = (values.astype(np.float64) - spec["zero_point"][0]) * spec["scale"][0]
    return real


@dataclass(frozen=True)
class Figures:
    """How two outputs agree: top-1 as a fraction (None: one value a sample), and differences of real values."""

    top1: float | None
    largest: float
    relative: float

    def __str__(self) -> str:
        top1 = "" if self.top1 is None else f"top-1 {100 * self.top1:.1f} %, "
        return f"{top1}max difference {self.largest:.3g}"


def _figures(name: str, pairs: list[tuple[Array, Array]]) -> Figures:
    import numpy as np

    for a, b in pairs:
        if a.shape != b.shape:
            message = f"output {name!r} has shape {list(b.shape)} in the ONNX file, {list(a.shape)} in the TFLite file"
            raise EdgedlError(message)
    reference, made = np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])
    difference = np.abs(reference - made)
    norm = float(np.sqrt(np.mean(reference**2)))
    root = float(np.sqrt(np.mean(difference**2)))
    top1 = None
    if reference.ndim > 1 and reference.shape[-1] > 1:
        top1 = float(np.mean(reference.argmax(-1) == made.argmax(-1)))
    relative = root / norm if norm else root
    return Figures(top1, float(np.max(difference)), relative)

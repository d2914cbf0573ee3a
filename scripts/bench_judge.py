"""How `scripts/bench compress` judges a file: on the test samples, and timed beside the float file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_models import Subject
from bench_techniques import Technique
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgedl.types import Artifact
    from edgedl.validation.metrics import Comparison

SEED, REPEATS = 0, 300


@dataclass(frozen=True, kw_only=True)
class Made:
    """One side's file, and what making it took: `work_s` from reading the float model to the file written."""

    path: Path
    work_s: float
    peak_bytes: int
    macs: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line. Scores and drops are fractions with 95 % intervals, `drop` against the float file.

    `against` has, for a row of ours, each peer of its group: [peer, how much better ours is, low, high].
    """

    group: str
    tool: str
    name: str
    accuracy: float | None = None
    drop: tuple[float, float, float] | None = None
    size_bytes: int | None = None
    compressed_bytes: int | None = None
    macs: int | None = None
    zeros: float | None = None
    latency_ratio: float | None = None
    work_s: float | None = None
    peak_bytes: int | None = None
    against: tuple[tuple[str, float, float, float], ...] = ()
    notes: tuple[str, ...] = field(default=())
    has_failed: bool = False


class Judge:
    """Runs every file on the test samples and times it beside the float file."""

    def __init__(self, subject: Subject, reference: Path) -> None:
        from edgedl import artifacts, data

        self.data, self.targets = data.load(str(subject.test)), np.load(subject.test)["y"]
        self.float, _ = artifacts.read(reference)
        self.answers = {"float": self._answers(self.float)}

    def row(self, technique: Technique, made: Made, macs: int | None) -> Row:
        """The line of a file."""
        from edgedl import artifacts

        artifact, _ = artifacts.read(made.path)
        self.answers[technique.key] = self._answers(artifact)
        found = self._compared("float", technique.key)
        return Row(
            group=technique.group,
            tool=technique.tool,
            name=technique.name,
            accuracy=found.artifact,
            drop=(found.drop, float(found.interval.low), float(found.interval.high)),
            size_bytes=artifact.size_bytes,
            compressed_bytes=artifact.compressed_bytes,
            macs=made.macs or macs,
            zeros=zeros(made.path),
            latency_ratio=self._latency_ratio(artifact),
            work_s=made.work_s,
            peak_bytes=made.peak_bytes,
            notes=made.notes,
        )

    def against(self, ours: str, peer: str) -> tuple[float, float, float]:
        """How much better ours is than a peer, with its 95 % interval."""
        found = self._compared(ours, peer)
        return found.drop, float(found.interval.low), float(found.interval.high)

    def _compared(self, reference: str, artifact: str) -> Comparison:
        from edgedl.validation import metrics

        return metrics.compare(
            metrics.resolve("top1"), self.answers[reference], self.answers[artifact], self.targets, seed=SEED
        )

    def _answers(self, artifact: Artifact) -> NDArray[Any]:
        from edgedl import artifacts, data
        from edgedl.validation import evaluate

        setting = evaluate.Setting(runtime=artifacts.runtime_for(artifact.format))
        bound = data.bind(self.data, artifact.inputs, artifact.outputs)
        first = next(iter(evaluate.outputs(artifact, setting, bound.inputs).values()))
        return np.asarray(np.load(first))

    def _latency_ratio(self, artifact: Artifact) -> float:
        from edgedl import artifacts
        from edgedl.validation import benchmark, evaluate

        entries = [
            (a, evaluate.Setting(runtime=artifacts.runtime_for(a.format)), benchmark.random_inputs(a, SEED))
            for a in (self.float, artifact)
        ]
        first, second = benchmark.measure(entries, repeats=REPEATS)
        return second.latency_ms / first.latency_ms


def zeros(path: Path) -> float:
    """The share of zeros among the weights of an artifact's constants of two axes or more."""
    kernels = list(_onnx_constants(path) if path.suffix == ".onnx" else _tflite_constants(path))
    count = sum(k.size for k in kernels)
    return float(sum((k == 0).sum() for k in kernels) / count) if count else 0.0


def _tflite_constants(path: Path) -> Iterator[NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=plain)
    made = {int(i) for op in interpreter._get_ops_details() for i in op["outputs"]}
    made |= {d["index"] for d in interpreter.get_input_details()}
    for detail in interpreter.get_tensor_details():
        if len(detail["shape"]) > 1 and detail["index"] not in made:
            yield interpreter.get_tensor(detail["index"])


def _onnx_constants(path: Path) -> Iterator[NDArray[Any]]:
    import onnx

    for tensor in onnx.load(str(path)).graph.initializer:
        if len(tensor.dims) > 1:
            yield onnx.numpy_helper.to_array(tensor)

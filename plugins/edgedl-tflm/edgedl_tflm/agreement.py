"""Where TFLM's kernels and litert's builtin ones part: how far, and in which operator first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import agent
from edgedl_tflm import graph, interpreter
from edgedl_tflm.model import TFLMModel

SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Over `samples`: the largest difference of an output, in codes where it is quantized; the share of values that
    differ; and, by the operator in which the two part first, the number of samples."""

    samples: int
    largest: float
    quantized: bool
    differing: float
    operators: dict[str, int]

    def as_text(self) -> str:
        """One sentence for the report."""
        if not self.differing:
            return f"TFLM's and litert's builtin kernels agree on all values of {self.samples} samples"
        where = ", ".join(f"operator {name} ({count} samples)" for name, count in self.operators.items())
        unit = "LSB" if self.quantized else "at most"
        size = f"{self.largest:g} {unit}" if self.quantized else f"{unit} {self.largest:.2g}"
        return f"{self.differing:.2%} of the values differ from litert's builtin kernels, {size}; they part in {where}"


def compare(path: Path, inputs: Mapping[str, Path], *, straight: bool) -> Agreement:
    """Run the first samples with both, a batch at a time.

    `inputs` are real numbers by name, or what is stored where `straight`. Raises ValueError for data of another shape.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    builtin = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    litert = Interpreter(
        str(path), num_threads=1, experimental_op_resolver_type=builtin, experimental_preserve_all_tensors=True
    )
    litert.allocate_tensors()
    content = path.read_bytes()
    ours = TFLMModel({"artifact": str(path)}, {})
    keeping = interpreter.start_large(content, preserve=True)
    only = graph.read(content).subgraphs[0]
    samples = min(SAMPLES, *(len(np.load(p, mmap_mode="r")) for p in inputs.values()))
    largest, differing, total, parted = 0.0, 0, 0, Counter[str]()
    batch = max(1, *(spec["shape"][0] for spec in ours.inputs if spec["shape"]))
    for at in range(0, samples, batch):
        count = min(batch, samples - at)
        places = np.minimum(np.arange(at, at + batch), samples - 1)  # the last sample fills its batch
        values = [_stored(spec, np.load(inputs[spec["name"]], mmap_mode="r")[places], straight) for spec in ours.inputs]
        theirs = _outputs(litert, only, values, ours)
        ours.feed(values)
        pairs = zip(ours.invoke(), theirs, strict=True)
        steps = [np.abs(a.astype(np.float64) - b.astype(np.float64)).reshape(batch, -1)[:count] for a, b in pairs]
        largest = max(largest, *(float(s.max()) for s in steps))
        total += sum(s.size for s in steps)
        differing += sum(int(np.count_nonzero(s)) for s in steps)
        if different := int(np.count_nonzero(sum(s.any(axis=1) for s in steps))):
            parted[_first(litert, keeping, values, ours)] += different
    quantized = all(spec["dtype"] in ("int8", "int16", "uint8") for spec in ours.outputs)
    return Agreement(
        samples=samples, largest=largest, quantized=quantized, differing=differing / total, operators=dict(parted)
    )


def _stored(spec: dict[str, Any], values: NDArray[Any], straight: bool) -> NDArray[Any]:
    dtype = np.dtype(spec["dtype"])
    if spec["scale"] and not straight and dtype.kind in "iu":
        return agent.quantize(values, spec["scale"][0], spec["zero_point"][0], dtype)  # type: ignore[no-any-return]
    return values.astype(dtype)


def _outputs(litert: Any, only: Any, values: list[NDArray[Any]], ours: TFLMModel) -> list[NDArray[Any]]:
    for spec, value in zip(ours.inputs, values, strict=True):
        litert.set_tensor(int(only.inputs[spec["index"]]), value)
    litert.reset_all_variables()
    litert.invoke()
    return [litert.get_tensor(int(only.outputs[spec["index"]])) for spec in ours.outputs]


def _first(litert: Any, keeping: Any, values: list[NDArray[Any]], ours: TFLMModel) -> str:
    """`2, CONV_2D`: the first operator with another output, in the order of execution."""
    keeping.reset()
    for spec, value in zip(ours.inputs, values, strict=True):
        keeping.set_input(value, spec["index"])
    keeping.invoke()
    for index, op in enumerate(litert._get_ops_details()):
        for place in op["outputs"]:
            there = litert.get_tensor(int(place))
            here = np.asarray(keeping.GetTensor(int(place), 0)["tensor_data"]).reshape(there.shape)
            if not np.array_equal(here, there):
                return f"{index}, {op['op_name']}"
    return "none that is seen"

"""Golden inputs and outputs: a few samples, and what the artifact gives for them here, to be repeated on a device.

Inputs are as the app feeds them: real values as float32 where the tensor is quantized, what the tensor itself stores
where it is not, or where the model does its preprocessing. Whole float32 numbers from 0 to 255, such as pixels, lie in
the files as uint8: they travel in every app. Outputs are real values, float32.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import artifacts, data, preprocessing, worker
from edgedl.errors import InputError, PluginError, UnsupportedError
from edgedl.types import AgentRuntime, Artifact, TensorSpec
from edgedl.validation import evaluate
from edgedl.validation.evaluate import Setting

NUMBERS: tuple[str, ...] = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMBERS += ("float16", "float32", "float64")
SAMPLES = 4
INPUT_BYTES = 16_000  # of all samples together, unless one alone is larger: they travel in every app
CANDIDATES, CANDIDATE_BYTES = 1000, 16_000_000  # most drawn where fewer samples fit, to take those that compress best
LEVELS = 16  # of a random input, evenly over its range: small in an app store's download
EIGHT_BIT = (
    2 / 127
)  # two steps of a signed 8-bit range: such weights or activations are inside, whatever the outputs are
STEPS = {"tflite-runtime": 3}  # its int8 kernels for Arm round otherwise than those for x86: 3 on ResNet8, 500 images
RELATIVE = {
    "fp32": 1e-4,
    "weight_only_wi8_afp32": 1e-4,
    "weight_only_wi4_afp32": 1e-4,
    "fp16": 1e-3,
    "static_wi8_ai16": 1e-3,
    "float32 weights": 1e-4,  # of a file without a sidecar
    "float16 weights": 1e-3,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Samples by input name; with them the preprocessing the data asks of the app, and its labels, where it says so."""

    arrays: dict[str, NDArray[Any]]
    source: str  # data | random
    preprocessing: tuple[dict[str, Any], ...] = ()
    labels: tuple[str, ...] = ()


def check_dtypes(artifact: Artifact) -> None:
    """Raises UnsupportedError for an input or output of texts, sequences, or numbers that NumPy does not have."""
    for side, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
        for spec in specs:
            if spec.dtype not in NUMBERS:
                message = (
                    f"{artifact.path}: {side} {spec.name!r} is {spec.dtype}; golden samples are {', '.join(NUMBERS)}: "
                    "export the model without its text or ZipMap part, or with a cast to one of these"
                )
                raise UnsupportedError(message)


def runtimes_for(format_: str) -> list[tuple[AgentRuntime, str]]:
    """The runtimes of a format that start here, with their versions. Raises PluginError where there is none."""
    names = artifacts.runtimes(format_) or [artifacts.runtime_for(format_).name]
    known = [artifacts.runtime_for(format_, name) for name in names]
    chosen = [runtime for runtime in known if runtime.model is None] or known  # a plugin's own starts a browser, say
    found = [(runtime, *_started(runtime)) for runtime in chosen]
    working = [(runtime, version) for runtime, version, _ in found if version]
    if not working:
        why = "; ".join(f"{runtime.name}: {reason}" for runtime, _, reason in found)
        message = f"no runtime for {format_!r} starts here: {why}. Try: {chosen[-1].install}"
        raise PluginError(message)
    return working


def runtime_for(format_: str, preferred: str) -> tuple[AgentRuntime, str]:
    """A runtime that starts here, the preferred one where it does, and its version. Raises PluginError."""
    names = artifacts.runtimes(format_)
    if preferred in names:
        runtime = artifacts.runtime_for(format_, preferred)
        version, _ = _started(runtime)
        if version:
            return runtime, version
    return runtimes_for(format_)[0]


def _started(runtime: AgentRuntime) -> tuple[str | None, str]:
    """The version of a runtime that starts, else why it does not."""
    child, interpreter = artifacts.child_of(runtime), artifacts.interpreter_of(runtime)
    told = worker.call("info", artifacts.probe(runtime), child=child, interpreter=interpreter)
    found = told["runtimes"][runtime.name]
    return found["version"], found["why"]


def from_data(artifact: Artifact, source: str, seed: int) -> Inputs:
    """Samples of the user's data, after the preprocessing that is left to the app. Raises InputError."""
    dataset = data.load(source)
    left = evaluate.left_to_the_app(artifact, dataset)
    names = data.input_names(dataset, artifact.inputs)

    def drawn(samples: int) -> dict[str, NDArray[Any]]:
        ids = data.draw(dataset, samples, seed)
        folder = data.subset({n: dataset.arrays[n] for n in names}, ids, worker.pool().scratch("golden"))
        few = replace(dataset, arrays=dataset.arrays | {n: folder / f"{n}.npy" for n in names}, count=len(ids))
        bound = data.bind(data.prepare(few, left, names), artifact.inputs, artifact.outputs)
        return {spec.name: np.load(bound.inputs[spec.name], mmap_mode="r") for spec in artifact.inputs}

    few, raw = drawn(SAMPLES), {name: np.load(dataset.arrays[name], mmap_mode="r") for name in names}
    fed = _fed(artifact, few)
    if len(next(iter(fed.values()))) < min(SAMPLES, dataset.count):
        sample_bytes = max(sum(a[:1].nbytes for a in side.values()) for side in (few, raw))
        fed = _fed(artifact, _smallest_first(drawn(max(SAMPLES, min(CANDIDATES, CANDIDATE_BYTES // sample_bytes)))))
    return Inputs(
        arrays=fed,
        source="data",
        preprocessing=preprocessing.to_json((*dataset.applied, *left)),
        labels=dataset.labels,
    )


def _smallest_first(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The samples in the order of what zlib makes of them as they are stored."""
    stored = [_small(np.ascontiguousarray(a)) for a in arrays.values()]
    sizes = [sum(len(zlib.compress(a[i].tobytes())) for a in stored) for i in range(len(stored[0]))]
    order = np.argsort(sizes, kind="stable")
    return {name: a[order] for name, a in arrays.items()}


def from_seed(artifact: Artifact, seed: int) -> Inputs:
    """Random samples over the range of each input. Raises InputError where a size is free."""
    rng = np.random.default_rng(seed)
    for spec in artifact.inputs:
        if None in spec.shape[1:]:
            message = (
                f"{artifact.path}: input {spec.name!r} has free sizes, {list(spec.shape)}; name samples with --data"
            )
            raise InputError(message)
    arrays = {spec.name: _random(artifact, spec, rng) for spec in artifact.inputs}
    return Inputs(arrays=_fed(artifact, arrays), source="random")


def _random(artifact: Artifact, spec: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
    """Every code of a quantized or 8-bit input; [0, 1) after preprocessing for floats; 0 and 1 for ids and flags."""
    shape, dtype = (SAMPLES, *(n or 1 for n in spec.shape[1:])), np.dtype(spec.dtype)
    inside = artifact.lineage.embedded
    if dtype.kind in "iu" and (spec.scale or dtype.itemsize == 1):
        limits = np.iinfo(dtype)
        codes = np.rint(np.linspace(limits.min, limits.max, LEVELS))[rng.integers(0, LEVELS, shape)]
        real = spec.scale and not inside
        return np.asarray((codes - spec.zero_point[0]) * spec.scale[0] if real else codes)
    if dtype.kind != "f":
        return rng.integers(0, 2, shape)
    values = rng.integers(0, LEVELS, shape) / LEVELS
    if not inside:
        return values
    factor, offset = preprocessing.affine(preprocessing.parse(inside, str(artifact.path)), shape[-1])
    return (values - offset) / factor


def _fed(artifact: Artifact, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """As many samples as fit, in the type that the app feeds."""
    dtypes = {
        spec.name: np.dtype(np.float32 if spec.scale and not artifact.lineage.embedded else spec.dtype)
        for spec in artifact.inputs
    }
    sample_bytes = sum(int(np.prod(a.shape[1:])) * dtypes[name].itemsize for name, a in arrays.items())
    samples = max(1, min(SAMPLES, INPUT_BYTES // max(1, sample_bytes)))
    return {name: _small(np.ascontiguousarray(a[:samples], dtypes[name])) for name, a in arrays.items()}


def _small(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, as uint8 where float32 holds no others than that does."""
    small = np.clip(values, 0, 255).astype(np.uint8) if values.dtype == np.float32 else values
    return small if np.array_equal(small, values) else values


def run(artifact: Artifact, runtime: AgentRuntime, inputs: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    """What the artifact gives in a child: float32 real values by output name. Raises InputError, WorkerError."""
    files = evaluate.outputs(artifact, Setting(runtime=runtime), inputs, workers=1)
    return {name: np.load(path) for name, path in files.items()}


def tolerance(spec: TensorSpec, scheme: str, runtime: str) -> dict[str, Any]:
    """How far an output may be from the golden one of the same runtime on another machine.

    `lsb`: steps of the output's scale for a quantized output, by runtime, none for other integers. `relative`: the
    largest difference over the largest golden value, by scheme.
    """
    if spec.scale:
        return {"unit": "lsb", "value": STEPS.get(runtime, 1)}
    if np.dtype(spec.dtype).kind != "f":
        return {"unit": "lsb", "value": 0}
    return {"unit": "relative", "value": RELATIVE.get(scheme, EIGHT_BIT)}


def difference(spec: TensorSpec, unit: str, golden: NDArray[Any], found: NDArray[Any]) -> float:
    """The largest difference, in `unit`; infinite where shapes differ or a value is not finite."""
    if golden.shape != found.shape or not (np.isfinite(golden).all() and np.isfinite(found).all()):
        return float("inf")
    wide = golden.astype(np.float64)
    largest = float(np.abs(wide - found).max(initial=0.0))
    if unit == "lsb":
        return float(np.rint(largest / (spec.scale[0] if spec.scale else 1.0)))
    return largest / max(float(np.abs(wide).max(initial=0.0)), float(np.finfo(np.float32).tiny))

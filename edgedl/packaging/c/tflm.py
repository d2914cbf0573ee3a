"""TensorFlow Lite for Microcontrollers: how much arena a model takes, and what its resolver calls an operator."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgedl import worker
from edgedl.errors import InputError, PluginError, UnsupportedError

CHILD = "tflm"
TIMEOUT_S = 120.0
STEP_BYTES = 16  # the alignment of TFLM's buffers
SPARE_BYTES = 1_000_000  # of the arena that is measured in, which grows
MOST_BYTES = 256_000_000  # up to here
FULL = "Failed to resize buffer"
TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
METHOD = "emulated"
HOW = "TFLM's own memory planner with its reference kernels, run on a 64-bit host"

# Where the name of the method is not that of the operator in camel case:
# https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/micro_mutable_op_resolver.h
METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    "CIRCULAR_BUFFER": "AddCircularBuffer",
}


def resolver_method(op: str) -> str:
    """The method of MicroMutableOpResolver that adds an operator. Raises UnsupportedError for a custom one."""
    if op in METHODS:
        return METHODS[op]
    if not op.isupper():
        message = f"operator {op} is a custom one, and TFLM's resolver has no method for it; add it in the firmware"
        raise UnsupportedError(message)
    return "Add" + "".join(part.capitalize() if part.isalpha() else _numbered(part) for part in op.split("_"))


def _numbered(part: str) -> str:
    """`2D`, `L2`, `V2` stay, `RELU6` is Relu6."""
    return part if len(part) == 2 else part.capitalize()


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """`inputs` and `outputs` are names in TFLM's order; `values` are what it gave, by output name, (samples, ...)."""

    arena_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: dict[str, NDArray[Any]]


def measure(artifact: Path, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Measured:
    """The smallest tensor arena that TFLM can place the model in, to 16 bytes, and what it gives for samples.

    Inputs are by name, as the tensors store them, (samples, ...), and so are the outputs. Raises PluginError where
    tflite-micro is not installed, UnsupportedError where TFLM does not take the model.
    """
    folder = worker.pool().scratch("tflm")
    for i, values in enumerate(inputs.values()):
        np.save(folder / f"input_{i}.npy", values)
    asked = {"artifact": str(artifact), "folder": str(folder), "inputs": list(inputs), "outputs": list(outputs)}
    found = worker.call("edgedl.packaging.c.tflm:run", asked, child=CHILD, timeout_s=TIMEOUT_S)
    return Measured(
        arena_bytes=found["arena_bytes"],
        inputs=tuple(found["inputs"]),
        outputs=tuple(found["outputs"]),
        values={name: np.load(folder / f"output_{i}.npy") for i, name in enumerate(found["outputs"])},
    )


def run(artifact: str, folder: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    """Child side of `measure`: what TFLM's recorder counts, and the first size from there on that is enough."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as e:
        message = f"platform 'c' measures the arena with TFLM: {e}. Try: pip install 'edgedl[c]'"
        raise PluginError(message) from e
    data, file = Path(artifact).read_bytes(), Path(artifact).name
    model = runtime.convert_bytearray_to_object(data)
    arrays = {name: np.load(Path(folder) / f"input_{i}.npy") for i, name in enumerate(inputs)}
    names_in, names_out = _ordered(model, "inputs", inputs), _ordered(model, "outputs", outputs)
    arena = 10 * len(data) + SPARE_BYTES
    while arena < MOST_BYTES and not _has_room(runtime, data, arena):
        arena *= 4
    with _listening() as said:
        try:
            interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
            values = _infer(interpreter, [arrays[name] for name in names_in], len(names_out))
            interpreter.print_allocations()
        except (RuntimeError, ValueError) as e:
            message = f"{file}: TFLM does not take it: {_line(_heard(said)) or e}"
            raise UnsupportedError(message) from e
        counted = TOTAL.search(_heard(said))
        if counted is None:
            message = f"{file}: TFLM does not tell the size of its arena: {_line(_heard(said))}"
            raise UnsupportedError(message)
        size = -(-int(counted[1]) // STEP_BYTES) * STEP_BYTES
        while not _fits(runtime, data, size):
            size += STEP_BYTES
    for i, value in enumerate(values):
        np.save(Path(folder) / f"output_{i}.npy", value)
    return {"arena_bytes": size, "inputs": names_in, "outputs": names_out}


def _ordered(model: Any, side: str, names: Sequence[str]) -> list[str]:
    """The names as TFLM counts tensors, by their place in the graph; a signature may have another order."""
    if not model.signatureDefs:
        return list(names)
    places = {m.name.decode(): m.tensorIndex for m in getattr(model.signatureDefs[0], side)}
    graph = [int(i) for i in getattr(model.subgraphs[0], side)]
    return sorted(names, key=lambda name: graph.index(places[name]))


def _infer(interpreter: Any, arrays: Sequence[NDArray[Any]], outputs: int) -> list[NDArray[Any]]:
    """The outputs of every sample, (samples, ...); a recurrent model forgets the sample before."""
    found = []
    for sample in range(len(arrays[0])):
        interpreter.reset()
        for i, values in enumerate(arrays):
            interpreter.set_input(values[sample : sample + 1], i)
        interpreter.invoke()
        found.append([np.array(interpreter.get_output(i)) for i in range(outputs)])
    return [np.concatenate(values) for values in zip(*found, strict=True)]


def _has_room(runtime: Any, data: bytes, size: int) -> bool:
    """Whether TFLM places the model in so much, or refuses it for another reason."""
    with _listening() as said:
        return _fits(runtime, data, size) or FULL not in _heard(said)


def _fits(runtime: Any, data: bytes, size: int) -> bool:
    try:
        runtime.Interpreter.from_bytes(data, arena_size=size)
    except (RuntimeError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _listening() -> Iterator[IO[bytes]]:
    """What is written to the file descriptor of stderr meanwhile; TFLM gives its reasons and counts there alone."""
    with tempfile.TemporaryFile() as said:
        saved = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _heard(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read().decode(errors="replace")


def _line(why: str) -> str:
    return next((line.strip() for line in why.splitlines() if line.strip()), "")


def check_fixed(side: str, spec: dict[str, Any]) -> None:
    """Raises InputError for a tensor whose size is not known when the firmware is compiled; a free batch is one."""
    if None in spec["shape"][1:]:
        message = (
            f"{side} {spec['name']!r} has free sizes, {spec['shape']}, and C arrays fixed ones; export with --shape"
        )
        raise InputError(message)

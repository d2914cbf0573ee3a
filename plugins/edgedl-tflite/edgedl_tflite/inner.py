"""What every operator of a .tflite file gives for samples, in litert."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.agent import quantize
from edgedl.errors import UnsupportedError
from edgedl_tflite.describe import describe


def outputs(path: str, inputs: Mapping[str, str], out: str, straight: bool) -> dict[int, str]:
    """The first output of each operator by its index: (samples, ...) float32 real values, an .npy in folder `out`.

    With the builtin kernels: XNNPACK keeps what is inside to itself, and rounds otherwise. `inputs` are .npy by name, a
    few samples; `straight` says that they are what the tensors store. Raises UnsupportedError for a batch.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    specs = describe(path).inputs
    if any(spec.shape[:1] not in ((1,), (None,)) for spec in specs):
        message = f"{path}: has a batch of {specs[0].shape[0]}; layers are compared with a batch of 1: export it so"
        raise UnsupportedError(message)
    interpreter = Interpreter(
        model_path=path,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    signature = next(iter(interpreter._get_full_signature_list().values()), None)
    places = signature["inputs"] if signature else {d["name"]: d["index"] for d in interpreter.get_input_details()}
    for name, file in inputs.items():  # where the file leaves sizes free
        interpreter.resize_tensor_input(places[name], (1, *np.load(file, mmap_mode="r").shape[1:]), strict=True)
    interpreter.allocate_tensors()
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    arrays = {places[name]: _stored(np.load(file), details[places[name]], straight) for name, file in inputs.items()}
    operators = {int(op["index"]): int(op["outputs"][0]) for op in interpreter._get_ops_details()}
    found: dict[int, list[NDArray[Any]]] = {index: [] for index in operators}
    for sample in range(len(next(iter(arrays.values())))):
        interpreter.reset_all_variables()
        for place, values in arrays.items():
            interpreter.set_tensor(place, values[sample : sample + 1])
        interpreter.invoke()
        for index, place in operators.items():
            found[index].append(_real(interpreter.get_tensor(place), details[place]))
    files = {index: Path(out) / f"operator_{index}.npy" for index in found}
    for index, each in found.items():
        np.save(files[index], np.stack([v[0] if v.shape[:1] == (1,) else v for v in each]))
    return {index: str(file) for index, file in files.items()}


def _stored(values: NDArray[Any], detail: dict[str, Any], straight: bool) -> NDArray[Any]:
    scale, zero_point = detail["quantization"]
    if scale and not straight:
        codes: NDArray[Any] = quantize(values, scale, zero_point, np.dtype(detail["dtype"]))
        return codes
    return values.astype(detail["dtype"])


def _real(values: NDArray[Any], detail: dict[str, Any]) -> NDArray[Any]:
    """Real values of what an activation stores: one scale a tensor, or none."""
    scale, zero_point = detail["quantization"]
    return np.asarray((values.astype(np.float64) - zero_point) * scale if scale else values, np.float32)

"""What every operator of an .onnx file gives for samples, in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.agent import quantize
from edgedl.errors import PluginError, UnsupportedError
from edgedl.types import TensorSpec
from edgedl_onnx.describe import describe
from edgedl_onnx.graphs import all_nodes


def outputs(path: str, inputs: Mapping[str, str], out: str, straight: bool) -> dict[int, str]:
    """The first output of each operator by its index: (samples, ...) float32 real values, an .npy in folder `out`.

    Of operators that give floats: in a quantized file those after DequantizeLinear. Without onnxruntime's optimizer,
    which would fuse them, so that kernels may round otherwise. `inputs` are .npy by name, a few samples; `straight`
    says that they are what the tensors store. Raises UnsupportedError for an .ort file or a batch.
    """
    model = _model(path)
    specs = describe(path).inputs
    if any(spec.shape[:1] not in ((1,), (None,)) for spec in specs):
        message = f"{path}: has a batch of {specs[0].shape[0]}; layers are compared with a batch of 1: export it so"
        raise UnsupportedError(message)
    top = {name for node in model.graph.node for name in node.output[:1] if name}
    names = {i: n.output[0] for i, n in enumerate(all_nodes(model.graph)) if n.output and n.output[0] in top}
    session = _session(model, set(names.values()))
    floats = {value.name for value in session.get_outputs() if value.type == "tensor(float)"}
    kept = {index: name for index, name in names.items() if name in floats}
    arrays = {spec.name: _stored(np.load(inputs[spec.name]), spec, straight) for spec in specs}
    samples = range(len(next(iter(arrays.values()))))
    wanted = list(kept.values())
    runs = [session.run(wanted, {name: a[i : i + 1] for name, a in arrays.items()}) for i in samples]
    found = {}
    for index, values in zip(kept, zip(*runs, strict=True), strict=True):
        found[index] = str(Path(out) / f"operator_{index}.npy")
        np.save(found[index], np.stack([v[0] if v.shape[:1] == (1,) else v for v in values]))
    return found


def _model(path: str) -> Any:
    if path.endswith(".ort"):
        message = f"{path}: an .ort file does not tell what is inside; name the .onnx it was made from"
        raise UnsupportedError(message)
    try:
        import onnx
    except ImportError as e:
        message = f"{path}: layers are read with the package onnx: {e}. Try: pip install onnx"
        raise PluginError(message) from e
    return onnx.load(path)


def _session(model: Any, names: set[str]) -> Any:
    """The model with these tensors among its outputs, every operator as it is in the file."""
    import onnx
    import onnxruntime

    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(names - there))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _stored(values: NDArray[Any], spec: TensorSpec, straight: bool) -> NDArray[Any]:
    if spec.scale and not straight:
        codes: NDArray[Any] = quantize(values, spec.scale[0], spec.zero_point[0], np.dtype(spec.dtype))
        return codes
    return values.astype(spec.dtype)

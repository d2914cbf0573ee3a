"""What is in an .onnx or .ort file, with onnxruntime alone; operators and weights where `onnx` is installed."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.errors import InputError
from edgedl.types import ArtifactInfo, OpInfo, TensorSpec
from edgedl_onnx.files import first_line

if TYPE_CHECKING:
    import onnx

PREFIX = "edgedl."
DTYPES = {"float": "float32", "double": "float64"}


def describe(path: str) -> ArtifactInfo:
    """Inputs, outputs and metadata; ops and weight bytes of an .onnx file too.

    Raises InputError: not such a file, one whose weights lie in others, or damaged metadata.

    `metadata` has output_steps, see `_output_steps`, and ir_version, beside what the file carries.
    """
    session = _session(path)
    custom = dict(session.get_modelmeta().custom_metadata_map)
    metadata = {k.removeprefix(PREFIX): _value(v) if k.startswith(PREFIX) else v for k, v in custom.items()}
    model = None
    if not path.endswith(".ort") and importlib.util.find_spec("onnx"):
        import onnx

        model = onnx.load(path, load_external_data=False)
        _refuse_external(path, model)
    quantization = _told(path, metadata.pop("quantization", {})) or (_quantization(model) if model else {})
    return ArtifactInfo(
        format="onnx",
        inputs=tuple(_spec(v, quantization) for v in session.get_inputs()),
        outputs=tuple(_spec(v, quantization) for v in session.get_outputs()),
        ops=_ops(model) if model else (),
        weight_bytes=_weight_bytes(model) if model else {},
        metadata=metadata
        | {"output_steps": _output_steps(model) if model else {}, "ir_version": model.ir_version if model else None},
    )


def _session(path: str) -> Any:
    import onnxruntime

    if not Path(path).is_file():
        message = f"{path}: no such file"
        raise InputError(message)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's errors share no base
        message = f"{path}: onnxruntime does not load it: {first_line(e)}"
        raise InputError(message) from e


def _refuse_external(path: str, model: onnx.ModelProto) -> None:
    from edgedl_onnx.graphs import all_graphs

    for tensor in (t for graph in all_graphs(model.graph) for t in graph.initializer):
        if tensor.external_data:
            where = next(entry.value for entry in tensor.external_data if entry.key == "location")
            message = (
                f"{path}: its weights lie in {where}, and an artifact is one file. Store them in it: "
                f"python -c \"import onnx; onnx.save(onnx.load('{path}'), 'whole.onnx')\""
            )
            raise InputError(message)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _spec(value: Any, quantization: dict[str, Any]) -> TensorSpec:
    dtype = value.type[len("tensor(") : -1] if value.type.startswith("tensor(") else value.type
    scale, zero_point = quantization.get(value.name, ((), ()))
    return TensorSpec(
        name=value.name,
        dtype=DTYPES.get(dtype, dtype),
        shape=tuple(v if isinstance(v, int) and v >= 0 else None for v in value.shape),
        scale=tuple(scale),
        zero_point=tuple(zero_point),
    )


def _told(path: str, quantization: Any) -> dict[str, Any]:
    """What the metadata says: tensor name -> (scales, zero points). Raises InputError where it says something else."""
    if not isinstance(quantization, dict):
        message = (
            f"{path}: damaged metadata {PREFIX}quantization: a JSON object is needed, got {quantization!r:.60}; "
            "export it again"
        )
        raise InputError(message)
    for name, pair in quantization.items():
        if not _is_pair(pair):
            message = (
                f"{path}: damaged metadata {PREFIX}quantization: {name!r} needs [scales, zero points], "
                f"lists of equally many numbers, scales above 0, got {pair!r:.60}; export it again"
            )
            raise InputError(message)
    return quantization


def _is_pair(value: Any) -> bool:
    """Whether it is [scales, zero points] of a tensor."""
    match value:
        case [[*scales], [*zero_points]] if len(scales) == len(zero_points):
            whole = all(type(z) is int for z in zero_points)
            return whole and all(type(s) in (int, float) and 0 < s < math.inf for s in scales)
    return False


def _quantization(model: onnx.ModelProto) -> dict[str, Any]:
    """Tensor name -> (scales, zero points), from the QuantizeLinear or DequantizeLinear beside it."""
    values = _constants(model.graph)
    found = {}
    for node in model.graph.node:
        name = {"QuantizeLinear": node.output[:1], "DequantizeLinear": node.input[:1]}.get(node.op_type)
        if name and all(n in values for n in node.input[1:]):
            scale = values[node.input[1]].reshape(-1).tolist()
            zero_point = values[node.input[2]].reshape(-1).tolist() if len(node.input) == 3 else [0] * len(scale)
            found[name[0]] = (scale, zero_point)
    return found


def _constants(graph: onnx.GraphProto) -> dict[str, Any]:
    """The arrays of initializers and of Constant nodes by name."""
    from onnx import numpy_helper

    from edgedl_onnx.graphs import arrays

    nodes = {n.output[0]: n.attribute[0] for n in graph.node if n.op_type == "Constant"}
    return arrays(graph) | {name: numpy_helper.to_array(a.t) for name, a in nodes.items() if a.name == "value"}


def _output_steps(model: onnx.ModelProto) -> dict[str, Any]:
    """Outputs that are float in the file and integers within: dtype, scale and zero point before DequantizeLinear."""
    values, outputs = _constants(model.graph), {o.name for o in model.graph.output}
    found = {}
    for node in model.graph.node:
        is_last = node.op_type == "DequantizeLinear" and node.output[0] in outputs
        if is_last and len(node.input) == 3 and all(n in values for n in node.input[1:]):
            scale, zero_point = values[node.input[1]], values[node.input[2]]
            steps = {"scale": scale.reshape(-1).tolist(), "zero_point": zero_point.reshape(-1).tolist()}
            if scale.size == 1:
                found[node.output[0]] = {"dtype": str(zero_point.dtype), **steps}
    return found


def _ops(model: onnx.ModelProto) -> tuple[OpInfo, ...]:
    from edgedl_onnx.graphs import all_nodes

    versions = {o.domain: o.version for o in model.opset_import}
    return tuple(
        OpInfo(
            index=i,
            name=f"{n.domain}.{n.op_type}" if n.domain else n.op_type,
            version=versions.get(n.domain),
            inputs=tuple(n.input),
            outputs=tuple(n.output),
        )
        for i, n in enumerate(all_nodes(model.graph))
    )


def _weight_bytes(model: onnx.ModelProto) -> dict[str, int]:
    from edgedl_onnx.graphs import weight_bytes

    return weight_bytes(model)

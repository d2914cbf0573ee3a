"""How much of an .onnx file NNAPI and Core ML take, as onnxruntime's own mobile check tells."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from edgedl.errors import UnsupportedError
from edgedl.types import Check, Method


def figures(path: str, target: dict[str, Any], inputs: Mapping[str, str], straight: bool) -> list[Check]:  # noqa: ARG001
    """`nnapi_cpu_ops`, `coreml_cpu_ops`: the operators left to the CPU, for each delegate that the target names.

    Raises UnsupportedError where `onnx` is not installed, or for an .ort file.
    """
    if path.endswith(".ort") or importlib.util.find_spec("onnx") is None:
        message = f"{path}: NNAPI and Core ML are checked on an .onnx file, with onnx installed: pip install onnx"
        raise UnsupportedError(message)
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    wanted = {d for runtime in target["runtimes"] if runtime["name"] == "onnxruntime" for d in runtime["delegates"]}
    sizes = [d for value in model.graph.input for d in value.type.tensor_type.shape.dim]
    fix = "which the operators around hide" if all(d.dim_value for d in sizes) else "export with --shape"
    return [_check(name, _partitions(name, model), target["id"], fix) for name in sorted(wanted)]


def _partitions(delegate: str, model: Any) -> Any:
    """The check's `PartitioningInfo`; NNAPI and Core ML are slow or wrong with free sizes, which count as not taken."""
    from onnxruntime.tools.mobile_helpers import usability_checker

    if delegate == "nnapi":
        return usability_checker.check_nnapi_partitions(model, require_fixed_input_sizes=True)
    return usability_checker.check_coreml_partitions(
        model, require_fixed_input_sizes=True, config_filename="coreml_supported_mlprogram_ops.md"
    )


def _check(delegate: str, found: Any, target: str, fix: str) -> Check:
    taken, total = found.num_supported_nodes, found.num_nodes
    why = f"{taken} of {total} operators in {found.num_partitions} partition(s)"
    if found.unsupported_ops:
        why += f"; not taken: {', '.join(sorted(found.unsupported_ops))}"
    if found.nodes_unsupported_due_to_dynamic_input:
        why += f"; {found.nodes_unsupported_due_to_dynamic_input} whose sizes are not known, {fix}"
    if found.num_partitions > 1:
        why += "; each change of device costs time, one partition is best"
    return Check(
        name=f"{delegate}_cpu_ops", target=target, measured=total - taken, unit="count", method=Method.STATIC, why=why
    )

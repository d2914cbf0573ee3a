"""The runtime `onnxruntime`, which edgedl's agent runs."""

from __future__ import annotations

from edgedl.types import AgentRuntime

ONNXRUNTIME = AgentRuntime(
    name="onnxruntime",
    format="onnx",
    module="onnxruntime",
    install="pip install onnxruntime",
    describe="edgedl_onnx.describe:describe",
    inner="edgedl_onnx.inner:outputs",
    figures="edgedl_onnx.mobile:figures",
    figures_for=("nnapi", "coreml"),
)

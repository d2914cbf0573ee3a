"""Vela gives figures of an NPU; it runs nothing."""

from edgedl.types import AgentRuntime

VELA = AgentRuntime(
    name="vela",
    format="tflite",
    module="ethosu.vela",
    install="pip install edgedl-vela",
    figures="edgedl_vela.figures:figures",
    runs=False,
)

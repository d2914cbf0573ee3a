"""The runtime of microcontrollers, on this machine."""

from edgedl.types import AgentRuntime

TFLM = AgentRuntime(
    name="tflm",
    format="tflite",
    module="tflite_micro",
    install="pip install edgedl-tflm",
    alone=True,  # what it does not like it ends with SIGABRT
    describe="edgedl_tflite.describe:describe",
    model="edgedl_tflm.model:TFLMModel",
    figures="edgedl_tflm.figures:figures",
    parallel=False,  # an inference holds Python's lock
)

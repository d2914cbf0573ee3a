"""The two runtimes of .tflite files, which `edgedl.agent` runs."""

from edgedl.types import AgentRuntime

LITERT = AgentRuntime(
    name="litert",
    format="tflite",
    module="ai_edge_litert.interpreter",
    install="pip install ai-edge-litert",
    describe="edgedl_tflite.describe:describe",
    inner="edgedl_tflite.inner:outputs",
)
TFLITE_RUNTIME = AgentRuntime(
    name="tflite-runtime",
    format="tflite",
    module="tflite_runtime.interpreter",
    install="pip install tflite-runtime 'numpy<2'",
    alone=True,  # it fails in a process that holds TensorFlow
    python_variable="EDGEDL_TFLITE_RUNTIME_PYTHON",
    describe="edgedl_tflite.describe:describe",
)

"""The two runtimes of a browser."""

from edgedl.types import AgentRuntime

INSTALL = (
    "apt-get install chromium && pip install playwright && "
    "npm install --prefix ~/.cache/edgedl/browser @litertjs/core@2.5.3 onnxruntime-web@1.30.0"
)
LITERT_JS = AgentRuntime(
    name="litert-js",
    format="tflite",
    module="edgedl_browser.litert_js",
    install=INSTALL,
    alone=True,  # the browser belongs to one child
    describe="edgedl_tflite.describe:describe",
    model="edgedl_browser.model:BrowserModel",
    parallel=False,  # a browser a child
)
ONNXRUNTIME_WEB = AgentRuntime(
    name="onnxruntime-web",
    format="onnx",
    module="edgedl_browser.onnxruntime_web",
    install=INSTALL,
    alone=True,
    describe="edgedl_onnx.describe:describe",
    model="edgedl_browser.model:BrowserModel",
    parallel=False,
)

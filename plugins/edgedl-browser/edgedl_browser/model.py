"""A file in LiteRT.js or onnxruntime-web, as `edgedl.agent` runs it: one page of one headless Chromium a process."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl_browser import places
from edgedl_browser.server import Server

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LOAD_TIMEOUT_MS = 120_000


class BrowserModel:
    """`took_ns` is the time of the last inference and `load_ms` that of loading, both taken inside the page."""

    peak_rss_bytes = None  # the browser is many processes, which share pages

    def __init__(self, request: dict[str, Any], data_shapes: dict[str, tuple[int, ...]]) -> None:
        server, browser = _started()
        path = Path(request["artifact"])
        name = f"{len(server.models)}{path.suffix}"
        server.models[name] = path
        self._page = browser.new_page()
        self._page.set_default_timeout(LOAD_TIMEOUT_MS)
        self._page.goto(server.address + "/")
        self._page.wait_for_function("window.ready")
        asked = [request["runtime"], f"/models/{name}", request.get("threads") or 1]
        told = self._evaluate("a => window.load(...a)", asked)
        self.load_ms = float(told["took"])
        if not told["isolated"]:
            message = "the page is not isolated, so that it has no threads"
            raise RuntimeError(message)
        scales = request.get("quantization") or {}
        self.inputs = [_spec(d, scales, data_shapes) for d in told["inputs"]]
        self.outputs = [_spec(d, scales, {}) for d in told["outputs"]]
        self._values: list[dict[str, Any]] = []
        self.took_ns = 0

    def feed(self, values: list[NDArray[Any]]) -> None:
        """Set the inputs, in the order of `inputs`."""
        self._values = [
            {"name": spec["name"], "dtype": str(value.dtype), "shape": list(value.shape), "data": _text(value)}
            for spec, value in zip(self.inputs, values, strict=True)
        ]

    def invoke(self) -> list[NDArray[Any]]:
        """Run once; the outputs in the order of `outputs`."""
        told = self._evaluate("a => window.infer(a)", self._values)
        self.took_ns = int(told["took"] * 1e6)
        return [_array(told["outputs"][spec["name"]], spec["dtype"]) for spec in self.outputs]

    def _evaluate(self, script: str, argument: Any) -> Any:
        """What the page answers. Raises RuntimeError with the first line of what it throws."""
        from playwright.sync_api import Error

        try:
            return self._page.evaluate(script, argument)
        except Error as e:
            line = e.message.strip().splitlines()[0].removeprefix("Page.evaluate: ")
            raise RuntimeError(line) from e


@cache
def _started() -> tuple[Server, Any]:
    """The server and the browser of this process, which end with it: it hangs on a pipe. Raises RuntimeError."""
    from playwright.sync_api import Error, sync_playwright

    path, chromium = places.browser(), sync_playwright().start().chromium
    try:
        return Server(places.modules()), chromium.launch(executable_path=path, args=list(ARGUMENTS))
    except Error as e:
        said = [line.partition("[err] ")[2] for line in e.message.splitlines() if "[err] " in line]
        message = f"{path} does not start: {said[-1] if said else e.message.splitlines()[0]}"
        raise RuntimeError(message) from e


def _spec(detail: dict[str, Any], scales: dict[str, Any], data_shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    name, shape = detail["name"], [size if size is None or size > 0 else None for size in detail["shape"]]
    if name in data_shapes and len(shape) == len(data_shapes[name]) + 1:
        known = (1, *data_shapes[name])
        shape = [size if size is not None else known[i] for i, size in enumerate(shape)]
    scale, zero_point = scales.get(name, ([], []))
    return {"name": name, "dtype": detail["dtype"], "shape": shape, "scale": scale, "zero_point": zero_point}


def _text(value: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()


def _array(told: dict[str, Any], dtype: str) -> NDArray[Any]:
    values = np.frombuffer(base64.b64decode(told["data"]), dtype)
    return values.reshape([int(size) for size in told["shape"]])

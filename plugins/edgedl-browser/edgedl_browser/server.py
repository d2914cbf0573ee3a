"""A server on this machine alone: the page, the packages of npm, and the files of models that are loaded."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("page.html")
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}
# Threads of WebAssembly need shared memory, which a page has only when it is isolated.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server:
    """Serves until it is closed. `models` are files by the name under /models/."""

    def __init__(self, modules: Path) -> None:
        self.models: dict[str, Path] = {}
        self._modules = modules.resolve()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """Answer with a file, or 404."""
                path = server.find(self.path)
                self.send_response(200 if path else 404)
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                content = path.read_bytes() if path else b""
                self.send_header("Content-Type", TYPES.get(path.suffix if path else "", "application/octet-stream"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def find(self, url: str) -> Path | None:
        """The file of a URL: inside of node_modules, a model that was named, or the page."""
        path = url.split("?")[0]
        if path == "/":
            return PAGE
        if path.startswith("/models/"):
            return self.models.get(path.removeprefix("/models/"))
        file = (self._modules / path.removeprefix("/node_modules/")).resolve()
        return file if file.is_relative_to(self._modules) and file.is_file() else None

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()

"""A headless Chromium that opens one page of a folder and sends back what the page's script finds."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
PAGE = """<!doctype html>
<script type="importmap">{importmap}</script>
<script type="module">
const send = (body) => fetch("/answer", {{ method: "POST", body: JSON.stringify(body) }});
addEventListener("error", (event) => send({{ error: event.message }}));
try {{
  const {{ default: main }} = await import("./main.js");
  await send({{ result: await main() }});
}} catch (error) {{
  await send({{ error: String(error) }});
}}
</script>
"""


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.answers.append(json.loads(body))
        self.server.answered.set()

    def log_message(self, *_):
        pass


def run(folder, script, imports, timeout_s=60):
    """What `export default async function main()` of the script gives, as JSON, with `folder` as the web's root.

    `imports` maps module names to paths, as a bundler would.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    (folder / "index.html").write_text(PAGE.format(importmap=json.dumps({"imports": imports})))
    (folder / "main.js").write_text(script)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder)) as server:
        server.answers, server.answered = [], threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            where = f"http://127.0.0.1:{server.server_port}/"
            browser = subprocess.Popen(
                [chromium, *FLAGS, f"--user-data-dir={profile}", where],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                answered = server.answered.wait(timeout_s)
            finally:
                os.killpg(browser.pid, signal.SIGKILL)  # its helpers too
                browser.wait()
        server.shutdown()
    assert answered, f"the page said nothing within {timeout_s} s"
    answer = server.answers[0]
    assert "error" not in answer, answer["error"]
    return answer["result"]

"""Where the browser and the packages of npm are."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def modules() -> Path:
    """The `node_modules` folder: that of EDGEDL_BROWSER_MODULES, else the one in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EDGEDL_BROWSER_MODULES") or cache / "edgedl" / "browser" / "node_modules")


def browser() -> str:
    """The path of a Chromium. Raises ImportError where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        message = f"no {', '.join(BROWSERS)} on the path: apt-get install chromium"
        raise ImportError(message)
    return found


def version_of(package: str) -> str:
    """The version of a package of npm, once all that it takes to run it is there. Raises ImportError."""
    browser()
    if importlib.util.find_spec("playwright") is None:
        message = "playwright is not installed: pip install playwright"
        raise ImportError(message)
    file = modules() / package / "package.json"
    if not file.is_file():
        message = f"no {package} in {modules()}: npm install --prefix {modules().parent} {package}"
        raise ImportError(message)
    return str(json.loads(file.read_text(encoding="utf-8"))["version"])

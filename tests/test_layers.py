"""The floors of the design: a module imports its own folder and lower floors, a plugin the few modules it may."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", ""},
    {"types", "plugins", "agent", "toml", "user_code"},
    {"worker", "targets", "contract", "recipes", "data", "readers", "preprocessing"},
    {"models", "graph", "model_file", "artifacts", "fitting"},
    {"compression", "training", "devices", "latency", "exporting", "inspection", "doctor"},
    {"validation"},
    {"reporting", "stepwise", "latency_goal"},
    {"packaging"},
    {"pipeline", "testing"},
    {"pipeline_file", "runs", "demo"},
    {"cli"},
]  # fmt: skip
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FOR_PLUGINS = {"errors", "types", "models", "graph", "agent", "testing"}


def imported(path):
    """The edgedl modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgedl":
            inner = node.module.split(".")[1:]
            yield from [inner[0]] if inner else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("edgedl."))


def test_modules_import_lower_floors_only():
    for path in sorted((ROOT / "edgedl").rglob("*.py")):
        own = path.relative_to(ROOT / "edgedl").parts[0].removesuffix(".py").replace("__init__", "")
        for name in imported(path):
            if name.startswith("__") or name == own:
                continue
            assert FLOOR[name] <= FLOOR[own], f"{path}: imports {name}, which is above"


def test_plugins_import_only_what_they_may():
    for path in sorted(ROOT.glob("plugins/*/edgedl_*/**/*.py")):
        assert set(imported(path)) <= FOR_PLUGINS, path

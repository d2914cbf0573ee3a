"""What is in a wheel, by an example called `keyword`:

keyword_model/__init__.py    `Model`, from module.py beside this file
keyword_model/__main__.py    `python -m keyword_model`: the self-test
keyword_model/_edgedl/       the agent and the preprocessing of edgedl that it uses
keyword_model/content/       what every package has, `manifest.json` among it
keyword_model-1.2.0.dist-info/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from edgedl import __version__
from edgedl.errors import InputError
from edgedl.types import Content, Layout

EDGEDL = Path(__file__).parents[2]
USED = ("agent.py", "errors.py", "preprocessing")
INNER = "_edgedl"
IMPORT = re.compile(r"^(\s*)from edgedl(\.[\w.]+)? import ", re.MULTILINE)
PRERELEASES = re.compile(r"(alpha|a|beta|b|rc|dev)\.?(\d+)")
SHORT = {"alpha": "a", "beta": "b"}
EXTRAS = {  # runtimes of a format: the distribution of each, and what it needs that it does not say itself
    "tflite": {"litert": ["ai-edge-litert"], "tflite-runtime": ["tflite-runtime", "numpy<2"]},
    "onnx": {"onnxruntime": ["onnxruntime"]},
}


class PythonPackager:
    """`NAME_model-VERSION-py3-none-any.whl`."""

    platform = "python"
    formats: tuple[str, ...] = ("tflite", "onnx")

    def lay_out(self, content: Content, tree: Path) -> Layout:
        """The module and the metadata. Raises InputError where the version is none of Python packages."""
        found = content.manifest
        version, module = python_version(found["version"]), module_name(found["name"])
        for place, text in (_sources(module) | _metadata(module, version, found)).items():
            path = tree / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        file = f"{module}-{version}-py3-none-any.whl"
        return Layout(file=file, content=f"{module}/content", notes=tuple(_notes(found)))


def module_name(name: str) -> str:
    """`keyword-int8` as keyword_int8_model: no module of the standard library has such a name."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
    return plain if plain.endswith("_model") else f"{plain}_model"


def python_version(version: str) -> str:
    """A semantic version as PEP 440 has it: 1.2.0-rc.1 is 1.2.0rc1. Raises InputError where it has no such thing."""
    number, _, pre = version.partition("-")
    if not pre:
        return number
    known = PRERELEASES.fullmatch(pre)
    if known is None:
        message = f"--version: {version} is no version for Python; use -rc.1, -beta.1 or -dev.1 after {number}"
        raise InputError(message)
    kind = SHORT.get(known[1], known[1])
    return f"{number}.dev{known[2]}" if kind == "dev" else f"{number}{kind}{known[2]}"


def _sources(module: str) -> dict[str, str]:
    """The Python files by place: edgedl's own, whose imports of each other lead into the wheel."""
    inner = f"{module}/{INNER}"
    found = {
        f"{module}/__init__.py": Path(__file__).with_name("module.py"),
        **{f"{inner}/{file.relative_to(EDGEDL).as_posix()}": file for name in USED for file in _python(EDGEDL / name)},
    }
    texts = {place: _rewritten(file.read_text(encoding="utf-8"), module) for place, file in found.items()}
    main = f"import sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
    about = f'"""Parts of edgedl {__version__}. See LICENSE."""\n'
    return texts | {f"{module}/__main__.py": main, f"{inner}/__init__.py": about, f"{inner}/LICENSE": _license()}


def _python(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


def _rewritten(text: str, module: str) -> str:
    return IMPORT.sub(rf"\1from {module}.{INNER}\2 import ", text)


def _license() -> str:
    """edgedl's own, which must travel with its files."""
    found = metadata.distribution("edgedl").read_text("licenses/LICENSE")
    return found or (EDGEDL.parent / "LICENSE").read_text(encoding="utf-8")


def _extras(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each runtime that runs the model is installed by, from the release on that has its operators."""
    minimums = found["runtime"]["minimums"]
    extras = {}
    for name, (package, *more) in EXTRAS[found["artifact"]["format"]].items():
        if minimum := minimums.get(name, ""):
            package += f">={minimum}"
        if minimum is not None:
            extras[name] = [package, *more]
    return extras


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(EXTRAS[found["artifact"]["format"]].keys() - _extras(found).keys()):
        yield f"python: no release of {name} has every operator of the model, and the wheel has no extra for it"


def _metadata(module: str, version: str, found: Mapping[str, Any]) -> dict[str, str]:
    """The files of the .dist-info; RECORD is written with the archive."""
    extras = _extras(found)
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {module.replace('_', '-')}",
        f"Version: {version}",
        f"Summary: The model {found['name']}, with what it needs to run",
        *([f"License-Expression: {found['license']}"] if found["license"] else []),
        "Requires-Python: >=3.10",
        "Requires-Dist: numpy",
        *(
            line
            for extra, needs in extras.items()
            for line in (f"Provides-Extra: {extra}", *(f"Requires-Dist: {n}; extra == '{extra}'" for n in needs))
        ),
    ]
    wheel = [
        "Wheel-Version: 1.0",
        f"Generator: edgedl ({__version__})",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    folder = f"{module}-{version}.dist-info"
    return {f"{folder}/METADATA": "\n".join(lines) + "\n", f"{folder}/WHEEL": "\n".join(wheel) + "\n"}

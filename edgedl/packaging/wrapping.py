"""What the wrappers of every platform are written from: the tensors and steps of a manifest, and template files.

Templates are files in the platform's own language. A `__WORD__` in one is replaced; nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl.contract.op_versions import newest
from edgedl.errors import InputError, UnsupportedError

FOLDER = Path(__file__).parent / "templates"
WORD = re.compile(r"__([A-Z]+)__")
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
STEPS = ("cast", "resize", "crop", "grayscale", "scale", "normalize")
RESHAPING = ("resize", "crop", "grayscale")
SAMPLE_DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "float32")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a runtime takes: its name, the types of its tensors, and whether a file may leave the batch open."""

    runtime: str
    dtypes: tuple[str, ...]
    free_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output as the app sees it: `shape` without the batch, `dtype` of the values it gives or gets."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """The app's side of a model. `model` is the class, such as KeywordModel."""

    name: str
    version: str
    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[dict[str, Any], ...]

    @property
    def results(self) -> str:
        """The class of several outputs, such as KeywordOutputs."""
        return f"{self.model.removesuffix('Model')}Outputs"

    @property
    def takes_images(self) -> bool:
        """Whether a step changes the shape of a sample, so that the app must say it."""
        return any(step["op"] in RESHAPING for step in self.steps)


def words(text: str) -> frozenset[str]:
    """The words of a text, for the reserved ones of a language."""
    return frozenset(text.split())


def render(platform: str, file: str, values: Mapping[str, str]) -> str:
    """A template file with its words replaced; KeyError where one has no value."""
    text = (FOLDER / platform / file).read_text(encoding="utf-8")
    return WORD.sub(lambda found: values[found[1]], text)


def wrapper(manifest: Mapping[str, Any], limits: Limits) -> Wrapper:
    """What a wrapper is written from.

    Raises InputError for a batch or a free size, UnsupportedError for a type or a step that wrappers do not have.
    """
    embedded = bool(manifest["embedded"])
    for side in ("input", "output"):
        for spec in manifest[f"{side}s"]:
            _check_tensor(side, spec, limits)
    return Wrapper(
        name=manifest["name"],
        version=manifest["version"],
        model=f"{camel_case(manifest['name'])}Model",
        inputs=tuple(_tensor(spec, real=bool(spec["scale"]) and not embedded) for spec in manifest["inputs"]),
        outputs=tuple(_tensor(spec, real=True) for spec in manifest["outputs"]),
        steps=_steps(manifest["preprocessing"]),
    )


def notes(manifest: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    """What an app's developer should hear: LiteRT refuses an open batch where the file also says that it has a rank.

    Older converters leave that flag out (`has_rank` in TFLite's schema.fbs), newer ones set it; edgedl fixes the batch.
    """
    free = [spec["name"] for spec in manifest["inputs"] if spec["shape"][0] is None and not limits.free_batch]
    return tuple(
        f"input {name!r} leaves the batch open, which {limits.runtime} refuses in files of newer converters: "
        "try selfTest() first, or export with edgedl, which fixes it"
        for name in free
    )


def runtime_release(manifest: Mapping[str, Any], runtime: str, *others: str | None) -> str:
    """The release of a runtime that an app should have at least: what the model needs, and no older than `others`."""
    return newest([manifest["runtime"]["minimums"].get(runtime), *others])


def camel_case(name: str) -> str:
    """`keyword-int8` as KeywordInt8."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[_.-]+", name))


def check_names(tensors: Sequence[Tensor], side: str, language: str, reserved: Collection[str]) -> None:
    """Raises InputError where several inputs or outputs become parameters or properties and one has no name for it."""
    for tensor in tensors if len(tensors) > 1 else ():
        if not IDENTIFIER.fullmatch(tensor.name) or tensor.name in reserved:
            message = (
                f"{side} {tensor.name!r} is no name in {language}: letters, digits and _ are allowed, a letter first, "
                f"and no word of the language; rename the layer in the Keras model and export again"
            )
            raise InputError(message)


def shown_shape(tensor: Tensor) -> str:
    """`32 x 32 x 3` of a tensor's sizes."""
    return " x ".join("any" if size is None else str(size) for size in tensor.shape) or "1"


def shown_steps(wrapped: Wrapper) -> str:
    """The steps in one line for a README."""
    texts = []
    for step in wrapped.steps:
        keys = ", ".join(f"{key} {value}" for key, value in step.items() if key != "op")
        texts.append(f"{step['op']} ({keys})" if keys else step["op"])
    return ", then ".join(texts) or "nothing"


def _check_tensor(side: str, spec: Mapping[str, Any], limits: Limits) -> None:
    where = f"{side} {spec['name']!r}"
    free = side == "input" and None in spec["shape"][1:]
    if free or spec["shape"][:1] not in ([1], [None]):
        message = f"{where} has shape {_sizes(spec)}: wrappers feed one sample of a fixed shape; export with --shape"
        raise InputError(message)
    if spec["dtype"] not in limits.dtypes:
        message = (
            f"{where} is {spec['dtype']}, {limits.runtime} takes {', '.join(limits.dtypes)}; {_other_type(side, spec)}"
        )
        raise UnsupportedError(message)


def _other_type(side: str, spec: Mapping[str, Any]) -> str:
    """How to export with a type that wrappers take: `--io` changes quantized tensors alone."""
    if spec["scale"]:
        return "export with --io float"
    if side == "input":
        return "declare it with keras.Input(dtype='int32') or 'float32' in the Keras model and export again"
    return "cast it to int32 or float32 in the Keras model and export again"


def _sizes(spec: Mapping[str, Any]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in spec['shape'])}]"


def _tensor(spec: Mapping[str, Any], *, real: bool) -> Tensor:
    return Tensor(name=spec["name"], dtype="float32" if real else spec["dtype"], shape=tuple(spec["shape"][1:]))


def _steps(steps: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    for i, step in enumerate(steps, 1):
        dtype = step.get("dtype", "float32")
        if step["op"] in STEPS and dtype in SAMPLE_DTYPES:
            continue
        what = step["op"] if step["op"] not in STEPS else f"cast to {dtype}"
        message = (
            f"preprocess step {i} ({what}) is left to the app, and wrappers have none; they have {', '.join(STEPS)}, "
            f"and types {', '.join(SAMPLE_DTYPES)}. Do that step in the app, and name data that has been through it"
        )
        raise UnsupportedError(message)
    return tuple(dict(step) for step in steps)


def described(wrapped: Wrapper) -> str:
    """What `predict` takes and gives, a sentence or two."""
    before = f"After {shown_steps(wrapped)}: one" if wrapped.steps else "One"
    inputs = " and ".join(shown_shape(t) for t in wrapped.inputs)
    outputs = " and ".join(shown_shape(t) for t in wrapped.outputs)
    return f"{before} sample of {inputs} values. Gives {outputs} values."

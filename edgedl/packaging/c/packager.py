"""What is in a package of the platform `c`, by an example called `keyword`:

keyword_model.h, .c    the file as an array, arena, tensors, labels
keyword_golden.h, .c   golden inputs and outputs as the tensors store them, to be linked for a self-test alone
keyword_tflm.h         C++: the resolver with the operators of this model and no other
README.md              how they are used
content/               what every package has, `manifest.json` among it
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import agent, artifacts
from edgedl.packaging import golden
from edgedl.packaging.c import source, tflm
from edgedl.packaging.c.source import Golden
from edgedl.packaging.c.tflm import Measured
from edgedl.types import Content, Layout, TensorSpec


class CPackager:
    """`NAME-VERSION-c.zip`."""

    platform = "c"
    formats: tuple[str, ...] = ("tflite",)

    def lay_out(self, content: Content, tree: Path) -> Layout:
        """The sources. Raises InputError: free sizes; UnsupportedError: TFLM does not take the model; PluginError."""
        found = content.manifest
        methods = [tflm.resolver_method(op["name"]) for op in found["ops"]]
        for side in ("input", "output"):
            for spec in found[f"{side}s"]:
                tflm.check_fixed(side, spec)
        model, name = content.folder / found["artifact"]["file"], identifier(found["name"])
        inputs = _inputs(content)
        measured = tflm.measure(model, inputs, [spec["name"] for spec in found["outputs"]])
        ordered = _ordered(found, measured)
        arrays = Golden(
            inputs=[inputs[n] for n in measured.inputs],
            outputs=[measured.values[n] for n in measured.outputs],
            tolerances=[_tolerance(found["golden"]["tolerance"][n], measured.values[n]) for n in measured.outputs],
        )
        files = {
            f"{name}_model.h": source.model_header(name, ordered, measured.arena_bytes),
            f"{name}_model.c": source.model_source(name, found, model.read_bytes()),
            f"{name}_golden.h": source.golden_header(name, ordered, arrays),
            f"{name}_golden.c": source.golden_source(name, arrays),
            f"{name}_tflm.h": source.resolver_header(name, found, sorted(set(methods))),
            "README.md": source.readme(name, ordered, measured.arena_bytes),
        }
        for file, text in files.items():
            (tree / file).write_text(text, encoding="utf-8")
        file = f"{found['name']}-{found['version']}-c.zip"
        return Layout(file=file, content="content", notes=tuple(_differences(content, measured)))


def identifier(name: str) -> str:
    """`keyword-int8` as keyword_int8; with a suffix it is no word of C."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _ordered(found: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """The manifest with its tensors in the order in which TFLM counts them."""
    sides = {}
    for side, names in (("inputs", measured.inputs), ("outputs", measured.outputs)):
        specs = {spec["name"]: spec for spec in found[side]}
        sides[side] = [specs[name] for name in names]
    return {**found, **sides}


def _inputs(content: Content) -> dict[str, NDArray[Any]]:
    """The golden inputs as the tensors store them: (samples, ...) by name."""
    found, stored = content.manifest, {}
    for spec in found["inputs"]:
        values = np.load(content.folder / found["golden"]["inputs"][spec["name"]])
        stored[spec["name"]] = values.astype(spec["dtype"]) if found["embedded"] else _stored(values, spec)
    return stored


def _differences(content: Content, measured: Measured) -> Iterator[str]:
    """A note an output that TFLM's kernels give otherwise than the runtime of the golden outputs."""
    found = content.manifest
    for spec in artifacts.specs_from_json(found["outputs"]):
        limit = found["golden"]["tolerance"][spec.name]
        expected = np.load(content.folder / found["golden"]["outputs"][spec.name])
        real = _real(measured.values[spec.name], spec)
        off = golden.difference(spec, limit["unit"], expected, real.reshape(expected.shape))
        if off > limit["value"]:
            yield (
                f"c: TFLM's output {spec.name!r} is up to {off:.3g} {limit['unit']} from that of "
                f"{found['runtime']['name']}, whose kernels round otherwise; the package has TFLM's golden outputs"
            )


def _real(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if not spec.scale or values.dtype.kind == "f":
        return values
    return (values.astype(np.float32) - np.float32(spec.zero_point[0])) * np.float32(spec.scale[0])


def _tolerance(limit: Mapping[str, Any], values: NDArray[Any]) -> float:
    """The largest difference that is the same answer, in what the output stores."""
    return float(limit["value"] * (1 if limit["unit"] == "lsb" else np.abs(values).max(initial=0)))


def _stored(values: NDArray[Any], spec: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(spec["dtype"])
    if spec["scale"] and dtype.kind in "iu":
        codes: NDArray[Any] = agent.quantize(values, spec["scale"][0], spec["zero_point"][0], dtype)
        return codes
    return values.astype(dtype)

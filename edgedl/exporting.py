"""Model -> Artifact: calibration drawn, the exporter plugin run in a child, the result measured and described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import artifacts, data, plugins, preprocessing, worker
from edgedl.data import Dataset
from edgedl.errors import InputError, UnsupportedError
from edgedl.model_file import CHILD, ModelFile
from edgedl.preprocessing.op import Op
from edgedl.types import Artifact, ArtifactInfo, Exporter, ExportOptions, Lineage, Scheme, TensorSpec, to_json

FRAMEWORKS = ("tensorflow", "keras", "ai-edge-litert", "onnx", "onnxruntime", "tf2onnx", "numpy")


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What an exporter calibrates on: a folder of .npy files, and which samples they are."""

    folder: Path | None = None
    data_sha256: str | None = None
    ids: tuple[int, ...] = ()
    hashes: tuple[str, ...] = ()
    embedded: tuple[dict[str, Any], ...] = ()  # for the exporter, folded to one affine step an input
    left: tuple[Op, ...] = ()
    inside: tuple[Op, ...] = ()
    labels: tuple[str, ...] = ()


def exporter_for(format_: str | None, out: Path, scheme: Scheme | None) -> Exporter:
    """The exporter by name, or by the suffix of `out`; a `scheme` that it has, where one is asked for.

    Raises PluginError, InputError, UnsupportedError.
    """
    name = format_ or artifacts.format_of(out)
    if name is None:
        there = ", ".join(p.name for p in plugins.listing("exporters"))
        suffix = out.suffix or "a file without a suffix"
        message = f"{out}: no exporter writes {suffix}; name one with --format: {there}"
        raise InputError(message)
    exporter: Exporter = plugins.load("exporters", name)
    if scheme and scheme not in exporter.schemes:
        message = f"exporter {name!r} has no scheme {scheme.value}; it has {', '.join(exporter.schemes)}"
        raise UnsupportedError(message)
    return exporter


def choose_scheme(model: ModelFile, exporter: Exporter, asked: Scheme | None, *, calibrated: bool) -> Scheme:
    """The scheme asked for, else the one that the model carries, else fp32.

    Raises UnsupportedError: the model carries another, or the exporter lacks the carried one; InputError: a static
    scheme that is not carried, and no calibration data.
    """
    carried = model.scheme
    chosen = asked or carried or Scheme.FP32
    if carried and chosen is not carried:
        message = (
            f"{model.path}: was quantized for {carried.value} and cannot become {chosen.value}; leave --scheme out, "
            "or export the float model"
        )
        raise UnsupportedError(message)
    if chosen not in exporter.schemes:
        schemes = ", ".join(exporter.schemes)
        how = "carries" if carried else "would be"
        message = f"{model.path}: {how} {chosen.value}, which exporter {exporter.format!r} has not; it has {schemes}"
        raise UnsupportedError(message)
    if chosen.is_static and not carried and not calibrated:
        message = f"scheme {chosen.value} is calibrated: name data with --calibration-data"
        raise InputError(message)
    return chosen


def calibrate(
    model: ModelFile,
    dataset: Dataset | None,
    *,
    samples: int,
    seed: int,
    draw: bool,
    embed: bool,
    labels: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> Calibration:
    """Draw and preprocess the calibration samples, and work out what preprocessing goes into the model.

    `shapes` are those that the user fixes, batch included. Raises InputError where the data does not fit.
    """
    if dataset is None:
        if embed:
            message = (
                "--embed-preprocessing: the preprocessing comes with the data; name a .toml with --calibration-data"
            )
            raise InputError(message)
        return Calibration(labels=tuple(labels))
    left, inside = preprocessing.split_embeddable(dataset.ops) if embed else (dataset.ops, ())
    if embed and not inside:
        message = f"{dataset.source}: nothing to embed: no cast, scale or normalize at the end of its preprocessing"
        raise InputError(message)
    names = data.input_names(dataset, model.inputs)
    ready = data.prepare(dataset, left, names)
    fixed = [replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in model.inputs]
    bound = data.bind(ready, fixed, model.outputs)
    found = Calibration(
        data_sha256=dataset.sha256,
        left=(*dataset.applied, *left),
        inside=inside,
        embedded=tuple(_affine(inside, name, path) for name, path in bound.inputs.items()) if inside else (),
        labels=tuple(labels) or dataset.labels,
    )
    if not draw:
        return found
    ids = data.draw(ready, samples, seed)
    folder = data.subset(bound.inputs, ids, worker.pool().scratch("calibration"))
    if not inside:
        _cast(folder, model.inputs)
    drawn = np.unique(ids // (ready.count // dataset.count))  # samples as they are, before windows cut them
    hashes = data.sample_hashes([dataset.arrays[name] for name in names], drawn)
    return replace(found, folder=folder, ids=tuple(ids.tolist()), hashes=tuple(hashes))


def _affine(inside: tuple[Op, ...], name: str, path: Path) -> dict[str, Any]:
    array = np.load(path, mmap_mode="r")
    factor, offset = preprocessing.affine(inside, array.shape[-1])
    return {
        "op": "affine",
        "input": name,
        "dtype": str(array.dtype),
        "factor": np.asarray(factor).tolist(),
        "offset": np.asarray(offset).tolist(),
    }


def _cast(folder: Path, inputs: Sequence[TensorSpec]) -> None:
    for spec in inputs:
        path = folder / f"{spec.name}.npy"
        np.save(path, np.load(path).astype(spec.dtype))


def make(
    model: ModelFile,
    exporter: Exporter,
    out: Path,
    *,
    scheme: Scheme,
    calibration: Calibration,
    options: ExportOptions,
) -> Artifact:
    """Write `out` with the plugin, first what it is made from, and describe it, with the notes of all."""
    origin, notes = None, list(model.facts["notes"])
    if exporter.source:
        format_, own = exporter.source
        first = plugins.load("exporters", format_)
        origin = worker.pool().scratch("source") / f"source{first.suffixes[0]}"
        plain = replace(options, opset=None, layout=None)  # of the last format alone
        notes += _run(model, first, origin, Scheme(own or scheme), None, calibration, plain)["notes"]
    result = _run(model, exporter, out, scheme, origin, calibration, options)
    lineage = Lineage(
        model_sha256=model.sha256,
        ancestors=artifacts.ancestors(model.path, model.sha256),
        data_sha256=calibration.data_sha256,
        calibration_ids=calibration.ids,
        calibration_hashes=calibration.hashes,
        scheme=scheme,
        preprocessing=tuple(preprocessing.to_json(calibration.left)),
        embedded=tuple(preprocessing.to_json(calibration.inside)),
        labels=calibration.labels,
        seed=options.seed,
        versions=artifacts.versions(*FRAMEWORKS),
    )
    info, said = _read_back(model, exporter, out, origin)
    made = artifacts.measure(out, format_=exporter.format, scheme=scheme, info=info, lineage=lineage)
    return replace(made, notes=(*notes, *result["notes"], *said), names=result["names"])


def _read_back(
    model: ModelFile, exporter: Exporter, out: Path, origin: Path | None
) -> tuple[ArtifactInfo, tuple[str, ...]]:
    """What is in the file; of a format that nothing here runs, what is in the file or model it was made from."""
    if artifacts.runtimes(exporter.format):
        return artifacts.describe(out, format_=exporter.format, child=CHILD), ()  # its libraries are loaded there
    said = f"no runtime for {exporter.format!r} is installed: the file was not read back, and cannot be validated here"
    if origin and exporter.source:
        return replace(artifacts.describe(origin, format_=exporter.source[0]), format=exporter.format), (said,)
    return ArtifactInfo(format=exporter.format, inputs=model.inputs, outputs=model.outputs), (said,)


def check_labels(model: ModelFile, labels: Sequence[str], where: str) -> None:
    """Refuse names that are not as many as the values of the only output. Raises InputError."""
    values = model.outputs[0].shape[-1] if len(model.outputs) == 1 else None
    if not labels or values in (None, len(labels)) or (values, len(labels)) == (1, 2):
        return
    message = f"{where}: {len(labels)} labels for output {model.outputs[0].name!r} of {values} values; make them agree"
    raise InputError(message)


def kept_export(
    model: ModelFile, format_: str, scheme: Scheme = Scheme.FP32, shapes: dict[str, tuple[int, ...]] | None = None
) -> Artifact:
    """The model in a format, without calibration, kept in the cache: the float parent, or the scheme it carries.

    Raises UnsupportedError where the exporter cannot do it.
    """
    exporter: Exporter = plugins.load("exporters", format_)
    name = f"{'float' if scheme is Scheme.FP32 else 'model'}{exporter.suffixes[0]}"
    key = f"{format_} {scheme} {sorted((shapes or {}).items())} {artifacts.versions(*FRAMEWORKS)}"
    place = model.kept(key, name)
    if place is None:
        options = ExportOptions(shapes=shapes or {}, trust=model.trust, custom_objects=model.custom_objects)
        out = worker.pool().scratch("kept") / name
        make(model, exporter, out, scheme=scheme, calibration=Calibration(), options=options)
        place = model.keep(key, out)
    info = artifacts.describe(place, format_=format_)
    lineage = Lineage(model_sha256=model.sha256, scheme=scheme)
    return artifacts.measure(place, format_=format_, scheme=scheme, info=info, lineage=lineage)


def _run(
    model: ModelFile,
    exporter: Exporter,
    out: Path,
    scheme: Scheme,
    origin: Path | None,
    calibration: Calibration,
    options: ExportOptions,
) -> dict[str, Any]:
    arguments = {
        "format_": exporter.format,
        "model": str(model.path),
        "out": str(out),
        "scheme": scheme.value,
        "source": str(origin) if origin else None,
        "calibration": str(calibration.folder) if calibration.folder else None,
        "options": to_json(options),
    }
    result: dict[str, Any] = worker.call("edgedl.artifacts:run_exporter", arguments, child=CHILD)
    return result

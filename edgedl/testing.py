"""Contract checks for plugin authors: what the rest of edgedl takes for granted of an exporter, a runtime, a packager,
a metric.

    from edgedl import testing

    def test_contract(tmp_path):
        testing.check_exporter("c", tmp_path)

Each takes the installed plugin by the name that a user types, runs it in edgedl's own worker processes, and raises
ContractError with what was found and what is expected. Nothing is written outside of the folder given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import agent, artifacts, data, exporting, model_file, packaging, plugins, worker
from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl.exporting import Calibration
from edgedl.model_file import ModelFile
from edgedl.types import AgentRuntime, Artifact, Exporter, ExportOptions, Metric, Packager, Scheme, TensorSpec, to_json
from edgedl.validation import evaluate, metrics
from edgedl.validation.evaluate import Setting

SAMPLES = 16
# The largest difference to Keras, as a share of the largest output: a wrong graph is far outside of these.
TOLERANCE = {
    Scheme.FP32: 1e-4,
    Scheme.FP16: 1e-2,
    Scheme.STATIC_WI8_AI16: 0.05,
    Scheme.WEIGHT_ONLY_WI8_AFP32: 0.05,
    Scheme.DYNAMIC_WI8_AFP32: 0.1,
    Scheme.STATIC_WI8_AI8: 0.15,
    Scheme.WEIGHT_ONLY_WI4_AFP32: 0.5,
}


class ContractError(AssertionError):
    """A plugin does not do what the rest of edgedl takes for granted."""


def check_exporter(name: str, folder: Path, *, model: Path | None = None, schemes: Sequence[str] = ()) -> None:
    """The exporter `name` writes every scheme of a model into the empty `folder`, and refuses the others by name.

    `model` is a Keras file, by default a small one with two inputs and two outputs; `schemes` limits what is exported.
    Where a runtime for the format is installed, names, order and outputs are compared with Keras. Raises ContractError.
    """
    exporter: Exporter = plugins.load("exporters", name)
    _check_description(name, exporter)
    source = model_file.open_model(str(model or write_model(folder / "model.keras")))
    samples = _write_samples(source.inputs, folder / "samples.npz")
    for scheme in [Scheme.parse(s) for s in schemes or exporter.schemes]:
        made = _exported(exporter, source, samples, scheme, folder / scheme)
        if artifacts.runtimes(exporter.format):
            _check_artifact(made, source, samples)
    again = _exported(exporter, source, samples, scheme, folder / f"{scheme}-again")
    same = made.sha256 == again.sha256
    _require(same, f"{name}, {scheme}: the same model, data and seed give other bytes the second time")
    _check_refusals(exporter, source, folder)


def check_runtime(name: str, artifact: Path) -> None:
    """The runtime `name` starts here, describes `artifact` as it loads it, and runs each sample as if it were alone.

    Raises ContractError.
    """
    runtime: Any = plugins.load("runtimes", name)
    _require(
        isinstance(runtime, AgentRuntime),
        f"runtime {name}: must be an edgedl.types.AgentRuntime, got {type(runtime).__name__}",
    )
    known = ", ".join(f"{n} ({m})" for n, m in agent.MODULES.items())
    _require(
        agent.MODULES.get(runtime.name) == runtime.module,
        f"runtime {name}: {runtime.name} ({runtime.module}) is none that the agent runs: {known}",
    )
    found = _asked(runtime, "info", runtimes=[runtime.name])["runtimes"][runtime.name]
    _require(bool(found["version"]), f"runtime {name} does not start: {found['why']}. Try: {runtime.install}")
    told, _ = artifacts.read(artifact)
    loaded = _asked(runtime, "describe", artifact=str(artifact), runtime=runtime.name)
    for side, specs in (("inputs", told.inputs), ("outputs", told.outputs)):
        names, seen = [s.name for s in specs], [s["name"] for s in loaded[side]]
        _require(sorted(seen) == sorted(names), f"runtime {name}: describes {side} {names}, and loads {seen}")
    _check_runs(name, runtime, told)


def check_packager(name: str, artifact: Path, folder: Path) -> None:
    """The packager `name` packs `artifact` below the empty `folder`, twice alike, and `edgedl verify` finds it whole.

    Raises ContractError.
    """
    packager: Packager = plugins.load("packagers", name)
    own = packager.platform
    _require(own == name, f"packager {name}: its platform is {own!r}; the name of the entry point and it must agree")
    good = isinstance(packager.formats, tuple)
    _require(good, f"packager {name}: formats must be a tuple, empty for any, got {packager.formats!r}")
    made = []
    for turn in ("first", "second"):
        asked = packaging.Request(artifact=artifact, platforms=(name,), out=folder / turn)
        try:
            made += packaging.pack(asked)
        except (OSError, EdgedlError) as e:
            message = f"packager {name}: {type(e).__name__}: {e}"
            raise ContractError(message) from e
    same = made[0].read_bytes() == made[1].read_bytes()
    _require(same, f"packager {name}: the same artifact gives other bytes the second time")
    findings = packaging.verify(made[0])["findings"]
    _require(not findings, f"packager {name}: edgedl verify says: {'; '.join(findings)}")


def check_metric(name: str, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
    """The metric `name` (as of `--metric`) scores these arrays, samples on axis 0, whatever their order.

    Raises ContractError.
    """
    metric: Metric = metrics.resolve(name)
    given = outputs.copy(), targets.copy()
    score = np.asarray(metric.score(outputs, targets))
    same = np.array_equal(given[0], outputs) and np.array_equal(given[1], targets)
    _require(same, f"metric {name}: changes the arrays that it is given; it must copy them first")
    wanted = (len(outputs),) if metric.per_sample else ()
    _require(
        score.shape == wanted,
        f"metric {name}: per_sample is {metric.per_sample}, so that the shape must be {wanted}, got {score.shape}",
    )
    _require(bool(np.isfinite(score).all()), f"metric {name}: gives NaN or infinity on finite arrays")
    better = metric.higher_is_better
    _require(isinstance(better, bool), f"metric {name}: higher_is_better must be True or False, got {better!r}")
    order = np.arange(len(outputs))[::-1]
    turned, expected = np.asarray(metric.score(outputs[order], targets[order])), score[order] if wanted else score
    close = bool(np.allclose(turned, expected, rtol=1e-9, atol=1e-12))
    _require(close, f"metric {name}: the same samples in another order give another score")


def write_model(path: Path) -> Path:
    """A small untrained Keras model: inputs `picture` (8, 8, 1) and `extra` (4), outputs `kind` (3) and `amount` (1).

    Neither pair is in alphabetical order, so that a format that sorts them is found out.
    """
    worker.call("edgedl.testing:write_model_here", {"path": str(path)}, child=model_file.CHILD)
    return path


def write_model_here(path: str) -> None:
    """Child side of `write_model`."""
    import keras

    keras.utils.set_random_seed(0)
    picture, extra = keras.Input((8, 8, 1), name="picture"), keras.Input((4,), name="extra")
    x = keras.layers.Conv2D(8, 3, activation="relu")(picture)
    x = keras.layers.Concatenate()([keras.layers.Flatten()(x), keras.layers.Dense(8, activation="relu")(extra)])
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(x)
    amount = keras.layers.Dense(1, name="amount")(x)
    keras.Model([picture, extra], [kind, amount]).save(path)


def _check_description(name: str, exporter: Exporter) -> None:
    own = exporter.format
    _require(own == name, f"exporter {name}: its format is {own!r}; the name of the entry point and it must agree")
    good = exporter.suffixes and all(re.fullmatch(r"\.\w+", s) for s in exporter.suffixes)
    _require(bool(good), f"exporter {name}: suffixes must be like ('.tflite',), got {exporter.suffixes!r}")
    unknown = [s for s in exporter.schemes if s not in tuple(Scheme)] if exporter.schemes else ["none"]
    allowed = ", ".join(Scheme)
    _require(not unknown, f"exporter {name}: schemes are from {allowed}; got {', '.join(unknown)}")
    if exporter.source:
        format_, scheme = exporter.source
        first: Exporter = plugins.load("exporters", format_)
        missing = {scheme or s for s in exporter.schemes} - set(first.schemes)
        _require(not missing, f"exporter {name}: made from {format_}, which has no {', '.join(sorted(missing))}")


def _write_samples(specs: Sequence[TensorSpec], path: Path) -> data.Dataset:
    rng, arrays = np.random.default_rng(0), {}
    for spec in specs:
        shape = (SAMPLES, *(size or 1 for size in spec.shape[1:]))
        values = rng.random(shape) if np.dtype(spec.dtype).kind == "f" else rng.integers(0, 2, shape)
        arrays[spec.name] = values.astype(spec.dtype)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return data.load(str(path))


def _exported(exporter: Exporter, source: ModelFile, samples: data.Dataset, scheme: Scheme, place: Path) -> Artifact:
    place.mkdir()
    out = place / f"model{exporter.suffixes[0]}"
    calibration = exporting.calibrate(
        source, samples, samples=SAMPLES, seed=0, draw=scheme.is_static, embed=False, labels=()
    )
    try:
        made = exporting.make(
            source, exporter, out, scheme=scheme, calibration=calibration, options=ExportOptions(labels=())
        )
    except (OSError, EdgedlError) as e:
        message = f"{exporter.format}, {scheme}: {type(e).__name__}: {e}"
        raise ContractError(message) from e
    beside = sorted(p.name for p in place.iterdir() if p != out)
    _require(not beside, f"{exporter.format}, {scheme}: writes {', '.join(beside)} beside the file asked for")
    return made


def _check_artifact(made: Artifact, source: ModelFile, samples: data.Dataset) -> None:
    """Names in the model's order, float inputs and outputs, and outputs near those of Keras."""
    where = f"{made.format}, {made.scheme}"
    for side, found, wanted in (("inputs", made.inputs, source.inputs), ("outputs", made.outputs, source.outputs)):
        ours, names = [s.name for s in found], [s.name for s in wanted]
        _require(ours == names, f"{where}: {side} are named {ours}; the model's names and order are {names}")
        other = [s.name for s, w in zip(found, wanted, strict=True) if s.dtype != w.dtype]
        _require(not other, f"{where}: {side} {', '.join(other)} are not of the model's type with io 'float'")
    inputs = data.bind(samples, made.inputs, made.outputs).inputs
    expected = source.predict(inputs, key=f"edgedl.testing {samples.sha256}")
    real = evaluate.outputs(made, Setting(runtime=artifacts.runtime_for(made.format)), inputs)
    for name, path in expected.items():
        keras, ours = np.load(path), np.load(real[name])
        off = float(np.abs(ours - keras).max() / np.abs(keras).max())
        limit = TOLERANCE[Scheme(made.scheme)]
        _require(off <= limit, f"{where}: output {name!r} is off by {off:.3g} of its range, {limit:g} are allowed")


def _check_refusals(exporter: Exporter, source: ModelFile, folder: Path) -> None:
    """Schemes it has not, and static ones without the data they need, give an error of edgedl's and no file."""
    origin = None
    if exporter.source:
        first: Exporter = plugins.load("exporters", exporter.source[0])
        origin = folder / f"origin{first.suffixes[0]}"
        scheme = Scheme(exporter.source[1] or Scheme.FP32)
        exporting.make(source, first, origin, scheme=scheme, calibration=Calibration(), options=ExportOptions())
    for scheme in Scheme:
        if scheme not in exporter.schemes:
            message = _refusal(exporter, source, origin, scheme, folder, (UnsupportedError,))
            _require(scheme in message, f"{exporter.format}: refuses {scheme} without naming it: {message}")
        elif scheme.is_static and exporter.source is None:
            _refusal(exporter, source, origin, scheme, folder, (InputError, UnsupportedError))


def _refusal(
    exporter: Exporter,
    source: ModelFile,
    origin: Path | None,
    scheme: Scheme,
    folder: Path,
    kinds: tuple[type[EdgedlError], ...],
) -> str:
    out = folder / f"refused-{scheme}{exporter.suffixes[0]}"
    asked = {"format_": exporter.format, "model": str(source.path), "out": str(out), "scheme": scheme,
             "source": str(origin) if origin else None, "calibration": None,
             "options": to_json(ExportOptions())}  # fmt: skip
    lacking = "without calibration data" if scheme in exporter.schemes else "which is not among its schemes"
    rule = f"{exporter.format}: {scheme}, {lacking}, must raise {' or '.join(k.__name__ for k in kinds)}"
    try:
        worker.call("edgedl.artifacts:run_exporter", asked, child=model_file.CHILD)
    except kinds as e:
        _require(not out.exists(), f"{exporter.format}: refuses {scheme} and leaves a file")
        return str(e)
    except EdgedlError as e:
        message = f"{rule}; got: {e}"
        raise ContractError(message) from e
    message = f"{rule}; it did the export"
    raise ContractError(message)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)


def _asked(held: AgentRuntime, verb: str, /, **request: Any) -> Any:
    """What the agent answers in the child that holds the runtime."""
    return worker.call(verb, request, child=artifacts.child_of(held), interpreter=artifacts.interpreter_of(held))


def _check_runs(name: str, runtime: AgentRuntime, told: Artifact) -> None:
    """Finite float32 outputs, the number of timings asked for, and the same for a sample alone as among others."""
    folder = worker.pool().scratch("contract")
    _write_samples(told.inputs, folder / "samples.npz")
    inputs = data.load(str(folder / "samples.npz")).arrays
    asked = evaluate.request(told, Setting(runtime=runtime), inputs)

    def run(start: int, stop: int, **more: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        files = {s.name: str(folder / f"{start}-{stop}-{i}.npy") for i, s in enumerate(told.outputs)}
        reply = _asked(runtime, "run", **asked, outputs=files, start=start, stop=stop, **more)
        return {n: np.load(f) for n, f in files.items()}, reply

    whole, reply = run(0, SAMPLES, repeats=7, warmup=1)
    timed = len(reply["nanoseconds"])
    _require(timed == 7, f"runtime {name}: 7 timed inferences were asked for, {timed} came back")
    last, _ = run(SAMPLES - 1, SAMPLES)
    for output, values in whole.items():
        good = values.dtype == np.float32 and len(values) == SAMPLES and bool(np.isfinite(values).all())
        _require(good, f"runtime {name}: output {output!r} must be {SAMPLES} samples of finite float32")
        alone = np.array_equal(values[-1], last[output][0])
        _require(alone, f"runtime {name}: output {output!r} of a sample depends on the samples before it")

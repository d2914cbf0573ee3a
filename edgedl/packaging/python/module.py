"""A model with all that it needs to run but numpy and a runtime.

    model = Model()                       # of this package
    model.predict(samples)                # outputs by name, for raw samples
    model.classify(samples)               # (label, value) of each sample, where the model has labels

`python -m` and the name of this module repeats the golden outputs on the machine it runs on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import agent, preprocessing

CONTENT = Path(__file__).parent / "content"
RUNTIMES = {
    "tflite": {"litert": "pip install ai-edge-litert", "tflite-runtime": "pip install tflite-runtime 'numpy<2'"},
    "onnx": {"onnxruntime": "pip install onnxruntime"},
}

Array = NDArray[Any]


class Model:
    """The model of this package in a runtime that starts here; `runtime` names one.

    `manifest` is all that is known of it, `labels` its classes, `inputs` and `outputs` its tensors. Raises RuntimeError
    where no runtime starts, with the command that installs one.
    """

    def __init__(self, *, threads: int = 1, runtime: str | None = None, content: Path = CONTENT) -> None:
        self.content, self.threads = content, threads
        self.manifest: dict[str, Any] = json.loads((content / "manifest.json").read_text(encoding="utf-8"))
        self.labels: tuple[str, ...] = tuple(self.manifest["labels"])
        self.inputs: list[dict[str, Any]] = self.manifest["inputs"]
        self.outputs: list[dict[str, Any]] = self.manifest["outputs"]
        self.runtime, self.runtime_version = _runtime(self.manifest["artifact"]["format"], runtime)
        self._steps = preprocessing.parse(self.manifest["preprocessing"], "manifest.json")
        self._loaded: dict[tuple[tuple[int, ...], ...], Any] = {}

    def predict(self, samples: Array | Mapping[str, Array]) -> dict[str, Array]:
        """What the model gives for raw samples on axis 0, by name where it has several inputs: float32 real values.

        The preprocessing that is not inside the model is done here, to the letter of the manifest.
        """
        return self.run({name: preprocessing.apply(self._steps, a) for name, a in self._named(samples).items()})

    def run(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """What the model gives for samples that are preprocessed already. Raises ValueError where they do not fit."""
        arrays = [self._named(inputs)[spec["name"]] for spec in self.inputs]
        counts = {len(a) for a in arrays}
        if len(counts) != 1 or counts == {0}:
            message = f"as many samples of every input are needed, got {[len(a) for a in arrays]}"
            raise ValueError(message)
        model = self._load(arrays)
        batch = int(model.inputs[0]["shape"][0] or 1)
        found = []
        for at in range(0, len(arrays[0]), batch):
            rows = np.minimum(np.arange(at, at + batch), len(arrays[0]) - 1)  # the last batch is filled up
            model.feed([self._stored(spec, a[rows]) for spec, a in zip(model.inputs, arrays, strict=True)])
            found.append([_real(spec, v) for spec, v in zip(model.outputs, model.invoke(), strict=True)])
        values = [np.concatenate(parts)[: len(arrays[0])] for parts in zip(*found, strict=True)]
        return {spec["name"]: v for spec, v in zip(model.outputs, values, strict=True)}

    def classify(self, samples: Array | Mapping[str, Array]) -> list[tuple[str, float]]:
        """The label of each raw sample, and the value of the output there. Raises ValueError where it has no labels."""
        step = next(iter(self.manifest["postprocessing"]), None)
        if step is None:
            message = "the model has no output with a value a label; use predict"
            raise ValueError(message)
        values = self.predict(samples)[step["output"]]
        if step["op"] == "threshold":
            values = np.stack([2 * step["above"] - values, values], axis=-1)
        values = values.reshape(-1, len(self.labels))
        return [(self.labels[i], float(row[i])) for i, row in zip(values.argmax(-1), values, strict=True)]

    def self_test(self) -> dict[str, Any]:
        """Whether the file is the one that was packed, and gives its golden outputs here: `{"passed", ...}`.

        `golden_outputs_of` is the runtime they come from: another than `runtime` where that was not at hand then.
        """
        golden, artifact = self.manifest["golden"], self.manifest["artifact"]
        whole = hashlib.sha256((self.content / artifact["file"]).read_bytes()).hexdigest() == artifact["sha256"]
        own = golden["runtimes"].get(self.runtime)  # kernels of runtimes round otherwise
        compared = self.runtime if own else self.manifest["runtime"]["name"]
        expected = own or golden
        found = self.run({name: np.load(self.content / file) for name, file in golden["inputs"].items()})
        outputs = []
        for spec in self.outputs:
            limit, name = expected["tolerance"][spec["name"]], spec["name"]
            off = _difference(spec, limit["unit"], np.load(self.content / expected["outputs"][name]), found[name])
            outputs.append({"output": name, "difference": off, **limit})
        return {
            "passed": whole and all(o["difference"] <= o["value"] for o in outputs),
            "unchanged": whole,
            "outputs": outputs,
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "golden_outputs_of": compared,
        }

    def _named(self, samples: Array | Mapping[str, Array]) -> dict[str, Array]:
        names = [spec["name"] for spec in self.inputs]
        if not isinstance(samples, Mapping):
            samples = {names[0]: samples} if len(names) == 1 else {}
        if sorted(samples) != sorted(names):
            message = f"the inputs are {names}, got {sorted(samples)}; give arrays by name"
            raise ValueError(message)
        return {name: np.asarray(array) for name, array in samples.items()}

    def _load(self, arrays: list[Array]) -> Any:
        """The model for samples of these shapes, loaded once."""
        shapes = tuple(a.shape[1:] for a in arrays)
        for spec, shape in zip(self.inputs, shapes, strict=True):
            allowed = spec["shape"][1:]
            if len(allowed) != len(shape) or any(n not in (None, m) for n, m in zip(allowed, shape, strict=True)):
                message = f"input {spec['name']!r} takes samples of shape {allowed}, got {list(shape)}"
                raise ValueError(message)
        if shapes not in self._loaded:
            kind = agent.OnnxModel if self.runtime == "onnxruntime" else agent.TFLiteModel
            specs = {s["name"]: [s["scale"], s["zero_point"]] for s in (*self.inputs, *self.outputs)}
            request = {
                "artifact": str(self.content / self.manifest["artifact"]["file"]),
                "runtime": self.runtime,
                "threads": self.threads,
                "quantization": specs,
            }
            names = [spec["name"] for spec in self.inputs]
            model = kind(request, dict(zip(names, shapes, strict=True)))
            model.inputs.sort(key=lambda spec: names.index(spec["name"]))
            self._loaded[shapes] = model
        return self._loaded[shapes]

    def _stored(self, spec: dict[str, Any], values: Array) -> Array:
        """Real values as the tensor stores them; raw ones where the model does its preprocessing are stored so."""
        dtype = np.dtype(spec["dtype"])
        if self.manifest["embedded"] or not spec["scale"] or dtype.kind not in "iu":
            return values.astype(dtype)
        codes: Array = agent.quantize(values, spec["scale"][0], spec["zero_point"][0], dtype)
        return codes


def main() -> int:
    """Print the self-test as JSON; 0 where it passed, 1 where not."""
    found = Model().self_test()
    print(json.dumps(found, indent=2))
    return 0 if found["passed"] else 1


def _runtime(format_: str, wanted: str | None) -> tuple[str, str]:
    """The first runtime of a format that starts here, or the wanted one, and its version."""
    installs = RUNTIMES[format_]
    if wanted is not None and wanted not in installs:
        message = f"runtime {wanted!r} does not run {format_} files; these do: {', '.join(installs)}"
        raise RuntimeError(message)
    names = [wanted] if wanted else list(installs)
    found = agent.info({"runtimes": names})["runtimes"]
    for name in names:
        if found[name]["version"]:
            return name, found[name]["version"]
    why = "; ".join(f"{name}: {found[name]['why']}" for name in names)
    message = f"no runtime for {format_} starts here: {why}. Try: {installs[names[0]]}"
    raise RuntimeError(message)


def _real(spec: dict[str, Any], values: Array) -> Array:
    if not spec["scale"] or values.dtype.kind == "f":
        return values.astype(np.float32)
    return (values.astype(np.float32) - np.float32(spec["zero_point"][0])) * np.float32(spec["scale"][0])


def _difference(spec: dict[str, Any], unit: str, golden: Array, found: Array) -> float:
    """The largest difference in `unit`: steps of the output's scale, or the share of the largest golden value."""
    if golden.shape != found.shape:
        return float("inf")
    largest = float(np.abs(golden.astype(np.float64) - found).max(initial=0.0))
    if unit == "lsb":
        return float(np.rint(largest / (spec["scale"][0] if spec["scale"] else 1.0)))
    return largest / max(float(np.abs(golden).max(initial=0.0)), float(np.finfo(np.float32).tiny))

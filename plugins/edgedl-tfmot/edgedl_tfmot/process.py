"""TFMOT's own process: `python -m edgedl_tfmot.process FOLDER` answers the request in a folder.

Importing TFMOT sets TF_USE_LEGACY_KERAS, after which `tf.keras` is Keras 2 for good; so nobody else's process does it.
`request.json`, `weights.npz` and `probe.npz` in; `reply.json`, `results.npz` and `answers.npz` out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import errors
from edgedl.errors import EdgedlError, WorkerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = list[NDArray[Any]]

SAID_LINES = 3


def call(
    request: Mapping[str, Any],
    weights: Mapping[str, Arrays],
    inputs: Arrays,
    expected: Arrays,
    folder: Path,
    *,
    onednn: bool,
) -> Any:
    """Run a request in a process of its own: its reply, the weights by layer, and the model's answers on `inputs`.

    With `onednn` TensorFlow computes as it does unless told otherwise, which trained ResNet8 twice as fast.
    Raises what TFMOT's side raised of edgedl's errors, else WorkerError with the last lines of its log.
    """
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    save(folder / "weights.npz", weights)
    save(folder / "probe.npz", {"inputs": inputs, "expected": expected})
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    if not onednn:
        environment["TF_ENABLE_ONEDNN_OPTS"] = "0"
    log = folder / "log"
    with log.open("wb") as f:
        # -P: the working directory is the user's, and may hold a module of any name
        command = [sys.executable, "-P", "-m", "edgedl_tfmot.process", str(folder)]
        done = subprocess.run(command, stdout=f, stderr=subprocess.STDOUT, env=environment, check=False)
    if not (folder / "reply.json").exists():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        message = f"TFMOT's process ended with {done.returncode}; it last said: {' | '.join(lines[-SAID_LINES:])}"
        raise WorkerError(message)
    reply = json.loads((folder / "reply.json").read_text(encoding="utf-8"))
    if "error" in reply:
        known = getattr(errors, reply["class"], None)
        if isinstance(known, type) and issubclass(known, EdgedlError):
            raise known(reply["error"])
        message = f"TFMOT failed: {reply['class']}: {reply['error']}"
        raise EdgedlError(message)
    return reply, load(folder / "results.npz"), load(folder / "answers.npz")["answers"]


def save(path: Path, arrays: Mapping[str, Arrays]) -> None:
    """Lists of arrays by name, order kept."""
    flat = {f"{name}|{i:04d}": array for name, several in arrays.items() for i, array in enumerate(several)}
    np.savez(path, **flat)  # type: ignore[arg-type]


def load(path: Path) -> dict[str, Arrays]:
    """What `save` wrote."""
    found: dict[str, Arrays] = defaultdict(list)
    with np.load(path) as file:
        for key in sorted(file.files):
            found[key.rpartition("|")[0]].append(file[key])
    return dict(found)


def answer(folder: Path) -> dict[str, Any]:
    """Do the request; the reply."""
    import tensorflow as tf
    import tf_keras

    from edgedl_tfmot import export, keras_2, methods
    from edgedl_tfmot.training import Training

    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    tf_keras.utils.set_random_seed(request["seed"])
    tf.config.experimental.enable_op_determinism()
    weights, probe = load(folder / "weights.npz"), load(folder / "probe.npz")
    model = keras_2.build(request["graph"], weights)
    there = keras_2.require_equal(keras_2.outputs(model, probe["inputs"]), probe["expected"])
    plain = keras_2.build(request["graph"], weights)
    training = Training.of(request["training"]) if request["training"] else None
    started = time.monotonic()
    found = methods.run(model, request["method"], request["options"], training, request["match"], request["skip"])
    reply: dict[str, Any] = {"notes": found.notes, "difference": there}
    if found.quantized is not None and request["tflite"]:
        export.write(found.quantized, request["graph"], Path(request["tflite"]))
    reply["seconds"] = time.monotonic() - started
    results = {name: found.weights[name] for name in weights if name in found.weights}
    for name, arrays in results.items():
        plain.get_layer(name).set_weights(arrays)
    save(folder / "results.npz", results)
    answers = keras_2.outputs(plain, probe["inputs"])
    save(folder / "answers.npz", {"answers": answers})
    return reply


def main(folder: Path) -> None:
    """Answer the request in `folder`, errors included."""
    try:
        reply = answer(folder)
    except Exception as e:  # whatever a framework raises crosses as its class and message
        reply = {"error": str(e), "class": type(e).__name__}
        if not isinstance(e, EdgedlError):
            (folder / "reply.json").write_text(json.dumps(reply), encoding="utf-8")
            raise
    (folder / "reply.json").write_text(json.dumps(reply), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

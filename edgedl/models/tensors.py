"""The inputs and outputs of a Keras model: canonical names, flat order, seeded samples, running over .npy files."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgedl.agent import progress
from edgedl.errors import InputError, UnsupportedError
from edgedl.models.files import first_line
from edgedl.types import Scheme, TensorSpec

if TYPE_CHECKING:
    import keras

    Array = np.ndarray[Any, Any]

FREE_SIZES = (32, 128, 224)  # tried for sizes that a model leaves free
NAME_LENGTH = 255 - len(".npy")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keras's warnings about the style of a model that the user wrote long ago are nobody's business here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_graph(layer: Any) -> bool:
    """Whether it is a Functional or built Sequential model that computes exactly its graph."""
    import keras

    if not isinstance(layer, keras.Model):
        return False
    if isinstance(layer, keras.Sequential):
        return type(layer).call is keras.Sequential.call and hasattr(layer, "inputs")
    plain: Any = next((c for c in type(layer).__mro__ if c.__name__ == "Functional"), None)
    return isinstance(layer, keras.Function) and plain is not None and type(layer).call is plain.call


def graph_operations(model: keras.Model) -> list[Any]:
    """The layers and ops of a graph model in its order, its inputs left out."""
    graph = getattr(model, "_functional", None) or model
    return [op for op in graph.operations if type(op).__name__ != "InputLayer"]


def graph_nodes(model: keras.Model) -> Iterator[Any]:
    """The calls of a graph model in Keras's order, each after those that it hangs on; it has no public way to them."""
    graph = getattr(model, "_functional", None) or model
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if node.operation is not None and not node.is_input)


def operations(model: keras.Model) -> Iterator[Any]:
    """A model with every layer and op in it, those of nested models, wrappers and the user's layers included, once."""
    seen = set()
    stack: list[Any] = [model]
    while stack:
        operation = stack.pop()
        if id(operation) not in seen:
            seen.add(id(operation))
            stack += graph_operations(operation) if is_graph(operation) else getattr(operation, "_layers", ())
            yield operation


def carried_scheme(model: keras.Model) -> Scheme | None:
    """The scheme that a model was quantized for, ranges included, by a `quantize` step; None for a float model.

    Its layers say so by an attribute `edgedl_scheme`. Raises UnsupportedError where they do not agree.
    """
    found = {str(s) for s in (getattr(op, "edgedl_scheme", None) for op in operations(model)) if s}
    if len(found) > 1:
        message = f"model {model.name!r} has layers quantized for {' and '.join(sorted(found))}; it must be one scheme"
        raise UnsupportedError(message)
    return Scheme(found.pop()) if found else None


def set_weights(target: Any, weights: Sequence[Array]) -> None:
    """Set the weights of a layer or model, and what is worked out of them."""
    target.set_weights(weights)
    finalize(target)


def finalize(target: Any) -> None:
    """Work out what a layer, or those of a model, hold beside their weights: Normalization keeps its mean apart."""
    for op in operations(target):
        if hasattr(op, "finalize_state"):
            op.finalize_state()


def with_outputs(model: keras.Model, outputs: Any) -> keras.Model:
    """A model of the same inputs and layers that gives these tensors of it: a tensor, or a structure of them."""
    import keras

    return keras.Model(model.inputs[0] if isinstance(model, keras.Sequential) else model.input, outputs)


def call_flat(model: keras.Model, arrays: Sequence[Any]) -> list[Any]:
    """The outputs in Keras's flat order, inputs given in the same order, at inference; also inside a tf.function.

    Raises UnsupportedError: Keras refuses the call.
    """
    import keras

    inputs = arrays[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, arrays)
    try:
        return list(keras.tree.flatten(model(inputs, training=False)))
    except (TypeError, ValueError) as e:
        message = f"model {model.name!r} fails on inputs {', '.join(str(a.shape) for a in arrays)}: {first_line(e)}"
        raise UnsupportedError(message) from e


def sample_inputs(model: keras.Model, *, free: int, seed: int = 0, low: bool = False) -> list[Array]:
    """Seeded inputs in flat order: standard normal floats, integers that every Embedding of the model holds.

    Floats that reach an Embedding are whole numbers, as Keras 2 has its inputs. With `low` floats are uniform in
    [0, 1) and integers 0 or 1, which a logarithm or a short table of the user's own takes too. A free batch becomes 2,
    other free sizes become `free`.
    """
    random = np.random.default_rng(seed)
    limits = [getattr(op, "input_dim", None) or getattr(op, "num_tokens", None) for op in operations(model)]
    high = 2 if low else min([n for n in limits if isinstance(n, int)], default=256)
    indices = _reaching_embeddings(model)
    arrays = []
    for tensor in model.inputs:
        shape = [2 if i == 0 and n is None else free if n is None else n for i, n in enumerate(tensor.shape)]
        if "float" in str(tensor.dtype) and id(tensor) not in indices:
            floats = random.random if low else random.standard_normal
            arrays.append(floats(shape, dtype=np.float32))
        elif tensor.dtype == "string":
            message = f"input {tensor.name!r} takes strings; do the text processing outside the model"
            raise UnsupportedError(message)
        else:
            arrays.append(random.integers(0, 2 if tensor.dtype == "bool" else high, shape).astype(tensor.dtype))
    return arrays


def _reaching_embeddings(model: keras.Model) -> set[int]:
    """The ids of the tensors that an Embedding hangs on; one in a nested model hangs on all that this takes."""
    import keras

    graph = getattr(model, "_functional", None) or model
    found: set[int] = set()
    for _, nodes in sorted(graph._nodes_by_depth.items()):  # from the outputs to the inputs
        for node in nodes:
            holds = any(isinstance(op, keras.layers.Embedding) for op in operations(node.operation))
            if holds or any(id(t) in found for t in node.outputs):
                found |= {id(t) for t in node.input_tensors}
    return found


def largest_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[float, float]:
    """The largest absolute difference of two lists of outputs, and that relative to max(1, largest output).

    Where both are NaN or the same infinity, nothing is compared; infinite where that leaves nothing of an output.
    """
    if [tuple(np.shape(a)) for a in ours] != [tuple(np.shape(b)) for b in theirs]:
        return float("inf"), float("inf")
    worst = relative = 0.0
    for ours_k, theirs_k in zip(ours, theirs, strict=True):
        a, b = np.asarray(ours_k, np.float64), np.asarray(theirs_k, np.float64)
        if not a.size:
            continue
        compared = np.isfinite(a) | ~((a == b) | (np.isnan(a) & np.isnan(b)))
        difference = float(np.max(np.abs(a[compared] - b[compared]), initial=0 if compared.any() else np.inf))
        if not np.isfinite(difference):
            return float("inf"), float("inf")
        worst = max(worst, difference)
        relative = max(relative, difference / max(1.0, float(np.max(np.abs(b[compared])))))
    return worst, relative


def probe(
    model: keras.Model, run: Callable[[list[Array]], Sequence[Any]] | None = None, *, seed: int = 0
) -> tuple[list[Array], list[Array]]:
    """Seeded inputs of a model and what it, or `run` on them, answers.

    Raises InputError where it does not run on any, or an output has nothing finite.
    """
    failure: Exception = ValueError("an output is NaN or infinite throughout")
    for low, free in itertools.product((False, True), FREE_SIZES):
        arrays = sample_inputs(model, free=free, seed=seed, low=low)
        try:
            answers = [np.asarray(a) for a in (run(arrays) if run else call_flat(model, arrays))]
        except Exception as e:  # a size too small for the network comes as any of the framework's errors
            failure = e
            continue
        if all(not a.size or np.isfinite(a).any() for a in answers):
            return arrays, answers
    message = f"model {model.name!r} does not run on random input of sizes {FREE_SIZES}: {first_line(failure)}"
    raise InputError(message) from failure


def specs(model: keras.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs in Keras's flat order under their canonical names.

    A name is the Keras input's, or the output's dictionary key, else the layer that gives the output, with every
    character but A-Z a-z 0-9 _ . - made an underscore and a number added where it would repeat.
    """
    taken: set[str] = set()
    inputs = tuple(_spec(t, t.name, taken) for t in model.inputs)
    outputs = tuple(_spec(t, n, taken) for t, n in zip(model.outputs, _output_names(model), strict=True))
    return inputs, outputs


def _output_names(model: keras.Model) -> list[str]:
    import keras

    names = [t._keras_history.operation.name for t in model.outputs]
    structure = None if isinstance(model, keras.Sequential) else model.output
    if isinstance(structure, dict):
        positions = keras.tree.flatten({k: [k] * len(keras.tree.flatten(v)) for k, v in structure.items()})
        return [str(n) for n in positions]
    return names


def _spec(tensor: Any, name: str, taken: set[str]) -> TensorSpec:
    base = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "tensor"
    unique, number = base, 0
    while unique in taken:
        number += 1
        unique = f"{base}_{number}"
    taken.add(unique)
    return TensorSpec(name=unique, dtype=str(tensor.dtype), shape=tuple(tensor.shape))


def infer(model: keras.Model, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs by canonical name for inputs by canonical name, at inference; also inside a tf.function."""
    inputs, outputs = specs(model)
    answers = call_flat(model, [arrays[spec.name] for spec in inputs])
    return {spec.name: answer for spec, answer in zip(outputs, answers, strict=True)}


def run_files(
    model: keras.Model, inputs: Mapping[str, str], out: Path, *, batch_size: int, start: int, stop: int | None
) -> dict[str, Path]:
    """The outputs by name, (samples, ...) float32 .npy in folder `out`, of .npy inputs by name, read in slices."""
    import tensorflow as tf

    sources = _Sources(specs(model)[0], inputs, batch_size)
    stop = sources.samples if stop is None else min(stop, sources.samples)
    stateful = [op for op in operations(model) if getattr(op, "stateful", False)]
    run = tf.function(lambda arrays: infer(model, arrays), autograph=False)
    out.mkdir(parents=True, exist_ok=True)
    paths = {spec.name: out / f"{spec.name}.npy" for spec in specs(model)[1]}
    if len(longest := max(paths, key=len)) > NAME_LENGTH:
        message = (
            f"output {longest[:30]}...: {len(longest)} characters; a file's name holds {NAME_LENGTH}. Rename its layer"
        )
        raise InputError(message)
    with contextlib.ExitStack() as stack, quiet():
        files = {name: stack.enter_context(p.open("wb")) for name, p in paths.items()}
        for at in range(start, max(stop, start + 1), sources.batch):  # no samples still give the shapes
            count = max(0, min(sources.batch, stop - at))
            for layer in stateful:
                layer.reset_state()
            answers = run({n: tf.constant(a) for n, a in sources.read(at, count).items()})
            for name, answer in answers.items():
                rows = _rows(name, answer.numpy(), sources.batch)
                if at == start:
                    _write_header(files[name], (max(stop - start, 0), *rows.shape[1:]))
                files[name].write(rows[:count].tobytes())
            progress("predicting", at - start + count, max(stop - start, 0))
    return paths


def _rows(name: str, values: Array, batch: int) -> Array:
    """A batch as float32, ready to be written."""
    if values.ndim == 0 or values.shape[0] != batch:
        message = f"output {name!r} has shape {values.shape}: its first axis is not the batch of {batch}"
        raise UnsupportedError(message)
    return np.ascontiguousarray(values, "<f4")


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]


class _Sources:
    """The .npy files of a model's inputs, checked, and read a batch at a time."""

    def __init__(self, wanted: tuple[TensorSpec, ...], paths: Mapping[str, str], batch_size: int) -> None:
        names = [s.name for s in wanted]
        if set(names) != set(paths):
            message = f"inputs {', '.join(sorted(paths)) or '(none)'}: the model takes {', '.join(names)}"
            raise InputError(message)
        self.specs, self.paths = wanted, paths
        shapes = {s.name: np.load(paths[s.name], mmap_mode="r").shape for s in wanted}
        for s in wanted:
            shape = shapes[s.name]
            fits = len(shape) == len(s.shape) and all(
                w in (None, h) for w, h in zip(s.shape[1:], shape[1:], strict=True)
            )
            if not fits:
                message = f"input {s.name!r}: the data has shape {shape}, the model takes {s.shape}"
                raise InputError(message)
        counts = {name: shape[0] for name, shape in shapes.items()}
        if len(set(counts.values())) > 1:
            message = f"inputs have different numbers of samples: {counts}"
            raise InputError(message)
        self.samples = next(iter(counts.values()))
        self.batch = next((s.shape[0] for s in wanted if s.shape[0]), batch_size)

    def read(self, at: int, count: int) -> dict[str, Array]:
        """Rows `at` to `at + count` by name, cast to the input's type and padded to the batch with the last row."""
        arrays = {}
        for s in self.specs:  # mapped anew each time: mapped pages count as memory until they are let go
            values = np.load(self.paths[s.name], mmap_mode="r")[at : at + count].astype(s.dtype)
            padding = [(0, self.batch - count), *[(0, 0)] * (values.ndim - 1)]
            arrays[s.name] = np.pad(values, padding, mode="edge" if count else "constant")
        return arrays

"""In TFMOT's process: its methods on a tf_keras model, and the plain weights that come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl_tfmot.training import Training, fit, losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

UPDATES = 25  # of the masks in a run, where it has so many steps
RAMP = 0.7  # of the steps: the rest trains at the sparsity asked for
TFMOT_UPDATE_STEPS = 100  # TFMOT's own frequency, which a short run never reaches
MOST_CENTROIDS = 1024  # above it TFMOT's cluster-preserving training preserves nothing
QAT_REWRITES = ("SeparableConv1D", "SeparableConv2D")  # TFMOT splits them into two layers


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """Plain weights by layer, and notes. `quantized`, where there is one, is TFMOT's own model."""

    weights: dict[str, list[Array]]
    notes: list[str] = field(default_factory=list)
    quantized: Any = None


def run(
    model: Any,
    method: str,
    options: Mapping[str, Any],
    training: Training | None,
    match: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Result:
    """What TFMOT makes of `model`, whose layers it may take over. Raises InputError and UnsupportedError by name."""
    chosen = losses(model, training) if training else []

    def train(wrapped: Any, *callbacks: Any) -> None:
        if training:
            fit(wrapped, training, chosen, callbacks)

    try:
        if method == "prune":
            assert training is not None  # noqa: S101 - the parent's Prune requires it
            return prune(model, options, training.steps, train, (match, skip))
        if method == "cluster":
            return cluster(model, options, train, (match, skip))
        return quantize(model, method, train, (match, skip))
    except (ValueError, RuntimeError) as e:  # how TFMOT refuses layers and options
        message = f"TFMOT refuses: {str(e).strip().splitlines()[0]}"
        raise UnsupportedError(message) from e


Train = Callable[..., None]
Patterns = tuple[Sequence[str], Sequence[str]]


def choose(layers: Mapping[str, Any], patterns: Patterns, what: str) -> list[str]:
    """The names of the layers that `match` and `skip` take. Raises InputError for a pattern that hits nothing."""
    for key, given in zip(("match", "skip"), patterns, strict=True):
        for pattern in given:
            if not any(fnmatchcase(name, pattern) for name in layers):
                message = f"{key} {pattern!r} hits no layer that TFMOT can {what}; it can {', '.join(layers) or 'none'}"
                raise InputError(message)
    match, skip = patterns
    chosen = [
        n
        for n in layers
        if (not match or any(fnmatchcase(n, p) for p in match)) and not any(fnmatchcase(n, p) for p in skip)
    ]
    if not chosen:
        message = f"there is no layer that TFMOT can {what}"
        raise InputError(message)
    return chosen


def pruning_schedule(kind: str, sparsity: float, steps: int) -> Any:
    """TFMOT's schedule, its updates so frequent that `sparsity` is reached within `steps`, however few."""
    import tensorflow_model_optimization as tfmot

    schedules = tfmot.sparsity.keras
    frequency = max(1, min(TFMOT_UPDATE_STEPS, int(steps * RAMP) // UPDATES))
    end = frequency * int((steps - 1) * RAMP / frequency)
    if kind == "constant" or end == 0:
        return schedules.ConstantSparsity(sparsity, begin_step=0, frequency=frequency)
    return schedules.PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end, frequency=frequency)


def prune(model: Any, options: Mapping[str, Any], steps: int, train: Train, patterns: Patterns) -> Result:
    """Magnitude pruning; the sparsity of every layer is measured. Raises EdgedlError where TFMOT missed it."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    given: dict[str, Any] = {
        "pruning_schedule": pruning_schedule(options["schedule"], options["sparsity"], steps),
        "block_size": tuple(options["block"]),
    }
    if options["m_by_n"]:
        given["sparsity_m_by_n"] = tuple(options["m_by_n"])

    def wrapped(layer: Any) -> Any:
        return tfmot.sparsity.keras.prune_low_magnitude(layer, **given)

    able = _able(model, wrapped, "get_prunable_weights")
    names = choose(able, patterns, "prune")
    masked = tf_keras.models.clone_model(model, clone_function=lambda x: able[x.name] if x.name in names else x)
    train(masked, tfmot.sparsity.keras.UpdatePruningStep())
    stripped = tfmot.sparsity.keras.strip_pruning(masked)
    asked = options["m_by_n"][0] / options["m_by_n"][1] if options["m_by_n"] else options["sparsity"]
    zeros = size = 0
    for name in names:
        kernels = [np.asarray(w) for w in _kernels(stripped.get_layer(name))]
        found, count = (sum(f(k) for k in kernels) for f in (lambda k: int((k == 0).sum()), np.size))
        # TFMOT keeps at least one weight, and fills up blocks and groups of n
        short = 1 + (options["m_by_n"][1] * 8 if options["m_by_n"] else int(np.prod(options["block"])))
        if found < min(asked * count - short * len(kernels), count - len(kernels)):
            message = f"layer {name!r}: {found / count:.1%} zeros after training, {asked:.1%} were asked for"
            raise EdgedlError(message)
        zeros, size = zeros + found, size + count
    notes = [f"TFMOT pruned {len(names)} layers: {zeros / size:.2%} of their kernel weights are zero"]
    return Result(weights=_weights(stripped), notes=notes + _left(model, names, "pruned"))


def cluster(model: Any, options: Mapping[str, Any], train: Train, patterns: Patterns) -> Result:
    """Weight clustering; the values of every kernel are counted. Raises EdgedlError where there are too many."""
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as experimental

    start = tfmot.clustering.keras.CentroidInitialization[options["initialization"].upper()]
    given = {
        "number_of_clusters": options["clusters"],
        "cluster_centroids_init": start,
        "cluster_per_channel": options["per_channel"],
        "preserve_sparsity": options["preserve_sparsity"],
    }

    def wrapped(layer: Any) -> Any:
        return experimental.cluster_weights(layer, **given)

    before = {layer.name: [int((np.asarray(k) == 0).sum()) for k in _kernels(layer)] for layer in model.layers}
    able = _able(model, wrapped, "get_clusterable_weights")
    names = choose(able, patterns, "cluster")
    shared = tf_keras.models.clone_model(model, clone_function=lambda x: able[x.name] if x.name in names else x)
    train(shared)
    stripped = tfmot.clustering.keras.strip_clustering(shared)
    most = 0
    for name in names:
        layer = stripped.get_layer(name)
        for kernel, zeros in zip([np.asarray(w) for w in _kernels(layer)], before[name], strict=True):
            parts = np.moveaxis(kernel, -1, 0) if options["per_channel"] and kernel.ndim == 4 else [kernel]
            values = max(len(np.unique(part)) for part in parts)
            if values > options["clusters"]:
                message = f"layer {name!r}: {values} values after training, {options['clusters']} clusters were asked for"
                raise EdgedlError(message)
            if options["preserve_sparsity"] and (kernel == 0).sum() < zeros:
                message = f"layer {name!r}: {zeros} zeros were to be kept, TFMOT left {(kernel == 0).sum()}"
                raise EdgedlError(message)
            most = max(most, values)
    notes = [f"TFMOT clustered {len(names)} layers: at most {most} values in a kernel"]
    return Result(weights=_weights(stripped), notes=notes + _left(model, names, "clustered"))


def quantize(model: Any, method: str, train: Train, patterns: Patterns) -> Result:
    """Quantization-aware training, in `pqat`, `cqat` and `pcqat` with the zeros or clusters that are there kept.

    The weights are those on TFMOT's 8-bit grid, as plain float32.
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        default_8bit_cluster_preserve_quantize_scheme as cluster_preserve,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
        default_8bit_prune_preserve_quantize_scheme as prune_preserve,
    )

    scopes = tfmot.quantization.keras
    split = [layer.name for layer in model.layers if type(layer).__name__ in QAT_REWRITES]
    if split:
        message = f"layer {split[0]!r}: TFMOT splits separable convolutions in two, which cannot be carried back"
        raise UnsupportedError(message)
    _require_compressed(model, method)
    able = {x.name: x for x in model.layers if not isinstance(x, tf_keras.layers.InputLayer)}
    names = choose(able, patterns, "quantize")
    masks = {w.name: np.asarray(w) != 0 for x in model.layers for w in _kernels(x)} if "p" in method else {}
    annotated = tf_keras.models.clone_model(
        model, clone_function=lambda x: scopes.quantize_annotate_layer(x) if x.name in names else x
    )
    scheme: dict[str, Any] = {}
    if method == "pqat":
        scheme["scheme"] = prune_preserve.Default8BitPrunePreserveQuantizeScheme()
    elif method != "qat":
        scheme["scheme"] = cluster_preserve.Default8BitClusterPreserveQuantizeScheme("p" in method)
    quantized = scopes.quantize_apply(annotated, **scheme)
    train(quantized, *([_held(quantized, masks)] if masks else []))
    weights = _grid_weights(model, quantized)
    return Result(weights=weights, notes=_kept(model, weights, method), quantized=quantized)


def _able(model: Any, wrap: Callable[[Any], Any], weights: str) -> dict[str, Any]:
    """The layers that TFMOT can take and that have kernels to take, wrapped, by name."""
    found = {}
    for layer in model.layers:
        if not _kernels(layer):
            continue
        try:
            wrapped = wrap(layer)
        except ValueError:
            continue
        if hasattr(wrapped, "layer") and getattr(wrapped.layer, weights)():
            found[layer.name] = wrapped
    return found


def _kernels(layer: Any) -> list[Any]:
    """The weights of two axes or more."""
    return [w for w in layer.weights if len(w.shape) > 1]


def _left(model: Any, names: Sequence[str], done: str) -> list[str]:
    left = [x.name for x in model.layers if _kernels(x) and x.name not in names]
    return [f"not {done}: {', '.join(left)}"] if left else []


def _weights(stripped: Any) -> dict[str, list[Array]]:
    return {layer.name: layer.get_weights() for layer in stripped.layers if layer.weights}


def _require_compressed(model: Any, method: str) -> None:
    """Zeros or clusters to preserve, else the method is the wrong one. Raises InputError."""
    kernels = [(x.name, np.asarray(w)) for x in model.layers for w in _kernels(x)]
    if method in ("pqat", "pcqat") and not any((k == 0).any() for _, k in kernels):
        message = f"{method} keeps zeros, and no kernel has one; prune first, or take method qat"
        raise InputError(message)
    if method in ("cqat", "pcqat"):
        counts = {name: len(np.unique(k)) for name, k in kernels}
        if not any(n <= MOST_CENTROIDS and n < k.size / 2 for (name, k), n in zip(kernels, counts.values(), strict=True)):
            message = f"{method} keeps clusters, and no kernel has shared values; cluster first, or take method qat"
            raise InputError(message)


def _held(quantized: Any, masks: Mapping[str, Array]) -> Any:
    """A callback that sets what was zero to zero after every step: TFMOT's own mask loses some with batch norm."""
    import tensorflow as tf
    import tf_keras

    by_name = {v.name: v for v in quantized.variables}
    pairs = [(by_name[name], tf.constant(mask, tf.float32)) for name, mask in masks.items() if name in by_name]

    @tf.function  # type: ignore[untyped-decorator]
    def hold() -> None:
        for variable, mask in pairs:
            variable.assign(variable * mask)

    class Held(tf_keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            hold()

    return Held()


def _grid_weights(model: Any, quantized: Any) -> dict[str, list[Array]]:
    """The weights of each layer, those that TFMOT quantizes as its quantizers give them at inference."""
    import tensorflow as tf

    wrappers = {x.layer.name: x for x in quantized.layers if hasattr(x, "quantize_config")}
    found: dict[str, list[Array]] = {}
    for layer in model.layers:
        if not layer.weights:
            continue
        new = wrappers.get(layer.name)
        holder = new if new is not None else quantized.get_layer(layer.name)
        values = {_last(v.name): np.asarray(v) for v in holder.weights}
        for variable, quantizer, state in getattr(new, "_weight_vars", ()):
            grid = quantizer(tf.identity(variable), False, weights=state)
            values[_last(variable.name)] = np.asarray(grid)
        found[layer.name] = [values[_last(w.name)] for w in layer.weights]
    return found


def _last(name: str) -> str:
    """`conv/kernel:0` -> `kernel`."""
    return name.split(":")[0].split("/")[-1]


def _kept(model: Any, weights: Mapping[str, list[Array]], method: str) -> list[str]:
    """What is left of the zeros and clusters. Raises EdgedlError where a zero was lost."""
    notes = []
    pairs = [
        (layer.name, np.asarray(old), new)
        for layer in model.layers
        for old, new in zip(layer.weights, weights.get(layer.name, ()), strict=False)
        if new.ndim > 1
    ]
    if method in ("pqat", "pcqat"):
        lost = [name for name, old, new in pairs if ((old == 0) & (new != 0)).any()]
        if lost:
            message = f"TFMOT's {method} lost zeros in {', '.join(lost)}"
            raise EdgedlError(message)
        share = sum((new == 0).sum() for *_, new in pairs) / sum(new.size for *_, new in pairs)
        notes.append(f"every zero is kept: {share:.2%} of the kernel weights are zero")
    if method in ("cqat", "pcqat"):
        grown = [
            f"{name} ({len(np.unique(old))} to {len(np.unique(new))})"
            for name, old, new in pairs
            if len(np.unique(new)) > len(np.unique(old))
        ]
        if grown:
            notes.append(f"TFMOT did not keep the clusters of {', '.join(grown)}")
    return notes

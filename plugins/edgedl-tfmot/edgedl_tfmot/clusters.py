"""In TFMOT's process: its weight clustering, with the values of every kernel counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgedl.errors import EdgedlError
from edgedl_tfmot.layers import Patterns, Result, Train, able_layers, choose, kernels, left_out, plain_weights, told_of


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

    before = {layer.name: [int((np.asarray(k) == 0).sum()) for k in kernels(layer)] for layer in model.layers}
    able = able_layers(model, wrapped, "get_clusterable_weights")
    names = choose(able, patterns, "cluster")
    shared = tf_keras.models.clone_model(model, clone_function=lambda x: able[x.name] if x.name in names else x)
    train(shared)
    stripped = tfmot.clustering.keras.strip_clustering(shared)
    most = 0
    for name in names:
        layer = stripped.get_layer(name)
        for kernel, zeros in zip([np.asarray(w) for w in kernels(layer)], before[name], strict=True):
            parts = np.moveaxis(kernel, -1, 0) if options["per_channel"] and kernel.ndim == 4 else [kernel]
            values = max(len(np.unique(part)) for part in parts)
            if values > options["clusters"]:
                message = (
                    f"layer {name!r}: {values} values after training, {options['clusters']} clusters were asked for"
                )
                raise EdgedlError(message)
            if options["preserve_sparsity"] and (kernel == 0).sum() < zeros:
                message = f"layer {name!r}: {zeros} zeros were to be kept, TFMOT left {(kernel == 0).sum()}"
                raise EdgedlError(message)
            most = max(most, values)
    where = "a channel" if options["per_channel"] else "a kernel"
    note = f"TFMOT clustered {told_of(names, model)}: at most {most} values in {where}"
    return Result(weights=plain_weights(stripped), notes=[note, *left_out(model, names, patterns, "clustered")])

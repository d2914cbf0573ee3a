"""Weight sharing: a few float values a tensor or channel, or, ahead of int8, a few integer codes for all tensors.

Float centroids, as Han et al., arXiv:1510.00149, section 3, become another integer in every channel once each has its
scale. The domain `int` shares the codes themselves: weights are code * scale, which an int8 quantizer with the scale
max |w| / 127 a channel finds again exactly, so that the file holds these codes and packs well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from edgedl.compression import clustering
from edgedl.compression.base import Context, Data, fine_tune
from edgedl.compression.fold import fold
from edgedl.compression.kernels import Kernel, kernels, share_text
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.compression.preservation import Steps, preserved
from edgedl.compression.sharing import Centroids, Codes, StraightThrough, Values
from edgedl.errors import EdgedlError, InputError
from edgedl.graph import flattened
from edgedl.models.cleaning import copy_of
from edgedl.models.tensors import graph_operations
from edgedl.toml import Within

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

CODED = frozenset({"Dense", "Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "Conv2DTranspose"})
MOST_CODES = 255  # of int8, narrow range


@dataclass(frozen=True, kw_only=True)
class Options:
    """`clusters` values; in the domain `int` they are codes that all kernels share.

    `bits` is what a weight's code may take in the zipped file on average: rounding then prefers frequent codes.
    Kernels with fewer than `smallest` weights are left alone: there is little to gain, and much to lose.
    """

    clusters: Annotated[int, Within("[2, 256]")] = 16
    granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    domain: Literal["float", "int"] = "float"
    bits: Annotated[float, Within("(0, 8]")] | None = None
    smallest: Annotated[int, Within("[1, inf)")] = 1

    def __post_init__(self) -> None:
        if self.domain == "float" and self.bits is not None:
            message = "bits is for domain = 'int': float values are not what the file holds"
            raise ValueError(message)
        if self.domain == "int" and not clustering.FEWEST <= self.clusters <= MOST_CODES:
            message = f"clusters must be {clustering.FEWEST} to {MOST_CODES} with domain = 'int', got {self.clusters}"
            raise ValueError(message)
        if self.domain == "int" and self.granularity != "per_tensor":
            message = "granularity is for domain = 'float': integer codes have a scale a channel already"
            raise ValueError(message)


class Cluster:
    """Sets weights to shared values, trained where the step trains; zeros stay zeros."""

    kind = "cluster"
    options = Options

    def apply(self, model: keras.Model, data: Data, options: Options, context: Context) -> keras.Model:
        """A copy (in the domain `int` flat, with batch normalization folded) whose kernels share values.

        Raises InputError: no kernel is large enough, or `bits` is out of reach.
        """
        made = _folded(model, context) if options.domain == "int" else copy_of(model)
        chosen = _chosen(made, options, context)
        matrices = [k.matrix(k.read()) for k in chosen]
        try:
            values = _values(matrices, options)
            self._share(made, chosen, values, data, context)
        except ValueError as e:
            message = f"{context.step.where}: {e}"
            raise InputError(message) from e
        if re_estimate_batch_norm(made, data, seed=context.seed):
            context.say(f"{context.step.where}: batch-norm statistics re-estimated on the data")
        _tell(chosen, options, context)
        return made

    def _share(self, made: keras.Model, chosen: Sequence[Kernel], values: Values, data: Data, context: Context) -> None:
        training = context.step.training
        sharing = StraightThrough(chosen, values, training.epochs if training else None)
        others = preserved(made, without=chosen)
        sharing.start()
        if training is None:
            return

        fine_tune(made, data, training, context, on_step=Steps([sharing, others]))


def _folded(model: keras.Model, context: Context) -> keras.Model:
    """Flat, batch normalization folded: afterwards nothing scales the kernels any more."""
    made, left = fold(flattened(model))
    if left:
        context.say(
            f"{context.step.where}: batch normalization that could not be folded stays: {', '.join(left)}; should the "
            "exporter merge one into the next layer, that layer loses its shared codes"
        )
    return made


def _chosen(model: keras.Model, options: Options, context: Context) -> list[Kernel]:
    called = {id(op) for op in graph_operations(model)} if options.domain == "int" else set()

    def able(layer: Any, kernel: Kernel) -> bool:
        fits = options.domain == "float" or (type(layer).__name__ in CODED and id(layer) in called)
        return fits and math.prod(kernel.shape) >= options.smallest

    kind = "layer with int8 codes" if options.domain == "int" else "layer with a kernel"
    size = f" of {options.smallest} weights or more" if options.smallest > 1 else ""
    return kernels(model, context, able=able, what=kind + size)


def _values(matrices: Sequence[Array], options: Options) -> Values:
    if options.domain == "int":
        coded = clustering.fit_codes(matrices, options.clusters, bits=options.bits)
        return Codes(coded, options.bits)
    if options.granularity == "per_channel":
        return Centroids([clustering.k_means_per_channel(m, options.clusters) for m in matrices])
    return Centroids([clustering.k_means(m, options.clusters, keep_zero=bool((m == 0).any())) for m in matrices])


def _tell(chosen: Sequence[Kernel], options: Options, context: Context) -> None:
    """Say what the kernels hold now, counted. Raises EdgedlError where that is more than was asked for."""
    where, matrices = context.step.where, [k.matrix(k.read()) for k in chosen]
    if options.domain == "int":
        codes = [clustering.codes_of(m) for m in matrices]
        found = [c for c in codes if c is not None]
        used = np.unique(np.concatenate([c.ravel() for c in found])) if found else np.zeros(0)
        most = max((len(np.unique(c)) for c in found), default=0)
        if len(found) < len(codes) or most > options.clusters:
            message = f"{where}: the kernels do not hold {options.clusters} codes after the step; this is a defect"
            raise EdgedlError(message)
        listed = " ".join(str(int(c)) for c in used)
        bits = clustering.zipped_bits(found)
        context.say(f"{where}: {len(chosen)} kernels share the codes {listed}: zipped, {bits:.2f} bits a weight")
    else:
        most = max(clustering.distinct(m, per_channel=options.granularity == "per_channel") for m in matrices)
        of = "channel" if options.granularity == "per_channel" else "kernel"
        context.say(f"{where}: {len(chosen)} kernels, at most {most} float values a {of}")
    if any((m == 0).any() for m in matrices):
        context.say(f"{where}: {share_text(chosen)}")

"""Channels taken out of a network: smaller layers with the weights that are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import graph
from edgedl.compression.groups import DEPTHWISE, KERNELS, Groups, Use
from edgedl.graph import Replacement
from edgedl.models.macs import layer_macs

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array


def sliced(kernel: Array, ins: Array, outs: Array, layout: str) -> Array:
    """A kernel with the channels that are left; `ins` and `outs` are masks.

    # convolution (3, 3, in, out); dense (in, out); transposed (3, 3, out, in)
    """
    if layout == "transposed":
        return kernel[..., outs, :][..., ins]
    return kernel[..., ins, :][..., outs]


def removed(model: keras.Model, groups: Groups, keep: Array, biases: Mapping[str, Array] | None = None) -> keras.Model:
    """A copy of a flat model without the groups where `keep` (groups.count,) is False.

    `biases` are added to those of the layers they name, full size: (out,); a layer without a bias gets one.
    """
    biases = biases or {}
    replace: dict[str, Any] = {}
    for name, use in groups.uses.items():
        ins, outs = keep[use.inputs], keep[use.outputs]
        if not ins.all() or not outs.all() or name in biases:
            replace[name] = _smaller(use, ins, outs, biases.get(name))
    return graph.rebuild(model, replace)


def _smaller(use: Use, ins: Array, outs: Array, bias: Array | None) -> Replacement:
    kind, layer = type(use.layer).__name__, use.layer
    weights = layer.get_weights()
    if kind == "Reshape":
        target = tuple(layer.target_shape)
        last = int(outs.sum()) if target[-1] != -1 else -1
        return Replacement(layer=graph.copied(layer, use.name, target_shape=(*target[:-1], last)))
    if kind in ("BatchNormalization", "PReLU"):
        shared = [w[..., outs] if w.shape[-1] == len(outs) else w for w in weights]
        return Replacement(layer=graph.copied(layer, use.name), weights=shared)
    changes: dict[str, Any] = {} if kind in DEPTHWISE else {"units" if kind == "Dense" else "filters": int(outs.sum())}
    kernels, biases = (weights[:-1], weights[-1:]) if layer.use_bias else (weights, [])
    if bias is not None:
        biases = [np.asarray((biases[0] if biases else 0) + bias, np.float32)]
        changes["use_bias"] = True
    if kind in DEPTHWISE:
        kernels = [kernels[0][..., ins, :]]
    elif KERNELS[kind] == "separable":
        rows = np.repeat(ins, layer.depth_multiplier)
        kernels = [kernels[0][..., ins, :], sliced(kernels[1], rows, outs, "convolution")]
    else:
        kernels = [sliced(kernels[0], ins, outs, KERNELS[kind])]
    return Replacement(layer=graph.copied(layer, use.name, **changes), weights=[*kernels, *(b[outs] for b in biases)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """Multiply-accumulates and parameters for any choice of groups, without building the model.

    Every term is `amount` x kept inputs x kept outputs; a side of -1 counts 1.
    """

    groups: Groups
    macs_fixed: int
    parameters_fixed: int
    terms: tuple[tuple[Array, Array, float, float], ...]  # inputs, outputs, macs and parameters of one pair

    @classmethod
    def of(cls, model: keras.Model, groups: Groups) -> Costs:
        """The costs of a flat model; macs that a foreign layer hides count 0."""
        terms: list[tuple[Array, Array, float, float]] = []
        one = np.full(1, -1)
        covered_macs = covered_parameters = 0.0
        for use in groups.uses.values():
            macs = sum(macs_of(call) or 0 for call in use.calls)
            kind = type(use.layer).__name__
            sizes = [int(np.prod(w.shape)) for w in use.layer.weights]
            pairs = _pairs(use, kind, one, sizes)
            kernel = sum(size for _, _, size in pairs[: 2 if "Separable" in kind else 1])
            for i, (ins, outs, size) in enumerate(pairs):
                share = size / kernel if i < (2 if "Separable" in kind else 1) and kernel else 0
                per = len(ins) * len(outs)
                terms.append((ins, outs, macs * share / per, size / per))
            covered_macs += macs
            covered_parameters += sum(sizes)
        total = sum(macs_of(call) or 0 for call in groups.graph.calls)
        return cls(
            groups=groups,
            macs_fixed=round(total - covered_macs),
            parameters_fixed=round(model.count_params() - covered_parameters),
            terms=tuple(terms),
        )

    def of_choice(self, keep: Array) -> tuple[int, int]:
        """Multiply-accumulates and parameters where the groups of mask `keep` (groups.count,) are left."""
        macs, parameters = float(self.macs_fixed), float(self.parameters_fixed)
        padded = np.append(keep, True)  # index -1: a side that does not count
        for ins, outs, pair_macs, pair_parameters in self.terms:
            pairs = int(padded[ins].sum()) * int(padded[outs].sum())
            macs += pairs * pair_macs
            parameters += pairs * pair_parameters
        return round(macs), round(parameters)

    def saved(self, keep: Array) -> tuple[Array, Array]:
        """What removing each group alone, from where mask `keep` is, saves: macs and parameters, (groups.count,)."""
        saved = np.zeros((2, self.groups.count + 1))
        padded = np.append(keep, True)
        for ins, outs, *amounts in self.terms:
            for side, other in ((ins, outs), (outs, ins)):
                for k, amount in enumerate(amounts):
                    np.add.at(saved[k], side, amount * int(padded[other].sum()))
        return saved[0, :-1], saved[1, :-1]


def macs_of(call: graph.Call) -> int | None:
    """Multiply-accumulates of one call, None where they are hidden; see `layer_macs`."""
    return layer_macs(call.layer, [v.shape for v in call.inputs], call.outputs[0].shape)


def _pairs(use: Use, kind: str, one: Array, sizes: list[int]) -> list[tuple[Array, Array, int]]:
    """The weights of a layer as (inputs, outputs, size)."""
    if kind in KERNELS and KERNELS[kind] == "separable":
        sides = [(use.inputs, one), (use.inputs, use.outputs)]
    elif kind in KERNELS:
        sides = [(use.inputs, use.outputs)]
    elif kind in DEPTHWISE:
        sides = [(one, use.outputs)]
    else:
        sides = []
    sides += [(one, use.outputs)] * (len(sizes) - len(sides))
    return [(ins, outs, size) for (ins, outs), size in zip(sides, sizes, strict=True)]

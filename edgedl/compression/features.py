"""Which features of the original model a student imitates: tensors that both have, of one shape and meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from edgedl.compression.placement import activation_name
from edgedl.errors import InputError
from edgedl.models.tensors import graph_nodes

if TYPE_CHECKING:
    import keras

AUTO = "auto"
Pairs = dict[str, tuple[Any, Any]]  # ours and theirs, by the name of the layer that gives them


def imitated(student: keras.Model, teacher: keras.Model, patterns: Sequence[str], where: str) -> Pairs:
    """The tensors that layer patterns name, and for `auto` the ends of stages, which may be none.

    Raises InputError for a pattern that hits no layer.
    """
    pairs = _pairs(student, teacher)
    found: Pairs = {}
    for pattern in patterns:
        if pattern == AUTO:
            found |= stage_ends(pairs)
            continue
        hit = {name: pair for name, pair in pairs.items() if fnmatchcase(name, pattern)}
        if not hit:
            message = (
                f"{where}: distill features {pattern!r} hits no layer that both models have, with one output "
                f"of the same shape and activation; there are {', '.join(sorted(pairs)) or 'none'}"
            )
            raise InputError(message)
        found |= hit
    return found


def stage_ends(pairs: Pairs) -> Pairs:
    """The last tensor of each height x width, or length, above 1, as in Zagoruyko and Komodakis, arXiv:1612.03928.

    That is what the blocks of one resolution have made together, and what channel removal leaves whole the longest.
    Where a model leaves its sizes free, one resolution looks like another, and only the last of all is taken.
    """
    ends = {}
    for name, (ours, _) in pairs.items():
        places = tuple(ours.shape[1:-1])
        if any(size is None or size > 1 for size in places):
            ends[places] = name
    return {name: pairs[name] for name in ends.values()}


def _pairs(student: keras.Model, teacher: keras.Model) -> Pairs:
    """Floats that should be alike, and that training moves, by the layer that gives them, which both call once."""
    ours, theirs = _single_calls(student), _single_calls(teacher)
    takers: dict[int, list[Any]] = {}
    for node in graph_nodes(teacher):
        for tensor in node.input_tensors:
            takers.setdefault(id(tensor), []).append(node)
    gone, trained = set(theirs) - set(ours), _trained(student)
    pairs = {}
    for name in ours:
        if name not in theirs or _activation(ours[name]) != _activation(theirs[name]):
            continue
        tensor = _after_folded(theirs[name].outputs[0], takers, gone)
        mine = ours[name].outputs[0]
        if id(mine) in trained and "float" in str(mine.dtype) and tuple(mine.shape) == tuple(tensor.shape):
            pairs[name] = (mine, tensor)
    return pairs


def _trained(model: keras.Model) -> set[int]:
    """The tensors, by `id`, with trainable weights before them."""
    found: set[int] = set()
    for node in graph_nodes(model):
        weights = getattr(node.operation, "trainable_weights", ())
        if weights or any(id(tensor) in found for tensor in node.input_tensors):
            found |= {id(tensor) for tensor in node.outputs}
    return found


def _single_calls(model: keras.Model) -> dict[str, Any]:
    """The calls with one output of the layers that are called once, by the layers' names."""
    nodes = list(graph_nodes(model))
    times = Counter(node.operation.name for node in nodes)
    return {n.operation.name: n for n in nodes if times[n.operation.name] == 1 and len(n.outputs) == 1}


def _activation(node: Any) -> str:
    """The activation of a call, or of the one before it where this is the range that quantization gave an output."""
    while type(node.operation).__name__ in ("FakeQuantize", "Barrier"):
        before, number, _ = node.input_tensors[0]._keras_history
        node = before._inbound_nodes[number]
    return activation_name(getattr(node.operation, "activation", None))


def _after_folded(tensor: Any, takers: Mapping[int, list[Any]], gone: set[str]) -> Any:
    """What a layer gives once the batch normalizations that the other model has no more are folded into it."""
    while len(after := takers.get(id(tensor), [])) == 1:
        layer = after[0].operation
        if type(layer).__name__ != "BatchNormalization" or layer.name not in gone:
            break
        tensor = after[0].outputs[0]
    return tensor

"""Small views and passes on ONNX graphs: walk, rename, merge and drop, none of which changes a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

# What the specification says a window without the attribute has along each axis; the schemas give only whole defaults.
WINDOWS = {"Conv", "AveragePool", "MaxPool"}
WINDOW_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0}
HALF_MINIMUM_ELEMENTS = 32  # below, the Cast node is larger than what fp16 saves


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of a Loop or an If."""
    return [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and every graph inside it, outer ones first."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of loop bodies included."""
    for each in all_graphs(graph):
        yield from each.node


def arrays(graph: onnx.GraphProto) -> dict[str, np.ndarray[Any, Any]]:
    """The initializers of one graph by name."""
    from onnx import numpy_helper

    return {i.name: numpy_helper.to_array(i) for i in graph.initializer}


def weight_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of initializers by dtype, those of loop bodies included."""
    found: dict[str, int] = {}
    for graph in all_graphs(model.graph):
        for array in arrays(graph).values():
            found[array.dtype.name] = found.get(array.dtype.name, 0) + array.nbytes
    return found


def refill(field: Any, items: Iterable[Any]) -> None:
    """Make `items` the content of a repeated protobuf field; they may be its own."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Tensor name -> the node of this graph that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor name -> the nodes that read it; a Loop stands for what its body reads."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(_needs(node)):
            found.setdefault(name, []).append(node)
    return found


def rewire(graph: onnx.GraphProto, rename: Callable[[str], str]) -> None:
    """Rename every use and definition of a tensor, in all graphs."""
    for each in all_graphs(graph):
        for value in [*each.input, *each.output, *each.value_info, *each.initializer]:
            value.name = rename(value.name)
        for node in each.node:
            node.input[:] = [rename(n) if n else "" for n in node.input]
            node.output[:] = [rename(n) if n else "" for n in node.output]


def set_interface(graph: onnx.GraphProto, inputs: dict[str, str], outputs: list[tuple[str, str]]) -> None:
    """Give the graph's inputs (tensor -> name) and outputs ((tensor, name) in order) their canonical names.

    An output that is an input, or shown under two names, goes through an Identity.
    """
    from onnx import helper

    taken = dict(inputs)
    values = {o.name: o for o in graph.output}
    shown = []
    for tensor, name in outputs:
        value = type(values[tensor])()
        value.CopyFrom(values[tensor])
        if tensor in taken:
            value.name = f"{name}:output"
            graph.node.append(helper.make_node("Identity", [tensor], [value.name]))
        taken[value.name] = name
        shown.append(value)
    refill(graph.output, shown)
    given = {v.name: v for v in graph.input}
    refill(graph.input, [given[tensor] for tensor in inputs])
    rewire(graph, lambda n: taken.get(n, n))


def sort(graph: onnx.GraphProto) -> None:
    """Keep what the outputs need, in the order in which they need it, so that a model always has the same bytes."""
    for each in all_graphs(graph):
        made = producers(each)
        nodes: list[onnx.NodeProto] = []
        used: dict[str, None] = {}
        done: set[str] = set()
        waiting = [(o.name, False) for o in reversed(each.output)]
        while waiting:
            name, ready = waiting.pop()
            if ready:
                nodes.append(made[name])
            elif name not in made or made[name].output[0] in done:
                used.setdefault(name)
            else:
                node = made[name]
                done.add(node.output[0])
                waiting.append((name, True))
                waiting += [(n, False) for n in reversed(_needs(node))]
        items = {i.name: i for i in each.initializer}
        refill(each.node, nodes)
        refill(each.initializer, [items[n] for n in used if n in items])


def _needs(node: onnx.NodeProto) -> list[str]:
    inner = [n for graph in subgraphs(node) for each in all_graphs(graph) for n in _read_names(each)]
    return [*node.input, *dict.fromkeys(inner)]


def _read_names(graph: onnx.GraphProto) -> list[str]:
    return [*(n for node in graph.node for n in node.input), *(o.name for o in graph.output)]


def merge_initializers(graph: onnx.GraphProto) -> None:
    """One initializer for all that hold the same values, a loop body's among them."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    outputs = {o.name for each in all_graphs(graph) for o in each.output}
    for each in all_graphs(graph):
        for item in each.initializer:
            raw = item.raw_data or item.SerializeToString()
            key = (item.data_type, tuple(item.dims), raw)
            if each is graph:
                first.setdefault(key, item.name)
            if key in first and item.name != first[key] and item.name not in outputs:
                same[item.name] = first[key]
    for node in all_nodes(graph):
        node.input[:] = [same.get(n, n) for n in node.input]
    sort(graph)


def store_half(graph: onnx.GraphProto) -> None:
    """Store float32 initializers that fp16 holds exactly as fp16, with a Cast that runtimes fold as they load.

    tf2onnx folds the casts of an fp16 TFLite file into float32 weights, which doubles the file.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for each in all_graphs(graph):
        casts = []
        for item in each.initializer:
            values = numpy_helper.to_array(item)
            if values.dtype != np.float32 or values.size < HALF_MINIMUM_ELEMENTS:
                continue
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if np.array_equal(half.astype(np.float32), values):
                name = item.name
                item.CopyFrom(numpy_helper.from_array(half, f"{name}:half"))
                casts.append(helper.make_node("Cast", [item.name], [name], to=TensorProto.FLOAT))
        refill(each.node, [*casts, *each.node])


def left_float_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the float32 initializers that are too small for `store_half`."""
    values = (array for graph in all_graphs(model.graph) for array in arrays(graph).values())
    return sum(a.nbytes for a in values if a.dtype.name == "float32" and a.size < HALF_MINIMUM_ELEMENTS)


def shorten(graph: onnx.GraphProto) -> None:
    """Short tensor names inside, no node names, documentation or intermediate shapes: what a device never reads."""
    kept: dict[str, str] = {v.name: v.name for v in [*graph.input, *graph.output]}
    prefix = "t"
    while any(name.startswith(prefix) for name in kept):
        prefix += "_"
    short = dict(kept)

    def rename(name: str) -> str:
        return short.setdefault(name, f"{prefix}{len(short) - len(kept)}")

    for each in all_graphs(graph):
        del each.value_info[:]
        each.ClearField("doc_string")
        for node in each.node:
            node.ClearField("name")
            node.ClearField("doc_string")
            if not node.domain:
                node.ClearField("domain")  # said or left out, by chance
            refill(node.attribute, sorted(node.attribute, key=lambda a: a.name))
        for item in each.initializer:
            item.ClearField("doc_string")
    rewire(graph, rename)


def drop_defaults(model: onnx.ModelProto) -> None:
    """Leave out attributes that say what the operator does without them."""
    from onnx import defs

    versions = {o.domain: o.version for o in model.opset_import}
    for node in all_nodes(model.graph):
        if not node.domain:  # onnxruntime's own operators are not in ONNX's schemas
            known = defs.get_schema(node.op_type, versions[""], "").attributes
            refill(node.attribute, [a for a in node.attribute if not _is_default(node, a, known)])


def _is_default(node: onnx.NodeProto, attribute: onnx.AttributeProto, known: Mapping[str, Any]) -> bool:
    from onnx import AttributeProto, helper

    value = helper.get_attribute_value(attribute)
    if node.op_type in WINDOWS and attribute.name in WINDOW_DEFAULTS:
        return set(value) == {WINDOW_DEFAULTS[attribute.name]}
    default = known[attribute.name].default_value
    return bool(default.type != AttributeProto.UNDEFINED and helper.get_attribute_value(default) == value)

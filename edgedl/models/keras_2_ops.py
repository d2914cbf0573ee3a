"""TensorFlow functions in the graph of a Keras 2 model, as Keras 3 ops."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from edgedl.errors import UnsupportedError

CLASSES = {"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod", "InstanceMethod", "InstanceProperty"}
OPS = {
    **{f"math.{n}": n for n in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "abs", "exp", "log")},
    **{f"math.{n}": n for n in ("sqrt", "rsqrt", "square", "negative", "tanh", "sigmoid", "floor", "sin", "cos")},
    **{f"__operators__.{n}": n for n in ("add", "subtract", "multiply")},
    **{f"math.reduce_{n}": n for n in ("mean", "sum", "max", "min", "prod")},
    **{f"nn.{n}": n for n in ("relu", "relu6", "sigmoid", "softmax", "silu", "gelu", "elu", "selu", "leaky_relu")},
    **{f"nn.{n}": n for n in ("softplus", "log_softmax", "tanh")},
    **{n: n for n in ("reshape", "transpose", "expand_dims", "squeeze", "stack", "cast", "tile", "repeat")},
    "math.truediv": "true_divide",
    "math.pow": "power",
    "math.l2_normalize": "normalize",
    "math.softplus": "softplus",
    "concat": "concatenate",
    "clip_by_value": "clip",
    "linalg.matmul": "matmul",
    "identity": "copy",
    "__operators__.getitem": "getitem",
}
RENAMED_ARGUMENTS = {"input_tensor": "x", "perm": "axes", "values": "x", "clip_value_min": "x_min"}
RENAMED_ARGUMENTS |= {"clip_value_max": "x_max", "shape": "newshape", "multiples": "repeats"}
RENAMED_ARGUMENTS |= {"alpha": "negative_slope", "x": "x1", "y": "x2", "a": "x1", "b": "x2", "tensor": "x"}


def check(layer: str, node: Mapping[str, Any]) -> None:
    """Refuse a serialized layer that calls what is not in OPS, before it is loaded: tf.io.write_file would run too.

    Raises UnsupportedError that names layer and function.
    """
    config = node.get("config")
    if node["class_name"] in CLASSES and isinstance(config, Mapping):
        _known(layer, node["class_name"], str(config.get("function", "")))


def _known(layer: str, kind: str, symbol: str) -> str:
    """The function's name in OPS."""
    symbol = symbol.removeprefix("compat.v1.")
    if symbol in OPS:
        return symbol
    function = f"the TensorFlow function tf.{symbol}" if symbol else kind
    message = f"{layer}: {function} has no Keras 3 counterpart here"
    raise UnsupportedError(message)


def run(old: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A TensorFlow function of a Keras 2 graph as the Keras 3 op. Raises UnsupportedError that names it."""
    import keras
    import tensorflow as tf

    symbol = _known(f"layer {old.name!r}", type(old).__name__, str(getattr(old, "symbol", "")))
    operands = [v.name if isinstance(v, tf.DType) else v for v in args]
    while operands[-1] is None:  # options that were left out
        operands.pop()
    if OPS[symbol] == "getitem":
        return _named(operands[0][tuple(_slice(s) for s in operands[1])], operands, old.name)
    function: Callable[..., Any] = getattr(keras.ops, OPS[symbol])
    allowed = inspect.signature(function).parameters
    given = {"approximate": False} if OPS[symbol] == "gelu" else {}  # TensorFlow's default, not Keras's
    for key, value in kwargs.items():
        name = key if key in allowed else RENAMED_ARGUMENTS.get(key, key)
        if name in allowed:
            given[name] = value.name if isinstance(value, tf.DType) else value
        elif value not in (None, False) and key != "name":
            message = f"layer {old.name!r}: tf.{symbol} with {key}={value!r} has no Keras 3 counterpart here"
            raise UnsupportedError(message)
    return _named(function(*operands, **{k: v for k, v in given.items() if v is not None}), operands, old.name)


def _named(result: Any, operands: list[Any], name: str) -> Any:
    """The result, its op under the old layer's name: Keras's own may be that of a layer."""
    if not any(result is operand for operand in operands):
        result._keras_history.operation.name = name.replace("/", "_")
    return result


def _slice(value: Any) -> Any:
    return slice(value["start"], value["stop"], value["step"]) if isinstance(value, Mapping) else value

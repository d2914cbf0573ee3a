"""TFLite to ONNX in this process: tf2onnx, with what it lacks, quiet, and refusing by name what it cannot do."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.errors import UnsupportedError
from edgedl_onnx.graphs import all_nodes
from edgedl_onnx.source import Source

if TYPE_CHECKING:
    import onnx

OPSETS = range(13, 19)  # 13: per-channel scales; 18: the last that tf2onnx writes
DEFAULT_OPSET = 17  # the same integer kernels as 18, and read by more runtimes


def convert(source: Source, *, opset: int, channels_first: bool) -> onnx.ModelProto:
    """The file as tf2onnx converts it, under the tensor names of `source`. Raises UnsupportedError, naming the ops."""
    _refuse_unknown(source)
    _register()
    nchw = {
        "inputs_as_nchw": _images(source.input_tensors, source.inputs),
        "outputs_as_nchw": _images(source.output_tensors, source.outputs),
    }
    with tempfile.TemporaryDirectory() as folder, _quiet() as failures:
        import tf2onnx

        path = Path(folder) / "model.tflite"
        path.write_bytes(source.content)
        try:
            model, _ = tf2onnx.convert.from_tflite(str(path), opset=opset, **(nchw if channels_first else {}))
        except Exception as e:
            lines = str(e).strip().splitlines() or [""]
            message = f"tf2onnx cannot convert a TFLite file with {_listed(source.ops)}: {type(e).__name__}: {lines[0]}"
            raise UnsupportedError(message) from e
    _refuse_unconverted(model, opset)
    if failures:
        message = f"tf2onnx cannot convert a TFLite file with {_listed(source.ops)}: {failures[0]}"
        raise UnsupportedError(message)
    return model


def _images(tensors: tuple[str, ...], specs: tuple[Any, ...]) -> list[str]:
    return [t for t, s in zip(tensors, specs, strict=True) if len(s.shape) == 4]


def _listed(ops: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(ops.items()))


def _refuse_unknown(source: Source) -> None:
    """tf2onnx's schema is older than the converter's: an op or a dtype it has no name for ends in a lookup error."""
    with _quiet():
        from tf2onnx.tflite.BuiltinOperator import BuiltinOperator

    foreign = Counter({k: n for k, n in source.ops.items() if not hasattr(BuiltinOperator, k)})
    if foreign:
        message = f"ONNX export cannot do these TFLite ops: {_listed(foreign)}"
        raise UnsupportedError(message)
    if "int4" in source.weight_bytes or "int2" in source.weight_bytes:
        message = "ONNX export cannot do 4-bit weights; use dynamic_wi8_afp32 or weight_only_wi8_afp32"
        raise UnsupportedError(message)


def _refuse_unconverted(model: onnx.ModelProto, opset: int) -> None:
    import onnx

    unknown: Counter[str] = Counter()
    for node in all_nodes(model.graph):
        try:
            onnx.defs.get_schema(node.op_type, opset, node.domain)
        except onnx.defs.SchemaError:
            unknown[node.op_type.removeprefix("TFL_")] += 1
    if unknown:
        message = f"ONNX export cannot do these TFLite ops: {_listed(unknown)} (ONNX opset {opset})"
        raise UnsupportedError(message)


class _Failures(logging.Handler):
    """Collects what tf2onnx logs and goes on after: a node whose handler raised."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception of a failed node."""
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(str(record.exc_info[1]))


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keeps tf2onnx's log, and the deprecation of the interpreter it uses, from the user; yields its failures."""
    logger, failures = logging.getLogger("tf2onnx"), _Failures()
    level, propagate = logger.level, logger.propagate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.addHandler(failures)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        try:
            yield failures.found
        finally:
            logger.removeHandler(failures)
            logger.setLevel(level)
            logger.propagate = propagate


@cache
def _register() -> None:
    """Handlers for GELU, exact and by tanh, which tf2onnx 1.17 lacks, and a FULLY_CONNECTED put right."""
    with _quiet():
        from tf2onnx.handler import tfl_op
        from tf2onnx.tflite_handlers.tfl_math import TflFullyConnectedOp

    class Gelu:
        """x * 0.5 * (1 + erf(x / sqrt 2)), or its tanh form (Hendrycks and Gimpel, arXiv:1606.08415, section 2)."""

        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            tanh = bool(node.get_attr_value("approximate", 0))
            _replace(ctx, node, _gelu_tanh if tanh else _gelu_exact)

    class FullyConnected(TflFullyConnectedOp):  # type: ignore[misc]
        """tf2onnx's own, which loses the bias where it flattens the input itself."""

        @classmethod
        def to_tf(cls, ctx: Any, node: Any, **kwargs: Any) -> None:
            if not node.get_attr_value("keep_num_dims", 0) and ctx.get_rank(node.input[0]) != 2:
                _flatten_input(ctx, node)
            super().to_tf(ctx, node, **kwargs)

    tfl_op(["TFL_FULLY_CONNECTED"])(FullyConnected)
    tfl_op(["TFL_GELU"])(Gelu)


def _flatten_input(ctx: Any, node: Any) -> None:
    """Reshape the input of a fully connected node to (rows, features)."""
    import numpy as np
    from tf2onnx import utils

    shape = [-1, ctx.get_shape(node.input[1])[1]]  # weights (units, features)
    const = ctx.make_const(utils.make_name("rows"), np.array(shape, np.int64)).output[0]
    reshape = ctx.make_node(
        "Reshape",
        [node.input[0], const],
        shapes=[shape],
        dtypes=[ctx.get_dtype(node.input[0])],
        op_name_scope=node.name,
    )
    reshape.skip_conversion = True
    ctx.replace_input(node, node.input[0], reshape.output[0], 0)


def _gelu_exact(op: Any, const: Any, x: str) -> Any:
    erf = op("Erf", op("Div", x, const(2.0**0.5)))
    return op("Mul", op("Mul", x, op("Add", erf, const(1.0))), const(0.5))  # the order that onnxruntime fuses


def _gelu_tanh(op: Any, const: Any, x: str) -> Any:
    cubic = op("Mul", op("Mul", op("Mul", x, x), x), const(0.044715))
    tanh = op("Tanh", op("Mul", op("Add", x, cubic), const((2.0 / math.pi) ** 0.5)))
    return op("Mul", op("Mul", x, op("Add", tanh, const(1.0))), const(0.5))


def _replace(ctx: Any, node: Any, formula: Any) -> None:
    """Put what `formula` builds in the place of a tf2onnx node of one input."""
    import numpy as np
    from tf2onnx import utils

    def op(kind: str, *inputs: str) -> str:
        return str(ctx.make_node(kind, list(inputs), op_name_scope=node.name).output[0])

    def const(value: float) -> str:
        return str(ctx.make_const(utils.make_name(node.name), np.array(value, np.float32)).output[0])

    x, y = node.input[0], node.output[0]
    shape, dtype = ctx.get_shape(y), ctx.get_dtype(y)
    ctx.remove_node(node.name)
    last = formula(op, const, x)
    ctx.make_node("Identity", [last], outputs=[y], shapes=[shape], dtypes=[dtype])

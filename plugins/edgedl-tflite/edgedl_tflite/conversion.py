"""Keras to TFLite bytes: trace with fixed shapes, save, convert; the converter's errors in one line each."""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import EdgedlError, UnsupportedError
from edgedl.models.files import first_line
from edgedl.models.tensors import call_flat
from edgedl.types import Scheme, TensorSpec
from edgedl_tflite import calibration, masks, recurrent
from edgedl_tflite.calibration import Samples
from edgedl_tflite.embedding import Affine

if TYPE_CHECKING:
    import keras

UNROLL_TOLERANCE = 1e-4  # of the largest output: the same sums in another order


def trace(model: keras.Model, specs: tuple[TensorSpec, ...], inside: Mapping[int, Affine], *, static: bool) -> Any:
    """The model as a TensorFlow function from `input_<i>` to `output_<i>`, the steps `inside` before it; for a `static`
    scheme with masks that its integers can hold.
    """
    import tensorflow as tf

    def serve(*tensors: Any) -> dict[str, Any]:
        values = [inside[i].apply(t) if i in inside else t for i, t in enumerate(tensors)]
        return {f"output_{i}": tf.identity(v) for i, v in enumerate(call_flat(model, values))}

    signature = [tf.TensorSpec(s.shape, s.dtype, name=f"input_{i}") for i, s in enumerate(specs)]
    try:
        with masks.near() if static else contextlib.nullcontext():
            return tf.function(serve, input_signature=signature, autograph=False).get_concrete_function()
    except EdgedlError:
        raise
    except Exception as e:
        message = f"model {model.name!r} cannot be traced with inputs {[s.shape for s in specs]}: {first_line(e)}"
        raise UnsupportedError(message) from e


def without_loops(
    model: keras.Model, function: Any, samples: Samples, affines: Mapping[int, Affine], inside: Mapping[int, Affine]
) -> tuple[keras.Model, Any, list[str]]:
    """The model and its function with recurrent layers unrolled, and notes. Raises UnsupportedError naming a layer."""
    found = recurrent.loops(function.graph)
    if not found:
        return model, function, []
    unrolled, layers = recurrent.unroll(model)
    names = ", ".join(layers)
    with masks.backwards():
        for batch in samples.batches():
            values = calibration.ready(batch, samples.specs, affines)
            _check_same(call_flat(model, values), call_flat(unrolled, values), names)
        function = trace(unrolled, samples.specs, inside, static=True)
    if left := recurrent.loops(function.graph):
        layer = recurrent.layer_of(unrolled, left[0])
        message = f"layer {layer!r} runs a loop that cannot be unrolled; static schemes need that. Use dynamic or fp16"
        raise UnsupportedError(message)
    return unrolled, function, [f"unrolled for calibration, same outputs: {names}"]


def _check_same(before: Sequence[Any], after: Sequence[Any], names: str) -> None:
    for wanted, got in zip(before, after, strict=True):
        difference = float(np.max(np.abs(np.asarray(wanted) - np.asarray(got)), initial=0))
        if not difference <= UNROLL_TOLERANCE * max(1.0, float(np.max(np.abs(wanted), initial=0))):
            message = f"layers {names}: unrolled for calibration, an output changes by {difference:.3g}"
            raise UnsupportedError(message)


def convert(
    model: keras.Model,
    function: Any,
    scheme: Scheme,
    *,
    io: tuple[str, str],
    samples: Samples | None,
    outside: Mapping[int, Affine],
    carried: bool = False,
) -> bytes:
    """The converter's file. `io` are the types of inputs and outputs; ranges come from the `samples`, or are `carried`
    by the model's own fake quantization. Raises UnsupportedError.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own, about its interpreter
        try:
            holder = tf.Module()
            holder.held = [v.value for v in model.variables]
            tf.saved_model.save(holder, folder, signatures={"serving_default": function})
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            _configure(converter, scheme, carried=carried)
            if samples is not None and scheme.is_static:
                converter.representative_dataset = lambda: calibration.feed(samples, outside)
            if scheme.is_static:
                converter.inference_input_type, converter.inference_output_type = (
                    tf.float32 if name == "float" else tf.dtypes.as_dtype(name) for name in io
                )
            return bytes(converter.convert())
        except EdgedlError:
            raise
        except Exception as e:
            raise _explained(e, scheme) from e


def _configure(converter: Any, scheme: Scheme, *, carried: bool) -> None:
    import tensorflow as tf

    converter.exclude_conversion_metadata = True
    if scheme not in (Scheme.FP32, Scheme.WEIGHT_ONLY_WI8_AFP32, Scheme.WEIGHT_ONLY_WI4_AFP32):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if carried:  # with a set of integer ops the converter wants samples, which fake quantization does without
        return
    if scheme is Scheme.FP16:
        converter.target_spec.supported_types = [tf.float16]
    elif scheme is Scheme.DYNAMIC_WI8_AFP32:  # per channel is FULLY_CONNECTED version 12, which tflite-runtime lacks
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    elif scheme is Scheme.STATIC_WI8_AI8:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    elif scheme is Scheme.STATIC_WI8_AI16:
        kind = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [kind]


def _explained(error: Exception, scheme: Scheme) -> UnsupportedError:
    text = str(error)
    if select := re.findall(r"^(?:TF Select|Custom) ops: (.+)$", text, re.MULTILINE):
        where = re.search(r'fused\["\w+:", "([^"@]+)@', text)
        place = f" (at {where[1]})" if where else ""
        message = (
            f"no TFLite op for {', '.join(select)}{place}; such files run in no TFLite runtime here. Replace the op"
        )
    elif missing := re.findall(r"not yet supported for op: '(\w+)'", text):
        names = ", ".join(sorted(set(missing)))
        message = (
            f"{scheme.value}: the converter cannot quantize {names}. Use static_wi8_ai8, dynamic_wi8_afp32 or fp16"
        )
    elif empty := re.search(r"Failed for tensor (\S+)", text):
        message = f"{scheme.value}: {empty[1]} is not float and cannot be calibrated. Use dynamic_wi8_afp32 or fp16"
    else:
        message = f"{scheme.value}: the TFLite converter failed ({type(error).__name__}: {first_line(error)})"
    return UnsupportedError(message)

"""Keras layers that compute what an integer kernel will: values rounded to the grid of their codes, kept as floats.

A model of them carries its scheme and its ranges: it saves, loads and trains as any Keras model, and the exporter
turns the ranges into integer tensors. Rounding passes gradients straight through (Bengio et al., arXiv:1308.3432);
values outside a range pass them on to the range, where that is trained. Jacob et al., arXiv:1712.05877, section 3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import tensorflow as tf
from numpy.typing import NDArray

from edgedl.compression.ranges import FIXED, FIXED_16, nudged
from edgedl.compression.rounding import KERNEL_TOP, KERNEL_TOP_4, kernel_scales
from edgedl.types import Scheme

Array = NDArray[Any]
BITS = {Scheme.STATIC_WI8_AI8: 8, Scheme.STATIC_WI8_AI16: 16}
KERNEL_BITS = 8
MOMENTUM = 0.99  # of a moving range, a training step
Adapt = Literal["learned", "moving"] | None
PACKAGE = "edgedl"


class _Switch:
    """Whether these layers quantize in this process: the ranges are found, and targets made, on the plain floats."""

    def __init__(self) -> None:
        self.off = False
        self.watch: Callable[[Any, Any], None] | None = None  # takes (layer, value) of every range and kernel layer

    def __enter__(self) -> None:
        self.off = True

    def __exit__(self, *_: object) -> None:
        self.off = False


as_float = _Switch()


class _Carrier:
    """What every one of these layers has: the scheme that its model carries."""

    edgedl_scheme: str

    @property
    def bits(self) -> int:
        """Of the activations."""
        return BITS[Scheme(self.edgedl_scheme)]


@keras.saving.register_keras_serializable(package=PACKAGE)
class FakeQuantize(_Carrier, keras.layers.Layer):  # type: ignore[misc]
    """Rounds activations to a range of 2**bits codes; shared where tensors have one range.

    While it trains, `adapt` "learned" trains the range and "moving" follows the bounds of the batches with an average
    that fades, those of all its `calls` in a step taken together; None leaves it. `fixed` names an activation whose
    kernel gives one range always. An exporter may set `edgedl_twin` while it traces a 16-bit range.
    """

    def __init__(
        self,
        scheme: str = Scheme.STATIC_WI8_AI8,
        fixed: str | None = None,
        adapt: Adapt = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.edgedl_scheme, self.fixed = str(scheme), fixed
        self.adapt = None if fixed else adapt
        self.edgedl_twin = False
        self.calls = 1
        self._bounds: dict[Any, list[Any]] = {}
        self.supports_masking = True

    @property
    def symmetric(self) -> bool:
        """16-bit activations have no zero point in TFLite."""
        return self.bits > KERNEL_BITS

    def build(self, input_shape: Any) -> None:  # noqa: ARG002
        """The range, as two scalars."""
        low, high = (FIXED_16 if self.symmetric else FIXED[self.fixed]) if self.fixed else (-1.0, 1.0)
        for name, value in (("low", low), ("high", high)):
            initializer = keras.initializers.Constant(value)
            trainable = self.adapt == "learned"
            weight = self.add_weight(name=name, shape=(), initializer=initializer, trainable=trainable)
            setattr(self, name, weight)

    def settle(self) -> None:
        """End the adapting, with zero on the grid."""
        self.adapt = None
        self.low.trainable = self.high.trainable = False
        self.set_range(float(self.low), float(self.high))

    def set_range(self, low: float, high: float) -> None:
        """Take this range, nudged so that zero is on its grid."""
        low, high, _ = nudged(low, high, self.bits, symmetric=self.symmetric)
        self.low.assign(low)
        self.high.assign(high)

    @property
    def scale(self) -> float:
        """The step of the grid."""
        return nudged(float(self.low), float(self.high), self.bits, symmetric=self.symmetric)[2]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The values on the grid, same shape and type."""
        if as_float.watch:
            as_float.watch(self, inputs)
        if as_float.off:
            return inputs
        if self.edgedl_twin:
            return self._twin(inputs)
        values = tf.cast(inputs, tf.float32)
        if training and self.adapt == "moving":
            self._follow(tf.reduce_min(values), tf.reduce_max(values))
        low, high = (tf.cast(w.value, tf.float32) for w in (self.low, self.high))
        if self.symmetric:
            high = tf.maximum(high, -low)
            low = -high
        else:
            low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
        made = tf.quantization.fake_quant_with_min_max_vars(
            values, low, high, num_bits=self.bits, narrow_range=self.symmetric
        )
        return tf.cast(made, inputs.dtype)

    def _follow(self, low: Any, high: Any) -> None:
        """Move towards the bounds of a batch once all calls of the step have told theirs, on each device by itself."""
        key = (threading.get_ident(), getattr(low, "graph", None))
        bounds = self._bounds.setdefault(key, [])
        bounds.append((low, high))
        if len(bounds) == self.calls:
            lows, highs = zip(*self._bounds.pop(key), strict=True)
            for weight, bound in ((self.low, tf.reduce_min(lows)), (self.high, tf.reduce_max(highs))):
                weight.assign(weight.value + (1 - MOMENTUM) * (bound - weight.value))

    def _twin(self, inputs: Any) -> Any:
        """The same step between codes on a grid of 8 bits: what a converter that knows no other reads the step from."""
        if self.fixed:
            low, high = FIXED[self.fixed]
        else:
            step = tf.maximum(self.high.value, -self.low.value) / (2 ** (self.bits - 1) - 1)
            low, high = -128 * step, 127 * step
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What `__init__` takes."""
        own = {"scheme": self.edgedl_scheme, "fixed": self.fixed, "adapt": self.adapt}
        return {**super().get_config(), **own}


class KernelLayer(_Carrier):
    """A layer with a kernel of integer codes, one scale a channel: the largest magnitude of the channel over `top`.

    `summed` are the axes of the kernel that an output sums over, so the others have a scale each.
    """

    summed: tuple[int, ...]

    def __init__(self, *args: Any, scheme: str = Scheme.STATIC_WI8_AI8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.edgedl_scheme = str(scheme)

    @property
    def top(self) -> int:
        """The largest code: 127 of int8, 7 of int4."""
        return KERNEL_TOP_4 if self.edgedl_scheme == Scheme.WEIGHT_ONLY_WI4_AFP32 else KERNEL_TOP

    @property
    def variable(self) -> Any:
        """The kernel as it is trained."""
        return self._kernel if hasattr(self, "_kernel") else self.kernel  # type: ignore[attr-defined]

    @property
    def scales(self) -> Array:
        """The step of each channel's codes, float32, in the shape of the kernel with the summed axes 1."""
        return kernel_scales(self.variable.numpy(), self.summed, self.top)

    def on_grid(self, *, training: bool) -> Any:
        """The kernel of its codes, float32; in training gradients pass straight through the rounding."""
        kernel = tf.cast(self.variable.value, tf.float32)
        if as_float.off:
            return kernel
        limits = tf.reduce_max(tf.abs(kernel), axis=self.summed, keepdims=True)
        scales = tf.where(limits > 0, limits, float(self.top)) / float(self.top)
        rounded = tf.round(kernel / scales) * scales
        return kernel + tf.stop_gradient(rounded - kernel) if training else rounded

    def apply_linear(self, inputs: Any, kernel: Any) -> Any:
        """The layer's sums, without bias."""
        raise NotImplementedError

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """As the layer itself, with the kernel on its grid."""
        if as_float.watch:
            as_float.watch(self, inputs)
        outputs = self.apply_linear(inputs, tf.cast(self.on_grid(training=bool(training)), inputs.dtype))
        if self.bias is not None:  # type: ignore[attr-defined]
            outputs = outputs + tf.cast(self.bias.value, outputs.dtype)  # type: ignore[attr-defined]
        return self.activation(outputs) if self.activation is not None else outputs  # type: ignore[attr-defined]

    def get_config(self) -> dict[str, Any]:
        """What `__init__` takes."""
        return {**super().get_config(), "scheme": self.edgedl_scheme}  # type: ignore[misc]


@keras.saving.register_keras_serializable(package=PACKAGE)
class Dense(KernelLayer, keras.layers.Dense):  # type: ignore[misc]
    """Dense with a kernel of codes."""

    summed = (0,)  # (in, out)

    def apply_linear(self, inputs: Any, kernel: Any) -> Any:
        """A product of matrices."""
        return keras.ops.matmul(inputs, kernel)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Conv1D(KernelLayer, keras.layers.Conv1D):  # type: ignore[misc]
    """Conv1D with a kernel of codes."""

    summed = (0, 1)  # (size, in, out)

    def apply_linear(self, inputs: Any, kernel: Any) -> Any:
        """A convolution; a causal one is padded first."""
        if self.padding != "causal":
            return self.convolution_op(inputs, kernel)
        return keras.ops.conv(
            keras.ops.pad(inputs, self._compute_causal_padding()),
            kernel,
            list(self.strides),
            "valid",
            self.data_format,
            dilation_rate=self.dilation_rate,
        )


@keras.saving.register_keras_serializable(package=PACKAGE)
class Conv2D(KernelLayer, keras.layers.Conv2D):  # type: ignore[misc]
    """Conv2D with a kernel of codes."""

    summed = (0, 1, 2)  # (height, width, in, out)

    def apply_linear(self, inputs: Any, kernel: Any) -> Any:
        """A convolution."""
        return self.convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable(package=PACKAGE)
class DepthwiseConv2D(KernelLayer, keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """DepthwiseConv2D with a kernel of codes."""

    summed = (0, 1)  # (height, width, in, multiplier)

    def apply_linear(self, inputs: Any, kernel: Any) -> Any:
        """A convolution of each channel."""
        return keras.ops.depthwise_conv(
            inputs, kernel, self.strides, self.padding, self.data_format, dilation_rate=self.dilation_rate
        )


@keras.saving.register_keras_serializable(package=PACKAGE)
class Conv2DTranspose(KernelLayer, keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """Conv2DTranspose with a kernel of codes."""

    summed = (0, 1, 3)  # (height, width, out, in)

    def apply_linear(self, inputs: Any, kernel: Any) -> Any:
        """A transposed convolution."""
        return keras.ops.conv_transpose(
            inputs,
            kernel,
            list(self.strides),
            self.padding,
            output_padding=self.output_padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )


# by the names of the Keras layers that they stand for, so that whoever goes by the class still knows what they are
KERNEL_LAYERS: Mapping[str, Any] = {
    "Dense": Dense,
    "Conv1D": Conv1D,
    "Conv2D": Conv2D,
    "DepthwiseConv2D": DepthwiseConv2D,
    "Conv2DTranspose": Conv2DTranspose,
}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Barrier(_Carrier, keras.layers.Layer):  # type: ignore[misc]
    """Gives out what comes in, by an operator that has no integer kernel: what lies before it stays float in TFLite."""

    def __init__(self, scheme: str = Scheme.STATIC_WI8_AI8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.edgedl_scheme = str(scheme)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """The inputs, through float64 and back: exact, and no converter takes the way out."""
        return tf.cast(tf.cast(inputs, tf.float64), inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """What `__init__` takes."""
        return {**super().get_config(), "scheme": self.edgedl_scheme}

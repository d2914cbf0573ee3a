"""Built-in architectures: convolutions, batch normalization, ReLU and ReLU6, which every target and scheme takes.

Each takes raw values: it begins with a `Rescaling` layer set from the training data's mean and deviation, so that
pixels 0..255 train as well as 0..1, and ends, for numbers instead of classes, with one that undoes the targets' scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgedl.errors import InputError

if TYPE_CHECKING:
    import keras

Shape = tuple[int, ...]
CONSTANT = 1e-7  # a deviation of so little of the mean is rounding


@dataclass(frozen=True, kw_only=True)
class Affine:
    """x * scale + offset, one value or one per slice of the last axis."""

    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0

    @classmethod
    def standardizing(cls, mean: Sequence[float], deviation: Sequence[float]) -> Affine:
        """To mean 0 and deviation 1; what is constant, as far as float32 can tell, is only centered."""
        scales = [1 / d if d > CONSTANT * abs(m) else 1.0 for m, d in zip(mean, deviation, strict=True)]
        return cls(scale=tuple(scales), offset=tuple(-m * s for m, s in zip(mean, scales, strict=True)))

    @property
    def inverse(self) -> Affine:
        """The affine that undoes this one."""
        scale = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        offset = self.offset if isinstance(self.offset, tuple) else (self.offset,)
        pairs = zip(scale, offset, strict=True)
        return Affine(scale=tuple(1 / s for s in scale), offset=tuple(-o / s for s, o in pairs))

    def layer(self, name: str) -> Any:
        """The `Rescaling` layer, with plain numbers where there is one value."""
        import keras

        values = [list(v) if isinstance(v, tuple) else [v] for v in (self.scale, self.offset)]
        scale, offset = (v[0] if len(v) == 1 else v for v in values)
        return keras.layers.Rescaling(scale, offset, name=name)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output: `units` values with `activation`; `affine` brings numbers to the targets' scale."""

    units: int
    activation: str = "softmax"
    affine: Affine | None = None

    def __call__(self, x: Any) -> Any:
        """The output tensor on features of shape (batch, n)."""
        import keras

        x = keras.layers.Dense(self.units, activation=self.activation, name="output" if not self.affine else "dense")(x)
        return self.affine.layer("output")(x) if self.affine else x


Build = Callable[[Any, Shape, Head], Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A name that the user may type, what it is, and the input shapes it takes, without the batch."""

    name: str
    summary: str
    shape: tuple[str, ...]
    build: Build
    least: Shape = ()  # the smallest sizes of the leading axes

    def fits(self, shape: Shape) -> bool:
        """Whether inputs of this shape go in."""
        return len(shape) == len(self.shape) and all(a >= b for a, b in zip(shape, self.least, strict=False))

    @property
    def takes(self) -> str:
        """The input in words, such as "(height >= 8, width >= 8, channels)"."""
        sizes = [*self.least, *[1] * (len(self.shape) - len(self.least))]
        return "(" + ", ".join(a if m == 1 else f"{a} >= {m}" for a, m in zip(self.shape, sizes, strict=True)) + ")"


IMAGE, WINDOW, VECTOR = ("height", "width", "channels"), ("steps", "channels"), ("features",)


def find(name: str) -> Architecture:
    """The architecture of that name. Raises InputError with those there are."""
    known = {a.name: a for a in ARCHITECTURES}
    if name not in known:
        message = f"no such architecture: {name!r}; built in: {', '.join(known)}, or module:function"
        raise InputError(message)
    return known[name]


def build(name: str, input_shape: Shape, head: Head, affine: Affine | None = None) -> keras.Model:
    """The architecture for inputs of this shape (no batch). Raises InputError for an unknown name or a wrong shape."""
    import keras

    found = find(name)
    if not found.fits(input_shape):
        fitting = ", ".join(a.name for a in ARCHITECTURES if a.fits(input_shape)) or "none; use module:function"
        message = f"{name} takes inputs {found.takes}, got {input_shape}; these architectures fit: {fitting}"
        raise InputError(message)
    inputs = keras.Input(input_shape, name="input")
    x = affine.layer("normalize")(inputs) if affine else inputs
    return keras.Model(inputs, found.build(x, input_shape, head), name=name.replace("-", "_"))


def _conv(x: Any, filters: int, kernel: int | Shape, *, stride: int = 1, name: str, act: bool = True) -> Any:
    import keras

    kind = keras.layers.Conv1D if len(x.shape) == len(WINDOW) + 1 else keras.layers.Conv2D
    x = kind(filters, kernel, strides=stride, padding="same", use_bias=False, name=name)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if act else x


def _separable(x: Any, filters: int, kernel: int | Shape, *, stride: int = 1, name: str, most: float) -> Any:
    """Depthwise, then pointwise convolution, each with batch normalization and a ReLU that ends at `most`."""
    import keras

    layers = keras.layers
    depthwise = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_dw")
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_dw_bn")(depthwise(x))
    x = layers.ReLU(most, name=f"{name}_dw_relu")(x)
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pw")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_pw_bn")(x)
    return layers.ReLU(most, name=f"{name}_pw_relu")(x)


def _cnn_small(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    import keras

    x = _conv(x, 16, 3, name="conv1")
    x = keras.layers.MaxPooling2D(2, padding="same", name="pool1")(x)
    x = _conv(x, 32, 3, name="conv2")
    x = keras.layers.MaxPooling2D(2, padding="same", name="pool2")(x)
    x = _conv(x, 64, 3, name="conv3")
    x = keras.layers.GlobalAveragePooling2D(name="pool3")(x)
    return head(keras.layers.Dropout(0.2, name="dropout")(x))


def _resnet8(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    import keras

    x = _conv(x, 16, 3, name="conv1")
    for stack, filters in enumerate((16, 32, 64), start=1):
        stride, name = 1 if stack == 1 else 2, f"stack{stack}"
        y = _conv(x, filters, 3, stride=stride, name=f"{name}_conv1")
        y = _conv(y, filters, 3, name=f"{name}_conv2", act=False)
        if stack > 1:
            x = keras.layers.Conv2D(filters, 1, strides=stride, padding="same", name=f"{name}_shortcut")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))
    return head(keras.layers.GlobalAveragePooling2D(name="pool")(x))


def _mobilenet_tiny(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    import keras

    x = _conv(x, 16, 3, stride=2, name="conv1")
    for block, (filters, stride) in enumerate(((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)), start=1):
        x = _separable(x, filters, 3, stride=stride, name=f"block{block}", most=6.0)
    return head(keras.layers.GlobalAveragePooling2D(name="pool")(x))


def _mobilenet_v2(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    """Sandler et al., arXiv:1801.04381, table 2, as Keras has it."""
    import keras

    body = keras.applications.MobileNetV2(input_tensor=x, include_top=False, weights=None, pooling="avg")
    return head(body.output)


def _ds_cnn(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    import keras

    x = _conv(x, 64, (10, 4), stride=2, name="conv1")
    for block in range(1, 5):
        x = _separable(x, 64, 3, name=f"block{block}", most=6.0)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return head(keras.layers.Dropout(0.2, name="dropout")(x))


def _cnn1d(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    import keras

    x = _conv(x, 32, 5, name="conv1")
    x = keras.layers.MaxPooling1D(2, padding="same", name="pool1")(x)
    x = _conv(x, 64, 5, name="conv2")
    x = keras.layers.MaxPooling1D(2, padding="same", name="pool2")(x)
    x = _conv(x, 64, 3, name="conv3")
    x = keras.layers.GlobalAveragePooling1D(name="pool3")(x)
    return head(keras.layers.Dropout(0.3, name="dropout")(x))


def _gru(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    import keras

    return head(keras.layers.GRU(32, name="gru")(x))


def _mlp(x: Any, shape: Shape, head: Head) -> Any:
    import keras

    if len(shape) > 1:
        x = keras.layers.Flatten(name="flatten")(x)
    for layer in (1, 2):
        x = keras.layers.Dense(64, activation="relu", name=f"dense{layer}")(x)
    return head(x)


def _autoencoder(x: Any, shape: Shape, head: Head) -> Any:  # noqa: ARG001
    import keras

    for layer, units in enumerate((128, 128, 8, 128, 128), start=1):
        x = keras.layers.Dense(units, use_bias=False, name=f"dense{layer}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"dense{layer}_bn")(x)
        x = keras.layers.ReLU(name=f"dense{layer}_relu")(x)
    return head(x)


AUTOENCODER = "autoencoder"
ARCHITECTURES = (
    Architecture(name="cnn-small", summary="three convolutions for small images", shape=IMAGE, build=_cnn_small),
    Architecture(name="resnet8", summary="MLPerf Tiny's residual network for images", shape=IMAGE, build=_resnet8),
    Architecture(
        name="mobilenet-tiny",
        summary="depthwise separable convolutions for images",
        shape=IMAGE,
        build=_mobilenet_tiny,
        least=(16, 16),
    ),
    Architecture(
        name="mobilenet-v2",
        summary="MobileNetV2 for images, of the size that phones run: 2.2 million parameters",
        shape=IMAGE,
        build=_mobilenet_v2,
        least=(16, 16),
    ),
    Architecture(
        name="ds-cnn",
        summary="MLPerf Tiny's keyword network for audio features such as MFCC",
        shape=("frames", "features", "channels"),
        build=_ds_cnn,
        least=(10, 4),
    ),
    Architecture(name="cnn1d", summary="three convolutions for sensor windows", shape=WINDOW, build=_cnn1d),
    Architecture(name="gru", summary="one recurrent layer of 32 for sensor windows", shape=WINDOW, build=_gru),
    Architecture(name="mlp", summary="two dense layers for feature vectors", shape=VECTOR, build=_mlp),
    Architecture(
        name=AUTOENCODER,
        summary="MLPerf Tiny's anomaly detector: gives back its input",
        shape=VECTOR,
        build=_autoencoder,
    ),
)

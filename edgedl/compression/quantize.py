"""Quantization: kernels and activations on the grids of their integer codes, calibrated, then trained if asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from edgedl.compression.base import Context, Data, require_data
from edgedl.compression.ranges import Estimator
from edgedl.errors import InputError
from edgedl.recipes import Step
from edgedl.toml import Within
from edgedl.types import Scheme

if TYPE_CHECKING:
    import keras

SCHEMES = (Scheme.STATIC_WI8_AI8, Scheme.STATIC_WI8_AI16, Scheme.WEIGHT_ONLY_WI4_AFP32)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of a `quantize` step.

    `samples` of the data are drawn to estimate ranges, to round and to correct; `keep_float` are patterns of layers
    that stay float. weight_only_wi4_afp32 has no ranges: kernels alone go on their grids.
    """

    scheme: str = Scheme.STATIC_WI8_AI8.value
    ranges: Estimator = "mse"
    rounding: Literal["nearest", "adaround"] = "nearest"
    equalize: bool = False
    bias_correction: bool = False
    keep_float: tuple[str, ...] = ()
    samples: Annotated[int, Within("[1, inf)")] = 512

    def __post_init__(self) -> None:
        """Raises ValueError for a scheme that this step does not make."""
        try:
            wanted = Scheme.parse(self.scheme)
        except InputError as e:
            raise ValueError(str(e)) from e
        if wanted not in SCHEMES:
            message = f"scheme must be one of {', '.join(SCHEMES)}; {self.scheme} is made by edgedl export --scheme"
            raise ValueError(message)

    def check(self, step: Step) -> None:
        """Raises ValueError for what a step may say, but not beside these."""
        if step.match or step.skip:
            message = "match and skip do not go with quantize; name the layers that stay float in keep_float"
            raise ValueError(message)
        if self.rounding == "adaround" and step.training:
            message = "rounding adaround chooses each weight's code for good, which training would undo; leave one out"
            raise ValueError(message)
        if self.equalize and step.training and step.training.distill and step.training.distill.features:
            message = "equalize scales what layers give, and distill features would pull it back; leave one out"
            raise ValueError(message)


class Quantize:
    """Puts a model on its integer grids; the model then carries its scheme and ranges."""

    kind = "quantize"
    options = Options

    def apply(self, model: keras.Model, data: Data, options: Options, context: Context) -> keras.Model:
        """The fake-quant model. Raises InputError without data, UnsupportedError naming a layer that cannot be."""
        from edgedl.compression import quantization

        samples = require_data(data, context.step.where, "quantize")
        return quantization.quantize(model, samples, options, context)

"""Is the written file right? It is run by litert on a few samples and compared with the Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl import models
from edgedl.errors import EdgedlError
from edgedl.models.tensors import call_flat
from edgedl.types import Scheme
from edgedl_tflite import calibration, flatbuffer
from edgedl_tflite.calibration import Samples
from edgedl_tflite.embedding import Affine

if TYPE_CHECKING:
    import keras

# RMS of the difference over RMS of the Keras output. Above it the file is broken, not merely inaccurate: in a static
# scheme 1 is what answering all zeros would give. Plain int4 really is that inaccurate: 1.4 is two that have nothing in
# common, and how much is lost the note and a validation tell.
LIMITS = {Scheme.FP32: 1e-3, Scheme.FP16: 0.05, Scheme.WEIGHT_ONLY_WI4_AFP32: 2.0}
QUANTIZED_LIMIT = 1.0
NOISY = 0.3  # from here on the note says so
FLOOR = 1e-3  # outputs smaller than this are judged as if they were this large


def verify(file: bytes, model: keras.Model, samples: Samples, affines: Mapping[int, Affine], scheme: Scheme) -> str:
    """A note with the largest difference between file and model on `samples`. Raises EdgedlError where it is absurd."""
    answers = run(file, samples)
    worst, name, size, share = 0.0, "", 0.0, 0.0
    strange: list[str] = []
    for output, wanted in _reference(model, samples, affines).items():
        got = answers[output]
        if got.shape != wanted.shape:
            message = (
                f"the .tflite file gives {output!r} the shape {got.shape}, Keras {wanted.shape}; it was not written"
            )
            raise EdgedlError(message)
        finite = np.isfinite(wanted)
        strange += [] if finite.all() else [repr(output)]
        difference = np.abs(got[finite].astype(np.float64) - wanted[finite])
        if not np.isfinite(difference).all():
            message = f"the .tflite file answers NaN in output {output!r}, where Keras does not; it was not written"
            raise EdgedlError(message)
        if difference.size and difference.max() >= worst:
            worst, name, size = float(difference.max()), output, float(np.abs(wanted[finite]).max())
        if difference.size and np.issubdtype(wanted.dtype, np.floating):
            share = max(share, _judge(output, difference, wanted[finite], scheme))
    told = [f"{worst:.3g} (output {name!r}, values up to {size:.3g})"] if name else []
    told += [f"{share:.0%} of an output is noise: see where with edgedl diff"] if share > NOISY else []
    told += [f"Keras itself gives NaN or infinity in output {', '.join(strange)}"] if strange else []
    return f"largest difference to Keras on {len(samples)} samples: {'; '.join(told)}"


def _judge(output: str, difference: NDArray[Any], wanted: NDArray[Any], scheme: Scheme) -> float:
    """The RMS of the difference over that of what is wanted. Raises EdgedlError."""
    size = max(float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))), FLOOR)
    relative = float(np.sqrt(np.mean(np.square(difference)))) / size
    limit = LIMITS.get(scheme, QUANTIZED_LIMIT)
    if relative > limit:
        message = (
            f"the .tflite file is wrong: output {output!r} differs from Keras by {difference.max():.3g} at most, "
            f"{relative:.3g} of its size, where {scheme.value} allows {limit:g}; it was not written"
        )
        raise EdgedlError(message)
    return relative


def _reference(model: keras.Model, samples: Samples, affines: Mapping[int, Affine]) -> dict[str, NDArray[Any]]:
    names = [s.name for s in models.specs(model)[1]]
    batches = [calibration.ready(batch, samples.specs, affines) for batch in samples.batches()]
    answers = [[np.asarray(v) for v in call_flat(model, values)] for values in batches]
    return {name: np.concatenate([a[i] for a in answers]) for i, name in enumerate(names)}


def run(file: bytes, samples: Samples) -> dict[str, NDArray[Any]]:
    """litert's outputs by signature name as real values, one sample after the other without a reset between them."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    signature = interpreter._get_full_signature_list()[flatbuffer.SIGNATURE]
    details = {d["index"]: d for d in [*interpreter.get_input_details(), *interpreter.get_output_details()]}
    parts = []
    for batch in samples.batches():
        for spec, values in zip(samples.specs, batch, strict=True):
            detail = details[signature["inputs"][spec.name]]
            interpreter.set_tensor(detail["index"], _stored(values, detail))
        interpreter.invoke()
        parts.append({n: _real(interpreter.get_tensor(i), details[i]) for n, i in signature["outputs"].items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _stored(values: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Real values as the input's integers; raw integers of the input's own type go straight in."""
    dtype = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    if values.dtype == dtype or not scale:
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    stored: NDArray[Any] = np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max).astype(dtype)
    return stored


def _real(values: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    scale, zero_point = detail["quantization"]
    real: NDArray[Any] = (values.astype(np.float32) - zero_point) * scale if scale else values
    return real

"""Where training computes: one device, several that mirror each other, float32 or float16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from edgedl.errors import InputError, UnsupportedError
from edgedl.models.tensors import set_weights

if TYPE_CHECKING:
    import keras


def choose_devices(asked: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The devices to train on, such as ("GPU:0",), and what the user should hear about them."""
    import tensorflow as tf

    known = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices()]
    gpus = tuple(name for name in known if name.startswith("GPU:"))
    devices = tuple(asked) or gpus or ("CPU:0",)
    unknown = [name for name in devices if name not in known]
    if unknown or len(set(devices)) < len(devices):
        message = f"devices: got {', '.join(devices)}; this machine has {', '.join(known)}, each to be named once"
        raise InputError(message)
    notes = [] if gpus else ["no GPU found: trained on the CPU"]
    return devices, notes


def fast_float16(devices: Sequence[str]) -> bool:
    """Whether all of them are GPUs with fast float16: compute capability 7.0 up (NVIDIA's tensor cores)."""
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    details = {d.name.split(":", 1)[1]: tf.config.experimental.get_device_details(d) for d in found}
    return all(details.get(name, {}).get("compute_capability", (0, 0)) >= (7, 0) for name in devices)


@contextlib.contextmanager
def placed(model: keras.Model, devices: Sequence[str]) -> Iterator[keras.Model]:
    """The model on the devices: itself on one, a mirrored copy on several, whose weights come back at the end."""
    import keras
    import tensorflow as tf

    with tf.device(devices[0]) if len(devices) == 1 else _mirrored(tuple(devices)).scope():
        if len(devices) == 1:
            yield model
            return
        copy = keras.models.clone_model(model)
        set_weights(copy, model.get_weights())
        yield copy
    model.set_weights(copy.get_weights())


@cache
def _mirrored(devices: tuple[str, ...]) -> Any:
    """One strategy a process: a second one would number its collective ops from the start, and they would clash."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(devices))


@contextlib.contextmanager
def precision(model: keras.Model, *, mixed: bool) -> Iterator[None]:
    """Let every layer but those that make the outputs compute in float16, and put everything back at the end."""
    made_by = [t._keras_history.operation for t in model.outputs]
    layers = [layer for layer in model._flatten_layers() if mixed and layer not in made_by]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = "mixed_float16"
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


@contextlib.contextmanager
def foreign_errors(batch_size: int) -> Iterator[None]:
    """TensorFlow's complaints about memory and about ops as edgedl's."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as e:
        message = f"out of memory with batches of {batch_size}; use a smaller batch size"
        raise InputError(message) from e
    except tf.errors.UnimplementedError as e:
        message = f"an op of the model cannot be trained deterministically here: {e.message.splitlines()[0]}"
        raise UnsupportedError(message) from e

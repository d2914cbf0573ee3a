"""Keras 2 models as Keras 3: every layer made again from its config, its weights set, the outputs compared.

Keras 3 refuses many Keras 2 files, and reads a few wrongly (`hard_sigmoid` became another function). tf_keras reads
them all; what it read is replayed here.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl.models import files, keras_2_ops
from edgedl.models.cleaning import HALF_TOLERANCE, TRAINING_ONLY
from edgedl.models.files import KerasFile, first_line
from edgedl.models.tensors import call_flat, largest_difference, probe, set_weights

if TYPE_CHECKING:
    import keras

TOLERANCE = 3e-5  # relative to the largest output (at least 1): two builds of the same float32 arithmetic
WITHOUT_MEANING = {"batch_input_shape", "input_length", "implementation", "ragged", "sparse", "optional"}
WITHOUT_MEANING |= {"query_shape", "key_shape", "value_shape"}  # config keys that change no output
COMMON_KEYS = frozenset({"name", "trainable", "activity_regularizer"})
RENAMED_KEYS = {("LeakyReLU", "alpha"): "negative_slope", ("ThresholdedReLU", "theta"): "threshold"}
RENAMED_CLASSES = {"ThresholdedReLU": "ReLU"}


def hard_sigmoid_2(x: Any) -> Any:
    """Keras 2's hard sigmoid, clip(0.2 x + 0.5, 0, 1); Keras 3's has the slope 1/6."""
    import keras

    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


def own_objects() -> dict[str, Any]:
    """The functions that carried-over models refer to, registered with Keras so that they can be saved."""
    import keras

    keras.saving.register_keras_serializable("edgedl")(hard_sigmoid_2)
    return {"hard_sigmoid_2": hard_sigmoid_2, "edgedl>hard_sigmoid_2": hard_sigmoid_2}


def changed_meaning(file: KerasFile) -> bool:
    """Whether Keras 3 would read this Keras 2 file without complaint and compute something else."""
    return '"hard_sigmoid"' in json.dumps(file.configs)


def open_keras_2(file: KerasFile, objects: Mapping[str, Any], *, trust: bool) -> tuple[keras.Model, tuple[str, ...]]:
    """The model of a Keras 2 file or SavedModel as Keras 3, and a note with the largest difference of their outputs.

    Raises UnsupportedError: a layer, option or op that Keras 3 lacks, or outputs that differ.
    """
    try:
        import tf_keras
    except ImportError as e:
        message = f"{file.path}: a Keras 2 model, which takes tf_keras to read. Try: pip install 'edgedl[keras]'"
        raise InputError(message) from e
    for layer, node in files.objects_in(file):
        keras_2_ops.check(layer, node)
    with tempfile.TemporaryDirectory() as folder:
        path = files.with_suffix(file.path, file.kind, folder)
        old = tf_keras.models.load_model(str(path), custom_objects=dict(objects), compile=False, safe_mode=not trust)
    return carry_over(old, objects)


def carry_over(old: Any, objects: Mapping[str, Any] | None = None) -> tuple[keras.Model, tuple[str, ...]]:
    """A tf_keras graph model as Keras 3 without its training-only layers, outputs compared on seeded input."""
    import tf_keras

    replay = _Replay({**own_objects(), **(objects or {})})
    new = replay.model(old)
    replay.set_weights()
    difference, relative = _compare(old, new)
    half = tf_keras.mixed_precision.Policy("float32").compute_dtype != _compute_dtype(old)
    if not relative <= (HALF_TOLERANCE if half else TOLERANCE):
        message = f"carried over from Keras 2, the outputs differ by {difference:.2g} on seeded input"
        raise UnsupportedError(message)
    notes = [f"carried over from Keras 2 layer by layer; outputs differ by at most {difference:.2g} on seeded input"]
    if replay.dropped:
        notes.append(f"training-only layers removed: {', '.join(sorted(set(replay.dropped)))}")
    return new, tuple(notes)


def _compute_dtype(old: Any) -> str:
    dtypes = {str(layer.compute_dtype) for layer in old.submodules if hasattr(layer, "compute_dtype")}
    return next((d for d in dtypes if d in ("float16", "bfloat16")), "float32")


def _compare(old: Any, new: keras.Model) -> tuple[float, float]:
    import tensorflow as tf

    def run(arrays: list[Any]) -> list[Any]:
        flat = dict(zip([t.name for t in new.inputs], arrays, strict=True))
        given = tf.nest.map_structure(lambda t: tf.constant(flat[_tensor_name(t)]), old._nested_inputs)
        return list(tf.nest.flatten(old(given, training=False)))

    arrays, theirs = probe(new, run)
    return largest_difference(call_flat(new, arrays), theirs)


def _tensor_name(tensor: Any) -> str:
    return _name(tensor._keras_history.layer)


def _name(old: Any) -> str:
    """A layer's name without the slashes that Keras 3 refuses."""
    return str(old.name).replace("/", "_")


class _Replay:
    """Makes Keras 3 layers from tf_keras ones, each once."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.objects = objects
        self.made: dict[int, Any] = {}
        self.weighted: list[tuple[Any, Any]] = []
        self.dropped: list[str] = []

    def set_weights(self) -> None:
        """Give every new layer the old one's weights. Raises UnsupportedError that names the layer."""
        for old, new in self.weighted:
            try:
                values = old.get_weights()
                states = len(new.weights) - len(values) if getattr(new, "stateful", False) else 0
                empty = (np.zeros(w.shape, w.dtype) for w in new.weights[len(values) :][:states])
                set_weights(new, [*values, *empty])
            except ValueError as e:
                message = f"layer {old.name!r} ({type(old).__name__}): its Keras 2 weights do not fit ({first_line(e)})"
                raise UnsupportedError(message) from e

    def model(self, old: Any) -> keras.Model:
        """A Sequential or Functional model again."""
        import keras
        import tf_keras

        if isinstance(old, tf_keras.Sequential) and old.built and old._is_graph_network:
            layers = [self.layer(layer) for layer in old.layers]
            if layers[-1] is None:
                layers[-1] = keras.layers.Identity(name=_name(old.layers[-1]))
            kept = [layer for layer in layers if layer is not None]
            return keras.Sequential([self._input(old.inputs[0]), *kept], name=_name(old), trainable=old.trainable)
        if getattr(old, "_is_graph_network", False):
            return self._functional(old)
        message = (
            f"model {old.name!r} ({type(old).__name__}) is unbuilt or subclassed Keras 2: the file lacks its graph"
        )
        raise UnsupportedError(message)

    def _input(self, tensor: Any) -> Any:
        import keras

        spec = getattr(tensor, "type_spec", None)
        if type(spec).__name__ in ("SparseTensorSpec", "RaggedTensorSpec"):
            message = f"input {_tensor_name(tensor)!r} is sparse or ragged, which Keras 3 cannot hold here"
            raise UnsupportedError(message)
        return keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype.name, name=_tensor_name(tensor))

    def _functional(self, old: Any) -> keras.Model:
        import keras
        import tensorflow as tf

        tensors = {id(t): self._input(t) for t in old.inputs}

        def replaced(value: Any) -> Any:
            return tf.nest.map_structure(lambda t: tensors.get(id(t), t), value)

        for depth in sorted(old._nodes_by_depth, reverse=True):
            for node in old._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                result = self._call(node.layer, replaced(node.call_args), replaced(node.call_kwargs))
                for before, after in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(result), strict=True):
                    tensors[id(before)] = after
        return keras.Model(replaced(old._nested_inputs), self._outputs(old, tensors), name=_name(old))

    def _outputs(self, old: Any, tensors: dict[int, Any]) -> Any:
        """The output structure, each tensor given by a layer of the old name."""
        import keras
        import tensorflow as tf

        def named(tensor: Any) -> Any:
            new, name = tensors[id(tensor)], _tensor_name(tensor)
            if new._keras_history.operation.name == name:
                return new
            return keras.layers.Identity(name=name)(new)

        return tf.nest.map_structure(named, old._nested_outputs)

    def _call(self, old: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = type(old).__name__
        if name in keras_2_ops.CLASSES:
            return keras_2_ops.run(old, args, kwargs)
        training = kwargs.get("training")
        kwargs = {k: v for k, v in kwargs.items() if v is not None and k != "training"}
        new = self.layer(old)
        if new is None:
            if training is True:
                message = f"layer {old.name!r} is called with training=True: it answers at random; call it without"
                raise UnsupportedError(message)
            return args[0]
        if hasattr(new, "reset_state") and isinstance(args[0], (list, tuple)):  # x, then the initial states
            return new(args[0][0], *args[1:], initial_state=list(args[0][1:]), **kwargs)
        return new(*args, **kwargs)

    def layer(self, old: Any) -> Any:
        """The Keras 3 layer; None for one that only training uses."""
        if id(old) not in self.made:
            self.made[id(old)] = self._new(old)
        return self.made[id(old)]

    def _new(self, old: Any) -> Any:
        import keras

        name = type(old).__name__
        if name in TRAINING_ONLY:
            self.dropped.append(f"{old.name} ({name})")
            return None
        if hasattr(old, "_is_graph_network"):
            return self.model(old)
        if name == "TimeDistributed":
            inner = self.layer(old.layer)
            return inner and keras.layers.TimeDistributed(inner, name=_name(old))
        if name == "Lambda":
            return keras.layers.Lambda(old.function, arguments=old.arguments, name=_name(old))
        try:
            new = self._object(name, old.get_config(), old.name)
        except EdgedlError:
            raise
        except Exception as e:  # whatever a config makes Keras raise
            message = f"layer {old.name!r} ({name}) has no Keras 3 form: {first_line(e)}"
            raise UnsupportedError(message) from e
        self.weighted.append((old, new))
        return new

    def _object(self, name: str, config: dict[str, Any], where: str) -> Any:
        import keras

        cls = self.objects.get(name) or getattr(keras.layers, RENAMED_CLASSES.get(name, name), None)
        if cls is None or not issubclass(cls, keras.layers.Layer):
            message = f"layer {where!r}: {name} is no Keras 3 layer; give one of that name with --custom-objects MODULE"
            raise UnsupportedError(message)
        if name in self.objects:
            return cls.from_config(config)
        with keras.saving.custom_object_scope(dict(self.objects)):
            return cls.from_config(self._config(name, cls, config, where))

    def _config(self, name: str, cls: type, config: dict[str, Any], where: str) -> dict[str, Any]:
        """A Keras 2 layer config in the words of Keras 3; initializers fall away, since weights are set."""
        allowed = {*inspect.signature(cls.__init__).parameters, *COMMON_KEYS}  # type: ignore[misc]
        clean: dict[str, Any] = {"dtype": _dtype(config.get("dtype"))}
        for old_key, value in config.items():
            key = RENAMED_KEYS.get((name, old_key), old_key)
            if key in WITHOUT_MEANING or key.endswith("_initializer") or key == "dtype":
                continue
            if key == "name":
                clean[key] = value.replace("/", "_")
            elif key in allowed:
                clean[key] = self._value(key, value, where)
            elif value not in (None, False, 0, 1) or value is True:  # not at its default
                message = f"layer {where!r} ({name}): Keras 3 has no {key}={value!r}"
                raise UnsupportedError(message)
        if name == "BatchNormalization" and isinstance(clean["axis"], list):
            clean["axis"] = clean["axis"][0]
        return clean

    def _value(self, key: str, value: Any, where: str) -> Any:
        if key.endswith("activation") and value == "hard_sigmoid":
            return hard_sigmoid_2
        if isinstance(value, Mapping) and "class_name" in value:
            kind = next((k for k in ("regularizer", "constraint") if key.endswith(k)), None)
            config = dict(value["config"]) if isinstance(value["config"], Mapping) else value["config"]
            if kind:
                return {**value, "config": config, "module": f"keras.{kind}s", "registered_name": None}
            return _serialized(self._object(value["class_name"], config, where))
        if isinstance(value, (list, tuple)) or type(value).__name__ in ("ListWrapper", "TensorShape"):
            return [self._value(key, v, where) for v in value]
        return value


def _serialized(layer: Any) -> Any:
    import keras

    return keras.saving.serialize_keras_object(layer)


def _dtype(value: Any) -> Any:
    """A dtype policy by name."""
    return value["config"]["name"] if isinstance(value, Mapping) else value

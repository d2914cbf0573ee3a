"""A Keras model as inference needs it: float32, without what only training uses, proven to answer the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgedl.errors import UnsupportedError
from edgedl.models.files import first_line
from edgedl.models.tensors import (
    call_flat,
    graph_operations,
    is_graph,
    largest_difference,
    operations,
    probe,
    quiet,
    set_weights,
)

if TYPE_CHECKING:
    import keras

TRAINING_ONLY = frozenset(
    {
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "AlphaDropout",
        "GaussianDropout",
        "GaussianNoise",
        "ActivityRegularization",
        "AugMix",
        "CutMix",
        "MixUp",
        "RandAugment",
        "RandomBrightness",
        "RandomColorDegeneration",
        "RandomColorJitter",
        "RandomContrast",
        "RandomElasticTransform",
        "RandomErasing",
        "RandomFlip",
        "RandomGaussianBlur",
        "RandomGrayscale",
        "RandomHeight",
        "RandomHue",
        "RandomInvert",
        "RandomPerspective",
        "RandomPosterization",
        "RandomRotation",
        "RandomSaturation",
        "RandomSharpness",
        "RandomShear",
        "RandomTranslation",
        "RandomWidth",
        "RandomZoom",
    }
)  # RandomCrop is not among them: at inference it cuts the centre out
TOLERANCE = 1e-5  # of the same float32 arithmetic, relative to the largest output (at least 1)
HALF_TOLERANCE = 3e-2  # of float16 and bfloat16 arithmetic against float32
OTHER_FLOATS = ("float16", "bfloat16", "float64")


def clean(
    model: keras.Model, *, input_name: str | None = None, take: bool = True
) -> tuple[keras.Model, tuple[str, ...]]:
    """The model in float32 without training-only layers, and notes on what was done; itself where nothing was to do.

    With `take` its layers may be taken, which is faster and leaves the given model unusable.
    Names and shapes of inputs and outputs stay (`input_name` renames a Sequential's only one), nested models are
    cleaned too, and seeded inputs prove the outputs equal. Raises UnsupportedError: a layer that stays random at
    inference, Keras's own quantization, or outputs that changed.
    """
    found = [op for op in operations(model) if hasattr(op, "compute_dtype")]
    for layer in found:
        if getattr(layer, "quantization_mode", None):
            message = f"layer {layer.name!r} was quantized by Keras's quantize(); give the float model"
            raise UnsupportedError(message)
    floats = {str(d) for op in found for d in (op.compute_dtype, op.variable_dtype)}
    lowered = sorted(floats.intersection(OTHER_FLOATS))
    if not (lowered or input_name or _training_only(model)):
        return model, ()
    with quiet():
        arrays, before = probe(model)
        copier = Copier(to_float32=bool(lowered), drop=True, take=take and not lowered)
        try:
            copy = copier.copy(model, input_name=input_name)
            difference, relative = largest_difference(call_flat(copy, arrays), before)
        except (TypeError, ValueError, NotImplementedError) as e:  # the user's own layers may raise anything here
            message = f"model {model.name!r} cannot be made again from its layers: {first_line(e)}"
            raise UnsupportedError(message) from e
    if relative > (HALF_TOLERANCE if lowered else TOLERANCE):
        message = f"model {model.name!r}: its float32 inference form differs by {difference:.2g} on seeded input"
        raise UnsupportedError(message)
    notes = []
    if lowered:
        notes.append(f"{' and '.join(lowered)} arithmetic became float32: outputs differ by at most {difference:.2g}")
    if copier.dropped:
        names = ", ".join(sorted(set(copier.dropped)))
        notes.append(f"training-only layers removed: {names}; outputs differ by at most {difference:.2g}")
    return copy, tuple(notes)


def _training_only(layer: Any) -> list[str]:
    """The training-only layers that a graph calls, nested ones too; those inside other layers belong to these."""
    if is_graph(layer):
        return [name for op in graph_operations(layer) for name in _training_only(op)]
    if type(layer).__name__ == "TimeDistributed":
        return _training_only(layer.layer)
    return [f"{layer.name} ({type(layer).__name__})"] if type(layer).__name__ in TRAINING_ONLY else []


def _is_droppable(layer: Any) -> bool:
    """Whether it does nothing at inference: a training-only layer, one in a TimeDistributed, or a chain of such."""
    if type(layer).__name__ == "TimeDistributed":
        return _is_droppable(layer.layer)
    if is_graph(layer):
        return len(layer.inputs) == len(layer.outputs) == 1 and all(map(_is_droppable, graph_operations(layer)))
    return type(layer).__name__ in TRAINING_ONLY


def copy_of(model: keras.Model) -> keras.Model:
    """A copy with weights of its own, nested models kept. Raises UnsupportedError naming a layer that has none."""
    with quiet():
        copy = Copier().copy(model)
    mine = {id(v) for v in model.weights}
    for op in operations(copy):
        if op is not copy and not is_graph(op) and any(id(v) in mine for v in getattr(op, "weights", ())):
            message = f"layer {op.name!r} ({type(op).__name__}) cannot be copied; give the class a get_config()"
            raise UnsupportedError(message)
    return copy


class Copier:
    """Makes a model again from copies of its layers, weights included, or (`take`, twice as fast) from the layers
    themselves, which leaves the old model unusable.
    """

    def __init__(
        self, *, to_float32: bool = False, drop: bool = False, take: bool = False, batch: int | None = None
    ) -> None:
        self.to_float32, self.drop, self.take, self.batch = to_float32, drop, take, batch
        self.made: dict[int, Any] = {}
        self.skipped: dict[int, Any] = {}  # the Identity that stands for a dropped layer, by its id
        self.outputs: set[int] = set()
        self.dropped: list[str] = []

    def copy(self, model: keras.Model, *, inputs: Any = None, input_name: str | None = None) -> keras.Model:
        """The copy, on `inputs` (a structure of Keras tensors like the model's own) where given."""
        self.outputs = {id(t._keras_history.operation) for t in model.outputs}
        copy = self._model(model, inputs, input_name)
        for old, new in self.made.values():
            whole = old is not new and not is_graph(old) and type(old).__name__ != "TimeDistributed"
            if whole and getattr(old, "weights", None):
                set_weights(new, old.get_weights())
        return copy

    def _input(self, tensor: Any, name: str | None = None) -> Any:
        import keras

        dtype = "float32" if self.to_float32 and tensor.dtype in OTHER_FLOATS else tensor.dtype
        shape = tensor.shape if self.batch is None else (self.batch, *tensor.shape[1:])
        return keras.Input(batch_shape=shape, dtype=dtype, name=name or tensor.name)

    def _model(self, model: keras.Model, inputs: Any = None, input_name: str | None = None) -> keras.Model:
        import keras

        if isinstance(model, keras.Sequential):
            first = inputs if inputs is not None else self._input(model.inputs[0], input_name)
            layers = [self._layer(layer) for layer in model.layers]
            kept = [layer for layer in layers if id(layer) not in self.skipped]
            return keras.Sequential([*keras.tree.flatten(first), *kept], name=model.name, trainable=model.trainable)
        if inputs is None:
            inputs = keras.tree.map_structure(self._input, model.input)
        return keras.models.clone_model(
            model, input_tensors=inputs, clone_function=self._layer, call_function=self._call
        )

    def _layer(self, old: Any) -> Any:
        if id(old) not in self.made:
            self.made[id(old)] = (old, self._new(old))
        return self.made[id(old)][1]

    def _new(self, old: Any) -> Any:
        import keras

        if self.drop and _is_droppable(old):
            self.dropped += _training_only(old)
            identity = keras.layers.Identity(name=old.name)
            if id(old) not in self.outputs:  # the name of an output stays
                self.skipped[id(identity)] = identity
            return identity
        if is_graph(old):
            return self._model(old)
        if self.take:
            old._inbound_nodes.clear()  # the calls of the old model, which Keras has no public way to forget
            old._outbound_nodes.clear()
            return old
        if type(old).__name__ == "TimeDistributed":
            return keras.layers.TimeDistributed(self._layer(old.layer), name=old.name)
        if type(old).__name__ == "Lambda":  # stateless, and its code does not go through a config
            return old
        try:
            config = config_of(old)
            return type(old).from_config(_float32(config) if self.to_float32 else config)
        except (NotImplementedError, TypeError, ValueError):  # the user's own layer, used as it is
            if self.to_float32:
                old.dtype_policy = "float32"
            return old

    def _call(self, new: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if not isinstance(new, keras.layers.Identity):
            return new(*args, **kwargs)
        if kwargs.get("training"):
            message = f"layer {new.name!r} is called with training=True: it answers at random; call it without"
            raise UnsupportedError(message)
        given = args[0] if args else kwargs["inputs"]  # no mask, which a model takes and an Identity does not
        return given if id(new) in self.skipped else new(given)


def config_of(layer: Any) -> dict[str, Any]:
    """The config that makes a layer again, with the vocabulary that a lookup was adapted to."""
    config = dict(layer.get_config())
    if "vocabulary" in config and config["vocabulary"] is None and hasattr(layer, "get_vocabulary"):
        config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False) or None
    return config


def _float32(value: Any, key: str = "") -> Any:
    """A config with every floating dtype and dtype policy set to float32."""
    if isinstance(value, dict):
        if str(value.get("class_name")).startswith("DTypePolicy"):
            return "float32"
        return {k: _float32(v, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_float32(v) for v in value)
    half = isinstance(value, str) and value.removeprefix("mixed_") in OTHER_FLOATS
    return "float32" if half and "dtype" in key else value

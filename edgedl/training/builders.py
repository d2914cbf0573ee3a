"""The model to train: a built-in architecture, or what the user's `module:function` returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import user_code
from edgedl.errors import InputError

if TYPE_CHECKING:
    import keras


def from_function(name: str, input_shape: Any, classes: Any) -> keras.Model:
    """What `module:function` returns for (input_shape, classes), of which it may take fewer.

    Each is a dict by array name where the data has several. The working directory is searched first.
    Raises InputError: no such module or function, other parameters, its own errors, or no Keras model.
    """
    import keras

    function = user_code.function(name)
    arguments = _arguments(name, function, {"input_shape": input_shape, "classes": classes})
    try:
        model = function(*arguments[0], **arguments[1])
    except Exception as e:
        message = f"{name}: {_where(e, function)}{type(e).__name__}: {e}"
        raise InputError(message) from e
    if not isinstance(model, keras.Model):
        message = f"{name} must return a keras.Model, got {type(model).__module__}.{type(model).__qualname__}"
        raise InputError(message)
    if isinstance(model, keras.Sequential) and not model.built and not isinstance(input_shape, Mapping):
        model.build((None, *input_shape))
    return model


def _arguments(name: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments: by name where the parameters have these names, else in order."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in callables do not tell
        return list(offered.values()), {}
    named = {p.name: offered[p.name] for p in parameters if p.name in offered and p.kind != p.POSITIONAL_ONLY}
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if all(p.name in named for p in required):
        return [], named
    unordered = [p.name for p in required if p.kind == p.KEYWORD_ONLY]
    if named or unordered or len(required) > len(offered):
        listed = ", ".join(p.name for p in required)
        message = f"{name} is called with (input_shape, classes) or fewer of them; it requires ({listed})"
        raise InputError(message)
    return list(offered.values())[: len(required)], {}


def _where(error: Exception, function: Callable[..., Any]) -> str:
    """The deepest line of the user's own file in the traceback, such as "nets.py line 12: "."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{Path(str(file)).name} line {line}: " if line else ""

"""The user's own code by name, `module` or `module:function`: the working directory is searched first."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgedl.errors import InputError


def module(name: str, where: str) -> ModuleType:
    """The module of that name; `where` opens the message. Raises InputError."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name not in (name, name.partition(".")[0]):
            message = f"{where}: importing {name} failed: {e}"
        else:
            hint = f"; leave .py out: {name.removesuffix('.py')}" if name.endswith(".py") else ""
            message = f"{where}: no module {name!r} in {here} or among the installed ones{hint}"
        raise InputError(message) from e
    except (Exception, SystemExit) as e:
        message = f"{where}: importing {name} failed: {type(e).__name__}: {e}"
        raise InputError(message) from e
    finally:
        sys.path.remove(here)


def files_of(name: str) -> list[Path]:
    """The file of `module` or `module:function` in the working directory, or none."""
    folder = Path.cwd().joinpath(*name.partition(":")[0].split("."))
    return [f for f in (folder.with_name(f"{folder.name}.py"), folder / "__init__.py") if f.is_file()]


def function(name: str, where: str | None = None) -> Callable[..., Any]:
    """What `module:function` names. Raises InputError with the functions that the module has."""
    where = where or name
    module_name, _, attribute = name.partition(":")
    found = module(module_name, where)
    chosen = getattr(found, attribute, None)
    if not callable(chosen):
        own = [n for n, value in vars(found).items() if inspect.isfunction(value) and value.__module__ == module_name]
        message = f"{where}: {module_name} has no function {attribute!r}; it has {', '.join(own) or 'none'}"
        raise InputError(message)
    return chosen  # type: ignore[no-any-return]

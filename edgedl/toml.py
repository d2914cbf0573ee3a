"""TOML into frozen dataclasses, strictly: an error names file, table and key, what was found and what is allowed.

The dataclass is the schema: its fields are the keys (a `field(metadata={"key": ...})` has another), a field without a
default is required, and the annotation says what a value may be: str, int, float, bool, Any, Literal, `T | None`,
`tuple[T, ...]`, `dict[K, T]`, another dataclass, each also as `Annotated[T, Within("[0, 1)")]`. A ValueError from
`__post_init__` is reported as one more problem.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgedl.errors import InputError

T = TypeVar("T")
_SCALARS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Within:
    """The interval of a number, written as in mathematics: `[0, 1)` holds 0 and not 1, `(0, inf)` is positive."""

    interval: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(bound) for bound in self.interval[1:-1].split(","))
        above = value >= low if self.interval.startswith("[") else value > low
        return above and (value <= high if self.interval.endswith("]") else value < high)


def parse(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises InputError: unreadable, or no TOML, with line and column."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        message = f"{path}: cannot be read: {e.strerror}"
        raise InputError(message) from e
    except ValueError as e:  # TOMLDecodeError and UnicodeDecodeError
        message = f"{path}: is no TOML: {e}"
        raise InputError(message) from e


def build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """`table` as an instance of the dataclass `kind`; `where` opens the message. Raises InputError, first problem."""
    found: list[str] = []
    made = _table(kind, table, where, found)
    if found:
        raise InputError(found[0])
    return made  # type: ignore[no-any-return]


def problems(kind: type, table: Mapping[str, Any], where: str) -> list[str]:
    """Everything in `table` that `build` would refuse, one message each."""
    found: list[str] = []
    _table(kind, table, where, found)
    return found


def did_you_mean(word: object, allowed: Iterable[object]) -> str:
    """` (did you mean 'x'?)` for the nearest of `allowed`, or nothing where none is near."""
    near = get_close_matches(str(word), [str(a) for a in allowed], n=1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _table(kind: Any, table: Any, where: str, found: list[str]) -> Any:
    """An instance of `kind`; None where the table has problems, which go to `found`."""
    before = len(found)
    hints = get_type_hints(kind, include_extras=True)
    fields = {f.metadata.get("key", f.name): f for f in dataclasses.fields(kind)}
    unknown = [key for key in table if key not in fields]
    allowed = ", ".join(fields) or "none"
    found.extend(f"{where}: unknown key {k!r}{did_you_mean(k, fields)}; allowed: {allowed}" for k in unknown)
    values = {}
    for key, field in fields.items():
        if key in table:
            values[field.name] = _value(hints[field.name], table[key], key, where, found)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            found.append(f"{where}: {key} is missing; it must be {_expected(hints[field.name])}")
    if len(found) > before:
        return None
    try:
        return kind(**values)
    except ValueError as e:
        found.append(f"{where}: {e}")
        return None


def _value(hint: Any, value: Any, key: str, where: str, found: list[str]) -> Any:
    """`value` as `hint` wants it; problems go to `found`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        before, made = len(found), _value(args[0], value, key, where, found)
        if len(found) == before and made is not None and made not in args[1]:
            found.append(f"{where}: {key} must be in {args[1].interval}, got {value!r}")
        return made
    if origin in (Union, UnionType):
        return _first(hint, value, key, where, found)
    if origin is Literal and isinstance(value, str | int) and value in args:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(args[0], v, f"{key} {i}", where, found) for i, v in enumerate(value, 1))
    if origin is dict and isinstance(value, dict):
        at = _inside(where, key)
        return {_value(args[0], k, "a key", at, found): _value(args[1], v, k, at, found) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _table(hint, value, _inside(where, key), found)
    if hint in _SCALARS and (type(value) is hint or (hint is float and type(value) is int)):
        return hint(value)
    near = did_you_mean(value, args) if origin is Literal else ""
    found.append(f"{where}: {key} must be {_expected(hint)}, got {value!r}{near}")
    return None


def _first(hint: Any, value: Any, key: str, where: str, found: list[str]) -> Any:
    """The first member of a union that takes the value; a union of one and None reports that one's problem."""
    members = [m for m in get_args(hint) if m is not NoneType]
    if len(members) == 1:
        return _value(members[0], value, key, where, found)
    for member in members:
        tried: list[str] = []
        made = _value(member, value, key, where, tried)
        if not tried:
            return made
    found.append(f"{where}: {key} must be {_expected(hint)}, got {value!r}")
    return None


def _inside(where: str, key: str) -> str:
    return f"{where[:-1]}.{key}]" if where.endswith("]") else f"{where}: [{key}]"


def _expected(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_expected(args[0])} in {args[1].interval}"
    if origin in (Union, UnionType):
        return " or ".join(_expected(a) for a in args if a is not NoneType)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is tuple:
        return f"an array, each {_expected(args[0])}"
    return _SCALARS.get(hint, "a table")

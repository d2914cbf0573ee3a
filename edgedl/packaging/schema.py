"""JSON against the schemas that edgedl ships, without a package that the base install lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "schemas"
TALK = {"$schema", "$id", "title", "description", "$defs"}
KEYWORDS = {"$ref", "type", "enum", "pattern", "minimum", "required", "properties", "additionalProperties", "items"}
KEYWORDS |= {"minItems"}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def load(name: str) -> dict[str, Any]:
    """The schema `name`.json of `edgedl/schemas`."""
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def problems(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """What of `value` does not follow a schema of these keywords, a line each: place, what is there, what may be."""
    return list(_problems(value, schema, "", schema))


def _problems(value: Any, schema: Mapping[str, Any], place: str, root: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    where = place or "the document"
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(_is(value, name) for name in names):
        yield f"{where} is {_shown(value)}, it must be {' or '.join(names)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {_shown(value)}, it must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{where} is {_shown(value)}, it must match {schema['pattern']}"
    if isinstance(value, (int, float)) and value < schema.get("minimum", value):
        yield f"{where} is {_shown(value)}, it must be at least {schema['minimum']}"
    if isinstance(value, list):
        yield from _list_problems(value, schema, place, root)
    if isinstance(value, dict):
        yield from _object_problems(value, schema, place, root)


def _list_problems(value: list[Any], schema: Mapping[str, Any], place: str, root: Mapping[str, Any]) -> Iterator[str]:
    if len(value) < schema.get("minItems", 0):
        yield f"{place or 'the document'} has {len(value)} entries, it must have at least {schema['minItems']}"
    for i, item in enumerate(value):
        yield from _problems(item, schema.get("items", {}), f"{place}[{i}]", root)


def _object_problems(
    value: dict[str, Any], schema: Mapping[str, Any], place: str, root: Mapping[str, Any]
) -> Iterator[str]:
    known = schema.get("properties", {})
    for key in schema.get("required", []):
        if key not in value:
            yield f"{place}.{key} is missing".lstrip(".")
    for key, item in value.items():
        rule = known.get(key, schema.get("additionalProperties", {}))
        yield from _problems(item, rule, f"{place}.{key}".lstrip("."), root)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

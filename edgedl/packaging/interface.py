"""What an app relies on in a package, and the rule on versions: one name and one major number, one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgedl.errors import InputError


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What an app that was written for one manifest would stumble over in another, a line each.

    Names, order, types and shapes of inputs and outputs, labels, and the preprocessing left to the app. Scales and zero
    points are not among them: they change with every training, and apps read them from the manifest.
    """
    found = []
    for side in ("inputs", "outputs"):
        old, new = ([_described(spec) for spec in m[side]] for m in (before, after))
        if old != new:
            found.append(f"{side}: {', '.join(new)} instead of {', '.join(old)}")
    if before["labels"] != after["labels"]:
        found.append(f"labels: {_labels(before['labels'], after['labels'])}")
    if before["preprocessing"] != after["preprocessing"]:
        steps = [_steps(m["preprocessing"]) for m in (after, before)]
        found.append(f"preprocessing left to the app: {' instead of '.join(steps)}")
    return found


def breaks_version(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the major numbers of two manifests say one interface, and it is not."""
    return major(before["version"]) == major(after["version"]) and bool(changes(before, after))


def check_version(known: Sequence[tuple[str, Mapping[str, Any]]], after: Mapping[str, Any]) -> None:
    """Raises InputError where one of the known packages, each with where it lies, has the same major number and not
    the same interface."""
    for where, before in known:
        if before["name"] == after["name"] and breaks_version(before, after):
            least = max(major(m["version"]) for _, m in known if m["name"] == after["name"]) + 1
            message = (
                f"--version: {after['version']} has the major number of {where}, which has other "
                f"{changes(before, after)[0]}; an app would break: --version {least}.0.0"
            )
            raise InputError(message)


def next_version(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The version that follows `before`: the next major one where the interface changed, else the next minor one."""
    numbers = before["version"].partition("-")[0].split(".")
    return f"{int(numbers[0]) + 1}.0.0" if changes(before, after) else f"{numbers[0]}.{int(numbers[1]) + 1}.0"


def major(version: str) -> int:
    """The first number of a version."""
    return int(version.partition(".")[0])


def _described(spec: Mapping[str, Any]) -> str:
    shape = ", ".join("any" if n is None else str(n) for n in spec["shape"])
    return f"{spec['name']!r} {spec['dtype']} ({shape})"


def _labels(old: Sequence[str], new: Sequence[str]) -> str:
    if len(old) != len(new):
        return f"{len(new)} instead of {len(old)}"
    at = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    return f"number {at + 1} is {new[at][:40]!r} instead of {old[at][:40]!r}"


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    shown = (f"{s.get('op')}({', '.join(f'{k}={v}' for k, v in s.items() if k != 'op')})" for s in steps)
    return " ".join(shown) or "none"

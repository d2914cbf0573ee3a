"""Where a training stands after its last whole epoch, in one file: a killed one goes on from there, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@runtime_checkable
class Keeper(Protocol):
    """What changes beside the weights while a model trains: the floats behind shared values, a random generator."""

    def state(self) -> Any:
        """Arrays, numbers, text and None in lists and dicts."""
        ...

    def restore(self, state: Any) -> None:
        """Be as it was when `state` was asked for."""
        ...


class Checkpoint:
    """One .npz file, written whole or not at all, of variables, keepers by name, and what the training loop knows."""

    def __init__(self, path: Path, keepers: Mapping[str, Any]) -> None:
        """`keepers` that keep nothing, having no `state`, are passed over."""
        self.path = path
        self.keepers = {name: keeper for name, keeper in keepers.items() if isinstance(keeper, Keeper)}

    def save(self, variables: Sequence[Any], told: Mapping[str, Any]) -> None:
        """Write the state; `told` is the loop's own, such as the epochs done."""
        arrays: list[Array] = []
        whole = {
            "told": dict(told),
            "variables": [np.asarray(v) for v in variables],
            "keepers": {name: k.state() for name, k in self.keepers.items()},
        }
        described = json.dumps(_packed(whole, arrays))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part.npz")
        np.savez(part, described=described, **{f"a{i}": a for i, a in enumerate(arrays)})
        part.replace(self.path)

    def restore(self, variables: Sequence[Any]) -> dict[str, Any] | None:
        """Set variables and keepers to what was saved; what the loop told, or None where there is nothing."""
        if not self.path.exists():
            return None
        with np.load(self.path) as stored:
            whole = _unpacked(json.loads(str(stored["described"])), stored)
        for variable, value in zip(variables, whole["variables"], strict=True):
            variable.assign(value)
        for name, keeper in self.keepers.items():
            keeper.restore(whole["keepers"][name])
        told: dict[str, Any] = whole["told"]
        return told

    def remove(self) -> None:
        """The training is done."""
        self.path.unlink(missing_ok=True)


def _packed(value: Any, arrays: list[Array]) -> Any:
    """A value as JSON; its arrays go to `arrays`, and their places stand for them."""
    if isinstance(value, (np.ndarray, np.generic)):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, Mapping):
        return {"dict": {name: _packed(v, arrays) for name, v in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_packed(v, arrays) for v in value]
    return value


def _unpacked(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[f"a{value['array']}"]
    return {name: _unpacked(v, arrays) for name, v in value["dict"].items()}

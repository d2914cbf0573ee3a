from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from edgedl import toml
from edgedl.errors import InputError
from edgedl.toml import Within


@dataclass(frozen=True, kw_only=True)
class Training:
    epochs: Annotated[int, Within("[1, inf)")]
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Step:
    kind: Literal["prune", "quantize"]
    sparsity: Annotated[float, Within("[0, 1)")] | None = None
    shape: tuple[int, ...] = ()
    match: str | tuple[str, ...] = "*"
    training: Training | None = None
    tags: dict[str, float] = field(default_factory=dict)
    enabled: bool = True
    extra: Any = None

    def __post_init__(self) -> None:
        if self.kind == "quantize" and self.sparsity is not None:
            message = "sparsity belongs to prune"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    step: tuple[Step, ...]


def refusal(table: dict[str, Any], kind: type = Step) -> str:
    with pytest.raises(InputError) as e:
        toml.build(kind, table, "recipe.toml: step 2 (prune)")
    return str(e.value)


def test_build_types_every_value() -> None:
    table = {
        "kind": "prune",
        "sparsity": 0,
        "shape": [1, 2],
        "match": ["a", "b"],
        "training": {"epochs": 2, "learning_rate": 1},
        "tags": {"x": 1},
        "enabled": False,
        "extra": [{"free": 1}],
    }
    step = toml.build(Step, table, "r.toml")
    assert step == Step(
        kind="prune",
        sparsity=0.0,
        shape=(1, 2),
        match=("a", "b"),
        training=Training(epochs=2, learning_rate=1.0),
        tags={"x": 1.0},
        enabled=False,
        extra=[{"free": 1}],
    )
    assert step.training is not None
    assert type(step.sparsity) is type(step.training.learning_rate) is type(step.tags["x"]) is float
    assert toml.build(Step, {"kind": "prune", "match": "conv*"}, "r.toml").match == "conv*"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "prune", "sparsity": 1.5}, "sparsity must be in [0, 1), got 1.5"),
        ({"kind": "prune", "sparsity": 1}, "sparsity must be in [0, 1), got 1"),
        ({"kind": "prune", "sparsity": float("nan")}, "sparsity must be in [0, 1), got nan"),
        ({"kind": "prune", "sparsity": "half"}, "sparsity must be a number, got 'half'"),
        ({"kind": "prune", "sparsity": True}, "sparsity must be a number, got True"),
        ({"kind": "prnue"}, "kind must be one of prune, quantize, got 'prnue' (did you mean 'prune'?)"),
        ({"kind": 3}, "kind must be one of prune, quantize, got 3"),
        ({}, "kind is missing; it must be one of prune, quantize"),
        (
            {"kind": "prune", "sparsty": 0.5},
            "unknown key 'sparsty' (did you mean 'sparsity'?); allowed: "
            "kind, sparsity, shape, match, training, tags, enabled, extra",
        ),
        ({"kind": "prune", "shape": [1, 2.5]}, "shape 2 must be an integer, got 2.5"),
        ({"kind": "prune", "shape": 3}, "shape must be an array, each an integer, got 3"),
        ({"kind": "prune", "match": 3}, "match must be a string or an array, each a string, got 3"),
        ({"kind": "prune", "enabled": 1}, "enabled must be true or false, got 1"),
        ({"kind": "prune", "training": 3}, "training must be a table, got 3"),
        ({"kind": "prune", "training": {}}, "[training]: epochs is missing; it must be an integer in [1, inf)"),
        ({"kind": "prune", "training": {"epochs": 0}}, "[training]: epochs must be in [1, inf), got 0"),
        ({"kind": "prune", "tags": {"x": "y"}}, "[tags]: x must be a number, got 'y'"),
        ({"kind": "quantize", "sparsity": 0.5}, "sparsity belongs to prune"),
    ],
)
def test_build_refuses_and_says_where_what_and_what_is_allowed(table: dict[str, Any], message: str) -> None:
    assert refusal(table) == f"recipe.toml: step 2 (prune): {message}"


def test_build_names_the_place_in_an_array_of_tables() -> None:
    tables = {"step": [{"kind": "prune"}, {"kind": "prune", "training": {"epochs": "two"}}]}
    assert refusal(tables, Recipe).endswith("[step 2.training]: epochs must be an integer, got 'two'")


def test_problems_lists_all_of_them() -> None:
    found = toml.problems(Step, {"kind": "prune", "sparsity": 2, "shape": ["a", "b"], "speed": 1}, "r.toml")
    assert [f.split(": ")[1].split(" must")[0].split("; ")[0] for f in found] == [
        "unknown key 'speed'",
        "sparsity",
        "shape 1",
        "shape 2",
    ]
    assert toml.problems(Step, {"kind": "prune"}, "r.toml") == []


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [("[0, 1)", (0, 0.999), (-0.1, 1)), ("(0, 1]", (0.1, 1), (0, 1.1)), ("[1, inf)", (1, 1e9), (0.9,))],
)
def test_within_reads_intervals_as_mathematics_does(
    interval: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert all(v in Within(interval) for v in inside)
    assert not any(v in Within(interval) for v in outside)


def test_parse_gives_the_line_of_a_syntax_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('a = 1\nb = "unclosed\n')
    with pytest.raises(InputError, match=r"bad\.toml: is no TOML: .*line 2"):
        toml.parse(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(InputError, match=r"bad\.toml: is no TOML: 'utf-8'"):
        toml.parse(path)


def test_parse_takes_the_byte_order_mark_of_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert toml.parse(path) == {"a": 1}


def test_parse_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read: No such file"):
        toml.parse(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        toml.parse(tmp_path)


def test_did_you_mean_is_silent_where_nothing_is_near() -> None:
    assert toml.did_you_mean("zzz", ["prune", "fold"]) == ""

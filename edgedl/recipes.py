"""Recipes: what `compress` does to a model, read from TOML; the order of the steps is the order of the work.

A step's `kind`, with its `method` where the kind has several, names a plugin of the group `edgedl.compressors`
(`fold`, `prune.channels`), whose `options` dataclass is the schema of the step's own keys; its `check(step)`, where it
has one, raises ValueError for what does not go together.
"""

from __future__ import annotations

import dataclasses
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from edgedl import plugins, toml
from edgedl.errors import InputError
from edgedl.toml import Within, did_you_mean

SHIPPED = Path(__file__).parent / "compression" / "recipes"
Augmentation = Literal["flip", "shift", "zoom", "color", "mixup", "auto"]
_HEAD = ("kind", "method")


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Learning from the original model: `alpha` is the teacher's share of the loss, the labels have the rest.

    `features` are layer patterns whose outputs the student imitates too: `feature_weight` times the mean over them of
    the squared error as a share of the teacher's mean square. Among them auto is the last layer of each height x width
    that is as wide in both (`edgedl.compression.features`), or none.
    `statistics` data gives the teacher the batch-norm statistics of the data (`edgedl.compression.normalization`) as
    long as it teaches; of augmented samples only flipped ones have the same.
    """

    temperature: Annotated[float, Within("(0, inf)")] = 3.0
    alpha: Annotated[float, Within("(0, 1]")] = 0.9
    features: tuple[str, ...] = ()
    feature_weight: Annotated[float, Within("(0, inf)")] = 1.0
    statistics: Literal["own", "data"] = "own"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Fine-tuning within a step.

    With `average` the step ends with the mean of the weights of its last steps, at whatever rate: it takes the place
    of a schedule and of patience.
    `augment` varies image inputs at random: flip left and right, zoom into a part, shift by an eighth, jitter the
    color, mix two images.
    Only the user knows whether a flipped sample is still one, but a teacher gives its answer anyway: where it teaches
    alone (distill with alpha = 1, which mixup needs as well), auto flips and shifts inputs of three channels, shifts
    those of one (digits and spectrograms have a left and a right), and leaves all others.
    """

    epochs: Annotated[int, Within("[1, inf)")] = 1
    learning_rate: Annotated[float, Within("(0, inf)")] = 1e-4
    batch_size: Annotated[int, Within("[1, inf)")] = 32
    patience: Annotated[int, Within("[1, inf)")] | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    average: bool = False
    augment: tuple[Augmentation, ...] = ()
    distill: Distill | None = None

    def __post_init__(self) -> None:
        if self.average and self.patience:
            message = "average keeps the mean of the last weights, patience those of the best epoch: leave one out"
            raise ValueError(message)
        if self.average and self.schedule != "constant":
            message = f"average takes the place of a schedule: leave it or schedule = {self.schedule!r} out"
            raise ValueError(message)
        moving = [kind for kind in self.augment if kind != "flip"]
        if moving and self.distill and self.distill.statistics == "data":
            message = f"distill statistics of the data are not those of samples that {moving[0]} varies: leave one out"
            raise ValueError(message)
        for kind in self.augment:
            if kind in ("mixup", "auto") and (self.distill is None or self.distill.alpha < 1):
                message = f"augment {kind} makes samples without labels: it needs distill = {{ alpha = 1 }}"
                raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: what any step may say, and `options`, an instance of the options dataclass of its kind."""

    kind: str
    method: str | None = None
    match: tuple[str, ...] = ()  # layer name patterns (fnmatch); none: every layer that the kind can take
    skip: tuple[str, ...] = ()
    training: Training | None = None
    options: Any = None
    where: str = ""  # opens the messages: "recipe.toml: step 2 (prune)"

    @property
    def compressor(self) -> str:
        """The plugin that does it, such as `prune.channels`."""
        return f"{self.kind}.{self.method}" if self.method else self.kind


def refuse_training(step: Step) -> None:
    """The `check` of options whose step trains nothing. Raises ValueError where it is told to."""
    if step.training is not None:
        message = "training: this step trains nothing; give training to a later step"
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A name and its steps."""

    name: str
    steps: tuple[Step, ...]
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class _File:
    step: tuple[dict[str, Any], ...]
    name: str = ""
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class _Common:
    match: str | tuple[str, ...] = ()
    skip: str | tuple[str, ...] = ()
    training: Training | None = field(default=None)


def shipped() -> tuple[str, ...]:
    """The names of the recipes that edgedl brings along."""
    return tuple(sorted(p.stem for p in SHIPPED.glob("*.toml")))


def check_data(training: Training, where: str, *, labelled: bool | None) -> None:
    """Raises InputError where a training cannot do with data that is `labelled` or not; None is no data."""
    if labelled is None:
        message = f"{where}: training needs data; give --data"
        raise InputError(message)
    if not labelled and training.distill is None:
        message = (
            f"{where}: the data has no labels; give labelled data, or let the original model teach: distill = {{}}"
        )
        raise InputError(message)


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file, or a shipped one by name; `overrides` are `step.key=value` as --set takes them.

    A step goes by its number (from 1), its kind or its method; a value is TOML, or else text. Raises InputError,
    naming file, step and key, and PluginError where no plugin does a step.
    """
    path = _find(path_or_name)
    table = toml.parse(path)
    return from_table(table, name=path.stem, where=path.name, overrides=overrides)


def copied(path_or_name: str | Path, folder: Path) -> Path:
    """A copy of the recipe's file in a folder: all steps of a run are of one recipe, whatever is edited meanwhile."""
    return Path(shutil.copy(_find(path_or_name), folder))


def from_table(
    table: Mapping[str, Any], *, name: str = "recipe", where: str = "recipe", overrides: Sequence[str] = ()
) -> Recipe:
    """The recipe of a table such as TOML gives: {"step": [{"kind": "fold"}]}; `where` opens the messages."""
    file = toml.build(_File, table, where)
    if not file.step:
        message = f"{where}: there is no [[step]]; a recipe needs one or more"
        raise InputError(message)
    steps = [_copied(step) for step in file.step]
    for text in overrides:
        _override(steps, text, where)
    made = tuple(_step(step, f"{where}: step {i}") for i, step in enumerate(steps, 1))
    return Recipe(name=file.name or name, about=file.about, steps=made)


def _find(path_or_name: str | Path) -> Path:
    text = str(path_or_name)
    if text in shipped():
        return SHIPPED / f"{text}.toml"
    if text.endswith(".toml") or isinstance(path_or_name, Path) or "/" in text:
        return Path(text)
    near = did_you_mean(text, shipped())
    message = f"no such recipe: {text!r}{near}; allowed: {', '.join(shipped())}, or a path to your own .toml"
    raise InputError(message)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list | tuple) else value


def _override(steps: list[dict[str, Any]], text: str, where: str) -> None:
    """Set one value of one step in place."""
    target, equals, value = text.partition("=")
    which, dot, key = target.strip().partition(".")
    if not (equals and dot and which and key):
        message = f"--set {text}: must be STEP.KEY=VALUE, such as 1.sparsity=0.5"
        raise InputError(message)
    found = [i for i, s in enumerate(steps, 1) if which in (str(i), s.get("kind"), s.get("method"))]
    if len(found) != 1:
        listed = ", ".join(f"{i} {s.get('kind')}" for i, s in enumerate(steps, 1))
        near = did_you_mean(which, {str(s[h]) for s in steps for h in _HEAD if h in s})
        told = f"names steps {' and '.join(map(str, found))}; write its number" if found else f"names no step{near}"
        message = f"--set {text}: {which!r} {told}; {where} has {listed}"
        raise InputError(message)
    *tables, last = key.split(".")
    table = steps[found[0] - 1]
    for inner in tables:
        table = table.setdefault(inner, {})
        if not isinstance(table, dict):
            message = f"--set {text}: {inner} of step {found[0]} is no table but {table!r}"
            raise InputError(message)
    table[last] = _parsed(value.strip())


def _parsed(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _step(table: Mapping[str, Any], where: str) -> Step:
    kind, method = table.get("kind"), table.get("method")
    if not isinstance(kind, str) or not isinstance(method, str | None):
        message = f"{where}: kind must be one of {', '.join(_kinds())}, got {kind!r}"
        if isinstance(kind, str):
            message = f"{where} ({kind}): method must be a string, got {method!r}"
        raise InputError(message)
    where = f"{where} ({kind})"
    options = plugins.load("compressors", _plugin(kind, method, where)).options
    common = {f.name for f in dataclasses.fields(_Common)}
    own = {f.name: None for f in dataclasses.fields(options)}
    rest = {k: v for k, v in table.items() if k not in _HEAD}
    if unknown := [k for k in rest if k not in common and k not in own]:
        allowed = [*(("method",) if _methods(kind) else ()), *own, *sorted(common)]
        near = did_you_mean(unknown[0], allowed)
        message = f"{where}: unknown key {unknown[0]!r}{near}; allowed: {', '.join(allowed)}"
        raise InputError(message)
    said = toml.build(_Common, {k: v for k, v in rest.items() if k in common}, where)
    step = Step(
        kind=kind,
        method=method,
        match=_patterns(said.match),
        skip=_patterns(said.skip),
        training=said.training,
        options=toml.build(options, {k: v for k, v in rest.items() if k in own}, where),
        where=where,
    )
    if hasattr(step.options, "check"):
        try:
            step.options.check(step)
        except ValueError as e:
            message = f"{where}: {e}"
            raise InputError(message) from e
    return step


def _patterns(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _kinds() -> list[str]:
    return sorted({p.name.partition(".")[0] for p in plugins.listing("compressors")})


def _methods(kind: str) -> list[str]:
    return [p.name.partition(".")[2] for p in plugins.listing("compressors") if p.name.startswith(f"{kind}.")]


def _plugin(kind: str, method: str | None, where: str) -> str:
    """The plugin name of a kind and method. Raises InputError with what is allowed."""
    names = {p.name for p in plugins.listing("compressors")}
    wanted = f"{kind}.{method}" if method else kind
    if wanted in names:
        return wanted
    if kind not in _kinds():
        near = did_you_mean(kind, _kinds())
        message = f"{where}: no plugin does kind {kind!r}{near}; allowed: {', '.join(_kinds())}"
    elif not _methods(kind):
        message = f"{where}: kind {kind!r} has no methods; leave method = {method!r} out"
    else:
        near = did_you_mean(method, _methods(kind)) if method else ""
        found = f"got {method!r}{near}" if method else "it is missing"
        message = f"{where}: method must be one of {', '.join(_methods(kind))}; {found}"
    raise InputError(message)

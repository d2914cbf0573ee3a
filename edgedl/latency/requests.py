"""What `edgedl benchmark` predicts: models from a table of operators or from files, on targets or on a core by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgedl import artifacts
from edgedl.errors import InputError
from edgedl.latency import operators, prediction
from edgedl.latency.fitted import MODELS
from edgedl.latency.operators import Operator
from edgedl.latency.prediction import Place, Prediction
from edgedl.types import ArtifactInfo, Target

HOST = "host"  # measured, never predicted


@dataclass(frozen=True, kw_only=True)
class Request:
    """`files` or `table`; `targets`, or `core` with `clock_hz` and `runtime`; `threads` None is as published."""

    files: tuple[Path, ...] = ()
    table: Path | None = None
    targets: tuple[Target, ...] = ()
    core: str | None = None
    clock_hz: float | None = None
    runtime: str | None = None
    threads: int | None = None
    models: Path = MODELS

    @property
    def is_alone(self) -> bool:
        """Whether nothing is to be measured: no file, a core by name, or a runtime that only figures tell about."""
        if self.table or self.core is not None:
            return True
        if self.runtime is None or self.runtime in artifacts.runtimes("tflite"):
            return False
        return prediction.has_figures(prediction.load(self.models), self.runtime)


def answer(request: Request) -> list[Prediction]:
    """A prediction for each model on each target. Raises InputError for a request that says too little."""
    models = prediction.load(request.models)
    where = _places(request)
    tables = operators.read_table(request.table) if request.table else {}
    found = []
    for target, places in where.items():
        for name, table in tables.items():
            found.append(replace(prediction.predict_first(models, name, table, places), target=target))
        for file in request.files:
            info = artifacts.describe(file)
            found.append(replace(of_artifact(str(file), info, places, request.models), target=target))
    return found


def of_artifact(name: str, info: ArtifactInfo, places: Sequence[Place], models: Path = MODELS) -> Prediction:
    """The prediction for a file of which a plugin has said what is in it; refused where it states no shapes."""
    try:
        table: tuple[Operator, ...] = operators.from_info(info)
    except InputError as e:
        return Prediction(model=name, runtime="", core="", clock_hz=None, refused=str(e))
    return prediction.predict_first(prediction.load(models), name, table, places)


def _places(request: Request) -> dict[str | None, tuple[Place, ...]]:
    """By target id; None for a core by name."""
    if request.core is None and request.clock_hz is not None:
        message = "--clock-hz needs --core, such as cortex-m7"
        raise InputError(message)
    if request.core is None:
        named = [t for t in request.targets if t.id != HOST]
        if request.is_alone and not named:
            message = "a prediction needs --target, or --core, --clock-hz and --runtime"
            raise InputError(message)
        return {t.id: prediction.places(t, request.runtime, request.threads) for t in named}
    if request.targets:
        message = "--core and --target both say where; give one of them"
        raise InputError(message)
    if not request.core:
        message = "--core is empty; give Arm's name of a core, such as cortex-m7"
        raise InputError(message)
    if request.clock_hz is None or not request.runtime:
        missing = "--clock-hz" if request.clock_hz is None else "--runtime, such as x-cube-ai or tflm"
        message = f"--core {request.core} needs {missing}"
        raise InputError(message)
    if not 0 < request.clock_hz < math.inf:
        message = f"--clock-hz must be a number above 0, got {request.clock_hz}"
        raise InputError(message)
    place = Place(runtime=request.runtime, core=request.core, clock_hz=request.clock_hz, threads=request.threads)
    return {None: (place,)}

"""`edgedl diff`."""

from __future__ import annotations

from typing import Any

import click

from edgedl.cli import options


@click.command("diff", short_help="Compare packages, or a model with its artifacts layer by layer.")
@click.argument("before", metavar="PACKAGE|MODEL")
@click.argument("after", nargs=-1, required=True, metavar="PACKAGE|ARTIFACT...")
@click.option("--max-drop", metavar="D", help="Largest loss of the metric, of any class and any slice, such as 1pp.")
@click.option("--data", metavar="DATA", help="Samples that model and artifacts are compared on.")
@options.targets
@options.model_loading
@options.junit
@options.seed
@click.option("--force", is_flag=True, help="Overwrite the file of --junit.")
@options.as_json
def command(
    before: str, after: tuple[str, ...], max_drop: str | None, data: str | None, junit: str | None, force: bool,
    as_json: bool, **given: Any,
) -> int:  # fmt: skip
    """Write the release note of a package since another, or say where artifacts part from their model.

    Two packages: what changed in size, accuracy, operators, runtimes. Exit 6 where inputs or outputs changed under the
    same major version, or something lost more than --max-drop; 7 where a class or slice did that has too few samples to
    show it. A model and its artifacts: accuracy, size, and the signal that is left at each layer on --data.
    """
    from pathlib import Path

    from edgedl.artifacts import KERAS_SUFFIXES
    from edgedl.errors import InputError

    options.check_free(force, junit, before, *after, data)
    is_model = Path(before).suffix in KERAS_SUFFIXES or Path(before).is_dir()
    wrong = {
        "a model is compared with its artifacts on --data DATA": is_model and data is None,
        "--max-drop is for packages; a model's artifacts are judged by edgedl validate": is_model and max_drop,
        "packages are compared without --data; of a model and its artifacts the model comes first": not is_model
        and data is not None,
        f"two packages are compared, got {1 + len(after)}": not is_model and len(after) > 1,
    }
    problem = next((what for what, is_so in wrong.items() if is_so), None)
    if problem:
        message = f"{before}: {problem}"
        raise InputError(message)
    if is_model:
        return _model(before, after, junit, force, as_json, data=data, **given)
    return _packages(before, after[0], max_drop, junit, force, as_json)


def _packages(before: str, after: str, max_drop: str | None, junit: str | None, force: bool, as_json: bool) -> int:
    from edgedl import pipeline
    from edgedl.types import Verdict

    found = pipeline.diff(before, after, max_drop=max_drop)
    options.write_checks(junit, {after: found["checks"]}, force)
    for check in found["checks"]:
        if check["verdict"] in ("fail", "unchecked", "inconclusive"):
            options.say(f"{check['verdict']}: {check['name']}: {check['why']}")
    options.answer(found, as_json, found["note"].rstrip())
    return pipeline.exit_code(Verdict(found["verdict"]))


def _model(model: str, artifacts: tuple[str, ...], junit: str | None, force: bool, as_json: bool, **given: Any) -> int:
    from edgedl import pipeline
    from edgedl.cli.tables import layers
    from edgedl.types import Verdict

    found = pipeline.diff_model(model, artifacts, **given)
    options.write_checks(junit, {one["artifact"]: one["report"]["checks"] for one in found["artifacts"]}, force)
    options.show(*(layers(one) for one in found["artifacts"]))
    options.notes(note for one in found["artifacts"] for note in one["notes"])
    options.answer(found, as_json, "\n".join(_line(one) for one in found["artifacts"]))
    return pipeline.exit_code(Verdict(found["verdict"]))


def _line(one: dict[str, Any]) -> str:
    """An artifact in a line: what it lost, and where most of the noise comes from."""
    from edgedl import reporting

    checks = reporting.checks_from_json(one["report"]["checks"])
    drops = (f"{c.name} {reporting.text.measured(c)}" for c in checks if c.name.endswith("_drop"))
    worst = max(one["layers"], key=lambda row: row["added_noise"], default=None)
    said = next(drops, "no metric")
    if worst is None:
        return f"{one['artifact']}: {said}"
    share = reporting.text.number(worst["added_noise"], "fraction")
    return f"{one['artifact']}: {said}; most noise is added in {worst['layer']}: {share} of the signal"

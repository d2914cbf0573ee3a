"""Options that several commands share, and how a command answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
force = click.option("--force", is_flag=True, help="Overwrite the output.")
seed = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default="0",
                    help="Seed of everything that is drawn.")  # fmt: skip
trust = click.option("--trust", is_flag=True, help="Execute code found in the model file, such as Lambda layers.")
custom_objects = click.option("--custom-objects", metavar="MODULE", help="Module with the model's own layers.")
junit = click.option("--junit", metavar="FILE", help="Write the verdicts as JUnit XML.")
targets = click.option("--target", "targets", metavar="T", multiple=True, help="Device profile: an id or a .toml.")

runtime_version = click.option(
    "--runtime-version", "runtime_versions", metavar="R=VERSION", multiple=True,
    help="The release of a runtime that the app ships, such as litert=2.1.0.",
)  # fmt: skip


def out(text: str) -> Callable[[F], F]:
    """`-o/--out`, required."""
    return click.option("-o", "--out", required=True, metavar="OUT", help=text)


def model_loading(function: F) -> F:
    """`--trust` and `--custom-objects`."""
    return trust(custom_objects(function))


def say(text: str) -> None:
    """Talk, on stderr."""
    click.echo(text, err=True)


def notes(lines: Any) -> None:
    """What the user should hear, a line each, on stderr; once, however often it is said."""
    for line in dict.fromkeys(lines):
        say(f"note: {line}")


def show(*tables: Any) -> None:
    """rich tables, on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=110)  # a log is not 80 columns wide
    for table in tables:
        console.print(table)


def pass_on(ctx: click.Context, as_json: bool) -> None:
    """`edgedl GROUP --json SUBCOMMAND` is `edgedl GROUP SUBCOMMAND --json`."""
    if ctx.invoked_subcommand:
        ctx.default_map = {ctx.invoked_subcommand: {"as_json": as_json}}


def answer(value: Any, as_json: bool, plain: str) -> None:
    """The result on stdout: all of it as JSON, or the one line that a script would want."""
    from edgedl.types import to_json

    click.echo(json.dumps(to_json(value), indent=2, allow_nan=False) if as_json else plain)


def check_free(force: bool, file: str | None, *inputs: str | None) -> None:
    """Refuse an output that exists, is one of the inputs or has no folder, before anything runs. Raises InputError."""
    if file:
        from pathlib import Path

        from edgedl import artifacts

        artifacts.check_output(Path(file), force=force, inputs=inputs)


def write_checks(path: str | None, checks: Mapping[str, Any], force: bool) -> None:
    """Checks as they are in JSON, by the file they are about, as JUnit XML, where `--junit` names a file."""
    if path is not None:
        from edgedl import reporting
        from edgedl.types import Report

        empty: dict[str, Any] = {"reference": "", "data": "", "targets": ()}
        reports = [Report(artifact=a, checks=reporting.checks_from_json(c), **empty) for a, c in checks.items()]
        write_junit(path, reports, "fail", force)


def write_junit(path: str | None, reports: Any, on_inconclusive: str | list[str], force: bool) -> None:
    """The verdicts as JUnit XML, where `--junit` names a file."""
    if path is None:
        return
    from pathlib import Path

    from edgedl import artifacts
    from edgedl.reporting import junit

    with artifacts.staged(Path(path), force=force) as part:
        part.write_text(junit.render(reports, on_inconclusive=on_inconclusive), encoding="utf-8")  # type: ignore[arg-type]

"""`edgedl diff`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("diff", short_help="Compare two packages.")
@click.argument("before")
@click.argument("after")
@click.option("--max-drop", metavar="D", help="Largest loss of the metric, of any class and any slice, such as 1pp.")
@options.junit
@click.option("--force", is_flag=True, help="Overwrite the file of --junit.")
@options.as_json
def command(before: str, after: str, max_drop: str | None, junit: str | None, force: bool, as_json: bool) -> int:
    """Write the release note of the package AFTER since BEFORE: what changed in size, accuracy, operators, runtimes.

    Exit 6 where inputs or outputs changed under the same major version, or something lost more than --max-drop; 7 where
    a class or slice did that has too few samples to show it.
    """
    from edgedl import pipeline
    from edgedl.types import Verdict

    options.check_free(force, junit)
    found = pipeline.diff(before, after, max_drop=max_drop)
    options.write_checks(junit, after, found["checks"], force)
    for check in found["checks"]:
        if check["verdict"] in ("fail", "unchecked", "inconclusive"):
            options.say(f"{check['verdict']}: {check['name']}: {check['why']}")
    options.answer(found, as_json, found["note"].rstrip())
    return pipeline.exit_code(Verdict(found["verdict"]))

"""`edgedl report`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("report", short_help="Write the page of a run again.")
@click.argument("run", metavar="RUN")
@options.force
@options.as_json
def command(run: str, force: bool, as_json: bool) -> None:
    """Write the page of a RUN folder again, from the validations of the steps that its pipeline file had last."""
    from edgedl import runs

    written = runs.report(run, force=force, said=options.say)
    options.answer({"files": written}, as_json, "\n".join(str(p) for p in written))

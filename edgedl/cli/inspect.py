"""`edgedl inspect`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("inspect", short_help="Show what is in a model or an artifact.")
@click.argument("file")
@click.option("--target", metavar="T", help="Check the file against a device profile, without running it.")
@click.option("--diff", metavar="OTHER", help="Compare with another file: what is in one and not in the other.")
@options.runtime_version
@options.model_loading
@options.as_json
def command(file: str, as_json: bool, **given: object) -> None:
    """Show what is in FILE: a model or an artifact."""
    from edgedl import pipeline
    from edgedl.cli.tables import inspection

    found = pipeline.inspect(file, **given)  # type: ignore[arg-type]
    options.show(*inspection(found))
    options.notes(found.get("notes", ()))
    options.answer(found, as_json, f"{file}: {found['kind']} {found.get('format') or ''}".rstrip())

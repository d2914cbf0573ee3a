"""`edgedl plugins`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("plugins", short_help="List the installed plugins.")
@options.as_json
def command(as_json: bool) -> None:
    """List the installed plugins and who provides them; imports none."""
    from rich.table import Table

    from edgedl import plugins

    found = [p for group in plugins.GROUPS for p in plugins.listing(group)]
    table = Table("group", "name", "from", "version")
    for p in found:
        table.add_row(p.group, p.name, p.distribution, p.version)
    options.show(table)
    rows = [{"group": p.group, "name": p.name, "distribution": p.distribution, "version": p.version} for p in found]
    options.answer({"plugins": rows}, as_json, f"{len(found)} plugins")

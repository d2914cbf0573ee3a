"""`edgedl devices`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.group("devices", invoke_without_command=True, short_help="List devices, set emulated ones up.")
@options.as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List devices, or set an emulated one up."""
    if ctx.invoked_subcommand is None:
        _list(as_json)
    options.pass_on(ctx, as_json)


@command.command("list")
@options.as_json
def listing(as_json: bool) -> None:
    """List the device plugins, and what is set up here."""
    _list(as_json)


def _list(as_json: bool) -> None:
    from rich.table import Table

    from edgedl import devices

    found = devices.overview()
    table = Table("device", "is", "to do")
    for row in found:
        table.add_row(row["name"], row["about"], row["missing"])
    options.show(table)
    options.answer({"devices": found}, as_json, "\n".join(row["name"] for row in found))


@command.command("setup")
@click.argument("name")
@click.option("--sources", metavar="FILE", help="An apt list to fetch from; default: this machine's.")
@click.option("--force", is_flag=True, help="Build it again.")
@options.as_json
def setup(name: str, sources: str | None, force: bool, as_json: bool) -> None:
    """Fetch what an emulated core runs, NAME qemu-arm64 or qemu-armhf, into the cache."""
    from pathlib import Path

    from edgedl.devices import setup as building

    folder = building.set_up(name, sources=Path(sources) if sources else None, force=force, say=options.say)
    options.answer({"name": name, "folder": folder}, as_json, str(folder))

"""`edgedl targets`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.group("targets", invoke_without_command=True)
@options.as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List, show or check device profiles."""
    if ctx.invoked_subcommand is None:
        _list(as_json)
    options.pass_on(ctx, as_json)


@command.command("list")
@options.as_json
def listing(as_json: bool) -> None:
    """List the profiles."""
    _list(as_json)


def _list(as_json: bool) -> None:
    from rich.table import Table

    from edgedl import targets

    found = [targets.load(name) for name in targets.listing()]
    table = Table("id", "name", "formats", "runtimes", "core")
    for t in found:
        runtimes = ", ".join(f"{r.name} ({r.resolver})" if r.resolver else r.name for r in t.runtimes)
        table.add_row(t.id, t.name, ", ".join(t.formats), runtimes, str(t.cpu.get("core") or ""))
    options.show(table)
    options.answer({"targets": found}, as_json, "\n".join(t.id for t in found))


@command.command("show")
@click.argument("target")
@options.as_json
def show(target: str, as_json: bool) -> None:
    """Show one profile with its sources."""
    from edgedl import targets
    from edgedl.cli.tables import tree

    found = targets.load(target)
    options.show(tree(found))
    options.answer(found, as_json, found.id)


@command.command("check")
@click.argument("file")
@options.as_json
def check(file: str, as_json: bool) -> int:
    """Check a profile of your own; exit 2 when something is wrong."""
    from pathlib import Path

    from edgedl import devices

    findings = devices.check(Path(file))
    for finding in findings:
        options.say(finding)
    options.answer({"file": file, "findings": findings}, as_json, "wrong" if findings else "ok")
    return 2 if findings else 0

"""`edgedl doctor`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("doctor", short_help="Say what works here and what does not.")
@options.as_json
def command(as_json: bool) -> None:
    """Say what works here and what does not, and what to do about it."""
    from rich.table import Table

    from edgedl import doctor

    found = doctor.examine()
    table = Table(show_header=False)
    table.add_row("python", f"{found['python']} {found['executable']}")
    for name, version in found["packages"].items():
        table.add_row(name, version)
    for runtime in found["runtimes"]:
        table.add_row(f"runtime {runtime['name']}", runtime["version"] or f"does not start: {runtime['why']}")
    for exporter in found["exporters"]:
        table.add_row(f"exporter {exporter['name']}", ", ".join(exporter["schemes"]) or str(exporter["why"]))
    for device in found["devices"]:
        table.add_row(
            f"device {device['name']}", f"not set up: {device['missing']}" if device["missing"] else device["about"]
        )
    for name, path in found["tools"].items():
        table.add_row(name, path or "not here; --platform android needs it")
    table.add_row("accelerators", ", ".join(found["training"]["gpus"]) or "none, training runs on the CPU")
    table.add_row("cache", found["cache"])
    options.show(table)
    for problem in found["problems"]:
        options.say(f"problem: {problem}")
    options.answer(found, as_json, f"{len(found['problems'])} problems" if found["problems"] else "all works")

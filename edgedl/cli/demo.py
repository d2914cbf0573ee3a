"""`edgedl demo`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("demo", short_help="Do the main job on handwritten digits.")
@click.option("-o", "--out", default="edgedl-demo", show_default=True, metavar="DIR", help="Folder to work in.")
@options.as_json
def command(out: str, as_json: bool) -> int:
    """Do the main job on handwritten digits: train, quantize, export, validate, package, report."""
    from pathlib import Path

    from edgedl import demo
    from edgedl.reporting import text

    found, reports = demo.run(Path(out), said=options.say)
    options.show(*(table for report in reports for table in text.tables(report)))
    options.answer(found, as_json, f"{found['verdict']}: open {found['report']}")
    code: int = found["exit_code"] or (0 if found["verified"] == "pass" else 6)
    return code

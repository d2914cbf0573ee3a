"""`edgedl benchmark`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("benchmark", short_help="Time artifacts on this machine.")
@click.argument("files", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--runtime", metavar="R", help="Runtime, a plugin's name; default: the first for the format.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one inference.")
@click.option("--repeats", type=click.IntRange(1), default=200, show_default=True, help="Timed inferences of each.")
@click.option("--gate", metavar="FILE", help="An earlier --json of this: more than 1 % more instructions is exit 6.")
@options.targets
@options.seed
@options.as_json
def command(as_json: bool, **given: object) -> int:
    """Time ARTIFACTs on this machine, taking turns, and on the devices of targets; the first is the yardstick."""
    from edgedl import pipeline
    from edgedl.cli.tables import benchmark
    from edgedl.types import Verdict

    found = pipeline.benchmark(**given)  # type: ignore[arg-type]
    options.show(*benchmark(found))
    options.notes(found["notes"])
    gate = found.get("gate")
    options.answer(found, as_json, gate["verdict"] if gate else f"{found['results'][0]['latency_ms']:.4g} ms")
    return pipeline.exit_code(Verdict(gate["verdict"])) if gate else 0

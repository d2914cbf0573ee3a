"""`edgedl benchmark`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("benchmark", short_help="Time artifacts on this machine, predict their latency elsewhere.")
@click.argument("files", nargs=-1, metavar="ARTIFACT...")
@click.option(
    "--runtime", metavar="R", help="Runtime, a plugin's name, or one with published figures: x-cube-ai, tflm@2.3."
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one inference.")
@click.option("--repeats", type=click.IntRange(1), default=200, show_default=True, help="Timed inferences of each.")
@click.option("--gate", metavar="FILE", help="An earlier --json of this: more than 1 % more instructions is exit 6.")
@click.option("--predict", metavar="LAYERS.csv", help="Predict the models in a table of operators; nothing is run.")
@click.option("--core", metavar="CORE", help="Predict on a core by Arm's name, such as cortex-m7, without a profile.")
@click.option("--clock-hz", type=click.FloatRange(1, 1e11), metavar="HZ", help="Its clock.")
@click.option("--latency-models", metavar="FILE", help="Predict with what scripts/fit_latency.py wrote there.")
@options.targets
@options.seed
@options.as_json
def command(as_json: bool, **given: object) -> int:
    """Time ARTIFACTs on this machine, taking turns, and on the devices of targets; the first is the yardstick.

    Where a target's device is not at hand, its latency is predicted from published figures, or refused.
    """
    from edgedl import pipeline
    from edgedl.cli.tables import benchmark, predictions
    from edgedl.types import Verdict

    if not given["files"] and not given["predict"]:
        message = "name an ARTIFACT, or a table of operators with --predict LAYERS.csv"
        raise click.UsageError(message)
    source = click.get_current_context().get_parameter_source("threads")
    found = pipeline.benchmark(**given, threads_as_published=source is not click.core.ParameterSource.COMMANDLINE)  # type: ignore[arg-type]
    options.show(*benchmark(found), *predictions(found.get("predictions", ())))
    options.notes([*found.get("notes", ()), *(p["basis"] for p in found.get("predictions", ()) if p["basis"])])
    if "results" not in found:
        first = found["predictions"][0]
        options.answer(found, as_json, first["refused"] or f"{first['latency_ms']:.4g} ms")
        return 0
    gate = found.get("gate")
    options.answer(found, as_json, gate["verdict"] if gate else f"{found['results'][0]['latency_ms']:.4g} ms")
    return pipeline.exit_code(Verdict(gate["verdict"])) if gate else 0

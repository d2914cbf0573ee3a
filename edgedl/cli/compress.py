"""`edgedl compress`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("compress", short_help="Compress a model by a recipe.")
@click.argument("model")
@click.option("--recipe", required=True, metavar="R", help="A recipe's .toml, or the name of a shipped one.")
@click.option("--data", metavar="DATA", help="Samples to calibrate and fine-tune on.")
@click.option("--eval", "evaluation", metavar="DATA", help="Samples to judge each step on; default: those of --data.")
@click.option("--set", "overrides", multiple=True, metavar="STEP.KEY=VALUE", help="Change one value of the recipe.")
@click.option("--target", metavar="T", help="Device profile, an id or a .toml: the latency there, predicted.")
@options.out("The model to write, .keras.")
@options.model_loading
@options.seed
@options.force
@options.as_json
def command(model: str, recipe: str, data: str | None, as_json: bool, **given: object) -> None:
    """Compress MODEL by a recipe: fold, prune, remove channels, cluster, quantize, distill; a table after each step."""
    from edgedl import pipeline
    from edgedl.cli.tables import compression

    found = pipeline.compress(model, recipe, data, said=options.say, **given)  # type: ignore[arg-type]
    options.show(*compression(found["rows"]))
    options.notes(note for row in found["rows"] for note in row.notes)
    options.answer(found, as_json, found["path"])

"""`edgedl train`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("train", short_help="Train a model on DATA.")
@click.option(
    "--model",
    required=True,
    metavar="ARCH|module:function",
    help="cnn-small, resnet8, mobilenet-tiny, mobilenet-v2, ds-cnn, cnn1d, gru, mlp, autoencoder, or yours.",
)
@click.option("--data", required=True, metavar="DATA", help="Training samples with their targets.")
@click.option("--eval", "evaluation", metavar="DATA", help="Judged on after each epoch, for early stopping.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--patience", type=click.IntRange(0), default=5, show_default=True, help="Epochs without gain; 0: never.")
@options.out("The model to write, .keras.")
@options.seed
@options.force
@options.as_json
def command(out: str, as_json: bool, **given: object) -> None:
    """Train a model on DATA: seeded, on the GPU where there is one, with early stopping."""
    from edgedl import pipeline

    found = pipeline.train(out=out, **given)  # type: ignore[arg-type]
    options.notes(found["notes"])
    options.answer(found, as_json, found["path"])

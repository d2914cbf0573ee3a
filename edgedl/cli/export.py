"""`edgedl export`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("export", short_help="Export a model to a format.")
@click.argument("model")
@click.option(
    "--format", "format_", metavar="F", help="Artifact format, a plugin's name; default: by the suffix of OUT."
)
@click.option("--scheme", metavar="S", help="fp32, fp16, dynamic, int8, int16x8, ... [default: the model's, else fp32]")
@click.option("--target", metavar="T", help="Device profile that decides --io, and whose formats are kept to.")
@click.option("--calibration-data", metavar="DATA", help="Data for static schemes, and where preprocessing is named.")
@click.option("--samples", type=click.IntRange(1), default=200, show_default=True, help="Calibration samples.")
@click.option("--io", type=click.Choice(["float", "int8", "uint8", "int16"]), help="Type of inputs and outputs.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,H,W,C", help="Fix an input's shape, batch included.")
@click.option("--opset", type=int, help="ONNX opset.")
@click.option("--embed-preprocessing", is_flag=True, help="Fold cast, scale and normalize into the model.")
@click.option("--slim/--no-slim", default=True, help="Leave out what no runtime reads. [default: slim]")
@click.option("--labels", metavar="FILE", help="Class names, one a line; default: those of the data.")
@options.out("The artifact to write; OUT.edgedl.json goes beside it.")
@options.model_loading
@options.seed
@options.force
@options.as_json
def command(out: str, as_json: bool, **given: object) -> None:
    """Export MODEL to a format, quantized by a scheme."""
    from edgedl import worker

    worker.warm()  # TensorFlow loads while the rest does
    from edgedl import pipeline
    from edgedl.reporting import text

    artifact = pipeline.export(out=out, **given)  # type: ignore[arg-type]
    options.notes(artifact.notes)
    size, compressed = (text.number(n, "bytes") for n in (artifact.size_bytes, artifact.compressed_bytes))
    options.say(f"{artifact.format} {artifact.scheme}: {size}, {compressed} compressed")
    options.answer(artifact, as_json, str(artifact.path))

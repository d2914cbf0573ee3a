"""`edgedl package`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("package", short_help="Pack an artifact for a platform.")
@click.argument("artifact")
@click.option(
    "--platform",
    "platforms",
    required=True,
    multiple=True,
    metavar="P",
    help="zip, android, web, ios, python, c, or a plugin's.",
)
@click.option("--data", metavar="DATA", help="Where the golden inputs are drawn from; default: seeded random ones.")
@click.option("--labels", metavar="FILE", help="Class names, one a line; default: the artifact's own.")
@click.option("--report", metavar="FILE", help="report.json of the validation, to travel with the model.")
@click.option("--card", metavar="FILE", help=".toml with purpose, data, limits and license of the model, for its card.")
@click.option("--sign", metavar="KEY", help="Sign with the private key of this file, see `edgedl keygen`.")
@click.option("--name", metavar="N", help="Name of the package; default: the artifact's stem.")
@click.option("--version", metavar="V", help="Its version; default: the one that follows --previous, else 1.0.0.")
@click.option("--previous", metavar="PACKAGE", help="The package before this one, any platform's.")
@options.targets
@options.out("The folder to write packages into.")
@options.seed
@options.force
@options.as_json
def command(out: str, as_json: bool, **given: object) -> None:
    """Pack ARTIFACT with its manifest, labels, preprocessing and golden inputs and outputs."""
    from edgedl import pipeline

    written = pipeline.package(out=out, said=lambda note: options.notes([note]), **given)  # type: ignore[arg-type]
    options.answer({"packages": written}, as_json, "\n".join(str(p) for p in written))

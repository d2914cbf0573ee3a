"""`edgedl verify`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("verify", short_help="Check a package.")
@click.argument("package")
@click.option("--key", metavar="PUB", help="Public key that must have signed it.")
@options.junit
@click.option("--force", is_flag=True, help="Overwrite the file of --junit.")
@options.as_json
def command(package: str, key: str | None, junit: str | None, force: bool, as_json: bool) -> int:
    """Check every hash of PACKAGE and replay its golden inputs; exit 6 when something does not hold."""
    from edgedl import pipeline

    options.check_free(force, junit, package)
    found = pipeline.verify(package, key=key)
    options.write_checks(junit, {package: found["checks"]}, force)
    if key is None:
        options.notes(c["why"] for c in found["checks"] if c["name"] == "signature" and c["verdict"] == "info")
    for finding in found["findings"]:
        options.say(f"{package}: {finding}")
    options.answer(found, as_json, found["verdict"])
    return 0 if found["verdict"] == "pass" else 6

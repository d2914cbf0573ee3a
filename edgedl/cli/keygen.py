"""`edgedl keygen`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("keygen", short_help="Make a key to sign packages with.")
@click.argument("key")
@options.as_json
def command(key: str, as_json: bool) -> None:
    """Write a new Ed25519 key: KEY, to keep secret, and KEY.pub, for `edgedl verify --key`.

    EDGEDL_KEY_PASSWORD, where it is set, encrypts KEY, and opens it later.
    """
    from edgedl import pipeline

    public = pipeline.keygen(key)
    options.answer({"key": key, "public_key": public}, as_json, str(public))

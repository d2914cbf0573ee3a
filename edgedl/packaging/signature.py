"""The signature of a package: an in-toto statement about its manifest in a DSSE envelope, signed with Ed25519.

The manifest has the hash of every file, so whoever trusts it trusts the package. Statement:
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md; envelope:
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md. `cosign verify-blob-attestation` reads such files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.packaging import keys, manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:edgedl:package:v1"
KEYID = re.compile("[0-9a-f]{64}")
PAYLOAD = "application/vnd.in-toto+json"


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What is in manifest.intoto.jsonl."""

    payload: bytes
    signature: bytes
    keyid: str


def write(folder: Path, key: Ed25519PrivateKey) -> None:
    """Sign the manifest in the folder of the content."""
    payload = _line(_statement(folder)).strip()
    keyid = keys.fingerprint(key.public_key())
    envelope = Envelope(payload=payload, signature=key.sign(encoding(payload)), keyid=keyid)
    (folder / manifest.SIGNATURE).write_bytes(_dump(envelope))


def encoding(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of the payload and its type."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _statement(folder: Path) -> dict[str, Any]:
    """The statement about the manifest in `folder`, by its hash; all else that could be stated is in there."""
    digest = hashlib.sha256((folder / manifest.NAME).read_bytes()).hexdigest()
    subject = [{"name": manifest.NAME, "digest": {"sha256": digest}}]
    return {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE}


def problems(folder: Path, key: Ed25519PublicKey | None, key_file: str) -> list[str]:
    """What does not hold of the signature in the folder of a manifest that holds; without a key it is not proven."""
    path = folder / manifest.SIGNATURE
    if not path.exists():
        return [f"not signed, and {key_file} was named to check a signature; take a signed package"] if key else []
    envelope = _load(path)
    if envelope is None:
        return [f"{manifest.SIGNATURE} is no signature that edgedl writes"]
    if key is not None:
        own = keys.fingerprint(key)
        if envelope.keyid != own:
            return [f"signed with another key: {envelope.keyid[:16]}..., {key_file} is {own[:16]}..."]
        if not _holds(envelope, key):
            return [f"the signature does not hold for {key_file}"]
    if envelope.payload != _line(_statement(folder)).strip():
        return ["the signature is about another manifest"]
    return []


def keyid(folder: Path) -> str | None:
    """The fingerprint of the key that a package says it was signed with."""
    path = folder / manifest.SIGNATURE
    envelope = _load(path) if path.exists() else None
    return envelope.keyid if envelope else None


def _holds(envelope: Envelope, key: Ed25519PublicKey) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(envelope.signature, encoding(envelope.payload))
    except InvalidSignature:
        return False
    return True


def _load(path: Path) -> Envelope | None:
    """The envelope of a file that is byte for byte as edgedl writes it, else None."""
    text = path.read_bytes()
    try:
        found = json.loads(text)
        (signed,) = found["signatures"]
        payload, signature = (base64.b64decode(v, validate=True) for v in (found["payload"], signed["sig"]))
        envelope = Envelope(payload=payload, signature=signature, keyid=str(signed["keyid"]))
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return None
    return envelope if KEYID.fullmatch(envelope.keyid) and _dump(envelope) == text else None


def _dump(envelope: Envelope) -> bytes:
    signed = {"keyid": envelope.keyid, "sig": base64.b64encode(envelope.signature).decode()}
    return _line(
        {"payload": base64.b64encode(envelope.payload).decode(), "payloadType": PAYLOAD, "signatures": [signed]}
    )


def _line(value: Mapping[str, Any]) -> bytes:
    """JSON on one line, as JSON Lines have it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

"""Ed25519 keys (RFC 8032) in PEM files, as `edgedl keygen` and `openssl genpkey -algorithm ed25519` write them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import artifacts
from edgedl.errors import InputError, PluginError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSWORD = "EDGEDL_KEY_PASSWORD"  # noqa: S105  the variable that holds it
PUBLIC = ".pub"
MAX_BYTES = 10_000
WANTED = "a PEM file with an Ed25519 {} key is needed, such as edgedl keygen writes"


def generate(path: Path) -> Path:
    """Write a private key that its owner alone may read, and beside it the public one, whose path it returns.

    The password of the variable EDGEDL_KEY_PASSWORD, where it is set, encrypts the private one. Raises InputError:
    one of them exists, which no option overwrites.
    """
    _check_installed()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(path.name + PUBLIC)
    for file in (path, public):
        if file.exists():
            message = f"{file}: exists, and a key is never overwritten; name another"
            raise InputError(message)
        artifacts.check_output(file, force=False)
    key, password = Ed25519PrivateKey.generate(), _password()
    locked = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked)
    with artifacts.writing(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(secret)
    with artifacts.writing(public):
        public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return public


def load_private(path: Path) -> Ed25519PrivateKey:
    """The private key of a PEM file. Raises InputError, PluginError where `cryptography` is not installed."""
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text, password = _read(path, "private"), _password()
    if b"ENCRYPTED" not in text:
        password = None
    elif password is None:
        message = f"{path}: is encrypted; set {PASSWORD} to its password"
        raise InputError(message)
    try:
        key: Any = load_pem_private_key(text, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        why = f"the password of {PASSWORD} does not open it, or it is damaged" if password else "no private key in it"
        message = f"{path}: {why}; {WANTED.format('private')}"
        raise InputError(message) from e
    if not isinstance(key, Ed25519PrivateKey):
        raise _other(path, key, "private")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """The public key of a PEM file. Raises InputError, PluginError where `cryptography` is not installed."""
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    text = _read(path, "public")
    if b"PRIVATE KEY" in text:
        message = f"{path}: is a private key, which no verifier needs; name the public one, such as {path.name}{PUBLIC}"
        raise InputError(message)
    try:
        key: Any = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as e:
        message = f"{path}: no public key in it; {WANTED.format('public')}"
        raise InputError(message) from e
    if not isinstance(key, Ed25519PublicKey):
        raise _other(path, key, "public")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo in DER, as hex."""
    from cryptography.hazmat.primitives import serialization as form

    return hashlib.sha256(key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _check_installed() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as e:
        message = f"signatures need the package cryptography: {e}. Try: pip install 'edgedl[sign]'"
        raise PluginError(message) from e


def _read(path: Path, kind: str) -> bytes:
    try:
        with path.open("rb") as f:
            text = f.read(MAX_BYTES)
    except OSError as e:
        message = f"{path}: cannot be read: {e.strerror}; {WANTED.format(kind)}"
        raise InputError(message) from e
    return text


def _password() -> bytes | None:
    return os.environ[PASSWORD].encode() if os.environ.get(PASSWORD) else None


def _other(path: Path, key: object, kind: str) -> InputError:
    name = type(key).__name__.strip("_").replace("PrivateKey", "").replace("PublicKey", "")
    return InputError(f"{path}: holds a key for {name}; {WANTED.format(kind)}")

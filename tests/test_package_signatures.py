"""Signatures and keys: who signed a package is proven, and nothing of one that its owner did not sign is run."""

import base64
import hashlib
import json
import shutil
import stat
import subprocess
import sys

import pytest
from packages import repacked, text_of

from edgedl import packaging, pipeline
from edgedl.errors import PluginError
from edgedl.packaging import keys, manifest, signature


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """The file of a private key; its public one is beside it."""
    path = tmp_path_factory.mktemp("keys") / "key"
    pipeline.keygen(path)
    return path


@pytest.fixture(scope="module")
def signed(tflites, key, tmp_path_factory):
    return _pack(tflites, tmp_path_factory.mktemp("signed"), sign=key)


def _pack(tflites, out, **given):
    return pipeline.package(tflites / "int8.tflite", platforms=["zip"], out=out, **given)[0]


def _public(key):
    return key.with_name("key.pub")


def _verify(package, key):
    found = packaging.verify(package, key)
    verdicts = {c["name"]: c["verdict"] for c in found["checks"]}
    return found["findings"], verdicts


def test_verify_proves_the_signer(signed, key, cli):
    findings, verdicts = _verify(signed, _public(key))
    assert findings == []
    assert set(verdicts.values()) == {"pass"}
    done = cli("verify", signed)
    assert (done.code, done.out) == (0, "pass\n")
    assert f"note: signed with key {keys.fingerprint(keys.load_public(_public(key)))}; --key FILE proves it" in done.err
    assert cli("verify", signed, "--key", _public(key)).err == ""


def test_signing_twice_gives_the_same_bytes(tflites, signed, key, tmp_path):
    assert _pack(tflites, tmp_path / "again", sign=key).read_bytes() == signed.read_bytes()


def test_signature_is_an_in_toto_statement_about_the_manifest(signed):
    envelope = json.loads(text_of(signed, "manifest.intoto.jsonl"))
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "urn:edgedl:package:v1",
    )
    text = text_of(signed, "manifest.json").encode()
    digest = {"sha256": hashlib.sha256(text).hexdigest()}
    assert statement["subject"] == [{"name": "manifest.json", "digest": digest}]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs: apt-get install openssl")
def test_openssl_makes_keys_and_checks_signatures(tflites, tmp_path):
    def openssl(*arguments):
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path, text=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key")
    openssl("pkey", "-in", "key", "-pubout", "-out", "key.pub")
    package = _pack(tflites, tmp_path / "out", sign=tmp_path / "key")
    assert _verify(package, tmp_path / "key.pub")[0] == []
    envelope = json.loads(text_of(package, "manifest.intoto.jsonl"))
    payload, type_ = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    (tmp_path / "signed").write_bytes(f"DSSEv1 {len(type_)} {type_} {len(payload)} ".encode() + payload)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    said = openssl("pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin", "-in", "signed", "-sigfile", "sig")
    assert "Signature Verified Successfully" in said


def test_signature_is_one_for_the_tools_of_in_toto(signed, key):
    dsse = pytest.importorskip("securesystemslib.dsse", reason="needs: pip install securesystemslib")
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
    from securesystemslib.signer import SSlibKey

    envelope = dsse.Envelope.from_dict(json.loads(text_of(signed, "manifest.intoto.jsonl")))
    public = keys.load_public(_public(key))
    ours = SSlibKey.from_crypto(public, keyid=keys.fingerprint(public))
    assert list(envelope.verify([ours], 1)) == [ours.keyid]
    envelope.payload = envelope.payload.replace(b"manifest.json", b"manifest.yaml")
    with pytest.raises((UnverifiedSignatureError, VerificationError)):
        envelope.verify([ours], 1)


def test_verify_refuses_a_package_that_is_not_signed(tflites, key, tmp_path, cli):
    package = _pack(tflites, tmp_path / "out")
    findings, verdicts = _verify(package, _public(key))
    assert findings == [f"not signed, and {_public(key)} was named to check a signature; take a signed package"]
    assert verdicts["golden"] == verdicts["tensors"] == "unchecked"  # nothing of it is run
    assert cli("verify", package, "--key", _public(key)).code == 6
    assert "note: not signed" in cli("verify", package).err


def test_verify_refuses_another_key(signed, tmp_path):
    pipeline.keygen(tmp_path / "other")
    findings, verdicts = _verify(signed, tmp_path / "other.pub")
    assert findings[0].startswith("signed with another key: ")
    assert verdicts["golden"] == "unchecked"


def test_verify_refuses_a_package_changed_after_it_was_signed(signed, key, tmp_path):
    def change(content, found):
        (content / "labels.txt").write_text("a\nb\nc\n")
        found["labels"] = found["lineage"]["labels"] = ["a", "b", "c"]

    changed = repacked(signed, tmp_path / "a", change)  # every hash is right again
    assert _verify(changed, _public(key))[0] == ["the signature is about another manifest"]
    assert _verify(changed, None)[0] == ["the signature is about another manifest"]

    pipeline.keygen(tmp_path / "thief")
    (tmp_path / "b").mkdir()
    taken = repacked(signed, tmp_path / "b", change, key=keys.load_private(tmp_path / "thief"))
    assert _verify(taken, _public(key))[0][0].startswith("signed with another key: ")
    assert _verify(taken, tmp_path / "thief.pub")[0] == []


def test_verify_refuses_a_forged_envelope(signed, key, tmp_path):
    """Every change of the one file that no hash covers, in an archive that is made good again."""
    text = text_of(signed, "manifest.intoto.jsonl")
    envelope = json.loads(text)
    sig = envelope["signatures"][0]

    def forged(**changes):
        made = {**envelope, **changes}
        return json.dumps(made, separators=(",", ":")) + "\n"

    other = base64.b64encode(bytes(64)).decode()
    payload = base64.b64encode(base64.b64decode(envelope["payload"]).replace(b"1.0.0", b"1.0.1")).decode()
    cases = {
        "no signature that edgedl writes": [
            "", "{}", "[" * 100_000, text + " ", text.replace(",", ", ", 1), forged(signatures=[]),
            forged(signatures=[sig, sig]), forged(payload="!"), forged(payloadType="text/plain"), forged(extra=1),
            forged(signatures=[sig | {"keyid": "\x1b[31m"}]), forged(payload=envelope["payload"].rstrip("=") + "=="),
        ],
        "signed with another key": [forged(signatures=[sig | {"keyid": "0" * 64}])],
        "the signature does not hold": [forged(signatures=[sig | {"sig": other}]), forged(payload=payload)],
    }  # fmt: skip
    tried = 0
    for why, texts in cases.items():
        for changed in texts:
            if changed == text:  # the padding was that already
                continue
            tried += 1
            folder = tmp_path / str(tried)
            folder.mkdir()
            made = repacked(
                signed, folder, lambda c, _, t=changed: (c / manifest.SIGNATURE).write_text(t), rehash=False
            )
            (finding,) = _verify(made, _public(key))[0]
            assert why in finding, changed[:100]
            assert "\x1b" not in finding
    assert tried > 10


def test_verify_refuses_one_byte_of_the_envelope(signed, key, tmp_path):
    text = text_of(signed, "manifest.intoto.jsonl").encode()
    for at in range(0, len(text), 29):
        changed = bytearray(text)
        changed[at] ^= 1
        folder = tmp_path / str(at)
        folder.mkdir()
        made = repacked(
            signed, folder, lambda c, _, b=bytes(changed): (c / manifest.SIGNATURE).write_bytes(b), rehash=False
        )
        assert _verify(made, _public(key))[0], at


def test_signature_of_one_package_is_none_of_another(tflites, signed, key, tmp_path):
    other = _pack(tflites, tmp_path / "out", name="other")
    text = text_of(signed, "manifest.intoto.jsonl")
    made = repacked(other, tmp_path, lambda c, _: (c / manifest.SIGNATURE).write_text(text), rehash=False)
    assert _verify(made, _public(key))[0] == ["the signature is about another manifest"]


def test_keygen_writes_a_secret_and_never_over_one(tmp_path, cli):
    done = cli("keygen", tmp_path / "key", "--json")
    assert done.json == {"key": str(tmp_path / "key"), "public_key": str(tmp_path / "key.pub")}
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    before = (tmp_path / "key").read_bytes()
    done = cli("keygen", tmp_path / "key")
    assert (done.code, done.out) == (2, "")
    assert "key: exists, and a key is never overwritten; name another" in done.err
    assert (tmp_path / "key").read_bytes() == before
    assert cli("keygen", tmp_path / "a" / "key").code == 2


def test_encrypted_key_opens_with_its_password_alone(tflites, tmp_path, monkeypatch, cli):
    monkeypatch.setenv(keys.PASSWORD, "correct horse")
    pipeline.keygen(tmp_path / "key")
    assert _verify(_pack(tflites, tmp_path / "out", sign=tmp_path / "key"), tmp_path / "key.pub")[0] == []
    arguments = (
        "package",
        tflites / "int8.tflite",
        "--platform",
        "zip",
        "--sign",
        tmp_path / "key",
        "-o",
        tmp_path / "b",
    )
    monkeypatch.setenv(keys.PASSWORD, "wrong")
    assert "the password of EDGEDL_KEY_PASSWORD does not open it" in cli(*arguments).err
    monkeypatch.delenv(keys.PASSWORD)
    done = cli(*arguments)
    assert done.code == 2
    assert "key: is encrypted; set EDGEDL_KEY_PASSWORD to its password" in done.err
    assert not (tmp_path / "b").exists()


def _write_ed448(tmp_path):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey

    key, pem = Ed448PrivateKey.generate(), form.Encoding.PEM
    (tmp_path / "448").write_bytes(key.private_bytes(pem, form.PrivateFormat.PKCS8, form.NoEncryption()))
    (tmp_path / "448.pub").write_bytes(key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo))


def test_keys_that_are_none_are_refused(tflites, signed, key, tmp_path, cli):
    _write_ed448(tmp_path)
    (tmp_path / "text").write_text("hello")
    signing = {
        "nowhere": "cannot be read: No such file or directory; a PEM file with an Ed25519 private key is needed",
        "text": "no private key in it; a PEM file with an Ed25519 private key is needed, such as edgedl keygen writes",
        "448": "holds a key for Ed448; a PEM file with an Ed25519 private key is needed",
        _public(key): "no private key in it",
    }
    for name, message in signing.items():
        arguments = ("package", tflites / "int8.tflite", "--platform", "zip", "-o", tmp_path / "out", "--sign")
        done = cli(*arguments, tmp_path / name)
        assert done.code == 2
        assert message in done.err
        assert not (tmp_path / "out").exists()
    checking = {
        "nowhere": "cannot be read",
        "text": "no public key in it; a PEM file with an Ed25519 public key is needed",
        "448.pub": "holds a key for Ed448; a PEM file with an Ed25519 public key is needed",
        key: "is a private key, which no verifier needs; name the public one, such as key.pub",
    }
    for name, message in checking.items():
        done = cli("verify", signed, "--key", tmp_path / name)
        assert (done.code, done.out) == (2, "")
        assert message in done.err


def test_without_cryptography_signatures_say_what_to_install(signed, key, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for call in (lambda: keys.load_private(key), lambda: packaging.verify(signed, _public(key))):
        with pytest.raises(
            PluginError, match=r"signatures need the package cryptography: .*pip install 'edgedl\[sign\]'"
        ):
            call()
    assert packaging.verify(signed)["verdict"] == "pass"  # hashes need no key


def test_pre_authentication_encoding_is_that_of_the_dsse_protocol():
    """The example of the protocol's own page, with our payload type in place of theirs."""
    assert signature.encoding(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"

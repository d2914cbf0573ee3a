"""The AAR: an APK takes it, its class does on a JVM what edgedl does in Python, and its store keeps bad models out.

LiteRT's Kotlin classes are doubles here (tests/wrappers/jvm); behind them runs LiteRT itself, in Python.
"""

import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from wrappers import cases, models

from edgedl import packaging, pipeline, preprocessing
from edgedl.errors import PluginError
from edgedl.packaging import classfile, jvm

HERE = Path(__file__).parent / "wrappers"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
JARS = ["/usr/share/java/kotlin-stdlib.jar", "/usr/share/java/com.android.json.jar"]
needs_compilers = pytest.mark.skipif(
    not (shutil.which("kotlinc") and shutil.which("javac")), reason=f"needs compilers: {jvm.INSTALL}"
)
needs_jvm = pytest.mark.skipif(
    not all(Path(jar).exists() for jar in JARS), reason="needs: apt-get install kotlin libandroid-json-java"
)
APP = """<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="com.example.app"
    android:versionCode="1" android:versionName="1">
  <uses-sdk android:minSdkVersion="26" android:targetSdkVersion="29" />
  <application android:label="app" android:hasCode="false" />
</manifest>
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with int8.tflite, data.toml, key, and signed packages: out/shapes-1.1.0.aar and .zip."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("android")
    models.write_tflite(folder / "int8.tflite", tf.int8)
    models.write_data(folder)
    pipeline.keygen(folder / "key")
    pack(folder, folder / "out", ["android", "zip"], version="1.1.0")
    return folder


def pack(folder, out, platforms=("zip",), **given):
    given = {"data": folder / "data.toml", "name": "shapes", "sign": folder / "key", "version": "1.1.0"} | given
    return pipeline.package(given.pop("artifact", folder / "int8.tflite"), platforms=platforms, out=out, **given)


@pytest.fixture(scope="module")
def unpacked(made):
    with zipfile.ZipFile(made / "out" / "shapes-1.1.0.aar") as archive:
        archive.extractall(made / "aar")
    return made / "aar"


@pytest.fixture(scope="module")
def app(made, unpacked):
    """Ask the classes of the AAR on a JVM: `app(*questions)` -> answers."""
    classes = made / "classes"
    classes.mkdir()
    with zipfile.ZipFile(unpacked / "classes.jar") as archive:
        archive.extractall(classes)
    main = (HERE / "jvm" / "Main.java").read_text().replace("__PACKAGE__", "edgedl.shapes")
    (made / "Main.java").write_text(main.replace("__MODEL__", "ShapesModel"))
    path = ":".join([str(classes), *JARS])
    doubles = [str(f) for folder in ("android", "com") for f in (HERE / "jvm" / folder).rglob("*.java")]
    flags = ["-proc:none", "-cp", path, "-d", str(classes)]
    subprocess.run(["javac", *jvm_flags("-J"), *flags, *doubles, str(made / "Main.java")], check=True)
    ready = [f"-Dpython={sys.executable}", f"-Dserver={HERE / 'litert.py'}", "-cp", path, "edgedl.shapes.Main"]

    def ask(*questions):
        (made / "questions").write_text("".join(json.dumps(q) + "\n" for q in questions))
        files = [str(unpacked / "assets"), str(made / "files"), str(made / "questions")]
        told = subprocess.run(["java", *jvm_flags(), *ready, *files], check=True, capture_output=True, text=True)
        lines = told.stdout.splitlines()
        return [json.loads(line) if line.startswith(("{", "[")) else line for line in lines]

    return ask


def jvm_flags(prefix=""):
    return [prefix + flag for flag in jvm.JVM]


def manifest_of(unpacked):
    return json.loads((unpacked / "assets/edgedl/shapes/manifest.json").read_text())


@needs_compilers
def test_aar_holds_model_manifest_and_classes(made, unpacked):
    found = manifest_of(unpacked)
    model = unpacked / "assets/edgedl/shapes" / found["artifact"]["file"]
    assert model.read_bytes() == (made / "int8.tflite").read_bytes()
    assert 'package="edgedl.shapes"' in (unpacked / "AndroidManifest.xml").read_text()
    with zipfile.ZipFile(unpacked / "classes.jar") as archive:
        names = {Path(name).stem for name in archive.namelist() if name.startswith("edgedl/shapes/")}
    assert {"ShapesModel", "ModelStore", "Steps", "Samples"} <= names
    assert not any(name.startswith("android") for name in names)
    with zipfile.ZipFile(made / "out" / "shapes-1.1.0.aar") as archive:
        entry = archive.getinfo(f"assets/edgedl/shapes/{found['artifact']['file']}")
    assert entry.compress_type == zipfile.ZIP_STORED
    assert packaging.verify(made / "out" / "shapes-1.1.0.aar", made / "key.pub")["verdict"] == "pass"


@needs_compilers
def test_a_signed_aar_adds_little_to_the_model(made):
    """With ModelStore, every step of preprocessing and samples of bitmaps; compilers differ in some bytes."""
    aar, model = (made / name for name in ("out/shapes-1.1.0.aar", "int8.tflite"))
    added = len(zlib.compress(aar.read_bytes(), 9)) - len(zlib.compress(model.read_bytes(), 9))
    assert added <= 19_600


@needs_compilers
def test_class_files_hold_nothing_that_android_does_not_read(unpacked):
    with zipfile.ZipFile(unpacked / "classes.jar") as archive:
        classes = {name: archive.read(name) for name in archive.namelist()}
    assert {int.from_bytes(c[6:8], "big") for c in classes.values()} == {49}
    for name, text in classes.items():
        assert classfile.stripped(text) == text, name


def test_class_files_of_later_versions_are_refused():
    with pytest.raises(ValueError, match="a constant of kind 18, which class files of Java 5 do not have"):
        classfile.stripped(b"\xca\xfe\xba\xbe\0\0\0\x34\0\x02\x12\0\0\0\0")


@needs_compilers
def test_an_apk_takes_the_aar_with_the_model_where_it_is_mapped(unpacked, tmp_path):
    if not (FRAMEWORK.exists() and all(map(shutil.which, ("aapt2", "zipalign", "apksigner", "keytool")))):
        pytest.skip("needs: apt-get install aapt apksigner zipalign android-framework-res default-jdk-headless")
    (tmp_path / "AndroidManifest.xml").write_text(APP)
    key = ["-storepass", "testing", "-keyalg", "EC", "-alias", "a", "-dname", "CN=a", "-validity", "9000"]
    link = ["aapt2", "link", "-o", "raw.apk", "-I", FRAMEWORK, "--manifest", "AndroidManifest.xml", "-0", ".tflite"]
    for command in (
        [*link, "-A", unpacked / "assets"],
        ["zipalign", "-p", "4", "raw.apk", "aligned.apk"],
        ["keytool", *jvm_flags("-J"), "-genkeypair", "-keystore", "app.p12", "-storetype", "PKCS12", *key],
        ["apksigner", "sign", "--ks", "app.p12", "--ks-pass", "pass:testing", "--out", "app.apk", "aligned.apk"],
        ["apksigner", "verify", "--print-certs", "app.apk"],
        ["zipalign", "-c", "-v", "4", "app.apk"],
    ):
        subprocess.run(list(map(str, command)), cwd=tmp_path, check=True, capture_output=True)
    listed = subprocess.run(["aapt2", "dump", "packagename", "app.apk"], cwd=tmp_path, capture_output=True, text=True)
    assert listed.stdout.strip() == "com.example.app"
    found = manifest_of(unpacked)
    with zipfile.ZipFile(tmp_path / "app.apk") as archive:
        entry = archive.getinfo(f"assets/edgedl/shapes/{found['artifact']['file']}")
        assert entry.compress_type == zipfile.ZIP_STORED
        assert (
            archive.read(f"assets/edgedl/shapes/{found['artifact']['file']}")
            == (unpacked / "assets/edgedl/shapes" / found["artifact"]["file"]).read_bytes()
        )


@needs_compilers
@needs_jvm
def test_the_class_does_on_a_jvm_what_edgedl_does(app, made):
    asked = cases.make()
    pixels = np.random.default_rng(3).integers(0, 256, (20, 15, 3), dtype=np.uint8)
    sample = {"data": pixels.reshape(-1).tolist(), "shape": [20, 15, 3], "type": "uint8"}
    flat = sample | {"shape": [900]}
    *steps, cpu, gpu, predicted, refused, bitmap = app(
        *(["steps", {"steps": c["steps"], "sample": c["sample"]}] for c in asked),
        ["open", "CPU"], ["open", "GPU"], ["predict", sample], ["predict", flat], ["bitmap"],
    )  # fmt: skip
    for case, found in zip(asked, steps, strict=True):
        assert found == case["expected"], case["steps"]
    assert (cpu["accelerator"], cpu["fallback"], cpu["version"], cpu["passed"]) == ("CPU", "null", "1.1.0", True)
    assert cpu["labels"] == models.LABELS
    assert cpu["measured"] == 0
    assert (gpu["accelerator"], gpu["passed"]) == ("CPU", True)
    assert gpu["fallback"] == "GPU: no such accelerator in a test"
    expected = outputs_of(made, pixels)
    assert predicted["values"] == pytest.approx(expected.tolist(), abs=1e-7)
    assert predicted["best"] == models.LABELS[int(expected.argmax())]
    assert refused.startswith("refused: preprocess step 1: needs an RGB image, got shape [900]")
    assert bitmap == {"data": [1, 128, 255, 16, 32, 48], "shape": [2, 1, 3], "type": "uint8"}


@needs_compilers
@needs_jvm
def test_the_labels_of_top_on_a_jvm(app):
    asked = [["top", {"labels": case["labels"], "values": case["values"]}] for case in cases.TOP]
    for case, found in zip(cases.TOP, app(*asked), strict=True):
        assert [(label, pytest.approx(value)) for label, value in found] == case["expected"]


def outputs_of(folder, pixels):
    """What edgedl's preprocessing and LiteRT give, real values."""
    from ai_edge_litert.interpreter import Interpreter

    steps = preprocessing.parse(manifest_of(folder / "aar")["preprocessing"], "test")
    values = preprocessing.apply(steps, pixels[None])
    model = Interpreter(str(folder / "int8.tflite"))
    model.allocate_tensors()
    (into,), (out,) = model.get_input_details(), model.get_output_details()
    scale, zero_point = into["quantization"]
    codes = np.clip(np.rint(values / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)
    model.set_tensor(into["index"], codes)
    model.invoke()
    scale, zero_point = out["quantization"]
    return (model.get_tensor(out["index"])[0].astype(np.float32) - zero_point) * np.float32(scale)


def rewrite(package, out, change):
    """A copy of a package whose files `change` has edited, by name."""
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out


def flip(name, at=-1):
    def change(files):
        content = bytearray(files[name])
        content[at] ^= 1
        files[name] = bytes(content)

    return change


@needs_compilers
@needs_jvm
def test_the_store_installs_what_holds_and_keeps_the_rest_out(app, made):
    old, aar = made / "out" / "shapes-1.1.0.zip", made / "out" / "shapes-1.1.0.aar"
    (new,) = pack(made, made / "new", version="1.2.0")
    pipeline.keygen(made / "other")
    (foreign,) = pack(made, made / "foreign", sign=made / "other", version="1.3.0")
    (unsigned,) = pack(made, made / "unsigned", sign=None, version="1.3.0")
    (older,) = pack(made, made / "older", version="1.0.9")
    (next_major,) = pack(made, made / "major", version="2.0.0")
    (named,) = pack(made, made / "named", name="kinds", version="1.3.0")
    changed = rewrite(new, made / "changed.zip", flip("shapes.tflite"))
    retold = rewrite(new, made / "retold.zip", flip("manifest.json", 3))
    bare = rewrite(new, made / "bare.zip", lambda files: files.pop("labels.txt"))
    answers = app(
        ["stored"], ["install", str(new)], ["stored"],
        *(["install", str(p)] for p in (foreign, unsigned, older, next_major, named, changed, retold, bare)),
        ["install", str(made / "key")],
        ["stored"], ["install", str(aar)], ["install", str(old)], ["stored"],
    )  # fmt: skip
    bundled, passed, stored, *refused = answers[:12]
    assert (bundled["version"], bundled["why"]) == ("1.1.0", "null")
    assert passed == {"passed": True}
    assert (stored["version"], stored["passed"], stored["why"]) == ("1.2.0", True, "null")
    for told, why in zip(
        refused,
        [
            "not signed with the key of this app",
            "manifest.intoto.jsonl is missing",
            "older than the one that this app came with",
            "version 2.x, this app takes 1.x",
            "it is another model",
            "shapes.tflite was changed",
            "not signed with the key of this app",
            "labels.txt is missing",
            "",
        ],
        strict=True,
    ):
        assert told.startswith("refused: ") and told.endswith(why), told
    still, again, back, last = answers[12:]
    assert still["version"] == "1.2.0"
    assert (again, back) == ({"passed": True}, {"passed": True})
    assert last["version"] == "1.1.0"
    kept = sorted(p.name for p in (made / "files/edgedl/shapes").iterdir())
    assert len(kept) == 2
    assert "current" in kept


@needs_compilers
@needs_jvm
def test_the_store_falls_back_on_the_bundled_model(app, made):
    (new,) = pack(made, made / "fall", version="1.4.0")
    assert app(["install", str(new)], ["stored"])[1]["version"] == "1.4.0"
    folder = made / "files/edgedl/shapes"
    model = folder / (folder / "current").read_text() / "shapes.tflite"
    model.write_bytes(model.read_bytes()[:-1])
    (stored,) = app(["stored"])
    assert (stored["version"], stored["why"], stored["passed"]) == ("1.1.0", "shapes.tflite was changed", True)
    assert app(["clear"], ["stored"])[1]["why"] == "null"


@needs_compilers
@needs_jvm
def test_the_store_knows_ed25519(app):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    questions, expected = [], []
    for seed in range(3):
        key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        message = b"edgedl" * seed
        signature = key.sign(message)
        order = 2**252 + 27742317777372353535851937790883648493
        other = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
        for signed, said, holds in (
            (signature, message, True),
            (signature, message + b"!", False),
            (signature[:31] + bytes([signature[31] ^ 1]) + signature[32:], message, False),
            (signature[:32] + other, message, False),  # the same number, more than the order: RFC 8032, 5.1.7
            (signature[:-1], message, False),
        ):
            public = key.public_key().public_bytes_raw()
            questions.append(["verify", {"key": public.hex(), "signature": signed.hex(), "message": said.hex()}])
            expected.append("true" if holds else "false")
    assert app(*questions) == expected


@needs_compilers
def test_aar_without_a_key_or_steps_has_neither_store_nor_steps_and_is_the_same_twice(made, tmp_path):
    (first,), (second,) = (
        pack(made, tmp_path / n, ["android"], data=None, sign=None, name="plain") for n in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive, zipfile.ZipFile(archive.open("classes.jar")) as classes:
        names = {Path(name).stem for name in classes.namelist()}
    assert {"PlainModel", "Runner"} <= names
    assert not {"ModelStore", "Store", "Ed25519", "Steps"} & names


def test_aar_needs_compilers_and_says_which(made, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        PluginError, match=r"there is no kotlinc here. Try: apt-get install kotlin default-jdk-headless"
    ):
        pack(made, tmp_path / "out", ["android"], sign=None)
    assert not (tmp_path / "out").exists()

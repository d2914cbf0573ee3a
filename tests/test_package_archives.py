"""Archives and platforms: every kind is packed twice alike, verified alike, and refused alike."""

import gzip
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from fences import fences
from packages import TgzPackager, manifest_of, repacked, tgz, unpacked

from edgedl import packaging, pipeline, plugins
from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl.packaging import archives, extraction
from edgedl.packaging.archives import stored_tgz
from edgedl.types import Layout


@pytest.fixture(scope="module")
def own_platform():
    """`--platform tests` is TgzPackager."""
    with pytest.MonkeyPatch.context() as patch:
        real = plugins.load
        patch.setattr(plugins, "load", lambda group, name: TgzPackager() if name == "tests" else real(group, name))
        yield


@pytest.fixture(scope="module")
def package(tflites, own_platform, tmp_path_factory):
    return _pack(tflites, tmp_path_factory.mktemp("out"))


def _pack(tflites, out, **given):
    return pipeline.package(tflites / "int8.tflite", platforms=["tests"], out=out, **given)[0]


def _findings(package):
    found = packaging.verify(package)
    assert found["verdict"] == ("fail" if found["findings"] else "pass")
    return found["findings"]


def test_platform_lays_out_and_the_rest_is_the_same(tflites, own_platform, package, tmp_path):
    said = []
    made = pipeline.package(tflites / "int8.tflite", platforms=["tests", "zip"], out=tmp_path / "out", said=said.append)
    assert [p.name for p in made] == ["int8.tgz", "int8-1.0.0.zip"]
    assert "a note" in said
    tree = unpacked(made[0], tmp_path / "tree")
    one, two = manifest_of(made[0]), manifest_of(made[1])
    assert (tree / "package/copy.bin").read_bytes() == (tree / "package/model/int8.tflite").read_bytes()
    assert sorted(one["package"]["files"]) == ["package/copy.bin", "package/package.json"]
    assert two["package"] == {"platform": "zip", "files": {}}
    assert {k: v for k, v in one.items() if k != "package"} == {k: v for k, v in two.items() if k != "package"}
    assert made[0].read_bytes() == package.read_bytes()
    assert _findings(made[0]) == []


def test_tgz_is_what_tar_and_gzip_read(package, tmp_path):
    plain = gzip.decompress(package.read_bytes())
    (tmp_path / "p.tar").write_bytes(plain)
    with tarfile.open(tmp_path / "p.tar", "r:") as archive:
        entries = archive.getmembers()
    assert [e.name for e in entries] == sorted(e.name for e in entries)
    assert {(e.mode, e.uid, e.mtime, e.type) for e in entries} == {(0o644, 0, stored_tgz.DATE_S, tarfile.REGTYPE)}
    assert package.stat().st_size < len(plain) + 100 + 5 * (len(plain) // 65_535)


def test_tgz_of_files_larger_than_a_block_and_of_none(tmp_path):
    tree = tmp_path / "tree"
    (tree / "deep" / ("d" * 90)).mkdir(parents=True)
    contents = {"a": b"", f"deep/{'d' * 90}/{'f' * 60}": b"\0\1" * 100_000, "deep/b": b"x" * 65_535}
    for name, content in contents.items():
        (tree / name).write_bytes(content)
    archives.write(tree, tmp_path / "p.tgz")
    with tarfile.open(tmp_path / "p.tgz") as archive:
        assert {e.name: archive.extractfile(e).read() for e in archive} == contents
    folder = tmp_path / "again"
    folder.mkdir()
    assert extraction.extract(tmp_path / "p.tgz", folder) == []
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(contents)


def test_tgz_refuses_a_path_that_ustar_cannot_hold(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ("x" * 101)).touch()
    with pytest.raises(InputError, match=r"too long a path for a \.tgz; choose a shorter --name"):
        archives.write(tmp_path / "tree", tmp_path / "p.tgz")


def test_verify_refuses_one_byte_of_a_tgz_changed_anywhere(package, tmp_path):
    whole = package.read_bytes()
    for at in (*range(14), *range(14, len(whole), 509), *range(len(whole) - 16, len(whole))):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        (tmp_path / "p.tgz").write_bytes(changed)
        assert _findings(tmp_path / "p.tgz"), at
    for keep in (20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "p.tgz").write_bytes(whole[:keep])
        assert _findings(tmp_path / "p.tgz"), keep
    (tmp_path / "p.tgz").write_bytes(whole + b"\0")
    assert "changed or packed again" in _findings(tmp_path / "p.tgz")[0]


def test_verify_refuses_a_tgz_packed_again(package, tmp_path):
    tree = unpacked(package, tmp_path / "tree")
    with tarfile.open(tmp_path / "p.tgz", "w:gz", compresslevel=0) as archive:
        archive.add(tree / "package", "package")
    assert "'package' is no plain file: a link, a folder, a device or an odd name" in _findings(tmp_path / "p.tgz")
    plain = gzip.decompress(package.read_bytes())
    (tmp_path / "p.tgz").write_bytes(gzip.compress(plain))
    assert "edgedl writes nothing compressed" in _findings(tmp_path / "p.tgz")[0]
    (tmp_path / "p.tgz").write_bytes(gzip.compress(plain, 0))
    assert "changed or packed again" in _findings(tmp_path / "p.tgz")[0]


def test_verify_names_what_is_wrong_with_a_platforms_own_files(package, tmp_path):
    def change(content, _):
        (content.parent / "copy.bin").write_bytes(b"other")
        (content.parent / "package.json").unlink()
        (content.parent / "more.js").touch()

    assert _findings(repacked(package, tmp_path, change, rehash=False)) == [
        "'package/package.json' is missing",
        "'package/more.js' is not in the manifest",
        "'package/copy.bin' was changed: its SHA-256 is not the manifest's",
    ]


def _link(target):
    info = tarfile.TarInfo("evil")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("../evil", "climbs out of the folder"),
        ("a/../../evil", "climbs out of the folder"),
        ("/evil", "climbs out of the folder"),
        (_link("/etc/passwd"), "is no plain file"),
        ("evil\x1b[31m", "is no plain file"),
    ],
)
def test_verify_refuses_a_hostile_tgz_and_extracts_nothing(tmp_path, monkeypatch, entry, why):
    bad = tgz(tmp_path / "p.tgz", [("package/manifest.json", b"{}"), (entry, b"")])
    with bad.open("ab") as f:
        f.write(bytes(20_000))  # so that it is larger than what it unpacks to
    tree = tmp_path / "deep" / "tree"
    tree.mkdir(parents=True)
    findings = extraction.extract(bad, tree)
    assert why in findings[0]
    assert "\x1b" not in findings[0]
    assert not list(tree.iterdir())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "p.tgz", "tree"]
    assert _findings(bad) == findings


def test_verify_refuses_a_gzip_bomb_before_it_is_unpacked(tmp_path):
    bomb = tgz(tmp_path / "p.tgz", [("package/manifest.json", bytes(5_000_000))])
    (finding,) = _findings(bomb)
    assert finding == f"unpacks to more than its own {bomb.stat().st_size:,} bytes; edgedl writes nothing compressed"


def test_verify_refuses_two_manifests_and_a_file_that_is_a_folder(package, tmp_path):
    two = repacked(package, tmp_path, lambda c, _: shutil.copy(c / "manifest.json", c / "golden"), rehash=False)
    assert "2 files are called manifest.json, one is allowed" in _findings(two)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("a", b"")
        archive.writestr("a/b", b"")
    assert _findings(tmp_path / "p.zip") == ["'a' is a file and a folder"]


def test_verify_refuses_what_is_no_archive(tmp_path, cli):
    for name in ("p.tgz", "p.whl", "p.txt"):
        (tmp_path / name).write_text("hello")
        done = cli("verify", tmp_path / name)
        assert (done.code, done.out) == (2, "")
        assert "no package: neither zip nor gzip; write one with edgedl package" in done.err


@pytest.mark.parametrize(
    "file", ["model/labels.txt", "model/manifest.json", "manifest.json", "model/manifest.intoto.jsonl"]
)
def test_packager_that_writes_what_is_not_its_own_is_refused(tflites, tmp_path, monkeypatch, file):
    class Meddling:
        platform, formats = "meddling", ()

        def lay_out(self, content, tree):
            (tree / file).parent.mkdir(exist_ok=True)
            (tree / file).touch()
            return Layout(file="x.zip", content="model")

    real = plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: Meddling() if name == "meddling" else real(group, name))
    (tmp_path / "l.txt").write_text("a\nb\nc\n")
    with pytest.raises(EdgedlError, match=rf"packager 'meddling' writes '{file}', which edgedl itself writes; report"):
        pipeline.package(
            tflites / "int8.tflite", platforms=["meddling"], out=tmp_path / "out", labels=tmp_path / "l.txt"
        )
    assert not (tmp_path / "out").exists()


def test_platform_that_does_not_take_a_format_says_so(tflites, own_platform, tmp_path, monkeypatch):
    monkeypatch.setattr(TgzPackager, "formats", ("onnx",))
    with pytest.raises(
        UnsupportedError, match=r"platform 'tests' takes onnx, this is tflite; export it with --format onnx"
    ):
        _pack(tflites, tmp_path / "out")


def test_package_json_lists_the_files(tflites, tmp_path, cli):
    done = cli("package", tflites / "int8.tflite", "--platform", "zip", "-o", tmp_path / "out", "--json")
    assert json.loads(done.out) == {"packages": [str(tmp_path / "out/int8-1.0.0.zip")]}


def test_packager_of_the_plugins_readme_is_one(tflites, tmp_path, monkeypatch):
    (text,) = (f.text for f in fences(Path(__file__).parents[1] / "plugins/README.md") if "class Apk" in f.text)
    names = {"Layout": Layout}
    exec(text, names)  # noqa: S102  our own text
    real = plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: names["Apk"]() if name == "apk" else real(group, name))
    said = []
    (made,) = pipeline.package(tflites / "int8.tflite", platforms=["apk"], out=tmp_path / "out", said=said.append)
    assert made.name == "int8-1.0.0.zip"
    assert "unpack it" in said
    assert _findings(made) == []
    with zipfile.ZipFile(made) as archive:
        assert archive.read("HOW_TO.txt") == b"Load int8.tflite."
        assert "assets/model/manifest.json" in archive.namelist()

"""Verifying: what `edgedl package` wrote passes, and nothing that was changed is believed, run or extracted."""

import copy
import shutil
import stat
import struct
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from packages import manifest_of, repacked, unpacked

from edgedl import artifacts, packaging, pipeline, worker
from edgedl.errors import PluginError
from edgedl.packaging import archives, extraction, schema
from edgedl.packaging.archives.stored_zip import write

LABELS = ("round", "square", "other")
SCALE = {"op": "scale", "factor": 0.5, "offset": 1.0}


@pytest.fixture(scope="module")
def files(tflites):
    return tflites


@pytest.fixture(scope="module")
def package(files, tmp_path_factory):
    """int8.tflite with labels, packed."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    labels = str(folder / "labels.txt")
    return pipeline.package(files / "int8.tflite", platforms=["zip"], out=folder / "out", labels=labels)[0]


def _verdicts(found):
    return {check["name"]: check["verdict"] for check in found["checks"]}


def test_verify_passes_what_pack_wrote(package):
    found = packaging.verify(package)
    jsonschema.Draft202012Validator(schema.load("verify")).validate(found)
    assert found["verdict"] == "pass"
    assert found["findings"] == []
    assert found["package"] == str(package)
    steps = {"archive", "manifest", "files", "layout", "tensors", "golden"}
    assert _verdicts(found) == {"signature": "info"} | dict.fromkeys(steps, "pass")
    check = found["checks"][-1]
    assert (check["measured"], check["limit"], check["unit"], check["method"]) == (0, 1, "lsb", "measured-host")


def test_verify_exit_codes(package, tmp_path, cli):
    done = cli("verify", package, "--json")
    assert (done.code, done.json["verdict"]) == (0, "pass")
    changed = repacked(package, tmp_path, lambda c, _: (c / "labels.txt").write_text("no\n"), rehash=False)
    done = cli("verify", changed)
    assert (done.code, done.out) == (6, "fail\n")
    assert "'labels.txt' was changed: its SHA-256 is not the manifest's" in done.err
    (tmp_path / "text.zip").write_text("hello")
    for path, message in (
        (tmp_path / "none.zip", "no such file"),
        (tmp_path, "is a folder; a package is one file"),
        (tmp_path / "text.zip", "no package: neither zip nor gzip; write one with edgedl package"),
    ):
        done = cli("verify", path)
        assert (done.code, done.out) == (2, "")
        assert message in done.err


def test_verify_writes_junit(package, tmp_path, cli):
    def cases(path, *given):
        done = cli("verify", path, "--junit", tmp_path / "j.xml", *given)
        suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
        return done.code, {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}

    code, passed = cases(package)
    assert code == 0
    assert passed.keys() == {"archive", "manifest", "files", "layout", "tensors", "golden"}  # not signed: a property
    assert {tag for tags in passed.values() for tag in tags} == {"system-out"}
    changed = repacked(package, tmp_path, lambda c, _: (c / "labels.txt").write_text("x\n"), rehash=False)
    done = cli("verify", changed, "--junit", tmp_path / "j.xml")
    assert (done.code, done.err.strip()) == (2, f"Error: {tmp_path / 'j.xml'}: exists; --force overwrites it")
    code, failed = cases(changed, "--force")
    assert code == 6
    assert (failed["archive"], failed["files"], failed["golden"]) == (["system-out"], ["failure"], ["failure"])
    assert "SHA-256 is not the manifest" in (tmp_path / "j.xml").read_text()


def test_verify_refuses_one_byte_changed_anywhere(package, tmp_path):
    whole = package.read_bytes()
    for at in (*range(0, len(whole), 151), *range(len(whole) - 22, len(whole))):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        (tmp_path / "p.zip").write_bytes(changed)
        found = packaging.verify(tmp_path / "p.zip")
        assert found["verdict"] == "fail", at
        assert all("\n" not in line and line for line in found["findings"])


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_verify_refuses_a_truncated_package(package, tmp_path, keep):
    whole = package.read_bytes()
    (tmp_path / "p.zip").write_bytes(whole[: int(len(whole) * keep)])
    found = packaging.verify(tmp_path / "p.zip")
    assert found["verdict"] == "fail"
    assert found["findings"]
    assert _verdicts(found)["golden"] == "unchecked"


@pytest.mark.parametrize("file", ["int8.tflite", "labels.txt", "preprocessing.json", "golden/output_0.npy"])
def test_verify_names_the_file_that_was_changed(package, tmp_path, file):
    def change(content, _):
        changed = bytearray((content / file).read_bytes())
        changed[-2] ^= 1
        (content / file).write_bytes(changed)

    found = packaging.verify(repacked(package, tmp_path, change, rehash=False))
    assert found["verdict"] == "fail"
    assert found["findings"] == [f"{file!r} was changed: its SHA-256 is not the manifest's"]
    assert _verdicts(found)["golden"] == "unchecked"  # a file that was changed is not run


def test_verify_names_what_is_missing_and_what_is_extra(package, tmp_path):
    def change(content, _):
        (content / "labels.txt").rename(content / "malware.sh")

    found = packaging.verify(repacked(package, tmp_path, change, rehash=False))
    assert found["findings"] == ["'labels.txt' is missing", "'malware.sh' is not in the manifest"]
    tree = tmp_path / "c"
    unpacked(package, tree)
    (tree / "x.dist-info").mkdir()
    (tree / "x.dist-info" / "RECORD").write_text("no list of a wheel")
    archives.write(tree, tmp_path / f"again{package.suffix}")
    found = packaging.verify(tmp_path / f"again{package.suffix}")
    assert found["findings"] == ["'x.dist-info/RECORD' is not in the manifest"]
    found = packaging.verify(repacked(package, tmp_path / "b", lambda c, m: (c / "golden/input_0.npy").unlink()))
    assert found["findings"] == ["manifest.json: 'golden/input_0.npy' is not among the files"]


def test_verify_refuses_a_package_packed_again_by_another_tool(package, tmp_path):
    content = unpacked(package, tmp_path / "content")
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(content.rglob("*")):
            archive.write(file, file.relative_to(content)) if file.is_file() else None
    found = packaging.verify(tmp_path / "p.zip")
    assert [name for name, verdict in _verdicts(found).items() if verdict == "fail"] == ["layout"]
    assert "changed or packed again: edgedl writes this content as another archive" in found["findings"][0]


def _entry(name, mode=0, content=b"x", **fields):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry, content


HOSTILE = {
    "climbs out of the folder": [
        _entry("../evil"), _entry("a/../../evil"), _entry("/evil"), _entry("C:evil"), _entry("..\\evil"),
    ],
    "is no plain file": [
        _entry("evil", stat.S_IFLNK | 0o777, b"/etc/passwd"), _entry("folder/"), _entry("a//b"), _entry("./evil"),
        _entry("evil\x1b[31m"), _entry("golden/\u202eevil"), _entry("evil", stat.S_IFIFO),
    ],
    "is there twice": [_entry("labels.txt"), _entry("LABELS.TXT")],
    "more than 200 times as many": [_entry("zeros", content=bytes(3_000_000), compress_type=zipfile.ZIP_DEFLATED)],
    "only store and deflate are read": [_entry("b", compress_type=zipfile.ZIP_BZIP2)],
}  # fmt: skip


@pytest.mark.parametrize(("why", "entry"), [(why, entry) for why, entries in HOSTILE.items() for entry in entries])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_verify_refuses_a_hostile_entry_and_extracts_nothing(package, tmp_path, monkeypatch, why, entry):
    bad = tmp_path / "p.zip"
    shutil.copy(package, bad)
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(copy.copy(entry[0]), entry[1])
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    monkeypatch.setattr(worker.pool(), "scratch", lambda name: folder)
    found = packaging.verify(bad)
    assert found["verdict"] == "fail"
    assert why in found["findings"][0]
    assert "\x1b" not in found["findings"][0]
    assert not list(folder.iterdir())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "folder", "p.zip"]
    assert not Path("/evil").exists()
    assert set(_verdicts(found).values()) == {"fail", "unchecked"}


def test_verify_refuses_sizes_that_lie(package, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "MAX_BYTES", 2000)
    assert "bytes, at most 2,000 are unpacked" in packaging.verify(package)["findings"][0]
    monkeypatch.undo()
    monkeypatch.setattr(extraction, "MAX_FILES", 3)
    assert packaging.verify(package)["findings"] == ["9 files, at most 3 are unpacked"]
    monkeypatch.undo()
    whole = bytearray(package.read_bytes())
    at = whole.rindex(b"PK\x01\x02")  # the last entry's: compressed size at 20, size at 24
    for field, message in (((24,), "sbom.cdx.json: holds"), ((20, 24), "entries overlap")):
        changed = bytearray(whole)
        for place in field:
            struct.pack_into("<I", changed, at + place, 900_000)
        (tmp_path / "p.zip").write_bytes(changed)
        assert message in packaging.verify(tmp_path / "p.zip")["findings"][0]


def _set(*keys, to):
    def change(_, found):
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = to

    return change


def _drop(*keys):
    def change(_, found):
        for key in keys[:-1]:
            found = found[key]
        del found[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("manifest_version", to="2.0"), "manifest.json has version '2.0', this edgedl reads 1.x; upgrade edgedl"),
        (_drop("manifest_version"), "manifest.json: manifest_version is missing"),
        (_drop("golden"), "manifest.json: golden is missing"),
        (_drop("artifact", "format"), "manifest.json: artifact.format is missing"),
        (_set("labels", to="round"), "manifest.json: labels is 'round', it must be array"),
        (_set("outputs", 0, "shape", to=[1, "x"]), "outputs[0].shape[1] is 'x', it must be integer or null"),
        (_set("artifact", "size_bytes", to=True), "artifact.size_bytes is True, it must be integer"),
        (_set("artifact", "size_bytes", to=1), "the artifact has"),
        (_set("inputs", to=[]), "inputs has 0 entries, it must have at least 1"),
        (_set("embedded", to=[SCALE]), "manifest.json: embedded is not that of lineage"),
        (_set("inputs", 0, "name", to="picture"), "golden.inputs is for ['image'], inputs are ['picture']"),
        (_set("golden", "inputs", "image", to="x.npy"), "'x.npy' is not among the files"),
        (_set("golden", "tolerance", to={}), "golden.tolerance is for []"),
        (_set("golden", "runtimes", "tflite-runtime", "tolerance", to={}), "'tflite-runtime'.tolerance is for []"),
        (_set("golden", "runtimes", "tflite-runtime", "outputs", to={}), "'tflite-runtime'.outputs is for []"),
        (_set("outputs", 0, "scale", to=[10**400]), "is not readable as JSON: a number of 401 digits"),
        (_set("outputs", 0, "scale", to=[10**19]), "scale (1000"),
        (_set("report", to="../report.json"), "'../report.json' is not among the files"),
    ],
)  # fmt: skip
def test_verify_refuses_a_manifest_that_does_not_hold(package, tmp_path, change, message):
    found = packaging.verify(repacked(package, tmp_path, change))
    assert found["verdict"] == "fail"
    assert message in found["findings"][0]
    assert _verdicts(found)["golden"] == "unchecked"


@pytest.mark.parametrize("text", ["", "[]", "{nonsense", '{"a": NaN}', '{"a": 1e400}', "[" * 100_000, "\udcff"])
def test_verify_refuses_a_manifest_that_is_no_json(package, tmp_path, text):
    content = unpacked(package, tmp_path / "content")
    (content / "manifest.json").write_text(text, errors="surrogateescape")
    write(content, tmp_path / "p.zip")
    found = packaging.verify(tmp_path / "p.zip")
    assert found["findings"]
    assert all(line.startswith("manifest.json") for line in found["findings"])
    (content / "manifest.json").unlink()
    write(content, tmp_path / "p.zip")
    assert packaging.verify(tmp_path / "p.zip")["findings"] == ["manifest.json is missing"]


def test_verify_reads_a_later_minor_version(package, tmp_path):
    def change(_, found):
        found["manifest_version"] = "1.7"
        found["licence"] = "MIT"
        found["artifact"]["arena_bytes"] = 4096

    assert packaging.verify(repacked(package, tmp_path, change))["verdict"] == "pass"


def test_verify_compares_labels_and_preprocessing_with_their_files(package, tmp_path):
    def change(content, _):
        (content / "labels.txt").write_text("round\nother\nsquare\n")
        (content / "preprocessing.json").write_text('{"preprocessing": [{"op": "scale"}], "embedded": []}')

    assert packaging.verify(repacked(package, tmp_path, change))["findings"] == [
        "labels.txt has other labels than the manifest",
        "preprocessing.json has other steps than the manifest",
    ]


@pytest.mark.parametrize(("steps", "verdict"), [(1, "pass"), (2, "fail")])
def test_verify_replays_within_the_tolerance(package, tmp_path, steps, verdict):
    scale = manifest_of(package)["outputs"][0]["scale"][0]

    def change(content, _):
        path = content / "golden/output_0.npy"
        values = np.load(path)
        values[-1, 0] += steps * scale
        np.save(path, values)

    found = packaging.verify(repacked(package, tmp_path, change))
    assert (found["verdict"], found["checks"][-1]["measured"]) == (verdict, steps)
    if verdict == "fail":
        (line,) = found["findings"]
        assert "2 lsb off on litert 2" in line
        assert "1 lsb are allowed" in line


def test_verify_finds_another_model_behind_good_hashes(files, package, tmp_path):
    def swap(content, found):
        shutil.copy(files / "float.tflite", content / "int8.tflite")
        found["artifact"]["size_bytes"] = (files / "float.tflite").stat().st_size

    def ruin(content, found):
        (content / "int8.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
        found["artifact"]["size_bytes"] = 108

    def rescale(_, found):
        found["inputs"][0]["scale"] = [0.5]

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = packaging.verify(repacked(package, tmp_path / "a", swap))
    assert "input 'image': the artifact has float32 (1, 8, 8, 1), the manifest says int8" in found["findings"][0]
    found = packaging.verify(repacked(package, tmp_path / "b", ruin))
    assert found["findings"][0].startswith("the artifact does not load: ")
    found = packaging.verify(repacked(package, tmp_path, rescale))
    assert "the manifest says int8 (any, 8, 8, 1), scale (0.5,)" in found["findings"][0]


@pytest.mark.parametrize("shape", [(4, 2), (3, 3)])
def test_verify_finds_golden_files_of_another_shape(package, tmp_path, shape):
    def change(content, _):
        np.save(content / "golden/output_0.npy", np.zeros(shape, np.float32))

    assert "not comparable: another shape" in packaging.verify(repacked(package, tmp_path, change))["findings"][0]


def test_verify_loads_no_python_objects(package, tmp_path):
    def change(content, _):
        np.save(content / "golden/output_0.npy", np.array([object], dtype=object), allow_pickle=True)

    (line,) = packaging.verify(repacked(package, tmp_path, change))["findings"]
    assert line.startswith("the golden inputs cannot be replayed: Object arrays cannot be loaded")


def test_verify_without_a_runtime_passes_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "runtimes", lambda format_: [])
    with pytest.raises(PluginError, match="hashes hold, the golden inputs cannot be replayed: no plugin provides"):
        packaging.verify(package)
    changed = repacked(package, tmp_path, lambda c, _: (c / "labels.txt").unlink(), rehash=False)
    assert packaging.verify(changed)["findings"] == ["'labels.txt' is missing"]


# ---- the schema reader --------------------------------------------------------------------------------------------


def _rules(rule):
    yield rule
    for part in (*rule.get("properties", {}).values(), *rule.get("$defs", {}).values()):
        yield from _rules(part)
    for key in ("items", "additionalProperties"):
        if isinstance(rule.get(key), dict):
            yield from _rules(rule[key])


def test_schema_of_the_manifest_has_no_keyword_that_is_not_read():
    for rule in _rules(schema.load("package_manifest")):
        assert set(rule) <= schema.KEYWORDS | schema.TALK, rule
        assert not isinstance(rule.get("additionalProperties"), bool), rule


def test_schema_problems_are_those_of_jsonschema(package):
    rules, good = schema.load("package_manifest"), manifest_of(package)
    reference = jsonschema.Draft202012Validator(rules)
    assert schema.problems(good, rules) == []

    def places(value, path=()):
        yield path
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in pairs:
            yield from places(part, (*path, key))

    tried = 0
    for path in places(good):
        for wrong in (None, "", "x", -1, 1.5, True, [], [None], {}, {"": 1}):
            changed = copy.deepcopy({"": good})
            _set("", *path, to=wrong)(None, changed)
            assert bool(schema.problems(changed[""], rules)) != reference.is_valid(changed[""]), (path, wrong)
            tried += 1
    assert tried > 500

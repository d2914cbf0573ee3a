"""Versions and differences: what an app relies on changes with the major number, and what got worse is seen."""

import copy
import json
from xml.etree import ElementTree

import jsonschema
import pytest
from packages import manifest_of, repacked, report_of

from edgedl import pipeline, reporting
from edgedl.errors import GateError, InputError
from edgedl.packaging import interface
from edgedl.packaging.schema import load


@pytest.fixture(scope="module")
def package(tflites, tmp_path_factory):
    """int8.tflite as shapes 1.2.0, with a report."""
    folder = tmp_path_factory.mktemp("diff")
    artifact = tflites / "int8.tflite"
    (folder / "r.json").write_text(json.dumps(reporting.as_json(report_of(artifact), details=True)))
    (made,) = pipeline.package(
        artifact, platforms=["zip"], out=folder / "out", report=folder / "r.json", name="shapes", version="1.2.0",
        targets=["pixel-8"],
    )  # fmt: skip
    return made


def _next(package, folder, change=lambda found: None, version="1.3.0"):
    """The package after, with another manifest."""

    def changed(_, found):
        found["version"] = version
        change(found)

    folder.mkdir(exist_ok=True)
    return repacked(package, folder, changed)


def _checks(found):
    return {c["name"]: c for c in found["checks"]}


def _measured(found, name, value):
    next(c for c in found["results"]["checks"] if c["name"] == name)["measured"] = value


# ---- versions -----------------------------------------------------------------------------------------------------


CHANGES = {
    "inputs: 'image' float32": lambda m: m["inputs"][0].update(dtype="float32"),
    "inputs: 'picture' int8": lambda m: m["inputs"][0].update(name="picture"),
    "outputs: ": lambda m: m["outputs"][0]["shape"].append(1),
    "labels: 3 instead of 0": lambda m: m.update(labels=["a", "b", "c"]),
    "preprocessing left to the app: scale(factor=2) instead of none": lambda m: m.update(
        preprocessing=[{"op": "scale", "factor": 2}]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_interface_is_what_an_app_relies_on(package, change):
    before = manifest_of(package)
    after = copy.deepcopy(before)
    CHANGES[change](after)
    (line,) = interface.changes(before, after)
    assert line.startswith(change)
    assert interface.next_version(before, after) == "2.0.0"


def test_interface_is_not_what_changes_with_every_training(package):
    before = manifest_of(package)
    after = copy.deepcopy(before)
    after["inputs"][0].update(scale=[0.5], zero_point=[3])
    after["artifact"]["size_bytes"] += 1
    assert interface.changes(before, after) == []
    assert interface.next_version(before, after) == "1.3.0"
    before["labels"], after["labels"] = ["a", "b"], ["a", "c"]
    assert interface.changes(before, after) == ["labels: number 2 is 'c' instead of 'b'"]


def test_package_refuses_other_inputs_under_the_same_major_number(tflites, package, tmp_path, cli):
    arguments = ("package", tflites / "float.tflite", "--platform", "zip", "--name", "shapes", "-o", tmp_path)
    done = cli(*arguments, "--version", "1.3.0", "--previous", package)
    assert (done.code, done.out) == (2, "")
    assert "--version: 1.3.0 has the major number of" in done.err
    assert "which has other inputs: 'image' float32 (any, 8, 8, 1) instead of 'image' int8 (any, 8, 8, 1)" in done.err
    assert done.err.endswith("an app would break: --version 2.0.0\n")
    assert not list(tmp_path.iterdir())
    assert cli(*arguments, "--version", "2.0.0", "--previous", package).code == 0
    assert cli(*arguments, "--version", "1.3.0", "--previous", package, "--name", "others").code == 0


def test_package_knows_those_that_lie_in_the_folder(tflites, tmp_path):
    def pack(name, version, **given):
        return pipeline.package(
            tflites / f"{name}.tflite", platforms=["zip"], out=tmp_path / "out", name="shapes", version=version, **given
        )

    pack("int8", "1.0.0")
    pack("float", "2.0.0")
    (tmp_path / "out/damaged.zip").write_bytes(b"PK nonsense")
    (tmp_path / "out/other.tgz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(InputError, match=r"has the major number of .*shapes-1\.0\.0\.zip.*: --version 3\.0\.0"):
        pack("float", "1.1.0")
    pack("int8", "1.1.0")
    pack("float", "2.0.0", force=True)
    pack("int8", "2.0.0", force=True)  # which is made again, and no other version stands beside it
    with pytest.raises(InputError, match=r"--version 3\.0\.0"):
        pack("float", "2.1.0")


def test_package_takes_name_and_version_from_the_previous_one(tflites, package, tmp_path):
    def pack(name):
        given = {"platforms": ["zip"], "out": tmp_path / "out", "previous": package}
        return pipeline.package(tflites / f"{name}.tflite", **given)[0].name

    assert pack("int8") == "shapes-1.3.0.zip"
    assert pack("float") == "shapes-2.0.0.zip"


def test_previous_package_that_does_not_hold_is_refused(tflites, package, tmp_path, cli):
    changed = repacked(package, tmp_path, lambda c, _: (c / "MODEL_CARD.md").write_text("x"), rehash=False)
    arguments = ("package", tflites / "int8.tflite", "--platform", "zip", "-o", tmp_path / "out", "--previous")
    done = cli(*arguments, changed)
    assert done.code == 6
    assert f"{changed}: 'MODEL_CARD.md' was changed: its SHA-256 is not the manifest's; see edgedl verify" in done.err
    assert cli(*arguments, tmp_path / "none.zip").code == 2


# ---- differences --------------------------------------------------------------------------------------------------


def test_diff_writes_the_release_note(package, tmp_path, cli):
    def change(found):
        found["artifact"] |= {"compressed_bytes": 1000, "scheme": "static_wi8_ai8"}
        _measured(found, "accuracy", 0.82)
        _measured(found, "arena_bytes", 1208)
        found["results"]["classes"][0]["recall"] = 0.85
        found["results"]["classes"][2]["recall"] = 0.55
        found["ops"] = [op for op in found["ops"] if op["name"] != "MEAN"] + [{"name": "MUL", "version": 2, "count": 3}]
        found["targets"][0]["runtimes"][0]["minimum"] = "2.9.0"
        found["runtime"]["minimum"] = found["runtime"]["minimums"]["litert"] = "2.1.0"
        found["runtime"]["minimums"]["tflite-runtime"] = None

    after = _next(package, tmp_path, change)
    done = cli("diff", package, after)
    assert done.code == 0, done.err
    size = manifest_of(package)["artifact"]["compressed_bytes"]
    assert done.out.splitlines()[:3] == ["## shapes 1.3.0", "Since 1.2.0:", "- The model is the same file."]
    for line in (
        f"- compressed_bytes: {size / 1000:.2f} kB to 1.00 kB ({1000 / size - 1:+.1%}), static.",
        "- arena_bytes on nucleo: 2.42 kB to 1.21 kB (-50.0%), emulated.",
        "- accuracy: 80.00 % to 82.00 % (+2.00 pp).",
        "- Worse: class 'round', 20 samples: 90.00 % to 85.00 % (-5.00 pp).",
        "- Better: 1 of 4 classes and slices.",
        "- Oldest runtime, litert: 1.0.0 to 2.1.0.",
        "- Oldest runtime, tflite-runtime: 2.7.0 to none known.",
        "- Oldest runtime, litert on pixel-8: 2.3.0 to 2.9.0.",
        "- Operator MUL version 2: 0 to 3.",
    ):
        assert line in done.out.splitlines(), line
    assert "size_bytes:" not in done.out.replace("compressed_bytes:", "")  # it is the same
    assert "- Operator MEAN version" in done.out


def test_diff_prints_nothing_that_a_terminal_obeys(package, tmp_path, cli):
    def change(found):
        found["ops"][0]["name"] = "\x1b[31mADD\nPASS"
        found["results"]["classes"][0] |= {"label": "\x1b]0;title\x07", "recall": 0.1}

    done = cli("diff", package, _next(package, tmp_path, change), "--max-drop", "1pp")
    assert "Operator ?[31mADD?PASS version" in done.out
    assert "\x1b" not in done.out + done.err
    assert "\x07" not in done.out + done.err


def test_diff_compares_no_times_of_a_host(package, tmp_path, cli):
    def with_times(value):
        def change(found):
            times = [c for c in found["results"]["checks"] if c["name"] == "latency_ms"]
            for method in ("measured-host", "measured-device"):
                found["results"]["checks"].append(times[0] | {"measured": value, "method": method})

        return change

    before, after = (_next(package, tmp_path / str(value), with_times(value)) for value in (2.0, 1.0))
    lines = [line for line in cli("diff", before, after).out.splitlines() if "latency_ms" in line]
    assert lines == ["- latency_ms on nucleo: 2.00 ms to 1.00 ms (-50.0%), measured-device."]


def test_diff_tells_sizes_apart_that_round_alike(package, tmp_path, cli):
    before, after = (
        _next(package, tmp_path / str(size), lambda m, size=size: m["artifact"].update(compressed_bytes=size))
        for size in (11_262, 11_263)
    )
    assert "- compressed_bytes: 11,262 bytes to 11,263 bytes (+0.0%), static." in cli("diff", before, after).out


def test_diff_of_a_package_with_itself_says_so(package, cli):
    done = cli("diff", package, package, "--max-drop", "0")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "## shapes 1.2.0\nSince 1.2.0:\n- The model is the same file.\n- accuracy: 80.00 % to 80.00 % (0.00 pp).\n"
    )


def test_diff_json_follows_its_schema(package, tmp_path, cli):
    done = cli("diff", package, _next(package, tmp_path), "--json")
    jsonschema.Draft202012Validator(load("diff")).validate(done.json)
    assert done.json["verdict"] == "pass"
    assert done.json["before"]["version"] == "1.2.0"
    assert [f["name"] for f in done.json["figures"]] == ["size_bytes", "compressed_bytes", "arena_bytes"]


def _with_many_samples(found):
    for row, key in [(c, "support") for c in found["results"]["classes"]] + [
        (found["results"]["slices"][0], "samples")
    ]:
        row[key] *= 100


@pytest.mark.parametrize(
    ("part", "drop", "code"),
    [
        ("slices", 0.1, 6), ("slices", 0.01, 0), ("classes", 0.1, 6), ("classes", 0.01, 0), ("whole", 0.02, 6),
        ("whole", 0.01, 0), ("whole", -0.1, 0),
    ],
)  # fmt: skip
def test_diff_fails_where_something_got_worse_than_allowed(package, tmp_path, cli, part, drop, code):
    package = _next(package, tmp_path / "before", _with_many_samples)

    def change(found):
        results = found["results"]
        if part == "slices":
            results["slices"][0]["value"] -= drop
        elif part == "classes":
            results["classes"][1]["recall"] -= drop
        else:
            _measured(found, "accuracy", 0.8 - drop)

    after = _next(package, tmp_path, change)
    done = cli("diff", package, after, "--max-drop", "1pp")
    assert done.code == code
    named = {"slices": "night.slice_drop: slice 'night', 900 samples",
             "classes": "sq|uare.class_drop: class 'sq|uare', 1,200 samples",
             "whole": "accuracy_drop: 80.00 % to 78.00 %"}[part]  # fmt: skip
    assert (f"fail: {named}" in done.err) == (code == 6)
    assert ("**beyond the limit**" in done.out) == (code == 6 and part != "whole")
    assert cli("diff", package, after).code == 0  # without a limit nothing is judged
    cli("diff", package, after, "--max-drop", "1pp", "--junit", tmp_path / "j.xml")
    assert ("<failure" in (tmp_path / "j.xml").read_text()) == (code == 6)


def _with_classes(count, support, recall):
    """A change of a manifest: class 0 has this recall, the others 0.9."""

    def change(found):
        rows = [{"label": str(i), "support": support, "recall": 0.9} for i in range(count)]
        rows[0]["recall"] = recall
        found["results"] |= {"classes": rows, "slices": []}

    return change


@pytest.mark.parametrize(
    ("count", "support", "recall", "verdict", "why"),
    [
        (1, 1000, 0.86, "fail", ""),  # 4 points on 1000 samples, 1 allowed: p = 0.02 alone
        (10, 1000, 0.86, "inconclusive", "not shown to be: p = 0.2 by Holm's correction over 10 classes and slices"),
        (10, 1000, 0.80, "fail", ""),
        (10, 29, 0.20, "inconclusive", "not shown to be: fewer than 30 samples show nothing"),
        (10, 29, 0.895, "pass", ""),
    ],
)
def test_diff_fails_a_class_where_its_samples_show_it(package, tmp_path, count, support, recall, verdict, why):
    before, after = (_next(package, tmp_path / str(r), _with_classes(count, support, r)) for r in (0.9, recall))
    found = pipeline.diff(before, after, max_drop="1pp")
    assert found["verdict"] == verdict
    (worst, *_) = [c for c in found["checks"] if c["name"].endswith(".class_drop")]
    assert (worst["verdict"], worst["measured"]) == (verdict, pytest.approx(0.9 - recall))
    assert why in worst["why"]


def test_diff_exits_with_7_where_too_few_samples_show_a_loss(package, tmp_path, cli):
    after = _next(package, tmp_path, lambda m: m["results"]["slices"][0].update(value=0.1))
    done = cli("diff", package, after, "--max-drop", "1pp")
    assert done.code == 7
    assert "inconclusive: night.slice_drop: slice 'night', 9 samples: 70.00 % to 10.00 %, beyond the limit" in done.err


def test_diff_junit_has_a_case_of_its_own_for_each_class_and_slice(package, tmp_path, cli):
    def cases(*given):
        cli("diff", package, _next(package, tmp_path), *given, "--junit", tmp_path / "j.xml", "--force")
        root = ElementTree.parse(tmp_path / "j.xml")
        return [[e.get("name") for e in root.iter(tag)] for tag in ("testcase", "property")]

    parts = {f"{row['label']}.class_drop" for row in manifest_of(package)["results"]["classes"]} | {"night.slice_drop"}
    assert len(parts) > 3
    judged, _ = cases("--max-drop", "1pp")
    assert len(judged) == len(set(judged))
    assert {"version", "accuracy_drop"} | parts <= set(judged)
    judged, told = cases()  # without a limit they are for information, and none is lost either
    assert judged == ["version"]
    assert parts <= set(told)


def test_diff_judges_a_metric_that_should_be_low(package, tmp_path):
    def as_error(value):
        def change(found):
            found["results"] |= {"classes": [], "slices": [{"slice": "s", "samples": 3, "value": value}]}
            found["results"]["metric"] = {"name": "mae", "unit": "", "higher_is_better": False, "output": "y"}
            found["results"]["checks"][1] |= {"name": "mae", "measured": value, "unit": ""}

        return change

    before, after = (_next(package, tmp_path / str(v), as_error(v)) for v in (1.0, 1.3))
    assert pipeline.diff(before, after, max_drop="0.2")["verdict"] == "fail"
    assert pipeline.diff(before, after, max_drop="0.4")["verdict"] == "pass"
    assert pipeline.diff(after, before, max_drop="0")["verdict"] == "pass"
    with pytest.raises(InputError, match="--max-drop: a number in the unit of mae is needed, got '1pp'"):
        pipeline.diff(before, after, max_drop="1pp")


def test_diff_fails_where_the_interface_changed_and_the_major_number_did_not(package, tmp_path, cli):
    def change(found):
        found["preprocessing"] = found["lineage"]["preprocessing"] = [{"op": "scale", "factor": 2}]

    def changed(content, found):
        found["version"] = version
        change(found)
        steps = {"preprocessing": found["preprocessing"], "embedded": []}
        (content / "preprocessing.json").write_text(json.dumps(steps))

    for version, code in (("1.3.0", 6), ("2.0.0", 0)):
        (tmp_path / version).mkdir()
        done = cli("diff", package, repacked(package, tmp_path / version, changed))
        assert done.code == code
        assert "- **Breaking:** preprocessing left to the app: scale(factor=2) instead of none" in done.out
        assert ("fail: version: preprocessing" in done.err) == (code == 6)


def test_diff_of_two_models_compares_no_versions(package, tmp_path):
    other = _next(package, tmp_path, lambda m: m.update(name="other", labels=[]))
    found = pipeline.diff(package, other)
    assert _checks(found)["version"]["verdict"] == "info"
    assert "Since shapes 1.2.0:" in found["note"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda m: m.update(results=None, report=None),
            "the second has no results of a validation; pack with --report",
        ),
        (
            lambda m: m["results"].update(data_sha256="e" * 64, data="e.npz"),
            "validated on different data, d.npz and e.npz",
        ),
        (lambda m: m["results"].update(data_sha256=None), "validated on different data"),
        (lambda m: m["results"]["metric"].update(name="f1"), "validated by different metrics, accuracy and f1"),
    ],
)
def test_diff_judges_no_results_that_do_not_compare(package, tmp_path, cli, change, why):
    after = _next(package, tmp_path, change)
    done = cli("diff", package, after, "--max-drop", "1pp")
    assert done.code == 7
    assert f"unchecked: metric_drop: {why}" in done.err
    assert f"- Not compared: {why}" in done.out
    assert cli("diff", package, after).code == 0


def test_diff_does_not_pass_a_class_that_is_gone(package, tmp_path):
    found = pipeline.diff(package, _next(package, tmp_path, lambda m: m["results"]["classes"].pop()), max_drop="1pp")
    assert found["verdict"] == "unchecked"
    assert "Not compared: class 'other', 8 samples: not measured in the second." in found["note"]


def test_diff_refuses_a_package_that_does_not_hold(package, tmp_path, cli):
    changed = repacked(package, tmp_path, lambda c, _: (c / "MODEL_CARD.md").unlink(), rehash=False)
    with pytest.raises(GateError, match=r"changed\.zip: 'MODEL_CARD\.md' is missing; see edgedl verify"):
        pipeline.diff(package, changed)
    later = _next(package, tmp_path / "b", lambda m: m.update(manifest_version="2.0"))
    assert "has version '2.0', this edgedl reads 1.x" in cli("diff", package, later).err
    (tmp_path / "text").write_text("hello")
    assert cli("diff", package, tmp_path / "text").code == 2
    assert cli("diff", package, tmp_path / "none").code == 2

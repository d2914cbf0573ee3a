"""Numbers, tables for the terminal, JUnit, and the files of a report."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from reported import CHECKS, a_check
from rich.console import Console

from edgedl import reporting
from edgedl.errors import InputError
from edgedl.reporting import junit, page, text
from edgedl.types import Report, Verdict
from edgedl.validation import gates

DETAILS = {"accuracy": {"samples": 5000}, "notes": ["calibrated on other samples"]}


def _report(checks=CHECKS, details=None, **more):
    given = {"artifact": "int8.tflite", "reference": "resnet8.h5", "data": "test.npz", "targets": ("nucleo-h743zi2",)}
    return Report(**given | more, checks=tuple(checks), details=DETAILS if details is None else details)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (18_204, "bytes", "18.2 kB"),
        (812, "bytes", "812 B"),
        (999_900, "bytes", "1.00 MB"),
        (41_200_000, "bytes", "41.2 MB"),
        (0.866, "fraction", "86.60 %"),
        (0.0026, "fraction_difference", "0.26 pp"),
        (-0.000001, "fraction_difference", "0.00 pp"),
        (0.31, "ms", "0.31 ms"),
        (0.0312, "ms", "0.031 ms"),
        (250, "us", "0.25 ms"),
        (12_400, "ms", "12.4 s"),
        (450_387, "count", "450,387"),
        (3, "LSB", "3 LSB"),
        (0.0000002, "", "2e-7"),
        (12.3456, "k€", "12.35 k€"),
        (None, "ms", "–"),  # noqa: RUF001
        (math.nan, "ms", "–"),  # noqa: RUF001
    ],
)
def test_number_is_written_with_its_unit(value, unit, expected):
    assert text.number(value, unit) == expected


def test_interval_stays_on_the_scale_of_its_value():
    assert text.interval(0.0026, -0.001, 0.0062, "fraction_difference") == "0.26 pp [-0.10, 0.62]"
    assert text.interval(1_010_000, 990_000, 1_030_000, "bytes") == "1.01 MB [0.99, 1.03]"
    assert text.interval(0.5, None, None, "fraction") == "50.00 %"


def test_an_upper_limit_has_its_sign():
    for name in (*gates.UNITS, "op_versions", "unsupported_ops", "nonfinite", "golden"):
        assert text.limit(a_check(name, limit=2, unit="count")) == "≤ 2"
        assert text.limit(a_check(f"out.{name}", limit=2, unit="count")) == "≤ 2"
    assert text.limit(a_check("my_score", limit=2, unit="count")) == "2"
    assert text.limit(a_check("max_abs")) == "–"  # noqa: RUF001


def test_ratio_needs_a_reference():
    assert text.ratio(98_464, 321_192) == "0.31x"
    assert text.ratio(39.3, 1) == "39.3x"
    assert text.ratio(5, 0) is None
    assert text.ratio(5, None) is None


def _printed(report):
    stream = io.StringIO()
    console = Console(file=stream, width=100, color_system=None)
    for part in text.tables(report):
        console.print(part)
    return stream.getvalue()


def test_tables_fit_100_columns_and_cut_no_name():
    printed = _printed(_report())
    assert max(map(len, printed.splitlines())) <= 100
    for expected in (
        "0.26 pp [-0.10, 0.62]",
        "≤ 1.00 pp",
        "compressed_bytes",
        "nucleo-h743zi2",
        "measured-device",
        "98.5 kB",
    ):
        assert expected in printed
    assert "FAIL  int8.tflite against resnet8.h5 on test.npz (5,000 samples)" in printed


def test_tables_put_the_worst_first_and_say_why():
    lines = _printed(_report()).splitlines()
    rows = [line.split()[0] for line in lines if re.search(r"(FAIL|UNCHECKED|INCONCLUSIVE|PASS|info)$", line.rstrip())]
    assert rows[:5] == ["size_bytes", "latency_ms", "worst_class_drop", "accuracy_drop", "accuracy_reference"]
    assert "latency_ms on nucleo-h743zi2: no board" in lines
    assert "size_bytes: 98,464 > 64,000" in lines
    assert not any("inside" in line for line in lines)


def test_targets_that_share_a_figure_keep_their_own_reasons():
    same = {"why": "export with --io int8"}
    checks = [
        a_check("io", 1.0, Verdict.FAIL, target="board", **same),
        a_check("io", 1.0, Verdict.FAIL, target="phone", why="export with --io float"),
        a_check("io", 1.0, Verdict.FAIL, target="chip", **same),
        a_check("runs", 1.0, Verdict.FAIL, target="board", **same),
        a_check("runs", 1.0, Verdict.FAIL, target="chip", **same),
        a_check("odd", 1.0, Verdict.FAIL, target="board"),
        a_check("odd", 1.0, Verdict.FAIL, target="chip", **same),
    ]
    io_, runs, odd = text.merged(checks)
    assert (io_.target, runs.target) == ("board, phone, chip", "board, chip")
    assert io_.why == "board, chip: export with --io int8; phone: export with --io float"
    assert runs.why == "export with --io int8"
    assert odd.why == "chip: export with --io int8"
    printed = " ".join(_printed(_report(checks)).split())
    assert f"io on board, phone, chip: {io_.why}" in printed


def test_tables_do_not_read_names_as_markup():
    printed = _printed(_report(artifact="[bold]x[/bold].tflite", checks=[a_check("[red]odd", 1.0)], details={}))
    assert "[bold]x[/bold].tflite" in printed
    assert "[red]odd" in printed
    assert "NOT JUDGED, no limit was set" in printed


def _xml(reports, **more):
    return ElementTree.fromstring(junit.render(reports, **more))


def test_junit_has_a_case_for_each_check_that_counts():
    root = _xml(_report())
    suite = root.find("testsuite")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == ["accuracy_drop", "size_bytes", "latency_ms [nucleo-h743zi2]", "worst_class_drop"]
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("4", "3", "0")
    assert cases["accuracy_drop"].find("failure") is None
    assert "0.26 pp [-0.10, 0.62], limit ≤ 1.00 pp (static)" in cases["accuracy_drop"].findtext("system-out")
    failure = cases["size_bytes"].find("failure")
    assert (failure.get("type"), failure.get("message")) == ("fail", "fail: 98,464 > 64,000")
    assert cases["latency_ms [nucleo-h743zi2]"].find("failure").get("type") == "unchecked"


def test_junit_keeps_information_as_properties():
    properties = {p.get("name"): p.get("value") for p in _xml(_report()).iter("property")}
    assert properties["accuracy"] == "86.60 % [85.63, 87.52] (static)"
    assert properties["instructions"] == "450,387 (emulated)"
    assert "size_bytes" not in properties


@pytest.mark.parametrize(("choice", "tag"), [("fail", "failure"), ("warn", "skipped"), ("pass", "system-out")])
def test_junit_treats_inconclusive_as_the_command_does(choice, tag):
    root = _xml(_report(), on_inconclusive=choice)
    case = next(c for c in root.iter("testcase") if c.get("name") == "worst_class_drop")
    assert [child.tag for child in case] == [tag]
    said = case[0].get("message") or case[0].text
    assert "needs 3,000 samples" in said
    assert root.get("skipped") == ("1" if choice == "warn" else "0")


def test_junit_keeps_checks_of_one_name_apart():
    flash = a_check("size_bytes", 9.0, Verdict.FAIL, target="board", limit=8, why="the file alone is more than flash")
    own = a_check("size_bytes", 9.0, Verdict.PASS, target="board", limit=10)
    told = [a_check("mcnemar_p", p) for p in (0.5, 1.0)]
    root = _xml(_report([own, flash, *told]))
    assert [case.get("name") for case in root.iter("testcase")] == ["size_bytes [board]", "size_bytes [board] (2)"]
    assert {"mcnemar_p", "mcnemar_p (2)"} <= {p.get("name") for p in root.iter("property")}


def test_junit_says_which_class_a_passed_check_is_of():
    passed = a_check("worst_class_drop", 0.01, Verdict.PASS, unit="fraction", limit=0.02, why="class '8', 60 samples")
    (case,) = _xml(_report([passed])).iter("testcase")
    assert case.findtext("system-out") == "1.00 pp, limit ≤ 2.00 pp (static): class '8', 60 samples"


def test_junit_survives_what_xml_cannot_hold():
    broken = a_check("a<b&c", 1.0, Verdict.FAIL, why='"x" < \x1b[31m\x00 & y')
    case = next(_xml([_report([broken], artifact="<&>.tflite"), _report()]).iter("testcase"))
    assert case.get("classname") == "<&>.tflite"
    assert case.find("failure").get("message") == 'fail: "x" < \ufffd[31m\ufffd & y'


def test_write_gives_json_and_page_and_nothing_else(tmp_path):
    folder = tmp_path / "run" / "report"
    written = reporting.write(_report(), folder)
    assert written == [folder / "report.json", folder / "report.html"]
    assert sorted(folder.iterdir()) == sorted(written)
    found = json.loads(written[0].read_text(encoding="utf-8"))
    assert list(found) == ["verdict", "artifact", "reference", "data", "targets", "checks", "details"]
    assert found["verdict"] == "fail"
    assert found["checks"][2]["limit"] == 0.01
    assert written[1].read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.fixture
def no_page(monkeypatch):
    """Where the page does not matter, none is drawn."""
    monkeypatch.setattr(page, "render", lambda _: "<html>")


@pytest.mark.usefixtures("no_page")
def test_write_of_several_reports_is_one_object_with_the_worst_verdict(tmp_path):
    good = _report([CHECKS[2]])
    data, _ = reporting.write([good, _report()], tmp_path)
    found = json.loads(data.read_text(encoding="utf-8"))
    assert found["verdict"] == "fail"
    assert [one["verdict"] for one in found["reports"]] == ["pass", "fail"]


@pytest.mark.usefixtures("no_page")
def test_read_gives_back_what_was_written(tmp_path):
    for reports in ([_report()], [_report(), _report([CHECKS[0]])]):
        data, _ = reporting.write(reports, tmp_path)
        assert reporting.read(data) == reports


@pytest.mark.parametrize("content", ["", "[]", '{"checks": []}', '{"reports": [{"checks": [{"method": "guess"}]}]}'])
def test_read_refuses_another_file(tmp_path, content):
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"no report\.json of edgedl"):
        reporting.read(tmp_path / "report.json")
    with pytest.raises(InputError, match="cannot be read"):
        reporting.read(tmp_path / "missing.json")


def test_as_json_without_details_is_the_contract_of_validate():
    found = reporting.as_json(dataclasses.replace(_report(), checks=(a_check("max_abs", math.inf),)))
    assert list(found) == ["verdict", "artifact", "reference", "data", "targets", "checks"]
    assert list(found["checks"][0]) == [
        "name", "target", "measured", "low", "high", "limit", "unit", "method", "verdict", "why",
    ]  # fmt: skip
    assert found["checks"][0]["measured"] is None


def test_write_without_matplotlib_names_the_command_and_keeps_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(InputError, match=r"matplotlib not installed. Try: pip install 'edgedl\[report\]'"):
        reporting.write(_report(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.usefixtures("no_page")
def test_write_refuses_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"taken/report.json: cannot be written: (File exists|Not a directory)"):
        reporting.write(_report(), tmp_path / "taken")
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


@pytest.mark.usefixtures("no_page")
def test_write_on_a_full_disk_leaves_the_old_report_whole(tmp_path, monkeypatch):
    reporting.write(_report(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    whole = Path.write_text

    def full(self, content, **more):
        whole(self, content[:100], **more)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        reporting.write(_report([CHECKS[0]]), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

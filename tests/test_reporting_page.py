"""The page: whole, escaped, readable without colour, and none the worse for what is missing."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
from reported import CHECKS, a_check

from edgedl.errors import InputError
from edgedl.reporting import figures, page, views
from edgedl.types import Report, Verdict

LABELS = ("cat", "dog", "frog")


SCORES = {"precision": 0.9, "recall": 0.8, "f1": 0.85}
DETAILS = {
    "metric": {"name": "accuracy", "unit": "fraction", "higher_is_better": True, "output": "softmax"},
    "accuracy": {
        "reference": {"value": 0.8686, "low": 0.859, "high": 0.8777},
        "artifact": {"value": 0.8660, "low": 0.8563, "high": 0.8752},
        "drop": {"value": 0.0026, "low": -0.0010, "high": 0.0062, "confidence": 0.95},
        "samples": 5000,
    },
    "confusion": {
        "labels": list(LABELS),
        "reference": [[31, 2, 0], [1, 32, 0], [0, 0, 33]],
        "artifact": [[30, 3, 0], [1, 32, 0], [0, 17, 16]],
    },
    "per_class": [
        {"label": "cat", "support": 33, "reference": SCORES, "artifact": SCORES | {"recall": 0.79}},
        {"label": "frog", "support": 33, "reference": SCORES, "artifact": SCORES | {"recall": 0.5}},
        {"label": "dog", "support": 33, "reference": SCORES, "artifact": SCORES | {"recall": 0.9}},
    ],
    "slices": [{"slice": "indoors", "samples": 50, "reference": 0.7, "artifact": 0.61, "drop": 0.09}],
    "parity": [{"output": "softmax", "max_abs": 0.341, "max_lsb": 87, "agreement": 0.996}],
    "sizes": [
        {"name": "float.tflite", "format": "tflite", "scheme": "fp32",
         "size_bytes": 321_192, "compressed_bytes": 292_420},
        {"name": "int8.tflite", "format": "tflite", "scheme": "static_wi8_ai8",
         "size_bytes": 98_464, "compressed_bytes": 79_159},
    ],
    "latency": [
        {"name": "float.tflite", "runtime": "litert", "median_ms": 0.4, "p90_ms": 0.5,
         "method": "measured-host", "threads": 1},
        {"name": "int8.tflite", "runtime": "litert", "median_ms": 0.1, "p90_ms": 0.2, "low": 0.09, "high": 0.11,
         "method": "measured-host", "threads": 1, "note": "the host was busy"},
    ],
    "machine": {"cpu": {"model": "Quick 9000", "cores": 2}},
    "lineage": {"model_sha256": "3f" * 32, "calibration_ids": list(range(200)),
                "preprocessing": [{"op": "scale", "factor": 2}]},
    "notes": ["calibrated on other samples"],
}  # fmt: skip
SECTIONS = {
    "confusion": "Confusion, before and after",
    "per_class": "Classes, greatest loss of recall first",
    "slices": "Slices",
    "parity": "Outputs beside the reference",
    "machine": "Machine that measured",
    "lineage": "Where it comes from",
    "notes": "Notes",
}


def _report(checks=CHECKS, details=None, **more):
    given = {"artifact": "int8.tflite", "reference": "resnet8.h5", "data": "test.npz", "targets": ("nucleo-h743zi2",)}
    return Report(**given | more, checks=tuple(checks), details=DETAILS if details is None else details)


class _Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self._style = [], [], False
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self.words.append(data)


@pytest.fixture(scope="module")
def full():
    return _Page(page.render(_report()))


def test_page_needs_no_other_file(full):
    for tag, attributes in full.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    html = page.render(_report())
    assert "@import" not in html
    assert set(re.findall(r"https?://[^\"' <)]*", html)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.findall(r"url\((?!#)", html)


def test_page_ids_are_unique_and_every_reference_to_one_holds():
    html = page.render([_report(), _report(artifact="int8.onnx")])
    tags = _Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a[key][1:] for _, a in tags for key in ("href", "xlink:href") if a.get(key, "").startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", html))
    assert used
    assert used <= set(ids)


def test_page_shows_every_check_with_value_interval_limit_method_verdict_and_why(full):
    for check in CHECKS:
        assert f" {check.name} " in full.text
        assert check.method.value in full.text
        assert check.why in full.text
    for expected in ("0.26 pp", "[-0.10, 0.62]", "≤ 1.00 pp", "98.5 kB", "98,464 B", "not measured", "≤ 5.00 ms"):
        assert expected in full.text
    for word in ("Fail", "Unchecked", "Inconclusive", "Pass", "Info"):
        assert f" {word} " in full.text
    assert "run on an emulated CPU" in full.text
    assert "calculated by the vendor" not in full.text


def test_page_head_tells_the_verdict_and_what_was_compared(full):
    assert "Fail: int8.tflite – edgedl" in full.text  # noqa: RUF001
    assert "At least one check is outside its limit." in full.text
    for expected in (
        "Reference resnet8.h5",
        "Data test.npz",
        "Targets nucleo-h743zi2",
        "reference 86.86 %",
        "on 5,000 samples",
    ):
        assert expected in full.text
    assert "0.31x of 321 kB" in full.text
    assert "0.25x of 0.40 ms" in full.text


def test_page_pictures_have_words_for_those_who_do_not_see_them(full):
    pictures = [attributes for tag, attributes in full.tags if tag == "svg"]
    assert len(pictures) == 5
    assert all(picture["role"] == "img" for picture in pictures)
    said = [picture["aria-label"] for picture in pictures]
    assert said[0] == "accuracy_drop · pass: 0.26 pp [-0.10, 0.62]; worst_class_drop · inconclusive: 2.00 pp"
    assert "int8.tflite: file 98.5 kB · 0.31x, download 79.2 kB · 0.27x" in said[1]
    assert "int8.tflite: median 0.10 ms · 0.25x, p90 0.20 ms · 0.40x" in said[2]
    assert said[4] == "After: the artifact, 78 of 99 on the diagonal."


def test_page_lists_classes_worst_first_and_the_most_frequent_confusions(full):
    table = full.text[full.text.index(SECTIONS["per_class"]) :]
    assert table.index("frog") < table.index("cat") < table.index("dog")
    assert "-30.00 pp" in table
    assert views.pairs(_report())[0] == {"true": "frog", "predicted": "dog", "before": 0, "after": 17}
    assert "frog taken for dog" in full.text


@pytest.fixture
def no_pictures(monkeypatch):
    """Where pictures do not matter, none is drawn."""
    for name in ("differences", "bars", "confusion"):
        monkeypatch.setattr(figures, name, lambda *_, **more: f"<svg aria-label='{more['alt']}'></svg>")


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("key", DETAILS)
def test_page_leaves_out_the_section_of_a_missing_key(key):
    found = _Page(page.render(_report(details={k: v for k, v in DETAILS.items() if k != key}))).text
    for other, heading in SECTIONS.items():
        assert (heading in found) == (other != key)
    assert ("Size: the file on flash" in found) == (key != "sizes")
    assert ("Latency of one inference" in found) == (key != "latency")


def test_page_of_a_report_without_limit_or_details_claims_no_pass():
    found = _Page(page.render(_report([a_check("size_bytes", 812.0, unit="bytes")], details={})))
    assert "Not judged" in found.text
    assert "✓" not in found.text
    assert not any(heading in found.text for heading in SECTIONS.values())
    assert [tag for tag, _ in found.tags if tag == "svg"] == []


def test_page_survives_empty_and_half_filled_details():
    details = {
        "metric": {"name": "mae"}, "accuracy": {"artifact": {"value": None}},
        "confusion": {"artifact": [[1, 0], [0, 0]]}, "per_class": [{"label": "a"}], "slices": [{"slice": "s"}],
        "parity": {}, "sizes": [{"name": "a"}], "latency": [{"name": "b"}],
        "machine": None, "lineage": {}, "notes": [],
    }  # fmt: skip
    found = _Page(page.render(_report(details=details))).text
    assert "After: the artifact, 1 of 1 on the diagonal" in found
    assert "Size and speed" not in found


def test_page_escapes_what_others_wrote():
    evil = "<script>alert(1)</script>"
    labels = [evil, '$x^2$ & "q"', "中文标签"]
    details = DETAILS | {
        "confusion": DETAILS["confusion"] | {"labels": labels},
        "notes": [evil],
        "machine": {evil: evil},
    }
    checks = [*CHECKS, a_check("x_drop", 0.1, unit="fraction", why=evil, target=evil)]
    found = _Page(page.render(_report(checks, details, artifact=evil, reference=evil, data=evil, targets=(evil,))))
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count(evil) >= 8
    assert labels[1] in found.text
    assert labels[2] in found.text


def test_page_folds_a_long_class_table_and_stays_small():
    count = 100
    matrix = [[9 if i == j else int(abs(i - j) == 1) for j in range(count)] for i in range(count)]
    names = [f"class {i} with a rather long name" for i in range(count)]
    rows = [{"label": name, "support": 11, "reference": SCORES, "artifact": SCORES} for name in names]
    confusion = {"labels": names, "reference": matrix, "artifact": matrix}
    html = page.render(_report(details={"confusion": confusion, "per_class": rows}))
    assert f"{count - page.CLASSES_SHOWN} more classes" in html
    assert all(name in html for name in names)
    assert len(html) < 300_000


def test_page_compares_several_reports_above_them():
    other = _report(artifact="int8.onnx", checks=[CHECKS[2]], details=DETAILS | {"sizes": [DETAILS["sizes"][0], {
        "name": "int8.onnx", "size_bytes": 115_361}], "latency": []})  # fmt: skip
    html = page.render([_report(), other])
    found = _Page(html)
    links = [a["href"] for tag, a in found.tags if tag == "a"]
    assert links == ["#report-1", "#report-2"]
    assert {a.get("id") for tag, a in found.tags if tag == "section"} == {None, "report-1", "report-2"}
    sizes = next(a["aria-label"] for tag, a in found.tags if tag == "svg" and a["aria-label"].startswith("Size."))
    assert sizes.count("float.tflite") == 1
    assert "int8.onnx: file 115 kB · 0.36x" in sizes
    assert "Fail: int8.tflite, int8.onnx" in found.text


def test_page_calls_artifacts_by_file_name_unless_two_share_one():
    reports = [_report(artifact=f"run/export-{i}/{name}.tflite") for i, name in ((1, "a"), (2, "b"), (3, "b"))]
    assert views.names(reports) == ["a.tflite", "run/export-2/b.tflite", "run/export-3/b.tflite"]
    found = _Page(page.render(_report([CHECKS[2]], {}, artifact="run/export-1/a.tflite"))).text
    assert "Pass: a.tflite" in found
    assert "Artifact run/export-1/a.tflite" in found


def test_page_gives_no_ratio_between_unlike_latencies():
    slow, fast = DETAILS["latency"]
    for change in ({"method": "predicted"}, {"threads": 4}, {"batch": 8}):
        html = page.render(_report(details={"latency": [slow, fast | change]}))
        assert "median 0.10 ms" in html
        assert "0.25x" not in html


@pytest.mark.parametrize("limit", [None, 0.01])
def test_page_explains_the_limit_where_there_is_one(limit):
    check = a_check("accuracy_drop", 0.1, unit="fraction", limit=limit)
    assert ("outside the limit" in page.render(_report([check], {}))) == (limit is not None)


def test_page_goes_by_role_where_entries_have_one():
    reference, artifact = (
        {**entry, "role": role} for entry, role in zip(DETAILS["sizes"], ("reference", "artifact"), strict=True)
    )
    assert views.entries(_report(details={"sizes": [artifact, reference]}), "sizes") == (reference, [artifact])
    assert views.entries(_report(details={"sizes": [artifact]}), "sizes") == (None, [artifact])


def test_page_shows_figures_that_are_not_finite_as_missing():
    infinite = {"low": -math.inf, "high": math.inf}
    checks = [
        a_check("accuracy_drop", math.nan, Verdict.FAIL, unit="fraction", limit=0.01, **infinite),
        a_check("mae_drop", 1.0, **infinite),
    ]
    html = page.render(_report(checks, {"parity": [{"max_abs": math.inf}]}))
    found = _Page(html).text
    assert "not measured" in found
    assert not re.search(r"\b(nan|inf)\b", found)


def test_page_is_the_same_each_time():
    assert page.render(_report()) == page.render(_report())


def test_page_colours_come_from_the_style_sheet():
    html = page.render(_report())
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#ffffff"}  # counts on the darkest cells
        assert "font-family" not in svg
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_page_refuses_nothing_to_show():
    with pytest.raises(InputError, match="no report to show"):
        page.render([])


def test_shorten_keeps_both_ends():
    assert figures.shorten("short.tflite", 20) == "short.tflite"
    cut = figures.shorten("resnet8_pruned_clustered_static_wi8_ai8_final.tflite", 20)
    assert len(cut) == 20
    assert cut.startswith("resn")
    assert cut.endswith("…final.tflite")

"""`scripts/bench.py`: its rows and ratios, and what it says where there is nothing to measure on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_measure

    return bench_measure


def side(measure, *seconds):
    return [measure.Sample(wall_s=s, cpu_s=s / 2) for s in seconds]


def test_a_row_compares_medians_and_tells_the_range_of_the_rounds(measure):
    row = measure.compared("s", "n", side(measure, 1, 2, 9), side(measure, 2, 2, 3), "<= 1.15")
    assert (row.ratio, row.low, row.high, row.cpu_ratio, row.is_met) == (1.0, 0.5, 3.0, 1.0, True)


def test_a_rate_is_better_when_higher(measure):
    row = measure.compared("s", "n", side(measure, 2), side(measure, 1), ">= 0.95", rate_of=100)
    assert (row.ours, row.peer, row.ratio, row.is_met) == ("50 /s", "100 /s", 0.5, False)


def test_nothing_measured_is_neither_met_nor_missed(measure):
    assert measure.Row(section="s", name="n", note="skipped").is_met is None


def test_sides_take_turns(measure):
    order = []

    def turn(name):
        order.append(name)
        return measure.Sample(wall_s=1, cpu_s=1)

    measure.turns(2, lambda: turn("a"), lambda: turn("b"))
    assert order == ["a", "b", "b", "a"]


def test_a_command_that_fails_says_what_it_said(measure):
    with pytest.raises(RuntimeError, match="exited with 3: no luck"):
        measure.command(sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)")


def test_the_peak_of_a_command_that_fails_says_what_it_said(measure):
    with pytest.raises(RuntimeError, match="exited with 3: no luck"):
        measure.peak_bytes(sys.executable, "-c", "import sys; sys.exit(print('no luck', file=sys.stderr) or 3)")


def test_a_section_that_fails_leaves_the_others_and_its_own_rows(measure, monkeypatch, capsys):
    import bench

    def packages(_):
        yield measure.Row(section="packages", name="before")
        measure.command(sys.executable, "-c", "import sys; print('no [kotlinc]'); sys.exit(4)")

    def last(_):
        yield measure.Row(section="last", name="after")

    monkeypatch.setattr(bench, "SECTIONS", {"packages": packages, "last": last})
    monkeypatch.setattr(bench, "MODEL", SCRIPTS)
    for asked in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["bench", *asked])
        with pytest.raises(SystemExit, match=r"^1$"):
            bench.main()
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("packages: ")]
        assert line.startswith("packages: not measured: ")
        assert line.endswith(" exited with 4: no [kotlinc]")
    rows = json.loads(out)["rows"]
    assert [row["name"] for row in rows] == ["before", "packages", "after"]
    assert rows[1]["note"] == line.removeprefix("packages: ")
    assert rows[1]["is_met"] is None


def test_sections_without_their_data_are_skipped_with_a_reason(tmp_path):
    shutil.copytree(SCRIPTS, tmp_path / "repo" / "scripts")
    done = subprocess.run(
        [sys.executable, tmp_path / "repo/scripts/bench.py", "export", "evaluate", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = json.loads(done.stdout)["rows"]
    assert [row["section"] for row in rows] == ["export", "evaluate"]
    assert all(row["note"] == f"skipped: needs {tmp_path / 'shared' / 'data'}" for row in rows)
    assert all(row["is_met"] is None for row in rows)

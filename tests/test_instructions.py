"""What is told of instructions beside published milliseconds: from a table whose every figure has its source."""

import csv
import statistics

import pytest

from edgedl.latency import figures, instructions


def rows():
    with instructions.FIGURES.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['model']} on {row['core']}")
def test_milliseconds_are_those_of_the_published_figures(row):
    sources = row["source"].split()
    published = [f for f in figures.read() if f.source in sources]
    assert len(published) == len(sources)
    assert {(f.runtime, f.version, f.model) for f in published} == {("microtvm", "cmsis-nn", row["model"])}
    assert float(row["latency_ms"]) == statistics.median(f.latency_ms for f in published)
    assert row["counted"].startswith("qemu-system-arm ")
    assert row["system"].startswith("mlcommons/tiny_results")


def test_their_spread_is_told_beside_the_instructions():
    found = instructions.cycles_per_instruction("cortex-m4")
    assert len(found) == 4
    resnet8 = 389.5598e-3 * 120e6 / 33_707_414
    assert found["ResNet8 CIFAR-10 32x32x3"] == pytest.approx(resnet8) == min(found.values())
    told = instructions.beside("cortex-m4")
    assert told.startswith("instructions are a tripwire, not a speed: published times of 4 networks of MLPerf Tiny")
    assert f"{resnet8:.2f} to {max(found.values()):.2f} cycles an instruction" in told


def test_a_core_without_such_figures_is_told_so():
    told = instructions.beside("cortex-a72")
    assert told.endswith("no published milliseconds of the same kernels on a cortex-a72 to set them beside")

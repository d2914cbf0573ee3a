"""The arena: TFLM's own figures reproduced by the planner, and what CMSIS-NN's kernels add on a core."""

import pytest
from crafted import small_model

from edgedl_tflm import arena, cmsis_nn, graph, interpreter, planner
from edgedl_tflm.planner import Buffer


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("arena") / "m.tflite").read_bytes()


def test_planner_gives_the_head_that_tflm_allocates(content):
    model = graph.read(content)
    assert planner.planned_bytes(planner.tensors(model)) == arena.measure(content).tensors == 64 + 256


def test_planner_reuses_what_is_free_and_fills_gaps():
    chain = [Buffer(size_bytes=100, first=i, last=i + 1) for i in range(4)]
    assert planner.planned_bytes(chain) == 200
    gap = [Buffer(size_bytes=48, first=0, last=0), Buffer(size_bytes=96, first=0, last=9), *chain[:1]]
    assert planner.planned_bytes(gap) == 100 + 96 + 48
    assert planner.planned_bytes([]) == 0


def test_smallest_arena_works_and_a_smaller_one_does_not(content):
    found = arena.measure(content)
    assert interpreter.works(content, found.smallest)
    assert not interpreter.works(content, found.smallest - 64)
    assert found.tensors + found.persistent <= found.smallest


# arm_convolve_s8: two int16 columns of 3 x 3 x 1, padded to 12, or on Helium four int8 ones padded to 16
@pytest.mark.parametrize(
    ("core", "scratch", "sums"), [("cortex-m4", 48, 0), ("cortex-m55", 64, 16), ("cortex-m0", 48, 0)]
)
def test_predicted_arena_holds_the_scratch_of_the_core(content, core, scratch, sums):
    found = arena.measure(content)
    told = arena.predict(content, found, core)
    assert told.scratch == scratch
    assert told.persistent == found.persistent + sums
    assert told.largest == f"{scratch} bytes in operator 0, CONV_2D"
    assert told.low < told.tensors + told.scratch + told.persistent <= told.high


def test_predicted_arena_of_another_core_names_what_is_not_counted(content):
    told = arena.predict(content, arena.measure(content), "riscv32")
    assert (told.scratch, told.unknown) == (0, ("CONV_2D", "FULLY_CONNECTED"))
    assert arena.predict(content, arena.measure(content), "xtensa-lx7").unknown == ("CONV_2D",)


def test_every_core_is_in_one_family_only():
    assert len(set(cmsis_nn.CORES)) == len(cmsis_nn.CORES)

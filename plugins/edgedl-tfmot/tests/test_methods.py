"""TFMOT's methods, as one process of its own measured them on runs of three steps, and networks carried to Keras 2."""

import pytest


def test_networks_answer_the_same_in_keras_2(measured):
    assert set(measured["networks"]) == {"attention", "recurrent", "sequential", "nested"}
    assert max(measured["networks"].values()) < 3e-5


@pytest.mark.parametrize(("run", "share"), [("three steps", 0.7), ("constant", 0.9)])
def test_prune_reaches_the_sparsity_in_three_steps(measured, run, share):
    found = measured["methods"][run]
    assert found["zeros"]["conv"] == pytest.approx(share, abs=2e-3)
    assert found["zeros"]["kind"] == pytest.approx(share, abs=2e-3)
    assert found["zeros"]["wide"] == 0  # TFMOT prunes no depthwise kernels, and it is said
    assert found["notes"][0].startswith("TFMOT pruned 2 of 3 layers with kernels: 70" if share == 0.7 else "TFMOT")
    assert "not pruned, as TFMOT cannot: wide" in found["notes"]


def test_prune_of_one_seed_gives_one_model(measured):
    assert measured["methods"]["three steps"]["sum"] == measured["methods"]["again"]["sum"]


def test_prune_two_of_four_along_the_inputs(measured):
    found = measured["methods"]["2:4"]
    assert found["zeros"]["conv"] == found["zeros"]["kind"] == 0.5
    assert found["pairs"] == 9 * 16


def test_prune_blocks_of_dense_kernels_alone(measured):
    found = measured["methods"]["block"]
    assert found["zeros"]["conv"] == 0
    assert found["fours"] == pytest.approx(0.7, abs=0.01)


def test_qat_keeps_what_was_compressed(measured):
    done = measured["methods"]
    assert done["pqat"]["zeros"]["conv"] >= 0.699
    assert done["pqat"]["zeros"]["kind"] >= 0.699
    assert max(done["cqat"]["values"][n] for n in ("conv", "kind")) <= 8
    assert done["pcqat"]["zeros"]["conv"] >= 0.69
    assert max(done["pcqat"]["values"][n] for n in ("conv", "kind")) <= 8
    assert max(done["per channel"]["values"]["conv"], done["per channel"]["values"]["kind"]) <= 4


@pytest.mark.parametrize(("method", "what"), [("pqat", "zeros"), ("cqat", "clusters")])
def test_qat_that_keeps_refuses_where_there_is_nothing_to_keep(measured, method, what):
    message = measured["methods"][f"{method} alone"]["error"]
    assert message.startswith(f"InputError: {method} keeps {what}, and no kernel has")


def test_qat_gives_layers_that_it_left_out_back_as_they_were(measured):
    assert measured["skipped"] == {"both": 0, "attention": 0}

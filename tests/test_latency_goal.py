"""Latency goals: the search on functions, and `edgedl compress` with one."""

import pytest

from edgedl.errors import InputError
from edgedl.latency_goal import macs_for


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("bend", [1.0, 0.7, 1.4])
def test_the_share_that_meets_a_goal_is_found(constant, bend):
    def latency_of(share):
        return constant + (1 - constant) * share**bend

    share, left = macs_for(0.5, latency_of, "here")
    assert left == latency_of(share)
    assert 0.43 < left <= 0.5


def test_a_goal_below_what_any_share_leaves_is_refused():
    with pytest.raises(InputError, match=r"here: goal latency 0.5 was not met: 0\.8\d of the latency is left with"):
        macs_for(0.5, lambda share: 0.8 + 0.2 * share, "here")


def test_compress_meets_a_latency_goal_and_says_the_macs(cli, tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((24, 24, 3), name="image")
    for width in (32, 48):
        x = keras.layers.Conv2D(width, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="kind")(x))
    model.save(tmp_path / "m.keras")
    (tmp_path / "r.toml").write_text(
        '[[step]]\nkind = "prune"\nmethod = "channels"\ngoal = { latency = 0.5 }\niterations = 2\n'
    )
    answer = cli(
        "compress", tmp_path / "m.keras", "--recipe", tmp_path / "r.toml", "-o", tmp_path / "out.keras", "--json"
    )
    assert answer.code == 0, answer.err
    before, after = answer.json["rows"]
    assert after["macs"] < 0.8 * before["macs"]
    note = next(n for n in after["notes"] if "goal latency 0.5" in n)
    assert "goal = { macs = 0." in note
    assert "trying 50.0% of the MACs" in answer.err


def test_a_latency_goal_is_refused_in_a_notebook_and_beside_macs():
    import keras

    import edgedl

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    step = {"kind": "prune", "method": "channels", "goal": {"latency": 0.5}}
    with pytest.raises(InputError, match=r"goal latency is measured by `edgedl compress`; give macs here"):
        edgedl.compress(model, {"step": [step]}, None)
    with pytest.raises(InputError, match=r"goal has latency: macs and parameters are what it is turned into"):
        edgedl.compress(model, {"step": [step | {"goal": {"latency": 0.5, "macs": 0.5}}]}, None)

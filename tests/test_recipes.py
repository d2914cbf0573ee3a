from dataclasses import fields
from pathlib import Path

import pytest

from edgedl import plugins, recipes
from edgedl.errors import InputError
from edgedl.recipes import Distill, Training

TWO_STEPS = """
[[step]]
kind = "fold"

[[step]]
kind = "prune"
method = "channels"
sparsity = 0.5
match = "conv*"
training = { epochs = 2, distill = { alpha = 1 } }
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return to_file


@pytest.mark.parametrize("name", recipes.shipped())
def test_shipped_recipes_load_and_say_what_they_do(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.steps
    assert recipe.about


def test_readme_tells_every_recipe_and_every_key():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Recipes\n") : readme.index("## Schemes\n")]
    kinds = [p.name for p in plugins.listing("compressors") if not p.name.startswith("tfmot")]
    keys = [f.name for kind in kinds for f in fields(plugins.load("compressors", kind).options)]
    keys += [f.name for part in (Training, Distill) for f in fields(part)]
    words = [*recipes.shipped(), *(part for kind in kinds for part in kind.split(".")), *keys]
    assert [word for word in words if f"`{word}`" not in section] == []


def test_load_gives_steps_with_their_options(write):
    fold, prune = recipes.load(write(TWO_STEPS)).steps
    assert (fold.kind, fold.compressor, fold.training) == ("fold", "fold", None)
    assert prune.compressor == "prune.channels"
    assert prune.options.sparsity == 0.5
    assert prune.match == ("conv*",)
    assert prune.training == Training(epochs=2, distill=Distill(alpha=1.0))
    assert prune.where == "mine.toml: step 2 (prune)"


@pytest.mark.parametrize("step", ["2", "prune", "channels"])
def test_set_takes_a_step_by_number_kind_or_method(write, step):
    changes = (f"{step}.sparsity=0.25", f"{step}.training.distill.temperature=7", f"{step}.importance=taylor")
    prune = recipes.load(write(TWO_STEPS), (*changes, f'{step}.skip=["a", "b"]')).steps[1]
    assert prune.options.sparsity == 0.25
    assert prune.options.importance == "taylor"
    assert prune.training.distill.temperature == 7
    assert prune.training.epochs == 2
    assert prune.skip == ("a", "b")


def test_set_wants_one_step(write):
    twice = write(TWO_STEPS + '[[step]]\nkind = "prune"\nmethod = "dead"\n')
    with pytest.raises(InputError, match=r"names steps 2 and 3; write its number; mine.toml has 1 fold, 2 prune, 3 pr"):
        recipes.load(twice, ("prune.sparsity=0.1",))
    with pytest.raises(InputError, match=r"names no step \(did you mean 'prune'\?\)"):
        recipes.load(twice, ("prun.sparsity=0.1",))
    with pytest.raises(InputError, match=r"must be STEP.KEY=VALUE"):
        recipes.load(twice, ("sparsity=0.1",))
    with pytest.raises(InputError, match="kind of step 1 is no table but 'fold'"):
        recipes.load(twice, ("1.kind.x=0.1",))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("prune.sparsity=1.0", r"mine.toml: step 2 \(prune\): sparsity must be in \(0, 1\), got 1.0"),
        ("prune.sparsty=0.5", r"mine.toml: step 2 \(prune\): unknown key 'sparsty' \(did you mean 'sparsity'\?\)"),
        ("prune.goal={macs=0.5}", r"step 2 \(prune\): give either goal, such as \{ macs = 0.5 \}, or sparsity"),
        ("prune.training.epochs=0", r"step 2 \(prune\): \[training\]: epochs must be in \[1, inf\), got 0"),
        ("prune.training.epoch=1", r"\[training\]: unknown key 'epoch' \(did you mean 'epochs'\?\)"),
        (
            "prune.method=chanels",
            r"step 2 \(prune\): method must be one of .*; got 'chanels' \(did you mean 'channels'",
        ),
        ("fold.kind=fodl", r"step 1 \(fodl\): no plugin does kind 'fodl' \(did you mean 'fold'\?\); allowed: "),
        ("fold.training.epochs=2", r"step 1 \(fold\): training: this step trains nothing; give train"),
        ("fold.kind=3", r"step 1: kind must be one of .*fold.*, got 3"),
        ("fold.method=quick", r"step 1 \(fold\): kind 'fold' has no methods; leave method = 'quick' out"),
        ("prune.match=3", r"step 2 \(prune\): match must be a string or an array, each a string, got 3"),
        ('prune.training.augment=["mixup"]', None),
        ("prune.training.distill.alpha=0", r"\[training.distill\]: alpha must be in \(0, 1\], got 0"),
    ],
)
def test_errors_name_file_step_and_key(write, change, told):
    if told is None:
        assert recipes.load(write(TWO_STEPS), (change,)).steps[1].training.augment == ("mixup",)
        return
    with pytest.raises(InputError, match=told):
        recipes.load(write(TWO_STEPS), (change,))


def test_an_average_has_no_best_epoch(write):
    with pytest.raises(InputError, match=r"step 2 .*average keeps the mean of the last weights, patience"):
        recipes.load(write(TWO_STEPS), ("2.training.average=true", "2.training.patience=3"))


def test_dead_channels_go_without_training(write):
    with pytest.raises(InputError, match=r"step 1 \(prune\): training: this step trains nothing"):
        recipes.load(write('[[step]]\nkind = "prune"\nmethod = "dead"\ntraining = { epochs = 2 }\n'))


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"patience": 2, "schedule": "cosine"}, "where schedule cosine would start again; leave one out"),
        ({"average": True, "schedule": "cosine"}, "average takes the place of a schedule: leave it or schedule"),
    ],
)
def test_rates_that_would_not_be_what_they_say(training, told):
    step = {"kind": "prune", "method": "magnitude", "sparsity": 0.5, "training": training}
    with pytest.raises(InputError, match=rf"recipe: step 1 \(prune\): .*{told}"):
        recipes.from_table({"step": [step]})


@pytest.mark.parametrize("kind", ["mixup", "auto"])
def test_samples_without_labels_need_a_teacher_alone(write, kind):
    with pytest.raises(InputError, match=rf"{kind} makes samples without labels: it needs distill = {{ alpha = 1 }}"):
        recipes.load(write(TWO_STEPS), (f'2.training.augment=["{kind}"]', "2.training.distill.alpha=0.5"))


def test_load_refuses_what_is_no_recipe(write, tmp_path):
    with pytest.raises(InputError, match=r"no such recipe: 'fild' \(did you mean 'fold'\?\); allowed: .*channels-50"):
        recipes.load("fild")
    with pytest.raises(InputError, match="cannot be read"):
        recipes.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"mine.toml: there is no \[\[step\]\]"):
        recipes.load(write("step = []"))
    with pytest.raises(InputError, match=r"mine.toml: step is missing"):
        recipes.load(write("name = 'x'"))
    with pytest.raises(InputError, match=r"kind must be one of .*, got None"):
        recipes.load(write("[[step]]\nsparsity = 0.5"))


def test_from_table_leaves_the_callers_table_alone():
    table = {"step": [{"kind": "prune", "method": "channels", "sparsity": 0.5}]}
    assert recipes.from_table(table, overrides=("1.sparsity=0.2",)).steps[0].options.sparsity == 0.2
    assert table["step"][0]["sparsity"] == 0.5

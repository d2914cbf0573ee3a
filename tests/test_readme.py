"""README.md: it names what there is and nothing else, and its tour is run as it stands."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from fences import fences

import edgedl
from edgedl import plugins, preprocessing, recipes, targets
from edgedl.cli import COMMANDS
from edgedl.cli import edgedl as group
from edgedl.errors import EdgedlError
from edgedl.packaging.card import Card
from edgedl.packaging.content import FIRST
from edgedl.packaging.verification import STEPS
from edgedl.pipeline_file import Tables
from edgedl.readers import DataFile
from edgedl.training.architectures import ARCHITECTURES
from edgedl.types import SCHEME_ALIASES, Method, Scheme, Verdict
from edgedl.validation.gates import UNITS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def section(heading):
    """The text under a heading, up to the next of its level or above."""
    level, _, name = heading.partition(" ")
    found = re.search(rf"^{level} [^\n]*\b{re.escape(name)}\b.*?(?=^#{{1,{len(level)}}} |\Z)", TEXT, re.M | re.S)
    assert found, f"README.md has no section {heading!r}"
    return found[0]


def commands(text):
    """The `$ edgedl` lines of a text with the exit code they say, by default 0."""
    for line in text.splitlines():
        if line.startswith("$ edgedl "):
            said = re.search(r"# exits with (\d+)$", line)
            yield shlex.split(line[2:], comments=True)[1:], int(said[1]) if said else 0


def command(name):
    return group.get_command(click.Context(group), name)


def long_options(of):
    return {o for p in of.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}


def subcommands(of):
    return list(of.commands.values()) if isinstance(of, click.Group) else []


SHARED = set(re.findall(r"--[a-z][a-z-]*", section("## Commands").split("###")[0]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_described_with_all_its_options_and_no_other(name):
    text = section(f"### edgedl {name}") if name not in ("doctor", "demo") else section("### edgedl plugins")
    assert f"edgedl {name}" in text
    own = set().union(*map(long_options, [command(name), *subcommands(command(name))]))
    missing = own - SHARED - set(re.findall(r"--[a-z][a-z-]*", text))
    assert not missing, f"README.md, {name}: not described: {', '.join(sorted(missing))}"
    for sub in subcommands(command(name)):
        assert f"edgedl {name} {sub.name}" in text


def test_no_option_is_named_that_no_command_has():
    every = {"--help"}.union(*(long_options(c) for n in COMMANDS for c in [command(n), *subcommands(command(n))]))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT))
    assert named <= every, named - every
    assert every <= named, every - named


@pytest.mark.parametrize("arguments", [a for a, _ in commands(TEXT)], ids=" ".join)
def test_every_command_line_shown_is_understood(arguments):
    name, *rest = arguments
    parsed = command(name).make_context(name, rest)  # raises on what the command does not take
    assert parsed.command is command(name)


def test_shared_options_are_shared():
    counted = {o: sum(o in long_options(command(n)) for n in COMMANDS) for o in SHARED - {"--help", "--out"}}
    assert all(count > 1 for count in counted.values()), counted


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("## Schemes", [*Scheme, *SCHEME_ALIASES]),
        ("## Metrics", [p.name for p in plugins.listing("metrics")]),
        ("## Preprocessing", list(preprocessing.OPS)),
        ("## Preprocessing", [f.name for op in preprocessing.OPS.values() for f in dataclasses.fields(op)]),
        ("## Checks and limits", [*Method, *Verdict]),
        ("## Checks and limits", [f"{name}`*" for name in UNITS]),
        ("## Checks and limits", [f"`{step}`" for step in STEPS]),
        ("## Targets", list(targets.listing())),
        ("## Data", [f.name for f in dataclasses.fields(DataFile) if f.name != "preprocess"]),
        ("## Pipeline file", [f.name for f in dataclasses.fields(Tables)]),
        ("### edgedl package", [f"`{p.name}`" for p in plugins.listing("packagers")]),
        ("### edgedl package", [f"`{f.name}`" for f in dataclasses.fields(Card)]),
        ("### edgedl train", [a.name for a in ARCHITECTURES]),
        ("## From Python", list(edgedl.__all__)),
    ],
)
def test_closed_sets_are_listed_whole(heading, names):
    text = section(heading)
    missing = [n for n in names if not re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", text)]
    assert not missing, f"README.md, {heading}: {', '.join(missing)} missing"


def test_the_checks_that_the_code_makes_are_listed():
    files = [*ROOT.glob("edgedl/**/*.py"), *ROOT.glob("plugins/*/edgedl_*/**/*.py")]
    made = {name for f in files for name in re.findall(r"\bCheck\(\s*name=f?\"(?:{\w+})?_?(\w+)\"", f.read_text())}
    assert {"size_bytes", "runs", "mcnemar_p", "npu_cycles", "cpu_ops"} <= made
    text = section("## Checks and limits")
    missing = {name for name in made if not re.search(rf"[`._]{name}`", text)}
    assert not missing, missing


def test_exit_codes_are_listed():
    codes = set(re.findall(r"^\| (\d+) \|", section("## Exit codes"), re.M))
    errors = [EdgedlError, *EdgedlError.__subclasses__()]
    assert codes == {"0", "7", "130", *(str(e.exit_code) for e in errors)}


def test_environment_variables_of_the_code_are_listed():
    files = [*ROOT.glob("edgedl/**/*.py"), *ROOT.glob("plugins/*/edgedl_*/**/*.py")]
    used = {name for f in files for name in re.findall(r"\"(EDGEDL_[A-Z_]+)\"", f.read_text())}
    inner = {"EDGEDL_PROGRESS"}  # from the parent to a child
    assert used - inner == set(re.findall(r"^\| `(EDGEDL_\w+)`", section("## Environment variables"), re.M))


def test_the_recipe_shown_is_one(tmp_path):
    (text,) = (f.text for f in fences(ROOT / "README.md") if f.above == "`recipe.toml`")
    (tmp_path / "recipe.toml").write_text(text)
    steps = recipes.load(tmp_path / "recipe.toml", ["channels.goal.macs=0.7"]).steps
    assert [step.compressor for step in steps] == ["prune.channels", "quantize"]


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", TEXT):
        assert (ROOT / link).exists(), link
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)", TEXT, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= headings


def test_no_path_of_a_machine_and_no_package_index_is_named():
    assert not re.search(r"/(home|root|tmp|work)/|pypi|https?://", TEXT)


def test_the_readme_says_the_truth_about_defaults():
    text = section("### edgedl train")
    defaults = {p.name: p.default for p in command("train").params}
    assert "{epochs}, {batch_size}, {learning_rate}".format(**defaults) in text
    samples = next(p.default for p in command("export").params if p.name == "samples")
    assert f"calibration samples, {samples}," in section("### edgedl export")
    assert f"and {FIRST}" in section("### edgedl package")


def test_the_tour_and_every_example_do_what_they_say(cli, tmp_path, monkeypatch):
    """Every file is written, every command run, in the order of the text; exit codes are those it says."""
    monkeypatch.chdir(tmp_path)
    for fence in fences(ROOT / "README.md"):
        if named := re.fullmatch(r"`(\w+\.\w+)`", fence.above):
            (tmp_path / named[1]).write_text(fence.text)
        if named and named[1] == "own.py":
            subprocess.run([sys.executable, "own.py"], check=True, capture_output=True, timeout=120)
        elif fence.language == "python" and not named:
            exec(fence.text, {})  # noqa: S102  our own text
        for arguments, code in commands(fence.text):
            answer = cli(*arguments)
            assert answer.code == code, f"{arguments}: {answer.err}"
            last = fence.text.splitlines()[-1]
            if len(fence.text.splitlines()) > 2 and not re.search(r"\d+ ms$", last) and fence.text.count("$ ") == 1:
                assert answer.out.splitlines()[-1] == last  # the result is the one shown

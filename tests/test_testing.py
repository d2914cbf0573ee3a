"""`edgedl.testing`: the built-in plugins keep their contract, and one that breaks a rule is told which."""

import os
import sys

import numpy as np
import pytest

from edgedl import plugins, testing, worker
from edgedl.testing import ContractError
from edgedl.types import Layout

BROKEN = '''
import os
import types

from edgedl.errors import InputError
from edgedl.types import AgentRuntime, ExportResult


class Copy:
    """The TFLite file under another name: keeps the contract but for what a subclass breaks."""

    schemes = ("fp32",)
    source = ("tflite", "")
    refusal = "no scheme {}"

    @property
    def suffixes(self):
        return (f".{self.format}",)

    def export(self, model, out, *, scheme, source, calibration, options):
        if scheme not in self.schemes and self.refusal:
            from edgedl.errors import UnsupportedError

            raise UnsupportedError(self.refusal.format(scheme))
        out.write_bytes(self.content(source, out))
        return ExportResult(path=out)

    def content(self, source, out):
        return source.read_bytes()


class Good(Copy):
    format = "good"


class Misnamed(Copy):
    format = "another"


class Unknown(Copy):
    format, schemes = "unknown", ("fp32", "int9")


class Orphan(Copy):
    format, source = "orphan", ("onnx", "weight_only_wi4_afp32")


class Random(Copy):
    format = "random"

    def content(self, source, out):
        return source.read_bytes() + os.urandom(8)


class Littering(Copy):
    format = "littering"

    def content(self, source, out):
        out.with_suffix(".log").write_text("done")
        return source.read_bytes()


class Crashing(Copy):
    format = "crashing"

    def content(self, source, out):
        return 1 / 0


class Anything(Copy):
    format, refusal = "anything", ""


class Speechless(Copy):
    format, refusal = "speechless", "cannot"


class Other(Copy):
    """Another network than the one asked for; `changed` says how."""

    format, source = "other", None

    def changed(self, keras, network):
        network.set_weights([w * 1.5 for w in network.get_weights()])
        return network

    def export(self, model, out, *, scheme, source, calibration, options):
        import keras
        from edgedl_tflite.exporter import TFLiteExporter

        file = out.with_name("changed.keras")
        self.changed(keras, keras.saving.load_model(model)).save(file)
        TFLiteExporter().export(file, out, scheme=scheme, options=options)
        file.unlink()
        return ExportResult(path=out)


class Swapped(Other):
    format = "swapped"

    def changed(self, keras, network):
        return keras.Model(network.inputs[::-1], network.outputs)


def reads(format_):
    module, described = "ai_edge_litert.interpreter", "edgedl_tflite.describe:describe"
    return AgentRuntime(name="litert", format=format_, module=module, install="", describe=described)


READS_GOOD, READS_OTHER, READS_SWAPPED = reads("good"), reads("other"), reads("swapped")
FOREIGN = AgentRuntime(name="mine", format="mine", module="mine.interpreter", install="")
SHAPELESS = types.SimpleNamespace(format="shapeless")
'''
EXPORTERS = (
    *("Good", "Misnamed", "Unknown", "Orphan", "Random", "Littering"),
    *("Crashing", "Anything", "Speechless", "Other", "Swapped"),
)
RUNTIMES = ("READS_GOOD", "READS_OTHER", "READS_SWAPPED", "FOREIGN", "SHAPELESS")


@pytest.fixture(scope="module")
def _broken(tmp_path_factory):
    """A distribution of plugins that each break one rule, as this process and its children find it."""
    place = tmp_path_factory.mktemp("broken")
    (place / "broken_plugins.py").write_text(BROKEN)
    facts = place / "broken-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    groups = (("exporters", EXPORTERS), ("runtimes", RUNTIMES))
    lines = [
        line
        for group, names in groups
        for line in (f"[edgedl.{group}]", *(f"{n.lower()} = broken_plugins:{n}" for n in names))
    ]
    (facts / "entry_points.txt").write_text("\n".join(lines))
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(place))
    patch.setattr(sys, "path", [*sys.path, str(place)])
    worker.close()  # the children there are do not know the place
    plugins.listing.cache_clear()
    yield
    patch.undo()
    worker.close()
    plugins.listing.cache_clear()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The built-in exporters' contract, kept; the int8 files it left."""
    folder = tmp_path_factory.mktemp("contract")
    for name, schemes in (("tflite", ("fp32", "int8")), ("onnx", ("int8",))):
        (folder / name).mkdir()
        testing.check_exporter(name, folder / name, schemes=schemes)
    return {name: folder / name / "static_wi8_ai8" / f"model.{name}" for name in ("tflite", "onnx")}


@pytest.mark.parametrize(("name", "format_"), [("litert", "tflite"), ("onnxruntime", "onnx")])
def test_the_built_in_plugins_keep_their_contract(artifacts, name, format_):
    testing.check_runtime(name, artifacts[format_])


def test_a_sound_exporter_of_another_package_passes(_broken, tmp_path):
    testing.check_exporter("good", tmp_path)
    testing.check_runtime("reads_good", tmp_path / "fp32" / "model.good")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("misnamed", "its format is 'another'; the name of the entry point and it must agree"),
        ("unknown", "schemes are from fp32, fp16.*; got int9"),
        ("orphan", "made from onnx, which has no weight_only_wi4_afp32"),
        ("random", "fp32: the same model, data and seed give other bytes the second time"),
        ("littering", "fp32: writes model.log beside the file asked for"),
        ("crashing", "fp32: EdgedlError: .*ZeroDivisionError"),
        ("anything", "fp16, which is not among its schemes, must raise UnsupportedError; it did the export"),
        ("speechless", "refuses fp16 without naming it: cannot"),
        ("other", "output 'kind' is off by .* of its range, 0.0001 are allowed"),
        ("swapped", r"inputs are named \['extra', 'picture'\]; the model's names and order are \['picture', 'extra'\]"),
    ],
)
def test_an_exporter_that_breaks_a_rule_is_told_which(_broken, tmp_path, name, rule):
    with pytest.raises(ContractError, match=rule):
        testing.check_exporter(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("foreign", r"mine \(mine.interpreter\) names no model, and is none that the agent runs: litert"),
        ("shapeless", "must be an edgedl.types.AgentRuntime, got SimpleNamespace"),
    ],
)
def test_a_runtime_that_breaks_a_rule_is_told_which(_broken, tmp_path, name, rule):
    with pytest.raises(ContractError, match=rule):
        testing.check_runtime(name, tmp_path / "model.tflite")


@pytest.mark.parametrize("name", ["top1", "f1", "auc", "top2"])
def test_the_built_in_metrics_keep_their_contract(name):
    rng = np.random.default_rng(0)
    testing.check_metric(name, rng.random((40, 3), np.float32), rng.integers(0, 3, 40))


class Broken:
    name, higher_is_better, per_sample = "broken", True, True

    def __init__(self, score):
        self.score = score


def changing(outputs, targets):
    outputs *= 2
    return outputs[:, 0]


@pytest.mark.parametrize(
    ("score", "rule"),
    [
        (changing, "changes the arrays that it is given"),
        (lambda o, t: o.mean(), r"the shape must be \(20,\), got \(\)"),
        (lambda o, t: o[:, 0] * np.nan, "gives NaN or infinity"),
        (lambda o, t: np.arange(len(o)), "the same samples in another order give another score"),
    ],
)
def test_a_metric_that_breaks_a_rule_is_told_which(monkeypatch, score, rule):
    monkeypatch.setattr("edgedl.validation.metrics.resolve", lambda name: Broken(score))
    with pytest.raises(ContractError, match=rule):
        testing.check_metric("broken", np.random.default_rng(0).random((20, 3)), np.zeros(20, int))


class _Packager:
    platform, formats = "mine", ("tflite",)

    def lay_out(self, content, tree):
        (tree / "own.txt").write_bytes(self.text(content))
        return Layout(file="mine.tgz", content="package/model")

    def text(self, content):
        return content.manifest["name"].encode()


class _Random(_Packager):
    def text(self, content):
        return os.urandom(8)


class _Failing(_Packager):
    def text(self, content):
        message = "no room"
        raise OSError(message)


class _Another(_Packager):
    platform = "another"


class _Listing(_Packager):
    formats = ["tflite"]  # noqa: RUF012


class _Meddling(_Packager):
    def lay_out(self, content, tree):
        (tree / "manifest.json").touch()
        return super().lay_out(content, tree)


@pytest.mark.parametrize("name", ["zip", "python", "c"])
def test_packagers_of_edgedl_keep_their_contract(name, tflites, tmp_path):
    testing.check_packager(name, tflites / "int8.tflite", tmp_path)


@pytest.mark.parametrize(
    ("packager", "message"),
    [
        (_Packager, None),
        (_Random, "packager mine: the same artifact gives other bytes the second time"),
        (_Failing, "packager mine: OSError: no room"),
        (_Another, "packager mine: its platform is 'another'; the name of the entry point and it must agree"),
        (_Listing, "packager mine: formats must be a tuple, empty for any, got"),
        (_Meddling, "packager mine: EdgedlError: packager 'mine' writes 'manifest.json', which edgedl itself writes"),
    ],
)
def test_packager_that_breaks_a_rule_is_told_which(tflites, tmp_path, monkeypatch, packager, message):
    real = plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: packager() if name == "mine" else real(group, name))
    if message is None:
        testing.check_packager("mine", tflites / "int8.tflite", tmp_path)
        return
    with pytest.raises(ContractError) as refused:
        testing.check_packager("mine", tflites / "int8.tflite", tmp_path)
    assert message in str(refused.value)

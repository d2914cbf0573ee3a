"""Which kernels stand in for a target's, and that no figure bears the name of others than those that gave it."""

from pathlib import Path

import pytest

from edgedl import devices
from edgedl.devices.benchmark_model import BenchmarkModelDevice
from edgedl.errors import InputError
from edgedl.types import Artifact, Lineage, Method, Target, TargetRuntime
from edgedl.validation import device_benchmark, on_device
from edgedl.validation.settings import setting_for


def artifact(format_="tflite"):
    return Artifact(path=Path(f"m.{format_}"), format=format_, scheme="fp32", sha256="0", size_bytes=5,
                    compressed_bytes=5, inputs=(), outputs=(), lineage=Lineage())  # fmt: skip


def target(resolver, fallback=(), runtime="litert", format_="tflite"):
    runtimes = (TargetRuntime(name=runtime, format=format_, resolver=resolver, fallback=fallback),)
    return Target(id="phone", name="Phone", source="", formats=(format_,), runtimes=runtimes)


class Place:
    """A devices.Place of a phone."""

    def __init__(self, gives):
        self.gives = gives


def at(monkeypatch, gives):
    place = Place(gives)
    monkeypatch.setattr(devices, "place_of", lambda target: (place, ""))
    monkeypatch.setattr(devices, "gives", lambda target: gives)
    return place


@pytest.mark.parametrize(
    ("profile", "kernels", "said"),
    [
        (target("xnnpack"), "xnnpack", []),
        (target("builtin"), "builtin", []),
        (target("gpu"), "xnnpack", ["target phone: outputs are those of xnnpack on the CPU, in place of gpu"]),
        (target("npu", ("gpu", "builtin")), "builtin",
         ["target phone: outputs are those of builtin on the CPU, in place of npu"]),
        (target("gpu", (), "onnxruntime", "onnx"), None,
         ["target phone: outputs are those of onnxruntime on the CPU, in place of gpu"]),
        (target("gpu", (), "nothing-here"), "xnnpack",
         ["target phone: outputs are those of litert with xnnpack kernels on this machine, in place of nothing-here"]),
    ],
)  # fmt: skip
def test_a_gpu_or_npu_is_stood_in_for_by_name(profile, kernels, said):
    setting, notes = setting_for(artifact(profile.formats[0]), profile, runtime=None, threads=1)
    assert (setting.resolver, setting.delegate) == (kernels, None)
    assert notes == said


@pytest.mark.parametrize("gives", ["outputs", "instructions"])
def test_a_device_that_runs_the_agent_is_asked_for_no_gpu(monkeypatch, gives):
    place = at(monkeypatch, gives)
    setting, _ = setting_for(artifact(), target("gpu"), runtime=None, threads=1)
    assert (setting.resolver, setting.delegate, setting.place) == ("xnnpack", None, place)


def test_a_device_that_gives_times_alone_is_asked_for_the_gpu(monkeypatch):
    at(monkeypatch, "times")
    setting, _ = setting_for(artifact(), target("gpu"), runtime=None, threads=1)
    assert (setting.resolver, setting.delegate) == ("xnnpack", "gpu")
    asked = on_device.asked_of(artifact(), setting, {})
    assert asked["resolver"] == "gpu"
    figures = on_device.Figures(where="there", method=Method.MEASURED_DEVICE)
    assert device_benchmark._row(artifact(), target("gpu"), setting, figures)["resolver"] == "gpu"


class Link:
    """A link on which nothing may happen."""

    where = "phone A"

    def run(self, command, timeout_s=0):
        return "/data/edgedl-x\n"

    def talk(self, command):
        return self


def test_benchmark_model_refuses_kernels_that_it_lacks():
    device = BenchmarkModelDevice(Link(), "/there/benchmark_model", base="/data")
    with pytest.raises(InputError, match="benchmark_model has no 'npu' kernels; allowed: xnnpack, builtin, gpu"):
        device.time({"artifact": "m.tflite", "threads": 1, "resolver": "npu"}, 1, 1)

"""What a device answers is checked before it is believed; devices of several targets work side by side."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest

from edgedl import artifacts, devices
from edgedl.devices import adb, qemu, ssh
from edgedl.errors import InputError, WorkerError
from edgedl.types import Artifact, Check, Count, Lineage, Method, TensorSpec, Verdict
from edgedl.validation import on_device
from edgedl.validation.evaluate import Setting
from edgedl.validation.gates import Gates
from edgedl.validation.on_device import Figures, Ran

COUNT = Count(
    instructions=1000, classes={"simd_fp": 750, "branch": 250}, core="cortex-a72", emulator="qemu-aarch64 7",
    runtime="litert 2", resolver="xnnpack", threads=1, inference=6,
)  # fmt: skip


class Device:
    """Answers with what a test gives it; `meet` is passed by all before one goes on."""

    name, method = "a device of the test", Method.EMULATED
    answer, meet, version = np.zeros((4, 3), np.float32), None, "1.0"

    def push(self, path, sha256):
        return str(path)

    def call(self, verb, request, timeout_s):
        if verb == "info":
            why = None if self.version else "No module named 'x'"
            return {"runtimes": {name: {"version": self.version, "why": why} for name in request["runtimes"]}}
        if self.meet:
            self.meet.wait(20)
        for path in request["outputs"].values():
            if isinstance(self.answer, bytes):
                Path(path).write_bytes(self.answer)
            elif self.answer is not None:
                np.save(path, self.answer)
        return {}

    def close(self):
        self.closed = True


class CountingDevice(Device):
    def count(self, request, timeout_s):
        if self.version == "uncountable":
            message = "gcc: not on this machine"
            raise InputError(message)
        return COUNT


class Place:
    """A devices.Place that opens what a test made, on a `board` or on none."""

    opened, gives, device = devices.Place.opened, "outputs", "test"

    def __init__(self, device, board=None):
        self.plugin, self.options = self, None
        self.open = lambda options: device
        self.board = lambda options: board


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"model")
    image = TensorSpec(name="image", dtype="float32", shape=(1, 2))
    kind = TensorSpec(name="kind", dtype="float32", shape=(1, 3))
    return Artifact(path=tmp_path / "m.tflite", format="tflite", scheme="fp32", sha256="0", size_bytes=5,
                    compressed_bytes=5, inputs=(image,), outputs=(kind,), lineage=Lineage())  # fmt: skip


@pytest.fixture
def inputs(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    return {"image": tmp_path / "x.npy"}


def setting(device, board=None):
    return Setting(runtime=artifacts.runtime_for("tflite"), resolver="xnnpack", place=Place(device, board))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((4, 2), np.float32), r"gave float32 \(4, 2\) for output 'kind', not float32 \(4, 3\)"),
        (np.zeros((3, 3), np.float32), r"gave float32 \(3, 3\)"),
        (np.zeros((4, 3, 1), np.float32), r"gave float32 \(4, 3, 1\)"),
        (np.zeros((4, 3)), r"gave float64 \(4, 3\)"),
        (b"no array", "gave no array for output 'kind'"),
        (b"", "gave no array for output 'kind'"),
        (None, "gave no array for output 'kind'"),
    ],
)
def test_an_answer_that_is_no_output_of_the_file_is_refused(artifact, inputs, answer, message):
    device = Device()
    device.answer = answer
    with pytest.raises(WorkerError, match=f"a device of the test {message}"):
        on_device.run(artifact, setting(device), inputs, repeats=1)
    assert device.closed


def test_a_runtime_that_is_not_there_is_named(artifact, inputs):
    device = Device()
    device.version = None
    with pytest.raises(InputError, match=r"litert does not start on a device of the test: No module .*\. There: "):
        on_device.run(artifact, setting(device), inputs, repeats=1)


@pytest.mark.parametrize("boards", [(None, None), ("pi:22", "pi:2222")])
def test_devices_of_several_targets_work_side_by_side(artifact, inputs, boards):
    two = [Device(), Device()]
    two[0].meet = two[1].meet = threading.Barrier(2)  # passed only where both are at work at once
    settings = [setting(*each) for each in zip(two, boards, strict=True)]
    found = on_device.run_all(artifact, settings, inputs, repeats=1)
    assert [r.figures.where for r in found] == ["litert 1.0 (xnnpack) on a device of the test"] * 2


class Shy(Device):
    """Waits a moment for another to come, and tells whether one did."""

    met = False

    def call(self, verb, request, timeout_s):
        with contextlib.suppress(threading.BrokenBarrierError):
            self.meeting.wait(0.2)
            self.met = True
        return super().call(verb, request, timeout_s)


def test_one_board_does_one_thing_at_a_time(artifact, inputs):
    two = [Shy(), Shy()]
    two[0].meeting = two[1].meeting = threading.Barrier(2)
    found = on_device.run_all(artifact, [setting(d, "pi:22") for d in two], inputs, repeats=1)
    assert [list(ran.outputs) for ran in found] == [["kind"], ["kind"]]
    assert [device.met for device in two] == [False, False]


@pytest.mark.parametrize(
    ("options", "board"),
    [
        (ssh.Options(host="pi"), "pi:22"),
        (ssh.Options(host="pi", port=22, user="other", python="other"), "pi:22"),
        (ssh.Options(host="pi", port=2222), "pi:2222"),
        (adb.Options(serial="A1", benchmark_model="x"), "A1"),
        (qemu.Options(), None),
    ],
)
def test_profiles_share_the_board_that_they_name(options, board):
    plugin = {ssh.Options: ssh.Ssh, adb.Options: adb.Adb, qemu.Options: qemu.Qemu}[type(options)]()
    assert plugin.board(options) == board


def test_instructions_are_a_check_with_its_limit(artifact, inputs):
    ran = on_device.run(artifact, setting(CountingDevice()), inputs, repeats=1)
    (check,) = on_device.checks(ran.figures, Gates(limits={"instructions": 999.0}), "pi")
    assert (check.name, check.measured, check.method, check.verdict) == ("instructions", 1000, "emulated", Verdict.FAIL)
    assert check.why == "cortex-a72, qemu-aarch64 7, litert 2 with xnnpack, 1 thread(s): simd_fp 75%, branch 25%"


def test_what_cannot_be_counted_is_said(artifact, inputs):
    device = CountingDevice()
    device.version = "uncountable"
    ran = on_device.run(artifact, setting(device), inputs, repeats=1)
    assert ran.figures.count is None
    assert ran.notes("pi")[1] == "target pi: instructions are not counted: gcc: not on this machine"


def test_only_what_was_run_there_bears_its_method():
    ran = Ran(outputs={}, figures=Figures(where="there", method=Method.EMULATED))
    checks = [
        Check(name=name, method=method)
        for name, method in (
            ("accuracy", Method.MEASURED_HOST), ("accuracy_reference", Method.MEASURED_HOST), ("io", Method.STATIC),
        )
    ]  # fmt: skip
    assert [c.method for c in on_device.relabelled(checks, ran)] == ["emulated", "measured-host", "static"]
    assert on_device.relabelled(checks, Ran(outputs={})) == checks


class Unplugged(Place):
    def __init__(self):
        super().__init__(None)
        self.open = self.fail

    def fail(self, options):
        message = "phone XYZ: adb does not reach it"
        raise InputError(message)


def test_a_device_that_is_not_there_leaves_the_others_to_their_work(artifact, inputs):
    settings = [setting(Device()), Setting(runtime=artifacts.runtime_for("tflite"), place=Unplugged())]
    found = on_device.run_all(artifact, settings, inputs, repeats=1, alone=False)
    assert [ran.lost for ran in found] == ["", "phone XYZ: adb does not reach it"]
    assert list(found[0].outputs) == ["kind"]
    assert found[1].outputs == {}
    with pytest.raises(InputError, match="phone XYZ: adb does not reach it"):
        on_device.run_all(artifact, settings, inputs, repeats=1)


def test_a_device_that_only_counts_gives_no_outputs(artifact, inputs, monkeypatch):
    here = {"kind": inputs["image"]}
    monkeypatch.setattr(on_device.evaluate, "outputs", lambda *given: here)
    counting = setting(CountingDevice())
    counting.place.gives = "instructions"
    (ran,) = on_device.run_all(artifact, [counting], inputs, repeats=1)
    assert (ran.outputs, ran.figures.count) == (here, COUNT)
    assert ran.notes("board") == []
    check = Check(name="accuracy", method=Method.MEASURED_HOST)
    assert on_device.relabelled([check], ran) == [check]

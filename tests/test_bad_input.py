"""What is wrong from outside: data, files, disks, signals. One clear line, the right exit code, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import samples, when_held

from edgedl import artifacts, worker
from edgedl.cli import _full_disk
from edgedl.errors import InputError, WorkerError

COUNT = 30


def one_line(answer, code=2):
    """The message of a command that failed as it should."""
    lines = [line for line in answer.err.splitlines() if line.strip()]
    assert (answer.code, answer.out, len(lines)) == (code, "", 1), answer
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


@pytest.fixture(scope="module")
def exported(model, data, tmp_path_factory):
    """The small model as int8, with its sidecar."""
    from edgedl import pipeline

    out = tmp_path_factory.mktemp("exported") / "a.tflite"
    pipeline.export(model, out, scheme="int8", calibration_data=data / "train.npz", samples=50)
    return out


@pytest.fixture
def there(tmp_path, exported, model, data, monkeypatch):
    """A working directory with copies of good files: m.keras, a.tflite with its sidecar, d.npz."""
    for source, name in ((model, "m.keras"), (exported, "a.tflite"), (data / "test.npz", "d.npz")):
        shutil.copy(source, tmp_path / name)
    shutil.copy(artifacts.sidecar_path(exported), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- data -----------------------------------------------------------------------------------------------------------


def write_data(case, folder):
    """The source that a case names, written into the folder."""
    x, y = samples(COUNT)
    arrays = {
        "width": {"y": np.eye(5)[y]},
        "names": {"y": np.array(["a", "b", "c", "d"] * 7 + ["a", "b"])},
        "fraction": {"y": y + 0.5},
        "nan": {"y": np.where(np.arange(COUNT) == 4, np.nan, y)},
        "flat": {"x": x.reshape(COUNT, -1)},
        "infinite": {"x": np.where(x == x.max(), np.inf, x).astype(np.float32)},
        "text": {"x": np.full(COUNT, "a")},
        "groups": {"group": np.arange(5)},
    }
    if case in arrays:
        np.savez(folder / "bad.npz", **({"x": x, "y": y} | arrays[case]))
        return "bad.npz"
    if case in ("flipped", "cut"):
        np.savez(folder / "bad.npz", x=x, y=y)
        content = (folder / "bad.npz").read_bytes()
        (folder / "bad.npz").write_bytes(flipped(content, 400) if case == "flipped" else content[: len(content) // 2])
        return "bad.npz"
    if case == "classes":  # class folders, and nothing in them
        (folder / "bad" / "cat").mkdir(parents=True)
        return "bad"
    (folder / "bad.csv").write_text({"csv": "a,b,y\n1,nan,0\n", "column": "a,b\n1,2\n", "header": "a,b,y\n"}[case])
    (folder / "bad.toml").write_text('data = "bad.csv"\ntarget = "kind"\n')
    return "bad.toml" if case == "column" else "bad.csv"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("width", "bad.npz: output 'kind': targets: shape (30, 5) does not fit outputs (30, 3)"),
        ("names", "bad.npz: output 'kind': targets: label 3 at sample 3 is out of range; allowed: 0 to 2"),
        ("fraction", "bad.npz: output 'kind': outputs (30, 3) and targets (30,) must have one shape"),
        ("nan", "bad.npz: y: sample 4 holds NaN or infinity; remove or repair it"),
        ("flat", "bad.npz: input 'image' takes samples of shape (8, 8, 1), the data has (64)"),
        ("infinite", "bad.npz: x: sample 0 holds NaN or infinity"),
        ("text", "bad.npz: x: numbers are needed, got dtype <U1"),
        ("groups", "bad.npz: arrays differ in their number of samples: x 30, y 30, group 5"),
        ("flipped", "bad.npz: not a readable .npz: Bad CRC-32 for file 'x.npy'"),
        ("cut", "bad.npz: not a readable .npz: File is not a zip file"),
        ("classes", "bad: no samples: a folder of class folders"),
        ("csv", "bad.csv: x: sample 0 holds NaN"),
        ("column", "bad.csv: no column 'kind'; it has a, b"),
        ("header", "bad.csv: no samples"),
    ],
)
def test_bad_data_is_one_line_that_begins_with_the_file(cli, there, case, message):
    source = write_data(case, there)
    said = one_line(cli("validate", "a.tflite", "--reference", "a.tflite", "--data", source))
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--max-drop", "nan"), "--max-drop: 0.5pp, or a number in the metric's unit, is needed, got 'nan'"),
        (("--max-drop", "-1pp"), "--max-drop: 0.5pp, or a number in the metric's unit, is needed, got '-1pp'"),
        (("--max-drop", "some"), "--max-drop: 0.5pp, or a number in the metric's unit, is needed, got 'some'"),
        (("--limit", "size_bytes=nan"), "--limit: size_bytes=NUMBER is needed, got 'size_bytes=nan'"),
        (("--limit", "size_bytes"), "--limit: size_bytes=NUMBER is needed, got 'size_bytes'"),
    ],
)
def test_a_limit_that_is_no_number_is_refused_before_anything_runs(cli, there, option, message, monkeypatch):
    monkeypatch.setattr(worker, "call", lambda *_, **__: pytest.fail("something ran"))
    command = ["validate", "a.tflite", "--reference", "a.tflite", "--data", "d.npz"]
    assert one_line(cli(*command, *option)) == message


def test_a_metric_that_nobody_provides_exits_with_4(cli, there):
    command = ["validate", "a.tflite", "--reference", "a.tflite", "--data", "d.npz", "--metric", "top"]
    assert one_line(cli(*command), 4).startswith("no metric 'top'; allowed: auc, ")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--model", "cnn-small", "--data"],
        ["export", "m.keras", "--scheme", "int8", "--calibration-data"],
        ["package", "a.tflite", "--platform", "zip", "--data"],
    ],
)
def test_an_empty_folder_is_no_data_for_any_command(cli, there, command):
    (there / "empty").mkdir()
    before = sorted(there.rglob("*"))
    suffix = {"train": ".keras", "export": ".tflite"}.get(command[0], "")
    assert one_line(cli(*command, "empty", "-o", f"out{suffix}")).startswith("empty: no samples: a folder of class")
    assert sorted(there.rglob("*")) == before


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "text.tflite"],
        ["inspect", "text.onnx"],
        ["benchmark", "a.tflite", "text.tflite"],
        ["package", "text.tflite", "--platform", "zip", "-o", "out"],
        ["validate", "a.tflite", "--reference", "text.tflite", "--data", "d.npz"],
        ["validate", "a.tflite", "--reference", "text.keras", "--data", "d.npz"],
        ["export", "text.h5", "-o", "b.tflite"],
    ],
)
def test_a_text_file_under_a_models_name_is_said_to_be_none(cli, there, command):
    for suffix in (".tflite", ".onnx", ".keras", ".h5"):
        Path(f"text{suffix}").write_text("just some words, and then some more\n" * 9)
    before = sorted(there.iterdir())
    named = next(word for word in command if word.startswith("text"))
    assert one_line(cli(*command)).startswith(f"{named}: ")
    assert sorted(there.iterdir()) == before


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_flipped_byte_in_an_artifact_is_found_before_anything_runs_it(cli, there, part, monkeypatch):
    content = Path("a.tflite").read_bytes()
    Path("a.tflite").write_bytes(flipped(content, int(len(content) * part)))
    monkeypatch.setattr(artifacts, "describe", lambda *_, **__: pytest.fail("a runtime saw the file"))
    for command in (
        ["inspect", "a.tflite"],
        ["benchmark", "a.tflite"],
        ["package", "a.tflite", "--platform", "zip", "-o", "out"],
        ["validate", "a.tflite", "--reference", "m.keras", "--data", "d.npz"],
    ):
        said = one_line(cli(*command))
        assert said.startswith("a.tflite: is not the file that a.tflite.edgedl.json tells of (another SHA-256)")
        assert "export it again, or remove that .json" in said
    assert not Path("out").exists()


def test_a_flipped_byte_in_a_keras_archive_names_the_member(cli, there):
    with zipfile.ZipFile("m.keras") as archive:
        weights = archive.getinfo("model.weights.h5")
    content = Path("m.keras").read_bytes()
    Path("m.keras").write_bytes(flipped(content, weights.header_offset + 200))
    said = one_line(cli("export", "m.keras", "-o", "b.tflite"))
    assert said == "m.keras: the Keras archive is truncated or damaged (checksum of model.weights.h5); " \
        "copy or save it again"  # fmt: skip
    assert not Path("b.tflite").exists()


# ---- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["export", "m.keras", "--format", "tflite", "-o", "m.keras"], "m.keras"),
        (["export", "m.keras", "--format", "tflite", "--calibration-data", "d.npz", "-o", "./d.npz"], "d.npz"),
    ],
)
def test_force_does_not_overwrite_what_is_read(cli, there, command, named):
    before = Path(named).read_bytes()
    assert one_line(cli(*command, "--force")) == f"{named}: is read as well, and would be lost; name another output"
    assert Path(named).read_bytes() == before


def test_force_overwrites_no_folder(cli, there):
    (there / "b.tflite").mkdir()
    (there / "b.tflite" / "mine.txt").write_text("mine")
    assert "b.tflite: is a folder, and is not overwritten" in one_line(
        cli("export", "m.keras", "-o", "b.tflite", "--force")
    )
    assert (there / "b.tflite" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ["export", "m.keras", "-o", "file/b.tflite"],
        ["train", "--model", "cnn-small", "--data", "d.npz", "-o", "file/b.keras"],
        ["package", "a.tflite", "--platform", "zip", "-o", "file/out"],
        ["validate", "a.tflite", "--reference", "a.tflite", "--data", "d.npz", "--report", "file/out"],
        ["validate", "a.tflite", "--reference", "a.tflite", "--data", "d.npz", "--junit", "file/j.xml"],
        ["run", "p.toml", "-o", "file/run"],
        ["run", "p.toml", "-o", "file"],
        ["demo", "-o", "file/demo"],
        ["demo", "-o", "file"],
    ],
)
def test_an_output_below_a_file_cannot_be_written(cli, there, command):
    Path("file").write_text("mine")
    Path("p.toml").write_text('model = "m.keras"\n[[export]]\nformat = "tflite"\n')
    assert one_line(cli(*command)).startswith("file")
    assert Path("file").read_text() == "mine"


def test_the_demo_leaves_a_folder_of_the_users_alone(cli, there):
    Path("mine").mkdir()
    Path("mine/train.npz").write_text("mine")
    assert one_line(cli("demo", "-o", "mine")).startswith("mine: is not empty and holds no demo; name another folder")
    assert [p.read_text() for p in Path("mine").iterdir()] == ["mine"]


# ---- disks that are full or cannot be written: tmpfs, mounted in a namespace of one child process -------------------

INSIDE = """
import io, json, os, subprocess, sys, tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from edgedl import worker
from edgedl.cli import invoke

def call(arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = invoke(arguments)
    return [code, out.getvalue(), err.getvalue()]

def mount(place, size, mine=(), readonly=False):
    Path(place).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + size, "tmpfs", place], check=True)
    for name in mine:
        Path(place, name).write_text("mine")
    if readonly:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)

cases, found = json.load(open(sys.argv[1])), {}
for name, (mounted, arguments) in cases.items():
    mount(name, **mounted)
    found[name] = [*call(arguments), {p.name: p.stat().st_size for p in Path(name).rglob("*") if p.is_file()}]
for name, size in (("staging", "24k"), ("converting", "100k"), ("answering", "64k")):
    worker.close()
    mount(name, size)
    tempfile.tempdir = os.environ["TMPDIR"] = str(Path(name).resolve())
    given = {"answering": ["validate", "a.tflite", "--reference", "a.tflite", "--data", "flat.npz"]}
    export = ["export", "m.keras", "--scheme", "int8", "--calibration-data", "d.npz", "-o", name + ".tflite"]
    found[name] = [*call(given.get(name, export)), os.path.exists(name + ".tflite")]
    worker.close()
json.dump(found, open(sys.argv[1], "w"))
"""
EXPORT = ["export", "m.keras", "-o"]
VALIDATE = ["validate", "a.tflite", "--reference", "a.tflite", "--data", "d.npz", "--report"]
PACKAGE = ["package", "a.tflite", "--platform", "zip", "-o"]
MOUNTED = {
    "full": ({"size": "4k"}, [*EXPORT, "full/b.tflite"]),
    "forced": ({"size": "4k", "mine": ["b.tflite"]}, [*EXPORT, "forced/b.tflite", "--force"]),
    "packed": ({"size": "4k"}, [*PACKAGE, "packed"]),
    "reported": ({"size": "4k"}, [*VALIDATE, "reported/r"]),
    "running": ({"size": "4k"}, ["run", "p.toml", "-o", "running"]),
    "ro_export": ({"size": "1m", "readonly": True}, [*EXPORT, "ro_export/b.tflite"]),
    "ro_package": ({"size": "1m", "readonly": True}, [*PACKAGE, "ro_package"]),
    "ro_report": ({"size": "1m", "readonly": True}, [*VALIDATE, "ro_report/r"]),
    "ro_run": ({"size": "1m", "readonly": True}, ["run", "p.toml", "-o", "ro_run"]),
    "ro_demo": ({"size": "1m", "readonly": True}, ["demo", "-o", "ro_demo"]),
}


@pytest.fixture(scope="module")
def mounted(exported, model, data, tmp_path_factory):
    """What each command says on its disk: (code, stdout, stderr, what is there). One process for all."""
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    script = (
        "mkdir /tmp/edgedl-probe-$$; mount -t tmpfs tmpfs /tmp/edgedl-probe-$$; e=$?; umount -l /tmp/edgedl-probe-$$;"
    )
    probe = [*namespace, "sh", "-c", f"{script} rmdir /tmp/edgedl-probe-$$; exit $e"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a tmpfs here (unshare -m)")
    folder = tmp_path_factory.mktemp("mounted")
    for source, name in ((model, "m.keras"), (exported, "a.tflite"), (data / "train.npz", "d.npz")):
        shutil.copy(source, folder / name)
    (folder / "p.toml").write_text('model = "m.keras"\n[[export]]\nformat = "tflite"\n')
    x, y = samples(4000)
    np.savez_compressed(folder / "flat.npz", x=x * 0, y=y * 0)
    (folder / "cases.json").write_text(json.dumps(MOUNTED))
    inside = [*namespace, sys.executable, "-c", INSIDE, "cases.json"]
    done = subprocess.run(inside, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Traceback" not in done.stderr, done.stderr  # of a thread
    return json.loads((folder / "cases.json").read_text())


def line(found):
    code, out, err, _ = found
    lines = [text for text in err.splitlines() if text.startswith("Error: ")]
    assert (code, out, len(lines), "Traceback" in err) == (2, "", 1, False), err
    return lines[0].removeprefix("Error: ")


@pytest.mark.parametrize(
    ("name", "message", "left"),
    [
        ("full", "full/b.tflite.edgedl.json: cannot be written: the disk is full; nothing was changed", {}),
        ("forced", "forced/b.tflite: cannot be written: the disk is full; nothing was changed", {"b.tflite": 4}),
        ("packed", "packed/a-1.0.0.zip: cannot be written: the disk is full; nothing was changed", {}),
        ("ro_export", "ro_export/b.tflite: the folder ro_export cannot be written", {}),
        ("ro_package", "ro_package/package: the folder ro_package cannot be written", {}),
        ("ro_report", "ro_report/r/report.json: cannot be written: Read-only file system", {}),
        ("ro_run", "ro_run/.steps.json: cannot be written: Read-only file system; nothing was changed", {}),
        ("ro_demo", "ro_demo: cannot be written: Read-only file system; nothing was changed", {}),
    ],
)
def test_a_full_or_readonly_disk_is_one_line_and_keeps_what_was_there(mounted, name, message, left):
    assert line(mounted[name]).startswith(message)
    assert mounted[name][3] == left


def test_a_report_that_does_not_fit_leaves_no_half_of_it(mounted):
    assert line(mounted["reported"]).startswith("reported/r/report.json: cannot be written: No space left on device")
    assert mounted["reported"][3] == {}


def test_a_run_on_a_full_disk_has_no_step_that_looks_done(mounted):
    assert "the disk is full" in line(mounted["running"])
    assert set(mounted["running"][3]) <= {".steps.json", "request.json"}


@pytest.mark.parametrize("name", ["staging", "converting", "answering"])
def test_a_full_temporary_folder_is_said_wherever_it_is_met(mounted, name):
    said = line(mounted[name])
    assert said.startswith("the disk is full: ")
    assert f"/{name}; free some space, or set TMPDIR to a folder with more" in said
    assert mounted[name][3] is False


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device", "/data/x"), True),
        (OSError("12800 requested and 9184 written"), True),
        (InputError("[Errno 28] No space left on device: '/tmp/x.npy'"), True),
        (InputError("a.tflite: cannot be written: the disk is full; nothing was changed"), False),
        (WorkerError("worker 'runtimes' was killed by SIGSEGV in run"), False),
        (PermissionError(13, "Permission denied", "/data/x"), False),
    ],
)
def test_a_full_disk_is_known_by_what_the_system_and_the_libraries_say(error, full):
    assert bool(_full_disk(error)) is full


# ---- signals in the middle of an export -----------------------------------------------------------------------------


class Exporting:
    """An `edgedl export` in a process of its own, which stays in the converter: it traces a layer that waits there."""

    def __init__(self, folder, model, data):
        self.folder, self.output, self.temporary = folder, folder / "out", folder / "tmp"
        self.temporary.mkdir()
        self.output.mkdir()
        (self.output / "b.tflite").write_text("mine")
        shutil.copy(model.with_name("held.py"), folder)
        (folder / "hold").write_text("run_exporter")
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        given = ["--scheme", "int8", "--calibration-data", str(data / "train.npz"), "--custom-objects", "held"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgedl.cli", "export", str(model), *given, "-o", "out/b.tflite", "--force"],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for_the_exporter(self):
        """The process id of the child, once the converter is at work in it."""
        return when_held(self.folder, self.process)

    def end(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, [text for text in err.splitlines() if text.strip()]

    def files(self):
        return {p.name: p.read_text() for p in self.output.iterdir()}


def gone(pid, seconds=30):
    until = time.monotonic() + seconds
    while worker.is_running(pid) and time.monotonic() < until:
        time.sleep(0.1)
    return not worker.is_running(pid)


@pytest.fixture(scope="module")
def interrupted(held, data, tmp_path_factory):
    """Three exports at once, one for each test."""
    made = {n: Exporting(tmp_path_factory.mktemp(n), held, data) for n in ("Ctrl-C", "kill -9", "kill -9 child")}
    try:
        yield made
    finally:
        for one in made.values():
            if one.process.poll() is None:
                one.process.kill()
            one.process.communicate()


def test_ctrl_c_in_an_export_ends_its_children_and_changes_nothing(interrupted):
    export = interrupted["Ctrl-C"]
    child = export.wait_for_the_exporter()
    export.process.send_signal(signal.SIGINT)
    assert export.end() == (130, "", ["Error: interrupted; nothing was changed"])
    assert gone(child, 0)
    assert export.files() == {"b.tflite": "mine"}
    assert not list(export.temporary.iterdir())


def test_a_killed_child_is_a_worker_error_that_names_the_signal(interrupted):
    export = interrupted["kill -9 child"]
    os.kill(export.wait_for_the_exporter(), signal.SIGKILL)
    code, out, lines = export.end()
    assert (code, out, len(lines)) == (5, "", 1)
    assert lines[0].startswith("Error: worker 'tensorflow' was killed by SIGKILL in edgedl.artifacts:run_exporter")
    assert export.files() == {"b.tflite": "mine"}
    assert not list(export.temporary.iterdir())


def test_a_killed_export_leaves_no_orphan_and_is_swept_by_the_next_command(interrupted, cli, monkeypatch):
    export = interrupted["kill -9"]
    child = export.wait_for_the_exporter()
    export.process.kill()
    assert export.end()[0] == -signal.SIGKILL
    assert export.files() == {"b.tflite": "mine"}
    assert gone(child)
    (left,) = export.temporary.glob("edgedl-*")
    monkeypatch.setattr("tempfile.tempdir", str(export.temporary))
    worker.Pool().close()
    assert not left.exists()

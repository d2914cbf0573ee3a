"""Devices without a device: what a profile names, the list, and setting a sysroot up with tools that are not there."""

import os
from pathlib import Path

import pytest

from edgedl import devices, plugins, targets
from edgedl.devices import setup, sysroot
from edgedl.errors import InputError, PluginError

PROFILE = """
name = "Mine"
source = "data sheet 1"
formats = ["tflite"]
[runtime.litert]
format = "tflite"
resolver = "xnnpack"
[cpu]
architecture = "{architecture}"
[runner]
{runner}
"""


def target(tmp_path, runner, architecture="aarch64"):
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE.format(runner=runner, architecture=architecture))
    return targets.load(str(path))


def test_list_names_every_plugin_and_sysroot(cli):
    answer = cli("devices", "list", "--json")
    rows = {row["name"]: row for row in answer.json["devices"]}
    assert set(rows) == {p.name for p in plugins.listing("devices")} | {"qemu-arm64", "qemu-armhf"}
    assert rows["qemu-arm64"]["missing"] == "edgedl devices setup qemu-arm64"
    assert "cortex-a76" in rows["qemu-arm64"]["about"]
    assert all(row["about"] for row in rows.values())


@pytest.mark.parametrize("name", targets.listing())
def test_the_device_of_every_shipped_profile_is_there_or_told_how_to_get(name):
    profile = targets.load(name)
    place, missing = devices.place_of(profile)
    nowhere_else = profile.runner.get("device", "local") == "local"
    assert (place is None) == (nowhere_else or bool(missing))
    if targets.load(name).cpu.get("architecture") == "aarch64":
        assert missing == "edgedl devices setup qemu-arm64"


@pytest.mark.parametrize(
    ("runner", "error", "message"),
    [
        ('device = "shh"', PluginError, "no plugin provides device 'shh'; installed: "),
        ('device = "qemu"\ncore = "cortex-a72"', InputError, "target mine: [runner]: unknown key 'core'"),
        ('device = "qemu"\ncpu = 72', InputError, "target mine: [runner]: cpu must be a string, got 72"),
        ('device = "local"\npython = "x"', InputError, "target mine: [runner]: unknown key 'python'; allowed: none"),
        ('device = "ssh"', InputError, "target mine: [runner]: host is missing; it must be a string"),
    ],
)
def test_a_runner_of_the_user_that_is_wrong_is_refused(tmp_path, runner, error, message):
    with pytest.raises(error) as e:
        devices.place_of(target(tmp_path, runner))
    assert str(e.value).startswith(message)
    (finding,) = devices.check(tmp_path / "mine.toml")
    assert finding == str(e.value)


@pytest.mark.parametrize("runner", ['device = "local"', 'device = "ssh"\nhost = "pi"', 'device = "qemu"'])
def test_check_accepts_a_runner_that_is_sound(cli, tmp_path, monkeypatch, runner):
    target(tmp_path, runner)
    monkeypatch.chdir(tmp_path)
    answer = cli("targets", "check", "mine.toml")
    assert (answer.code, answer.out, answer.err) == (0, "ok\n", "")


def test_check_tells_of_a_wrong_runner(cli, tmp_path):
    (tmp_path / "mine.toml").write_text(PROFILE.format(runner='device = "sssh"', architecture="aarch64"))
    answer = cli("targets", "check", tmp_path / "mine.toml")
    assert (answer.code, answer.out) == (2, "wrong\n")
    assert "no plugin provides device 'sssh'" in answer.err


def test_an_architecture_without_a_sysroot_is_refused(tmp_path):
    with pytest.raises(InputError, match="architecture 'riscv64': QEMU's user mode stands in for aarch64, armv7l here"):
        devices.place_of(target(tmp_path, 'device = "qemu"', "riscv64"))


def test_setup_of_an_unknown_device_names_the_nearest(cli):
    answer = cli("devices", "setup", "qemu-arm")
    assert (answer.code, answer.out) == (2, "")
    assert (
        "no such device to set up: 'qemu-arm' (did you mean 'qemu-armhf'?); allowed: qemu-arm64, qemu-armhf"
        in answer.err
    )


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ((), ("apt-get, dpkg-deb, qemu-aarch64", "apt dpkg qemu-user")),
        (("apt-get", "dpkg-deb"), ("qemu-aarch64", "qemu-user")),
    ],
)  # fmt: skip
def test_setup_without_its_tools_says_what_installs_them(cli, tmp_path, monkeypatch, tools, message):
    missing, packages = message
    for tool in tools:
        tool_path = tmp_path / tool
        tool_path.write_text("#!/bin/sh\nexit 0\n")
        tool_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = cli("devices", "setup", "qemu-arm64")
    assert (answer.code, answer.out, answer.err) == (
        2,
        "",
        f"Error: {missing}: not on this machine, and needed here. Try: sudo apt-get install {packages}\n",
    )


class Mirror:
    """An apt, a dpkg and a QEMU of shell, which serve what a test puts there and write down what was asked."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.asked = folder, folder / "asked"
        self.asked.touch()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("EDGEDL_DEVICES_FOLDER", str(folder / "devices"))
        self.tool("qemu-aarch64", "exit 0")
        self.tool("dpkg-deb", f'echo "dpkg $2" >> {self.asked}; mkdir -p "$3/usr"; cp "$2" "$3/usr"')

    def tool(self, name, script):
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def apt(self, announced, served, then="exit 0"):
        """`announced` and `served`: contents by file name."""
        import hashlib

        lines = [f"'http://x/{f}' {f} {len(c)} SHA256:{hashlib.sha256(c.encode()).hexdigest()}" for f, c in announced]
        # as apt does, what lies in the current folder is not listed
        listed = "\n".join(f'[ -e {f} ] || echo "{line}"' for line, (f, _) in zip(lines, announced, strict=True))
        fetches = "\n".join(f"case \"$*\" in *{f.split('_')[0]}=*) printf %s '{c}' > {f};; esac" for f, c in served)
        self.tool(
            "apt-get",
            f'echo "apt $*" >> {self.asked}\ncase "$*" in\n*" update"*) exit 0;;\n'
            f"*--print-uris*)\n{listed}\nexit 0;;\nesac\n{fetches}\n{then}",
        )


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    made = Mirror(tmp_path, monkeypatch)
    plan = sysroot.plan("qemu-arm64")
    files = [(f"{name}_1.0_arm64.deb", f"content of {name}") for name in plan.packages]
    made.files = files
    return made


def test_setup_goes_on_where_it_was_interrupted(cli, mirror):
    mirror.apt(mirror.files, mirror.files[:5], "exit 100")
    answer = cli("devices", "setup", "qemu-arm64")
    assert answer.code == 2
    assert "apt-get failed" in answer.err
    assert "a second try goes on where it was" in answer.err
    assert "12 of 12 Debian packages to fetch" in answer.err  # said before anything is fetched
    mirror.apt(mirror.files, mirror.files[5:9], "exit 100")
    assert "7 of 12 Debian packages to fetch" in cli("devices", "setup", "qemu-arm64").err
    last = mirror.asked.read_text().splitlines()[-1]
    assert "libc6=1.0" not in last
    assert not sysroot.is_built("qemu-arm64")


def test_a_package_of_another_checksum_is_not_unpacked(cli, mirror):
    mirror.apt(mirror.files, [(f, "something else") for f, _ in mirror.files])
    answer = cli("devices", "setup", "qemu-arm64")
    assert answer.code == 2
    assert "is not what apt announced (another SHA-256)" in answer.err
    assert "dpkg" not in mirror.asked.read_text()


def test_sources_without_the_packages_name_the_option_that_helps(cli, mirror, tmp_path):
    mirror.apt(mirror.files[:3], [])
    answer = cli("devices", "setup", "qemu-arm64", "--sources", tmp_path / "my.list")
    assert answer.code == 2
    assert "name an apt list of it with --sources FILE" in answer.err
    assert f"Dir::Etc::SourceList={tmp_path / 'my.list'}" in mirror.asked.read_text()


def test_two_setups_at_once_do_not_mix(mirror):
    base = sysroot.folder("qemu-arm64")
    base.mkdir(parents=True)
    with setup._alone(base), pytest.raises(InputError, match="another edgedl sets it up now"):
        setup.set_up("qemu-arm64")


def test_a_wheel_of_another_checksum_is_not_unpacked(tmp_path, monkeypatch):
    """pip is told to fetch, and what it fetched is another file."""
    wheel = sysroot.Wheel(requirement="x==1", file="x-1-py3-none-any.whl", size_bytes=1, sha256="0" * 64)
    monkeypatch.setattr(setup, "_run", lambda command, folder: (Path(folder) / wheel.file).write_text("y"))
    with pytest.raises(InputError, match=r"pip did not fetch x-1-py3-none-any\.whl with SHA-256 0000"):
        setup._fetch_wheels([wheel], ["any"], "3.11", tmp_path / "wheels", lambda _: None)


@pytest.mark.parametrize("name", sysroot.names())
def test_plans_are_complete(name):
    plan = sysroot.plan(name)
    assert all(len(w.sha256) == 64 and w.size_bytes > 0 and w.file.endswith(".whl") for w in plan.wheel)
    assert plan.core
    assert sysroot.of_machine(plan.machine) == name


def test_a_relative_devices_folder_gives_cores_whose_links_lead_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEDL_DEVICES_FOLDER", "devices")
    root = tmp_path / "devices" / "qemu-arm64" / "sysroot" / "root"
    (root / "usr").mkdir(parents=True)
    core = sysroot.as_core("qemu-arm64", "cortex-a72")
    assert core.is_absolute()
    assert (core / "usr").resolve() == root / "usr"


def test_validate_on_a_target_without_its_device_says_so(cli, model, data, tmp_path):
    assert cli("export", model, "-o", tmp_path / "m.tflite").code == 0
    answer = cli("validate", tmp_path / "m.tflite", "--reference", tmp_path / "m.tflite", "--data", data / "test.npz",
                 "--target", "raspberry-pi-4", "--limit", "instructions=5", "--json")  # fmt: skip
    assert answer.code == 7
    checks = {c["name"]: c for c in answer.json["checks"]}
    assert checks["instructions"]["verdict"] == "unchecked"
    assert checks["accuracy"]["method"] == "measured-host"
    assert (
        "target raspberry-pi-4: outputs are this machine's, not its device's: edgedl devices setup qemu-arm64"
        in answer.err
    )

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgedl import targets, toml
from edgedl.errors import InputError
from edgedl.types import to_json

PROFILES = Path(__file__).parents[1] / "targets"
IDS = sorted(path.stem for path in PROFILES.glob("*.toml"))
SOUND = """
name = "My board"
source = "https://example.com/board.pdf"
formats = ["tflite"]
io = "int8"
[memory]
ram_bytes = 4096
flash_bytes = 8192
[runner]
device = "ssh"
port = 22
"""


def profile(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text)
    return path


def findings(folder: Path, text: str) -> list[str]:
    return [f.removeprefix(f"{folder / 'board.toml'}: ") for f in targets.check(profile(folder, text))]


# ---- the shipped profiles ----------------------------------------------------------------------------------------


def test_listing_has_the_fourteen_and_the_host() -> None:
    assert targets.listing() == tuple(IDS)
    assert set(IDS) == {
        "host",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "raspberry-pi-zero-2-w",
        "pixel-8",
        "galaxy-s23",
        "generic-android-arm64",
        "nucleo-h743zi2",
        "nucleo-l4r5zi",
        "nucleo-u575zi-q",
        "stm32n6570-dk",
        "esp32-s3-devkitc-1",
        "alif-ensemble-e7",
        "alif-ensemble-e8",
        "browser-wasm",
    }


@pytest.mark.parametrize("target_id", IDS)
def test_shipped_profile_is_sound_and_crosses_as_json(target_id: str) -> None:
    assert targets.check(PROFILES / f"{target_id}.toml") == []
    target = targets.load(target_id)
    assert target.id == target_id
    assert target.formats
    assert target.source
    assert target.runner.get("device", "none of ours stands in for it")
    assert json.loads(json.dumps(to_json(target)))["id"] == target_id
    for runtime in target.runtimes:
        assert runtime.format in target.formats
    assert {r.format for r in target.runtimes} == set(target.formats)


def figures(table: dict[str, Any], sources: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    sources = (*sources, table["source"]) if "source" in table else sources
    for key, value in table.items():
        if isinstance(value, dict) and key != "runner":
            yield from figures(value, sources)
        elif key == "minimum" or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield f"{key} = {value}", sources


@pytest.mark.parametrize("target_id", IDS)
def test_shipped_profile_has_a_source_that_can_be_looked_up_for_every_figure(target_id: str) -> None:
    for figure, sources in figures(toml.parse(PROFILES / f"{target_id}.toml"), ()):
        assert sources, figure
        assert re.search(r"https://|\b(DS|RM)\d+", sources[-1]), figure


def test_microcontrollers_take_int8_and_phones_float() -> None:
    small = {"nucleo-h743zi2", "nucleo-l4r5zi", "nucleo-u575zi-q", "stm32n6570-dk", "esp32-s3-devkitc-1"}
    small |= {"alif-ensemble-e7", "alif-ensemble-e8"}
    assert {i for i in IDS if targets.load(i).io == "int8"} == small
    assert {targets.load(i).io for i in set(IDS) - small} == {"float"}


def test_profile_of_a_board_holds_the_figures_of_its_data_sheet() -> None:
    board = targets.load("nucleo-h743zi2")
    assert board.memory["flash_bytes"] == 2 * 1024**2
    assert board.memory["ram_bytes"] == (64 + 128 + 512 + 128 + 128 + 32 + 64 + 4) * 1024
    assert board.cpu["core"] == "cortex-m7"
    assert board.runtimes[0].resolver == "builtin"
    phone = targets.load("pixel-8")
    assert sum(c["cores"] for c in phone.cpu["clusters"]) == phone.cpu["cores"]
    assert "clock_hz" not in phone.cpu


def test_host_is_read_from_the_running_machine() -> None:
    raw = toml.parse(PROFILES / "host.toml")
    assert "cpu" not in raw
    assert "memory" not in raw
    host = targets.load("host")
    assert host.cpu["cores"] == os.cpu_count()
    assert host.cpu["architecture"] == platform.machine()
    assert host.memory["ram_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert platform.release() in host.cpu["source"]


# ---- finding a profile -------------------------------------------------------------------------------------------


def test_load_takes_a_path_wherever_an_id_goes(tmp_path: Path) -> None:
    target = targets.load(str(profile(tmp_path, SOUND)))
    assert (target.id, target.io, target.memory["ram_bytes"]) == ("board", "int8", 4096)
    assert target.runner == {"device": "ssh", "port": 22}


def test_load_of_an_unknown_id_lists_the_ids_and_the_nearest() -> None:
    with pytest.raises(InputError) as e:
        targets.load("rasberry-pi4")
    message = str(e.value)
    assert message.startswith(
        "no such target: 'rasberry-pi4' (did you mean 'raspberry-pi-4'?); allowed: alif-ensemble-e7, "
    )
    assert message.endswith("stm32n6570-dk, or a path to your own .toml")


def test_load_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.toml: cannot be read"):
        targets.load(str(tmp_path / "mine.toml"))


def test_load_refuses_an_unsound_profile_and_counts_the_rest(tmp_path: Path) -> None:
    path = profile(tmp_path, SOUND + "[cpu]\ncors = 4\nclock_hz = 0\n")
    with pytest.raises(
        InputError, match=r"\[cpu\]: unknown key 'cors' \(did you mean 'cores'\?\).*1 more: edgedl targets check"
    ):
        targets.load(str(path))


def test_profiles_in_the_wheel_come_before_those_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, checkout = tmp_path / "profiles", tmp_path / "targets"
    monkeypatch.setattr(targets, "_FOLDERS", (wheel, checkout))
    with pytest.raises(InputError, match="no device profiles beside edgedl"):
        targets.listing()
    checkout.mkdir()
    shutil.copy(PROFILES / "pixel-8.toml", checkout)
    assert targets.listing() == ("pixel-8",)
    wheel.mkdir()
    shutil.copy(PROFILES / "host.toml", wheel)
    assert targets.listing() == ("host",)


# ---- checking a profile ------------------------------------------------------------------------------------------


def test_check_accepts_a_sound_profile(tmp_path: Path) -> None:
    assert targets.check(profile(tmp_path, SOUND)) == []


def test_check_wants_a_source_for_every_number_and_version(tmp_path: Path) -> None:
    text = SOUND.replace('source = "https://example.com/board.pdf"\n', "")
    text += '[runtime.litert]\nminimum = "2.3.0"\n[cpu]\ncores = 2\nclusters = [{ core = "a", cores = 1 }]\n'
    found = findings(tmp_path, text)
    places = [f.split(" has ")[0] for f in found]
    assert places == [
        "[memory]: ram_bytes = 4096",
        "[memory]: flash_bytes = 8192",
        "[runtime.litert]: minimum = 2.3.0",
        "[cpu]: cores = 2",
        "[cpu.clusters]: cores = 1",
    ]
    assert "has no source; a source is a URL, or a document" in found[0]


def test_check_lets_a_table_give_its_own_source(tmp_path: Path) -> None:
    text = SOUND.replace('source = "https://example.com/board.pdf"\n', "")
    text = text.replace("[memory]\n", '[memory]\nsource = "ACME data sheet 17"\n')
    assert findings(tmp_path, text) == []
    assert targets.load(str(tmp_path / "board.toml")).source == "ACME data sheet 17"


def test_check_refuses_a_source_that_cannot_be_looked_up(tmp_path: Path) -> None:
    found = findings(tmp_path, SOUND.replace("https://example.com/board.pdf", "common knowledge"))
    assert found[0].startswith("[memory]: ram_bytes = 4096 has the source 'common knowledge'; a source is a URL")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("max_latency_ms = 20", "max_latency_ms"),
        ("arena_bytes = 1000", "arena_bytes"),
        ("max_size_bytes = 9", "max_size_bytes"),
    ],
)
def test_check_refuses_budgets_and_says_where_they_go(tmp_path: Path, line: str, key: str) -> None:
    (finding,) = findings(tmp_path, SOUND.replace("[memory]\n", f"[memory]\n{line}\n"))
    assert finding.startswith(f"[memory]: {key} is a budget, and a profile states facts of a device; ")
    assert "command line" in finding


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('io = "int8"', 'io = "in8"', "io must be one of float, int8, uint8, int16, got 'in8' (did you mean 'int8'?)"),
        ('["tflite"]', "[]", "formats is empty; name what runs there, such as 'tflite'"),
        ("ram_bytes = 4096", 'ram_bytes = "4 KB"', "[memory]: ram_bytes must be an integer, got '4 KB'"),
        ("ram_bytes = 4096", "ram_bytes = 0", "[memory]: ram_bytes must be in [1, inf), got 0"),
        (
            "ram_bytes = 4096",
            "ram_bytes = 4096\ncontiguous_ram_bytes = 4097",
            "[memory]: contiguous_ram_bytes 4097 is more than ram_bytes 4096",
        ),
        (
            "[memory]",
            '[runtime.ort]\nformat = "onnx"\n[memory]',
            "[runtime.ort] format 'onnx' is not in formats: tflite",
        ),
        (
            "[memory]",
            "[runtime.litert]\ntolerance = { int16_lsb = 1 }\n[memory]",
            "[runtime.litert.tolerance]: a key must be one of int8_lsb, float, "
            "got 'int16_lsb' (did you mean 'int8_lsb'?)",
        ),
        ('device = "ssh"', "", "[runner] needs device, the name of a device plugin, such as 'qemu' or 'ssh'"),
        ('name = "My board"', "", "name is missing; it must be a string"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert findings(tmp_path, SOUND.replace(old, new)) == [message]

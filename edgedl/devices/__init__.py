"""Where the agent can run beside this process: emulated cores, and boards and phones that are reached."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import plugins, targets, toml
from edgedl.errors import InputError, PluginError
from edgedl.types import Device, DevicePlugin, Gives, Target

LOCAL = "local"
_boards: dict[tuple[str, str], threading.Lock] = {}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device that a profile names, not reached yet. Two targets with equal places share one."""

    device: str
    options: Any

    @property
    def plugin(self) -> DevicePlugin:
        """The plugin that opens it."""
        found: DevicePlugin = plugins.load("devices", self.device)
        return found

    @property
    def gives(self) -> Gives:
        """What is to be had from it."""
        return self.plugin.gives(self.options)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Device]:
        """The device, reached; nothing is left on it afterwards. A board is open once at a time: times need quiet."""
        board = self.plugin.board(self.options)
        lock = threading.Lock() if board is None else _boards.setdefault((self.device, board), threading.Lock())
        with lock:
            device = self.plugin.open(self.options)
            try:
                yield device
            finally:
                device.close()


def overview() -> list[dict[str, str]]:
    """The device plugins and the sysroots of `qemu`: `name`, what it is, and what is `missing` before it works."""
    from edgedl.devices import qemu, sysroot

    found = []
    for plugin in plugins.listing("devices"):
        about = (type(plugins.load("devices", plugin.name)).__doc__ or "").split("\n")[0]
        found.append({"name": plugin.name, "about": about, "missing": ""})
    for name in sysroot.names():
        planned = sysroot.plan(name)
        about = f"{planned.machine} under {planned.emulator}: {', '.join(planned.core)}"
        missing = qemu.Qemu().missing(qemu.Options(architecture=planned.machine))
        found.append({"name": name, "about": about, "missing": missing})
    return found


def named(target: Target) -> Place | None:
    """The device of a target's [runner], whether it can be had or not; None for this machine.

    Raises InputError or PluginError for what the profile names wrongly.
    """
    name = target.runner.get("device", LOCAL)
    plugin: DevicePlugin = plugins.load("devices", name)
    given = {k: v for k, v in target.runner.items() if k != "device"}
    architecture = target.cpu.get("architecture")
    if architecture and "architecture" in {f.name for f in dataclasses.fields(plugin.options)}:
        given.setdefault("architecture", architecture)
    options: Any = toml.build(plugin.options, given, f"target {target.id}: [runner]")
    return None if name == LOCAL else Place(device=name, options=options)


def check(profile: Path) -> list[str]:
    """What is wrong with a profile, one message each, its [runner] where the rest is sound. Raises InputError."""
    found = targets.check(profile)
    if not found:
        try:
            place_of(targets.load(str(profile.absolute())))
        except (InputError, PluginError) as e:
            found.append(str(e))
    return found


def gives(target: Target) -> Gives:
    """What a target's device gives; one whose plugin is not here is taken to give outputs."""
    place = named(target) if _is_known(target) else None
    return place.gives if place else "outputs"


def place_of(target: Target) -> tuple[Place | None, str]:
    """The device of a target's [runner], and why there is none where one was named but cannot be had.

    A device that takes a set-up is left out until that is done; anything that the user's own profile names wrongly
    raises InputError or PluginError.
    """
    if not _is_known(target):
        return None, f"no plugin provides device {target.runner['device']!r}"
    place = named(target)
    missing = place.plugin.missing(place.options) if place else ""
    return (None, missing) if missing else (place, "")


def _is_known(target: Target) -> bool:
    """Whether a plugin provides its device. A user's profile is taken at its word: where none does is an error then."""
    name = target.runner.get("device", LOCAL)
    return name in {p.name for p in plugins.listing("devices")} or target.id not in targets.listing()

"""Where the agent can run beside this process: emulated cores, and boards and phones that are reached."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgedl import plugins, targets, toml
from edgedl.types import Device, DevicePlugin, Target

LOCAL = "local"


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

    @contextlib.contextmanager
    def opened(self) -> Iterator[Device]:
        """The device, reached; nothing is left on it afterwards."""
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


def runs(target: Target) -> bool:
    """Whether the device of a target's [runner] gives outputs; one whose plugin is not here is taken to."""
    name = target.runner.get("device", LOCAL)
    known = name in {p.name for p in plugins.listing("devices")}
    return not known or plugins.load("devices", name).runs


def place_of(target: Target) -> tuple[Place | None, str]:
    """The device of a target's [runner], and why there is none where one was named but cannot be had.

    A device that takes a set-up is left out until that is done; anything that the user's own profile names wrongly
    raises InputError or PluginError.
    """
    name = target.runner.get("device", LOCAL)
    if name == LOCAL:
        return None, ""
    if name not in {p.name for p in plugins.listing("devices")} and target.id in targets.listing():
        return None, f"no plugin provides device {name!r}"
    plugin: DevicePlugin = plugins.load("devices", name)
    given = {k: v for k, v in target.runner.items() if k != "device"}
    architecture = target.cpu.get("architecture")
    if architecture and "architecture" in {f.name for f in dataclasses.fields(plugin.options)}:
        given.setdefault("architecture", architecture)
    place = Place(device=name, options=toml.build(plugin.options, given, f"target {target.id}: [runner]"))
    missing = plugin.missing(place.options)
    return (None, missing) if missing else (place, "")

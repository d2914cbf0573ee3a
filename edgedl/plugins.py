"""Plugins are entry points: listing reads metadata only, loading imports one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgedl.errors import PluginError

GROUPS = ("exporters", "runtimes", "devices", "compressors", "metrics", "packagers")


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A name that the user may type, and who provides it."""

    group: str
    name: str
    distribution: str
    version: str
    entry: EntryPoint


@cache
def listing(group: str) -> tuple[Plugin, ...]:
    """The plugins of a group, by name; imports none of them."""
    found = {}
    for entry in entry_points(group=f"edgedl.{group}"):
        owner, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
        plugin = Plugin(group=group, name=entry.name, distribution=owner, version=version, entry=entry)
        found[entry.name, owner] = plugin  # one distribution may be seen twice on sys.path
    return tuple(sorted(found.values(), key=lambda p: (p.name, p.distribution)))


def load(group: str, name: str) -> Any:
    """The object behind a name. Raises PluginError: none, two providers, or one that does not import."""
    noun = group[:-1]
    found = [p for p in listing(group) if p.name == name]
    if not found:
        installed = ", ".join(p.name for p in listing(group)) or "none"
        message = f"no plugin provides {noun} {name!r}; installed: {installed}. Try: pip install edgedl-{name}"
        raise PluginError(message)
    if len(found) > 1:
        owners = " and ".join(p.distribution for p in found)
        message = f"{noun} {name!r} is provided by {owners}; uninstall one of them"
        raise PluginError(message)
    try:
        loaded = found[0].entry.load()
        return loaded() if isinstance(loaded, type) else loaded
    except Exception as e:
        message = f"{noun} {name!r} of {found[0].distribution} does not import: {type(e).__name__}: {e}"
        raise PluginError(message) from e

"""This machine as a device: the agent in a child process of this interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import worker
from edgedl.types import Gives, Method


@dataclass(frozen=True, kw_only=True)
class Options:
    """None: the runtimes are those of this interpreter."""


class Local:
    """This machine."""

    options = Options

    def gives(self, options: Options) -> Gives:  # noqa: ARG002
        """Outputs."""
        return "outputs"

    def missing(self, options: Options) -> str:  # noqa: ARG002
        """Nothing is."""
        return ""

    def board(self, options: Options) -> None:
        """None: each is a child of its own."""

    def open(self, options: Options) -> ChildDevice:  # noqa: ARG002
        """A child of its own."""
        return ChildDevice("this machine", Method.MEASURED_HOST, worker.pool().start("local"))


class ChildDevice:
    """An agent in a child process that sees this machine's files."""

    def __init__(self, name: str, method: Method, child: worker.Child) -> None:
        self.name, self.method, self.child = name, method, child

    def push(self, path: Path, sha256: str) -> str:  # noqa: ARG002
        """The same path."""
        return str(path.resolve())

    def call(self, verb: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """What the agent in the child answers."""
        sink = worker.on_progress
        answer: Mapping[str, Any] = self.child.call(verb, dict(request), timeout_s=timeout_s, on_progress=sink)
        return answer

    def close(self) -> None:
        """End the child."""
        self.child.close()

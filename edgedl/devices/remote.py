"""A device that is reached over a link: files are copied there and back, checked, and nothing stays.

One folder is made on the device. A shell there waits for its standard input to close and then removes the folder, so
that a lost connection leaves nothing either; the agent answers over its standard input and output.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edgedl import agent, worker
from edgedl.data import file_sha256
from edgedl.errors import EdgedlError, InputError, WorkerError
from edgedl.types import Method

START_S = 120.0  # an emulated Python takes its time
COMMAND_S = 60.0
SLOWEST_BYTES_S = 50_000  # of a link, and of a hash on an emulated core
FULL_BYTES = 16_384
CHECKED_BYTES = 1_000_000  # what is smaller is sent without a look at the room there
LEAVE_S = 3.0


class Talk(Protocol):
    """A program on the device that takes and gives lines."""

    def send(self, line: str) -> None:
        """Raises WorkerError where the link is lost."""
        ...

    def line(self, timeout_s: float) -> str:
        """The next line. Raises TimeoutError, EOFError where the program has ended or the link is lost."""
        ...

    def end(self) -> str:
        """Close its input; how it ended and what it said on standard error, as far as known."""
        ...


class Link(Protocol):
    """How a device is reached. Every method raises WorkerError where it is not, or no longer."""

    where: str

    def run(self, command: str, timeout_s: float = COMMAND_S) -> str:
        """Standard output of a shell command. Raises WorkerError where it fails."""
        ...

    def put(self, local: Path, remote: str) -> None:
        """Copy a file there."""
        ...

    def get(self, remote: str, local: Path) -> None:
        """Copy a file here."""
        ...

    def talk(self, command: str) -> Talk:
        """Start a shell command that goes on."""
        ...

    def close(self) -> None:
        """Let the device go."""
        ...


class RemoteDevice:
    """The agent on the other side of a link.

    `prepare` gets the link and the folder made in `base`, and gives the shell command of a Python there.
    """

    def __init__(self, link: Link, prepare: Callable[[Link, str], str], *, base: str, emulated: bool = False) -> None:
        self._link, self._calls, self._pid = link, 0, 0
        self._guard: Talk | None = None
        self._talk: Talk | None = None
        self._busy = threading.RLock()  # one call at a time
        self._pushed: dict[str, str] = {}
        self.folder = folder_in(link, base)
        try:
            self._guard = guard(link, self.folder)
            told = self._start(prepare(link, self.folder))
        except BaseException:
            self.close()
            raise
        emulator = told.get("emulator")
        self.method = Method.EMULATED if emulator or emulated else Method.MEASURED_DEVICE
        by = f", emulated by {emulator}" if emulator else ", emulated" if emulated else ""
        self.name = f"{link.where} ({told.get('machine')}{by})"

    def _start(self, python: str) -> dict[str, Any]:
        """Bring the agent, start it, and hear from it that it is the one that was brought."""
        source = Path(agent.__file__)
        put(self._link, self.folder, source, f"{self.folder}/agent.py")
        self._talk = self._link.talk(f"exec {python} -u {self.folder}/agent.py --device")
        told = self._next(time.monotonic() + START_S, "started")
        if "sha256" not in told:
            message = f"{self._link.where}: the agent did not introduce itself, but said {json.dumps(told)[:200]}"
            raise WorkerError(message)
        self._pid = int(told["pid"])
        self._same(told["sha256"], source, "the agent")
        return told

    def push(self, path: Path, sha256: str) -> str:
        """Copy a file there, once a content, and let the agent say that it is whole."""
        with self._busy:
            if sha256 not in self._pushed:
                there = f"{self.folder}/{sha256[:16]}{path.suffix}"
                put(self._link, self.folder, path, there)
                self._same(self._digest([there], path.stat().st_size).get(there), path, path.name)
                self._pushed[sha256] = there
            return self._pushed[sha256]

    def call(self, verb: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """What the agent there answers; the arrays that it wrote are brought here, and are those it wrote."""
        with self._busy:
            return self._call(verb, request, timeout_s)

    def _call(self, verb: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        self._calls += 1
        folder, kwargs = f"{self.folder}/{self._calls:04d}", dict(request)
        outputs: Mapping[str, str] = request.get("outputs") or {}
        written = {name: f"{folder}/{i}.npy" for i, name in enumerate(outputs)}
        if outputs:
            kwargs["outputs"] = written
        scratch = worker.pool().scratch("remote")
        (scratch / "request.json").write_text(json.dumps({"verb": verb, "kwargs": kwargs, "cwd": folder}))
        self._link.run(f"mkdir {folder}")
        put(self._link, self.folder, scratch / "request.json", f"{folder}/request.json")
        self._wait(verb, folder, timeout_s)
        reply = self._reply(verb, folder, scratch)
        if written:
            for name, there in written.items():
                self._link.get(there, Path(outputs[name]))
            sums = self._digest(list(written.values()), sum(Path(path).stat().st_size for path in outputs.values()))
            for name, there in written.items():
                self._same(sums.get(there), Path(outputs[name]), f"output {name!r}")
            self._link.run(f"rm -r {folder}")
        return reply

    def _digest(self, paths: list[str], size_bytes: int) -> Mapping[str, Any]:
        """The SHA-256 of files there, by path, in a time by their size."""
        return self.call("digest", {"paths": paths}, COMMAND_S + size_bytes / SLOWEST_BYTES_S)

    def _wait(self, verb: str, folder: str, timeout_s: float) -> None:
        assert self._talk is not None  # noqa: S101
        self._talk.send(folder)
        while heard := self._next(time.monotonic() + timeout_s, verb):
            if worker.on_progress and "stage" in heard:
                worker.on_progress(heard["stage"], heard["done"], heard["total"])

    def _next(self, until: float, doing: str) -> dict[str, Any]:
        """The next JSON object that the agent says, {} for "done". What a login script prints is passed over."""
        assert self._talk is not None  # noqa: S101
        while True:
            try:
                line = self._talk.line(max(0.0, until - time.monotonic())).strip()
            except TimeoutError:
                how = "made no sign in the time it has, and was ended"
                break
            except EOFError:
                how = "ended, or the connection was lost"
                if (free := _free_bytes(self._link, self.folder)) is not None and free < FULL_BYTES:
                    raise full(self._link, self.folder, "the agent ended") from None
                break
            if line == "done":
                return {}
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict):
                    return told
        said = self._leave()
        message = f"{self._link.where}: the agent {how} ({doing}){f'; it last said: {said}' if said else ''}"
        raise WorkerError(message)

    def _reply(self, verb: str, folder: str, scratch: Path) -> Mapping[str, Any]:
        try:
            self._link.get(f"{folder}/reply.json", scratch / "reply.json")
            reply = json.loads((scratch / "reply.json").read_text(encoding="utf-8"))
            answer, error = reply.get("result"), reply.get("error")
        except (ValueError, AttributeError, OSError) as e:
            message = f"{self._link.where}: the agent's reply to {verb} is damaged: {e}"
            raise WorkerError(message) from e
        if error:
            if "No space left" in error["message"]:
                raise full(self._link, self.folder, "while it answered")
            crossed = worker.crossed(error, during=verb)
            message = f"{self._link.where}: {crossed}"
            raise type(crossed)(message)
        if not isinstance(answer, dict):
            message = f"{self._link.where}: the agent's reply to {verb} holds no result"
            raise WorkerError(message)
        return answer

    def _same(self, told: object, local: Path, what: str) -> None:
        if told != file_sha256(local):
            message = (
                f"{self._link.where}: {what} has SHA-256 {str(told)[:16]} there and {file_sha256(local)[:16]} here; "
                "it was damaged on the way, or the agent there is another"
            )
            raise WorkerError(message)

    def _leave(self) -> str:
        """End the agent, which then removes its folder; end it the hard way where it does not."""
        talk, self._talk = self._talk, None
        said = talk.end() if talk else ""
        guard, self._guard = self._guard, None
        if guard:
            guard.end()
        with contextlib.suppress(EdgedlError):
            kill = f"kill -9 {self._pid} 2>/dev/null; " if self._pid else ""
            self._link.run(f"{kill}rm -rf {self.folder}")
        return said

    def close(self) -> None:
        """Leave nothing behind, and let the link go. Where that is lost already, the agent has removed its folder."""
        self._leave()
        self._link.close()


def installed_python(link: Link, python: str) -> str:
    """The shell command of a Python that is on the device. Raises InputError where it is not."""
    program = quoted(python)
    if link.run(f"command -v {program} || true").strip() == "":
        message = f"{link.where}: there is no {python}; name [runner] python"
        raise InputError(message)
    return program


def quoted(path: str) -> str:
    """A path as a word of the device's shell, which puts the home there in place of ~/."""
    home = "~/" if path.startswith("~/") else ""
    return home + shlex.quote(path.removeprefix(home))


def put(link: Link, folder: str, local: Path, there: str) -> None:
    """Copy a file into the device's folder. Raises InputError where there is no room for it."""
    size = local.stat().st_size
    told = f"{local.name} has {size / 1e6:.2f} MB"
    if size > CHECKED_BYTES and (free := _free_bytes(link, folder)) is not None and free < size:
        raise full(link, folder, told)
    try:
        link.put(local, there)
    except WorkerError as e:
        if (free := _free_bytes(link, folder)) is not None and free < size:
            raise full(link, folder, told) from e
        raise


def _free_bytes(link: Link, folder: str) -> int | None:
    """What the folder's disk has left, where `df` tells."""
    with contextlib.suppress(EdgedlError, ValueError, IndexError):
        return int(link.run(f"df -Pk {folder}").splitlines()[-1].split()[3]) * 1024
    return None


def full(link: Link, folder: str, why: str) -> InputError:
    """What to raise where the device's disk is full."""
    return InputError(f"{link.where}: the disk of the device is full at {folder} ({why}); name another [runner] folder")


def guard(link: Link, folder: str) -> Talk:
    """A shell there that waits for its input to close, as it does where the link is lost, and removes the folder."""
    return link.talk(f"trap '' HUP TERM; cat >/dev/null; sleep 0.2; rm -rf {folder}")


def folder_in(link: Link, base: str) -> str:
    """A new folder in `base`. Raises InputError where none can be made."""
    try:
        said = link.run(f"mktemp -d {quoted(base)}/edgedl-XXXXXX")
    except WorkerError as e:
        message = f"{e}; name a [runner] folder that may be written in"
        raise InputError(message) from e
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("/")]  # a login script may talk too
    if not lines:
        message = f"{link.where}: mktemp made no folder, it said {said.strip()[:200]!r}"
        raise WorkerError(message)
    return lines[-1]

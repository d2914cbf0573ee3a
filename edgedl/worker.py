"""One call in one child process: what is foreign aborts, hangs and lies there, and the user's session survives.

A call is a folder (see `agent`); a child serves one call after the other. Children are pooled by name and
interpreter, so that load, export and reference of one command share one TensorFlow.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from edgedl import agent, errors
from edgedl.errors import EdgedlError, WorkerError

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
TENSORFLOW = "tensorflow"  # the child that holds it
ONEDNN = "tensorflow-onednn"  # another, which computes with oneDNN where TensorFlow and the user's environment say so
OURS = ".edgedl"  # marks a folder as one of a pool's, from when it is held on
POLL_S = 0.05
DEFAULT_TIMEOUT_S = 900.0  # without a sign of progress
ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # several children may share a GPU
}
NO_ONEDNN = {"TF_ENABLE_ONEDNN_OPTS": "0"}  # it corrupts memory: see `edgedl.models.onednn`


class Child:
    """One child process that answers calls in order. Closing it ends the process."""

    def __init__(
        self,
        name: str,
        folder: Path,
        interpreter: str | Sequence[str] = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`interpreter` may be the words of a command that starts one; `environment` then replaces this process's."""
        self.name, self.folder, self.calls = name, folder, 0
        self._busy = threading.Lock()
        # What a child leaves in its temporary folder goes with the pool's.
        ours = ENVIRONMENT if name == ONEDNN else ENVIRONMENT | NO_ONEDNN
        variables = {**(environment or os.environ), **ours, "TMPDIR": str(folder)}
        variables.pop("TF_USE_LEGACY_KERAS", None)
        folder.mkdir(parents=True, exist_ok=True)
        self._startup = folder / "startup.log"
        words = [interpreter] if isinstance(interpreter, str) else list(interpreter)
        command = [*words, "-u", agent.__file__, "--serve"]
        pipe = subprocess.PIPE
        try:
            with self._startup.open("wb") as log:
                # Its own session: Ctrl-C reaches the parent, which ends its children itself.
                self.process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=log, env=variables, start_new_session=True
                )
        except OSError as e:
            message = f"worker {name!r} does not start: {words[0]}: {e.strerror or e}"
            raise WorkerError(message) from e

    def call(
        self,
        what: str,
        kwargs: dict[str, Any],
        *,
        timeout_s: float | None = None,
        memory_bytes: int | None = None,
        on_progress: Progress | None = None,
    ) -> Any:
        """The JSON result of an agent verb ("run") or of a function ("module:function").

        `timeout_s` counts from the last sign of progress. Raises what the function raised where it is one of
        edgedl's errors, WorkerError where the child died, hung or outgrew `memory_bytes`, else EdgedlError.
        """
        with self._busy:
            return self._call(what, kwargs, timeout_s, memory_bytes, on_progress)

    def _call(
        self,
        what: str,
        kwargs: dict[str, Any],
        timeout_s: float | None,
        memory_bytes: int | None,
        on_progress: Progress | None,
    ) -> Any:
        self.calls += 1
        folder = self.folder / f"{self.calls:04d}"
        folder.mkdir()
        request = {"call" if ":" in what else "verb": what, "kwargs": kwargs, "cwd": str(Path.cwd())}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            self._send(folder)
            self._wait(what, folder, timeout_s or DEFAULT_TIMEOUT_S, memory_bytes, on_progress)
        except BaseException:
            self.kill()
            raise
        reply = json.loads((folder / "reply.json").read_text(encoding="utf-8"))
        if "error" in reply:
            raise crossed(reply["error"], during=what)
        shutil.rmtree(folder, ignore_errors=True)
        return reply["result"]

    def _send(self, folder: Path) -> None:
        assert self.process.stdin is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # a child that is gone is found by _wait
            self.process.stdin.write(f"{folder}\n".encode())
            self.process.stdin.flush()

    def _wait(self, what: str, folder: Path, timeout_s: float, memory_bytes: int | None, sink: Progress | None) -> None:
        assert self.process.stdout is not None  # noqa: S101
        seen, moved = 0, time.monotonic()
        while not select.select([self.process.stdout], [], [], POLL_S)[0]:
            position = _report_progress(folder, seen, sink)
            if position != seen:
                seen, moved = position, time.monotonic()
            if time.monotonic() - moved > timeout_s:
                self._fail(what, folder, f"made no progress for {timeout_s:g} s and was ended")
            if memory_bytes and (used := _rss_bytes(self.process.pid)) > memory_bytes:
                self._fail(what, folder, f"used {used / 1e6:,.0f} MB, the limit is {memory_bytes / 1e6:,.0f} MB")
        _report_progress(folder, seen, sink)
        if not self.process.stdout.readline():
            code = self.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            self._fail(what, folder, how)

    def _fail(self, what: str, folder: Path, how: str) -> None:
        lines = [line for path in (folder / "log", self._startup) if path.exists() for line in _tail(path)]
        said = f"; it last said: {' | '.join(lines[-3:])}" if lines else ""
        message = f"worker {self.name!r} {how} in {what}{said}"
        raise WorkerError(message)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End the process and everything it started, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close_pipes()

    def dismiss(self) -> None:
        """Let the process end by itself, which `close` waits for; end it where a call is still under way."""
        if self._busy.locked():
            self.kill()
        elif self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def close(self) -> None:
        """Let the process end by itself, or end it."""
        self.dismiss()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


class Pool:
    """Children by (name, interpreter), and the folder that their calls and staged data live in."""

    def __init__(self) -> None:
        try:
            _sweep()
            self.folder = Path(tempfile.mkdtemp(prefix=f"edgedl-{os.getpid()}-"))
        except FileNotFoundError as e:  # a full disk, a container that may only be read
            message = f"no folder for temporary files can be written: {e.strerror}; set TMPDIR to one"
            raise errors.InputError(message) from e
        self._held = contextlib.ExitStack()
        with contextlib.suppress(OSError):  # a file system without locks: what a kill leaves there stays
            self._held.enter_context(held(self.folder))
            (self.folder / OURS).touch()
        self._children: dict[tuple[str, str], Child] = {}
        self._numbers = itertools.count(1)  # several threads start children
        self._starting = threading.Lock()

    def child(self, name: str, interpreter: str | None = None) -> Child:
        """The child of that name, started if none is alive."""
        key = (name, interpreter or sys.executable)
        with self._starting:
            if key not in self._children or not self._children[key].alive:
                self._children[key] = self.start(*key)
            return self._children[key]

    def start(
        self, name: str, interpreter: str | Sequence[str] | None = None, environment: Mapping[str, str] | None = None
    ) -> Child:
        """A new child, which the caller closes."""
        folder = self.folder / f"{next(self._numbers):03d}-{name}"
        return Child(name, folder, interpreter or sys.executable, environment)

    def scratch(self, name: str) -> Path:
        """A new empty folder that lives as long as the pool."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def kill(self) -> None:
        """End every child now."""
        for child in self._children.values():
            child.kill()
        self._children.clear()

    def close(self) -> None:
        """End every child and remove the folder."""
        for child in self._children.values():
            child.dismiss()
        for child in self._children.values():
            child.close()
        self._children.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()


_pool: Pool | None = None
_making = threading.Lock()  # of the pool: threads that work ahead may be the first to want it
on_progress: Progress | None = None  # the command line puts its progress bar here


def pool() -> Pool:
    """The one pool of this process, made on first use and closed at exit."""
    global _pool
    with _making:
        if _pool is None:
            _pool = Pool()
            atexit.register(close)
        return _pool


def close() -> None:
    """Close the pool of this process, if there is one."""
    global _pool
    if _pool is not None:
        _pool.close()
        _pool = None


def kill() -> None:
    """End every child now; the next call starts new ones."""
    if _pool is not None:
        _pool.kill()


def call(
    what: str,
    kwargs: dict[str, Any],
    *,
    child: str,
    interpreter: str | None = None,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
) -> Any:
    """What `Child.call` gives, in the pooled child of that name."""
    worker = pool().child(child, interpreter)
    return worker.call(what, kwargs, timeout_s=timeout_s, memory_bytes=memory_bytes, on_progress=on_progress)


def begin(function: Callable[[], T]) -> Future[T]:
    """Start a function that calls a child, while this process does something else; `result()` waits and raises."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=work, daemon=True).start()  # no executor: its threads are waited for after a Ctrl-C
    return future


def ahead(what: str, kwargs: dict[str, Any], *, child: str, interpreter: str | None = None) -> None:
    """Start a call whose result nobody waits for, such as a slow import; the next call of that child waits its turn."""
    process = pool().child(child, interpreter)
    begin(lambda: process.call(what, kwargs))


def warm() -> None:
    """Let the TensorFlow child import its frameworks ahead."""
    ahead("edgedl.models:warm", {}, child=TENSORFLOW)


@contextlib.contextmanager
def fresh(name: str, interpreter: str | None = None) -> Iterator[Child]:
    """A child of its own, with nothing loaded and nobody else's memory in its peak."""
    child = pool().start(name, interpreter)
    try:
        yield child
    finally:
        child.close()


def _report_progress(folder: Path, position: int, sink: Progress | None) -> int:
    path = folder / "progress.jsonl"
    if not path.exists() or path.stat().st_size == position:
        return position
    with path.open("rb") as f:
        f.seek(position)
        text = f.read()
    whole = text[: text.rfind(b"\n") + 1]
    if sink and whole:
        event = json.loads(whole.splitlines()[-1])
        sink(event["stage"], event["done"], event["total"])
    return position + len(whole)


def crossed(error: dict[str, str], *, during: str) -> EdgedlError:
    """The error that a child tells of, as one of ours."""
    known = getattr(errors, error["class"], None)
    if isinstance(known, type) and issubclass(known, EdgedlError):
        return known(error["message"])
    if error["class"] == "OSError" or "No space left on device" in error["message"]:
        return errors.InputError(error["message"])
    lines = error["message"].strip().splitlines() or ["no message"]
    return EdgedlError(f"{during} failed: {error['class']}: {lines[0]}")


def _tail(path: Path, bytes_: int = 4096) -> list[str]:
    text = path.read_bytes()[-bytes_:].decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _rss_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _sweep() -> None:
    """Remove what an edgedl that was killed left in the temporary folder: its own folders, that nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob("edgedl-*-*"):
        with contextlib.suppress(OSError):
            if re.fullmatch(r"edgedl-\d+-\w{8}", folder.name) and (folder / OURS).is_file():
                with held(folder):
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder against every process that asks. Raises BlockingIOError where another one holds it."""
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def is_running(pid: int) -> bool:
    """Whether a process of that id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""The interpreter of tflite-micro: started with an arena that is large enough, its log read, its errors in words."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgedl_tflm import graph

SMALLEST_BYTES = 1 << 16
LARGEST_BYTES = 1 << 30
TOO_SMALL = ("Failed to resize buffer", "Too many buffers", "Failed to allocate", "Unable to allocate", "arena")


class Log:
    """What TFLM wrote to standard error, in `lines` once the block has ended."""

    lines: tuple[str, ...] = ()


@contextlib.contextmanager
def logged() -> Iterator[Log]:
    """Read what C++ writes to standard error.

    Where that is a file, as in edgedl's children, it goes on being written, so that it tells of a crash as well.
    """
    log = Log()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        is_file = stat.S_ISREG(os.fstat(2).st_mode)
        path = Path("/proc/self/fd/2") if is_file else stack.enter_context(_diverted())
        begun = path.stat().st_size
        try:
            yield log
        finally:
            with path.open("rb") as file:
                file.seek(begun)
                log.lines = tuple(file.read().decode(errors="replace").split("\n"))


@contextlib.contextmanager
def _diverted() -> Iterator[Path]:
    """Standard error into a file of its own; its path."""
    kept = os.dup(2)
    with tempfile.NamedTemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield Path(file.name)
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def start(content: bytes, arena_bytes: int, *, preserve: bool = False) -> Any:
    """An interpreter. Raises RuntimeError with what TFLM says, an arena that is too small included."""
    from tflite_micro import runtime

    config = runtime.InterpreterConfig
    chosen = config.kPreserveAllTensors if preserve else config.kAllocationRecording
    with logged() as log:
        try:
            return runtime.Interpreter.from_bytes(content, arena_size=arena_bytes, intrepreter_config=chosen)
        except RuntimeError as e:
            error = e
    said = "; ".join(line.strip() for line in log.lines if line.strip()) or str(error)
    raise RuntimeError(said) from error


def is_too_small(error: RuntimeError) -> bool:
    """Whether the arena was the reason."""
    return any(words in str(error) for words in TOO_SMALL)


def start_large(content: bytes, *, preserve: bool = False) -> Any:
    """An interpreter with more than enough arena.

    Raises RuntimeError where TFLM lacks an op, or a kernel does not take a type.
    """
    arena_bytes = _plenty(content)
    while True:
        try:
            return start(content, arena_bytes, preserve=preserve)
        except RuntimeError as e:
            if not is_too_small(e) or arena_bytes >= LARGEST_BYTES:
                raise
        arena_bytes *= 4


def _plenty(content: bytes) -> int:
    """All tensors at once and a share for each. In an arena that is far too small TFLM may not fail but crash."""
    model = graph.read(content)
    every = [t for only in model.subgraphs for t in only.tensors if not graph.is_constant(model, t)]
    count = sum(len(only.tensors) + len(only.operators or []) for only in model.subgraphs)
    return SMALLEST_BYTES + 2 * sum(graph.size_bytes(t) for t in every) + 1024 * count + len(content)


def works(content: bytes, arena_bytes: int) -> bool:
    """Whether the file can be prepared in an arena of that size; tried in a process of its own, which may crash."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 2)
            start(content, arena_bytes)
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

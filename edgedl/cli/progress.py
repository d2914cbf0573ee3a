"""Progress on stderr: a bar for what takes over two seconds, and where stderr is no terminal a line a minute."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

DELAY_S = 2.0
LINE_S = 60.0


class _Bar:
    """A row for each stage that is under way; children that work side by side have one each."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.live: Any = None
        self.rows: dict[str, Any] = {}
        self.lock = threading.Lock()

    def update(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self.begun < DELAY_S:
            return
        with self.lock:
            if self.live is None:
                self._start()
            if stage not in self.rows and done < total:
                self.rows[stage] = self.live.add_task(stage, total=total)
            if stage in self.rows:
                self.live.update(self.rows[stage], completed=done, total=total)
            if stage in self.rows and done >= total:
                self.live.remove_task(self.rows.pop(stage))

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self.live = Progress(*columns, console=Console(stderr=True), transient=True)
        self.live.start()

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()


class _Log:
    """A line a minute, for the log of a CI job that would else look as if it hung."""

    def __init__(self) -> None:
        self.told = time.monotonic()
        self.lock = threading.Lock()

    def update(self, stage: str, done: int, total: int) -> None:
        with self.lock:
            if time.monotonic() - self.told >= LINE_S:
                self.told = time.monotonic()
                sys.stderr.write(f"  {stage}: {done / max(total, 1):.0%}\n")
                sys.stderr.flush()

    def stop(self) -> None:
        """Nothing is left to end."""


@contextlib.contextmanager
def progress_bar() -> Iterator[None]:
    """Show the progress of worker calls while the block runs."""
    from edgedl import worker

    shown = _Bar() if sys.stderr.isatty() else _Log()
    worker.on_progress = shown.update
    try:
        yield
    finally:
        worker.on_progress = None
        shown.stop()

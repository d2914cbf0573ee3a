"""TFLite's own `benchmark_model` on a device: it times a file, with random inputs, and gives no outputs.

Flags and what it prints: https://github.com/tensorflow/tensorflow/tree/master/tensorflow/lite/tools/benchmark
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl.data import file_sha256
from edgedl.devices import remote
from edgedl.devices.remote import Link
from edgedl.errors import EdgedlError, InputError, WorkerError
from edgedl.types import Method, Times

WARMUP = 10
MEMORY_RUNS = 5
MB = 1024 * 1024  # as it counts them
KERNELS = {"xnnpack": "--use_xnnpack=true", "builtin": "--use_xnnpack=false", "gpu": "--use_gpu=true"}
NOT_STARTED = {126: "cannot be executed there", 127: "is not there"}
_TIMINGS = re.compile(r"Inference timings in us: Init: (\S+), First inference: (\S+), .*Inference \(avg\): (\S+)")
_RUNS = re.compile(r"\bcount=(\d+)(.*)")
_PEAK = re.compile(r"Overall peak memory footprint \(MB\) via periodic monitoring: (\S+)")
_UNKNOWN = re.compile(r"Unconsumed cmdline flags: (.+)")


class BenchmarkModelDevice:
    """The program on the other side of a link: a file of this machine, sent there, or one that lies there."""

    method = Method.MEASURED_DEVICE

    def __init__(self, link: Link, program: str, *, base: str) -> None:
        self._link = link
        self.name = f"{link.where}, by benchmark_model"
        self.folder = remote.folder_in(link, base)
        self._guard = remote.guard(link, self.folder)
        self._pushed: dict[str, str] = {}
        try:
            self._program = self._brought(program)
        except BaseException:
            self.close()
            raise

    def _brought(self, program: str) -> str:
        local = Path(program).expanduser()
        if not local.is_file():
            if self._link.run(f"ls {shlex.quote(program)} 2>/dev/null || true").strip():
                return program
            message = f"[runner] benchmark_model: {program} is neither a file here nor one on {self._link.where}"
            raise InputError(message)
        there = self.push(local, file_sha256(local))
        self._link.run(f"chmod 755 {there}")
        return there

    def push(self, path: Path, sha256: str) -> str:
        """Copy a file there, once a content."""
        if sha256 not in self._pushed:
            there = f"{self.folder}/{sha256[:16]}{path.suffix}"
            remote.put(self._link, self.folder, path, there)
            self._pushed[sha256] = there
        return self._pushed[sha256]

    def call(self, verb: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:  # noqa: ARG002
        """Raises InputError: there is no agent."""
        message = f"{self.name} times files, it has no {verb}"
        raise InputError(message)

    def time(self, request: Mapping[str, Any], repeats: int, timeout_s: float) -> Times:
        """Times of a `run` request's file; memory in a run of its own, since watching it costs time.

        Raises InputError where the program cannot run it, WorkerError where it crashes or does not end.
        """
        artifact = Path(request["artifact"])
        if artifact.suffix != ".tflite":
            message = f"{self.name}: benchmark_model runs .tflite files, not {artifact.name}"
            raise InputError(message)
        kernels = request.get("resolver")
        if kernels not in (None, *KERNELS):
            message = f"{self.name}: benchmark_model has no {kernels!r} kernels; allowed: {', '.join(KERNELS)}"
            raise InputError(message)
        graph = self.push(artifact, file_sha256(artifact))
        flags = [f"--graph={graph}", f"--num_threads={request['threads']}", f"--warmup_runs={WARMUP}"]
        if kernels:
            flags.append(KERNELS[kernels])
        said = self._run([*flags, f"--num_runs={repeats}"], timeout_s)
        watched = ["--report_peak_memory_footprint=true", "--memory_footprint_check_interval_ms=5"]
        memory = self._run([*flags, f"--num_runs={MEMORY_RUNS}", *watched], timeout_s)
        return read(said, memory, self.name)

    def _run(self, flags: list[str], timeout_s: float) -> str:
        words = " ".join(shlex.quote(word) for word in (self._program, *flags))
        start = """sh -c 'echo $$ >pid; exec "$0" "$@"'"""
        try:
            told = self._link.run(f"cd {self.folder} && {start} {words} >log 2>&1; echo exit=$?; cat log", timeout_s)
        except WorkerError:
            with contextlib.suppress(EdgedlError):
                self._link.run(f"kill -9 $(cat {self.folder}/pid)")
            raise
        code, _, said = told.partition("exit=")[2].partition("\n")
        self._check(int(code), said)
        return said

    def _check(self, code: int, said: str) -> None:
        """Raises InputError, WorkerError."""
        unknown = [flag for flags in _UNKNOWN.findall(said) for flag in flags.split() if "memory_footprint" not in flag]
        if unknown:
            message = f"{self.name}: this benchmark_model has no {' '.join(unknown)}; take a newer one"
            raise InputError(message)
        if code == 0:
            return
        if code in NOT_STARTED:
            message = f"{self.name}: {self._program} {NOT_STARTED[code]}: {_last(said)}"
            raise InputError(message)
        if code > 128:
            message = f"{self.name}: it was killed by {_signal(code - 128)}; it last said: {_last(said)}"
            raise WorkerError(message)
        message = f"{self.name}: it ended with {code}: {_last(said)}"
        raise InputError(message)

    def close(self) -> None:
        """Leave nothing behind, and let the link go."""
        self._guard.end()
        with contextlib.suppress(EdgedlError):
            self._link.run(f"rm -rf {self.folder}")
        self._link.close()


def read(said: str, memory: str, where: str) -> Times:
    """What it prints, as times: the median where it tells one, else the mean. Raises InputError."""
    found, runs = _TIMINGS.search(said), _RUNS.findall(said)
    try:
        load, first, mean = (float(text) / 1e3 for text in found.groups()) if found else (None, None, None)
        count = int(runs[-1][0])
        middle = {k: float(v) for k, v in re.findall(r"(\w+)=([\d.e+]+)", runs[-1][1])}.get("median")
    except (ValueError, IndexError):
        load = first = mean = None
    if load is None or first is None or mean is None or not math.isfinite(mean):
        message = f"{where}: what it prints is not understood, there is no 'Inference timings in us': {_last(said)}"
        raise InputError(message)
    peak = _PEAK.search(memory)
    return Times(
        latency_ms=mean if middle is None else middle / 1e3,
        load_ms=load,
        first_inference_ms=first,
        peak_rss_bytes=round(float(peak[1]) * MB) if peak else None,
        inferences=count,
        kind="mean" if middle is None else "median",
    )


def _last(said: str) -> str:
    """Its errors, or the last that it said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith("ERROR") and "Benchmarking failed" not in line]
    return " | ".join((wrong or lines)[-3:]) or "nothing"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

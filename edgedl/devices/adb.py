"""An Android phone that is reached by adb. Stock Android has no Python: the arm64 sysroot is sent and started there.

Only the folder of [runner] is written in, and it is gone afterwards. The sysroot's Python starts through its own
loader, so that nothing of the phone's system is needed but its kernel, `sh`, `tar` and `mktemp`.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import worker
from edgedl.devices import remote, sysroot
from edgedl.devices.benchmark_model import BenchmarkModelDevice
from edgedl.devices.remote import COMMAND_S, LEAVE_S, Link, RemoteDevice
from edgedl.errors import InputError, WorkerError
from edgedl.types import Device, Gives

SLOWEST_BYTES_S = 200_000
UNUSED = {"tests", "test", "gconv", "perl5", "ensurepip", "idlelib", "lib2to3", "share"}  # folders of the sysroot
UNUSED_FILES = {"libLiteRtWebGpuAccelerator.so"}
PARTS = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """`serial` as `adb devices` lists it, HOST:PORT to connect to, or None for the only one attached.

    `python` is one on the phone that has the runtimes; without it the sysroot is sent, with the `runtimes` named.
    `benchmark_model` is TFLite's program, a file here or on the phone: it times, and nothing else is sent.
    """

    serial: str | None = None
    adb: str = "adb"
    folder: str = "/data/local/tmp"
    python: str | None = None
    runtimes: tuple[str, ...] = ("litert",)
    benchmark_model: str | None = None
    emulated: bool = False
    architecture: str = "aarch64"

    def __post_init__(self) -> None:
        if unknown := set(self.runtimes) - set(PARTS):
            message = f"runtimes: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}"
            raise ValueError(message)


class Adb:
    """A phone that is reached by adb."""

    options = Options

    def gives(self, options: Options) -> Gives:
        """Outputs, or times alone by `benchmark_model`."""
        return "times" if options.benchmark_model else "outputs"

    def missing(self, options: Options) -> str:  # noqa: ARG002
        """Nothing: a user who names a phone wants that phone."""
        return ""

    def board(self, options: Options) -> str:
        """The phone; the only one attached is asked for its serial."""
        return options.serial or AdbLink(options).serial

    def open(self, options: Options) -> Device:
        """Find the phone, bring a Python where it has none, and start the agent there; or bring `benchmark_model`."""
        link = AdbLink(options)
        emulator = link.run("getprop ro.kernel.qemu; getprop ro.boot.qemu").split()
        emulated = options.emulated or "1" in emulator
        if options.benchmark_model:
            if emulated:
                message = f"{link.where} is an emulator, whose times say nothing; benchmark_model is for a real one"
                raise InputError(message)
            return BenchmarkModelDevice(link, options.benchmark_model, base=options.folder)

        def prepare(_: Link, folder: str) -> str:
            if options.python:
                return remote.installed_python(link, options.python)
            return _send_sysroot(link, folder, options)

        return RemoteDevice(link, prepare, base=options.folder, emulated=emulated)


def _send_sysroot(link: AdbLink, folder: str, options: Options) -> str:
    """Send Python and runtimes; the command that starts it. Raises InputError where the sysroot is not set up here."""
    name = sysroot.of_machine(options.architecture)
    if not sysroot.is_built(name):
        message = f"{link.where} has no Python, and there is none to send. Try: edgedl devices setup {name}"
        raise InputError(message)
    archive = worker.pool().scratch("adb") / "sysroot.tar"
    pack(name, options.runtimes, archive)
    remote.put(link, folder, archive, f"{folder}/sysroot.tar")
    link.run(
        f"cd {folder} && tar -xf sysroot.tar && rm sysroot.tar", COMMAND_S + archive.stat().st_size / SLOWEST_BYTES_S
    )
    plan, root = sysroot.plan(name), f"{folder}/root"
    libraries = ":".join(f"{root}/{part}/{plan.triplet}" for part in ("lib", "usr/lib"))
    loader = f"{root}/lib/{plan.loader} --library-path {libraries}"
    return f"env PYTHONHOME={root}/usr PYTHONPATH={folder}/site {loader} {root}/usr/bin/python{plan.python}"


def pack(name: str, runtimes: Sequence[str], archive: Path) -> None:
    """The parts of a sysroot that a run needs, as `root` and `site` in a .tar."""
    built = sysroot.folder(name) / "sysroot"
    wanted = {"numpy", "numpy.libs", "flatbuffers", *(PARTS[r] for r in runtimes)}

    def used(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(entry.name)
        if UNUSED & set(path.parts) or path.name in UNUSED_FILES:
            return None
        if path.parts[0] == "site" and len(path.parts) > 1 and path.parts[1] not in wanted:
            return None
        entry.uid = entry.gid = 0
        return entry

    with tarfile.open(archive, "w") as tar:
        for part in ("root", "site"):
            tar.add(built / part, part, filter=used)


class AdbLink:
    """One phone, through the `adb` client."""

    def __init__(self, options: Options) -> None:
        found = shutil.which(options.adb)
        if found is None:
            message = f"{options.adb}: not on this machine. Try: sudo apt-get install adb"
            raise InputError(message)
        self._adb = [found]
        if options.serial and ":" in options.serial:
            self._client("connect", options.serial)
        self.serial = options.serial or self._only_one()
        self.where = f"phone {self.serial}"
        self._adb += ["-s", self.serial]
        self._check_state()

    def _only_one(self) -> str:
        listed = [line.split()[0] for line in self._client("devices").stdout.splitlines()[1:] if line.strip()]
        if len(listed) != 1:
            message = f"adb has {', '.join(listed) or 'no phone'} attached; name one with [runner] serial"
            raise InputError(message)
        return listed[0]

    def _check_state(self) -> None:
        done = self._client("get-state")
        state = done.stdout.strip() if done.returncode == 0 else done.stderr.strip()
        if state == "device":
            return
        if "unauthorized" in state:
            message = f"{self.where}: does not let this machine in; allow USB debugging on its screen"
        else:
            message = f"{self.where}: adb does not reach it ({state.removeprefix('error: ')}); see `adb devices`"
        if "offline" in state:
            raise WorkerError(message)
        raise InputError(message)

    def _client(self, *words: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """One call of the client. Raises WorkerError where it takes too long."""
        try:
            return subprocess.run(
                [*self._adb, *words], capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as e:
            message = f"{getattr(self, 'where', 'adb')}: no answer to adb {words[0]} in {timeout_s:g} s"
            raise WorkerError(message) from e

    def _done(self, *words: str, timeout_s: float, what: str = "") -> str:
        done = self._client(*words, timeout_s=timeout_s)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [str(done.returncode)]
            message = f"{self.where}: {what or words[0]} failed: {said[-1].removeprefix('adb: ')}"
            raise WorkerError(message)
        return done.stdout

    def run(self, command: str, timeout_s: float = COMMAND_S) -> str:
        """Standard output of a shell command there."""
        return self._done("shell", command, timeout_s=timeout_s, what=command.split()[0])

    def put(self, local: Path, remote_path: str) -> None:
        """Copy a file there."""
        self._done("push", str(local), remote_path, timeout_s=COMMAND_S + local.stat().st_size / SLOWEST_BYTES_S)

    def get(self, remote_path: str, local: Path) -> None:
        """Copy a file here."""
        self._done("pull", remote_path, str(local), timeout_s=COMMAND_S + 3600)

    def talk(self, command: str) -> AdbTalk:
        """Start a command that goes on."""
        return AdbTalk(self.where, [*self._adb, "shell", command])

    def close(self) -> None:
        """Nothing: each call was a client of its own, and the server is the user's."""


class AdbTalk:
    """A command there, through a client that goes on."""

    def __init__(self, where: str, command: Sequence[str]) -> None:
        self._where, pipe = where, subprocess.PIPE
        self._client: Any = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1, start_new_session=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._client.stdout:
            self._lines.put(line)
        self._lines.put("")  # it has ended

    def send(self, line: str) -> None:
        """Write a line to its standard input."""
        try:
            self._client.stdin.write(f"{line}\n")
        except OSError as e:
            message = f"{self._where}: lost: {e}"
            raise WorkerError(message) from e

    def line(self, timeout_s: float) -> str:
        """The next line of its standard output."""
        try:
            found = self._lines.get(timeout=timeout_s)
        except queue.Empty as e:
            raise TimeoutError from e
        if not found:
            raise EOFError
        return found

    def end(self) -> str:
        """Close its input and wait a moment; the last lines of its standard error."""
        with contextlib.suppress(OSError):
            self._client.stdin.close()
        try:
            self._client.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._client.kill()
            self._client.wait()
        self._reader.join()
        said = [line.strip() for line in self._client.stderr if line.strip()]
        for pipe in (self._client.stdout, self._client.stderr):
            pipe.close()
        return " | ".join(said[-3:])

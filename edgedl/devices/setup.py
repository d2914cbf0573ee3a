"""Building a sysroot: Debian packages of another architecture and wheels of another platform, in the user's cache.

apt works in folders of its own, so the machine's package lists and packages stay as they are, and no root is needed.
What was fetched is kept until all of it is there and checked again by its SHA-256, so that a second try goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedl.data import file_sha256
from edgedl.devices import sysroot
from edgedl.devices.sysroot import Wheel
from edgedl.errors import EdgedlError, InputError
from edgedl.types import to_json

TIMEOUT_S = 900
AGAIN = "; a second try goes on where it was"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Package:
    """One .deb as apt names it."""

    file: str
    size_bytes: int
    sha256: str


def set_up(name: str, *, sources: Path | None = None, force: bool = False, say: Say = lambda _: None) -> Path:
    """Build a sysroot, or find it built; the folder. `sources` is an apt list to fetch from instead of the machine's.

    Raises InputError where a tool is missing, or nothing can be fetched.
    """
    planned, base = sysroot.plan(name), sysroot.folder(name)
    if sysroot.is_built(name) and not force:
        say(f"{name} is set up: {base / 'sysroot'}")
        return base / "sysroot"
    _need("apt-get", "dpkg-deb", planned.emulator)
    base.mkdir(parents=True, exist_ok=True)
    with _alone(base):
        apt = _Apt(base / "apt", planned.debian, sources)
        debs = apt.fetch(planned.packages, base / "debs", f"{name}: Python {planned.python}", say)
        wheels = _fetch_wheels(planned.wheel, planned.platforms, planned.python, base / "wheels", say)
        _unpack(name, debs, wheels)
        _try(name)
        for scratch in ("apt", "debs", "wheels"):
            shutil.rmtree(base / scratch)
    say(f"{name} is set up: {base / 'sysroot'}")
    return base / "sysroot"


def _need(*tools: str) -> None:
    packages = {"dpkg-deb": "dpkg", "qemu-aarch64": "qemu-user", "qemu-arm": "qemu-user", "apt-get": "apt"}
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        wanted = " ".join(dict.fromkeys(packages[tool] for tool in missing))
        message = f"{', '.join(missing)}: not on this machine, and needed here. Try: sudo apt-get install {wanted}"
        raise InputError(message)


@contextlib.contextmanager
def _alone(base: Path) -> Iterator[None]:
    """One build of a sysroot at a time."""
    with (base / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            message = f"{base}: another edgedl sets it up now; wait for it"
            raise InputError(message) from e
        yield


class _Apt:
    """apt-get for another architecture, with state and cache below `folder`."""

    def __init__(self, folder: Path, architecture: str, sources: Path | None) -> None:
        for inner in ("state/lists/partial", "cache/archives/partial"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        self.folder, self.architecture = folder, architecture
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        if sources:
            options |= {"Dir::Etc::SourceList": sources.resolve(), "Dir::Etc::SourceParts": "-"}
        self.command = ["apt-get", "-q", *(part for k, v in options.items() for part in ("-o", f"{k}={v}"))]

    def fetch(self, names: Sequence[str], into: Path, what: str, say: Say) -> list[Path]:
        """The packages of these names; those that lie in `into` already are not fetched again."""
        into.mkdir(parents=True, exist_ok=True)
        say(f"{what} for {self.architecture}: apt-get reads the package lists (some 10 MB)")
        try:
            _run([*self.command, "update"], self.folder)
        except InputError as e:  # a mirror that is being changed; what is missing then is found below
            say(f"{str(e).removesuffix(AGAIN)}; going on with the lists that are whole")
        # in another folder: apt leaves out what lies in the current one
        listed = _run([*self.command, "--print-uris", "download", *names], self.folder).splitlines()
        found = [p for p in map(_package, listed) if p]
        if len(found) < len(names):
            message = (
                f"this machine's apt sources have not all of {', '.join(names)} for {self.architecture}; Debian 12 "
                "has: name an apt list of it with --sources FILE"
            )
            raise InputError(message)
        missing = [p for p in found if not _is_whole(into / p.file, p.sha256)]
        size = sum(p.size_bytes for p in missing)
        say(f"{what}: {len(missing)} of {len(found)} Debian packages to fetch, {size / 1e6:.1f} MB")
        if missing:
            wanted = [f"{n}={v.replace('%3a', ':')}" for n, v, _ in (p.file.split("_") for p in missing)]
            _run([*self.command, "download", *wanted], into)
        for package in found:
            if not _is_whole(into / package.file, package.sha256):
                message = f"{into / package.file}: is not what apt announced (another SHA-256); try again"
                raise InputError(message)
        return [into / p.file for p in found]


def _package(line: str) -> Package | None:
    """One line of `--print-uris`: 'URI' FILE SIZE SHA256:HEX."""
    words = line.split()
    if len(words) != 4 or not words[3].startswith("SHA256:"):
        return None
    return Package(file=words[1], size_bytes=int(words[2]), sha256=words[3].removeprefix("SHA256:"))


def _fetch_wheels(wheels: Sequence[Wheel], platforms: Sequence[str], python: str, into: Path, say: Say) -> list[Path]:
    into.mkdir(parents=True, exist_ok=True)
    missing = [w for w in wheels if not _is_whole(into / w.file, w.sha256)]
    size = sum(w.size_bytes for w in missing)
    names = ", ".join(w.requirement.replace("==", " ") for w in missing) or "nothing"
    say(f"wheels to fetch with pip: {names}, {size / 1e6:.1f} MB")
    if missing:
        for wheel in missing:
            (into / wheel.file).unlink(missing_ok=True)
        abi = f"cp{python.replace('.', '')}"
        options = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", python]
        platform = [part for p in platforms for part in ("--platform", p)]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", str(into)]
        _run([*pip, *options, "--abi", abi, *platform, *(w.requirement for w in missing)], into)
    for wheel in wheels:
        if not _is_whole(into / wheel.file, wheel.sha256):
            message = f"pip did not fetch {wheel.file} with SHA-256 {wheel.sha256}; nothing was set up"
            raise InputError(message)
    return [into / w.file for w in wheels]


def _is_whole(path: Path, sha256: str) -> bool:
    return path.exists() and file_sha256(path) == sha256


def _unpack(name: str, debs: Sequence[Path], wheels: Sequence[Path]) -> None:
    base = sysroot.folder(name)
    part, done = base / "sysroot.part", base / "sysroot"
    shutil.rmtree(part, ignore_errors=True)
    (part / "root").mkdir(parents=True)
    for deb in debs:
        _run(["dpkg-deb", "-x", str(deb), str(part / "root")], base)
    _link_libraries(part / "root" / "usr" / "lib" / sysroot.plan(name).triplet, sysroot.plan(name).library_folders)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part / "site")  # checked by its hash
    files = [{"file": p.name, "sha256": file_sha256(p)} for p in (*debs, *wheels)]
    built = {"plan": sysroot.fingerprint(name), "files": to_json(files)}
    (part / "built.json").write_text(json.dumps(built, indent=2), encoding="utf-8")
    for old in (done, base / "cores"):
        shutil.rmtree(old, ignore_errors=True)
    part.rename(done)


def _link_libraries(folder: Path, inner: Sequence[str]) -> None:
    """The links that Debian's alternatives make as it installs: libraries of inner folders, where they are found."""
    for library in (p for name in inner for p in (folder / name).glob("*.so.*")):
        (folder / library.name).symlink_to(library.relative_to(folder))


def _try(name: str) -> None:
    """Start every runtime once: that it works is seen, and Python keeps its bytecode. Undone where nothing starts."""
    from edgedl.devices.qemu import Options, Qemu

    try:
        with contextlib.closing(Qemu().open(Options(architecture=sysroot.plan(name).machine))) as device:
            runtimes = device.call("info", {}, 300)["runtimes"]
        if not any(r["version"] for r in runtimes.values()):
            told = "; ".join(f"{runtime}: {r['why']}" for runtime, r in runtimes.items())
            message = f"{name}: no runtime starts in it: {told}"
            raise EdgedlError(message)
    except BaseException:
        shutil.rmtree(sysroot.folder(name) / "sysroot")
        raise


def _run(command: Sequence[str], folder: Path) -> str:
    """Its standard output. Raises InputError with its last words where it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as e:
        message = f"{command[0]} did not end in {TIMEOUT_S} s; is the network there?{AGAIN}"
        raise InputError(message) from e
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        wrong = [line for line in said if line.startswith(("E:", "ERROR"))] or said[-2:]
        message = f"{Path(command[0]).name} failed: {' | '.join(wrong[:3])}{AGAIN}"
        raise InputError(message)
    return done.stdout

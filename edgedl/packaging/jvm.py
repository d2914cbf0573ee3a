"""Kotlin and Java sources as class files, with the compilers of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from edgedl import worker
from edgedl.errors import EdgedlError, PluginError

TIMEOUT_S = 300.0
INSTALL = "apt-get install kotlin default-jdk-headless, or sdk install kotlin and java (https://sdkman.io)"
# A compiler lives for seconds: it never pays to optimize it.
JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
KOTLINC = ("-no-reflect", "-Xno-param-assertions", "-Xno-call-assertions", "-Xno-receiver-assertions")
JAVAC = ("-g:none", "--release", "8", "-Xlint:-options", "-implicit:none", "-proc:none")


def compile_(sources: Mapping[str, str], stubs: Path, out: Path, module: str) -> None:
    """Class files below `out` for sources by path; Java and Kotlin may name each other, and what `stubs` declares.

    Raises PluginError where a compiler is missing, EdgedlError where one refuses the sources.
    """
    kotlinc, javac = _tool("kotlinc"), _tool("javac")
    folder = worker.pool().scratch("sources")
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    java = [str(folder / name) for name in sources if name.endswith(".java")]
    commands = (
        [kotlinc, str(folder), str(stubs), *KOTLINC, "-module-name", module, "-d", str(out)],
        [
            javac,
            *(f"-J{flag}" for flag in JVM),
            *JAVAC,
            "-encoding",
            "UTF-8",
            "-sourcepath",
            str(stubs),
            "-d",
            str(out),
            *java,
        ],
    )
    started = [_start(command) for command in commands]
    for process, command in zip(started, commands, strict=True):
        _finish(process, Path(command[0]).name)
    shutil.rmtree(out / "META-INF", ignore_errors=True)  # Kotlin's list of top-level functions: there is none


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        message = f"platform 'android' compiles Kotlin and Java, and there is no {name} here. Try: {INSTALL}"
        raise PluginError(message)
    return found


def _start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"JAVA_OPTS": " ".join(["-Xmx512M", *JVM])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process: subprocess.Popen[str], name: str) -> None:
    try:
        told, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as e:
        process.kill()
        message = f"{name} did not finish within {TIMEOUT_S:g} s"
        raise EdgedlError(message) from e
    if process.returncode:
        lines = [line for line in told.splitlines() if "error:" in line] or told.splitlines()[-1:] or ["no message"]
        message = f"{name} refuses the wrapper: {lines[0]}"
        raise EdgedlError(message)

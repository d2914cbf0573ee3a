"""A board that is reached by ssh: its host key must be known, and a key or an agent opens it. Needs `edgedl[ssh]`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgedl.devices.remote import COMMAND_S, LEAVE_S, SLOWEST_BYTES_S, RemoteDevice, installed_python
from edgedl.errors import EdgedlError, InputError, PluginError, WorkerError
from edgedl.types import Gives

T = TypeVar("T")
PORT = 22
CONNECT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """`host` may be an alias of ~/.ssh/config. `python` there has the runtimes; `folder` is where it may write."""

    host: str
    port: int | None = None
    user: str | None = None
    key: str | None = None
    known_hosts: str | None = None
    python: str = "python3"
    folder: str = "/tmp"  # noqa: S108  on the device
    emulated: bool = False  # an emulator that the agent cannot see: no time of it is told
    architecture: str | None = None  # of the profile; the device tells its own


class Ssh:
    """A board that is reached by ssh."""

    options = Options

    def gives(self, options: Options) -> Gives:  # noqa: ARG002
        """Outputs."""
        return "outputs"

    def missing(self, options: Options) -> str:  # noqa: ARG002
        """Nothing: a user who names a board wants that board."""
        return ""

    def board(self, options: Options) -> str:
        """The address, whoever the user is."""
        return f"{options.host}:{options.port or PORT}"

    def open(self, options: Options) -> RemoteDevice:
        """Connect, and start the agent there."""
        link = SshLink(options)
        try:
            return RemoteDevice(
                link, lambda *_: installed_python(link, options.python), base=options.folder, emulated=options.emulated
            )
        except BaseException:
            link.close()
            raise


class SshLink:
    """One connection; asyncssh works in a thread of its own."""

    def __init__(self, options: Options) -> None:
        try:
            import asyncssh
        except ImportError as e:
            message = "device 'ssh' needs asyncssh. Try: pip install 'edgedl[ssh]'"
            raise PluginError(message) from e
        self._asyncssh = asyncssh
        self.where = f"{options.user}@{options.host}" if options.user else options.host
        if options.port:
            self.where += f":{options.port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connection: Any = None
        try:
            self._connection = self._wait(self._connect(options), CONNECT_S + 5)
            self._sftp = self._wait(self._connection.start_sftp_client(), CONNECT_S)
        except BaseException:
            self.close()
            raise

    async def _connect(self, options: Options) -> Any:
        given: dict[str, Any] = {"keepalive_interval": 10, "keepalive_count_max": 3, "connect_timeout": CONNECT_S}
        given |= {k: v for k, v in (("port", options.port), ("username", options.user)) if v}
        if options.key:
            given["client_keys"] = [str(Path(options.key).expanduser())]
        if options.known_hosts:
            given["known_hosts"] = str(Path(options.known_hosts).expanduser())
        return await self._asyncssh.connect(options.host, **given)

    def _wait(self, work: Awaitable[T], timeout_s: float) -> T:
        """What is awaited. Raises InputError for a wrong key or host key, WorkerError for a lost link."""
        ssh = self._asyncssh
        future = asyncio.run_coroutine_threadsafe(_awaited(work), self._loop)
        try:
            return future.result(timeout_s)
        except ssh.HostKeyNotVerifiable as e:
            message = (
                f"{self.where}: its host key is not the one in known_hosts ({e.reason}); if the machine is the right "
                "one, connect once with ssh and accept the key, or name [runner] known_hosts"
            )
            raise InputError(message) from e
        except ssh.PermissionDenied as e:
            message = f"{self.where}: lets no one in with these keys ({e.reason}); name [runner] user and key"
            raise InputError(message) from e
        except ssh.KeyImportError as e:
            message = f"{self.where}: [runner] key or known_hosts cannot be read: {e}"
            raise InputError(message) from e
        except TimeoutError as e:
            future.cancel()
            message = f"{self.where}: no answer in {timeout_s:g} s"
            raise WorkerError(message) from e
        except FileNotFoundError as e:
            message = f"{self.where}: [runner] key or known_hosts: {e.filename}: no such file"
            raise InputError(message) from e
        except (OSError, ssh.Error) as e:
            message = f"{self.where}: not reached, or lost: {e}"
            raise WorkerError(message) from e

    def run(self, command: str, timeout_s: float = COMMAND_S) -> str:
        """Standard output of a shell command there."""
        done = self._wait(self._connection.run(command), timeout_s)
        if done.exit_status != 0:
            lost = "the connection was lost" if done.exit_status is None else done.exit_status
            message = f"{self.where}: {command.split()[0]} failed: {str(done.stderr).strip() or lost}"
            raise WorkerError(message)
        return str(done.stdout)

    def put(self, local: Path, remote: str) -> None:
        """Copy a file there."""
        self._wait(self._sftp.put(str(local), remote), COMMAND_S + local.stat().st_size / SLOWEST_BYTES_S)

    def get(self, remote: str, local: Path) -> None:
        """Copy a file here."""
        size = self._wait(self._sftp.getsize(remote), COMMAND_S)
        self._wait(self._sftp.get(remote, str(local)), COMMAND_S + (size or 0) / SLOWEST_BYTES_S)

    def talk(self, command: str) -> SshTalk:
        """Start a command that goes on."""
        return SshTalk(self, self._wait(self._connection.create_process(command), COMMAND_S))

    def close(self) -> None:
        """Close the connection and its thread."""
        if self._loop.is_closed():
            return
        if self._connection is not None:
            self._connection.close()
            with contextlib.suppress(EdgedlError):
                self._wait(self._connection.wait_closed(), LEAVE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work  # asyncssh gives awaitables that are no coroutines


class SshTalk:
    """A process there."""

    def __init__(self, link: SshLink, process: Any) -> None:
        self._link, self._process = link, process

    def send(self, line: str) -> None:
        """Write a line to its standard input."""

        async def write() -> None:
            self._process.stdin.write(f"{line}\n")

        self._link._wait(write(), COMMAND_S)

    def line(self, timeout_s: float) -> str:
        """The next line of its standard output."""

        async def read() -> str:
            return str(await asyncio.wait_for(self._process.stdout.readline(), timeout_s))

        try:
            found = self._link._wait(read(), timeout_s + COMMAND_S)
        except WorkerError as e:
            raise (TimeoutError if isinstance(e.__cause__, TimeoutError) else EOFError) from e
        if not found:
            raise EOFError
        return found

    def end(self) -> str:
        """Close its input and wait a moment; the last lines of its standard error."""

        async def leave() -> str:
            self._process.stdin.write_eof()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait_closed(), LEAVE_S)
            said = self._process.stderr
            lines = str(await asyncio.wait_for(said.read(4096), 0.2)).splitlines() if said.at_eof() is False else []
            how = [f"signal {s[0]}"] if (s := self._process.exit_signal) else []
            return " | ".join([*[line for line in lines if line.strip()][-3:], *how])

        try:
            return self._link._wait(leave(), 2 * LEAVE_S)
        except (EdgedlError, OSError):
            return ""

"""The device side of adb over TCP, for tests: python adbd.py ROOT prints its port and serves until it is killed.

Commands run in ROOT by chroot, as the user that Android's shell is; there is no Python and no /usr in it, and only
data/local/tmp may be written. Its processor is QEMU: a program of the arm64 loader is started by ROOT/emulator/run.
The protocol: https://android.googlesource.com/platform/packages/modules/adb/+/refs/heads/main/docs/dev/
"""

import asyncio
import os
import re
import struct
import sys
from pathlib import Path

SHELL_USER = 2000
VERSION, MAXDATA = 0x01000001, 256 * 1024
BANNER = b"device::ro.product.name=edgedl;ro.product.model=test;ro.product.device=test;features=shell_v2"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Stream:
    """One opened service: what came in, and sending out, one packet at a time."""

    def __init__(self, send, local, remote):
        self._send, self.local, self.remote = send, local, remote
        self.arrived, self.ready = asyncio.Queue(), asyncio.Semaphore(0)
        self._buffer, self._turn = b"", asyncio.Lock()

    async def write(self, content):
        async with self._turn:
            for at in range(0, len(content), MAXDATA):
                await self._send(b"WRTE", self.local, self.remote, content[at : at + MAXDATA])
                await self.ready.acquire()

    async def read(self, size):
        """Exactly `size` bytes; EOFError where the stream is closed."""
        while len(self._buffer) < size:
            piece = await self.arrived.get()
            if piece is None:
                raise EOFError
            self._buffer += piece
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found


class Phone:
    def __init__(self, root):
        self.root = Path(root)

    async def serve(self, reader, writer):
        streams, tasks, count = {}, [], 0

        async def send(command, first, second, content=b""):
            magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
            writer.write(command + struct.pack("<5I", first, second, len(content), 0, magic) + content)
            await writer.drain()

        try:
            while True:
                header = await reader.readexactly(24)
                command, (first, second, size) = header[:4], struct.unpack("<3I", header[4:16])
                content = await reader.readexactly(size)
                if command == b"CNXN":
                    await send(b"CNXN", VERSION, MAXDATA, BANNER)
                elif command == b"OPEN":
                    count += 1
                    streams[count] = Stream(send, count, first)
                    await send(b"OKAY", count, first)
                    work = self._service(content.rstrip(b"\0").decode(), streams[count], send)
                    tasks.append(asyncio.create_task(work))
                elif command == b"WRTE" and second in streams:
                    streams[second].arrived.put_nowait(content)
                    await send(b"OKAY", second, first)
                elif command == b"OKAY" and second in streams:
                    streams[second].ready.release()
                elif command == b"CLSE" and second in streams:
                    streams.pop(second).arrived.put_nowait(None)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for task in tasks:
                task.cancel()
            writer.close()

    async def _service(self, name, stream, send):
        try:
            if name.startswith("shell"):
                await self._shell(name.partition(":")[2], stream)
            elif name.startswith("sync:"):
                await self._sync(stream)
        except EOFError:
            return
        await send(b"CLSE", stream.local, stream.remote)

    async def _shell(self, command, stream):
        command = re.sub(r"(\S+/ld-linux-aarch64\.so\.1 )", r"/emulator/run \1", command)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "/system/bin/sh", "-c", command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=self._enter,
            env={"PATH": "/system/bin", "HOME": "/"},
        )  # fmt: skip

        async def forward(source, kind):
            while content := await source.read(65536):
                await stream.write(struct.pack("<BI", kind, len(content)) + content)

        async def feed():
            try:
                while True:
                    kind, size = struct.unpack("<BI", await stream.read(5))
                    content = await stream.read(size)
                    if kind == STDIN:
                        process.stdin.write(content)
                    elif kind == CLOSE_STDIN:
                        break
            except EOFError:
                pass
            process.stdin.close()

        feeding = asyncio.create_task(feed())
        await asyncio.gather(forward(process.stdout, STDOUT), forward(process.stderr, STDERR))
        code = await process.wait()
        feeding.cancel()
        await stream.write(struct.pack("<BIB", EXIT, 1, code & 255))

    def _enter(self):
        os.chroot(self.root)
        os.chdir("/")
        os.setgroups([])
        os.setgid(SHELL_USER)
        os.setuid(SHELL_USER)

    async def _sync(self, stream):
        while True:
            command, size = struct.unpack("<4sI", await stream.read(8))
            if command == b"QUIT":
                return
            name = (await stream.read(size)).decode()
            path = (
                self.root / name.rpartition(",")[0].lstrip("/") if command == b"SEND" else self.root / name.lstrip("/")
            )
            if command == b"STAT":
                found = path.stat() if path.exists() else None
                facts = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
                await stream.write(b"STAT" + struct.pack("<3I", *facts))
            elif command == b"SEND":
                await self._receive(path, stream)
            elif command == b"RECV":
                content = path.read_bytes() if path.is_file() else b""
                for at in range(0, len(content), 65536):
                    piece = content[at : at + 65536]
                    await stream.write(b"DATA" + struct.pack("<I", len(piece)) + piece)
                await stream.write(b"DONE" + struct.pack("<I", 0))

    async def _receive(self, path, stream):
        pieces = []
        while True:
            kind, size = struct.unpack("<4sI", await stream.read(8))
            if kind == b"DONE":
                break
            pieces.append(await stream.read(size))
        try:
            if not path.is_relative_to(self.root / "data" / "local" / "tmp"):
                raise PermissionError(13, "Permission denied")
            path.write_bytes(b"".join(pieces))
            os.chown(path, SHELL_USER, SHELL_USER)
            await stream.write(b"OKAY" + struct.pack("<I", 0))
        except OSError as e:
            why = f"couldn't create file: {e.strerror}".encode()
            await stream.write(b"FAIL" + struct.pack("<I", len(why)) + why)


async def main():
    server = await asyncio.start_server(Phone(sys.argv[1]).serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

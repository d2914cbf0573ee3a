"""The command line: one file a command, imported when it is used; click and the standard library at the top."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from edgedl import __version__
from edgedl.errors import EdgedlError, WorkerError

COMMANDS = (
    "train",
    "inspect",
    "compress",
    "export",
    "validate",
    "benchmark",
    "package",
    "keygen",
    "verify",
    "diff",
    "run",
    "report",
    "targets",
    "devices",
    "plugins",
    "doctor",
    "demo",
)
INTERRUPTED = 130
NO_SPACE = r"\[Errno 28\]|; No space left on device|\d+ requested and \d+ written"  # the system, TensorFlow, numpy
LITTLE_BYTES = 1_000_000  # with less than that in the temporary folder, a child's death needs no other reason


class Commands(click.Group):
    """The commands in the order of the work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Every command, as `COMMANDS` has them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"edgedl.cli.{cmd_name}").command
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgedl")
def edgedl() -> None:
    """From a trained Keras model to the smallest artifact that still works, with the evidence.

    DATA is a .npz, a .csv, a folder of class folders, a .toml that names one of these, or module:function.
    Exit codes: 0 pass, 1 edgedl failed, 2 command line, file or data wrong, 3 unsupported scheme, layer or op,
    4 no such plugin or format, 5 a worker died, 6 a gate failed, 7 inconclusive or unchecked, 130 interrupted.
    """


def invoke(arguments: Sequence[str]) -> int:
    """Run one command in this process; its exit code. Errors are one line on stderr, and stdout stays empty."""
    from edgedl.cli.progress import progress_bar

    try:
        with progress_bar():
            code = edgedl.main(list(arguments), prog_name="edgedl", standalone_mode=False)
    except EdgedlError as e:
        full = _full_disk(e)
        return _fail(full, 2) if full else _fail(str(e), e.exit_code)
    except click.UsageError as e:
        hint = f" Try: {e.ctx.command_path} --help" if e.ctx else ""
        return _fail(f"{e.format_message()}{hint}", 2)
    except click.ClickException as e:
        return _fail(e.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        if worker := sys.modules.get("edgedl.worker"):
            worker.kill()
        again = "; the same command goes on where it was" if set(arguments) & {"compress", "run"} else ""
        return _fail(f"interrupted; nothing was changed{again}", INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  the reader is gone, and says so itself
        return 0
    except Exception as e:
        if full := _full_disk(e):
            return _fail(full, 2)
        if os.environ.get("EDGEDL_DEBUG"):
            raise
        return _fail(f"edgedl failed: {type(e).__name__}: {e} (EDGEDL_DEBUG=1 shows where)", 1)
    return code if isinstance(code, int) else 0


def _full_disk(error: Exception) -> str | None:
    """What to say where an error comes of a full disk, in this process or a child, however a framework words it."""
    import re
    import shutil
    import tempfile

    said = str(error)
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # none can be written
        folder = os.environ.get("TMPDIR", "/tmp")  # noqa: S108
    lost = isinstance(error, WorkerError) and shutil.disk_usage(folder).free < LITTLE_BYTES
    if not lost and not re.search(NO_SPACE, said):
        return None
    where = getattr(error, "filename", None) or folder
    why = f" ({said})" if lost else ""
    return f"the disk is full: {where}; free some space, or set TMPDIR to a folder with more{why}"


def _fail(message: str, code: int) -> int:
    click.echo(f"Error: {message}", err=True)
    return code


def main() -> None:
    """The console script."""
    code = invoke(sys.argv[1:])
    if worker := sys.modules.get("edgedl.worker"):
        worker.close()
    sys.stdout.flush()
    os._exit(code) if code == INTERRUPTED else sys.exit(code)

"""What becomes of a program when the edgedl that started it is killed."""

import os
import signal
import subprocess
import sys
import time

from edgedl import worker

WRITES_ITS_ID = ["sh", "-c", "echo $$ >id.part; mv id.part id; exec sleep 60"]


def outlives(code, folder):
    """Whether the program that `code` starts in `folder`, WRITES_ITS_ID, goes on after the SIGTERM of a Python."""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=folder)
    waited(lambda: (folder / "id").exists())
    program = int((folder / "id").read_text())
    parent.send_signal(signal.SIGTERM)
    parent.wait()
    waited(lambda: not worker.is_running(program))
    goes_on = worker.is_running(program)
    if goes_on:
        os.kill(program, signal.SIGKILL)
    return goes_on


def waited(happened):
    until = time.monotonic() + 30
    while not happened() and time.monotonic() < until:
        time.sleep(0.05)

"""Keras on TensorFlow, and the command line in-process."""

import os
from dataclasses import dataclass

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys):
    """Run one command in this process: `cli("export", ...)` -> Answer(code, out, err)."""
    from edgedl.cli import invoke

    def call(*arguments):
        capsys.readouterr()
        code = invoke([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call

"""Every error that edgedl raises on purpose, with the exit code of the command line.

    EdgedlError          1  edgedl itself failed
    ├── InputError       2  the command line, a file or the data is wrong
    ├── UnsupportedError 3  a scheme, layer or op that cannot be done here
    ├── PluginError      4  no such plugin or format
    ├── WorkerError      5  a child process died, hung or outgrew its memory
    └── GateError        6  a gate failed, or `verify` found what does not hold

A verdict that is inconclusive or unchecked exits with 7, an interrupt with 130; neither is an error.
Every class takes one message: where, what was found, what is allowed, what to do next.
"""

from __future__ import annotations


class EdgedlError(Exception):
    """edgedl itself failed."""

    exit_code = 1


class InputError(EdgedlError):
    """The command line, a file or the data is wrong."""

    exit_code = 2


class UnsupportedError(EdgedlError):
    """A scheme, layer or op that cannot be done here."""

    exit_code = 3


class PluginError(EdgedlError):
    """No such plugin or format, or two that answer to one name."""

    exit_code = 4


class WorkerError(EdgedlError):
    """A child process died, hung or outgrew its memory."""

    exit_code = 5


class GateError(EdgedlError):
    """A gate failed, or a package is not what it says."""

    exit_code = 6

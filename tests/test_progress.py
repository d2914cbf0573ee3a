import sys
from types import SimpleNamespace

from edgedl import worker
from edgedl.cli import progress


def report(*done):
    with progress.progress_bar():
        for steps in done:
            worker.on_progress("training, epoch 1 of 2", steps, 8)
    assert worker.on_progress is None


def test_a_log_has_a_line_a_minute(capsys, monkeypatch):
    minutes = iter([0, 0.5, 1, 1, 1.9, 2.1, 2.1])  # the start, then each call; a line looks twice
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 60 * next(minutes)))
    report(1, 2, 3, 4)
    assert capsys.readouterr().err == "  training, epoch 1 of 2: 25%\n  training, epoch 1 of 2: 50%\n"


def test_a_log_of_a_short_command_has_no_line(capsys):
    report(1, 8)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_for_what_takes_longer(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    report(1)
    assert "training, epoch 1 of 2" in capsys.readouterr().err

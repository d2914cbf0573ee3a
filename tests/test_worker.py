import contextlib
import os
import time

import numpy as np
import pytest

from edgedl import worker
from edgedl.errors import EdgedlError, InputError, WorkerError
from edgedl.worker import Pool


@pytest.fixture(scope="module")
def pool():
    made = Pool()
    yield made
    made.close()


@pytest.fixture
def child(pool):
    made = pool.start("test")
    yield made
    made.close()


def test_call_returns_what_the_function_returned(child):
    assert child.call("os.path:basename", {"p": "a/b"}) == "b"
    assert child.call("builtins:dict", {"a": [1, 2]}) == {"a": [1, 2]}  # the same process answers again


def test_onednn_is_off_but_in_the_child_for_it(pool, monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    settings = []
    for name in (worker.TENSORFLOW, worker.ONEDNN):
        with contextlib.closing(pool.start(name)) as child:
            settings.append(child.call("os:getenv", {"key": "TF_ENABLE_ONEDNN_OPTS"}))
    assert settings == ["0", None]


def test_expected_errors_cross_with_class_and_message(child):
    with pytest.raises(InputError, match=r"nowhere\.npz: no such file"):
        child.call("edgedl.data:load", {"source": "nowhere.npz"})
    assert child.alive


def test_unexpected_errors_name_the_function_and_the_exception(child):
    with pytest.raises(EdgedlError, match=r"edgedl.types:Scheme failed: ValueError: 'x' is not a valid Scheme"):
        child.call("edgedl.types:Scheme", {"value": "x"})


def test_a_killed_child_is_one_worker_error_that_names_the_signal(child):
    with pytest.raises(WorkerError, match="was killed by SIGSEGV in ctypes:string_at"):
        child.call("ctypes:string_at", {"ptr": 1})
    assert not child.alive


def test_a_hanging_child_is_ended(child):
    with pytest.raises(WorkerError, match=r"made no progress for 0.3 s"):
        child.call("subprocess:check_call", {"args": ["sleep", "30"]}, timeout_s=0.3)
    assert not child.alive


def test_a_child_over_its_memory_is_ended(child):
    with pytest.raises(WorkerError, match=r"used [\d,]+ MB, the limit is 60 MB"):
        child.call("numpy:ones", {"shape": 60_000_000}, memory_bytes=60_000_000)


def test_the_pool_starts_a_new_child_after_a_crash(pool):
    first = pool.child("again")
    first.kill()
    assert pool.child("again").call("os.path:basename", {"p": "a/b"}) == "b"


def test_progress_reaches_the_parent(child):
    seen = []
    child.call(
        "edgedl.agent:progress", {"stage": "calibrating", "done": 3, "total": 3}, on_progress=lambda *e: seen.append(e)
    )
    assert seen == [("calibrating", 3, 3)]


def test_begin_goes_on_here_while_the_child_works_and_gives_its_result_or_error(child, tmp_path):
    os.mkfifo(tmp_path / "end")
    waiting = ["sh", "-c", f"read word < {tmp_path / 'end'}"]
    slow = worker.begin(lambda: child.call("subprocess:check_call", {"args": waiting}, timeout_s=60))
    wrong = worker.begin(lambda: child.call("edgedl.data:load", {"source": "nowhere.npz"}))
    assert not slow.done()
    (tmp_path / "end").write_text("now\n")
    assert slow.result() == 0
    with pytest.raises(InputError, match="nowhere"):
        wrong.result()


def test_a_pool_closes_at_once_when_a_child_still_works():
    pool = Pool()
    child = pool.child("busy")
    slow = worker.begin(lambda: child.call("subprocess:check_call", {"args": ["sleep", "30"]}))
    while not child.calls:
        time.sleep(0.01)
    begun = time.monotonic()
    pool.close()
    assert time.monotonic() - begun < 20  # the call takes 30
    assert not child.alive
    with pytest.raises(Exception, match=r"killed by SIGKILL|closed file|No such file"):
        slow.result()


def test_threads_that_are_first_at_once_share_one_pool(monkeypatch):
    made = []

    class Slow:
        def __init__(self):
            time.sleep(0.2)
            made.append(self)

    monkeypatch.setattr(worker, "_pool", None)
    monkeypatch.setattr(worker, "Pool", Slow)
    monkeypatch.setattr(worker.atexit, "register", lambda _: None)
    futures = [worker.begin(worker.pool) for _ in range(3)]
    assert {future.result() for future in futures} == set(made)
    assert len(made) == 1


def test_scratch_goes_when_the_pool_closes():
    pool = Pool()
    np.save(pool.scratch("x") / "a.npy", np.zeros(3))
    pool.close()
    assert not pool.folder.exists()


def test_what_a_killed_session_left_is_swept_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    running = Pool()
    left = tmp_path / "edgedl-999999999-abcdefgh"
    left.mkdir()
    (left / worker.OURS).touch()
    users = [tmp_path / name for name in ("edgedl-2024-results", "edgedl-999999999-12345678")]
    for folder in users:
        folder.mkdir()
        (folder / "weights.txt").touch()
    # as of another container: no such process here
    foreign = running.folder.rename(tmp_path / "edgedl-999999999-a_b_c_d_")
    Pool().close()
    assert not left.exists()
    assert foreign.exists()
    assert all((folder / "weights.txt").exists() for folder in users)
    foreign.rename(running.folder)
    running.close()


def test_where_nothing_can_be_written_one_line_says_so(cli, monkeypatch):
    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/proc']")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    with pytest.raises(InputError, match=r"no folder for temporary files can be written: .*; set TMPDIR to one"):
        Pool()
    answer = cli("targets", "show", "nope")
    assert answer.code == 2
    assert answer.err.startswith("Error: no such target: 'nope'")


def test_children_end_when_their_parent_is_killed(tmp_path):
    import subprocess
    import sys

    code = (
        "from edgedl import worker; import os, time\n"
        "child = worker.pool().child('x'); child.call('os.path:basename', {'p': 'a'})\n"
        "print(child.process.pid, worker.pool().folder, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline().split()[0])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while worker.is_running(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not worker.is_running(pid)


def test_a_missing_interpreter_is_a_worker_error(pool):
    with pytest.raises(WorkerError, match="does not start: /no/such/python"):
        pool.start("x", "/no/such/python")

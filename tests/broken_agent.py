"""An agent that does not do what it should: python broken_agent.py HOW -u AGENT.py --device."""

import importlib.util
import os
import signal
import sys
import time

how, agent_path = sys.argv[1], sys.argv[3]
spec = importlib.util.spec_from_file_location("agent", agent_path)
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)
good_run, good_digest = agent.run, agent.digest


def run(request):
    import numpy as np

    reply = good_run(request)
    for path in (request.get("outputs") or {}).values():
        found = np.load(path)
        np.save(path, {"shape": found[:, :-1], "samples": found[1:], "dtype": found.astype(np.float64)}.get(how, found))
        if how == "text":
            with open(path, "w") as f:
                f.write("no array")
    return reply


def digest(request):
    return dict.fromkeys(good_digest(request), "0" * 64)


def dies(request):
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(request):
    while True:
        time.sleep(60)


def mute():
    print('{"hello": "world"}', flush=True)
    time.sleep(60)


def changed():
    with open(agent_path, "a") as f:
        f.write("# another")


agent.VERBS["run"] = {"dies": dies, "hangs": hangs}.get(how, run)
if how == "lies":
    agent.VERBS["digest"] = digest
if how == "changed":
    changed()
print("Welcome to the board!", flush=True)  # as login scripts do
if how == "mute":
    mute()
agent.serve(on_device=True)

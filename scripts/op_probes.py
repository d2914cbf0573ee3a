"""Run inside a release of a runtime (Python 3.7 up): which operators has it, in which versions? Prints JSON.

python op_probes.py tflite MODULE PROBES.pickle     {"CONV_2D": 8, ...}, the highest version of each
python op_probes.py tflm - PROBES.pickle            {"CONV_2D": null, ...}: TFLM looks at no version
python op_probes.py onnxruntime - PROBES.pickle     {"ops": {"Relu": null, ...}, "opset": 26, "ir_version": 13}
"""

import importlib
import json
import os
import pickle
import resource
import sys
import tempfile

ABSENT = ("Didn't find op for builtin", "Failed to get registration")


def tflite(module, probes):
    """A file that names one operator in one version and uses none: the interpreter looks it up all the same."""
    interpreter = importlib.import_module(module).Interpreter
    found = {}
    for name, files in probes.items():
        for version, content in enumerate(files, 1):
            try:
                interpreter(model_content=content)
            except ValueError:
                continue
            found[name] = version
    return found


def tflm(_, probes):
    """A file with one operator and no tensors: what it says, or that it crashes later, tells whether it has the op."""
    from tflite_micro import runtime

    start = runtime.Interpreter.from_bytes
    return {name: None for name, files in probes.items() if _has(start, files[0])}


def _has(start, content):
    with tempfile.NamedTemporaryFile() as log:
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (5, 5))  # without its tensors an operator may run for ever
            os.dup2(log.fileno(), 2)
            try:
                start(content, arena_size=100000)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        with open(log.name, errors="replace") as f:
            said = f.read()
    return not any(words in said for words in ABSENT)


def onnxruntime(_, probes):
    """The kernels of the CPU provider, and what ONNX defines by other operators, which it then runs instead.

    Beside them the highest opset and IR version of a file that it loads.
    """
    import onnxruntime as runtime
    from onnxruntime.capi import _pybind_state

    runtime.set_default_logger_severity(4)
    kernels = getattr(_pybind_state, "get_all_opkernel_def", list)()  # older releases do not tell
    names = set()
    for kernel in kernels:
        if kernel.provider == "CPUExecutionProvider":
            domain = kernel.domain
            names.add(f"{domain}.{kernel.op_name}" if domain not in ("", "ai.onnx") else kernel.op_name)
    functions = probes.pop("functions")
    highest = {}
    for key, files in probes.items():
        for number, content in files.items():
            try:
                runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
            except Exception:  # noqa: S112  its errors share no base
                continue
            highest[key] = number
    if names:
        names |= {name for name, since in functions.items() if since <= highest["opset"]}
    return dict(highest, ops=dict.fromkeys(sorted(names)))


if __name__ == "__main__":
    kind, module_, path = sys.argv[1:]
    with open(path, "rb") as file:
        print(json.dumps(globals()[kind](module_, pickle.load(file))))  # noqa: S301  our own file

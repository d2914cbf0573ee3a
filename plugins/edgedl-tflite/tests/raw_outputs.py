"""Prints a hash of the raw outputs of each file on seeded input: raw_outputs.py RUNTIME FILE...

A script, since TFLM aborts, tflite-runtime bears no other runtime beside it, and both are to be told apart by process.
Models have one input and one output. "cannot run" stands where the runtime has no kernel for the file.
"""

import hashlib
import importlib
import json
import sys

import numpy as np

SAMPLES = 4


def draw(rng, shape, dtype):
    """One input: standard normal, or integers over the range of the type, small ones where that is wide."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    limits = (0, 4) if kind.itemsize > 2 else (np.iinfo(kind).min, np.iinfo(kind).max + 1)
    return rng.integers(*limits, shape).astype(kind)


def in_tflm(file):
    """(input details, reset, run) of a file in TFLM."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_file(file, arena_size=8_000_000)

    def run(values):
        interpreter.set_input(values, 0)
        interpreter.invoke()
        return interpreter.get_output(0)

    return interpreter.get_input_details(0), interpreter.reset, run


def in_tflite(file, module, *, builtin=False):
    """(input details, reset, run) of a file in litert or tflite-runtime; `builtin` leaves XNNPACK out."""
    interpreters = importlib.import_module(module)
    resolvers = interpreters.OpResolverType
    resolver = resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else resolvers.AUTO
    interpreter = interpreters.Interpreter(file, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(values):
        interpreter.set_tensor(given["index"], values)
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    return given, interpreter.reset_all_variables, run


RUNTIMES = {
    "litert": lambda file: in_tflite(file, "ai_edge_litert.interpreter"),
    "litert, builtin": lambda file: in_tflite(file, "ai_edge_litert.interpreter", builtin=True),
    "tflite-runtime": lambda file: in_tflite(file, "tflite_runtime.interpreter"),
    "tflm": in_tflm,
}


def answers(load, file):
    """The hash of all raw outputs."""
    try:
        details, reset, run = load(file)
    except (RuntimeError, ValueError):
        return "cannot run"
    rng, found = np.random.default_rng(0), hashlib.sha256()
    for _ in range(SAMPLES):
        reset()
        found.update(run(draw(rng, details["shape"], details["dtype"])).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(json.dumps([answers(RUNTIMES[sys.argv[1]], file) for file in sys.argv[2:]]))

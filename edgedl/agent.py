"""The one file that runs litert, tflite_runtime and onnxruntime: here, in a child, or copied to a device.

It needs the standard library (Python 3.7 up), numpy, and whichever runtime it finds. One request is one folder:
`request.json` in, `reply.json` out, arrays as .npy files, `progress.jsonl` while it works, `log` with all output.

    python agent.py FOLDER      answer one request and exit
    python agent.py --serve     answer the folders named on standard input, a line each; "done" after each
    python agent.py --device    the same on a device: first a line about it, progress on standard output too, and what
                                runs is ended when the input closes
    python agent.py --tied COMMAND...    become a command that is killed when who started it is gone

A request has a `verb` (info, describe, run, count, digest) or, where edgedl itself is installed, a `call` of
"module:function".
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path and os.path.isdir(sys.path[0]):
    # Beside this file lie modules such as types.py, which would hide the standard library's.
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]

import gc
import importlib
import json
import platform
import queue
import threading
import time
import traceback

if False:  # typing names, without a typing import that old interpreters lack
    from typing import Any, Iterator

MODULES = {
    "litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "onnxruntime": "onnxruntime",
}
CHUNK_SAMPLES = 384
CHUNK_BYTES = 16000000
CPU_KERNELS = ("builtin", "xnnpack")  # of TFLite's runtimes, the second by default
STATEFUL_OPS = ("SEQUENCE", "SVDF", "VARIABLE", "VAR_HANDLE", "CALL_ONCE")
ONNX_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}

_loaded = {}  # type: dict[str, Any]
_last_progress = [0.0]
_listener = []  # type: list[Any]  # who reads progress from standard output, where no one can from the file


class RefusedError(Exception):
    """The request does not fit the file: an InputError on the other side."""


def progress(stage: str, done: int, total: int) -> None:
    """Tell whoever waits how far this call is; at most ten times a second, and always at the end."""
    path = os.environ.get("EDGEDL_PROGRESS")
    now = time.monotonic()
    if not path or (done < total and now - _last_progress[0] < 0.1):
        return
    _last_progress[0] = now
    line = json.dumps({"stage": stage, "done": int(done), "total": int(total)}) + "\n"
    with open(path, "a", encoding="utf-8") as f:
        f.write(line)
    for listener in _listener:
        listener.write(line)
        listener.flush()


# ---- the runtimes -------------------------------------------------------------------------------------------------


class TFLiteModel:
    """A .tflite file in litert or tflite_runtime. `specs` are by signature name, in signature order."""

    def __init__(self, request: dict[str, Any], data_shapes: dict[str, tuple[int, ...]]) -> None:
        module = importlib.import_module(MODULES[request["runtime"]])
        if request.get("resolver") not in (None,) + CPU_KERNELS:
            message = "the agent has no {!r} kernels; it has {}"
            raise RefusedError(message.format(request["resolver"], ", ".join(CPU_KERNELS)))
        kwargs = {"model_path": request["artifact"], "num_threads": request.get("threads") or 1}
        if request.get("resolver") == "builtin":
            kwargs["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.interpreter = module.Interpreter(**kwargs)
        details = {d["index"]: d for d in self.interpreter.get_input_details()}
        inputs, outputs = self._names()
        for name, index in inputs.items():
            wanted = _concrete_shape(details[index], data_shapes.get(name))
            if wanted is not None:
                self.interpreter.resize_tensor_input(index, wanted, strict=True)
        self.interpreter.allocate_tensors()
        details = {d["index"]: d for d in self.interpreter.get_input_details() + self.interpreter.get_output_details()}
        self.inputs = [_spec(name, details[i]) for name, i in inputs.items()]
        self.outputs = [_spec(name, details[i]) for name, i in outputs.items()]
        ops = getattr(self.interpreter, "_get_ops_details", list)()  # type: list[dict[str, Any]]
        self.stateful = any(word in op["op_name"] for op in ops for word in STATEFUL_OPS)
        self._in = [s["index"] for s in self.inputs]
        self._out = [s["index"] for s in self.outputs]
        self._set, self._get = self.interpreter.set_tensor, self.interpreter.get_tensor

    def _names(self) -> tuple[dict[str, int], dict[str, int]]:
        signatures = getattr(self.interpreter, "_get_full_signature_list", dict)()  # type: dict[str, Any]
        for signature in signatures.values():
            return dict(signature["inputs"]), dict(signature["outputs"])
        return (
            {d["name"]: d["index"] for d in self.interpreter.get_input_details()},
            {d["name"]: d["index"] for d in self.interpreter.get_output_details()},
        )

    def feed(self, values: list[Any]) -> None:
        """Set the inputs, in the order of `inputs`; a recurrent model forgets the sample before."""
        if self.stateful:
            self.interpreter.reset_all_variables()
        for index, value in zip(self._in, values):
            self._set(index, value)

    def invoke(self) -> list[Any]:
        """Run once; the outputs in the order of `outputs`."""
        self.interpreter.invoke()
        return [self._get(i) for i in self._out]


class OnnxModel:
    """An .onnx or .ort file in onnxruntime on the CPU."""

    def __init__(self, request: dict[str, Any], data_shapes: dict[str, tuple[int, ...]]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request.get("threads") or 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if saturates():
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(request["artifact"], options, providers=["CPUExecutionProvider"])
        quantization = request.get("quantization") or {}
        self.inputs = [_onnx_spec(v, quantization, data_shapes) for v in self.session.get_inputs()]
        self.outputs = [_onnx_spec(v, quantization, {}) for v in self.session.get_outputs()]
        self._names = [s["name"] for s in self.inputs]
        self._values = {}  # type: dict[str, Any]

    def twin(self) -> "OnnxModel":
        """The same session with inputs of its own, for another thread."""
        made = OnnxModel.__new__(OnnxModel)
        made.__dict__.update(self.__dict__)
        return made

    def feed(self, values: list[Any]) -> None:
        """Set the inputs, in the order of `inputs`."""
        self._values = dict(zip(self._names, values))

    def invoke(self) -> list[Any]:
        """Run once; the outputs in the order of `outputs`."""
        return self.session.run(None, self._values)  # type: ignore[no-any-return]


def saturates() -> bool:
    """Whether onnxruntime's uint8-int8 kernels add up in 16 bits here, and overflow: on x86 without VNNI.

    Quantized operators are then computed in float between their integers, which gives what other processors give.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        with open("/proc/cpuinfo") as file:
            return "vnni" not in file.read()
    except OSError:
        return True


def _concrete_shape(detail: dict[str, Any], data_shape: tuple[int, ...] | None) -> list[int] | None:
    """The shape to resize an input to where the file leaves sizes free, else None."""
    signature = [int(v) for v in detail.get("shape_signature", detail["shape"])]
    if -1 not in signature:
        return None
    found = [1, *(data_shape or [])]
    sizes = found if len(found) == len(signature) else [1] * len(signature)
    return [sizes[i] if v == -1 else v for i, v in enumerate(signature)]


def _spec(name: str, detail: dict[str, Any]) -> dict[str, Any]:
    quantization = detail["quantization_parameters"]
    return {
        "name": name,
        "index": detail["index"],
        "dtype": detail["dtype"].__name__,
        "shape": [int(v) for v in detail["shape"]],
        "scale": [float(v) for v in quantization["scales"]],
        "zero_point": [int(v) for v in quantization["zero_points"]],
    }


def _onnx_spec(value: Any, quantization: dict[str, Any], data_shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    shape = [v if isinstance(v, int) and v > 0 else None for v in value.shape]
    if value.name in data_shapes and len(shape) == len(data_shapes[value.name]) + 1:
        shape = [s if s is not None else d for s, d in zip(shape, (1,) + tuple(data_shapes[value.name]))]
    scale, zero_point = quantization.get(value.name, ([], []))
    return {
        "name": value.name,
        "dtype": ONNX_DTYPES.get(value.type, value.type[len("tensor(") : -1]),
        "shape": shape,
        "scale": scale,
        "zero_point": zero_point,
    }


def _load(request: dict[str, Any], data_shapes: dict[str, tuple[int, ...]], copy: int = 0) -> Any:
    """The model of a request, loaded once a process for each setting; `copy` asks for one more interpreter."""
    runtime = request["runtime"]
    if runtime not in MODULES and not request.get("model"):
        raise RefusedError("the agent has no runtime {!r}; it has {}".format(runtime, ", ".join(MODULES)))
    shared = runtime == "onnxruntime"  # a session serves many threads, an interpreter one
    fields = [request.get(k) for k in ("artifact", "runtime", "threads", "resolver")]
    key = json.dumps([fields, data_shapes, 0 if shared else copy])
    if key not in _loaded:
        try:
            _loaded[key] = _model(request)(request, data_shapes)
        except ImportError:
            raise
        except Exception as e:
            lines = str(e).strip().splitlines() or [type(e).__name__]
            raise RefusedError("{}: {} does not load it: {}".format(request["artifact"], runtime, lines[-1])) from e
    return _loaded[key].twin() if shared and copy else _loaded[key]


def _model(request: dict[str, Any]) -> Any:
    """The class that loads the file: one of this file, or the "module:Class" that a plugin names."""
    if request.get("model"):
        module, _, name = request["model"].partition(":")
        return getattr(importlib.import_module(module), name)
    return OnnxModel if request["runtime"] == "onnxruntime" else TFLiteModel


# ---- the verbs ----------------------------------------------------------------------------------------------------


def info(request: dict[str, Any]) -> dict[str, Any]:
    """This machine and interpreter, and the runtimes that really construct an interpreter, with their versions.

    `modules` are what runtimes of plugins import, by name.
    """
    runtimes = {}
    modules = dict(MODULES, **request.get("modules") or {})
    for name in request.get("runtimes") or MODULES:
        try:
            runtimes[name] = _probe(name, modules[name])
        except Exception as e:
            lines = str(e).strip().splitlines() or [""]
            runtimes[name] = {"version": None, "why": "{}: {}".format(type(e).__name__, lines[0])}
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": _cpus(),
        "load": list(os.getloadavg()),
        "emulator": _emulator(),
        "runtimes": runtimes,
    }


def _probe(name: str, path: str) -> dict[str, Any]:
    module = importlib.import_module(path)
    if name in MODULES and name != "onnxruntime":
        # Against a wrong numpy the import succeeds and the constructor fails; a good one refuses the empty file.
        try:
            module.Interpreter(model_content=b"\0" * 16)
        except ValueError:
            pass
    package = importlib.import_module(path.split(".", maxsplit=1)[0])
    told = getattr(module, "__version__", None) or getattr(package, "__version__", None)
    return {"version": told or _installed(name), "why": None}


def _installed(name: str) -> str | None:
    try:
        from importlib.metadata import version
    except ImportError:  # Python 3.7
        return None
    return version({"litert": "ai-edge-litert"}.get(name, name))


def _emulator() -> str | None:
    """The QEMU that runs this interpreter, if one does: it translates every instruction, but not /proc/self/comm."""
    try:
        with open("/proc/self/comm") as f:
            name = f.read().strip()
    except OSError:
        return None
    return name if name.startswith("qemu-") else None


def digest(request: dict[str, Any]) -> dict[str, Any]:
    """The SHA-256 of files as they lie here, by path."""
    return {path: _sha256(path) for path in request["paths"]}


def _sha256(path: str) -> str:
    import hashlib

    total = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """Inputs and outputs as the runtime sees them once the file is loaded."""
    model = _load(request, {})
    return {"inputs": model.inputs, "outputs": model.outputs}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the samples `start` to `stop`, and time `repeats` inferences of the first one.

    `inputs` and `outputs` are .npy paths by name; outputs are float32 real values of all samples. `workers`
    interpreters share the samples. `straight` says that the data already is what the input tensor stores.
    """
    import numpy as np

    begun = time.perf_counter()
    shapes = {name: np.load(path, mmap_mode="r").shape[1:] for name, path in request["inputs"].items()}
    before = len(_loaded)
    model = _load(request, shapes)
    took_ms = getattr(model, "load_ms", (time.perf_counter() - begun) * 1e3)
    load_ms = took_ms if len(_loaded) > before else None
    straight = bool(request.get("straight"))
    feeds = _Feeds(model, request["inputs"], straight)
    start, stop = request.get("start") or 0, feeds.count if request.get("stop") is None else request["stop"]
    reply = {"load_ms": load_ms, "samples": stop - start}
    if request.get("repeats"):
        reply.update(_time(model, feeds, start, request["warmup"], request["repeats"]))
    if request.get("outputs") is not None:
        reply.update(_evaluate(request, model, feeds, shapes, start, stop))
    reply["peak_rss_bytes"] = getattr(model, "peak_rss_bytes", _peak_rss_bytes())
    return reply


def count(request: dict[str, Any]) -> dict[str, Any]:
    """Run the sample `start` `warmup` + `repeats` times, with a mark around each of the last for whoever counts.

    A mark is a system call that does nothing: getpriority of the process 0x4544 << 16, plus 0 before and 1, 2, ...
    after an inference. A counter under the emulator sees it (edgedl's `devices/counter.c`).
    """
    import ctypes

    import numpy as np

    shapes = {name: np.load(path, mmap_mode="r").shape[1:] for name, path in request["inputs"].items()}
    model = _load(request, shapes)
    feeds = _Feeds(model, request["inputs"], bool(request.get("straight")))
    values = [v[: feeds.batch] for v in feeds.chunk(0, feeds.batch)]
    invoke = getattr(model, "interpreter", model).invoke  # of an interpreter the inference alone, without its outputs
    mark = ctypes.CDLL(None).getpriority  # os.getpriority would raise, in the middle of what is counted
    before = 0x45440000
    marks = [before] * request["warmup"] + [before + 1 + i for i in range(request["repeats"])]
    gc.disable()
    for after in marks:
        model.feed(values)
        mark(0, before)
        invoke()
        mark(0, after)
    return {"repeats": request["repeats"]}


class _Feeds:
    """What the model eats, cut from .npy files a chunk at a time."""

    def __init__(self, model: Any, paths: dict[str, str], straight: bool) -> None:
        import numpy as np

        wanted = [s["name"] for s in model.inputs]
        if sorted(wanted) != sorted(paths):
            raise RefusedError("the model's inputs are {}, the data has {}".format(wanted, sorted(paths)))
        self.pairs = [(s, paths[s["name"]]) for s in model.inputs]
        self.straight = straight
        arrays = [np.load(path, mmap_mode="r") for _, path in self.pairs]
        self.count = min(len(a) for a in arrays)
        self.batch = max(int(s["shape"][0] or 1) if s["shape"] else 1 for s, _ in self.pairs)
        for (s, _), a in zip(self.pairs, arrays):
            if len(s["shape"]) != a.ndim or any(m not in (None, d) for m, d in zip(s["shape"][1:], a.shape[1:])):
                allowed = [None if i == 0 else v for i, v in enumerate(s["shape"])]
                raise RefusedError("input {!r} takes {}, the data is {}".format(s["name"], allowed, list(a.shape)))
        sample_bytes = 4 * sum(a.size // max(1, len(a)) for a in arrays)
        samples = min(CHUNK_SAMPLES, CHUNK_BYTES // max(1, sample_bytes))
        self.chunk_samples = max(1, samples // self.batch) * self.batch
        self.buffers = [
            np.empty((self.chunk_samples,) + a.shape[1:], s["dtype"]) for (s, _), a in zip(self.pairs, arrays)
        ]

    def chunk(self, start: int, stop: int) -> list[Any]:
        """Samples of every input, at most `chunk_samples`, as its tensor stores them, padded to whole batches.

        They are good until the next call, which uses the same memory.
        """
        import numpy as np

        # mapped anew each time: mapped pages count as memory until they are let go
        samples = [np.load(path, mmap_mode="r")[start:stop] for _, path in self.pairs]
        return [self._stored(*each) for each in zip(self.pairs, samples, self.buffers)]

    def _stored(self, pair: tuple[dict[str, Any], str], values: Any, buffer: Any) -> Any:
        spec, count = pair[0], len(values)
        if spec["scale"] and not self.straight and buffer.dtype.kind in "iu":
            values = quantize(values, spec["scale"][0], spec["zero_point"][0], buffer.dtype)
        padded = count + -count % self.batch
        buffer[:count] = values
        buffer[count:padded] = buffer[count - 1 : count]
        return buffer[:padded]


def quantize(values: Any, scale: float, zero_point: int, dtype: Any) -> Any:
    """Real values as integers: round(values / scale) + zero_point, saturated to `dtype`."""
    import numpy as np

    limits = np.iinfo(dtype)
    codes = np.asarray(values, np.float32) / np.float32(scale)
    np.rint(codes, out=codes)
    codes += zero_point
    return np.clip(codes, limits.min, limits.max, out=codes).astype(dtype)


def _time(model: Any, feeds: _Feeds, start: int, warmup: int, repeats: int) -> dict[str, Any]:
    values = [v[: feeds.batch] for v in feeds.chunk(start, start + feeds.batch)]
    clock = time.perf_counter_ns
    begun = clock()
    model.feed(values)
    model.invoke()
    first_ms = _took_ns(model, clock() - begun) / 1e6
    nanoseconds = []
    for i in range(warmup + repeats):
        model.feed(values)
        begun = clock()
        model.invoke()
        took = clock() - begun
        if i >= warmup:
            nanoseconds.append(_took_ns(model, took))
    return {"first_inference_ms": first_ms, "nanoseconds": nanoseconds}


def _took_ns(model: Any, here_ns: int) -> int:
    """What the last inference took: where the model runs, if that is another process."""
    return int(getattr(model, "took_ns", here_ns))


def _evaluate(
    request: dict[str, Any], first: Any, feeds: _Feeds, shapes: dict[str, Any], start: int, stop: int
) -> dict[str, Any]:
    import numpy as np

    begun = time.perf_counter()
    example = first_outputs = None
    if stop > start:
        first.feed([v[: feeds.batch] for v in feeds.chunk(start, min(start + feeds.batch, stop))])
        first_outputs = first.invoke()
    for spec, value in zip(first.outputs, first_outputs or []):
        example = np.asarray(value)
        if example.ndim == 0 or example.shape[0] != feeds.batch:
            message = "output {!r} has shape {}: its first axis is not the batch of {}"
            raise RefusedError(message.format(spec["name"], list(example.shape), feeds.batch))
    out = [
        _Output(request["outputs"][spec["name"]], (stop - start,) + np.asarray(value).shape[1:])
        for spec, value in zip(first.outputs, first_outputs or [])
    ]
    step = _samples_at_once(feeds, first_outputs or [])
    workers = max(1, min(request.get("workers") or _cpus(), (stop - start) // 32))
    bounds = [start + (stop - start) * i // workers for i in range(workers + 1)]
    errors = []  # type: list[BaseException]
    done = [0] * workers

    def part(i: int) -> None:
        try:
            model = first if i == 0 else _load(request, shapes, copy=i)
            own = feeds if i == 0 else _Feeds(model, request["inputs"], feeds.straight)
            for at in range(bounds[i], bounds[i + 1], step):
                end = min(at + step, bounds[i + 1])
                for spec, values, file in zip(model.outputs, _infer(model, own, at, end), out):
                    file.write(at - start, _real(values, spec))
                done[i] += end - at
                progress("running", sum(done), stop - start)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=part, args=(i,)) for i in range(1, workers)]
    for t in threads:
        t.start()
    part(0)
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return {"seconds": time.perf_counter() - begun, "workers": workers}


def _samples_at_once(feeds: _Feeds, outputs: list[Any]) -> int:
    """Whole batches whose inputs and outputs each fit in CHUNK_BYTES, at least one; `outputs` are those of a batch."""
    import numpy as np

    batch_bytes = 4 * sum(np.asarray(value).size for value in outputs)
    batches = CHUNK_BYTES // max(1, batch_bytes)
    return int(min(feeds.chunk_samples, max(1, batches) * feeds.batch))


class _Output:
    """A float32 .npy file of a known shape whose rows come in any order."""

    def __init__(self, path: str, shape: tuple[int, ...]) -> None:
        import numpy as np

        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)  # type: ignore[no-untyped-call]
        self.path, self.offset, self.row_bytes = path, mapped.offset, mapped.strides[0]

    def write(self, row: int, values: Any) -> None:
        """Rows from `row` on. Written, not mapped: a full disk is an OSError then, and no pages stay in memory."""
        import numpy as np

        with open(self.path, "r+b") as f:
            f.seek(self.offset + row * self.row_bytes)
            f.write(np.ascontiguousarray(values, np.float32).tobytes())


def _infer(model: Any, feeds: _Feeds, start: int, stop: int) -> list[Any]:
    """The raw outputs of the samples start to stop, one array an output, shape (stop - start, ...)."""
    import numpy as np

    chunks, batch, found = feeds.chunk(start, stop), feeds.batch, []
    feed, invoke = model.feed, model.invoke
    for at in range(0, len(chunks[0]), batch):
        feed([c[at : at + batch] for c in chunks])
        found.append(invoke())
    return [np.concatenate([row[k] for row in found])[: stop - start] for k in range(len(model.outputs))]


def _real(values: Any, spec: dict[str, Any]) -> Any:
    import numpy as np

    if not spec["scale"] or values.dtype.kind == "f":
        return values
    return (values.astype(np.float32) - np.float32(spec["zero_point"][0])) * np.float32(spec["scale"][0])


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peak_rss_bytes() -> int:
    status = "/proc/self/status"
    if os.path.exists(status):  # getrusage would tell the peak of the process that started this one, if that was higher
        with open(status) as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- the wire -----------------------------------------------------------------------------------------------------

VERBS = {"info": info, "describe": describe, "run": run, "count": count, "digest": digest}


def answer(folder: str) -> None:
    """Do what `request.json` in the folder asks, and write `reply.json` beside it."""
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as f:
        request = json.load(f)
    os.chdir(request.get("cwd") or ".")  # where the user's relative paths and modules are
    os.environ["EDGEDL_PROGRESS"] = os.path.join(folder, "progress.jsonl")
    try:
        reply = {"result": _call(request) if "call" in request else VERBS[request["verb"]](request["kwargs"])}
    except Exception as e:
        kind = "InputError" if isinstance(e, RefusedError) else type(e).__name__
        reply = {"error": {"class": kind, "message": str(e), "traceback": traceback.format_exc()}}
        traceback.print_exc()
    part = os.path.join(folder, "reply.part")
    with open(part, "w", encoding="utf-8") as f:
        json.dump(reply, f)
    os.replace(part, os.path.join(folder, "reply.json"))


def _call(request: dict[str, Any]) -> Any:
    from edgedl.types import to_json

    module, _, function = request["call"].partition(":")
    return to_json(getattr(importlib.import_module(module), function)(**request["kwargs"]))


def _folders() -> Iterator[str]:
    parent = os.getppid()

    def leave_when_orphaned() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=leave_when_orphaned, daemon=True).start()
    for line in sys.stdin:
        yield line.rstrip("\n")


def _folders_until_lost() -> Iterator[str]:
    """On a device: whatever runs here when the input closes is ended."""
    asked = queue.Queue()  # type: queue.Queue[str]

    def read() -> None:
        for line in sys.stdin:
            asked.put(line.rstrip("\n"))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield asked.get()


def serve(on_device: bool = False) -> None:
    """Answer folders from standard input until it closes or the parent is gone."""
    replies = os.fdopen(os.dup(1), "w")
    if on_device:
        sha256 = _sha256(os.path.abspath(__file__))
        hello = {"pid": os.getpid(), "sha256": sha256, "machine": platform.machine(), "emulator": _emulator()}
        replies.write(json.dumps(hello) + "\n")
        replies.flush()
        _listener.append(replies)
    for folder in _folders_until_lost() if on_device else _folders():
        log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        answer(folder)
        sys.stdout.flush()
        sys.stderr.flush()
        replies.write("done\n")
        replies.flush()
    os._exit(0)  # taking a framework apart takes seconds, and there is nothing left to save


def tied(command: list[str]) -> list[str]:
    """The command that runs another, which does not outlive the thread that starts it. Needs Linux."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), "--tied"] + command


def _become(command: list[str]) -> None:
    import ctypes
    import signal

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which exec keeps
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as e:
        sys.exit("{}: {}".format(command[0], e.strerror))


if __name__ == "__main__":
    if sys.argv[1] == "--tied":
        _become(sys.argv[2:])
    elif sys.argv[1] in ("--serve", "--device"):
        serve(on_device=sys.argv[1] == "--device")
    else:
        answer(sys.argv[1])

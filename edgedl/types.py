"""The nouns: frozen dataclasses, closed sets, and the protocols that plugins implement."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from edgedl.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Scheme(StrEnum):
    """How numbers are stored: `static_wi8_ai8` is int8 weights, int8 activations, calibrated."""

    FP32 = "fp32"
    FP16 = "fp16"
    DYNAMIC_WI8_AFP32 = "dynamic_wi8_afp32"
    WEIGHT_ONLY_WI8_AFP32 = "weight_only_wi8_afp32"
    STATIC_WI8_AI8 = "static_wi8_ai8"
    STATIC_WI8_AI16 = "static_wi8_ai16"
    WEIGHT_ONLY_WI4_AFP32 = "weight_only_wi4_afp32"

    @property
    def is_static(self) -> bool:
        """Whether activations are quantized ahead, which takes calibration data."""
        return self.value.startswith("static_")

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme named by `text`, aliases included. Raises InputError."""
        try:
            return cls(SCHEME_ALIASES.get(text, text))
        except ValueError:
            allowed = ", ".join([*cls, *SCHEME_ALIASES])
            message = f"no such scheme: {text!r}; allowed: {allowed}"
            raise InputError(message) from None


SCHEME_ALIASES = {
    "dynamic": "dynamic_wi8_afp32",
    "int8": "static_wi8_ai8",
    "int16x8": "static_wi8_ai16",
    "int4": "weight_only_wi4_afp32",
}


class Method(StrEnum):
    """Where a figure comes from; no figure travels without it."""

    MEASURED_DEVICE = "measured-device"
    MEASURED_HOST = "measured-host"
    EMULATED = "emulated"
    VENDOR_ESTIMATE = "vendor-estimate"
    PREDICTED = "predicted"
    STATIC = "static"


class Verdict(StrEnum):
    """What a check concludes, worst first; `info` never counts."""

    FAIL = "fail"
    UNCHECKED = "unchecked"
    INCONCLUSIVE = "inconclusive"
    PASS = "pass"
    INFO = "info"

    @classmethod
    def worst(cls, verdicts: list[Verdict]) -> Verdict:
        """The worst of those that count; `pass` where none does."""
        order = list(cls)
        counted = [v for v in verdicts if v is not cls.INFO]
        return min(counted, key=order.index, default=cls.PASS)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output: `shape` has None where a size is free, `scale` one value or one per slice of `axis`."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where an artifact comes from: enough to make it again."""

    model_sha256: str = ""
    ancestors: tuple[str, ...] = ()  # the models that this one was compressed from, by SHA-256, nearest first
    data_sha256: str | None = None
    calibration_ids: tuple[int, ...] = ()
    calibration_hashes: tuple[str, ...] = ()  # of the samples, so that overlap is seen across files
    recipe: str | None = None
    scheme: str = ""
    preprocessing: tuple[dict[str, Any], ...] = ()  # what is left to the app
    embedded: tuple[dict[str, Any], ...] = ()  # what the model now does itself
    labels: tuple[str, ...] = ()
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that a device can run. `compressed_bytes` is its size under zlib level 9: what a store sends."""

    path: Path
    format: str
    scheme: str
    sha256: str
    size_bytes: int
    compressed_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lineage: Lineage
    notes: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)  # of tensors that the file holds without one


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure with its method and, where the user set a limit, its verdict."""

    name: str
    target: str | None = None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    unit: str = ""
    method: Method
    verdict: Verdict = Verdict.INFO
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The evidence for one artifact: its checks, and what pictures are drawn from (`details`, JSON-able)."""

    artifact: str
    reference: str
    data: str
    targets: tuple[str, ...]
    checks: tuple[Check, ...]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst of the checks."""
        return Verdict.worst([c.verdict for c in self.checks])


@dataclass(frozen=True, kw_only=True)
class TargetRuntime:
    """A runtime on a target: `resolver` is builtin, xnnpack, gpu or npu, `fallback` what takes the ops it leaves.

    `tolerance` is the parity it promises (`int8_lsb`, `float`), `io_dtypes` what inputs and outputs may be, if limited,
    `delegates` what it can hand operators to beside the CPU.
    """

    name: str
    format: str | None = None
    minimum: str | None = None
    resolver: str | None = None
    fallback: tuple[str, ...] = ()
    tolerance: dict[str, float] = field(default_factory=dict)
    io_dtypes: tuple[str, ...] = ()
    delegates: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device profile: facts with their source, never budgets."""

    id: str
    name: str
    source: str
    formats: tuple[str, ...]
    io: str = "float"
    runtimes: tuple[TargetRuntime, ...] = ()
    cpu: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    accelerator: dict[str, Any] = field(default_factory=dict)
    runner: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an exporter may be asked for. `io` float|int8|uint8|int16; `shapes` by input name, batch included."""

    io: str = "float"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    embed_preprocessing: tuple[dict[str, Any], ...] = ()  # cast, scale, normalize ops to fold into the model
    preprocessing: tuple[dict[str, Any], ...] = ()  # the whole list, for the artifact's metadata
    labels: tuple[str, ...] = ()
    opset: int | None = None
    layout: str | None = None
    accelerator: dict[str, Any] = field(default_factory=dict)  # of the target's profile
    slim: bool = True  # leave out what no runtime reads; outputs stay the same
    trust: bool = False
    custom_objects: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The written file, and what the user should hear about it.

    `names` are those that the file no longer holds, by what the runtime's `describe` calls the tensor instead.
    """

    path: Path
    notes: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OpInfo:
    """One operator: its place in the graph, the field's name for it, its version, the names of its tensors.

    What a latency prediction needs: `dtype` of the output, shapes of the first input, of the weights (out, height,
    width, in) and of the first output, () where there is none, a free size counting as 1; `stride` (height, width).
    """

    index: int
    name: str
    version: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    dtype: str = ""
    in_shape: tuple[int, ...] = ()
    weight_shape: tuple[int, ...] = ()
    out_shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """What is in a file: its inputs and outputs, operators, metadata and the dtypes of its weights in bytes."""

    format: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: tuple[OpInfo, ...] = ()
    weight_bytes: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


class Exporter(Protocol):
    """Writes one format. `source` names the (format, scheme) it is made from, `scheme` "" being the same one."""

    format: str
    suffixes: tuple[str, ...]
    schemes: tuple[str, ...]
    source: tuple[str, str] | None

    def export(
        self,
        model: Path,
        out: Path,
        *,
        scheme: str,
        source: Path | None,
        calibration: Path | None,
        options: ExportOptions,
    ) -> ExportResult:
        """Write `out`. `calibration` is a folder with one .npy an input. Raises UnsupportedError by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class AgentRuntime:
    """A runtime: the module it imports, what to install, and whether it needs a process alone.

    `model` is the class that `agent.py` loads for what it cannot run itself; `figures` tells what is known without a
    run, such as the arena. Both are "module:name" of the plugin.
    """

    name: str
    format: str
    module: str
    install: str
    alone: bool = False
    python_variable: str | None = None  # names the environment variable that points at an interpreter that has it
    describe: str | None = None  # from a path (str) to an ArtifactInfo
    model: str | None = None  # see `Model`
    inner: str | None = None  # from path, inputs, out, straight to an .npy of each operator's output, by its index
    figures: str | None = None  # from path, target, inputs, straight to Checks without limits
    figures_for: tuple[str, ...] = ()  # only where the target's runtime has one of these delegates; () always
    runs: bool = True  # False for a compiler, which gives figures and no outputs
    parallel: bool = True  # False where the interpreters of one process run one after the other


class Model(Protocol):
    """A file loaded by a runtime, made from a request and the shapes of the samples by input.

    `inputs` and `outputs` are dicts with name, dtype, shape, scale, zero_point. What is wrong with the file raises.
    One that runs elsewhere, such as in a browser, may say in `took_ns` what the last inference took there, in `load_ms`
    what loading did, and in `peak_rss_bytes` its memory, None where that is not known.
    """

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def __init__(self, request: dict[str, Any], data_shapes: dict[str, tuple[int, ...]]) -> None: ...

    def feed(self, values: list[Array]) -> None: ...

    def invoke(self) -> list[Array]: ...


class Device(Protocol):
    """A place where the agent runs. `name` is what a report calls it, `method` what its outputs are."""

    name: str
    method: Method

    def push(self, path: Path, sha256: str) -> str:
        """Bring a file there, once; its path there. Raises InputError (disk full), WorkerError (lost, damaged)."""
        ...

    def call(self, verb: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """What the agent there answers; files in are named as `push` did, `outputs` by the path they get here.

        `timeout_s` counts from the last sign of progress. Raises WorkerError (died, hung, lost), InputError.
        """
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


@dataclass(frozen=True, kw_only=True)
class Count:
    """Instructions of one inference on an emulated core, and under what they may be compared.

    `classes` says how many of each kind, {} where the instruction set is not told apart; `inference` which one after
    loading was counted.
    """

    instructions: int
    classes: dict[str, int]
    core: str
    emulator: str
    runtime: str
    resolver: str | None
    threads: int
    inference: int


@runtime_checkable
class CountingDevice(Protocol):
    """A device that counts instructions."""

    def count(self, request: Mapping[str, Any], timeout_s: float) -> Count:
        """Those of one inference on the first sample of a `run` request. Raises InputError where it cannot count."""
        ...


@dataclass(frozen=True, kw_only=True)
class Times:
    """What a file took on a real device: `latency_ms` is the `kind` of average over `inferences`."""

    latency_ms: float
    load_ms: float
    first_inference_ms: float
    inferences: int
    latency_p90_ms: float | None = None
    peak_rss_bytes: int | None = None
    kind: str = "median"


@runtime_checkable
class TimingDevice(Protocol):
    """A real device that times files without an agent."""

    def time(self, request: Mapping[str, Any], repeats: int, timeout_s: float) -> Times:
        """Times of the file of a `run` request. Raises InputError where it cannot, WorkerError where it is lost."""
        ...


Gives = Literal["outputs", "instructions", "times"]


class DevicePlugin(Protocol):
    """Opens devices of one kind. `options` is a frozen dataclass, the keys of a profile's [runner] beside `device`.

    Where it has a field `architecture`, that is the profile's [cpu] architecture unless [runner] says another.
    """

    options: type

    def gives(self, options: Any) -> Gives:
        """Outputs, with times or instructions beside them, or one of these alone."""
        ...

    def missing(self, options: Any) -> str:
        """What must be done before one can be opened, with the command; "" where nothing must."""
        ...

    def board(self, options: Any) -> str | None:
        """What is open once at a time, such as a board's address; None where there may be many, as of an emulator."""
        ...

    def open(self, options: Any) -> Device:
        """Reach the device. Raises InputError for wrong options, WorkerError where it does not answer."""
        ...


class Metric(Protocol):
    """A score on one output. `per_sample` gives shape (samples,); a corpus metric gives shape ()."""

    name: str
    higher_is_better: bool
    per_sample: bool

    def score(self, outputs: Array, targets: Array) -> Array: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What the package of every platform holds: the files below `folder`, and what manifest.json will say of them.

    The manifest is not among the files yet: it gets `package`, the hashes of the platform's own files, at the end.
    """

    folder: Path
    manifest: Mapping[str, Any]
    public_key: bytes | None = None  # Ed25519, 32 bytes, of the key that signs the package


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The name of a package's file, whose suffix says the archive, and the folder in it that takes the content."""

    file: str  # .zip, .aar, .whl (zip archives, nothing compressed) or .tgz
    content: str = ""  # such as "assets/keyword"; the top where it is empty
    notes: tuple[str, ...] = ()


class Packager(Protocol):
    """Lays out one platform's package. `formats` are those of the artifacts it takes, () any."""

    platform: str
    formats: tuple[str, ...]

    def lay_out(self, content: Content, tree: Path) -> Layout:
        """Write the platform's own files below the empty folder `tree`, the same bytes from the same content.

        Who calls puts content, manifest and signature in, and packs `tree`. Raises InputError, UnsupportedError.
        """
        ...


def to_json(value: Any) -> Any:
    """Dataclasses, paths, enums, tuples and numpy scalars as what `json` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    return value

"""The static contract: what can be said of an artifact on a target before anything runs.

Format, size against flash, types of inputs and outputs, free sizes, what computes on floats, operators that no runtime
there has, and the versions of operators against the release that a profile or the user's app pins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgedl.contract.op_versions import check_versions
from edgedl.types import Artifact, ArtifactInfo, Check, Method, Target, TargetRuntime, Verdict

# The custom ops that a runtime brings along; any other is code that the app must register itself.
# https://github.com/tensorflow/tensorflow/blob/v2.14.0/tensorflow/lite/core/kernels/register.cc
# https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/micro_mutable_op_resolver.h
_LITE_OPS = frozenset({"NumericVerify", "Mfcc", "AudioSpectrogram", "TFLite_Detection_PostProcess"})
_CUSTOM_OPS = {
    "litert": _LITE_OPS,
    "tflite-runtime": _LITE_OPS,
    "tflm": frozenset({"TFLite_Detection_PostProcess", "CIRCULAR_BUFFER"}),
    "vela": frozenset({"ethos-u"}),
}

# Runtimes that run fixed sizes alone: no one resizes a tensor there.
_FIXED_SIZES = ("tflm", "litert-js", "vela")


def static_checks(
    target: Target, artifact: Artifact, info: ArtifactInfo, pins: Mapping[str, str] | None = None
) -> list[Check]:
    """The checks of an artifact on a target. `pins` are releases by runtime, in place of those of the profile.

    Raises InputError for a pin of a runtime that is not known.
    """
    checks = [_format(target, artifact)]
    if flash := target.memory.get("flash_bytes"):
        checks.append(_size(target, artifact, flash))
    if checks[0].verdict is Verdict.PASS:
        runtimes = [r for r in target.runtimes if r.format in (None, artifact.format)]
        checks += [_io(target, info, runtimes), _sizes(target, info, runtimes)]
        if artifact.format == "tflite":
            checks += [_float_ops(target, info), _unsupported_ops(target, info, runtimes)]
        minimums = {r.name: r.minimum for r in runtimes if r.resolver != "npu"}
        checks.append(check_versions(info, pins or {}, minimums=minimums, target=target.id))
    return checks


def _format(target: Target, artifact: Artifact) -> Check:
    accepted = artifact.format in target.formats
    why = "" if accepted else f"{target.name} takes {', '.join(target.formats)}, this is {artifact.format}"
    verdict = Verdict.PASS if accepted else Verdict.FAIL
    return Check(name="format", target=target.id, method=Method.STATIC, verdict=verdict, why=why)


def _size(target: Target, artifact: Artifact, flash: int) -> Check:
    """The file against the whole flash; whether the rest of it is enough for the program, a linker says."""
    fits = artifact.size_bytes <= flash
    share = f"{artifact.size_bytes / flash:.1%} of the {flash:,} bytes of flash, which hold the program too"
    return Check(
        name="size_bytes",
        target=target.id,
        measured=artifact.size_bytes,
        limit=flash,
        unit="B",
        method=Method.STATIC,
        verdict=Verdict.INFO if fits else Verdict.FAIL,
        why=share if fits else f"the file alone is {share}",
    )


def _io(target: Target, info: ArtifactInfo, runtimes: list[TargetRuntime]) -> Check:
    used = list(dict.fromkeys(spec.dtype for spec in (*info.inputs, *info.outputs)))
    refused = [r for r in runtimes if r.io_dtypes and not set(used) <= set(r.io_dtypes)]
    if refused and len(refused) == len(runtimes):
        verdict = Verdict.FAIL
        taken = "; ".join(f"{r.name} takes {', '.join(r.io_dtypes)}" for r in refused)
        why = f"inputs and outputs are {', '.join(used)}; {taken}. Export with --io {target.io}"
    else:
        verdict = Verdict.INFO
        usual = "float32" if target.io == "float" else target.io
        differ = f"; {usual} is usual there: export with --io {target.io}" if usual not in used else ""
        why = f"inputs and outputs are {', '.join(used)}{differ}"
    return Check(name="io", target=target.id, method=Method.STATIC, verdict=verdict, why=why)


def _unsupported_ops(target: Target, info: ArtifactInfo, runtimes: list[TargetRuntime]) -> Check:
    """TensorFlow ops (Flex) and custom ops that no runtime there has; a TFLite custom op goes by its own name."""
    known = frozenset().union(*(_CUSTOM_OPS.get(r.name, ()) for r in runtimes))
    custom_ops = {op.name.removeprefix("CUSTOM:") for op in info.ops if not re.fullmatch(r"[A-Z0-9_]+", op.name)}
    outside = sorted(custom_ops - known)
    flex = ", ".join(name for name in outside if name.startswith("Flex"))
    custom = ", ".join(name for name in outside if not name.startswith("Flex"))
    reasons = [
        f"{flex} need TensorFlow's Flex delegate (SELECT_TF_OPS)" if flex else "",
        f"{custom} are custom ops that the app must register" if custom else "",
    ]
    names = ", ".join(r.name for r in runtimes) or "no runtime"
    why = f"{'; '.join(filter(None, reasons))}; {target.name} runs {names}" if outside else ""
    return Check(
        name="unsupported_ops",
        target=target.id,
        measured=len(outside),
        limit=0,
        method=Method.STATIC,
        verdict=Verdict.FAIL if outside else Verdict.PASS,
        why=why,
    )


def _sizes(target: Target, info: ArtifactInfo, runtimes: list[TargetRuntime]) -> Check:
    """Inputs whose sizes are free: a batch is taken as 1 where no one resizes, any other size cannot be."""
    free = [spec.name for spec in info.inputs if None in spec.shape]
    inner = [spec.name for spec in info.inputs if None in spec.shape[1:]]
    fixed = [r.name for r in runtimes if r.name in _FIXED_SIZES]
    refused = bool(inner and fixed)
    if refused:
        names = ", ".join(inner)
        why = f"{names}: sizes are free; {', '.join(fixed)} takes fixed ones. Export with --shape {inner[0]}=1,..."
    elif free:
        why = f"{', '.join(free)}: {'sizes are' if inner else 'the batch is'} free"
    else:
        why = "every size is fixed"
    return Check(
        name="free_sizes",
        target=target.id,
        measured=len(free),
        unit="count",
        method=Method.STATIC,
        verdict=Verdict.FAIL if refused else Verdict.INFO,
        why=why,
    )


def _float_ops(target: Target, info: ArtifactInfo) -> Check:
    """Operators that compute on float32: slow where there is no float unit, and never on an integer NPU."""
    found: Mapping[str, int] = info.metadata.get("float_ops", {})
    named = ", ".join(f"{name} ({count})" for name, count in sorted(found.items(), key=lambda e: -e[1]))
    wanted = target.io != "float" and named
    why = f"on float32: {named}" if named else "no operator computes on float32"
    advice = f"; int8 is usual there: export with --scheme int8 --io {target.io}" if wanted else ""
    return Check(
        name="float_ops",
        target=target.id,
        measured=sum(found.values()),
        unit="count",
        method=Method.STATIC,
        why=why + advice,
    )

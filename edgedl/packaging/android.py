"""The platform `android`: an AAR with the model where it can be mapped, and a Kotlin class that runs it with LiteRT."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl import targets, worker
from edgedl.errors import InputError
from edgedl.packaging import classfile, jvm, wrapping
from edgedl.packaging.archives import stored_zip
from edgedl.packaging.wrapping import Limits, Tensor, Wrapper
from edgedl.types import Content, Layout

PROFILE = "generic-android-arm64"
RUNTIME = "litert"
# what TensorBuffer, LiteRT's Kotlin class, reads and writes
LIMITS = Limits(runtime="LiteRT on Android", dtypes=("float32", "int8", "uint8", "int32"))
TAKEN = {"float32": "FloatArray", "int8": "IntArray", "uint8": "ByteArray", "int32": "IntArray"}
ACCELERATORS = {"gpu": "GPU", "npu": "NPU"}
ALWAYS = ("Runner", "Sample", "Scored", "SelfTest", "Tensor")
FOR_UPDATES = ("Ed25519", "RejectedPackageException", "Store")
# no name of a package, parameter or property: Kotlin's hard keywords, and Java's, which class files go by
RESERVED = wrapping.words("""
    _ abstract as assert boolean break byte case catch char class const continue default do double else enum extends
    false final finally float for fun goto if implements import in instanceof int interface is long native new null
    object package private protected public return short static strictfp super switch synchronized this throw throws
    transient true try typealias typeof val var void volatile when while
""")


class AndroidPackager:
    """`NAME-VERSION.aar`."""

    platform = "android"
    formats: tuple[str, ...] = ("tflite",)

    def lay_out(self, content: Content, tree: Path) -> Layout:
        """The manifest, classes.jar and a README with the lines for Gradle. Raises PluginError without compilers."""
        told = content.manifest
        wrapped = wrapping.wrapper(told, LIMITS)
        for side, tensors in (("input", wrapped.inputs), ("output", wrapped.outputs)):
            wrapping.check_names(tensors, side, "Kotlin", RESERVED)
        file = f"{wrapped.name}-{wrapped.version}.aar"
        values = _values(wrapped, told, content.public_key, file)
        for name in ("AndroidManifest.xml", "README.md"):
            (tree / name).write_text(wrapping.render("android", name, values), encoding="utf-8")
        classes = worker.pool().scratch("classes")
        jvm.compile_(_sources(wrapped, values), wrapping.FOLDER / "android" / "stubs", classes, wrapped.name)
        classfile.strip(classes)
        stored_zip.write(classes, tree / "classes.jar", align=False)
        return Layout(
            file=file,
            content=f"assets/{values['ASSETS']}".rstrip("/"),
            notes=(*wrapping.notes(told, LIMITS), *_notes(values)),
        )


def package_name(name: str) -> str:
    """The Kotlin package of a model. Raises InputError where its name is a word of the language."""
    last = re.sub(r"[.-]+", "_", name).lower()
    if last in RESERVED:
        message = f"--name: {name!r} is a word of Kotlin or Java, which no package may have; name another with --name"
        raise InputError(message)
    return f"edgedl.{last}"


def _sources(wrapped: Wrapper, values: Mapping[str, str]) -> dict[str, str]:
    """Java and Kotlin files by path: what is always there, for the steps, and for updates of a signed model."""
    names = [f"{name}.java" for name in ALWAYS] + ["Model.kt"]
    if wrapped.steps:
        names.append("Steps.java")
    if wrapped.steps or values["WRITE"].startswith("Codes"):
        names.append("Codes.java")
    if wrapped.steps or any(TAKEN[t.dtype] != "FloatArray" for t in wrapped.inputs):
        names.append("Samples.java")
    if values["KEY"]:
        names += [f"{n}.java" for n in FOR_UPDATES] + ["ModelStore.kt"]
    folder = values["PACKAGE"].replace(".", "/")
    return {f"{folder}/{name}": wrapping.render("android", name, values) for name in dict.fromkeys(names)}


def _conversions(told: Mapping[str, Any]) -> dict[str, str]:
    """How tensors are written and read: models of float32 tensors alone carry no code for integers."""
    if all(spec["dtype"] == "float32" for side in ("inputs", "outputs") for spec in told[side]):
        return {"WRITE": "buffer.writeFloat(values)", "READ": "buffer.readFloat()", "CODES": "sample.values"}
    return {
        "WRITE": "Codes.write(this, buffer, values)",
        "READ": "Codes.read(this, buffer)",
        "CODES": "Codes.of(sample.values, tensor)",
    }


def _values(wrapped: Wrapper, told: Mapping[str, Any], key: bytes | None, file: str) -> dict[str, str]:
    """The words of the templates."""
    return _conversions(told) | {
        "NAME": wrapped.name,
        "FILE": file,
        "PACKAGE": package_name(wrapped.name),
        "MODEL": wrapped.model,
        "ASSETS": f"edgedl/{wrapped.name}/",
        "ACCELERATOR": _accelerator(told),
        "LITERT": _minimum(told),
        "KEY": base64.b64encode(key).decode() if key else "",
        "PREPROCESS": 'Steps.apply(manifest.getJSONArray("preprocessing"), samples[i])'
        if wrapped.steps
        else "samples[i]",
        "PREDICT": _predict(wrapped),
        "OUTPUTS": _outputs(wrapped) if len(wrapped.outputs) > 1 else "",
        "GIVEN": ", ".join(t.name if len(wrapped.inputs) > 1 else "input" for t in wrapped.inputs),
    }


def _minimum(told: Mapping[str, Any]) -> str:
    """The LiteRT that the targets of the package name, else the one of a usual phone; or the newer that it needs."""
    named = [r["minimum"] for target in told["targets"] for r in target["runtimes"] if r["name"] == RUNTIME]
    usual = [r.minimum for r in targets.load(PROFILE).runtimes if r.name == RUNTIME]
    return wrapping.runtime_release(told, RUNTIME, *(named if any(named) else usual))


def _accelerator(told: Mapping[str, Any]) -> str:
    """What the first target that has one is accelerated by, else the CPU."""
    kinds = [target["accelerator"].get("kind") for target in told["targets"]]
    return next((ACCELERATORS[kind] for kind in kinds if kind in ACCELERATORS), "CPU")


def _predict(wrapped: Wrapper) -> str:
    """`predict` for samples, and for plain arrays where the app need not say their shape."""
    single = len(wrapped.inputs) == 1
    names = ["input"] if single else [tensor.name for tensor in wrapped.inputs]
    doc = f"    /** {wrapping.described(wrapped)} */"
    found = []
    if wrapped.steps:
        given = ", ".join(f"{name}: Sample" for name in names)
        found.append(f"{doc}\n    fun predict({given}): {_result(wrapped, ', '.join(names))}")
    if not wrapped.takes_images:
        pairs = list(zip(names, wrapped.inputs, strict=True))
        given = ", ".join(f"{name}: {'FloatArray' if wrapped.steps else TAKEN[t.dtype]}" for name, t in pairs)
        samples = ", ".join(_sample(i, name, t, wrapped) for i, (name, t) in enumerate(pairs))
        found.append(f"{doc}\n    fun predict({given}): {_result(wrapped, samples)}")
    return "\n\n".join(found)


def _sample(index: int, name: str, tensor: Tensor, wrapped: Wrapper) -> str:
    """The Kotlin expression of a sample from an array of its values."""
    shape = ", ".join(map(str, tensor.shape))
    if wrapped.steps:
        return f'Sample({name}, intArrayOf({shape}), "float32")'
    if tensor.dtype == "uint8":
        return f"Samples.of({', '.join(filter(None, [name, shape]))})"
    return (
        f"Samples.of(this.runner, {index}, {name})"
        if TAKEN[tensor.dtype] == "IntArray"
        else f"this.runner.sample({index}, {name})"
    )


def _result(wrapped: Wrapper, samples: str) -> str:
    """The type of a result and its expression."""
    if len(wrapped.outputs) == 1:
        return f"FloatArray = this.runner.predict({samples})[0]"
    values = ", ".join(f"it[{i}]" for i in range(len(wrapped.outputs)))
    return f"{wrapped.results} = this.runner.predict({samples}).let {{ {wrapped.results}({values}) }}"


def _outputs(wrapped: Wrapper) -> str:
    values = ", ".join(f"val {tensor.name}: FloatArray" for tensor in wrapped.outputs)
    return f"\n/** The outputs of [{wrapped.model}]. */\nclass {wrapped.results} internal constructor({values})\n"


def _notes(values: Mapping[str, str]) -> tuple[str, ...]:
    lines = [f"android: an app needs com.google.ai.edge.litert:litert:{values['LITERT']} beside {values['FILE']}"]
    if values["ACCELERATOR"] == "GPU":
        lines.append(f"android: for the GPU it also needs com.google.ai.edge.litert:litert-gpu:{values['LITERT']}")
    if not values["KEY"]:
        lines.append("android: without --sign there is no ModelStore in it: nothing to check a newer model against")
    return tuple(lines)

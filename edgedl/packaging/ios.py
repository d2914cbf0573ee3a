"""The platform `ios`, experimental: a Swift package that runs the model with ONNX Runtime. Nothing here compiles it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl.errors import InputError
from edgedl.packaging import wrapping
from edgedl.packaging.wrapping import Limits, Tensor, Wrapper
from edgedl.types import Content, Layout

# https://github.com/microsoft/onnxruntime-swift-package-manager, and the types of its ORTTensorElementDataType
RUNTIME_VERSION = "1.20.0"
LIMITS = Limits(runtime="ONNX Runtime on iOS", dtypes=("float32", "int8", "uint8", "int32"), free_batch=True)
SOURCES = ("Model.swift", "Runner.swift", "Steps.swift", "Tensor.swift")
# The Swift Programming Language, Lexical Structure: keywords of declarations, statements, expressions and types
RESERVED = wrapping.words("""
    Any Protocol Self Type _ actor as associatedtype async await break case catch class continue convenience default
    defer deinit didSet do dynamic else enum extension fallthrough false fileprivate final for func get guard if import
    in indirect infix init inout internal is lazy let mutating nil nonmutating open operator optional override package
    postfix precedencegroup prefix private protocol public repeat required rethrows return self set some static struct
    subscript super switch throw throws true try typealias unowned var weak where while willSet
""")
# modules that the wrapper itself imports, or that every app has
MODULES = frozenset({"Swift", "Foundation", "CoreGraphics", "CoreML", "UIKit", "SwiftUI", "OnnxRuntimeBindings"})


class IosPackager:
    """`NAME-VERSION-ios.zip`, with the folder of a Swift package in it."""

    platform = "ios"
    formats: tuple[str, ...] = ("onnx",)

    def lay_out(self, content: Content, tree: Path) -> Layout:
        """Package.swift, the sources, and a README that says that nothing was compiled."""
        wrapped = wrapping.wrapper(content.manifest, LIMITS)
        for side, tensors in (("input", wrapped.inputs), ("output", wrapped.outputs)):
            wrapping.check_names(tensors, side, "Swift", RESERVED)
        values = _values(wrapped, content.manifest)
        module = values["MODULE"]
        sources = tree / module / "Sources" / module
        sources.mkdir(parents=True)
        for file in SOURCES:
            (sources / file).write_text(wrapping.render("ios", file, values), encoding="utf-8")
        for file in ("Package.swift", "README.md"):
            (tree / module / file).write_text(wrapping.render("ios", file, values), encoding="utf-8")
        note = "ios: experimental: no Swift compiler has seen this package; run its selfTest() on a device first"
        file = f"{wrapped.name}-{wrapped.version}-ios.zip"
        return Layout(file=file, content=f"{module}/Sources/{module}/Content", notes=(note,))


def module_name(name: str) -> str:
    """The Swift module of a model. Raises InputError where Swift or Apple has one of that name."""
    found = wrapping.camel_case(name)
    if found in RESERVED | MODULES:
        message = f"--name: {name!r} makes {found}, which Swift has already; name another with --name"
        raise InputError(message)
    return found


def _values(wrapped: Wrapper, told: Mapping[str, Any]) -> dict[str, str]:
    """The words of the templates."""
    kinds = {target["accelerator"].get("kind") for target in told["targets"]}
    return {
        "NAME": wrapped.name,
        "MODULE": module_name(wrapped.name),
        "MODEL": wrapped.model,
        "RUNTIME": wrapping.runtime_release(told, "onnxruntime", RUNTIME_VERSION),
        "ACCELERATOR": "coreML" if kinds & {"gpu", "npu"} else "cpu",
        "PREDICT": _predict(wrapped),
        "OUTPUTS": _outputs(wrapped) if len(wrapped.outputs) > 1 else "",
        "GIVEN": "Sample(image: image)" if wrapped.takes_images else ", ".join(_given(wrapped)),
        "INPUTS": "; ".join(f"`{t.name}`, {wrapping.shown_shape(t)} values" for t in wrapped.inputs),
        "OUTPUT": "; ".join(f"`{t.name}`, {wrapping.shown_shape(t)} values" for t in wrapped.outputs),
        "STEPS": wrapping.shown_steps(wrapped),
    }


def _given(wrapped: Wrapper) -> list[str]:
    return ["values"] if len(wrapped.inputs) == 1 else [f"{t.name}: {t.name}" for t in wrapped.inputs]


def _predict(wrapped: Wrapper) -> str:
    """`predict` for samples, and for plain arrays where the app need not say their shape."""
    found = []
    if wrapped.steps:
        names = ["input"] if len(wrapped.inputs) == 1 else [t.name for t in wrapped.inputs]
        found.append(_function(wrapped, "Sample", names))
    if not wrapped.takes_images:
        found.append(_function(wrapped, "[Float]", [_sample(i, t, wrapped) for i, t in enumerate(wrapped.inputs)]))
    return "\n\n".join(found)


def _function(wrapped: Wrapper, type_: str, samples: list[str]) -> str:
    single = len(wrapped.inputs) == 1
    given = f"_ input: {type_}" if single else ", ".join(f"{t.name}: {type_}" for t in wrapped.inputs)
    names = [_literal(t.name) for t in wrapped.outputs]
    if len(names) == 1:
        result, value = "[Float]", f"_found[{names[0]}] ?? []"
    else:
        parts = [f"{t.name}: _found[{name}] ?? []" for t, name in zip(wrapped.outputs, names, strict=True)]
        result, value = wrapped.results, f"{wrapped.results}({', '.join(parts)})"
    return f"""    /// {wrapping.described(wrapped)}
    public func predict({given}) throws -> {result} {{
        let _found = try self.runner.predict([{", ".join(samples)}])
        return {value}
    }}"""


def _literal(text: str) -> str:
    """A Swift string. # größe -> "größe", a"b -> "a\\u{22}b\""""
    plain = (c if c.isprintable() and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in text)
    return f'"{"".join(plain)}"'


def _sample(index: int, tensor: Tensor, wrapped: Wrapper) -> str:
    name = "input" if len(wrapped.inputs) == 1 else tensor.name
    if wrapped.steps:
        return f"try Sample(values: {name}, shape: {list(tensor.shape)})"
    return f"try self.runner.sample({index}, {name})"


def _outputs(wrapped: Wrapper) -> str:
    values = "\n".join(f"    public let {tensor.name}: [Float]" for tensor in wrapped.outputs)
    return f"\n/// The outputs of {wrapped.model}.\npublic struct {wrapped.results} {{\n{values}\n}}\n"

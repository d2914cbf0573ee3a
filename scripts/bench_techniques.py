"""What `scripts/bench compress` compares: techniques in groups, ours and the peers' with the same training."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgedl.recipes import SHIPPED

TFMOT, CONVERTER = "compress_tfmot.py", "compress_converter.py"
LEARNING_RATE = 1e-4  # of every side: at the documentation's 1e-3 TFMOT's QAT loses 6.5 points on ResNet8
Step = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One line of the table. Without `script` it is edgedl's: `steps`, then an export."""

    group: str
    tool: str
    name: str
    steps: tuple[Step, ...] = ()
    scheme: str | None = "int8"
    script: str = ""
    modules: tuple[str, ...] = ()  # what the script imports; "a|b" is one of the two
    source: str = ""  # suffix of the float file that the script starts from, where that is not the model
    suffix: str = ".tflite"
    long: bool = False  # an hour and more: done where --only names it

    @property
    def key(self) -> str:
        """What it goes by."""
        return f"{self.tool}: {self.name}"


def techniques(epochs: int | None) -> list[Technique]:
    """All of them; `epochs`, where given, of every training."""

    def training(own: int, **more: Any) -> Step:
        return {"epochs": epochs or own, "learning_rate": LEARNING_RATE, "batch_size": 32, **more}

    return [
        *_post_training(),
        *_quantization_aware(training(1), _recipe("qat-int8", epochs)),
        *_smaller(training, epochs),
        *_recipes(epochs),
    ]


def _recipe(name: str, epochs: int | None) -> tuple[Step, ...]:
    """The steps of a shipped recipe; `epochs`, where given, of every training."""
    steps = tomllib.loads((SHIPPED / f"{name}.toml").read_text(encoding="utf-8"))["step"]
    for step in steps:
        if epochs and "training" in step:
            step["training"]["epochs"] = epochs
    return tuple(steps)


def _ours(group: str, name: str, *steps: Step, scheme: str | None = None) -> Technique:
    return Technique(group=group, tool="edgedl", name=name, steps=steps, scheme=scheme)


def _tfmot(group: str, name: str, *steps: Step) -> Technique:
    made = tuple({"kind": "tfmot", **s} for s in steps)
    modules = ("tensorflow_model_optimization",)
    return Technique(group=group, tool="TFMOT", name=name, steps=made, script=TFMOT, modules=modules)


def _post_training() -> Iterator[Technique]:
    yield _ours("float", "fp32", scheme="fp32")
    yield Technique(group="float", tool="TFLiteConverter", name="fp32", scheme="fp32", script=CONVERTER)
    yield _ours("ptq", "export --scheme int8", scheme="int8")
    yield _ours("ptq", "quantize", {"kind": "quantize"})
    corrected = {"rounding": "adaround", "equalize": True, "bias_correction": True}
    yield _ours("ptq", "quantize, adaround, equalized, corrected", {"kind": "quantize", **corrected})
    yield Technique(group="ptq", tool="TFLiteConverter", name="int8", script=CONVERTER, modules=("tensorflow",))
    yield Technique(
        group="ptq",
        tool="litert-quantizer",  # ai-edge-quantizer until 0.10
        name="static wi8_ai8",
        script="compress_quantizer.py",
        modules=("litert_quantizer|ai_edge_quantizer", "ai_edge_litert"),
        source=".tflite",
    )
    yield Technique(
        group="ptq",
        tool="onnxruntime",
        name="static QDQ",
        script="compress_onnxruntime.py",
        modules=("onnxruntime", "onnx"),
        source=".onnx",
        suffix=".onnx",
    )
    nncf = {"script": "compress_nncf.py", "modules": ("nncf", "onnx"), "source": ".onnx", "suffix": ".onnx"}
    yield Technique(group="ptq", tool="NNCF", name="PTQ", **nncf)  # type: ignore[arg-type]
    mct = ("model_compression_toolkit",)
    yield Technique(group="ptq", tool="MCT", name="PTQ", script="compress_mct.py", modules=mct, source=".h5")


def _quantization_aware(training: Step, recipe: tuple[Step, ...]) -> Iterator[Technique]:
    yield _ours("qat", "quantize, trained", {"kind": "quantize", "training": training})
    yield _tfmot("qat", "QAT", {"method": "qat", "training": training})
    yield _ours("qat-int8", "recipe qat-int8", *recipe)
    same = {key: recipe[-1]["training"][key] for key in ("epochs", "learning_rate")}
    yield _tfmot("qat-int8", "QAT, epochs and rate of qat-int8", {"method": "qat", "training": same})


def _smaller(training: Any, epochs: int | None) -> Iterator[Technique]:
    for share in (0.5, 0.75):
        group, step = f"prune {share:.0%}", {"sparsity": share, "training": training(2)}
        yield _ours(group, f"{group} + int8", {"kind": "prune", "method": "magnitude", **step}, scheme="int8")
        yield _tfmot(group, f"{group} + int8", {"method": "prune", **step})
    shared = {"clusters": 16, "training": training(1)}
    yield _ours("cluster 16", "cluster 16, float + int8", {"kind": "cluster", **shared}, scheme="int8")
    yield _ours("cluster 16", "cluster 16, codes", {"kind": "cluster", "domain": "int", **shared}, {"kind": "quantize"})
    yield _tfmot("cluster 16", "cluster 16 + int8", {"method": "cluster", **shared})
    half = {"sparsity": 0.5, "training": training(2)}
    yield _ours(
        "all",
        "prune 50%, cluster 16, codes",
        {"kind": "prune", "method": "magnitude", **half},
        {"kind": "cluster", "domain": "int", **shared},
        {"kind": "quantize"},
    )
    yield _tfmot(
        "all",
        "prune 50%, cluster 16, PCQAT",
        {"method": "prune", **half},
        {"method": "cluster", "preserve_sparsity": True, **shared},
        {"method": "pcqat", "training": training(1)},
    )
    taught = {**training(4), "learning_rate": 1e-3, "batch_size": 64, "schedule": "cosine", "distill": {"alpha": 1}}
    yield _ours("channels", "recipe channels-50 + int8", *_recipe("channels-50", epochs), scheme="int8")
    half_macs = {"goal": {"macs": 0.5}, "importance": "taylor", "iterations": 5, "multiple": 4, "training": taught}
    aware = {"kind": "quantize", "training": {**training(1), "distill": {"alpha": 1}}}
    yield _ours(
        "channels",
        "half of the MACs, quantize, trained",
        {"kind": "prune", "method": "dead"},
        {"kind": "prune", "method": "channels", **half_macs},
        aware,
    )


def _recipes(epochs: int | None) -> Iterator[Technique]:
    """Shipped recipes, with their own training; no peer has the like but in pieces."""
    yield _ours("int4", "export --scheme int4", scheme="int4")
    for group, recipe in (("int4", "int4"), ("download", "download-half"), ("download", "download-least")):
        yield _ours(group, f"recipe {recipe}", *_recipe(recipe, epochs))
    long = "channels-50-int8-long"
    yield replace(_ours("channels", f"recipe {long}", *_recipe(long, epochs)), long=True)

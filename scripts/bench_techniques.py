"""What `scripts/bench compress` compares: techniques in groups, ours and the peers' with the same training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TFMOT, CONVERTER = "compress_tfmot.py", "compress_converter.py"
LEARNING_RATE = 1e-4  # of every side: at the documentation's 1e-3 TFMOT's QAT loses 6.5 points on ResNet8
Step = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One line of the table. Without `script` it is edgedl's: `steps` or a shipped `recipe`, then an export."""

    group: str
    tool: str
    name: str
    steps: tuple[Step, ...] = ()
    recipe: str = ""
    scheme: str | None = "int8"
    script: str = ""
    modules: tuple[str, ...] = ()  # what the script imports
    suffix: str = ".tflite"
    keras_2: bool = False  # the script reads a Keras 2 file
    long: bool = False  # an hour and more: done where --only names it

    @property
    def key(self) -> str:
        """What it goes by."""
        return f"{self.tool}: {self.name}"


def techniques(epochs: int | None) -> list[Technique]:
    """All of them; `epochs`, where given, of every training."""

    def training(own: int, **more: Any) -> Step:
        return {"epochs": epochs or own, "learning_rate": LEARNING_RATE, "batch_size": 32, **more}

    return [*_post_training(), *_quantization_aware(training(1)), *_smaller(training), *_recipes()]


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
    quantizer = {"script": "compress_quantizer.py", "modules": ("ai_edge_quantizer", "ai_edge_litert")}
    yield Technique(group="ptq", tool="ai-edge-quantizer", name="static wi8_ai8", **quantizer)  # type: ignore[arg-type]
    yield Technique(
        group="ptq",
        tool="onnxruntime",
        name="static QDQ",
        script="compress_onnxruntime.py",
        modules=("onnxruntime", "onnx"),
        suffix=".onnx",
    )
    nncf = {"script": "compress_nncf.py", "modules": ("nncf", "onnx"), "suffix": ".onnx"}
    yield Technique(group="ptq", tool="NNCF", name="PTQ", **nncf)  # type: ignore[arg-type]
    mct = ("model_compression_toolkit",)
    yield Technique(group="ptq", tool="MCT", name="PTQ", script="compress_mct.py", modules=mct, keras_2=True)


def _quantization_aware(training: Step) -> Iterator[Technique]:
    yield _ours("qat", "quantize, trained", {"kind": "quantize", "training": training})
    yield _tfmot("qat", "QAT", {"method": "qat", "training": training})


def _smaller(training: Any) -> Iterator[Technique]:
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
    yield Technique(group="channels", tool="edgedl", name="recipe channels-50 + int8", recipe="channels-50")
    half_macs = {"goal": {"macs": 0.5}, "importance": "taylor", "iterations": 5, "multiple": 4, "training": taught}
    aware = {"kind": "quantize", "training": {**training(1), "distill": {"alpha": 1}}}
    yield _ours(
        "channels",
        "half of the MACs, quantize, trained",
        {"kind": "prune", "method": "dead"},
        {"kind": "prune", "method": "channels", **half_macs},
        aware,
    )


def _recipes() -> Iterator[Technique]:
    """Shipped recipes, with their own training; no peer has the like but in pieces."""
    yield _ours("int4", "export --scheme int4", scheme="int4")
    for group, recipe in (("int4", "int4"), ("download", "download-half"), ("download", "download-least")):
        yield Technique(group=group, tool="edgedl", name=f"recipe {recipe}", recipe=recipe, scheme=None)
    recipe = "channels-50-int8-long"
    yield Technique(group="channels", tool="edgedl", name=f"recipe {recipe}", recipe=recipe, scheme=None, long=True)

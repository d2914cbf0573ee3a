"""The compiled file as an artifact: a .tflite whose operators are Ethos-U command streams."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgedl.errors import InputError
from edgedl.types import ExportOptions, ExportResult, Scheme
from edgedl_vela import compiler


class VelaExporter:
    """Writes what Vela makes of the TFLite file of the same scheme, for the target's Ethos-U."""

    format = "vela"
    suffixes = (".vela",)  # usually named .tflite, with --format vela
    schemes = (Scheme.STATIC_WI8_AI8, Scheme.STATIC_WI8_AI16)
    source = ("tflite", "")

    def export(
        self,
        model: Path,  # noqa: ARG002
        out: Path,
        *,
        scheme: str,  # noqa: ARG002
        source: Path | None,
        calibration: Path | None,  # noqa: ARG002
        options: ExportOptions,
    ) -> ExportResult:
        """Compile `source` for `options.accelerator`. Raises InputError without one, UnsupportedError: Vela refuses."""
        if source is None:
            message = "vela: it is made from a .tflite file, and none was given"
            raise InputError(message)
        with tempfile.TemporaryDirectory() as folder:
            made = compiler.compile_for(options.accelerator, source, Path(folder))
            shutil.copyfile(made.path, out)
        left = ", ".join(sorted({op.name for op in made.cpu}))
        said = f"{len(made.cpu)} operators stay on the CPU: {left}" if made.cpu else "every operator is on the NPU"
        name = options.accelerator["name"]
        return ExportResult(path=out, notes=(f"compiled for {name}, and runs on nothing else; {said}",))

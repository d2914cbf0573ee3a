"""Finished files: the .ort form, and publishing by rename so that nothing is ever half-written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from edgedl.errors import InputError, UnsupportedError


def to_ort(path: Path) -> tuple[Path, str]:
    """The .onnx file as .ort beside it, and what the user should know about that form. Raises UnsupportedError."""
    import onnxruntime

    out = path.with_suffix(".ort")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["NchwcTransformer"],  # its layout is for this machine's processor only
        )
    except Exception as e:  # onnxruntime's errors share no base
        message = f"onnxruntime cannot save this model as .ort: {first_line(e)}"
        raise UnsupportedError(message) from e
    before, after = path.stat().st_size, out.stat().st_size
    version = onnxruntime.__version__
    return out, f".ort: {after:,} bytes ({before:,} as .onnx), optimized by and bound to onnxruntime {version} or later"


def first_line(error: Exception) -> str:
    """The first line of a foreign error's message, or its class; without onnxruntime's codes and source locations."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?(/\S+:\d+ .*?\) )?", "", lines[0])


def publish(made: Path, out: Path) -> None:
    """Copy `made` to `out` by rename, beside it first. Raises InputError: `out` cannot be written."""
    part = ""
    try:
        handle, part = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        with os.fdopen(handle, "wb") as target, made.open("rb") as content:
            shutil.copyfileobj(content, target)
        mask = os.umask(0)
        os.umask(mask)
        Path(part).chmod(0o666 & ~mask)
        Path(part).replace(out)
    except OSError as e:
        if part:
            Path(part).unlink(missing_ok=True)
        message = f"{out}: cannot be written: {e.strerror or e}"
        raise InputError(message) from e

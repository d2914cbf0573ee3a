"""Write a Keras model so that the same model gives the same bytes."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest time, which Keras itself gives to most members


def save(model: keras.Model, out: Path) -> None:
    """Write `model` to `out` in the .keras format, without the time of day and the memory addresses Keras puts in.

    `out` may have any name; the caller publishes it by a rename.
    """
    # worker.Pool clears away folders of this prefix whose process is gone
    with tempfile.TemporaryDirectory(prefix=f"edgedl-{os.getpid()}-") as folder:
        dated = Path(folder, "model.keras")
        model.save(dated)
        with zipfile.ZipFile(dated) as source, zipfile.ZipFile(out, "w") as target:
            for member in source.infolist():
                content = source.read(member)
                if member.filename == "metadata.json":
                    content = _json({k: v for k, v in json.loads(content).items() if k != "date_saved"})
                elif member.filename == "config.json":
                    content = _json(_renumbered(json.loads(content), {}))
                target.writestr(zipfile.ZipInfo(member.filename, ZIP_EPOCH), content)


def _renumbered(config: Any, numbers: dict[int, int]) -> Any:
    """The configuration with objects numbered as they come: Keras tells shared ones apart by their address."""
    if isinstance(config, list):
        return [_renumbered(item, numbers) for item in config]
    if not isinstance(config, dict):
        return config
    return {
        key: numbers.setdefault(value, len(numbers) + 1)
        if key == "shared_object_id" and isinstance(value, int)
        else _renumbered(value, numbers)
        for key, value in config.items()
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()

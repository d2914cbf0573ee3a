"""Write a Keras model so that the same model gives the same bytes."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest time, which Keras itself gives to most members


def save(model: keras.Model, out: Path) -> None:
    """Write `model` to `out` in the .keras format, without the time of day that Keras puts in it.

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
                    metadata = json.loads(content)
                    del metadata["date_saved"]
                    content = json.dumps(metadata).encode()
                target.writestr(zipfile.ZipInfo(member.filename, ZIP_EPOCH), content)

"""What an artifact's lineage says of the model and data that it is judged by: notes, none where all is well."""

from __future__ import annotations

from collections.abc import Sequence

from edgedl import data, preprocessing
from edgedl.data import Dataset
from edgedl.model_file import ModelFile
from edgedl.preprocessing.op import Op
from edgedl.types import Artifact, to_json


def other_model(artifact: Artifact, model: ModelFile) -> list[str]:
    """Whether the artifact was exported from another model than the reference, or one compressed from it."""
    origin = artifact.lineage.model_sha256
    if not origin or model.sha256 in (origin, *artifact.lineage.ancestors):
        return []
    told = f"SHA-256 {origin[:12]}..., not {model.sha256[:12]}..."
    return [f"{artifact.path} was exported from another model file than {model.path} ({told})"]


def other_preprocessing(artifact: Artifact, dataset: Dataset, left: Sequence[Op]) -> list[str]:
    """Whether the data is preprocessed in another way than the artifact was exported with; `left` is still to do."""
    wanted = to_json(artifact.lineage.preprocessing)
    here = to_json(preprocessing.to_json((*dataset.applied, *left)))
    if artifact.lineage.data_sha256 is None or wanted == here:
        return []
    told = f"{dataset.source} does {here or 'nothing'}"
    return [f"the artifact was exported for data preprocessed by {wanted or 'nothing'}; {told}"]


def other_labels(artifact: Artifact, before: Dataset, dataset: Dataset) -> list[str]:
    """Whether the data names other classes than the artifact; `before` is the data in its own order."""
    wanted, own = artifact.lineage.labels, before.labels
    if dataset.labels != own:
        return [f"classes are matched by name: the data has {', '.join(own)}; the artifact {', '.join(wanted)}"]
    if not wanted or not own or wanted == own:
        return []
    return [f"classes are matched by number, not by name: the data has {', '.join(own)}; "
            f"the artifact {', '.join(wanted)}"]  # fmt: skip


def overlap(artifact: Artifact, dataset: Dataset, names: Sequence[str]) -> list[str]:
    """Whether the artifact was calibrated on samples that it is judged on; `names` are the arrays of its inputs."""
    calibrated = set(artifact.lineage.calibration_hashes)
    if not calibrated:
        return []
    shared = calibrated.intersection(data.sample_hashes([dataset.arrays[name] for name in names]))
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(calibrated)} calibration samples are in this data: its figures flatter the artifact"
    ]

import numpy as np
import pytest

from edgedl_tflite import metadata
from edgedl_tflite.describe import describe
from edgedl_tflite.metadata import ModelMetadata, TensorMetadata

LABELS = ("cat", "dog", "größer", "none of these")


def test_metadata_round_trip():
    said = ModelMetadata(
        name="net",
        inputs=(TensorMetadata(name="a", image=True, mean=(1.0, 2.0, 3.0), std=(0.5,) * 3), TensorMetadata(name="b")),
        outputs=(TensorMetadata(name="y", labels="labels.txt"),),
        labels="values.txt",
    )
    data = metadata.build(said)
    assert data[4:8] == b"M001"
    assert metadata.parse(data) == said


def test_metadata_refuses_damage():
    data = metadata.build(ModelMetadata(name="net", inputs=(TensorMetadata(name="a"),), outputs=()))
    with pytest.raises(ValueError, match="the identifier is b'M002'"):
        metadata.parse(data[:4] + b"M002" + data[8:])
    with pytest.raises(ValueError, match="does not hold together"):
        metadata.parse(b"\xff\xff\xff\x7f" + data[4:])


def test_export_carries_labels_and_normalization_and_still_runs(export, litert, tflite_runtime, cnn, images):
    steps = (
        {"op": "resize", "height": 8, "width": 8},
        {"op": "scale", "factor": 0.5, "offset": 1.0},
        {"op": "normalize", "mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 8.0]},
    )
    made = export(cnn, "fp32", labels=LABELS, preprocessing=steps)
    found = describe(str(made.path)).metadata
    assert found["labels"] == list(LABELS)
    assert found["outputs"][0]["labels"] == "labels.txt"
    (image,) = found["inputs"]
    x = np.array([10.0, 20.0, 30.0])  # (x * 0.5 + 1 - mean) / std, as the steps say, is (x - mean') / std'
    by_steps = (x * 0.5 + 1 - np.array([1.0, 2.0, 3.0])) / np.array([2.0, 4.0, 8.0])
    np.testing.assert_allclose((x - np.array(image["mean"])) / np.array(image["std"]), by_steps, rtol=1e-6)
    assert (image["name"], image["image"]) == ("image", True)
    few = {"image": images["image"][:2]}
    for run in (litert, tflite_runtime):
        np.testing.assert_allclose(run(made.path, few)["probs"], cnn(few["image"], training=False), atol=1e-5)


def test_labels_that_fit_no_output_belong_to_the_model(export):
    import keras

    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y", activation="sigmoid")])
    found = describe(str(export(model, "fp32", labels=("no", "yes")).path)).metadata
    assert found["labels"] == ["no", "yes"]
    assert found["outputs"][0]["labels"] is None

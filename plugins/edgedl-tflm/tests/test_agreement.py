"""How far TFLM's kernels are from litert's: on every sample once, whatever the batch of the file."""

import numpy as np
import pytest
from crafted import images, small_model

from edgedl.errors import UnsupportedError
from edgedl_tflm import agreement
from edgedl_tflm.figures import figures

NPU = {"id": "board", "accelerator": {"kind": "npu"}, "cpu": {}}  # whose arena is not told


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "image.npy", images(11))
    return {"image": tmp_path / "image.npy"}


@pytest.mark.parametrize("batch", [4, 8, 16])
def test_a_fixed_batch_is_compared_whole(tmp_path, data, batch, monkeypatch):
    monkeypatch.setattr(agreement, "_outputs", off_by_the_first_value(agreement._outputs))
    single = agreement.compare(small_model(tmp_path / "1.tflite"), data, straight=False)
    found = agreement.compare(small_model(tmp_path / "m.tflite", batch=batch), data, straight=False)
    assert (found.samples, found.largest, found.differing) == (11, single.largest, single.differing)
    assert 0 < sum(found.operators.values()) == sum(single.operators.values()) < 11


def off_by_the_first_value(outputs):
    """litert's outputs, one more where the first value of the sample is positive: so that some samples part."""

    def found(litert, only, values, ours):
        (kind,) = outputs(litert, only, values, ours)
        return [kind.astype(np.int16) + (values[0][:, 0, 0] > 0)]

    return found


def test_data_of_another_shape_is_refused(tmp_path):
    path = small_model(tmp_path / "m.tflite")
    np.save(tmp_path / "image.npy", images(3, side=4))
    with pytest.raises(UnsupportedError, match=r"m\.tflite: TFLM does not run it: .*[Dd]imension mismatch"):
        figures(str(path), NPU, {"image": str(tmp_path / "image.npy")}, False)

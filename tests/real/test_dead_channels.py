"""ResNet8 with a third of all filters made dead: they all go, and file, arena and MACs with them."""

import os
import re

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

pytestmark = pytest.mark.real


def planted(source, out):
    """Every third filter of each convolution is nothing, through all residual adds."""
    from edgedl import models

    model = models.load(source).model
    convolutions = [layer for layer in model.layers if type(layer).__name__ == "Conv2D"]
    for conv in convolutions:
        gone = np.arange(0, conv.filters, 3)
        kernel, bias = conv.get_weights()
        kernel[..., gone], bias[gone] = 0, 0
        conv.set_weights([kernel, bias])
        (norm,) = (node.operation for node in conv.output._keras_history.operation._outbound_nodes)
        if type(norm).__name__ == "BatchNormalization":
            gamma, beta, mean, variance = norm.get_weights()
            beta[gone], mean[gone] = 0, 0
            norm.set_weights([gamma, beta, mean, variance])
    model.save(out)
    return sum(len(np.arange(0, c.filters, 3)) for c in convolutions), sum(c.filters for c in convolutions)


def test_planted_dead_channels_go_and_file_arena_and_macs_with_them(cli, shared, tmp_path):
    from edgedl_tflm import arena

    model, slim = tmp_path / "planted.keras", tmp_path / "slim.keras"
    dead, filters = planted(shared / "mlperf_tiny" / "ic" / "pretrainedResnet.h5", model)
    assert dead > filters / 3
    (tmp_path / "r.toml").write_text('[[step]]\nkind = "prune"\nmethod = "dead"\non_data = false\n')

    answer = cli("compress", model, "--recipe", tmp_path / "r.toml", "-o", slim, "--json")

    assert answer.code == 0, answer.err
    before, after = answer.json["rows"]
    (note,) = (n for n in after["notes"] if "removed" in n)
    assert sum(map(int, re.findall(r" (\d+) of \d+", note))) == dead
    assert float(re.search(r"moved by at most (\S+) on", note)[1]) <= 1e-5
    assert after["macs"] < 0.45 * before["macs"]
    assert after["size_bytes"] < 0.45 * before["size_bytes"]
    arenas = []
    for path in (model, slim):
        out = path.with_suffix(".tflite")
        answer = cli(
            "export", path, "--scheme", "int8", "--calibration-data", shared / "cifar10" / "train.npz", "-o", out
        )
        assert answer.code == 0, answer.err
        arenas.append(arena.measure(out.read_bytes()).tensors)
    assert arenas[1] < 0.8 * arenas[0]

"""Samples and steps whose results every wrapper must give to the last bit, with the results of edgedl's Python."""

import numpy as np

from edgedl import preprocessing

RESIZES = [
    {"op": "resize", "height": 5, "width": 9},
    {"op": "resize", "height": 11, "width": 3, "method": "bilinear"},
    {"op": "resize", "height": 4, "width": 13, "method": "nearest"},
    {"op": "resize", "height": 7, "width": 6},
]
STEPS = [
    *([step] for step in RESIZES),
    [{"op": "crop", "height": 4, "width": 3}],
    [{"op": "crop", "height": 2, "width": 5, "top": 3, "left": 1}],
    [{"op": "grayscale"}],
    [{"op": "scale", "factor": 0.0078431372549, "offset": -1.0}],
    [{"op": "scale", "factor": 3.3}],
    [{"op": "normalize", "mean": [123.68, 116.78, 103.94], "std": [58.4, 57.1, 57.38]}],
    [{"op": "normalize", "mean": 127.5, "std": [1.1, 2.2, 3.3]}],
    [{"op": "normalize", "mean": 0.3081, "std": 0.1307}],
    [{"op": "cast", "dtype": "uint8"}],
    [{"op": "cast", "dtype": "int8"}],
    [{"op": "cast", "dtype": "int16"}, {"op": "cast", "dtype": "float32"}],
    [{"op": "cast", "dtype": "float32"}, RESIZES[0], {"op": "cast", "dtype": "uint16"}],
    [RESIZES[1], {"op": "crop", "height": 3, "width": 3}, {"op": "grayscale"}, {"op": "scale", "factor": 1 / 255}],
]
# what `top` of a model with these labels gives for an output's values: (label, value), "null" where there is none
TOP = [
    {"labels": ["no", "yes"], "values": [0.75], "expected": [("yes", 0.75), ("no", 0.25)]},
    {"labels": ["no", "yes"], "values": [0.125], "expected": [("no", 0.875), ("yes", 0.125)]},
    {"labels": ["a", "b"], "values": [0.25, 0.75], "expected": [("b", 0.75), ("a", 0.25)]},
    {"labels": ["a", "b", "c"], "values": [0.5], "expected": [("null", 0.5)]},
    {"labels": ["a", "b"], "values": [1, 3, 2], "expected": [("null", 3), ("null", 2), ("null", 1)]},
    {"labels": [], "values": [1, 3], "expected": [("null", 3), ("null", 1)]},
]


def make():
    """`[{"steps", "sample": {"data", "shape", "type"}, "expected": {...}}]`, JSON-able: pixels, and floats off them."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    floats = (rng.standard_normal((7, 6, 3)) * 150).astype(np.float32)
    floats[0, 0] = (-0.5, 0.5, 254.5)
    cases = [_case(steps, sample) for steps in STEPS for sample in (pixels, floats)]
    flat = rng.integers(0, 256, (6, 5), dtype=np.uint8)
    return cases + [_case([step], flat) for step in RESIZES] + [_case([STEPS[9][0]], pixels)]


def _case(steps, sample):
    found = preprocessing.apply(preprocessing.parse(steps, "test"), sample[None])[0]
    return {"steps": steps, "sample": _sample(sample), "expected": _sample(found)}


def _sample(array):
    return {"data": array.reshape(-1).tolist(), "shape": list(array.shape), "type": str(array.dtype)}

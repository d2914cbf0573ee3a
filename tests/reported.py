"""Checks of a report for the tests of what shows it."""

from edgedl.types import Check, Method, Verdict


def a_check(name, measured=None, verdict=Verdict.INFO, method=Method.STATIC, **more):
    return Check(name=name, measured=measured, verdict=verdict, method=method, **more)


CHECKS = (
    a_check("accuracy_reference", 0.8686, unit="fraction", low=0.859, high=0.8777),
    a_check("accuracy", 0.8660, unit="fraction", low=0.8563, high=0.8752),
    a_check(
        "accuracy_drop", 0.0026, Verdict.PASS, unit="fraction", low=-0.0010, high=0.0062, limit=0.01, why="inside"
    ),
    a_check("compressed_bytes", 79_159, unit="bytes"),
    a_check("size_bytes", 98_464, Verdict.FAIL, unit="bytes", limit=64_000, why="98,464 > 64,000"),
    a_check("latency_ms", None, Verdict.UNCHECKED, Method.MEASURED_DEVICE, target="nucleo-h743zi2", unit="ms", limit=5,
           why="no board"),
    a_check("worst_class_drop", 0.02, Verdict.INCONCLUSIVE, unit="fraction", limit=0.02, why="needs 3,000 samples"),
    a_check("instructions", 450_387, unit="count", method=Method.EMULATED),
)  # fmt: skip

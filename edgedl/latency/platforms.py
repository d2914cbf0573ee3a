"""What is known of a kind of processor before any figure: its memories, and about how many cycles a step takes.

Microcontrollers: two 8-bit multiply-accumulates are one SMLAD after two loads and a sign extension, which CMSIS-NN
(arXiv:1801.06601) brings to about one cycle each on a Cortex-M7; depthwise convolutions reuse no load, and reductions
over arbitrary axes compute an index for every element (TensorFlow Lite, reference/reduce.h). Application processors:
one NEON instruction does eight, on two threads; an operator costs a call into the delegate and a barrier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgedl.latency.features import NAMES, Memory
from edgedl.latency.hierarchy import Prior


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One kind of processor: `cycles` by feature, and the memories that its figures were taken with.

    `depth_step`: see `features`.
    """

    name: str
    cycles: dict[str, float]
    memory: Memory
    depth_step: int = 1

    @property
    def prior(self) -> Prior:
        """A multiply-accumulate is known within a factor of 1.6 either way, what memory costs within 2.5."""
        spread = [0.5 if name in ("conv_macs", "shallow_macs", "pointwise_macs", "depthwise_macs", "dense_macs") else
                  0.9 if name in _GUESSED else 0.7 for name in NAMES]  # fmt: skip
        wiring = [0.5 if name in _OUTSIDE else 0 for name in NAMES]
        return Prior(cycles=np.array([self.cycles[name] for name in NAMES]), spread=np.array(spread),
                     wiring=np.array(wiring))  # fmt: skip


_OUTSIDE = ("spilled", "flash_macs")  # memory outside of the chip: its width and clock differ from board to board
_GUESSED = ("reduce", "copy", "exponential", "operators", "weights", "streamed", "spilled", "flash_macs")

MICROCONTROLLER = Platform(
    name="microcontroller",
    cycles={
        "conv_macs": 0.8, "shallow_macs": 1.2, "conv_gather": 0.7, "conv_out": 15,
        "pointwise_macs": 0.8, "pointwise_in": 0.7, "pointwise_out": 15,
        "depthwise_macs": 1.5, "depthwise_out": 10, "dense_macs": 0.8,
        "elementwise": 8, "pool": 6, "reduce": 50, "copy": 2, "exponential": 50, "operators": 3000,
        "weights": 0.3, "streamed": 1, "spilled": 2, "flash_macs": 0.5,
    },
    memory=Memory(cache_bytes=48 * 1024, ram_bytes=512 * 1024, flash_bytes=2 * 1024**2),
    depth_step=4,
)  # fmt: skip

# Cortex-A7: 256 KiB of second-level cache on the STM32MP157 (ST data sheet DS12505); what is beyond is DDR.
APPLICATION = Platform(
    name="application",
    cycles={
        "conv_macs": 0.3, "shallow_macs": 0.3, "conv_gather": 0.2, "conv_out": 2,
        "pointwise_macs": 0.3, "pointwise_in": 0.3, "pointwise_out": 2,
        "depthwise_macs": 1, "depthwise_out": 2, "dense_macs": 0.7,
        "elementwise": 2, "pool": 2, "reduce": 3, "copy": 1, "exponential": 20, "operators": 10_000,
        "weights": 0.5, "streamed": 0.5, "spilled": 1, "flash_macs": 0.5,
    },
    memory=Memory(cache_bytes=256 * 1024, ram_bytes=math.inf, flash_bytes=math.inf),
)  # fmt: skip

PLATFORMS = {p.name: p for p in (MICROCONTROLLER, APPLICATION)}


def platform_of(core: str) -> Platform:
    """The platform of a core by Arm's name for it."""
    return MICROCONTROLLER if core.startswith("cortex-m") else APPLICATION

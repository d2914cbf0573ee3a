"""A latency goal turned into a goal of MACs: times differ from run to run, MACs do not.

Latency is taken to be a constant and a part in proportion to the MACs, so that the share of the MACs that meets the
goal lies on the line through two shares that were timed (secant, then false position).
"""

from __future__ import annotations

from collections.abc import Callable

from edgedl.errors import InputError

TRIES = 5
SLACK = 0.05  # so far below the goal is near enough


def macs_for(goal: float, latency_of: Callable[[float], float], where: str) -> tuple[float, float]:
    """The share of the MACs at which at most `goal` of the latency is left, and the share of the latency there.

    `latency_of` measures the share of the latency that is left with a share of the MACs, both in (0, 1]. Raises
    InputError where no share that was tried meets the goal.
    """
    slower, slow, fast = (1.0, 1.0), (1.0, 1.0), None
    share = goal
    for _ in range(TRIES):
        found = (share, latency_of(share))
        if found[1] > goal:
            slower, slow = slow, found
        else:
            fast = found
            if found[1] >= goal - SLACK:
                break
        share = _aimed(slow, fast or slower, goal - SLACK / 2)
        if fast is None:
            share = max(share, slow[0] / 4)
        if share in (slow[0], found[0]):
            break
    if fast is None:
        message = (
            f"{where}: goal latency {goal:g} was not met: {slow[1]:.2f} of the latency is left with {slow[0]:.1%} of "
            "the MACs; ask for less, or for macs"
        )
        raise InputError(message)
    return fast


def _aimed(slow: tuple[float, float], other: tuple[float, float], goal: float) -> float:
    """The share at which the line through two (share, latency) reaches the goal, or half of it where it rises."""
    (high, much), (low, little) = slow, other
    if (much - little) * (high - low) <= 0:
        return round(high / 2, 3)
    return round(high - (much - goal) * (high - low) / (much - little), 3)

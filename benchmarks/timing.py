"""How often the clock is read: the clock itself is the package's, of `python -m pama_ops bench`."""

from __future__ import annotations

import time
from collections.abc import Callable

from pama_ops._bench import Call, seconds

__all__ = ["Call", "sample", "seconds"]


def sample(read: Callable[[], float], *, least: int, most: int, budget: float) -> list[float]:
    """Readings: `most`, or those that a budget of seconds allows, but `least`.

    The first is not counted, unless it is long: then what it warms is no part of it.
    """
    begin = time.perf_counter()
    samples = [read()]
    if samples[0] < budget / 3:
        samples.clear()
    while len(samples) < least or (len(samples) < most and time.perf_counter() - begin < budget):
        samples.append(read())
    return samples

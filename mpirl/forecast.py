"""An iteration's time as a function of workers and lanes, from a measured one. Pure.

The model: broadcast + collect + gather + archive + learn + other. Collecting takes a fixed time and a time per lane of the
worker that has most of them, broadcasting a time per level of a tree over the ranks; the rest is proportional to the batch.
It knows nothing of stragglers, nor of cores that ranks share with others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mpirl.table import ARCHIVE_COPIES

BUSY = 0.8  # share of an iteration that is rank 0's own work, from which on more workers gain little
MOST_WORKERS = 4096
PROCESS_BYTES = 600e6  # of Python, torch and MPI without any data
BATCH_COPIES = 1 + ARCHIVE_COPIES
WEIGHTS_COPIES = 5  # weights, gradients, Adam's two moments, a checkpoint's copy
PHASES = ("broadcast", "collect", "gather", "archive", "learn")


@dataclass(frozen=True)
class Measurement:
    """What a run took. seconds: medians by phase. lanes: of every worker. steps: true steps per iteration.

    fixed_share: the part of collecting that does not depend on the number of lanes; None if the run cannot tell.
    """

    seconds: Mapping[str, float]
    lanes: tuple[int, ...]
    steps: float
    weights_bytes: int
    batch_bytes: int
    iterations: int
    hosts: int = 1
    worker_threads: int = 1
    fixed_share: float | None = None

    @property
    def lanes_total(self) -> int:
        return sum(self.lanes)


@dataclass(frozen=True)
class Prediction:
    """An iteration of a world with so many workers and lanes; seconds by phase, bytes that rank 0 receives and holds."""

    workers: int
    lanes_total: int
    seconds: Mapping[str, float]
    steps: float
    received_bytes: float
    memory_bytes: float

    @property
    def iteration(self) -> float:
        return max(sum(self.seconds.values()), 1e-9)

    @property
    def speed(self) -> float:
        """Steps per second."""
        return self.steps / self.iteration

    @property
    def busy(self) -> float:
        """The share of rank 0's own work; the rest is waiting for the workers to collect."""
        return 1 - self.seconds["collect"] / self.iteration

    @property
    def heaviest(self) -> str:
        """Where most of rank 0's own time goes."""
        return max((phase for phase in self.seconds if phase != "collect"), key=lambda phase: self.seconds[phase])


def predict(measured: Measurement, workers: int, lanes_total: int, gbits: float, most: int | None = None) -> Prediction:
    """The iteration with `lanes_total` lanes, whose batch comes over rank 0's link of `gbits` Gbit/s.

    most: lanes of the worker that has most of them; None: they are spread evenly.
    """
    seconds, fixed = measured.seconds, measured.fixed_share or 0.0
    scale = lanes_total / measured.lanes_total
    lanes = (most or math.ceil(lanes_total / workers)) / max(measured.lanes)
    wire = lambda size: size * 8 / (gbits * 1e9)
    levels = tree_levels(workers + 1)
    received = measured.batch_bytes * scale
    predicted = {
        "broadcast": max(seconds["broadcast"] / tree_levels(len(measured.lanes) + 1), wire(measured.weights_bytes)) * levels,
        "collect": seconds["collect"] * (fixed + (1 - fixed) * lanes),
        "gather": max(seconds["gather"] * scale, wire(received)),
        "archive": seconds["archive"] * scale,
        "learn": seconds["learn"] * scale,
        "other": sum(value for phase, value in seconds.items() if phase not in (*PHASES, "iteration")),
    }
    memory = PROCESS_BYTES + BATCH_COPIES * received + WEIGHTS_COPIES * measured.weights_bytes
    return Prediction(workers, lanes_total, predicted, measured.steps * scale, received, memory)


def tree_levels(ranks: int) -> int:
    """Messages one after the other in a binomial broadcast to so many ranks."""
    return max(1, math.ceil(math.log2(ranks)))


def useful_workers(at: Callable[[int], Prediction], most: int = MOST_WORKERS) -> Prediction | None:
    """The fewest workers with which rank 0 is busy for 80 % of the time; None if `most` workers are not enough."""
    return next((found for found in map(at, range(1, most + 1)) if found.busy >= BUSY), None)


def fixed_share(points: Sequence[tuple[int, float]]) -> float | None:
    """The part of the largest collect time that does not depend on lanes, from (lanes, seconds) of the workers.

    A straight line by least squares; None where all have the same number of lanes.
    """
    if len({lanes for lanes, _ in points}) < 2:
        return None
    slope, start = statistics.linear_regression(*zip(*points))
    most = max(lanes for lanes, _ in points)
    return min(1.0, max(0.0, start / max(start + slope * most, 1e-9)))

"""What a rank says of itself at start-up, so that the world can be planned."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RankInfo:
    """What a rank says of itself at start-up: its host, the cores it may use (none: unknown), how many the host has, the cores
    it could take instead of those that the launcher bound it to, and whether its host has a GPU.
    """

    rank: int
    host: str
    cores: tuple[int, ...]
    host_cores: int
    reachable: tuple[int, ...] = ()
    has_gpu: bool = False

    @classmethod
    def here(cls, rank: int, host: str | None = None) -> RankInfo:
        cores = tuple(sorted(os.sched_getaffinity(0)))
        has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
        return cls(rank, host or socket.gethostname(), cores, os.cpu_count() or 1, reachable_cores(), has_gpu)


def reachable_cores() -> tuple[int, ...]:
    """The cores that this thread could be bound to. In a Slurm job only those it has: the others belong to other jobs."""
    before = os.sched_getaffinity(0)
    if "SLURM_JOB_ID" in os.environ:
        return tuple(sorted(before))
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        return tuple(sorted(os.sched_getaffinity(0)))
    except OSError:
        return tuple(sorted(before))
    finally:
        os.sched_setaffinity(0, before)

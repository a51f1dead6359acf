"""What runs where: from the ranks and hosts there are, and the config, to lanes and threads of every rank. Pure."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mpirl.errors import UserError


@dataclass(frozen=True)
class RankInfo:
    """What a rank says of itself at start-up: its host, the cores it may use, and how many the host has."""

    rank: int
    host: str
    cores: tuple[int, ...]
    host_cores: int

    @classmethod
    def here(cls, rank: int, host: str | None = None) -> RankInfo:
        return cls(rank, host or socket.gethostname(), tuple(sorted(os.sched_getaffinity(0))), os.cpu_count() or 1)


@dataclass(frozen=True)
class Plan:
    """Per rank: lanes (rank 0 has none), the first global lane, threads for arithmetic, and whether waits must sleep."""

    hosts: tuple[str, ...]
    lanes: tuple[int, ...]
    threads: tuple[int, ...]
    patient: tuple[bool, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def lanes_total(self) -> int:
        return sum(self.lanes)

    def first_lane(self, rank: int) -> int:
        """The first global lane of a rank."""
        return sum(self.lanes[:rank])

    @property
    def lane_rank(self) -> list[int]:
        """The rank of every global lane."""
        return [rank for rank, lanes in enumerate(self.lanes) for _ in range(lanes)]


def make_plan(ranks: Sequence[RankInfo], settings: Mapping[str, Any]) -> Plan:
    """Plan a world. settings: the config's `placement` node."""
    num_workers = len(ranks) - 1
    if num_workers < 1:
        raise UserError(
            "1 rank fits no plan: a learner needs at least one worker beside it; start `mpirun -np 2` or more, "
            "or plain `python -m mpirl.main`, which puts both into one process"
        )
    lanes = (0, *plan_lanes(num_workers, settings))
    threads = tuple(plan_threads(info, ranks, settings) for info in ranks)
    return Plan(
        hosts=tuple(info.host for info in ranks),
        lanes=lanes,
        threads=threads,
        patient=tuple(is_crowded(info, ranks, threads) for info in ranks),
        warnings=tuple(warnings(ranks, lanes)),
    )


def plan_lanes(num_workers: int, settings: Mapping[str, Any]) -> list[int]:
    """Lanes of every worker: an explicit list, a total spread evenly, or the same number each."""
    explicit, total, each = settings.get("lanes"), settings.get("lanes_total"), settings.get("lanes_per_worker")
    if explicit is not None and total is not None:
        raise UserError(
            f"placement.lanes={list(explicit)} and placement.lanes_total={total} contradict: set one of them to null"
        )
    if explicit is not None:
        if len(explicit) != num_workers:
            raise UserError(f"placement.lanes={list(explicit)} names {len(explicit)} workers, this world has {num_workers}")
        lanes = list(explicit)
    elif total is not None:
        lanes = [total // num_workers + (worker < total % num_workers) for worker in range(num_workers)]
    else:
        lanes = [each] * num_workers
    if min(lanes) < 0 or sum(lanes) < 1:
        raise UserError(f"lanes per worker {lanes}: none may be negative and the world needs at least one; mend placement.*")
    return lanes


def plan_threads(info: RankInfo, ranks: Sequence[RankInfo], settings: Mapping[str, Any]) -> int:
    """Threads of arithmetic of a rank: the learner takes all cores it may use, the workers of a host share theirs."""
    key = "worker_threads" if info.rank else "learner_threads"
    if settings.get(key) is not None:
        if settings[key] < 1:
            raise UserError(f"placement.{key}={settings[key]}: write 1 or more, or null for the cores there are")
        return int(settings[key])
    if info.rank == 0:
        return len(info.cores)
    sharing = sum(1 for other in ranks if other.rank and other.host == info.host and set(other.cores) & set(info.cores))
    return max(1, len(info.cores) // sharing)


def single_threaded(plan: Plan, settings: Mapping[str, Any]) -> Plan:
    """The plan for a model too small to split over threads: one thread per rank, but for what the settings fix."""
    learner, worker = settings.get("learner_threads") or 1, settings.get("worker_threads") or 1
    return replace(plan, threads=(learner, *[worker] * (len(plan.threads) - 1)))


def is_crowded(info: RankInfo, ranks: Sequence[RankInfo], threads: Sequence[int]) -> bool:
    """Whether the rank's cores are wanted by more threads than there are cores: then a waiting rank must sleep."""
    sharing = [other for other in ranks if other.host == info.host and set(other.cores) & set(info.cores)]
    return sum(threads[other.rank] for other in sharing) > len(info.cores)


def warnings(ranks: Sequence[RankInfo], lanes: Sequence[int]) -> list[str]:
    """What a user should mend although the run can go on."""
    found = []
    learner = ranks[0]
    if len(learner.cores) == 1 and learner.host_cores > 1:
        found.append(
            f"the learner (rank 0 on {learner.host}) is bound to 1 of {learner.host_cores} cores, which slows learning: "
            "start mpirun with --bind-to none (srun: --cpu-bind=none, or a larger --cpus-per-task)"
        )
    per_core = Counter((info.host, info.cores[0]) for info in ranks if len(info.cores) == 1)
    for (host, core), count in per_core.items():
        if count > 1:
            found.append(f"{count} ranks on {host} are bound to the same core {core}: start mpirun with --bind-to none")
    idle = [rank for rank, number in enumerate(lanes) if rank and not number]
    if idle:
        found.append(f"no lanes on ranks {', '.join(map(str, idle))}: raise placement.lanes_total or start fewer ranks")
    return found

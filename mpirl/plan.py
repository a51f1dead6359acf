"""What runs where: from the ranks and hosts there are, and the config, to every rank's lanes, cores, threads and GPUs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mpirl.errors import UserError
from mpirl.rankinfo import RankInfo
from mpirl.rules import Rule, gpu_names, is_host, make_rules, rule_for

INHERIT = "inherit"
LANES_PER_THREAD = 16
"""With the Nature CNN a second thread decides for 16 lanes 40 % slower in bf16 and 20 % faster in fp32; for 64, faster in both."""


@dataclass(frozen=True)
class Plan:
    """Per rank: lanes (rank 0 has none), cores it may use, threads for arithmetic, whether waits must sleep; and of workers
    CUDA_VISIBLE_DEVICES (None: as it is) and the emulator settings that differ from the config's.

    bound: whether a rank is to be bound to its cores.
    """

    hosts: tuple[str, ...]
    lanes: tuple[int, ...]
    cores: tuple[tuple[int, ...], ...]
    bound: tuple[bool, ...]
    threads: tuple[int, ...]
    patient: tuple[bool, ...]
    gpus: tuple[str | None, ...]
    emulator: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def lanes_total(self) -> int:
        return sum(self.lanes)

    @property
    def beside_learner(self) -> int:
        """Workers on the learner's cores."""
        places = zip(self.hosts[1:], self.cores[1:])
        return sum(host == self.hosts[0] and bool(set(cores) & set(self.cores[0])) for host, cores in places)

    def first_lane(self, rank: int) -> int:
        """The first global lane of a rank."""
        return sum(self.lanes[:rank])

    @property
    def lane_rank(self) -> list[int]:
        """The rank of every global lane."""
        return [rank for rank, lanes in enumerate(self.lanes) for _ in range(lanes)]


def make_plan(ranks: Sequence[RankInfo], settings: Mapping[str, Any]) -> Plan:
    """Plan a world. settings: the config's `placement` node."""
    if len(ranks) < 2:
        raise UserError(
            "1 rank fits no plan: a learner needs at least one worker beside it; start `mpirun -np 2` or more, "
            "or plain `python -m mpirl.main`, which puts both into one process"
        )
    if settings.get("learner") and not is_host(settings["learner"], ranks[0].host):
        raise UserError(
            f"placement.learner={settings['learner']}, but rank 0 is on {ranks[0].host}: it takes effect on the command line only"
        )
    rules = make_rules(settings.get("rules"))
    ruled = [None if info.rank == 0 else rule_for(rules, info.rank, info.host) for info in ranks]
    lanes = (0, *plan_lanes(ranks[1:], ruled[1:], settings))
    bound, seated = plan_cores(ranks, ruled, settings)
    threads = tuple(plan_threads(info, seated, rule, settings, n) for info, rule, n in zip(seated, ruled, lanes))
    return Plan(
        hosts=tuple(info.host for info in ranks),
        lanes=lanes,
        cores=tuple(info.cores for info in seated),
        bound=bound,
        threads=threads,
        patient=tuple(is_crowded(info, seated, threads) for info in seated),
        gpus=plan_gpus(ranks, ruled, settings),
        emulator=tuple(rule.emulator if rule else {} for rule in ruled),
        warnings=(*warnings(seated, bound, lanes), *idle_rules(rules, ranks, ruled)),
    )


def plan_alone(info: RankInfo, settings: Mapping[str, Any]) -> Plan:
    """A world of the learner alone, for programs in which nobody has to play."""
    threads = plan_threads(info, [info], None, settings)
    return Plan((info.host,), (0,), (info.cores,), (False,), (threads,), (False,), (None,), ({},))


def plan_lanes(workers: Sequence[RankInfo], ruled: Sequence[Rule | None], settings: Mapping[str, Any]) -> list[int]:
    """Lanes of every worker: an explicit list, else what its rule says, else its share of a host's or of the world's."""
    explicit, total, per_host = (settings.get(key) for key in ("lanes", "lanes_total", "lanes_per_host"))
    given = {key: settings[key] for key in ("lanes", "lanes_total", "lanes_per_host") if settings.get(key) is not None}
    if len(given) > 1:
        said = " and ".join(f"placement.{key}={value}" for key, value in given.items())
        raise UserError(f"{said} contradict: keep one of them, set the others to null")
    lanes = [rule.lanes if rule else None for rule in ruled]
    open_workers = [index for index, number in enumerate(lanes) if number is None]
    if explicit is not None:
        if len(explicit) != len(workers):
            raise UserError(f"placement.lanes={list(explicit)} names {len(explicit)} workers, this world has {len(workers)}")
        lanes = list(explicit)
    elif total is not None:
        spread(lanes, open_workers, total - sum(number or 0 for number in lanes), f"placement.lanes_total={total}")
    elif per_host is not None:
        for host in dict.fromkeys(worker.host for worker in workers):
            here = [index for index, worker in enumerate(workers) if worker.host == host]
            rest = per_host - sum(lanes[index] or 0 for index in here)
            spread(lanes, [index for index in here if lanes[index] is None], rest, f"placement.lanes_per_host={per_host}")
    lanes = [settings.get("lanes_per_worker") if number is None else number for number in lanes]
    if min(lanes) < 0 or sum(lanes) < 1:
        raise UserError(f"lanes per worker {lanes}: none may be negative and the world needs at least one; mend placement.*")
    return lanes


def spread(lanes: list[int | None], workers: Sequence[int], number: int, setting: str) -> None:
    """Share `number` lanes evenly among `workers`, the first ones get what is over."""
    if number < 0:
        raise UserError(f"{setting}: rules give away {-number} lanes more than that; none may be negative, mend one of the two")
    for place, index in enumerate(workers):
        lanes[index] = number // len(workers) + (place < number % len(workers))


def plan_cores(
    ranks: Sequence[RankInfo], ruled: Sequence[Rule | None], settings: Mapping[str, Any]
) -> tuple[tuple[bool, ...], list[RankInfo]]:
    """Whether each rank is to be bound, and the ranks with the cores they will have.

    With `bind` "auto", ranks keep what the launcher gave them; but Open MPI's mpirun binds a lone learner to a single core,
    and that one takes all it can reach.
    """
    choice, learner = settings.get("bind", "auto"), ranks[0]
    if choice not in ("auto", "cores", "launcher"):
        raise UserError(f"placement.bind={choice!r}: choose auto, cores (each rank its own) or launcher (as it was started)")
    seats = bind(ranks, settings.get("worker_threads") or 1) if choice == "cores" else {}
    if choice == "auto" and len(learner.cores) == 1 < len(learner.reachable):
        seats[0] = learner.reachable
    seats |= {info.rank: rule.cores for info, rule in zip(ranks, ruled) if rule and rule.cores is not None}
    for info in ranks:
        if info.rank in seats and info.cores and max(seats[info.rank]) >= info.host_cores:
            raise UserError(
                f"rank {info.rank} on {info.host} cannot have core {max(seats[info.rank])}: the host has {info.host_cores} "
                "(0 is the first); mend the cores in placement.rules"
            )
    return tuple(info.rank in seats for info in ranks), [replace(i, cores=seats.get(i.rank, i.cores)) for i in ranks]


def bind(ranks: Sequence[RankInfo], worker_cores: int) -> dict[int, tuple[int, ...]]:
    """Cores of their own for every rank: beside the learner a worker gets `worker_cores` and the learner the rest;
    elsewhere the workers share the host's. With more ranks than cores, ranks take turns on them."""
    seats: dict[int, tuple[int, ...]] = {}
    for host in dict.fromkeys(info.host for info in ranks):
        here = [info for info in ranks if info.host == host]
        cores = sorted({core for info in here for core in info.cores})
        workers = [info.rank for info in here if info.rank]
        if not cores:
            continue
        for_learner = max(1, len(cores) - worker_cores * len(workers)) if here[0].rank == 0 else 0
        rest = cores[for_learner:] or cores
        each = max(1, len(rest) // max(1, len(workers)))
        seats |= {rank: tuple(rest[(i * each + k) % len(rest)] for k in range(each)) for i, rank in enumerate(workers)}
        if for_learner:
            seats[0] = tuple(cores[:for_learner])
    return seats


def plan_threads(
    info: RankInfo, ranks: Sequence[RankInfo], rule: Rule | None, settings: Mapping[str, Any], lanes: int = 0
) -> int:
    """Threads of arithmetic of a rank: the learner takes all cores it may use, the workers of a host share theirs.

    A worker has no more than decisions for its lanes keep busy: beyond that, threads wait for each other.
    """
    key = "worker_threads" if info.rank else "learner_threads"
    if rule and rule.threads is not None:
        return rule.threads
    if settings.get(key) is not None:
        if settings[key] < 1:
            raise UserError(f"placement.{key}={settings[key]}: write 1 or more, or null for the cores there are")
        return int(settings[key])
    if info.rank == 0:
        return max(1, len(info.cores))
    sharing = sum(1 for other in ranks if other.rank and other.host == info.host and set(other.cores) & set(info.cores))
    return max(1, min(len(info.cores) // max(1, sharing), lanes // LANES_PER_THREAD))


def single_threaded(plan: Plan, settings: Mapping[str, Any]) -> Plan:
    """The plan for a model too small to split over threads: one thread per rank, but for what the settings fix."""
    learner, worker = settings.get("learner_threads") or 1, settings.get("worker_threads") or 1
    rules = make_rules(settings.get("rules"))
    ruled = (rule_for(rules, rank, host) for rank, host in enumerate(plan.hosts) if rank)
    return replace(plan, threads=(learner, *((rule and rule.threads) or worker for rule in ruled)))


def plan_gpus(
    ranks: Sequence[RankInfo], ruled: Sequence[Rule | None], settings: Mapping[str, Any]
) -> tuple[str | None, ...]:
    """CUDA_VISIBLE_DEVICES of the workers: a host's workers take `worker_gpus` in turn, and see none by default."""
    given = settings.get("worker_gpus", ())
    names = () if given == INHERIT else gpu_names(given or (), "placement.worker_gpus")
    seen: Counter[str] = Counter()
    gpus: list[str | None] = []
    for info, rule in zip(ranks, ruled):
        if info.rank == 0 or given == INHERIT and not (rule and rule.gpus is not None):
            gpus.append(None)
        elif rule and rule.gpus is not None:
            gpus.append(",".join(rule.gpus))
        else:
            gpus.append(names[seen[info.host] % len(names)] if names else "")
            seen[info.host] += 1
    return tuple(gpus)


def is_crowded(info: RankInfo, ranks: Sequence[RankInfo], threads: Sequence[int]) -> bool:
    """Whether the rank's cores are wanted by more threads than there are cores: then a waiting rank must sleep."""
    sharing = [other for other in ranks if other.host == info.host and set(other.cores) & set(info.cores)]
    return sum(threads[other.rank] for other in sharing) > len(info.cores)


def warnings(everyone: Sequence[RankInfo], bound: Sequence[bool], lanes: Sequence[int]) -> list[str]:
    """What a user should mend although the run can go on. bound: the ranks that mpirl binds itself."""
    ranks = [info for info in everyone if not bound[info.rank]]
    found = [
        f"the learner (rank 0 on {info.host}) is bound to 1 of {info.host_cores} cores, which slows learning: "
        "start mpirun with --bind-to none (srun: --cpu-bind=none, or a larger --cpus-per-task)"
        for info in ranks
        if info.rank == 0 and len(info.cores) == 1 and info.host_cores > 1
    ]
    better = next((info for info in everyone if info.has_gpu), None)
    if better and not everyone[0].has_gpu:
        found.append(
            f"the learner runs on {everyone[0].host} without a GPU, while {better.host} has one: name {better.host} first in "
            f"the hostfile, or write placement.learner={better.host}"
        )
    per_core = Counter((info.host, info.cores[0]) for info in ranks if len(info.cores) == 1)
    for (host, core), count in per_core.items():
        if count > 1:
            found.append(f"{count} ranks on {host} are bound to the same core {core}: start mpirun with --bind-to none")
    idle = [rank for rank, number in enumerate(lanes) if rank and not number]
    if idle:
        found.append(f"no lanes on ranks {', '.join(map(str, idle))}: raise placement.lanes_total or start fewer ranks")
    return found


def idle_rules(rules: Sequence[Rule], ranks: Sequence[RankInfo], ruled: Sequence[Rule | None]) -> list[str]:
    """Rules that steer nobody."""
    used, found = {rule.where for rule in ruled if rule}, []
    hosts = ", ".join(dict.fromkeys(info.host for info in ranks[1:]))
    for rule in rules:
        if rule.where not in used:
            hidden = any(rule.matches(info.rank, info.host) for info in ranks[1:])
            reason = "rules before it match the same workers" if hidden else f"workers are ranks 1-{len(ranks) - 1} on {hosts}"
            found.append(f"{rule.where} matches no worker: {reason}")
    return found

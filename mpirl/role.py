"""What a rank is: the learner, or a worker. Every rank takes its role from the same config and the same plan."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch

from mpirl import seeds
from mpirl.acting import Actor
from mpirl.agreement import agree
from mpirl.archive.base import ArchiveWriter
from mpirl.assembly import LazyEmulator, agree_on_emulator, agree_on_model, agree_on_precision, draw_noise
from mpirl.build import build
from mpirl.central import LOCAL, add_acting, central_of, emulator_maker
from mpirl.checkpoint import Checkpoints
from mpirl.device import DeviceBatch, PublishedWeights, autocast_for, compile_model, pinned
from mpirl.emulators.base import EmulatorBatch
from mpirl.emulators.lanes import make_emulator
from mpirl.episodes import EpisodeTracker, first_episodes
from mpirl.errors import UserError
from mpirl.inheritance import initialize
from mpirl.learner import Learner
from mpirl.models.base import Model
from mpirl.models.sharing import use_threads
from mpirl.plan import Plan, make_plan, plan_alone
from mpirl.rankinfo import RankInfo
from mpirl.trajectory import Layout, Trajectory
from mpirl.transport.base import Group
from mpirl.weights import FlatWeights, ReceivedWeights
from mpirl.turns import Turns
from mpirl.worker import Lanes, Worker

Player = Union[Worker, Turns, Actor]
EVALUATION_STEPS = 32


@dataclass
class Role:
    """One rank's parts. learner and checkpoints on rank 0; worker, evaluator and trajectory elsewhere.

    weights: the broadcast's buffer, float32 [P] or, with wire.weights=bf16, uint16 [P]. lanes: of every rank.
    """

    plan: Plan
    layout: Layout
    precision: str
    weights: np.ndarray
    episodes_per_lane: int
    learner: Learner | None = None
    worker: Player | None = None
    evaluator: Player | None = None
    trajectory: Trajectory | None = None
    checkpoints: Checkpoints | None = None
    is_central: bool = False

    @property
    def published(self) -> np.ndarray:
        """What is broadcast: the weights, or nothing where rank 0 acts for all."""
        return np.empty(0, np.float32) if self.is_central else self.weights

    @property
    def lanes(self) -> tuple[int, ...]:
        return self.plan.lanes

    @property
    def staging(self) -> Trajectory | None:
        """On rank 0, what the gather fills."""
        return self.learner.staging if self.learner else None

    def close(self) -> None:
        """Bring the archive to disk, close the emulators."""
        for part in (self.learner, self.worker, self.evaluator):
            if part:
                part.close()


def plan_world(config: Mapping[str, Any], group: Group) -> Plan:
    """* Exchange what every rank sees of itself, plan, and take this rank's cores and GPUs."""
    ranks = group.exchange(RankInfo.here(group.rank, group.host))
    is_alone = group.size == 1 and config["program"] == "offline"  # nobody has to play
    settings = config["placement"]
    plan, _ = agree(group, lambda: plan_alone(*ranks, settings) if is_alone else make_plan(ranks, settings))
    agree(group, lambda: take_seat(plan, group.rank))
    group.patient = plan.patient[group.rank]
    return plan


def take_seat(plan: Plan, rank: int) -> None:
    """Bind this rank to its cores, and let the libraries and simulators of a worker see its GPUs only."""
    if plan.bound[rank]:
        try:
            os.sched_setaffinity(0, plan.cores[rank])
        except OSError as error:
            raise UserError(
                f"cores {list(plan.cores[rank])} cannot be had on {plan.hosts[rank]} ({error.strerror}): "
                "mend the cores in placement.rules, or write placement.bind=launcher"
            ) from error
    has_process = threading.current_thread() is threading.main_thread()  # else it shares the learner's
    if plan.gpus[rank] is not None and has_process:
        os.environ["CUDA_VISIBLE_DEVICES"] = plan.gpus[rank]


def take_role(
    config: Mapping[str, Any],
    group: Group,
    plan: Plan,
    state: Mapping[str, Any] | None = None,
    open_archive: Callable[[Layout], ArchiveWriter | None] = lambda layout: None,
    say: Callable[[str], None] = lambda text: None,
) -> Role:
    """* Build this rank's parts. On rank 0, `state` is a checkpoint's to go on from, and `open_archive` makes the writer.

    `say` takes lines for this rank's log.
    Mistakes in the config that a rank meets here are raised on all ranks alike.
    """
    central = agree(group, lambda: central_of(config))[0]
    make = emulator_maker(central, plan.lanes, group.rank) if central else make_emulator
    emulator, specs = agree_on_emulator(config, group, plan, make)
    model, layout, plan = agree_on_model(config, group, plan, specs)
    threads = threads_of(group.rank, plan, config["schedule"]["lag"])
    threads()
    device, precision = agree_on_precision(config, group, model, specs)
    last_id = group.exchange(state["episodes"]["last_id"] if state else [])[0]
    memory = group.room(layout.table(), plan.lanes, config["wire"]["gather"])
    role = Role(plan, layout, precision, np.empty(0), -(-config["evaluation"]["episodes"] // plan.lanes_total))
    if group.rank:
        role.trajectory = Trajectory(layout, memory) if memory else Trajectory.allocate(layout, plan.lanes[group.rank])
    if group.rank == 0:
        agree(group, lambda: add_learner(role, config, group, model, device, threads, state, open_archive))
    else:
        agree(group, lambda: None if central else add_worker(role, config, group, emulator, model, threads, last_id, say))
    if central:
        index = first_episodes(last_id, plan.lanes_total)
        short = Trajectory.allocate(replace(layout, steps=EVALUATION_STEPS), plan.lanes[group.rank])
        add_acting(role, config, group, central, emulator, model, device, threads, index, short, say)
    return role


def threads_of(rank: int, plan: Plan, lag: int = 0) -> Callable[[], None]:
    """What sets a rank's threads. With lag, the workers beside the learner are at work while it learns."""
    if rank:
        return partial(torch.set_num_threads, plan.threads[rank])
    return partial(use_threads, plan.threads[0], busy=plan.beside_learner if lag else 0)


def add_learner(
    role: Role,
    config: Mapping[str, Any],
    group: Group,
    model: Model,
    device: torch.device,
    threads: Callable[[], None],
    state: Mapping[str, Any] | None,
    open_archive: Callable[[Layout], ArchiveWriter | None],
) -> None:
    """Rank 0's parts."""
    layout, plan = role.layout, role.plan
    autocast = autocast_for(device, role.precision)
    if config["compile"]:
        compile_model(model)
    weights = PublishedWeights(FlatWeights(model.to(device)), config["wire"]["weights"])
    role.checkpoints = Checkpoints(Path(config["run_dir"]) / "checkpoints", config["checkpoint"]["keep"])
    batches = [Trajectory.allocate(layout, plan.lanes_total, pinned(device)) for _ in range(1 + config["schedule"]["lag"])]
    role.learner = Learner(
        algorithm=build(config["algorithm"], "algorithm", model=model, specs=layout.specs),
        weights=weights,
        batches=[DeviceBatch(batch, model, device, autocast) for batch in batches],
        archive=open_archive(layout),
        episodes=EpisodeTracker(plan.lane_rank),
        run_seed=config["seed"],
        total_steps=config["total_steps"],
        begin=threads,
    )
    begin_learning(role, config, group, weights, state)


def begin_learning(
    role: Role, config: Mapping[str, Any], group: Group, weights: PublishedWeights, state: Mapping[str, Any] | None
) -> None:
    """On rank 0: load what the learner starts from (`state` is a checkpoint's), and publish its weights."""
    assert role.learner is not None
    if state:
        role.learner.load_state_dict(state)
    elif config["init_from"]:
        initialize(weights, config)
    group.stopwatch = role.learner.times
    role.weights = weights.array


def add_worker(
    role: Role,
    config: Mapping[str, Any],
    group: Group,
    emulator: EmulatorBatch | None,
    model: Model,
    threads: Callable[[], None],
    last_id: list[int],
    say: Callable[[str], None],
) -> None:
    """A worker's parts. The evaluator has lanes of its own, made when first needed."""
    assert emulator is not None
    layout, plan, num_lanes = role.layout, role.plan, role.plan.lanes[group.rank]
    weights = ReceivedWeights(FlatWeights(model), config["wire"]["weights"])
    node = LOCAL if central_of(config) else config.get("policy") or LOCAL  # offline training evaluates on the workers
    autocast = autocast_for(torch.device("cpu"), role.precision)
    policy = build(node, "policy", model=model, autocast=autocast, extras=tuple(layout.extras))
    first = plan.first_lane(group.rank)
    index = first_episodes(last_id, plan.lanes_total)[first : first + num_lanes]
    lanes = Lanes(first, plan.lanes_total, index, config["seed"], emulator.reseed_every)

    def begin() -> None:
        threads()
        weights.load()
        policy.refresh()

    make_worker = partial(Worker, policy=policy, begin=begin, alive=group.heartbeat)
    if role.trajectory is None:
        role.trajectory = Trajectory.allocate(layout, num_lanes)
    noise = partial(draw_noise, model.distribution)
    role.worker = make_worker(emulator, trajectory=role.trajectory, lanes=lanes, noise=noise, say=say)
    short = replace(layout, steps=EVALUATION_STEPS)
    role.evaluator = make_worker(
        LazyEmulator(emulator, lambda: make_emulator(config, num_lanes, plan.emulator[group.rank])),
        trajectory=Trajectory.allocate(short, num_lanes),
        lanes=replace(lanes, index=np.zeros(num_lanes, np.int64), stream=seeds.EVALUATION),
        noise=None,
    )
    role.weights = weights.array

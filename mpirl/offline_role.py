"""What a rank is in offline training: the learner with its archives, or a worker that evaluates where it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpirl.agreement import agree
from mpirl.algorithms.base import OfflineAlgorithm
from mpirl.archive.survey import Survey, survey
from mpirl.archive.windows import EXTRAS, REASONS, Purpose, Use, Windows, find_windows
from mpirl.assembly import agree_on_model, agree_on_precision
from mpirl.build import build
from mpirl.checkpoint import Checkpoints
from mpirl.device import DeviceBatch, PublishedWeights, autocast_for, pinned
from mpirl.emulators.base import EmulatorBatch
from mpirl.emulators.lanes import make_emulator
from mpirl.episodes import EpisodeTracker
from mpirl.errors import AgreedError, UserError
from mpirl.models.base import Model
from mpirl.offline_learner import OfflineLearner, Reading
from mpirl.plan import Plan
from mpirl.role import Role, add_worker, begin_learning, threads_of
from mpirl.specs import Specs
from mpirl.trajectory import Layout, Trajectory
from mpirl.transport.base import Group
from mpirl.weights import FlatWeights, ReceivedWeights

Config = Mapping[str, Any]


@dataclass
class OfflineRole(Role):
    """A role in offline training. can_evaluate: whether all workers have emulators."""

    can_evaluate: bool = False

    @property
    def offline_learner(self) -> OfflineLearner | None:
        assert self.learner is None or isinstance(self.learner, OfflineLearner)
        return self.learner


def take_offline_role(
    config: Config,
    group: Group,
    plan: Plan,
    state: Mapping[str, Any] | None = None,
    open_archive: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> OfflineRole:
    """* Build this rank's parts, as `role.take_role` does. The specs are the archive's; the run writes none of its own."""
    found = agree(group, lambda: None if group.rank else survey(config["offline"]["archive"], group.heartbeat))[0]
    specs = group.exchange(found.specs if found else None)[0]
    emulator, can_evaluate = agree_on_evaluation(config, group, plan, specs)
    model, layout, plan = agree_on_model(config, group, plan, specs)
    threads = threads_of(group.rank, plan)
    threads()
    device, precision = agree_on_precision(config, group, model, specs)
    per_lane = -(-config["evaluation"]["episodes"] // max(1, plan.lanes_total))
    role = OfflineRole(plan, layout, precision, np.empty(0), per_lane, can_evaluate=can_evaluate)
    if group.rank == 0:
        agree(group, lambda: add_learner(role, config, group, model, device, threads, state, found, say))
    elif can_evaluate:
        agree(group, lambda: add_worker(role, config, group, emulator, model, threads, [], say))
    else:
        agree(group, lambda: None)
        role.weights = ReceivedWeights(FlatWeights(model), config["wire"]["weights"]).array
    return role


def agree_on_evaluation(config: Config, group: Group, plan: Plan, specs: Specs) -> tuple[EmulatorBatch | None, bool]:
    """* This worker's emulators, and whether all workers have theirs; where not, rank 0 says why."""
    if not config["offline"]["evaluate_every"]:
        return None, False
    specs_of = lambda made: made.specs if isinstance(made, EmulatorBatch) else made
    emulator, reports = agree(group, lambda: try_emulator(config, group, plan), specs_of)
    missing = {rank: report for rank, report in enumerate(reports) if isinstance(report, str)}
    if missing or group.size == 1:
        rank = min(missing, default=0)
        why = f"rank {rank} on {plan.hosts[rank]}: {missing[rank]}" if missing else "the learner is alone, start more ranks"
        if group.rank == 0:
            print(f"no evaluation: {why}", flush=True)
        return None, False
    for rank, other in enumerate(reports):
        if rank and other != specs:
            raise AgreedError(
                f"the archive is not of this emulator: it has {specs}, the emulator on rank {rank} has {other}; choose the "
                "archive's with emulator=..., or evaluate nothing with offline.evaluate_every=0"
            )
    return emulator, True


def try_emulator(config: Config, group: Group, plan: Plan) -> EmulatorBatch | str | None:
    """A worker's emulators, or why it cannot have them: their package is not installed."""
    if group.rank == 0:
        return None
    try:
        return make_emulator(config, plan.lanes[group.rank], plan.emulator[group.rank])
    except (ImportError, UserError) as error:
        if not isinstance(error, ImportError) and not isinstance(error.__cause__, ImportError):
            raise
        return str(error)


def add_learner(
    role: OfflineRole,
    config: Config,
    group: Group,
    model: Model,
    device: torch.device,
    threads: Callable[[], None],
    state: Mapping[str, Any] | None,
    found: Survey,
    say: Callable[[str], None],
) -> None:
    """Rank 0's parts."""
    weights = PublishedWeights(FlatWeights(model.to(device)), config["wire"]["weights"])
    algorithm = build(config["algorithm"], "algorithm", model=model, specs=role.layout.specs)
    if not isinstance(algorithm, OfflineAlgorithm):
        name = type(algorithm).__name__
        raise UserError(f"{name} cannot learn from an archive: choose algorithm=bc, filtered_bc or awr with program=offline")
    reading = make_reading(config["offline"], found, algorithm, role.layout, group.heartbeat)
    for text in describe(found, reading, algorithm):
        print(text, flush=True)
        say(text)
    batch = Trajectory.allocate(reading.layout, reading.lanes, pinned(device))
    role.checkpoints = Checkpoints(Path(config["run_dir"]) / "checkpoints", config["checkpoint"]["keep"])
    role.learner = OfflineLearner(
        reading,
        algorithm=algorithm,
        weights=weights,
        batches=[DeviceBatch(batch, model, device, autocast_for(device, role.precision))],
        episodes=EpisodeTracker(role.plan.lane_rank),
        run_seed=config["seed"],
        begin=threads,
    )
    begin_learning(role, config, group, weights, state)


def make_reading(
    settings: Config, found: Survey, algorithm: OfflineAlgorithm, layout: Layout, alive: Callable[[], None]
) -> Reading:
    """What is read for this algorithm. settings: the config's node `offline`."""
    if clash := EXTRAS.keys() & found.specs.extras.keys():
        raise UserError(f"the emulator's extras {', '.join(sorted(clash))} have names that offline training needs: rename them")
    chosen = algorithm.choose(found.episodes)
    purpose = Purpose(chosen, settings["validation"], layout.context, algorithm.gamma, algorithm.reward_clip)
    windows = find_windows(found, purpose, alive)
    if not windows.totals[Use.TRAINING]:
        places = ", ".join(map(str, found.archives))
        raise UserError(f"nothing to learn from in {places}: {'; '.join(describe_totals(windows, algorithm))}")
    lanes = max(1, min(settings["steps_per_iteration"] // found.steps, windows.count))
    read = Layout(found.specs, found.steps, layout.context, extras=EXTRAS)
    return Reading(windows, read, lanes, settings["buffer_steps"] // found.steps, settings["epochs"])


def describe(found: Survey, reading: Reading, algorithm: OfflineAlgorithm) -> list[str]:
    """What will be learned from, in words."""
    returns = found.episodes["return"]
    mean = f", mean return {returns.mean():.2f}, best {returns.max():.2f}" if len(returns) else ""
    places = ", ".join(map(str, found.archives))
    head = f"archive {places}: {len(found.parts)} segments, {len(returns):,} finished episodes{mean}"
    return [head, "  steps: " + ", ".join(describe_totals(reading.windows, algorithm))]


def describe_totals(windows: Windows, algorithm: OfflineAlgorithm) -> list[str]:
    reasons = {Use.TRAINING: "to learn from", **REASONS, Use.LEFT_OUT: algorithm.left_out}
    there = [use for use in reasons if windows.totals[use] or use == Use.TRAINING]
    return [f"{windows.totals[use]:,} {reasons[use]}" for use in there]

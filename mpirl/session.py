"""A training run from start to end, around the loop."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mpirl
from mpirl import checkpoint
from mpirl.agreement import agree
from mpirl.archive.base import ArchiveWriter
from mpirl.errors import UserError
from mpirl.identity import Identity, check_alike, config_hash, user_modules
from mpirl.loop import train
from mpirl.milestones import Milestones
from mpirl.observers.base import Observer, Outcome
from mpirl.observers.console import Console
from mpirl.observers.first import FirstIteration
from mpirl.observers.log import Log
from mpirl.observers.status import Status
from mpirl.observers.tensorboard import TensorBoard
from mpirl.plan import Plan
from mpirl.rearguard import rearguard
from mpirl.role import Role, plan_world, take_role
from mpirl.rundir import RunDirectory, close_log, open_log
from mpirl.schedule import Schedule, Signals
from mpirl.trajectory import Layout
from mpirl.transport.base import Group

Config = Mapping[str, Any]


def run_training(
    config: Config,
    text: str,
    group: Group,
    take: Callable[..., Role] = take_role,
    schedule_of: Callable[[Config, Role], Schedule] | None = None,
    loop: Callable[..., None] = train,
) -> None:
    """* Train from start, or from the latest checkpoint with resume=true, until the schedule stops the run.

    take, schedule_of, loop: what stands for `take_role`, `make_schedule` and `train` in another kind of training.
    """
    directory = RunDirectory(Path(config["run_dir"]))
    plan = plan_world(config, group)
    group.milestones.reach("plan")
    identity = check_identity(config, group, plan)
    state = agree(group, lambda: open_run(directory, config, text) if group.rank == 0 else None)[0]
    group.milestones.reach("identity and run directory")
    log = open_log(directory.logs, group.rank, {**facts(plan, group), **identity.as_dict()})
    role, observers = None, []
    try:
        archive = lambda layout: open_archive(directory, config, plan, identity, layout)
        role = take(config, group, plan, state, archive, log.info)
        schedule = (schedule_of or make_schedule)(config, role)
        if role.learner:
            directory.keep(text)
            observers = make_observers(directory, config, role, identity, log, group.milestones)
            introduce(config, role, state)
            if state and role.learner.algorithm.replay_size:
                refill(role, directory)
        group.started(config["deadline"])
        group.milestones.reach("all parts")
        log.info("startup: %s", json.dumps(group.milestones.as_dict()))
        with rearguard(role.learner, role.checkpoints, directory, os.environ) as guards, signals(schedule, group):
            loop(role, group, schedule, [*observers, *guards])
            finish(role, schedule, observers, directory)
        log.info("end")
    except BaseException as error:
        log.exception("failed")
        rescue(role, observers, error)
        directory.discard()
        raise
    finally:
        close_log(log)
        directory.release()


def check_identity(config: Config, group: Group, plan: Plan) -> Identity:
    """* This rank's versions and hashes, after they were found to be those of all; rank 0 warns of what differs harmlessly."""
    mine = Identity.here(group.library, config_hash(config), user_modules(config))
    identities = group.exchange(mine)
    found, _ = agree(group, lambda: check_alike(identities, plan.hosts, config["allow_differences"]))
    for warning in found if group.rank == 0 else ():
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return mine


def open_run(directory: RunDirectory, config: Config, text: str) -> dict[str, Any] | None:
    """Rank 0: take the run directory; the state to resume from, if any."""
    from mpirl.archive.resume import resume_at  # h5py, which only rank 0 needs

    if not config["resume"]:
        directory.create(text, config["overwrite"])
        return None
    directory.resume()
    if config["resume"] == "auto" and not checkpoint.numbered(directory.checkpoints):
        aside = resume_at(directory.archive, 0)
        print(f"started {directory.path} anew: it has no checkpoint; {aside} iterations of its archive set aside", flush=True)
        return None
    path, state = checkpoint.load(directory.checkpoints)
    aside = resume_at(directory.archive, state["iteration"])
    set_aside = f"; {aside} later iterations of the archive set aside in {directory.archive}" if aside else ""
    print(
        f"resumed {directory.path} from {path}: iteration {state['iteration']}, {state['steps']:,} steps, "
        f"weights version {state['version']}{set_aside}",
        flush=True,
    )
    return state


def make_schedule(config: Config, role: Role) -> Schedule:
    evaluate_every, save_every = config["evaluation"]["every"], config["checkpoint"]["every"]
    return Schedule(config["total_steps"], evaluate_every, save_every, config["max_time"], config["schedule"]["lag"])


def open_archive(
    directory: RunDirectory, config: Config, plan: Plan, identity: Identity, layout: Layout
) -> ArchiveWriter | None:
    """Rank 0: the writer of the run's archive, None where it is switched off."""
    from mpirl.archive.writer import SegmentWriter  # h5py, which only rank 0 needs

    settings = {key: value for key, value in config["archive"].items() if key != "enabled"}
    if not config["archive"]["enabled"]:
        return None
    header = {
        "config": config,
        "seed": config["seed"],
        "lane_rank": plan.lane_rank,
        "lane_host": [plan.hosts[rank] for rank in plan.lane_rank],
        "rank_emulator": [dict(changes) for changes in plan.emulator],
        "versions": {name: value for name, value in identity.as_dict().items() if value is not None},
    }
    return SegmentWriter(directory.archive, layout, header, **settings)


def make_observers(
    directory: RunDirectory, config: Config, role: Role, identity: Identity, log: logging.Logger, milestones: Milestones
) -> list[Observer]:
    """Rank 0: those who watch the run."""
    assert role.learner is not None
    header = {
        "run_dir": str(directory.path.resolve()),
        "name": config["name"],
        "trial": str(config["trial"]),
        "pid": os.getpid(),
        "version_of_mpirl": mpirl.__version__,
        "identity": identity.as_dict(),
        "hosts": list(role.plan.hosts),
        "lanes": list(role.plan.lanes),
        "threads": list(role.plan.threads),
        "precision": role.precision,
        "weights_bytes": role.weights.nbytes,
        "batch_bytes": role.learner.batch.nbytes,
        "resumed_at_iteration": role.learner.iteration,
        "warnings": list(role.plan.warnings),
        "startup": milestones.as_dict(),
    }
    return [
        FirstIteration(milestones),
        Status(directory.status, header),
        Log(log.info),
        TensorBoard(directory.path, purge_step=role.learner.steps + 1 if role.learner.iteration else None),
        Console(every=config["console"]["every"]),
    ]


def introduce(config: Config, role: Role, state: Mapping[str, Any] | None) -> None:
    """Rank 0: say what runs where, and what should be mended."""
    plan = role.plan
    hosts = len(set(plan.hosts))
    print(
        f"mpirl {mpirl.__version__}: {config['name']}/{config['trial']} in {config['run_dir']}, {len(plan.lanes)} ranks on "
        f"{hosts} host{'s' if hosts > 1 else ''}, {plan.lanes_total} lanes x {config['steps']} steps, "
        f"{len(role.weights):,} weights, {role.precision}, learner threads {plan.threads[0]}",
        flush=True,
    )
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def refill(role: Role, directory: RunDirectory) -> None:
    """Rank 0, when a run goes on: fill the algorithm's replay buffer from the archive."""
    from mpirl.archive.latest import latest  # h5py, which only rank 0 needs

    assert role.learner is not None
    wanted = role.learner.algorithm.replay_size
    try:
        found = role.learner.refill(latest(directory.archive, wanted, role.layout))
    except UserError as error:
        found = 0
        print(f"warning: {error}", file=sys.stderr, flush=True)
    rest = "" if found else ": play fills it anew"
    print(f"replay buffer: {found:,} of {role.learner.steps:,} steps taken from the archive{rest}", flush=True)


def finish(role: Role, schedule: Schedule, observers: list[Observer], directory: RunDirectory) -> None:
    """The orderly end: save, bring everything to disk, and write the completion marker last."""
    if role.learner and role.checkpoints and role.learner.iteration:
        role.checkpoints.save(role.learner)
    role.close()
    outcome = Outcome("finished" if schedule.finished else "stopped", schedule.stop_reason or "")
    for observer in observers:
        observer.close(outcome)
    if role.learner and schedule.finished:
        directory.complete(f"iteration {role.learner.iteration}, {role.learner.steps} steps")


def rescue(role: Role | None, observers: list[Observer], error: BaseException) -> None:
    """After a failure: bring to disk what there is; what fails here must not hide the error itself."""
    for rescued in [role.close] if role else []:
        attempt(rescued)
    outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    for observer in observers:
        attempt(lambda observer=observer: observer.close(outcome))


def attempt(action) -> None:
    try:
        action()
    except Exception as error:
        print(f"mpirl: while ending: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def signals(schedule: Schedule, group: Group):
    """Signals are for main threads; where ranks are threads, rank 0 has it."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return Signals(schedule if group.rank == 0 else None)


def facts(plan: Plan, group: Group) -> dict[str, Any]:
    """What a rank's log says first."""
    rank = group.rank
    return {
        "rank": rank,
        "role": "worker" if rank else "learner",
        "host": group.host,
        "pid": os.getpid(),
        "lanes": plan.lanes[rank],
        "threads": plan.threads[rank],
    }


"""The programs: a training run and an evaluation from start to end, around the loop."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mpirl
from mpirl import checkpoint
from mpirl.agreement import agree
from mpirl.archive.base import ArchiveWriter
from mpirl.archive.writer import SegmentWriter, resume_at
from mpirl.evaluation import evaluate
from mpirl.loop import train
from mpirl.observers.base import Observer, Outcome
from mpirl.observers.console import Console
from mpirl.observers.log import Log
from mpirl.observers.status import Status, replace_file
from mpirl.observers.tensorboard import TensorBoard
from mpirl.placement import Plan
from mpirl.role import Role, plan_world, take_role
from mpirl.rundir import RunDirectory, close_log, open_log
from mpirl.schedule import Command, Schedule, Signals
from mpirl.trajectory import Layout
from mpirl.transport.base import Group

Config = Mapping[str, Any]


def run_training(config: Config, text: str, group: Group) -> None:
    """* Train from start, or from the latest checkpoint with resume=true, until the schedule stops the run."""
    directory = RunDirectory(Path(config["run_dir"]))
    plan = plan_world(config, group)
    state = agree(group, lambda: open_run(directory, config, text) if group.rank == 0 else None)[0]
    log = open_log(directory.logs, group.rank, facts(plan, group))
    role, observers = None, []
    try:
        role = take_role(config, group, plan, state, lambda layout: open_archive(directory, config, plan, layout), log.info)
        schedule = make_schedule(config)
        if role.learner:
            directory.keep()
            observers = make_observers(directory, config, role, log)
            introduce(config, role, state)
        with signals(schedule, group):
            train(role, group, schedule, observers)
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


def open_run(directory: RunDirectory, config: Config, text: str) -> dict[str, Any] | None:
    """Rank 0: take the run directory; the state to resume from, if any."""
    if not config["resume"]:
        directory.create(text, config["overwrite"])
        return None
    directory.resume()
    path, state = checkpoint.load(directory.checkpoints)
    aside = resume_at(directory.archive, state["iteration"]) if directory.archive.is_dir() else 0
    set_aside = f"; {aside} later iterations of the archive set aside in {directory.archive}" if aside else ""
    print(
        f"resumed {directory.path} from {path}: iteration {state['iteration']}, {state['steps']:,} steps, "
        f"weights version {state['version']}{set_aside}",
        flush=True,
    )
    return state


def make_schedule(config: Config) -> Schedule:
    return Schedule(config["total_steps"], config["evaluation"]["every"], config["checkpoint"]["every"], config["max_time"])


def open_archive(directory: RunDirectory, config: Config, plan: Plan, layout: Layout) -> ArchiveWriter | None:
    """Rank 0: the writer of the run's archive, None where it is switched off."""
    settings = {key: value for key, value in config["archive"].items() if key != "enabled"}
    if not config["archive"]["enabled"]:
        return None
    header = {
        "config": config,
        "seed": config["seed"],
        "lane_rank": plan.lane_rank,
        "lane_host": [plan.hosts[rank] for rank in plan.lane_rank],
    }
    return SegmentWriter(directory.archive, layout, header, **settings)


def make_observers(directory: RunDirectory, config: Config, role: Role, log: logging.Logger) -> list[Observer]:
    """Rank 0: those who watch the run."""
    assert role.learner is not None
    header = {
        "run_dir": str(directory.path.resolve()),
        "name": config["name"],
        "trial": str(config["trial"]),
        "pid": os.getpid(),
        "version_of_mpirl": mpirl.__version__,
        "hosts": list(role.plan.hosts),
        "lanes": list(role.plan.lanes),
        "threads": list(role.plan.threads),
        "precision": role.precision,
        "resumed_at_iteration": role.learner.iteration,
        "warnings": list(role.plan.warnings),
    }
    return [
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


def run_evaluation(config: Config, text: str, group: Group) -> None:
    """* Play greedy episodes with a saved run's weights; rank 0 prints the statistics and writes evaluation.json."""
    directory = RunDirectory(Path(config["run_dir"]))
    plan = plan_world(config, group)
    which = str(config["evaluation"]["checkpoint"])
    loaded = agree(group, lambda: checkpoint.load(directory.checkpoints, which) if group.rank == 0 else None)[0]
    role = take_role(config, group, plan, loaded[1] if loaded else None)
    group.broadcast(role.weights)
    result = evaluate(role, group, Command(iteration=0, version=0))
    role.close()
    if loaded and result:
        path, state = loaded
        print(
            f"evaluated {path} ({state['steps']:,} steps): mean return {result['mean_reward']:.2f} +- "
            f"{result['std_reward']:.2f} over {result['episodes']} greedy episodes, mean length {result['mean_ep_length']:.1f}",
            flush=True,
        )
        content = {"checkpoint": str(path), "steps": state["steps"], "iteration": state["iteration"], **result}
        replace_file(directory.path / "evaluation.json", json.dumps(content, indent=2) + "\n")


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


PROGRAMS = {"train": run_training, "evaluate": run_evaluation}

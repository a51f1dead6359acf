"""The programs: what all ranks do with a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpirl import checkpoint
from mpirl.agreement import agree
from mpirl.assembly import agree_on_emulator, agree_on_model, agree_on_precision
from mpirl.central import bytes_per_weight
from mpirl.evaluation import evaluate
from mpirl.files import write_json
from mpirl.role import plan_world, take_role
from mpirl.rundir import RunDirectory
from mpirl.schedule import Command
from mpirl.session import check_identity, run_training
from mpirl.table import describe_world
from mpirl.transport.base import Group
from mpirl.weights import FlatWeights

Config = Mapping[str, Any]
Program = Callable[[Config, str, Group], None]


def program(config: Config) -> Program:
    """What the config asks all ranks to do."""
    return show_world if config["dry_run"] else PROGRAMS[config["program"]]


def run_evaluation(config: Config, text: str, group: Group) -> None:
    """* Play greedy episodes with a saved run's weights; rank 0 prints the statistics and writes evaluation.json."""
    directory = RunDirectory(Path(config["run_dir"]))
    plan = plan_world(config, group)
    which = str(config["evaluation"]["checkpoint"])
    loaded = agree(group, lambda: checkpoint.load(directory.checkpoints, which) if group.rank == 0 else None)[0]
    role = take_role(config, group, plan, loaded[1] if loaded else None)
    group.started(config["deadline"])
    group.broadcast(role.published)
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
        write_json(directory.path / "evaluation.json", content)


def show_world(config: Config, text: str, group: Group) -> None:
    """* The program of dry_run=true: rank 0 prints what would run where and what it would move."""
    plan = plan_world(config, group)
    check_identity(config, group, plan)
    emulator, specs = agree_on_emulator(config, group, plan)
    model, layout, plan = agree_on_model(config, group, plan, specs)
    device, precision = agree_on_precision(config, group, model, specs)
    if emulator:
        emulator.close()
    if group.rank == 0:
        num_weights = FlatWeights(model).size
        title = f"{config['name']}/{config['trial']} would run in {config['run_dir']}"
        is_archived = config["archive"]["enabled"]
        settings = {"lag": config["schedule"]["lag"], "bytes_per_weight": bytes_per_weight(config)}
        print(describe_world(plan, layout, num_weights, title, f"{device}, {precision}", is_archived, **settings), flush=True)


def run_offline(config: Config, text: str, group: Group) -> None:
    """* Learn from an archive, as `run_training` does from play."""

    def load() -> tuple[Callable[..., Any], ...]:
        from mpirl.offline import learn_offline, make_schedule  # h5py, which a worker needs for nothing else
        from mpirl.offline_role import take_offline_role

        return take_offline_role, make_schedule, learn_offline

    run_training(config, text, group, *agree(group, load)[0])


PROGRAMS: Mapping[str, Program] = {"train": run_training, "evaluate": run_evaluation, "offline": run_offline}

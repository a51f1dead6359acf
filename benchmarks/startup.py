"""Seconds from the command to the end of the first iteration, and what they consist of.

Runs `mpirun -np RANKS python -m mpirl.main total_steps=1`, which is one iteration, as its users run it. Phases end at the
milestones that a run notes in its logs and in status.json (`mpirl/milestones.py`): seconds since the command, and
seconds of cores that the rank took for the phase, all its threads together. With more ranks than cores the latter decide.

    python benchmarks/startup.py --rounds 5                        # Pong and CartPole
    python benchmarks/startup.py --rounds 5 --ranks 9 emulator=atari_dqn emulator.game=breakout
    python benchmarks/startup.py --rounds 5 --other ../before      # in turn with another checkout, for the ratio

Other settings replace the two. Prints tables of medians and writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe_machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CASES = {"pong": [], "cartpole": ["emulator=cartpole"]}
MARK = "startup: "  # before the milestones in a rank's log
FIRST, WHOLE, CORES = "first iteration", "command", "core seconds of the command"


def main() -> None:
    arguments = parsed()
    cases = {" ".join(arguments.settings): arguments.settings} if arguments.settings else CASES
    checkouts = {"this": ROOT, **({"other": arguments.other} if arguments.other else {})}
    measured: dict[str, dict[str, list[Any]]] = {case: {name: [] for name in checkouts} for case in cases}
    for number in range(arguments.rounds):
        for case, settings in cases.items():
            for name, root in checkouts.items():
                found = measure(root, arguments.ranks, settings)
                measured[case][name].append(found)
                print(f"round {number + 1}: {case}, {name}: {told(found)}", flush=True)
    for case, runs in measured.items():
        print_tables(case, runs)
    results = {case: {name: summary(found) for name, found in runs.items()} for case, runs in measured.items()}
    write(arguments.output, results, arguments.ranks)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are taken over them")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--other", type=Path, help="the root of another checkout, measured in turn with this one")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "startup.json")
    parser.add_argument("settings", nargs="*", help="of the run, in place of the two cases")
    return parser.parse_args()


def measure(root: Path, ranks: int, settings: Sequence[str]) -> dict[str, Any]:
    """One run. seconds: from the command to its first iteration's end and to its own end, with its core seconds.

    phases: {rank: {phase: [seconds since the command, core seconds of the phase]}}, empty for a checkout without milestones.
    """
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [str(mpirun if mpirun.exists() else "mpirun"), "-np", str(ranks), "--map-by", ":OVERSUBSCRIBE"]
    command += ["--bind-to", "none", sys.executable, "-m", "mpirl.main", *settings, "total_steps=1"]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = {**os.environ, **allowed, "PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory(prefix="mpirl-startup-") as folder:
        directory, before, start = Path(folder) / "run", core_seconds(), time.time()
        first = None
        piped = dict(cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
        with subprocess.Popen([*command, f"run_dir={directory}"], **piped) as run:
            for line in run.stdout or ():
                if line.startswith("iteration 1 "):
                    first = time.time() - start
        seconds = {FIRST: first, WHOLE: time.time() - start, CORES: core_seconds() - before}
        if run.returncode or first is None:
            sys.exit(f"{' '.join(command)} in {root} ended with code {run.returncode}")
        return {"seconds": seconds, "phases": phases(directory, start)}


def core_seconds() -> float:
    """Seconds of cores that the commands took so far, the ranks that they started among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def phases(directory: Path, start: float) -> dict[str, dict[str, list[float]]]:
    """{"rank 0": {phase: [seconds since `start`, core seconds]}, ...}."""
    told = {f"rank {int(log.stem.removeprefix('rank-'))}": startup_of(log) for log in sorted(directory.glob("logs/rank-*.log"))}
    told["rank 0"] = json.loads((directory / "status.json").read_text()).get("startup")  # knows the first iteration too
    return {rank: rank_phases(startup, start) for rank, startup in told.items() if startup}


def startup_of(log: Path) -> dict[str, Any] | None:
    lines = [line for line in log.read_text().splitlines() if MARK in line]
    return json.loads(lines[-1].split(MARK, 1)[1]) if lines else None


def rank_phases(startup: dict[str, Any], start: float) -> dict[str, list[float]]:
    """mpirun's share comes first: until it has started the process."""
    born, before = startup["born"] - start, 0.0
    found = {"mpirun": [max(0.0, born), 0.0]}
    for name, seconds in startup["seconds"].items():
        used = startup["core_seconds"][name]
        found[name] = [born + seconds, used - before]
        before = used
    return found


def told(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["seconds"].items())


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the seconds of each."""
    names, ranks = found[0]["seconds"], found[0]["phases"]
    seconds = {name: [round(one["seconds"][name], 2) for one in found] for name in names}
    middle = lambda rank, phase, part: round(statistics.median(one["phases"][rank][phase][part] for one in found), 3)
    parts = {rank: {phase: [middle(rank, phase, part) for part in (0, 1)] for phase in ranks[rank]} for rank in ranks}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"median": medians, "seconds": seconds, "phases": parts}


def print_tables(case: str, runs: dict[str, list[Any]]) -> None:
    for name, found in runs.items():
        result = summary(found)
        ranks = list(result["phases"])
        head = " | ".join(f"{rank}: seconds | of cores" for rank in ranks)
        print(f"\n{case}, {name} checkout: {told({'seconds': result['median']})} (medians of {len(found)})")
        if ranks:
            print(f"\n| until | {head} |\n|---|{'---|' * 2 * len(ranks)}")
        for phase in result["phases"].get("rank 0", ()):
            cells = [result["phases"][rank].get(phase) for rank in ranks]
            print(f"| {phase} | {' | '.join(f'{cell[0]:.2f} | {cell[1]:.2f}' if cell else ' | ' for cell in cells)} |")
    if "other" in runs:
        for name in (FIRST, WHOLE, CORES):
            ratios = [there["seconds"][name] / here["seconds"][name] for here, there in zip(runs["this"], runs["other"])]
            print(f"{name}: the other takes {statistics.median(ratios):.2f} times as much (median of the rounds' ratios)")


def write(path: Path, results: dict[str, Any], ranks: int) -> None:
    content = {
        "command": "python benchmarks/startup.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "ranks": ranks,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

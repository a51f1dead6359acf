"""Measures broadcasts and gathers alone, in the world of all ranks: `mpirun -np N python benchmarks/messages.py JSON`.

JSON: {"weights": bytes of each broadcast, "steps": T of each gather, "lanes": per worker, "modes": of the gathers,
"turns": number}. Gathered are trajectories as of Atari. Prints JSON: for each a list of {"bytes", "seconds" of every
turn}; a turn begins when the last rank has arrived and ends when the last one has got, or given, everything. No torch,
so that many ranks start quickly.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import Layout, Trajectory
from mpirl.transport.base import Group
from mpirl.transport.mpi import world

ATARI = Specs(
    {"observation": ArraySpec((84, 84), "uint8")}, ArraySpec((), "int64", num_values=6), {"lives": ArraySpec((), "int32")}
)
CONTEXT = 3  # frames in front, for stacks of 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", type=json.loads, metavar="JSON", help="what to measure, see above")
    wanted = parser.parse_args().wanted
    group = world(deadline=600)
    group.patient = wanted.get("patient", True)
    found: dict[str, list[dict]] = {"broadcast": [], "gather": []}
    for size in wanted["weights"]:
        array = np.ones(size // 4, np.float32)
        found["broadcast"].append({"bytes": size, "seconds": turns(group, wanted["turns"], lambda: group.broadcast(array))})
    lanes = [0, *([wanted["lanes"]] * (group.size - 1))]
    for mode in wanted["modes"]:
        for steps in wanted["steps"]:
            found["gather"].append({"mode": mode, "steps": steps, **gathers(group, mode, lanes, steps, wanted["turns"])})
    if group.rank == 0:
        print(json.dumps({"ranks": group.size, **found}))
    group.close()


def gathers(group: Group, mode: str, lanes: list[int], steps: int, number: int) -> dict:
    layout = Layout(ATARI, steps, CONTEXT)
    memory = group.room(layout.table(), lanes, mode)
    part = Trajectory(layout, memory) if memory else Trajectory.allocate(layout, lanes[group.rank])
    for array in part.values():
        array[...] = 1  # pages that were never written are no real data
    whole = Trajectory.allocate(layout, sum(lanes)) if group.rank == 0 else None
    seconds = turns(group, number, lambda: group.gather(part if group.rank else None, whole, lanes))
    return {"bytes": whole.nbytes if whole else 0, "seconds": seconds}


def turns(group: Group, number: int, call: Callable[[], None]) -> list[float]:
    """Seconds of so many turns; the first two, in which memory is touched for the first time, are left out."""
    found = []
    for _ in range(number + 2):
        group.exchange(None)
        start = time.monotonic()  # one clock for all processes of a machine
        call()
        starts, ends = zip(*group.exchange((start, time.monotonic())))
        found.append(max(ends) - max(starts))
    return found[2:]


if __name__ == "__main__":
    main()

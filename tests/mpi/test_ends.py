"""mpirun is interrupted or terminated in the middle of an update: the run is saved, goes on from there, and nothing is left."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from launch import end, mpirun, start, survivors, wait_for

from mpirl.archive.reader import read_archive
from mpirl.checkpoint import load
from mpirl.trajectory import is_step

MAIN = ["-m", "mpirl.main"]
CATCH = ["emulator=catch", "algorithm.epochs=300"]
ATARI = ["emulator=atari_dqn", "steps=64", "placement.lanes_per_worker=2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_an_update_a_run_is_saved_and_goes_on(tmp_path, number):
    stop_at_random(tmp_path / "run", number, CATCH)
    iteration = check_saved(tmp_path / "run")
    check_goes_on(tmp_path / "run", iteration)


@pytest.mark.atari
def test_interrupted_in_an_update_of_atari_a_run_is_saved(tmp_path):
    stop_at_random(tmp_path / "run", signal.SIGINT, ATARI)
    check_saved(tmp_path / "run")


def test_stopped_between_fast_iterations_a_run_ends_in_order_or_is_saved(tmp_path):
    stop_at_random(tmp_path / "run", signal.SIGTERM, ["emulator=catch", "algorithm.epochs=1"])
    check_saved(tmp_path / "run")


def stop_at_random(directory: Path, number: int, settings: list[str]) -> None:
    """Start training, and send mpirun a signal at some moment after the second iteration; wait until all has ended."""
    process = start(3, [*MAIN, *settings, "total_steps=1e7", "checkpoint.every=0", f"run_dir={directory}"])
    try:
        wait_for(lambda: json.loads((directory / "status.json").read_text()).get("iteration", 0) >= 2, 120)
        time.sleep(random.uniform(0, 1.5))
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=30)
        wait_for(lambda: not processes(directory), 15)
        assert survivors(process, 2) == []
    finally:
        end(process)
    (directory / "stdout").write_text(stdout)


def check_saved(directory: Path) -> int:
    """Status, checkpoint, archive and marker of a run that was stopped; the iteration it was saved at."""
    status = json.loads((directory / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "signal SIGTERM")
    state = load(directory / "checkpoints")[1]
    shown = max(map(int, re.findall(r"^iteration (\d+) ", (directory / "stdout").read_text(), re.MULTILINE)))
    assert shown - 10 <= state["iteration"] == status["iteration"] >= 1  # a copy of 15 ms is taken every 1.5 s: 5 iterations here
    archived = read_archive(directory / "archive")
    num_steps = {iteration: int(is_step(batch["step_type"]).sum()) for iteration, _, batch in archived}
    assert list(num_steps) == list(range(1, len(num_steps) + 1))
    saved = sum(count for iteration, count in num_steps.items() if iteration <= state["iteration"])
    assert saved == state["steps"] == state["accounts"]["archived"] == state["accounts"]["learned"]
    assert not (directory / "COMPLETED").exists()
    return state["iteration"]


def check_goes_on(directory: Path, iteration: int) -> None:
    steps = load(directory / "checkpoints")[1]["steps"]
    result = mpirun(3, [*MAIN, "resume=true", f"run_dir={directory}", f"total_steps={steps + 300}", "algorithm.epochs=1"], 90)
    assert result.returncode == 0, result.stderr
    assert f"iteration {iteration}, {steps:,} steps" in result.stdout and f"iteration {iteration + 1} | " in result.stdout
    archived = [found for found, *_ in read_archive(directory / "archive")]
    assert archived == list(range(1, len(archived) + 1)) and len(archived) > iteration
    assert (directory / "COMPLETED").is_file()


def processes(directory: Path) -> list[int]:
    """Ids of the living processes that name a run directory in their command lines, in whatever session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"run_dir={directory}\0".encode() in path.read_bytes() + b"\0" and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # it has gone
            pass
    return found

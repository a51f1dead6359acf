"""Offline training under mpirun: the other ranks evaluate, and what is learned does not depend on how many there are."""

import json
import subprocess
import sys

import pytest
import torch
from launch import ROOT, environment, mpirun

MAIN = ["-m", "mpirl.main"]


def run(ranks, *arguments, env=None):
    """A run on MPI ranks, or without a launcher with ranks=0; what it printed."""
    if ranks:
        result = mpirun(ranks, [*MAIN, *arguments], 120, env)
    else:
        command = [sys.executable, *MAIN, *arguments]
        result = subprocess.run(command, env=environment(env), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "run"
    run(3, "emulator=catch", "total_steps=3000", f"run_dir={folder}")
    return folder


def weights_of(folder):
    return torch.load(sorted(folder.glob("checkpoints/0*.pt"))[-1], weights_only=True)["weights"]


def test_the_same_weights_come_out_under_mpi_in_one_process_and_alone(tmp_path, recorded):
    settings = ["program=offline", f"archive={recorded}", "algorithm=awr"]
    settings += ["offline.epochs=2", "offline.steps_per_iteration=1000"]
    said = run(3, *settings, f"run_dir={tmp_path}/mpi")
    run(0, *settings, f"run_dir={tmp_path}/threads")
    alone = run(1, *settings, f"run_dir={tmp_path}/alone")
    assert torch.equal(weights_of(tmp_path / "mpi"), weights_of(tmp_path / "threads"))
    assert torch.equal(weights_of(tmp_path / "mpi"), weights_of(tmp_path / "alone"))
    status = json.loads((tmp_path / "mpi/status.json").read_text())
    assert status["lanes"] == [0, 4, 4] and status["evaluation"]["episodes"] == 16
    assert "evaluation " in said and "no evaluation: the learner is alone" in alone


def test_one_command_goes_online(tmp_path, recorded):
    said = run(
        3, "program=offline_to_online", f"archive={recorded}", "algorithm=bc", "algorithm@online=ppo", "offline.epochs=1",
        "total_steps=500", f"run_dir={tmp_path}/run",
    )
    assert "began with the weights of" in said and (tmp_path / "run/COMPLETED").is_file()
    assert (tmp_path / "run-offline/COMPLETED").is_file()


def test_a_worker_that_fails_while_it_evaluates_ends_the_job(tmp_path, recorded):
    (tmp_path / "breaks.py").write_text(
        "from mpirl.emulators.catch import Catch\n"
        "class Breaks(Catch):\n    steps = 0\n    def step(self, action):\n        Breaks.steps += 1\n"
        "        if Breaks.steps > 50:\n            raise RuntimeError('the paddle broke')\n"
        "        return super().step(action)\n"
    )
    arguments = ["program=offline", f"archive={recorded}", "algorithm=bc", "emulator=catch", "emulator._target_=breaks.Breaks"]
    result = mpirun(3, [*MAIN, *arguments, f"run_dir={tmp_path}/run"], 60, {"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert result.returncode and "the paddle broke" in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"

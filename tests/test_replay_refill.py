"""A run with a replay buffer goes on from its archive: the buffer is what it was, and all ranks act on what DQN learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mpirl.archive.latest import latest
from mpirl.archive.reader import read_archive
from mpirl.assembly import make_model
from mpirl.build import build
from mpirl.device import DeviceBatch, PublishedWeights, autocast_for
from mpirl.emulators.catch import Catch
from mpirl.episodes import EpisodeTracker
from mpirl.learner import Learner
from mpirl.trajectory import Layout, Trajectory
from mpirl.weights import FlatWeights

CPU = torch.device("cpu")
NODE = {"_target_": "mpirl.algorithms.dqn.DQN", "buffer_size": 1000, "learning_starts": 64, "n_step": 3, "train_ratio": 0.1}


def make_learner(num_lanes: int = 4, steps: int = 16) -> tuple[Learner, Layout]:
    config = {"algorithm": NODE, "model": {"_target_": "mpirl.models.mlp.MLP", "frame_stack": 3}, "seed": 1, "steps": steps}
    specs = Catch().specs
    model, layout = make_model(config, specs)
    weights, batch = PublishedWeights(FlatWeights(model)), Trajectory.allocate(layout, num_lanes)
    return Learner(
        algorithm=build(NODE, "algorithm", model=model, specs=specs),
        weights=weights,
        batches=[DeviceBatch(batch, model, CPU, autocast_for(CPU, "fp32"))],
        archive=None,
        episodes=EpisodeTracker([1] * num_lanes),
        run_seed=1,
        total_steps=10_000,
    ), layout


NEW = ["emulator=catch", "algorithm=dqn", "~tuned", "steps=16"]


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "mpirl.main", *arguments]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DQN on Catch whose buffer holds less than its archive."""
    directory = tmp_path_factory.mktemp("played")
    settings = ["algorithm.buffer_size=1000", "algorithm.learning_starts=100", "algorithm.train_ratio=0.05", "model=mlp"]
    run(*NEW, f"run_dir={directory}/run", "total_steps=2000", "archive.segment_iterations=7", "model.frame_stack=3", *settings)
    return directory / "run"


def contents(learner: Learner) -> list[np.ndarray]:
    """What can be drawn, in order."""
    buffer = learner.algorithm.buffer
    rows = buffer.drawable()
    seen = [buffer.observe(places)["observation"].numpy() for places in (rows, buffer._next[rows])]
    return [*seen, buffer._action[rows], buffer._returns[rows], buffer._factor[rows], buffer.step_types(rows)]


def test_a_refilled_buffer_is_what_the_whole_run_left(played):
    (whole, layout), (resumed, _) = make_learner(), make_learner()
    archived = [(iteration, batch) for iteration, _, batch in read_archive(played / "archive")]
    whole.refill(archived)
    part = list(latest(played / "archive", resumed.algorithm.replay_size, layout))
    assert len(part) < len(archived)
    num_steps = resumed.refill(part)
    assert num_steps == resumed.algorithm.buffer.num_steps > 900
    for one, two in zip(contents(whole), contents(resumed)):
        np.testing.assert_array_equal(one, two)
        assert len(one) > 800


def test_a_resume_fills_the_buffer_from_the_archive_and_says_so(played):
    output = run(f"run_dir={played}", "resume=true", "total_steps=2400")
    assert "of 2,016 steps taken from the archive" in output and "play fills" not in output
    output = run(f"run_dir={played}", "program=evaluate")
    assert "replay buffer" not in output


def test_a_resume_without_an_archive_says_that_play_fills_the_buffer(tmp_path):
    run(*NEW, f"run_dir={tmp_path}/run", "archive.enabled=false", "algorithm.learning_starts=100", "total_steps=500")
    output = run(f"run_dir={tmp_path}/run", "resume=true", "total_steps=800")
    assert re.search(r"replay buffer: 0 of 5\d\d steps taken from the archive: play fills it anew", output)

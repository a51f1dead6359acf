"""Whole runs of `python -m mpirl.main`, in worlds of MPI ranks and of threads."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from launch import ROOT, environment, mpirun

from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.specs import StepType

MAIN = ["-m", "mpirl.main"]
COUNTING = ["emulator=catch", "~tuned", "name=counting", "~emulator.rows", "~emulator.columns", "~emulator.latency"]
COUNTING += ["emulator._target_=mpirl.testing.CountingEmulator", "+emulator.episode_length=7", "steps=16"]


def run(ranks: int, *arguments: str, env=None, timeout: float = 120) -> subprocess.CompletedProcess:
    """A run on MPI ranks, or with ranks=0 without a launcher; it must succeed."""
    if ranks:
        result = mpirun(ranks, [*MAIN, *arguments], timeout, env)
    else:
        command = [sys.executable, *MAIN, *arguments]
        result = subprocess.run(command, env=environment(env), cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def last_checkpoint(directory: Path) -> dict:
    return torch.load(sorted(directory.glob("checkpoints/0*.pt"))[-1], weights_only=True)


@pytest.mark.parametrize("emulator, lag", [("catch", 0), ("cartpole", 0), ("catch", 1)])
def test_same_seed_and_layout_give_the_same_weights_under_threads_and_mpi(tmp_path, emulator, lag):
    settings = [f"emulator={emulator}", "total_steps=2000", "seed=7", f"schedule.lag={lag}"]
    run(0, *settings, "ranks=3", f"run_dir={tmp_path}/threads")
    run(3, *settings, f"run_dir={tmp_path}/mpi")
    first, second = last_checkpoint(tmp_path / "threads"), last_checkpoint(tmp_path / "mpi")
    assert first["iteration"] == second["iteration"] > 5
    assert torch.equal(first["weights"], second["weights"])


@pytest.mark.parametrize(
    "ranks, lanes", [(2, "lanes_per_worker=3"), (3, "lanes=[1,3]"), (5, "lanes_total=3")], ids=["2 ranks", "3 unequal", "5 with a zero"]
)
def test_no_step_is_lost_or_doubled(tmp_path, ranks, lanes):
    run(ranks, *COUNTING, f"placement.{lanes}", "total_steps=500", f"run_dir={tmp_path}/run")
    accounts = json.loads((tmp_path / "run/status.json").read_text())["accounts"]
    batches = [batch for _, _, batch in read_archive(tmp_path / "run/archive")]
    steps = sum(int((batch["step_type"][:, :-1] != StepType.LAST).sum()) for batch in batches)
    assert accounts["collected"] == accounts["gathered"] == accounts["learned"] == accounts["archived"] == steps >= 500
    assert accounts["dropped"] == {}
    for lane in range(3 if ranks != 3 else 4):
        totals = np.concatenate([batch["observation"][lane, :-1, 1] for batch in batches])
        seams = np.concatenate([batch["step_type"][lane, :-1] == StepType.LAST for batch in batches])
        assert np.array_equal(np.diff(totals), (~seams[:-1]).astype(int))  # +1 at every step, +0 over a seam
        ids = np.concatenate([batch["episode"][lane, :-1] for batch in batches])
        assert np.array_equal(np.unique(ids) % batches[0].num_lanes, np.full(len(np.unique(ids)), lane))


def test_a_run_leaves_what_the_readme_says(tmp_path):
    result = run(3, "emulator=catch", "total_steps=3000", "evaluation.every=5", "checkpoint.every=4", f"run_dir={tmp_path}/run")
    directory = tmp_path / "run"
    for name in ("config.yaml", "status.json", "COMPLETED", "checkpoints/best.pt", "logs/rank-0000.log", "logs/rank-0002.log"):
        assert (directory / name).is_file(), name
    status = json.loads((directory / "status.json").read_text())
    assert status["state"] == "finished" and status["steps"] >= 3000 and status["evaluation"]["episodes"] >= 10
    lines = [line for line in result.stdout.splitlines() if line.startswith("iteration ")]
    assert len(lines) == status["iteration"] and "ETA" in lines[0] and "return" in lines[-1]
    assert "finished: total_steps reached" in result.stdout and f"collected {status['steps']:,} = gathered" in result.stdout
    assert len(list(directory.glob("checkpoints/0*.pt"))) == 3
    assert not list(directory.rglob("*.part")) + list(directory.rglob("*.tmp"))
    with h5py.File(segments(directory / "archive")[0]) as file:
        assert file["observation"].shape[1:] == (8, 33, 10, 5)


def test_a_run_directory_is_refused_resumed_or_replaced(tmp_path):
    settings = ["emulator=catch", "checkpoint.every=3", f"run_dir={tmp_path}/run"]
    run(3, *settings, "total_steps=1000")
    first = last_checkpoint(tmp_path / "run")
    refused = mpirun(3, [*MAIN, *settings])
    assert refused.returncode and refused.stderr.count("resume=true") == 1 and "Traceback" not in refused.stderr
    resumed = run(3, *settings, "total_steps=2000", "resume=true")
    assert resumed.stdout.splitlines()[0].startswith("resumed ") and f"iteration {first['iteration']}" in resumed.stdout.splitlines()[0]
    second = last_checkpoint(tmp_path / "run")
    assert second["steps"] >= 2000 and second["version"] == second["iteration"] > first["iteration"]
    assert_archive_is_seamless(tmp_path / "run/archive", second)
    run(3, "resume=true", f"run_dir={tmp_path}/run")  # what the last resume changed is the run's own now
    assert last_checkpoint(tmp_path / "run")["steps"] == second["steps"]
    run(3, *settings, "total_steps=500", "overwrite=true")
    assert last_checkpoint(tmp_path / "run")["steps"] < 1000


def assert_archive_is_seamless(archive: Path, state: dict) -> None:
    """Iterations 1, 2, 3, ... once each; no episode id in two places; as many steps as the accounts say."""
    iterations, steps, open_ids, closed = [], 0, {}, set()
    for iteration, _, batch in read_archive(archive):
        iterations.append(iteration)
        steps += int((batch["step_type"][:, :-1] != StepType.LAST).sum())
        for lane in range(batch.num_lanes):
            for episode in batch["episode"][lane]:
                if open_ids.get(lane) != episode:
                    assert episode not in closed, f"episode {episode} comes twice"
                    closed.add(int(episode))
                    open_ids[lane] = episode
    assert iterations == list(range(1, state["iteration"] + 1))
    assert steps == state["steps"] == state["accounts"]["archived"]


def test_after_a_crash_a_resume_plays_the_lost_iterations_again(tmp_path):
    """kill -9 of the learner, after iterations beyond the last checkpoint have reached the archive."""
    settings = ["emulator=catch", "checkpoint.every=6", "archive.segment_iterations=1", f"run_dir={tmp_path}/run"]
    (tmp_path / "crash.py").write_text(
        "import json, os, signal\nfrom mpirl.emulators.catch import Catch\n"
        "class Crash(Catch):\n    steps = 0\n    def step(self, action):\n        Crash.steps += 1\n"
        "        if Crash.steps > 1200 and os.environ.get('CRASH'):\n            os.kill(json.load(open(os.environ['CRASH']))['pid'], signal.SIGKILL)\n"
        "        return super().step(action)\n"
    )
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    crashed = mpirun(3, [*MAIN, *settings, "emulator._target_=crash.Crash", "total_steps=4000"], env={**env, "CRASH": f"{tmp_path}/run/status.json"})
    assert crashed.returncode and not (tmp_path / "run/COMPLETED").exists()
    resumed = run(3, *settings, "resume=true", env=env)
    assert "set aside" in resumed.stdout.splitlines()[0] and list((tmp_path / "run/archive").glob("discarded-1/*.h5"))
    assert_archive_is_seamless(tmp_path / "run/archive", last_checkpoint(tmp_path / "run"))


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    run(0, "emulator=catch", "total_steps=200", f"run_dir={tmp_path}/run")
    for file in (tmp_path / "run/checkpoints").glob("*"):
        file.unlink()
    result = mpirun(3, [*MAIN, "resume=true", f"run_dir={tmp_path}/run"])
    assert result.returncode and result.stderr.count("no checkpoint in") == 1
    result = mpirun(3, [*MAIN, "resume=true", f"run_dir={tmp_path}/elsewhere"])
    assert result.returncode and result.stderr.count("no run in") == 1


def test_workers_play_with_the_settings_that_a_rule_gives_them(tmp_path):
    rules = "placement.rules=[{ranks: 2, lanes: 1, emulator: {episode_length: 1}}]"
    run(3, *COUNTING, rules, "placement.lanes_per_worker=2", "total_steps=200", f"run_dir={tmp_path}/run")
    rows = [row for path in segments(tmp_path / "run/archive") for row in Segment(path).episodes()]
    lengths = {rank: {row["length"] for row in rows if row["rank"] == rank} for rank in (1, 2)}
    assert lengths[2] == {1} and max(lengths[1]) > 7  # 1 to 2 * episode_length - 1


def test_workers_see_their_gpus_and_have_their_cores(tmp_path):
    (tmp_path / "seen.py").write_text(
        "import os\nfrom mpirl.emulators.catch import Catch\n"
        "class Seen(Catch):\n    def __init__(self):\n        super().__init__()\n"
        "        seen = os.environ.get('CUDA_VISIBLE_DEVICES'), sorted(os.sched_getaffinity(0))\n"
        "        open(f'{os.environ[\"SEEN\"]}/{os.environ[\"OMPI_COMM_WORLD_RANK\"]}', 'w').write(repr(seen))\n"
    )
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "SEEN": str(tmp_path)}
    settings = ["emulator=catch", "~emulator.rows", "~emulator.columns", "~emulator.latency", "emulator._target_=seen.Seen"]
    rules = "placement.rules=[{ranks: 3, gpus: [5, 6], cores: 0}]"
    run(4, *settings, "total_steps=100", "placement.worker_gpus=[2,4]", rules, f"run_dir={tmp_path}/run", env=env)
    seen = [ast.literal_eval((tmp_path / str(rank)).read_text()) for rank in (1, 2, 3)]
    assert [gpus for gpus, _ in seen] == ["2", "4", "5,6"] and seen[2][1] == [0]
    run(2, *settings, "total_steps=100", f"run_dir={tmp_path}/run2", env={**env, "CUDA_VISIBLE_DEVICES": "0"})
    assert ast.literal_eval((tmp_path / "1").read_text())[0] == ""


def test_resume_auto_starts_anew_where_no_checkpoint_was_left(tmp_path):
    directory = tmp_path / "run"
    run(0, *COUNTING, "total_steps=200", f"run_dir={directory}")
    for path in [*directory.glob("checkpoints/*"), directory / "COMPLETED"]:
        path.unlink()
    before = [iteration for iteration, _, _ in read_archive(directory / "archive")]
    result = run(0, "resume=auto", f"run_dir={directory}")
    assert f"it has no checkpoint; {len(before)} iterations of its archive set aside" in result.stdout
    assert [iteration for iteration, _, _ in read_archive(directory / "archive")] == before
    assert (directory / "COMPLETED").is_file()


def test_evaluate_plays_greedy_episodes_of_a_saved_run(tmp_path):
    run(3, "emulator=catch", "total_steps=12000", f"run_dir={tmp_path}/run")
    result = run(3, "program=evaluate", f"run_dir={tmp_path}/run", "evaluation.episodes=40")
    content = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert content["episodes"] == 40 and content["mean_ep_length"] == 9
    assert f"mean return {content['mean_reward']:.2f}" in result.stdout
    assert content["mean_reward"] > 0.5  # random play has -0.6


def test_a_sweep_runs_one_job_after_the_other(tmp_path):
    run(3, "-m", "seed=1,2", "emulator=catch", "total_steps=300", f"run_dir={tmp_path}/runs/${{name}}/${{trial}}", f"hydra.sweep.dir={tmp_path}")
    assert sorted(path.parent.name for path in tmp_path.glob("runs/catch/*/COMPLETED")) == ["1", "2"]


def test_emulator_and_algorithm_of_the_documentation_work_from_outside_the_package(tmp_path):
    text = (ROOT / "docs/extending.md").read_text()
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", text, re.DOTALL)
    game, config, test, algorithm = (body for _, body in blocks)
    for path, body in {
        "my_game.py": game,
        "my_configs/emulator/my_game.yaml": config,
        "test_my_game.py": test,
        "my_algorithm.py": algorithm,
        "my_configs/algorithm/reinforce.yaml": "_target_: my_algorithm.Reinforce\nlearning_rate: 1.0e-2\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(body)
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    own_test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{tmp_path}/test_my_game.py", "--rootdir", str(tmp_path)]
    subprocess.run(own_test, env=environment(env), cwd=tmp_path, check=True, timeout=60)
    choice = ["--config-dir", f"{tmp_path}/my_configs", "emulator=my_game", "algorithm=reinforce", "total_steps=8000"]
    run(3, *choice, f"run_dir={tmp_path}/run", env=env)
    assert json.loads((tmp_path / "run/status.json").read_text())["mean_return"] > 6  # of 10; chance is 5


@pytest.mark.atari
def test_pong_trains_and_archives_single_frames(tmp_path):
    run(3, "total_steps=512", "steps=32", "placement.lanes_per_worker=2", "precision=fp32", f"run_dir={tmp_path}/run")
    ((_, version, batch), *_) = read_archive(tmp_path / "run/archive")
    assert version == 0 and batch["observation"].shape == (4, 3 + 33, 84, 84) and batch["observation"].dtype == np.uint8
    assert batch["lives"].shape == (4, 33) and batch["observation"][:, 3:].any()

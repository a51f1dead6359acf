"""Mistakes, failing ranks, signals: one message, an exit code, nothing left behind, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from launch import ROOT, end, mpirun, signal_all, start, survivors, wait_for

from mpirl.archive.reader import read_archive

MAIN = ["-m", "mpirl.main"]
MISTAKES = {
    "unknown key": (["totl_steps=3"], "totl_steps"),
    "unknown nested key": (["algorithm.learning_rat=1"], "learning_rat"),
    "unknown added key": (["+emulator.rowz=3"], "did you mean 'rows'"),
    "ill-typed key": (["total_steps=many"], "'many'"),
    "ill-typed nested key": (["emulator.rows=many"], "emulator.rows='many'"),
    "bad value": (["algorithm.learning_rate=-1"], "algorithm.learning_rate=-1"),
    "unknown group option": (["emulator=nope"], "emulator/nope"),
    "unknown program": (["program=trian"], "did you mean 'train'"),
    "no such class": (["emulator._target_=mpirl.emulators.catch.Katch"], "Katch"),
    "no such module": (["emulator._target_=nowhere.Game"], "nowhere"),
    "too many lanes named": (["placement.lanes=[1,2,3]"], "names 3 workers, this world has 2"),
    "no lanes": (["placement.lanes_total=0"], "at least one"),
    "lives where there are none": (["algorithm.life_loss=true"], "life_loss"),
    "unknown device": (["device=tpu"], "tpu"),
}


@pytest.mark.parametrize("arguments, expected", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_printed_once_and_leaves_nothing(tmp_path, arguments, expected):
    check_mistake(3, ["emulator=catch", *arguments], expected, tmp_path)


@pytest.mark.atari
def test_an_unknown_game_is_named_with_close_ones(tmp_path):
    check_mistake(3, ["emulator.game=breakut"], "breakout", tmp_path)


def test_an_unknown_gymnasium_id_is_named(tmp_path):
    check_mistake(3, ["emulator=gymnasium", "emulator.id=CartPol-v1"], "CartPole", tmp_path)


def test_one_rank_fits_no_plan(tmp_path):
    check_mistake(1, ["emulator=catch"], "1 rank fits no plan", tmp_path)


def check_mistake(ranks: int, arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = mpirun(ranks, [*MAIN, *arguments, f"run_dir={tmp_path}/run"])
    assert result.returncode not in (0, None)
    lines = [line for line in result.stderr.splitlines() if expected in line]
    assert 1 <= len(lines) <= 2 and len(set(lines)) == len(lines), result.stderr  # Hydra says some things twice, in other words
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / "run").exists()


FAILING = """
import os, signal, time
from mpirl.emulators.catch import Catch

class Failing(Catch):
    steps = 0
    def step(self, action):
        Failing.steps += 1
        if Failing.steps == 1500 and os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "2":
            print("now", time.time(), flush=True)
            {action}
        return super().step(action)
"""


LAGS = pytest.mark.parametrize("lag", ["schedule.lag=0", "schedule.lag=1"])


def failing(tmp_path: Path, action: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a run whose rank 2 does `action` after a while."""
    (tmp_path / "failing.py").write_text(FAILING.format(action=action))
    arguments = [*MAIN, "emulator=catch", "emulator._target_=failing.Failing", "total_steps=1e6", f"run_dir={tmp_path}/run"]
    return arguments, {"PYTHONPATH": f"{ROOT}:{tmp_path}"}


def seconds_since_failure(stdout: str) -> float:
    return time.time() - float(next(line.split()[1] for line in stdout.splitlines() if line.startswith("now")))


@LAGS
def test_an_exception_on_a_worker_ends_the_job_with_its_traceback_and_saves_the_archive(tmp_path, lag):
    arguments, env = failing(tmp_path, "raise RuntimeError('the emulator burst')")
    process = start(3, [*arguments, lag], env)
    try:
        stdout, stderr = process.communicate(timeout=90)
        assert seconds_since_failure(stdout) < 5
        assert process.returncode not in (0, None) and survivors(process, 2) == []
    finally:
        end(process)
    assert stderr.count("RuntimeError: the emulator burst") == 1 and "rank 2 on host" in stderr and "failing.py" in stderr
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed" and "rank 2" in status["reason"] and not (tmp_path / "run/COMPLETED").exists()
    assert len(list(read_archive(tmp_path / "run/archive"))) == status["iteration"] > 5
    assert "the emulator burst" in (tmp_path / "run/logs/rank-0002.log").read_text()


@LAGS
def test_killing_a_worker_ends_the_job_and_leaves_no_orphan(tmp_path, lag):
    arguments, env = failing(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    process = start(3, [*arguments, lag], env)
    try:
        stdout, _ = process.communicate(timeout=90)
        assert seconds_since_failure(stdout) < 10
        assert process.returncode not in (0, None) and survivors(process, 2) == []
    finally:
        end(process)


@LAGS
def test_a_silent_worker_is_named_when_the_deadline_passes(tmp_path, lag):
    arguments, env = failing(tmp_path, "time.sleep(60)")
    process = start(3, [*arguments, lag, "deadline=3"], env)
    try:
        stdout, stderr = process.communicate(timeout=90)
        assert 3 <= seconds_since_failure(stdout) < 15
        assert process.returncode not in (0, None) and survivors(process, 2) == []
    finally:
        end(process)
    assert stderr.count("no sign of rank 2 on host") == 1 and "Traceback" not in stderr


@LAGS
def test_usr1_to_the_learner_saves_and_stops_and_a_resume_goes_on(tmp_path, lag):
    directory = tmp_path / "run"
    process = start(3, [*MAIN, "emulator=catch", "total_steps=1e6", lag, f"run_dir={directory}"])
    try:
        wait_for(lambda: json.loads((directory / "status.json").read_text()).get("iteration", 0) > 5)
        os.kill(json.loads((directory / "status.json").read_text())["pid"], signal.SIGUSR1)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        end(process)
    assert process.returncode == 0, stderr
    status = json.loads((directory / "status.json").read_text())
    assert status["state"] == "stopped" and "SIGUSR1" in status["reason"] and not (directory / "COMPLETED").exists()
    result = mpirun(3, [*MAIN, "resume=true", f"run_dir={directory}", f"total_steps={status['steps'] + 300}"])
    assert result.returncode == 0 and f"iteration {status['iteration']}," in result.stdout.splitlines()[0]
    assert (directory / "COMPLETED").is_file()


def test_a_world_that_fell_apart_into_single_ranks_is_noticed(tmp_path):
    """As when srun or another MPI's mpirun starts the ranks: the launcher says 3, MPI says 1."""
    import subprocess
    import sys

    from launch import environment, launcher

    launcher()  # skips where MPI is not installed
    outputs = []
    for rank in range(3):
        env = environment({"PMI_SIZE": "3", "PMI_RANK": str(rank), "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": str(rank)})
        command = [sys.executable, *MAIN, "emulator=catch", f"run_dir={tmp_path}/run"]
        outputs.append(subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60))
    assert all(output.returncode not in (0, None) for output in outputs)
    assert sum("mpirl:" in output.stderr for output in outputs) == 1, [output.stderr for output in outputs]
    assert not (tmp_path / "run").exists()


@LAGS
def test_a_job_that_is_suspended_as_a_whole_goes_on(tmp_path, lag):
    """As Slurm does it for a job that may wait: every process is stopped, and later told to continue."""
    arguments = ["emulator=catch", "emulator.latency=0.003", "total_steps=3000", lag, "deadline=2", f"run_dir={tmp_path}/run"]
    process = start(3, [*MAIN, *arguments])
    try:
        wait_for(lambda: json.loads((tmp_path / "run/status.json").read_text())["iteration"] >= 2)
        signal_all(process, signal.SIGSTOP)
        time.sleep(6)  # three deadlines
        signal_all(process, signal.SIGCONT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert (tmp_path / "run/COMPLETED").exists()
    finally:
        signal_all(process, signal.SIGCONT)
        end(process)

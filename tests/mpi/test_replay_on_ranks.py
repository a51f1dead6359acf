"""`mpirun -np N python -m mpirl.replay RUN verify`, and the archives of whole runs."""

from __future__ import annotations

import subprocess
import sys

import h5py
import pytest
from archived import CATCH, flip, record
from launch import ROOT, environment, mpirun

from mpirl.archive.reader import segments


def replay(ranks, run, *arguments):
    return mpirun(ranks, ["-m", "mpirl.replay", str(run), *arguments], timeout=60)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_work_and_rank_0_prints(tmp_path, ranks):
    run = record(tmp_path, CATCH, lanes=(2, 1))
    result = replay(ranks, run, "verify")
    assert (result.returncode, result.stdout) == (0, "verified 30 whole episodes, 162 steps: all equal\n"), result.stderr
    flip(run, 3, "reward", (2, 9))
    result = replay(ranks, run, "verify")
    assert result.returncode == 1 and result.stdout.count("divergence: ") == 1 and "lane 2, iteration 3, t = 9" in result.stdout


def test_a_mistake_is_told_once(tmp_path):
    run = record(tmp_path, CATCH)
    for arguments, words in ((["verify", "--episodes", "999"], "no episode 999"), (["verify", "--bad"], "--bad"), (["list"], None)):
        result = replay(2, run, *arguments)
        told = [line for line in result.stderr.splitlines() if line.startswith("mpirl: ")]
        assert (len(told), result.returncode) == ((1, 2) if words else (0, 0)), result.stderr
        assert words is None or words in told[0]
    assert result.stdout.count("id  emulator") == 1


def test_a_rank_that_lacks_the_emulator_ends_the_job_in_words(tmp_path):
    run = record(tmp_path, CATCH)
    lacking = "os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '1'"
    text = f"import os\nif {lacking}:\n    import board_of_catch\nfrom mpirl.emulators.catch import Catch\n"
    (tmp_path / "my_catch.py").write_text(text)
    for path in segments(run / "archive"):
        with h5py.File(path, "r+") as file:
            file.attrs["header"] = file.attrs["header"].replace("mpirl.emulators.catch.Catch", "my_catch.Catch")
    result = mpirun(3, ["-m", "mpirl.replay", str(run), "verify"], timeout=60, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert result.returncode and "board_of_catch" in result.stderr and "rank 1 on" in result.stderr


def test_the_archive_of_a_whole_run_is_verified_after_a_resume(tmp_path):
    main = ["-m", "mpirl.main", f"run_dir={tmp_path}/run"]
    rules = "placement.rules=[{ranks: 2, emulator: {settings: {sutton_barto_reward: true}}}]"
    start = ["emulator=cartpole", "steps=32", "placement.lanes_per_worker=2", "total_steps=600", rules]
    for arguments in (start, ["resume=true", "total_steps=1200"]):
        result = mpirun(3, [*main, *arguments], timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
    command = [sys.executable, "-m", "mpirl.replay", f"{tmp_path}/run", "verify", "--jobs", "2"]
    result = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stdout.rstrip().endswith("all equal"), result.stdout + result.stderr

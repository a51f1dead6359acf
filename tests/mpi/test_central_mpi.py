"""policy=central under mpirun: the step-wise messages, equal results, and ends in the middle of acting."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from launch import end, mpirun, start, survivors
from steps_claims import CLAIMS
from test_training import last_checkpoint, run
from test_trouble import failing, seconds_since_failure

HERE = Path(__file__).parent


@pytest.mark.parametrize("size", [2, 3, 5])
def test_claims_hold_under_mpi(size: int) -> None:
    done = mpirun(size, [HERE / "steps_claims.py"])
    assert done.returncode == 0, done.stderr
    told = {line for line in done.stdout.splitlines() if line.startswith("rank ")}
    assert told == {f"rank {rank} of {size}: {claim.__name__}" for rank in range(size) for claim in CLAIMS}


@pytest.mark.parametrize("ranks, lanes", [(2, "lanes_per_worker=3"), (4, "lanes=[3,0,1]")], ids=["2 ranks", "4 with a zero"])
def test_same_seed_and_layout_give_the_same_weights_under_threads_and_mpi(tmp_path, ranks, lanes):
    settings = ["emulator=cartpole", "policy=central", "total_steps=1500", "evaluation.every=3", f"placement.{lanes}", "seed=7"]
    run(0, *settings, f"ranks={ranks}", f"run_dir={tmp_path}/threads")
    run(ranks, *settings, f"run_dir={tmp_path}/mpi")
    first, second = last_checkpoint(tmp_path / "threads"), last_checkpoint(tmp_path / "mpi")
    assert first["iteration"] == second["iteration"] >= 3
    assert torch.equal(first["weights"], second["weights"])
    evaluations = [json.loads((tmp_path / each / "status.json").read_text())["evaluation"] for each in ("threads", "mpi")]
    assert evaluations[0] == evaluations[1]


ENDS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", ""),
    "exception": ("raise RuntimeError('the emulator burst')", "RuntimeError: the emulator burst"),
    "silent": ("time.sleep(60)", "acting: no sign of rank 2 on host"),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "acting: no sign of rank 2 on host"),
}


@pytest.mark.parametrize("action, message", ENDS.values(), ids=ENDS.keys())
def test_a_worker_lost_in_the_middle_of_acting_ends_the_job_and_leaves_no_orphan(tmp_path, action, message):
    arguments, env = failing(tmp_path, action)
    process = start(3, [*arguments, "policy=central", "deadline=3"], env)
    try:
        stdout, stderr = process.communicate(timeout=90)
        assert seconds_since_failure(stdout) < 15
        assert process.returncode not in (0, None) and survivors(process, 2) == []
    finally:
        end(process)
    assert stderr.count(message) == 1 or not message, stderr
    assert "rank 2" in stderr or not message
    assert not (tmp_path / "run/COMPLETED").exists() and os.path.isdir(tmp_path / "run")

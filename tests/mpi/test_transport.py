"""The MPI transport under mpirun."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
from launch import mpirun
from transport_claims import CLAIMS

HERE = Path(__file__).parent


def trouble(scenario: str, n: int = 3, timeout: float = 30.0):
    return mpirun(n, [HERE / "transport_trouble.py", scenario], timeout)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_claims_hold_under_mpi(size: int) -> None:
    names = [claim.__name__ for claim in CLAIMS]
    done = mpirun(size, [HERE / "transport_claims.py", *names])
    assert done.returncode == 0, done.stderr
    told = {line for line in done.stdout.splitlines() if line.startswith("rank ")}
    assert told == {f"rank {rank} of {size}: {name}" for rank in range(size) for name in names}


def test_deadline_names_the_rank_that_sleeps() -> None:
    done = trouble("silent")
    assert done.returncode != 0
    assert f"gather: no sign of rank 1 on host {socket.gethostname()} for 1.0 s" in done.stdout
    assert re.search(r"rank 0 after 1\.\d s", done.stdout), done.stdout
    assert "rank 2" not in done.stdout


def test_deadline_names_the_rank_that_is_stopped() -> None:
    done = trouble("stopped")
    assert done.returncode != 0
    assert "no sign of rank 2 on host" in done.stdout


def test_rank_that_misses_the_start_is_named_and_ends_the_job() -> None:
    done = trouble("startup")
    assert done.returncode != 0
    assert done.stderr.count("start-up: no sign of rank 1 after 2 s") == 1


def test_workers_name_rank_0_when_it_is_silent() -> None:
    done = trouble("root_silent")
    assert done.returncode != 0
    assert re.search(r"rank 1 after 1\.\d s: broadcast: no sign of rank 0 on host", done.stdout), done.stdout


def test_slow_rank_that_gives_signs_of_life_is_waited_for() -> None:
    done = trouble("slow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("gathered") == 3


def test_failure_report_reaches_rank_0() -> None:
    start = time.monotonic()
    done = trouble("report")
    assert done.returncode != 0
    assert "RankFailed 1 True 'the dog ate it' 'last line'" in done.stdout
    assert "still here" not in done.stdout
    assert time.monotonic() - start < 10


def test_abort_ends_every_rank_at_once() -> None:
    start = time.monotonic()
    done = trouble("abort")
    assert done.returncode != 0
    assert "last words" in done.stdout
    assert time.monotonic() - start < 10  # start-up included


def test_patient_rank_leaves_the_core_to_others() -> None:
    done = trouble("busy")
    busy = {int(rank): float(share) for rank, share in re.findall(r"rank (\d) busy ([\d.]+)", done.stdout)}
    assert set(busy) == {0, 1, 2}, done.stdout + done.stderr
    assert max(busy.values()) < 0.2, busy


def test_counts_are_lanes() -> None:
    done = trouble("counts")
    assert "rank 0 sends 2 of 2000 bytes" in done.stdout, done.stderr
    assert "rank 2 sends 3 of 2000 bytes" in done.stdout
    assert "rank 0 receives ([2, 0, 3], [0, 2, 2]) of 2000 bytes" in done.stdout


def test_ranks_die_with_a_killed_launcher() -> None:
    process = launch.start(3, [HERE / "transport_trouble.py", "forever"])
    try:
        for _ in range(3):
            assert process.stdout.readline().startswith("pid ")
        process.kill()
        assert launch.survivors(process, patience=5.0) == []
    finally:
        launch.end(process)


def test_wrong_launcher_is_told_by_the_size_of_the_world() -> None:
    code = "from mpirl.transport.mpi import world; world()"
    launch.launcher()
    environ = launch.environment({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, cwd=launch.ROOT, capture_output=True, text=True, timeout=30)
    assert "UserError: Slurm's srun started 4 ranks" in done.stderr
    assert "srun --mpi=pmix" in done.stderr

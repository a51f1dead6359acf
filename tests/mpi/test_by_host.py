"""Gather with one sender per host, under mpirun; hosts are simulated."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
from launch import mpirun

from mpirl.transport.by_host import Party, joined, parties

HERE = Path(__file__).parent
MAIN = ["-m", "mpirl.main"]


def trouble(scenario: str, timeout: float = 40.0):
    return mpirun(6, [HERE / "by_host_trouble.py", scenario], timeout)


@pytest.mark.parametrize("size, hosts", [(2, "a"), (3, "abb"), (5, "abb"), (5, "ab")])
def test_all_claims_of_a_transport_hold(size: int, hosts: str) -> None:
    done = mpirun(size, [HERE / "by_host_claims.py", hosts])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("gathers by host") == size
    assert f"rank 0 of {size}: 0 gathers" not in done.stdout


def test_silent_worker_is_named() -> None:
    done = trouble("silent")
    assert done.returncode != 0
    assert "rank 0 RankSilent: gather: no sign of rank 2 on host hb for 1.0 s" in done.stdout


def test_stopped_leader_is_named_and_not_those_who_wait_for_it() -> None:
    done = trouble("stopped")
    assert "rank 0 RankSilent: gather: no sign of rank 1 on host hb for" in done.stdout, done.stdout
    assert "rank 2 on" not in done.stdout


def test_killed_leader_ends_the_job_at_once() -> None:
    start = time.monotonic()
    assert trouble("killed").returncode != 0
    assert time.monotonic() - start < 15  # start-up included


def test_failure_of_a_worker_reaches_rank_0() -> None:
    assert "rank 0 RankFailed: rank 2 on host hb failed:\nthe dog ate it" in trouble("failed").stdout


def test_memory_that_cannot_be_had_is_told_alike_on_all_ranks() -> None:
    done = trouble("too_large")
    assert done.returncode == 0, done.stderr
    expected = "agreed: rank 1 on hb: 0 MB of shared memory for the workers' trajectories cannot be had (File too large)"
    assert done.stdout.count(expected) == 6, done.stdout
    assert "wire.gather=direct" in done.stdout


def test_memory_of_another_process_is_not_taken_for_the_leaders() -> None:
    done = trouble("out_of_reach")
    assert done.stdout.count("agreed: rank 2 on hb: the ranks of this host cannot share memory: process ") == 6, done.stdout


def test_workers_of_a_host_form_a_party_that_rank_0_leads_at_home() -> None:
    found = parties(["a", "b", "a", "b", "c", "b"], [0, 2, 3, 0, 1, 4])
    assert found == [Party(1, (1, 5), (2, 4)), Party(0, (2,), (3,)), Party(4, (4,), (1,))]
    assert [party.shares for party in found] == [True, True, False]
    assert found[0].rows_of(5) == slice(2, 6)


def test_neighbouring_rows_are_received_as_one_block() -> None:
    assert joined([slice(0, 2), slice(2, 5), slice(7, 8)]) == [slice(0, 5), slice(7, 8)]


def test_either_way_gives_the_same_weights_also_rounded_and_among_threads(tmp_path: Path) -> None:
    """With bfloat16 weights: by host and directly under MPI, and in one process."""
    torch = pytest.importorskip("torch")
    settings = [*MAIN, "emulator=catch", "total_steps=700", "seed=3", "wire.weights=bf16"]
    for way in ("direct", "host"):
        done = mpirun(3, [*settings, f"wire.gather={way}", f"run_dir={tmp_path}/{way}"])
        assert done.returncode == 0, done.stdout + done.stderr
    alone = [sys.executable, *settings, "ranks=3", f"run_dir={tmp_path}/threads"]
    subprocess.run(alone, env=launch.environment(), cwd=launch.ROOT, check=True, timeout=60, capture_output=True)
    last = [sorted((tmp_path / name / "checkpoints").glob("0*.pt"))[-1] for name in ("direct", "host", "threads")]
    first, *others = (torch.load(path, weights_only=True)["weights"] for path in last)
    assert torch.equal(first, others[0]) and torch.equal(first, others[1])


def test_nothing_is_left_in_dev_shm_by_a_crash() -> None:
    launch.launcher()
    before = {path.name for path in Path("/dev/shm").iterdir()}
    trouble("killed")
    left = {path.name for path in Path("/dev/shm").iterdir()} - before
    assert not [name for name in left if "mpirl" in name], left

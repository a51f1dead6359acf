"""Trainings on several hosts: started by mpirun over ssh and by Slurm, with Open MPI and with MPICH."""

from __future__ import annotations

import re

import pytest
from namespaces import wait_until
from trainings import MPICH, OPENMPI, TWO_EACH, check_complete, has_begun, nothing_runs, status, stop_at_once

SMALL_PONG = "steps=8 total_steps=500 placement.lanes_per_worker=2 algorithm.epochs=1 precision=fp32"
CATCH = "emulator=catch total_steps=3000 algorithm.epochs=1"


def start_line(stdout: str) -> str:
    return next(line for line in stdout.splitlines() if "ranks on" in line)


def test_the_readmes_command_trains_pong_on_the_hostfiles_hosts(lab, tmp_path):
    result = lab.run(f"{OPENMPI} {SMALL_PONG} run_dir={tmp_path}/run", timeout=180)
    assert result.returncode == 0, result.stderr
    assert "9 ranks on 5 hosts, 16 lanes x 8 steps" in start_line(result.stdout)
    assert status(tmp_path / "run")["hosts"] == TWO_EACH
    check_complete(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/logs").iterdir()) == [f"rank-{rank:04}.log" for rank in range(9)]
    assert nothing_runs(lab)


def test_the_run_directory_stands_on_the_first_host(lab, tmp_path):
    lab.hide("cpu1", tmp_path)  # workers there see a folder of their own in its place
    result = lab.run(f"{OPENMPI} {CATCH} run_dir={tmp_path}/run", timeout=120)
    assert result.returncode == 0, result.stderr
    check_complete(tmp_path / "run")
    assert not (tmp_path / "run/logs/rank-0001.log").exists() and (tmp_path / "run/logs/rank-0003.log").exists()


def test_mpich_trains_on_its_hostfile(lab, mpich, tmp_path):
    result = lab.run(f"{MPICH} {CATCH} run_dir={tmp_path}/run", env=mpich, timeout=120)
    assert result.returncode == 0, result.stderr
    assert status(tmp_path / "run")["hosts"] == TWO_EACH and "MPICH" in status(tmp_path / "run")["identity"]["mpi"]
    check_complete(tmp_path / "run")


def test_srun_with_pmix_trains_with_open_mpi(lab, tmp_path):
    result = lab.run(f"srun -N5 -n9 --mpi=pmix python -m mpirl.main {CATCH} run_dir={tmp_path}/run", timeout=120)
    assert result.returncode == 0, result.stderr
    assert len(set(status(tmp_path / "run")["hosts"])) == 5 and "Open MPI" in status(tmp_path / "run")["identity"]["mpi"]
    check_complete(tmp_path / "run")


def test_the_learner_can_be_put_on_a_host_that_the_launcher_does_not_name_first(lab, tmp_path):
    settings = f"{CATCH} placement.learner=gpu0 run_dir={tmp_path}/run"
    result = lab.run(f"srun -N5 -n9 --mpi=pmix python -m mpirl.main {settings}", timeout=120)
    assert result.returncode == 0, result.stderr
    assert status(tmp_path / "run")["hosts"][0] == "gpu0" and status(tmp_path / "run")["hosts"].count("gpu0") == 1
    check_complete(tmp_path / "run")
    wrong = lab.run(f"{OPENMPI} {CATCH} placement.learner=gpu7 run_dir={tmp_path}/run2", timeout=120)
    assert wrong.returncode != 0 and wrong.stderr.count("placement.learner=gpu7: no rank runs there; the hosts are gpu0, cpu1") == 1


def test_srun_with_pmi2_trains_with_mpich(lab, mpich, tmp_path):
    result = lab.run(f"srun -N5 -n9 --mpi=pmi2 python -m mpirl.main {CATCH} run_dir={tmp_path}/run", env=mpich, timeout=120)
    assert result.returncode == 0, result.stderr
    check_complete(tmp_path / "run")


def test_srun_with_the_wrong_pmi_is_told_once(lab, tmp_path):
    result = lab.run(f"srun -N5 -n9 --mpi=pmi2 python -m mpirl.main {CATCH} run_dir={tmp_path}/run", timeout=120)
    assert result.returncode != 0 and not (tmp_path / "run").exists()
    told = [line for line in result.stderr.splitlines() if "mpirl:" in line]
    assert len(told) == 1 and "srun --mpi=pmix for Open MPI and srun --mpi=pmi2 for MPICH" in told[0], result.stderr


def test_two_trials_at_once_do_not_meet(lab, tmp_path):
    trials = [lab.start(f"{OPENMPI} {CATCH} seed={seed} run_dir={tmp_path}/catch/{seed}") for seed in (1, 2)]
    try:
        outputs = [trial.communicate(timeout=180) for trial in trials]
    finally:
        [stop_at_once(trial) for trial in trials]
    assert [trial.returncode for trial in trials] == [0, 0], outputs
    for seed in (1, 2):
        check_complete(tmp_path / "catch" / str(seed))
    listed = lab.run(["python", "-m", "mpirl.runs", tmp_path]).stdout
    assert listed.count("finished") == 2 and "gpu0, cpu[1-4]" in listed


def test_a_second_start_in_a_run_directory_in_use_is_refused(lab, tmp_path):
    first = lab.start(f"{OPENMPI} emulator=catch total_steps=1e9 run_dir={tmp_path}/run")
    try:
        wait_until(has_begun(tmp_path / "run"), "the first run", 90)
        second = lab.run(f"{OPENMPI} resume=true run_dir={tmp_path}/run", timeout=90)
        assert second.returncode != 0 and second.stderr.count("is in use by a run that is still going") == 1
    finally:
        stop_at_once(first)


def test_a_dry_run_shows_what_would_run_where_and_leaves_nothing(lab, tmp_path):
    rules = """ "placement.rules=[{hosts: 'cpu[1-2]', lanes: 1, emulator: {columns: 5}}]" """
    result = lab.run(f"{OPENMPI} emulator=catch {rules} run_dir={tmp_path}/run dry_run=true", timeout=90)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "run").exists()
    rows = {words[0]: words for line in result.stdout.splitlines() if (words := re.split(r"\s{2,}", line))}
    assert rows["0"][1:3] == ["gpu0", "learner"]
    assert rows["1-2"][1:3] == ["cpu1", "worker"] and rows["7-8"][1:3] == ["cpu4", "worker"]
    assert "9 ranks on 5 hosts, 20 lanes x" in result.stdout


@pytest.mark.parametrize("flags", ["", "--check"])
def test_the_placement_is_shown_without_mpi(lab, flags):
    result = lab.run(f"python -m mpirl.placement -np 9 --hostfile hostfiles/lab {flags} emulator=catch", timeout=90)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "9 ranks on 5 hosts" in result.stdout

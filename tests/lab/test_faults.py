"""What goes wrong on several hosts: the job ends, names rank, host and mend, saves what it can, and leaves no process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from lab import ROOT, Lab
from namespaces import wait_until
from trainings import ENDLESS, MPICH, OPENMPI, archived, end_softly, has_begun, nothing_runs, status, stop_at_once


@pytest.fixture
def begun(lab, tmp_path):
    """begun(launcher, settings, env): a launcher whose run in tmp_path/run has done some iterations; killed at the end."""
    started = []

    def begin(launcher: str = OPENMPI, settings: str = ENDLESS, env=None):
        process = lab.start(f"exec {launcher} {settings} run_dir={tmp_path}/run", env=env)
        started.append(process)
        has_iterations = has_begun(tmp_path / "run")
        wait_until(lambda: has_iterations() or process.poll() is not None, "some iterations", 120)
        assert process.poll() is None, process.communicate()
        return process

    yield begin
    for process in started:
        stop_at_once(process)


def check_resumes(lab: Lab, run: Path, launcher: str = OPENMPI, env=None) -> None:
    """The run goes on from where it was saved, and loses and repeats nothing up to its end."""
    before = status(run)
    end = before["steps"] + 2000
    result = lab.run(f"{launcher} resume=true run_dir={run} total_steps={end}", env=env, timeout=120)
    assert result.returncode == 0, result.stderr
    iterations, _, _ = archived(run)
    assert iterations == list(range(1, len(iterations) + 1)) and status(run)["steps"] >= end


@pytest.mark.parametrize(
    "launcher, number",
    [("openmpi", signal.SIGINT), ("openmpi", signal.SIGTERM), ("openmpi", signal.SIGUSR1), ("mpich", signal.SIGUSR1)],
)
def test_a_signal_to_mpirun_saves_and_leaves_no_process_on_any_host(lab, begun, request, tmp_path, launcher, number):
    env = request.getfixturevalue("mpich") if launcher == "mpich" else None
    command = MPICH if launcher == "mpich" else OPENMPI
    process = begun(command, env=env)
    end_softly(process, number)
    assert nothing_runs(lab)
    wait_until(lambda: status(tmp_path / "run")["state"] == "stopped", "the run to be saved", 20)
    assert not (tmp_path / "run/COMPLETED").exists()
    check_resumes(lab, tmp_path / "run", command, env)


def test_max_time_saves_and_ends_in_order_on_all_hosts(lab, tmp_path):
    result = lab.run(f"{OPENMPI} {ENDLESS} max_time=3 run_dir={tmp_path}/run", timeout=120)
    assert result.returncode == 0 and status(tmp_path / "run")["state"] == "stopped", result.stderr
    assert "max_time of 3 s reached" in status(tmp_path / "run")["reason"]
    assert nothing_runs(lab)


def test_a_killed_rank_ends_the_job_and_a_resume_goes_on(lab, begun, tmp_path):
    process = begun(settings=f"{ENDLESS} checkpoint.every=1")
    victim = next(iter(lab.pids("cpu3", "mpirl.main")))
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0 and "cpu3" in stderr
    assert nothing_runs(lab)
    check_resumes(lab, tmp_path / "run")


def test_a_host_that_dies_ends_the_job_and_a_resume_goes_on_without_it(lab, begun, tmp_path):
    process = begun(settings=f"{ENDLESS} checkpoint.every=1 deadline=10")
    lab.kill_all("cpu4")
    process.communicate(timeout=90)
    assert nothing_runs(lab, 40)
    assert not (tmp_path / "run/COMPLETED").exists()
    without = tmp_path / "hostfile"
    without.write_text((ROOT / "hostfiles/lab").read_text().replace("cpu4 slots=2\n", ""))
    check_resumes(lab, tmp_path / "run", f"mpirun -np 7 --hostfile {without} python -m mpirl.main")


def test_a_host_whose_cable_is_pulled_is_named_after_the_deadline(lab, begun, tmp_path):
    process = begun(settings=f"{ENDLESS} checkpoint.every=1 deadline=6")
    lab.cut("cpu2")
    start = time.monotonic()
    _, stderr = process.communicate(timeout=120)
    assert time.monotonic() - start < 60
    assert process.returncode != 0 and "no sign of rank 3 on host cpu2, rank 4 on host cpu2" in stderr
    lab.kill_all("cpu2")  # whose processes no longer hear of anything
    assert nothing_runs(lab, 30)


def test_a_slow_link_only_slows(lab, tmp_path):
    lab.slow("cpu1", "2mbit")
    result = lab.run(f"{OPENMPI} emulator=catch total_steps=1000 algorithm.epochs=1 run_dir={tmp_path}/run", timeout=150)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/COMPLETED").is_file()


@pytest.mark.parametrize(
    "fault, what",
    [
        (lambda lab: lab.refuse_ssh("cpu3"), "cpu3: cannot be reached by ssh"),
        (lambda lab: lab.hang_ssh("cpu3"), "cpu3: cannot be reached by ssh"),
        (lambda lab: lab.hide("cpu3", ROOT / ".venv"), "cpu3: no "),
        (lambda lab: lab.hide("cpu3", ROOT / "mpirl"), "cpu3: "),
    ],
    ids=["refused", "hanging", "no python", "no mpirl"],
)
def test_the_check_names_the_host_and_the_mend(lab, fault, what):
    fault(lab)
    result = lab.run("python -m mpirl.placement -np 9 --hostfile hostfiles/lab --check emulator=catch", timeout=120)
    assert result.returncode == 1
    told = [line for line in (result.stdout + result.stderr).splitlines() if what in line]
    assert len(told) == 1, result.stdout + result.stderr


def test_a_host_without_the_emulator_is_named_by_the_run(lab, tmp_path):
    import ale_py

    lab.hide("cpu3", Path(ale_py.__file__).parent)
    result = lab.run(f"{OPENMPI} run_dir={tmp_path}/run allow_differences=all", timeout=120)
    assert result.returncode != 0 and not (tmp_path / "run").exists()
    assert "cpu3" in result.stderr and "pip install 'mpirl[atari]'" in result.stderr
    assert nothing_runs(lab)


def test_a_host_with_other_versions_is_named_with_both_values(lab, tmp_path):
    import gymnasium

    metadata = next(Path(gymnasium.__file__).parent.parent.glob("gymnasium-*.dist-info"))
    lab.hide("cpu3", metadata)  # as if the package were not installed there
    result = lab.run(f"{OPENMPI} emulator=catch run_dir={tmp_path}/run", timeout=120)
    assert result.returncode != 0 and not (tmp_path / "run").exists()
    assert "gymnasium" in result.stderr and "cpu3" in result.stderr and "allow_differences" in result.stderr
    same = f"emulator=catch total_steps=500 run_dir={tmp_path}/run"
    allowed = lab.run(f"{OPENMPI} {same} allow_differences=[gymnasium]", timeout=120)
    assert allowed.returncode == 0, allowed.stderr


def test_a_host_whose_start_lasts_long_is_named_while_waiting_and_at_the_limit(lab, tmp_path):
    (tmp_path / "late.py").write_text(
        "import socket, time\n"
        "from mpirl.emulators.catch import Catch\n"
        "def make(rows=10, columns=5, latency=0.0):\n"
        "    time.sleep(300 if socket.gethostname() == 'cpu3' else 0)\n"
        "    return Catch(rows, columns, latency)\n"
    )
    settings = f"emulator=catch emulator._target_=late.make run_dir={tmp_path}/run startup_deadline=25"
    command = OPENMPI.replace("mpirun", "mpirun -x PYTHONPATH")
    result = lab.run(f"{command} {settings}", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, timeout=120)
    assert result.returncode != 0
    assert "6/8 workers ready, waiting for cpu3 (ranks 5, 6) for" in result.stderr
    limit = [line for line in result.stderr.splitlines() if "no sign of" in line]
    assert len(limit) == 1 and "cpu3" in limit[0] and "5, 6" in limit[0], result.stderr
    assert nothing_runs(lab) and not (tmp_path / "run").exists()

"""Programs start on the lab's hosts as on real ones: by mpirun over ssh and by Slurm, with Open MPI and with MPICH."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import need
from lab import HOSTS, Lab
from namespaces import wait_until
from needs import ROOT, why_not

HELLO = """
import socket, time
from mpi4py import MPI
time.sleep(0.5)  # Open MPI 5.0 under srun: a message to a rank that is still in MPI_Init may kill it (open-mpi/ompi#12495)
print(MPI.COMM_WORLD.gather((socket.gethostname(), MPI.Get_library_version().split()[0])))
"""
SAVE_AND_REQUEUE = """
echo start ${SLURM_RESTART_COUNT:-0}
[ ${SLURM_RESTART_COUNT:-0} = 0 ] || exit 0
trap 'echo USR1; scontrol requeue $SLURM_JOB_ID' USR1
sleep 100 & wait; wait
"""
TWO_EACH = ["gpu0", *(host for host in HOSTS[1:] for _ in range(2))]


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A program in which rank 0 prints every rank's host and MPI."""
    (tmp_path / "hello.py").write_text(HELLO)
    return tmp_path / "hello.py"


@pytest.fixture(scope="module", autouse=True)
def requeued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a job writes that is signalled before its time limit and requeues itself.

    Slurm looks at time limits every 30 s. So the job runs while other tests do, in a lab of its own.
    """
    need(why_not())
    folder = tmp_path_factory.mktemp("requeued")
    write_job(folder, "--time=1 --signal=B:USR1@55 --open-mode=append --output=words", SAVE_AND_REQUEUE)
    with Lab(["gpu0"]) as lab:
        assert lab.run("sbatch job", cwd=folder).returncode == 0
        yield folder / "words"


def write_job(folder: Path, options: str, script: str) -> None:
    (folder / "job").write_text(f"#!/bin/bash\n#SBATCH {options}\n{script}")


def run_jobs(lab: Lab, folder: Path, env: dict[str, str] | None = None) -> None:
    """Submits the folder's job and returns when there is none left. (`sbatch --wait` looks every 10 s.)"""
    submitted = lab.run("sbatch job", cwd=folder, env=env)
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: lab.run("squeue --noheader").stdout == "", "the job to end")


def ranks(stdout: str, library: str, stderr: str = "") -> list[str]:
    """The hosts by rank, of a hello from that library."""
    pairs = re.findall(r"\('(\w+)', '(\w+)'\)", stdout)
    assert {name for _, name in pairs} == {library}, stdout + stderr[:4000]
    return [host for host, _ in pairs]


def test_open_mpi_starts_the_hostfiles_ranks_over_ssh(lab, hello):
    found = lab.run(f"mpirun -np 9 --hostfile hostfiles/lab python {hello}")
    assert ranks(found.stdout, "Open", found.stderr) == TWO_EACH, found.stderr


def test_mpich_starts_the_hostfiles_ranks_over_ssh(lab, hello, mpich):
    found = lab.run(f"mpirun -np 9 -f hostfiles/lab.mpich python {hello}", env=mpich)
    assert ranks(found.stdout, "MPICH", found.stderr) == TWO_EACH, found.stderr


def test_open_mpi_is_started_by_slurm_with_pmix(lab, hello):
    found = lab.run(f"srun -N 5 -n 9 --mpi=pmix python {hello}")
    hosts = ranks(found.stdout, "Open", found.stderr)
    assert len(hosts) == 9 and set(hosts) == set(HOSTS), found.stderr


def test_mpich_is_started_by_slurm_with_pmi2(lab, hello, mpich):
    found = lab.run(f"srun -N 5 -n 9 --mpi=pmi2 python {hello}", env=mpich)
    hosts = ranks(found.stdout, "MPICH", found.stderr)
    assert len(hosts) == 9 and set(hosts) == set(HOSTS), found.stderr


def test_the_mpich_environment_has_all_packages_of_the_main_one(lab, mpich):
    words = "import torch, mpirl, mpi4py; print(torch.__file__, mpirl.__file__, mpi4py.__file__)"
    files = lab.run(["python", "-c", words], env=mpich).stdout.split()
    homes = [ROOT / ".venv", ROOT / "mpirl", ROOT / ".venv-mpich"]
    assert len(files) == 3 and all(home in Path(file).parents for file, home in zip(files, homes, strict=True))


def test_slurm_runs_on_every_host(lab):
    assert sorted(lab.run("srun -N 5 hostname").stdout.split()) == sorted(HOSTS)


def test_slurm_ranks_may_outnumber_the_cores(lab):
    assert lab.run("srun -n 40 hostname").stdout.count("\n") == 40


def test_array_jobs_run_every_task(lab, tmp_path):
    write_job(tmp_path, "--array=1-3 --output=words-%a", "echo $SLURM_ARRAY_TASK_ID")
    run_jobs(lab, tmp_path)
    assert [(tmp_path / f"words-{task}").read_text() for task in (1, 2, 3)] == ["1\n", "2\n", "3\n"]


def test_a_heterogeneous_job_puts_rank_0_on_the_gpu_host(lab, tmp_path, hello, mpich):
    options = "--ntasks=1 --gres=gpu:1 --output=words\n#SBATCH hetjob\n#SBATCH --ntasks=8 --nodes=4 --ntasks-per-node=2"
    write_job(tmp_path, options, f"srun --mpi=pmi2 python {hello} : python {hello}")
    run_jobs(lab, tmp_path, mpich)
    assert ranks((tmp_path / "words").read_text(), "MPICH") == TWO_EACH


def test_a_cancelled_job_leaves_no_process(lab):
    lab.start("srun -N 5 sleep 1234")
    wait_until(lambda: all(lab.pids(host, "sleep 1234") for host in HOSTS), "the job to run")
    lab.run("scancel --user root")
    wait_until(lambda: not any(lab.pids(host) for host in HOSTS), "the job to end", 10)


def test_a_job_gets_usr1_before_its_time_limit_and_requeues_itself(requeued):
    wait_until(lambda: "start 1" in requeued.read_text(), "the job to start again", 60)
    words = [line for line in requeued.read_text().splitlines() if not line.startswith("slurmstepd")]
    assert words == ["start 0", "USR1", "start 1"]

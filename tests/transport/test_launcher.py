"""What launchers' variables tell."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpirl.errors import UserError
from mpirl.transport.launcher import check_world, end_stuck_launcher, launched_rank, launched_size, scrubbed, spare_networks

OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2", "PMIX_RANK": "2"}
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    "environ, size, rank",
    [({}, None, None), (OPEN_MPI, 3, 2), (MPICH, 4, 1), (SRUN, 5, 0), ({"PMIX_RANK": "3"}, 4, 3), (SRUN | OPEN_MPI, 3, 2)],
)
def test_launcher_tells_size_and_rank(environ: dict[str, str], size: int | None, rank: int | None) -> None:
    assert launched_size(environ) == size
    assert launched_rank(environ) == rank


def test_batch_script_without_srun_is_no_launcher() -> None:
    assert launched_size({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None


@pytest.mark.parametrize("environ, name", [(OPEN_MPI, "Open MPI"), (MPICH, "PMI"), (SRUN, "srun")])
def test_many_worlds_of_size_1_are_a_mistake_that_names_the_mend(environ: dict[str, str], name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*started {launched_size(environ)} ranks.*MPICH 5.*srun --mpi=pmix"):
        check_world(1, environ, "MPICH 5")


def test_fabrics_are_tried_out_unless_all_ranks_are_on_one_host_and_nobody_chose() -> None:
    here = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
    spare_networks(here)
    assert (here["OMPI_MCA_mtl"], here["OMPI_MCA_btl"]) == ("^ofi", "^ofi")
    for others in (OPEN_MPI, {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, MPICH, SRUN, {}):
        environ = dict(others)
        spare_networks(environ)
        assert environ == others
    chosen = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "3", "OMPI_MCA_pml": "cm"}
    spare_networks(chosen)
    assert "OMPI_MCA_mtl" not in chosen


def test_worlds_as_launched_are_fine() -> None:
    check_world(3, OPEN_MPI)
    check_world(1, {})
    check_world(1, {"PMI_SIZE": "1", "PMI_RANK": "0"})


def test_children_do_not_inherit_the_launcher() -> None:
    environ = {**OPEN_MPI, **MPICH, **SRUN, "PRTE_X": "1", "HYDI_X": "1", "HYDRA_X": "1", "HOME": "/home/me", "PMIDAS": "gold"}
    assert scrubbed(environ) == {"HOME": "/home/me", "PMIDAS": "gold"}


RANK = "import os; from mpirl.transport.launcher import end_stuck_launcher; end_stuck_launcher(os.environ, 1)"


def launcher_that(does: str, folder: Path) -> subprocess.Popen:
    """A process named mpirun: it starts a rank that calls end_stuck_launcher, then does what it is told."""
    shutil.copy(shutil.which("bash"), folder / "mpirun")
    return subprocess.Popen([folder / "mpirun", "-c", f"{sys.executable} -c '{RANK}'; {does}"])


def test_an_mpirun_that_does_not_end_is_ended(tmp_path: Path) -> None:
    start = time.monotonic()
    stuck = launcher_that("trap : TERM; while true; do sleep 0.1; done", tmp_path)
    assert stuck.wait(timeout=30) == -9 and time.monotonic() - start > 2


def test_an_mpirun_that_ends_is_left_alone(tmp_path: Path) -> None:
    assert launcher_that("exit 7", tmp_path).wait(timeout=30) == 7


def test_without_mpirun_nobody_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail(f"started {arguments}"))
    end_stuck_launcher({})

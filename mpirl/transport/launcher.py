"""What the launcher (mpirun, srun) says about this process through environment variables. Needs no MPI."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from mpirl.errors import UserError

# (variable of the size, variable of the rank, who sets them). Slurm comes last: an mpirun inside a Slurm
# job inherits Slurm's variables, which then tell of mpirun's helpers and not of the ranks.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "Open MPI's mpirun"),
    ("PMI_SIZE", "PMI_RANK", "a PMI launcher (MPICH's mpirun or srun --mpi=pmi2)"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "Slurm's srun"),
)
PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDI_", "HYDRA_", "SLURM_")
MPIRUNS = ("mpirun", "prterun", "prte", "mpiexec", "mpiexec.hydra")  # names of the process that starts the ranks
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def launched_size(environ: Mapping[str, str]) -> int | None:
    """How many ranks the launcher started (at least, if it tells only this one's rank); None without a launcher."""
    for size, rank, _ in LAUNCHERS:
        if _number(environ, size) is not None and _number(environ, rank) is not None:
            return _number(environ, size)
    rank = _number(environ, "PMIX_RANK")
    return None if rank is None else rank + 1


def launched_rank(environ: Mapping[str, str]) -> int | None:
    """The rank that the launcher gave this process; None without a launcher."""
    for size, rank, _ in LAUNCHERS:
        if _number(environ, size) is not None and _number(environ, rank) is not None:
            return _number(environ, rank)
    return _number(environ, "PMIX_RANK")


def spare_networks(environ: MutableMapping[str, str]) -> None:
    """Where Open MPI's mpirun has put all ranks on this host, keep MPI_Init from trying out fabrics, which takes a second.

    Nothing happens where anybody has chosen Open MPI's components.
    """
    sizes = [_number(environ, name) for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE")]
    if sizes[0] is None or sizes[0] != sizes[1] or any(f"OMPI_MCA_{kind}" in environ for kind in ("pml", "mtl", "btl")):
        return
    environ |= {"OMPI_MCA_mtl": "^ofi", "OMPI_MCA_btl": "^ofi"}


def check_world(size: int, environ: Mapping[str, str], library: str = "") -> None:
    """Raise UserError if COMM_WORLD has `size` 1 although the launcher started several ranks.

    library: name of the MPI library that mpi4py is bound to, if known.
    """
    started = launched_size(environ)
    if size != 1 or started is None or started == 1:
        return
    raise UserError(
        f"{_launcher(environ)} started {started} ranks, but each is alone in an MPI world of size 1: the launcher and "
        f"the MPI library of this environment ({library or 'unknown'}) do not know each other. "
        f"Use the mpirun that belongs to that library (beside this environment's python), or under Slurm "
        f"srun --mpi=pmix for Open MPI and srun --mpi=pmi2 for MPICH"
    )


def die_with_launcher(environ: Mapping[str, str]) -> None:
    """If a launcher started this process, have Linux kill it when the launcher dies: sleeping ranks outlive it else."""
    if launched_rank(environ) is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_stuck_launcher(environ: Mapping[str, str], patience: float = 10.0) -> None:
    """Have mpirun killed, if it is on this host and has not ended the job `patience` seconds from now: it waits for good for
    the daemon of a host that has gone, and its ssh to that host would go on and hold its output.
    """
    launcher = next((process for process in ancestors() if process_name(process) in MPIRUNS), None)
    if launcher is None:
        return
    same = f'[ "$(cat /proc/{launcher}/comm 2>/dev/null)" = {process_name(launcher)} ]'
    kill = f"kill -TERM {launcher}; sleep 1; kill -KILL {launcher} {' '.join(map(str, children(launcher)))}"
    script = f"for _ in $(seq {patience:.0f}); do sleep 1; {same} || exit 0; done; {kill}"
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, env=scrubbed(environ), **quiet)


def ancestors() -> list[int]:
    """This process's parent, its parent, and so on."""
    found, process = [], os.getppid()
    while process > 1:
        found.append(process)
        process = parent(process)
    return found


def children(process: int) -> list[int]:
    """The processes that another one started and that are still there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            found += [int(folder.name)] if parent(int(folder.name)) == process else []
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def process_name(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text().strip()


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for child processes: without the launcher's variables, which would make them pose as this rank."""
    return {key: value for key, value in environ.items() if not key.startswith(PREFIXES)}


def _launcher(environ: Mapping[str, str]) -> str:
    for size, rank, name in LAUNCHERS:
        if size in environ and rank in environ:
            return name
    return "a PMIx launcher"


def _number(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else None
